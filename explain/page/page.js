// The two views, the controls beside them, and the keys.

const shownQuery = (side) => (state.hover?.side === side ? state.hover.query : state[side]);
const comparing = () => state.b !== null;
const views = {};

function makeView(side) {
  const canvas = make("canvas", { role: "img" });
  const what = make("div", { className: "what" }), scores = make("div", { className: "scores" });
  scores.setAttribute("role", "group");
  scores.setAttribute("aria-label", "Score at each layer");
  const columns = [...Array(N).keys()].map((layer) => {
    const bar = make("i"), text = make("span");
    const button = make("button", { type: "button", onclick: () => setLayer(layer) },
      make("div", { className: "column" }, bar), text);
    scores.append(button);
    return { bar, text, button };
  });
  const figure = make("figure", { className: `view ${side}` }, canvas, make("figcaption", {}, what, scores));
  const pointed = (event) => {
    const area = canvas.getBoundingClientRect();
    const x = ((event.clientX - area.left) * W) / area.width, y = ((event.clientY - area.top) * H) / area.height;
    return candidates().filter((q) => {
      const [x0, y0, x1, y1] = box(q);
      return x >= x0 && x <= x1 && y >= y0 && y <= y1;
    }).sort((one, two) => area_of(box(one)) - area_of(box(two)))[0] ?? null;
  };
  canvas.addEventListener("pointermove", (event) => event.pointerType !== "touch" && hover(side, pointed(event)));
  canvas.addEventListener("pointerleave", () => hover(side, null));
  canvas.addEventListener("click", (event) => {
    const query = pointed(event);
    if (event.shiftKey && query !== null) return select("b", query);
    if (side === "b" && query === null) return undefined;
    return select(side, query);
  });
  return { figure, canvas, what, scores, columns };
}

const area_of = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

function drawView(side, most) {
  const view = views[side], query = shownQuery(side), canvas = view.canvas;
  const wide = Math.max(1, canvas.clientWidth), tall = (wide * H) / W, ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(tall * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(tall * ratio);
  }
  const context = canvas.getContext("2d"), k = wide / W;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, wide, tall);
  if (query !== null && state.map) {
    const { grid } = cachedMap(query);
    if (grid) {
      context.globalAlpha = state.opacity;
      context.drawImage(heatPicture(grid, most), 0, 0, wide, tall);
      context.globalAlpha = 1;
    }
  }
  const others = candidates().filter((q) => q !== query).reverse();
  if (query === null) {
    for (const q of others) drawBox(context, k, box(q), classColour(label(q)), 2);
    drawNames(context, k, [...others].reverse(), wide, tall);
  } else {
    if (state.boxes) for (const q of others) drawBox(context, k, box(q), "rgba(255,255,255,.45)", 1);
    if (state.path) drawPath(context, k, query);
    const colour = classColour(label(query));
    if (!state.all && state.layer < N - 1) drawBox(context, k, box(query, state.layer), colour, 2, [6, 4]);
    drawBox(context, k, box(query), colour, 2);
    if (state.points && arrays.locations) {
      drawPoints(context, k, query);
      drawReference(context, k, query);
    }
    drawNames(context, k, [query], wide, tall);
  }
  describe(view, side, query);
}

function describe(view, side, query) {
  view.scores.hidden = query === null;
  if (query === null) {
    const count = candidates().length;
    view.what.replaceChildren(make("span", { className: "faint" }, count
      ? `${count} of ${Q} queries: hover over a box, or choose one.`
      : "No query is this certain: lower the threshold, or choose any query by its number."));
    view.canvas.setAttribute("aria-label", `Image with ${count} boxes`);
    return;
  }
  const name = className(label(query)), now = label(query, state.layer);
  const layer = state.all ? "all layers" : `layer ${state.layer}`;
  const meanwhile = state.all || now === label(query) ? "" : `, here rather ${className(now)}`;
  // asked for on the command line: the maps are of another class than the one that is detected
  const d = detection(query), other = d < 0 ? label(query) : meta.mapped_classes[d];
  const mapOf = state.method === "raw" || other === label(query) ? "" : `, ${methodTitle()} of its ${className(other)}`;
  view.what.replaceChildren(
    ...(comparing() ? [make("span", { className: "side" }, side.toUpperCase())] : []),
    make("b", {}, name), make("span", {}, score(query).toFixed(2)),
    make("span", { className: "faint" }, `query ${query}, ${layer}${meanwhile}${mapOf}`));
  view.canvas.setAttribute("aria-label", `What query ${query} (${name} ${score(query).toFixed(2)}) attends to, ${layer}`);
  view.columns.forEach(({ bar, text, button }, i) => {
    const value = score(query, i);
    bar.style.height = `${100 * value}%`;
    text.textContent = `${i}: ${value.toFixed(2)}`;
    button.title = `layer ${i}: ${name} ${value.toFixed(3)}; most likely ${className(label(query, i))} ` +
      at(arrays.scores, i, query)[0].toFixed(3);
    button.setAttribute("aria-label", button.title);
    button.setAttribute("aria-current", String(!state.all && i === state.layer));
  });
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const candidates = () => ranked.filter((query) => score(query) >= state.confidence);
let ranked = [];
let frame = 0;

function redraw() {
  frame ||= requestAnimationFrame(drawNow);
}

function drawNow() {
  frame = 0;
  const sides = comparing() ? ["a", "b"] : ["a"];
  $("figures").replaceChildren(...sides.map((side) => views[side].figure));
  // two maps beside each other have one scale
  const maps = sides.map(shownQuery).filter((query) => query !== null && state.map).map(cachedMap);
  const most = Math.max(0, ...maps.map((map) => map.most));
  sides.forEach((side) => drawView(side, most));
  drawLegend(maps.some((map) => map.grid) ? most : null);
  drawList();
  $("layer").value = state.layer;
  $("layer").disabled = state.all;
  $("layer-name").textContent = state.all ? `all ${N} layers` : `decoder layer ${state.layer} of 0 to ${N - 1}`;
  $("query").value = shownQuery("a") ?? "";
  $("status").textContent = remark(sides);
  window.msdeform.drawn += 1;
}

function remark(sides) {
  const missing = sides.map(shownQuery).filter((query) => query !== null && state.map && !cachedMap(query).grid);
  if (missing.length) {
    return `${methodTitle()} was computed for ${meta.mapped.length} of ${Q} queries, not for query ${missing.join(", ")}.`;
  }
  if (!chosen(state.heads).length) return "Every head is off: nothing to show.";
  if (!chosen(state.levels).length) return "Every level is off: nothing to show.";
  const partial = sides.map(shownQuery).some((query) => query !== null && detection(query) < 0);
  if (!arrays.locations && partial) return "Of this query the page holds the mean over all heads only.";
  return "";
}

const methodTitle = () => meta.methods.find(({ name }) => name === state.method).title;

function drawTicks(id, ticks) {
  $(id).replaceChildren(...ticks.map(([place, text]) => {
    const tick = make("span", {}, text);
    tick.style.left = `${100 * place}%`;
    return tick;
  }));
}

function drawLegend(most) {
  const unit = ["raw", "rollout"].includes(state.method) ? ", 1 where spread evenly" : ": the total if the whole image were this high";
  $("about-map").textContent = `${methodTitle()}${most ? unit : ""}, square-root scale`;
  const per = (value) => Number((value * W * H).toPrecision(3)).toString();
  drawTicks("ticks-map", most ? [[0, "0"], [0.5, per(most / 4)], [1, per(most)]] : [[0, "0"], [1, "largest"]]);
}

function drawList() {
  const found = candidates(), key = found.join();
  const list = $("list");
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    list.replaceChildren(...found.map((query) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = classColour(label(query));
      const pin = make("button", { type: "button", tabIndex: -1, title: "Compare with this one" }, "B");
      pin.addEventListener("click", (event) => {
        event.stopPropagation();
        select("b", state.b === query ? null : query);
      });
      const line = make("li", { id: `query-${query}` }, swatch, make("span", { className: "name" }, className(label(query))),
        make("span", { className: "number" }, `#${query}`), make("span", { className: "score" }, score(query).toFixed(2)), pin);
      line.setAttribute("role", "option");
      line.addEventListener("click", () => select("a", query));
      line.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && hover("a", query));
      line.addEventListener("pointerleave", () => hover("a", null));
      return line;
    }));
    if (!found.length) list.replaceChildren(make("li", { className: "none" }, "none at this threshold"));
    $("count").textContent = `${found.length} of ${Q} queries`;
  }
  const active = shownQuery("a");
  for (const line of list.children) {
    const query = Number(line.id.slice(6));
    line.classList.toggle("a", query === state.a);
    line.classList.toggle("b", query === state.b);
    line.classList.toggle("hover", query === active);
    line.setAttribute("aria-selected", String(query === state.a || query === state.b));
  }
  if (state.a !== null) list.setAttribute("aria-activedescendant", `query-${state.a}`);
  else list.removeAttribute("aria-activedescendant");
}

function hover(side, query) {
  if ((state.hover?.query ?? null) === query && (query === null || state.hover.side === side)) return;
  state.hover = query === null ? null : { side, query };
  redraw();
}

function select(side, query) {
  state[side] = query;
  state.hover = null;
  if (side === "b" && query !== null && state.a === null) state.a = ranked[0] === query ? ranked[1] ?? query : ranked[0];
  if (side === "a" && query === null) state.b = null;
  redraw();
}

function setLayer(layer) {
  state.layer = Math.min(N - 1, Math.max(0, layer));
  state.all = $("all").checked = false;
  redraw();
}

let timer = null;
function play(on = timer === null) {
  clearInterval(timer);
  timer = on ? setInterval(() => setLayer((state.layer + 1) % N), 900) : null;
  $("play").setAttribute("aria-pressed", String(on));
  $("play").textContent = on ? "Stop" : "Play";
}

function setAll(on) {
  state.all = $("all").checked = on;
  play(false);
  redraw();
}

function makeSwitches(id, what, switches, describeOne) {
  const boxes = switches.map((on, i) => {
    const input = make("input", { type: "checkbox", checked: on });
    input.addEventListener("change", () => {
      switches[i] = input.checked;
      redraw();
    });
    return input;
  });
  const every = (on) => {
    boxes.forEach((input, i) => { input.checked = switches[i] = on; });
    redraw();
  };
  $(id).append(...boxes.map((input, i) => make("label", {}, input, " ", ...describeOne(i))));
  $(id).querySelector("legend").append(
    make("button", { type: "button", onclick: () => every(true), ariaLabel: `all ${what}` }, "all"),
    make("button", { type: "button", onclick: () => every(false), ariaLabel: `no ${what}` }, "none"));
  return boxes;
}

function markIcon(level) {
  const ratio = window.devicePixelRatio || 1, canvas = make("canvas", { width: 14 * ratio, height: 14 * ratio });
  const context = canvas.getContext("2d");
  canvas.style.cssText = "width:14px;height:14px;vertical-align:-2px";
  canvas.setAttribute("aria-hidden", "true");
  context.scale(ratio, ratio);
  markPath(context, MARKS[level % MARKS.length], 7, 7, 4.5);
  context.fillStyle = "#888";
  context.fill();
  return canvas;
}

function gradient(id, colours) {
  const context = $(id).getContext("2d");
  for (let i = 0; i < 256; i++) {
    context.fillStyle = colourOf(colours, i / 255);
    context.fillRect(i, 0, 1, 10);
  }
}

function setUp() {
  for (const side of ["a", "b"]) {
    views[side] = makeView(side);
    views[side].canvas.style.aspectRatio = `${W} / ${H}`;
    views[side].canvas.style.setProperty("--ratio", W / H);
  }
  $("about").textContent = meta.about;
  $("layer").max = N - 1;
  $("layer").addEventListener("input", (event) => { play(false); setLayer(Number(event.target.value)); });
  $("back").onclick = () => setLayer(state.layer - 1);
  $("forth").onclick = () => setLayer(state.layer + 1);
  $("play").onclick = () => play();
  $("all").onchange = (event) => setAll(event.target.checked);
  for (const name of ["map", "points", "boxes", "path"]) {
    $(`show-${name}`).onchange = (event) => { state[name] = event.target.checked; redraw(); };
    state[name] = $(`show-${name}`).checked;
  }
  const slider = (id, name) => {
    const show = () => { $(`${id}-value`).textContent = state[name].toFixed(2); };
    $(id).value = state[name];
    $(id).addEventListener("input", (event) => { state[name] = Number(event.target.value); show(); redraw(); });
    show();
  };
  slider("opacity", "opacity");
  slider("confidence", "confidence");
  $("query").max = Q - 1;
  $("query").addEventListener("change", (event) => {
    const query = Number(event.target.value);
    if (event.target.value === "") return select("a", null);
    if (Number.isInteger(query) && query >= 0 && query < Q) return select("a", query);
    event.target.value = state.a ?? "";
    $("status").textContent = `Queries are numbered 0 to ${Q - 1}.`;
    return undefined;
  });
  // buttons, not radio buttons: those take the arrow keys, which step through layers and detections
  const methods = meta.methods.map(({ name, title }) => {
    const button = make("button", { type: "button", ariaPressed: String(name === state.method) }, title);
    button.addEventListener("click", () => {
      state.method = name;
      for (const other of methods) other.ariaPressed = String(other === button);
      redraw();
    });
    return button;
  });
  $("methods").append(...methods);
  const heads = makeSwitches("heads", "heads", state.heads, (i) => [String(i)]);
  makeSwitches("levels", "levels", state.levels, (i) => [
    ...(arrays.locations ? [markIcon(i)] : []), ` ${i} (${shapes[i][1]}×${shapes[i][0]})`]);
  if (meta.methods.length > 1) {
    $("heads").append(make("span", { className: "note" }, arrays.locations
      ? "Heads act on points and raw attention; levels on every map." : "Heads act on raw attention."));
  }
  $("levels").hidden = LEVELS === 1;
  gradient("bar-weights", weightColours);
  gradient("bar-map", heat);
  if (arrays.locations) {
    drawTicks("ticks-weights", [0, 0.01, 0.1, 0.25, 0.5, 1].map((weight) => [Math.sqrt(weight), String(weight)]));
    $("about-weights").textContent = "weight of a point, square-root scale, the same on every page";
    $("marks").append(...shapes.map(([h, w], i) => make("li", {}, markIcon(i), `level ${i}, ${w}×${h}`)),
      make("li", {}, "+ reference"), make("li", {}, "dashed: the box at this layer"));
  } else {
    $("bar-weights").parentElement.hidden = true;
    $("show-points").parentElement.hidden = true;
    $("marks").append(make("li", {}, "dashed: the box at this layer"));
  }
  $("exactness").textContent = meta.exactness;
  $("list").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  document.addEventListener("keydown", (event) => key(event, heads));
  new ResizeObserver(redraw).observe($("figures"));
}

function key(event, heads) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const typing = event.target.matches("input[type=number], input[type=range]") && event.key !== "Escape";
  if (typing) return;
  const found = candidates(), here = found.indexOf(state.a);
  const actions = {
    ArrowLeft: () => setLayer(state.layer - 1),
    ArrowRight: () => setLayer(state.layer + 1),
    ArrowUp: () => found.length && select("a", found[Math.max(0, here < 0 ? 0 : here - 1)]),
    ArrowDown: () => found.length && select("a", found[Math.min(found.length - 1, here + 1)]),
    p: () => play(),
    a: () => setAll(!state.all),
    b: () => select("b", comparing() ? null : shownQuery("a")),
    Escape: () => (comparing() ? select("b", null) : select("a", null)),
  };
  if (event.key in actions) {
    event.preventDefault();
    actions[event.key]();
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      $(`query-${state.a}`)?.scrollIntoView({ block: "nearest" });
    }
  } else if (/^[1-9]$/.test(event.key) && Number(event.key) <= HEADS) {
    heads[Number(event.key) - 1].click();
  }
}

// for the browser's console, and for tests
window.msdeform = { meta, state, drawn: 0, tokenMap, gridMap, redraw };
window.msdeform.ready = (async () => {
  picture = new Image();
  picture.src = meta.image;
  const [, ...pairs] = await Promise.all([picture.decode(),
    ...Object.entries(meta.arrays).map(async ([name, packed]) => [name, await unpack(packed)])]);
  arrays = Object.fromEntries(pairs);
  meta.arrays = null;
  window.msdeform.arrays = arrays;
  ranked = [...Array(Q).keys()].sort((one, two) => score(two) - score(one));
  setUp();
  drawNow();
  window.msdeform.loaded = performance.now();
})().catch((error) => {
  $("status").textContent = "This browser is too old for the page, or the file is damaged.";
  throw error;
});
