// A link that opens the page as it is now, the views as a picture, and the numbers that they show.

let linkTimer = null;
const framed = window.top !== window;

/** The state as the part of an address after its #: only what is not as the page opens. */
function linkOf() {
  const parts = new URLSearchParams();
  const put = (name, value, usual) => `${value}` === `${usual}` || parts.set(name, value);
  if (state.a !== opened.a) parts.set("a", state.a ?? "none");
  put("b", state.b, null);
  for (const name of ["layer", "method", "all", "map", "points", "boxes", "path", "opacity", "confidence"]) {
    put(name, state[name], opened[name]);
  }
  for (const name of ["heads", "levels"]) put(name, chosen(state[name]), range(state[name].length));
  if (encoderMode()) {
    parts.set("pixel", state.pixel.map((value) => Number(value.toFixed(1))));
    put("pixel-level", state.pixelLevel, 0);
    put("encoder-layer", state.encoderLayer, opened.encoderLayer);
  }
  // commas are plain in an address, and easier to read
  return parts.toString().replaceAll("%2C", ",");
}

/** Takes the state from the address; what does not fit the page stays as it opens. */
function openLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (text, count) => (/^\d+$/.test(text ?? "") && Number(text) < count ? Number(text) : null);
  Object.assign(state, structuredClone(opened));
  if (parts.get("a") === "none") state.a = null;
  else state.a = whole(parts.get("a"), Q) ?? opened.a;
  state.b = state.a === null ? null : whole(parts.get("b"), Q);
  state.layer = whole(parts.get("layer"), N) ?? opened.layer;
  if (meta.methods.some(({ name }) => name === parts.get("method"))) state.method = parts.get("method");
  for (const name of ["all", "map", "points", "boxes", "path"]) if (parts.has(name)) state[name] = parts.get(name) === "true";
  for (const name of ["opacity", "confidence"]) {
    if (/^[\d.]+$/.test(parts.get(name) ?? "")) state[name] = clip(Number(parts.get(name)) || 0, 0, 1);
  }
  for (const name of ["heads", "levels"]) {
    if (!parts.has(name)) continue;
    const on = parts.get(name).split(",").map((text) => whole(text, state[name].length));
    state[name].forEach((_, i) => { state[name][i] = on.includes(i); });
  }
  const pixel = (parts.get("pixel") ?? "").split(",").map(Number);
  if (encoder && pixel.length === 2 && pixel.every(Number.isFinite)) {
    Object.assign(state, { mode: "encoder", pixel: pixel.map((value, i) => clip(value, 0, [W, H][i] - 1)) });
    state.pixelLevel = whole(parts.get("pixel-level"), LEVELS) ?? 0;
    state.encoderLayer = whole(parts.get("encoder-layer"), encoder.layers.length) ?? opened.encoderLayer;
  }
}

/** Writes the state into the address a moment after the last change: browsers refuse it many times a second. */
function keepLink() {
  if (framed) return;
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => {
    const link = linkOf();
    if (link !== location.hash.slice(1)) history.replaceState(null, "", link ? `#${link}` : location.href.split("#")[0]);
  }, 300);
}

async function copyLink() {
  const link = linkOf(), address = `${location.href.split("#")[0]}${link && `#${link}`}`;
  try {
    await navigator.clipboard.writeText(address);
    $("link-line").hidden = true;
    $("status").textContent = "The link is copied.";
  } catch {
    // a browser that does not let the page: to be copied by hand
    $("link-line").hidden = false;
    $("link-text").value = address;
    $("link-text").select();
    $("status").textContent = "Copy the link from its line.";
  }
}

function save(blob, ending) {
  const title = document.querySelector("h1").textContent.replace(/[^\w.-]+/g, "-").slice(0, 80);
  const parts = encoderMode() ? ["encoder", ...state.pixel.map(Math.round)] : sides().map((side) => state[side] ?? "all");
  const link = make("a", { href: URL.createObjectURL(blob), download: `${[title, ...parts].join("-")}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** The views beside each other, each with what is said of it, and the scale of the maps below them. */
function composed() {
  const ratio = window.devicePixelRatio || 1, pad = 12, line = 20;
  const drawn = sides().map((side) => views[side]);
  const [wide, tall] = [drawn[0].canvas.width / ratio, drawn[0].canvas.height / ratio];
  const canvas = make("canvas", {
    width: Math.round((drawn.length * (wide + pad) + pad) * ratio), height: Math.round((tall + 6 * line + 2 * pad) * ratio),
  });
  const context = canvas.getContext("2d"), style = getComputedStyle(document.body);
  context.scale(ratio, ratio);
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  const write = (text, x, y, font = "13px") => {
    context.font = `${font} system-ui, 'Liberation Sans', sans-serif`;
    context.fillText(text, x, y, wide);
  };
  write(document.querySelector("h1").textContent, pad, pad + 13, "bold 15px");
  drawn.forEach((view, i) => {
    const x = pad + i * (wide + pad);
    context.drawImage(view.canvas, x, pad + line + 6, wide, tall);
    write([...view.what.children].map((part) => part.textContent).join("  "), x, pad + tall + 2 * line + 8);
  });
  const y = pad + tall + 3 * line;
  if (!state.map) return canvas;
  context.drawImage($("bar-map"), pad, y, 256, 10);
  [...$("ticks-map").children].forEach((tick, i, all) => {
    context.textAlign = i === 0 ? "left" : i === all.length - 1 ? "right" : "center";
    write(tick.textContent, pad + (256 * i) / (all.length - 1), y + 26, "11px");
  });
  context.textAlign = "left";
  write($("about-map").textContent, pad, y + 44, "12px");
  return canvas;
}

/** What the views show, as numbers. Points and boxes are in pixels of the image. */
function numbersShown() {
  const points = (found) => found.map(({ x, y, ...rest }) => ({ x: x * W, y: y * H, ...rest }));
  const levelMaps = (tokens) => tokens && shapes.map(([h, w], i) => ({
    level: i, height: h, width: w, values: [...tokens.subarray(starts[i], starts[i + 1])],
  }));
  const shown = { heads: chosen(state.heads), levels: chosen(state.levels) };
  const about = { image: document.querySelector("h1").textContent, width: W, height: H, model: meta.about, link: linkOf() };
  if (encoderMode()) {
    const token = tokenAt(state.pixel, state.pixelLevel);
    const layers = encoderLayers().map((i) => encoder.layers[i]);
    const found = arrays.encoder_xy
      ? [...encoderSampled(token, encoderLayers(), encoderHeads(), shown.levels)].map((p) => ({ ...p, layer: encoder.layers[p.layer] }))
      : [];
    return { ...about, ...shown, pixel: placeOf(token, state.pixelLevel), pixel_level: state.pixelLevel, encoder_layers: layers,
      points: points(found),
      views: sides().map((side) => ({ what: encoderTitle(side), map: levelMaps(encoderMap(side).tokens) })) };
  }
  return { ...about, ...shown, method: state.method, decoder_layers: shownLayers(),
    views: sides().map((side) => state[side]).filter((query) => query !== null).map((query) => ({
      query, class: className(label(query)), score: score(query), box: [...box(query)],
      layers: range(N).map((layer) => ({ class: className(label(query, layer)), score_of_class: score(query, layer), box: [...box(query, layer)] })),
      points: arrays.locations ? points(shownPoints(query)) : [],
      map: levelMaps(cachedMap(query).tokens),
    })),
    detections: candidates().map((query) => ({ query, class: className(label(query)), score: score(query), box: [...box(query)] })) };
}

/** A line for each pixel of a level that is not zero, of each view. */
function tableShown() {
  const lines = ["view,level,row,column,x,y,value"], { views: shown } = numbersShown();
  shown.forEach(({ query, map }, i) => {
    const view = query ?? ["looks", "looked-at"][i];
    for (const { level, height, width, values } of map ?? []) {
      values.forEach((value, s) => {
        if (value === 0) return;
        const [row, column] = [Math.floor(s / width), s % width];
        lines.push([view, level, row, column, ((column + 0.5) / width) * W, ((row + 0.5) / height) * H, value].join());
      });
    }
  });
  return `${lines.join("\n")}\n`;
}

function setUpSharing() {
  $("link").hidden = framed;
  $("link").onclick = copyLink;
  $("save-png").onclick = () => composed().toBlob((blob) => save(blob, "png"));
  $("save-json").onclick = () => save(new Blob([JSON.stringify(numbersShown())], { type: "application/json" }), "json");
  $("save-csv").onclick = () => save(new Blob([tableShown()], { type: "text/csv" }), "csv");
  window.addEventListener("hashchange", () => { openLink(); showChoices(); redraw(); });
}
