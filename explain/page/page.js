// The two views, the controls beside them, and the keys.

let ranked = [], frame = 0, timer = null, marked = [];
const MOST_NAMES = 60;  // that are written at boxes at once: more cover the image
const views = {};
const candidates = () => ranked.filter((query) => score(query) >= state.confidence);
const shownQuery = (side) => (state.hover?.side === side ? state.hover.query : state[side]);
const sides = () => (state.b === null && !encoderMode() ? ["a"] : ["a", "b"]);
const shownQueries = () => sides().map(shownQuery).filter((query) => query !== null);
const methodTitle = () => meta.methods.find(({ name }) => name === state.method).title;

/** An element with properties, event listeners "on" it, and children. */
function make(tag, { on = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children);
  return element;
}

const span = (className, text) => make("span", { className }, text);
const button = (text, click, properties = {}) => make("button", { type: "button", onclick: click, ...properties }, text);

function makeView(side) {
  const place = (event) => {
    const area = canvas.getBoundingClientRect();
    return [((event.clientX - area.left) * W) / area.width, ((event.clientY - area.top) * H) / area.height];
  };
  const pointed = (event) => {
    const [x, y] = place(event);
    const size = (query) => { const [x0, y0, x1, y1] = box(query); return (x1 - x0) * (y1 - y0); };
    const over = ([x0, y0, x1, y1]) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
    return candidates().filter((q) => over(box(q))).sort((one, two) => size(one) - size(two))[0] ?? null;
  };
  const clicked = (event) => {
    if (encoderMode()) {
      state.pixel = place(event).map((value, i) => clip(value, 0, [W, H][i] - 1));
      return redraw();
    }
    const query = pointed(event);
    if (event.shiftKey && query !== null) select("b", query);
    else if (side === "a" || query !== null) select(side, query);
    return undefined;
  };
  const canvas = make("canvas", { role: "img", style: `aspect-ratio: ${W} / ${H}; --ratio: ${W / H}`, on: {
    pointermove: (event) => event.pointerType !== "touch" && !encoderMode() && hover(side, pointed(event)),
    pointerleave: () => hover(side, null),
    click: clicked,
  } });
  const columns = range(N).map((layer) => {
    const bar = make("i"), text = make("span");
    return { bar, text, button: button("", () => setLayer(layer)) };
  });
  for (const { bar, text, button } of columns) button.append(make("div", { className: "column" }, bar), text);
  const what = make("div", { className: "what" });
  const scores = make("div", { className: "scores", role: "group", ariaLabel: "Score at each layer" },
    ...columns.map((column) => column.button));
  const figure = make("figure", { className: `view ${side}` }, canvas, make("figcaption", {}, what, scores));
  return { figure, canvas, what, scores, columns };
}

function drawView(side, most) {
  const query = shownQuery(side), { canvas } = views[side];
  const wide = Math.max(1, canvas.clientWidth), tall = (wide * H) / W, ratio = window.devicePixelRatio || 1;
  const [width, height] = [wide, tall].map((length) => Math.round(length * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), k = wide / W;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, wide, tall);
  const grid = state.map && mapOf(side)?.grid;
  if (grid) {
    context.globalAlpha = state.opacity;
    context.drawImage(heatPicture(grid, most), 0, 0, wide, tall);
    context.globalAlpha = 1;
  }
  if (encoderMode()) {
    drawEncoder(side, context, k);
    return describeEncoder(views[side], side);
  }
  const others = candidates().filter((q) => q !== query);
  if (query === null) {
    for (const q of [...others].reverse()) drawBox(context, k, box(q), classColour(label(q)), 2);
    drawNames(context, k, others.slice(0, MOST_NAMES), wide, tall);
  } else {
    if (state.boxes) drawOthers(context, k, others);
    if (state.path) drawPath(context, k, query);
    const colour = classColour(label(query));
    if (!state.all && state.layer < N - 1) drawBox(context, k, box(query, state.layer), colour, 2, [6, 4]);
    drawBox(context, k, box(query), colour, 2);
    if (state.points && arrays.locations) {
      drawPoints(context, k, shownPoints(query));
      drawReference(context, k, query);
    }
    drawNames(context, k, [query], wide, tall);
  }
  return describe(views[side], side, query);
}

/** What a view shows in colour, or null where it shows no query. */
function mapOf(side) {
  if (encoderMode()) return encoderMap(side);
  const query = shownQuery(side);
  return query === null ? null : cachedMap(query);
}

function describe(view, side, query) {
  view.scores.hidden = query === null;
  if (query === null) {
    const count = candidates().length;
    view.what.replaceChildren(span("faint", count
      ? `${count} of ${Q} queries: hover over a box, or choose one.`
      : "No query is this certain: lower the threshold, or choose any query by its number."));
    view.canvas.ariaLabel = `Image with ${count} boxes`;
    return;
  }
  const name = className(label(query)), now = label(query, state.layer);
  const layer = state.all ? "all layers" : `layer ${state.layer}`;
  const meanwhile = state.all || now === label(query) ? "" : `, here rather ${className(now)}`;
  // asked for on the command line: the maps are of another class than the one that is detected
  const other = meta.mapped_classes[detection(query)] ?? label(query);
  const mapOf = state.method === "raw" || other === label(query) ? "" : `, ${methodTitle()} of its ${className(other)}`;
  view.what.replaceChildren(...(state.b === null ? [] : [span("side", side.toUpperCase())]), make("b", {}, name),
    span("", score(query).toFixed(2)), span("faint", `query ${query}, ${layer}${meanwhile}${mapOf}`));
  view.canvas.ariaLabel = `What query ${query} (${written(query)}) attends to, ${layer}`;
  view.columns.forEach(({ bar, text, button }, i) => {
    const value = score(query, i), [best] = at(arrays.scores, i, query);
    bar.style.height = `${100 * value}%`;
    text.textContent = `${i}: ${value.toFixed(2)}`;
    button.title = button.ariaLabel =
      `layer ${i}: ${name} ${value.toFixed(3)}; most likely ${className(label(query, i))} ${best.toFixed(3)}`;
    button.ariaCurrent = !state.all && i === state.layer;
  });
}

function redraw() {
  frame ||= requestAnimationFrame(drawNow);
}

function drawNow() {
  frame = 0;
  $("figures").replaceChildren(...sides().map((side) => views[side].figure));
  // two maps beside each other have one scale
  const maps = state.map ? sides().map(mapOf).filter((map) => map !== null) : [];
  const most = Math.max(0, ...maps.map((map) => map.most));
  for (const side of sides()) drawView(side, most);
  drawLegend(maps.some((map) => map.grid) ? most : null);
  drawList();
  drawControls();
  $("status").textContent = remark();
  keepLink();
  window.msdeform.drawn += 1;
}

/** What stands in the controls beside the views, as it is now. */
function drawControls() {
  const [layer, count] = encoderMode() ? [state.encoderLayer, encoder.layers.length] : [state.layer, N];
  Object.assign($("layer"), { max: count - 1, value: layer, disabled: state.all });
  $("all").checked = state.all;
  $("layer-name").textContent = encoderMode() ? encoderLayerName()
    : state.all ? `all ${N} layers` : `decoder layer ${state.layer} of 0 to ${N - 1}`;
  $("query").value = shownQuery("a") ?? "";
  Object.assign($("pin"), { ariaPressed: state.b !== null, disabled: state.a === null });
  $("detections").hidden = $("methods").hidden = encoderMode();
  $("pixel").hidden = !encoderMode();
  // a pixel has no path, reference or box of a layer
  $("show-path").parentElement.hidden = encoderMode();
  for (const mark of document.querySelectorAll("#marks .of-query")) mark.hidden = encoderMode();
  for (const mode of ["queries", "encoder"]) $(`mode-${mode}`).ariaPressed = state.mode === mode;
  if (encoderMode()) [$("pixel-x").value, $("pixel-y").value] = state.pixel.map(Math.round);
}

function remark() {
  if (encoderMode()) {
    return arrays.encoder_rows ? "Of this encoder the page holds the mean over all heads only." : "";
  }
  const missing = state.map ? shownQueries().filter((query) => !cachedMap(query).grid) : [];
  if (missing.length) {
    return `${methodTitle()} was computed for ${meta.mapped.length} of ${Q} queries, not for query ${missing.join(", ")}.`;
  }
  for (const [what, switches] of [["head", state.heads], ["level", state.levels]]) {
    if (!switches.includes(true)) return `Every ${what} is off: nothing to show.`;
  }
  const whole = state.map && state.method === "relevance" && state.heads.includes(false)
    && shownQueries().filter((query) => detection(query) >= meta.by_head);
  if (whole && whole.length) return `Of query ${whole.join(", ")} the page holds relevance over all heads only.`;
  const partial = !arrays.locations && shownQueries().some((query) => detection(query) < 0);
  return partial ? "Of this query the page holds the mean over all heads only." : "";
}

function drawTicks(id, ticks) {
  $(id).replaceChildren(...ticks.map(([place, text]) => make("span", { style: `left: ${100 * place}%` }, text)));
}

function drawLegend(most) {
  const even = encoderMode() || ["raw", "rollout"].includes(state.method);
  const unit = even ? ", 1 where spread evenly" : ": the total if the whole image were this high";
  $("about-map").textContent = `${encoderMode() ? "the encoder's attention" : methodTitle()}${most ? unit : ""}, square-root scale`;
  const per = (value) => `${Number((value * W * H).toPrecision(3))}`;
  drawTicks("ticks-map", most ? [[0, "0"], [0.5, per(most / 4)], [1, per(most)]] : [[0, "0"], [1, "largest"]]);
}

function makeLine(query) {
  const swatch = make("span", { className: "swatch", style: `background: ${classColour(label(query))}` });
  // for the pointer alone: the keys have b, and the button below the list; an option of a list holds no control
  const pin = make("span", { className: "pin", title: "Compare with this one", ariaHidden: true, onclick: (event) => {
    event.stopPropagation();
    select("b", state.b === query ? null : query);
  } }, "B");
  const on = {
    click: () => select("a", query),
    pointerenter: (event) => event.pointerType !== "touch" && hover("a", query),
    pointerleave: () => hover("a", null),
  };
  return make("li", { id: `query-${query}`, role: "option", ariaSelected: false, on }, swatch,
    span("name", className(label(query))), span("number", `#${query}`), span("score", score(query).toFixed(2)), pin);
}

function drawList() {
  const found = candidates(), list = $("list");
  if (list.dataset.key !== found.join()) {
    list.dataset.key = found.join();
    list.replaceChildren(...(found.length ? found.map(makeLine) : [make("li", { className: "none", role: "option", ariaDisabled: true, ariaSelected: false }, "none at this threshold")]));
    $("count").textContent = `${found.length} of ${Q} queries`;
  }
  // the few lines that are marked, and those that were: there may be hundreds
  const shown = { a: state.a, b: state.b, hover: shownQuery("a") };
  for (const query of new Set([...marked, ...Object.values(shown)])) {
    const line = $(`query-${query}`);
    if (!line) continue;
    for (const [name, other] of Object.entries(shown)) line.classList.toggle(name, query === other);
    line.ariaSelected = query === state.a || query === state.b;
  }
  marked = Object.values(shown);
  if (state.a === null) list.removeAttribute("aria-activedescendant");
  else list.setAttribute("aria-activedescendant", `query-${state.a}`);
}

function hover(side, query) {
  if ((state.hover?.query ?? null) === query && (query === null || state.hover.side === side)) return;
  state.hover = query === null ? null : { side, query };
  redraw();
}

function select(side, query) {
  state[side] = query;
  state.hover = null;
  if (side === "b" && query !== null && state.a === null) state.a = ranked.find((other) => other !== query) ?? query;
  if (side === "a" && query === null) state.b = null;
  redraw();
}

function setLayer(layer) {
  if (encoderMode()) Object.assign(state, { encoderLayer: clip(layer, 0, encoder.layers.length - 1), all: false });
  else Object.assign(state, { layer: clip(layer, 0, N - 1), all: false });
  redraw();
}
const layerNow = () => (encoderMode() ? state.encoderLayer : state.layer);
const nextLayer = () => setLayer((layerNow() + 1) % (encoderMode() ? encoder.layers.length : N));

function play(on = timer === null) {
  clearInterval(timer);
  timer = on ? setInterval(nextLayer, 900) : null;
  Object.assign($("play"), { ariaPressed: on, textContent: on ? "Stop" : "Play" });
}

function setAll(on) {
  state.all = on;
  play(false);
  redraw();
}

/** A checkbox for each head or level, with what stands beside it, and buttons for all and none. */
function makeSwitches(id, describeOne) {
  const boxes = state[id].map((on, i) => make("input", { type: "checkbox", checked: on, onchange: (event) => {
    state[id][i] = event.target.checked;
    redraw();
  } }));
  const every = (on) => {
    state[id].fill(on);
    showChoices();
    redraw();
  };
  $(id).append(...boxes.map((input, i) => make("label", {}, input, " ", ...describeOne(i))));
  $(id).querySelector("legend").append(button("all", () => every(true), { ariaLabel: `all ${id}` }),
    button("none", () => every(false), { ariaLabel: `no ${id}` }));
  return boxes;
}

function markIcon(level) {
  const ratio = window.devicePixelRatio || 1, style = "width:14px;height:14px;vertical-align:-2px";
  const canvas = make("canvas", { width: 14 * ratio, height: 14 * ratio, ariaHidden: true, style });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  fillMark(context, level, 7, 7, 4.5, "#888");
  return canvas;
}

function gradient(id, colours) {
  const context = $(id).getContext("2d");
  for (const i of range(256)) {
    context.fillStyle = colourOf(colours, i / 255);
    context.fillRect(i, 0, 1, 10);
  }
}

function chooseQuery(event) {
  const { value } = event.target, query = Number(value);
  if (value === "") return select("a", null);
  if (Number.isInteger(query) && query >= 0 && query < Q) return select("a", query);
  event.target.value = state.a ?? "";
  $("status").textContent = `Queries are numbered 0 to ${Q - 1}.`;
  return undefined;
}

/** One head alone: the first, then the one after it, and after the last all of them. */
function nextHead() {
  const on = chosen(state.heads), next = on.length === 1 ? on[0] + 1 : 0;
  state.heads.fill(next === HEADS);
  if (next < HEADS) state.heads[next] = true;
  showChoices();
  redraw();
}

const pin = () => select("b", state.b === null ? shownQuery("a") : null);

/** Buttons, boxes and sliders as the state is: after it was changed by other means. */
function showChoices() {
  for (const { name } of meta.methods) $(`method-${name}`).ariaPressed = name === state.method;
  for (const name of ["map", "points", "boxes", "path"]) $(`show-${name}`).checked = state[name];
  for (const name of ["opacity", "confidence"]) {
    $(name).value = state[name];
    $(`${name}-value`).textContent = state[name].toFixed(2);
  }
  for (const name of ["heads", "levels"]) {
    $(name).querySelectorAll("input").forEach((input, i) => { input.checked = state[name][i]; });
  }
  $("pixel-level").value = state.pixelLevel;
}

function setUpEncoder() {
  $("modes").hidden = !encoder;
  const note = meta.encoder?.note ?? "";
  Object.assign($("encoder-note"), { textContent: note, hidden: !note });
  if (!encoder) return;
  for (const mode of ["queries", "encoder"]) $(`mode-${mode}`).onclick = () => setMode(mode);
  $("pixel-level").append(...range(LEVELS).map((i) => make("option", { value: i }, `${i} (${shapes[i][1]}×${shapes[i][0]})`)));
  $("pixel-level").onchange = (event) => { state.pixelLevel = Number(event.target.value); redraw(); };
  [["pixel-x", W], ["pixel-y", H]].forEach(([id, side], i) => Object.assign($(id), { max: side - 1, onchange: (event) => {
    state.pixel[i] = clip(Number(event.target.value) || 0, 0, side - 1);
    redraw();
  } }));
}

function setUp() {
  for (const side of ["a", "b"]) views[side] = makeView(side);
  $("about").textContent = meta.about;
  $("exactness").textContent = meta.exactness;
  Object.assign($("layer"), { oninput: (event) => { play(false); setLayer(Number(event.target.value)); } });
  $("back").onclick = () => setLayer(layerNow() - 1);
  $("forth").onclick = () => setLayer(layerNow() + 1);
  $("play").onclick = () => play();
  $("all").onchange = (event) => setAll(event.target.checked);
  Object.assign($("query"), { max: Q - 1, onchange: chooseQuery });
  $("pin").onclick = pin;
  setUpEncoder();
  setUpSharing();
  for (const name of ["map", "points", "boxes", "path"]) {
    $(`show-${name}`).onchange = (event) => { state[name] = event.target.checked; redraw(); };
  }
  for (const name of ["opacity", "confidence"]) {
    $(name).oninput = (event) => { state[name] = Number(event.target.value); showChoices(); redraw(); };
  }
  // buttons, not radio buttons: those take the arrow keys, which step through layers and detections
  $("methods").append(...meta.methods.map(({ name, title }) => button(title, () => {
    state.method = name;
    showChoices();
    redraw();
  }, { id: `method-${name}` })));
  const points = Boolean(arrays.locations), size = (level) => `${shapes[level][1]}×${shapes[level][0]}`;
  const heads = makeSwitches("heads", (i) => [`${i}`]);
  $("heads").querySelector("legend").append(button("one", () => nextHead(), { ariaLabel: "one head alone, the next" }));
  makeSwitches("levels", (i) => [...(points ? [markIcon(i)] : []), ` ${i} (${size(i)})`]);
  if (meta.methods.length > 1) {
    const relevant = meta.by_head ? " and relevance" : "";
    $("heads").append(span("note", points
      ? `Heads act on points, raw attention${relevant}; levels on every map.` : `Heads act on raw attention${relevant}.`));
  }
  $("levels").hidden = LEVELS === 1;
  gradient("bar-weights", weightColours);
  gradient("bar-map", heat);
  drawTicks("ticks-weights", [0, 0.01, 0.1, 0.25, 0.5, 1].map((weight) => [Math.sqrt(weight), `${weight}`]));
  $("about-weights").textContent = "weight of a point, square-root scale, the same on every page";
  for (const id of ["bar-weights", "show-points"]) $(id).parentElement.hidden = !points;
  const marks = points ? range(LEVELS).map((i) => make("li", {}, markIcon(i), `level ${i}, ${size(i)}`)) : [];
  const ofQuery = [...(points ? ["+ reference"] : []), "dashed: the box at this layer"];
  $("marks").append(...marks, ...ofQuery.map((text) => make("li", { className: "of-query" }, text)));
  $("list").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  document.addEventListener("keydown", (event) => key(event, heads));
  new ResizeObserver(redraw).observe($("figures"));
}

function key(event, heads) {
  const typing = event.target.matches("input[type=number], input[type=range], input[type=text], select") && event.key !== "Escape";
  if (event.ctrlKey || event.altKey || event.metaKey || typing) return;
  const found = candidates(), here = found.indexOf(state.a);
  const step = (to) => {
    if (!found.length) return;
    select("a", found[clip(to, 0, found.length - 1)]);
    $(`query-${state.a}`)?.scrollIntoView({ block: "nearest" });
  };
  const pixel = encoderMode();
  const actions = {
    ArrowLeft: () => (pixel ? movePixel(-1, 0) : setLayer(layerNow() - 1)),
    ArrowRight: () => (pixel ? movePixel(1, 0) : setLayer(layerNow() + 1)),
    ArrowUp: () => (pixel ? movePixel(0, -1) : step(here - 1)),
    ArrowDown: () => (pixel ? movePixel(0, 1) : step(here + 1)),
    ",": () => setLayer(layerNow() - 1),
    ".": () => setLayer(layerNow() + 1),
    p: () => play(),
    a: () => setAll(!state.all),
    b: () => !pixel && pin(),
    e: () => setMode(pixel ? "queries" : "encoder"),
    h: () => nextHead(),
    m: () => nextMethod(),
    "?": () => toggleHelp(),
    Escape: () => (pixel ? setMode("queries") : select(state.b === null ? "a" : "b", null)),
  };
  if (event.key in actions) {
    event.preventDefault();
    actions[event.key]();
  } else if (/^[1-9]$/.test(event.key)) heads[Number(event.key) - 1]?.click();
}

function nextMethod() {
  const place = meta.methods.findIndex(({ name }) => name === state.method);
  state.method = meta.methods[(place + 1) % meta.methods.length].name;
  showChoices();
  redraw();
}

function toggleHelp() {
  $("help").open = !$("help").open;
  $("help").scrollIntoView({ block: "nearest" });
  $("help").querySelector("summary").focus();
}

// for the browser's console, and for tests
window.msdeform = { meta, state, drawn: 0, tokenMap, gridMap, encoderRow, encoderColumn, redraw };
window.msdeform.ready = (async () => {
  picture = Object.assign(new Image(), { src: meta.image });
  const unpacked = Object.entries(meta.arrays).map(async ([name, packed]) => [name, await unpack(packed)]);
  arrays = window.msdeform.arrays = Object.fromEntries(await Promise.all(unpacked));
  await picture.decode();
  meta.arrays = null;
  ranked = range(Q).sort((one, two) => score(two) - score(one));
  setUp();
  openLink();
  showChoices();
  drawNow();
  window.msdeform.loaded = performance.now();
})().catch((error) => {
  $("status").textContent = "This browser is too old for the page, or the file is damaged.";
  throw error;
});
