// How points, boxes, arrows and maps are drawn.

const heat = fromBase64(meta.palettes.heat), weightColours = fromBase64(meta.palettes.weights);
const colourOf = (colours, value) => {
  const i = 4 * Math.round(255 * Math.min(1, Math.max(0, value)));
  return `rgba(${colours[i]},${colours[i + 1]},${colours[i + 2]},${colours[i + 3] / 255})`;
};
// as in the pictures that Python draws
const classColour = (index) => `hsl(${((index * 0.61803) % 1) * 360} 100% 57.5%)`;

function heatPicture(grid, most) {
  const canvas = Object.assign(document.createElement("canvas"), { width: gridW, height: gridH });
  const context = canvas.getContext("2d"), image = context.createImageData(gridW, gridH);
  for (let i = 0; i < grid.length; i++) {
    const value = most > 0 ? Math.sqrt(grid[i] / most) : 0, colour = 4 * Math.round(255 * Math.min(1, value));
    image.data.set(heat.subarray(colour, colour + 4), 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function markPath(context, mark, x, y, r) {
  const corners = (count, turn, inner = 1) => {
    for (let i = 0; i < count; i++) {
      const angle = turn + (2 * Math.PI * i) / count, far = i % 2 ? r * inner : r;
      context[i ? "lineTo" : "moveTo"](x + far * Math.cos(angle), y + far * Math.sin(angle));
    }
    context.closePath();
  };
  context.beginPath();
  if (mark === "circle") context.arc(x, y, 0.95 * r, 0, 2 * Math.PI);
  if (mark === "square") context.rect(x - 0.85 * r, y - 0.85 * r, 1.7 * r, 1.7 * r);
  if (mark === "triangle") { r *= 1.25; corners(3, -Math.PI / 2); }
  if (mark === "diamond") { r *= 1.2; corners(4, 0); }
  if (mark === "triangle down") { r *= 1.25; corners(3, Math.PI / 2); }
  if (mark === "plus") { r *= 1.2; corners(8, 0, 0.4); }
  if (mark === "cross") { r *= 1.2; corners(8, Math.PI / 4, 0.4); }
  if (mark === "star") { r *= 1.35; corners(10, -Math.PI / 2, 0.45); }
}

/** A line that shows on any ground: dark below, coloured above. */
function stroke(context, colour, width, dash = []) {
  context.setLineDash(dash);
  context.lineWidth = width + 2;
  context.strokeStyle = "rgba(0,0,0,.55)";
  context.stroke();
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.stroke();
  context.setLineDash([]);
}

function drawBox(context, k, [x0, y0, x1, y1], colour, width, dash) {
  context.beginPath();
  context.rect(x0 * k, y0 * k, (x1 - x0) * k, (y1 - y0) * k);
  stroke(context, colour, width, dash);
}

const FONT = "12px system-ui, 'Liberation Sans', sans-serif", TEXT_HEIGHT = 17;

/**
 * A rectangle [x0, y0, x1, y1] for the label of each box, of the [width, height] in `sizes`; none covers another or leaves
 * the picture of `wide` times `tall`. Null where none is free. As of labels.py: the first is placed first, above its box at
 * the left if it can be, else at another edge or corner of it, else at the nearest free place.
 */
function placeLabels(boxes, sizes, wide, tall) {
  const taken = [], clip = (value, low, high) => Math.min(Math.max(value, low), high);
  return boxes.map((box, i) => {
    const [w, h] = sizes[i], lastX = wide - w, lastY = tall - h;
    if (lastX < 0 || lastY < 0) return null;
    const [x0, x1] = [box[0], box[2]].map((x) => clip(x, 0, wide)), [y0, y1] = [box[1], box[3]].map((y) => clip(y, 0, tall));
    const free = ([x, y]) => taken.every(([a, b, c, d]) => x >= c || x + w <= a || y >= d || y + h <= b);
    const place = (found) => {
      taken.push([found[0], found[1], found[0] + w, found[1] + h]);
      return taken.at(-1);
    };
    const wanted = [y0 - h, y0, y1, y1 - h].flatMap((y) => [x0, x1 - w].map((x) => [clip(x, 0, lastX), clip(y, 0, lastY)]));
    const first = wanted.find(free);
    if (first) return place(first);
    const columns = [0, lastX, x0, x1 - w, x1, x0 - w, ...taken.flatMap(([a, , c]) => [c, a - w])];
    const rows = [0, lastY, y0 - h, y0, y1, y1 - h, ...taken.flatMap(([, b, , d]) => [d, b - h])];
    const inside = (values, last) => [...new Set(values)].filter((value) => value >= 0 && value <= last);
    const away = ([x, y]) => {
      const [mx, my] = [x + w / 2, y + h / 2];
      return Math.abs(mx - clip(mx, x0, x1)) + Math.abs(my - clip(my, y0, y1)) + 0.01 * (Math.abs(x - x0) + Math.abs(y - y0));
    };
    const places = inside(columns, lastX).flatMap((x) => inside(rows, lastY).map((y) => [x, y])).filter(free);
    return places.length ? place(places.reduce((one, two) => (away(two) < away(one) ? two : one))) : null;
  });
}

/** The names of queries at their boxes, the first in the list placed first; the box of each is led to from afar. */
function drawNames(context, k, queries, wide, tall) {
  context.font = FONT;
  const texts = queries.map((q) => `${className(label(q))} ${score(q).toFixed(2)}`);
  const boxes = queries.map((q) => [...box(q)].map((value) => value * k));
  const sizes = texts.map((text) => [Math.min(context.measureText(text).width + 10, wide), TEXT_HEIGHT]);
  const places = placeLabels(boxes, sizes, wide, tall);
  places.forEach((place, i) => {
    if (!place) return;
    const [x0, y0, x1, y1] = place, [a, b, c, d] = boxes[i];
    if (x0 <= c && x1 >= a && y0 <= d && y1 >= b) return;
    const x = (x0 + x1) / 2, y = (y0 + y1) / 2;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(Math.min(Math.max(x, a), c), Math.min(Math.max(y, b), d));
    stroke(context, classColour(label(queries[i])), 1);
  });
  places.forEach((place, i) => {
    if (!place) return;
    const [x0, y0, x1] = place;
    context.fillStyle = classColour(label(queries[i]));
    context.fillRect(x0, y0, x1 - x0, TEXT_HEIGHT);
    context.fillStyle = "#000";
    context.fillText(texts[i], x0 + 5, y0 + TEXT_HEIGHT - 4.5, x1 - x0 - 10);
  });
}

function drawArrow(context, from, to, colour) {
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
  if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 3) return;
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  for (const side of [-0.45, 0.45]) {
    context.moveTo(...to);
    context.lineTo(to[0] - 10 * Math.cos(angle + side), to[1] - 10 * Math.sin(angle + side));
  }
  stroke(context, colour, 2);
}

const centre = ([x0, y0, x1, y1]) => [(x0 + x1) / 2, (y0 + y1) / 2];
const layerColour = (layer) => `hsl(${200 + (110 * layer) / Math.max(1, N - 1)} 95% ${62 + (10 * layer) / N}%)`;

function drawPath(context, k, query) {
  for (let layer = 0; layer < N; layer++) drawBox(context, k, box(query, layer), layerColour(layer), 1);
  const stops = [...Array(N).keys()].map((layer) => centre(box(query, layer)).map((v) => v * k));
  if (arrays.references) stops.unshift([...at(arrays.references, 0, query).slice(0, 2)].map((v) => v * k));
  for (let i = 0; i + 2 < stops.length; i++) {
    context.beginPath();
    context.moveTo(...stops[i]);
    context.lineTo(...stops[i + 1]);
    stroke(context, "rgba(255,255,255,.8)", 1, [3, 3]);
  }
  stops.forEach(([x, y], i) => {
    markPath(context, "circle", x, y, 4);
    context.fillStyle = layerColour(arrays.references ? Math.max(0, i - 1) : i);
    stroke(context, "#fff", 1);
    context.fill();
  });
  drawArrow(context, stops[0], stops.at(-1), "#fff");
}

function drawReference(context, k, query) {
  for (const layer of new Set(shownLayers())) {
    const [x, y, w, h] = at(arrays.references, layer, query);
    if (w !== undefined) drawBox(context, k, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], "#fff", 1, [2, 4]);
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x * k + 4 * dx, y * k + 4 * dy);
      context.lineTo(x * k + 12 * dx, y * k + 12 * dy);
    }
    stroke(context, "#fff", 2);
  }
}

function drawPoints(context, k, query) {
  const found = [];
  for (const layer of shownLayers()) {
    const xy = at(arrays.locations, layer, query), weights = at(arrays.weights, layer, query);
    for (const head of chosen(state.heads)) {
      for (const level of chosen(state.levels)) {
        for (let p = 0; p < POINTS; p++) {
          const i = (head * LEVELS + level) * POINTS + p;
          found.push([weights[i], level, xy[2 * i] * W * k, xy[2 * i + 1] * H * k]);
        }
      }
    }
  }
  found.sort((one, two) => one[0] - two[0]);  // the heaviest on top
  context.lineWidth = 1;
  for (const [weight, level, x, y] of found) {
    markPath(context, MARKS[level % MARKS.length], x, y, 2.6 + 4 * Math.sqrt(weight));
    context.fillStyle = colourOf(weightColours, Math.sqrt(weight));
    context.fill();
    context.strokeStyle = weight > 0.25 ? "#000" : "rgba(255,255,255,.75)";
    context.stroke();
  }
}
