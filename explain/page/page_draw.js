// How points, boxes, arrows and maps are drawn.

const heat = fromBase64(meta.palettes.heat), weightColours = fromBase64(meta.palettes.weights);
const entry = (value) => 4 * Math.round(255 * clip(value, 0, 1));
const colourOf = (colours, value) => {
  const [red, green, blue, opacity] = colours.subarray(entry(value));
  return `rgba(${red},${green},${blue},${opacity / 255})`;
};
// as in the pictures that Python draws
const classHue = (index) => ((index * 0.61803) % 1) * 360;
const classColour = (index) => `hsl(${classHue(index)} 100% 57.5%)`;
// blue and violet are the colours on which black cannot be read
const classInk = (index) => (classHue(index) > 210 && classHue(index) < 300 ? "#fff" : "#000");
const layerColour = (layer) => `hsl(${200 + (110 * layer) / Math.max(1, N - 1)} 95% ${62 + (10 * layer) / N}%)`;
const centre = ([x0, y0, x1, y1]) => [(x0 + x1) / 2, (y0 + y1) / 2];
const written = (query) => `${className(label(query))} ${score(query).toFixed(2)}`;

function heatPicture(grid, most) {
  const canvas = make("canvas", { width: gridW, height: gridH });
  const context = canvas.getContext("2d"), image = context.createImageData(gridW, gridH);
  // a pixel at a time, as the four bytes that it is
  const pixels = new Uint32Array(image.data.buffer), colours = new Uint32Array(heat.buffer);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = colours[most > 0 ? Math.round(255 * Math.sqrt(clip(grid[i] / most, 0, 1))) : 0];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// of levels, in the order of MARKERS of drawing.py: corners (0 is a circle), where the first is in turns, how far every
// other one is from the middle, and the size
const MARKS = [[0, 0, 1, 0.95], [4, 1 / 8, 1, 1.2], [3, -1 / 4, 1, 1.25], [4, 0, 1, 1.2], [3, 1 / 4, 1, 1.25],
  [8, 0, 0.4, 1.2], [8, 1 / 8, 0.4, 1.2], [10, -1 / 4, 0.45, 1.35]];

function fillMark(context, level, x, y, r, colour) {
  const [count, turn, inner, size] = MARKS[level % MARKS.length];
  context.beginPath();
  if (!count) context.arc(x, y, size * r, 0, 2 * Math.PI);
  for (const i of range(count)) {
    const angle = 2 * Math.PI * (turn + i / count), far = size * r * (i % 2 ? inner : 1);
    context.lineTo(x + far * Math.cos(angle), y + far * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = colour;
  context.fill();
}

/** Lines through points [x, y], of the path there is where none are given. They show on any ground: dark below. */
function stroke(context, lines, colour, width, dash = []) {
  if (lines) context.beginPath();
  for (const [first, ...others] of lines ?? []) {
    context.moveTo(...first);
    for (const point of others) context.lineTo(...point);
    if (others.at(-1) === first) context.closePath();
  }
  context.setLineDash(dash);
  for (const [ink, wide] of [["rgba(0,0,0,.55)", width + 2], [colour, width]]) {
    context.strokeStyle = ink;
    context.lineWidth = wide;
    context.stroke();
  }
  context.setLineDash([]);
}

function outline(k, corners) {
  const [x0, y0, x1, y1] = [...corners].map((value) => value * k), first = [x0, y0];
  return [first, [x1, y0], [x1, y1], [x0, y1], first];
}

function drawBox(context, k, corners, colour, width, dash) {
  stroke(context, [outline(k, corners)], colour, width, dash);
}

/** Boxes of queries that are not the one looked at, faint; all at once, as there may be hundreds. */
function drawOthers(context, k, queries) {
  stroke(context, queries.map((query) => outline(k, box(query))), "rgba(255,255,255,.45)", 1);
}

const FONT = "12px system-ui, 'Liberation Sans', sans-serif", TEXT_HEIGHT = 17;

/**
 * A rectangle [x0, y0, x1, y1] for the label of each box, of the [width, height] in `sizes`; none covers another or leaves
 * the picture of `wide` times `tall`. Null where none is free. As of label_placement.py: the first is placed first, above
 * its box at the left if it can be, else at another edge or corner of it, else at the nearest free place.
 */
function placeLabels(boxes, sizes, wide, tall) {
  const taken = [];
  return boxes.map((box, i) => {
    const [w, h] = sizes[i], lastX = wide - w, lastY = tall - h;
    if (lastX < 0 || lastY < 0) return null;
    const [x0, x1] = [box[0], box[2]].map((x) => clip(x, 0, wide)), [y0, y1] = [box[1], box[3]].map((y) => clip(y, 0, tall));
    const free = ([x, y]) => taken.every(([a, b, c, d]) => x >= c || x + w <= a || y >= d || y + h <= b);
    const wanted = [y0 - h, y0, y1, y1 - h].flatMap((y) => [x0, x1 - w].map((x) => [clip(x, 0, lastX), clip(y, 0, lastY)]));
    const columns = [0, lastX, x0, x1 - w, x1, x0 - w, ...taken.flatMap(([a, , c]) => [c, a - w])];
    const rows = [0, lastY, y0 - h, y0, y1, y1 - h, ...taken.flatMap(([, b, , d]) => [d, b - h])];
    const inside = (values, last) => [...new Set(values)].filter((value) => value >= 0 && value <= last);
    const away = ([x, y]) => {
      const [mx, my] = [x + w / 2, y + h / 2];
      return Math.abs(mx - clip(mx, x0, x1)) + Math.abs(my - clip(my, y0, y1)) + 0.01 * (Math.abs(x - x0) + Math.abs(y - y0));
    };
    const anywhere = () => inside(columns, lastX).flatMap((x) => inside(rows, lastY).map((y) => [x, y])).filter(free);
    const found = wanted.find(free) ?? anywhere().reduce((one, two) => (one && away(one) <= away(two) ? one : two), null);
    if (found) taken.push([...found, found[0] + w, found[1] + h]);
    return found && taken.at(-1);
  });
}

/** The names of queries at their boxes, the first in the list placed first; the box of each is led to from afar. */
function drawNames(context, k, queries, wide, tall) {
  context.font = FONT;
  const boxes = queries.map((q) => [...box(q)].map((value) => value * k));
  const sizes = queries.map((q) => [Math.min(context.measureText(written(q)).width + 10, wide), TEXT_HEIGHT]);
  const placed = placeLabels(boxes, sizes, wide, tall).flatMap((place, i) => (place ? [[place, boxes[i], queries[i]]] : []));
  for (const [place, [a, b, c, d], query] of placed) {
    const [x0, y0, x1, y1] = place, [x, y] = centre(place);
    if (x0 > c || x1 < a || y0 > d || y1 < b) {
      stroke(context, [[[x, y], [clip(x, a, c), clip(y, b, d)]]], classColour(label(query)), 1);
    }
  }
  for (const [[x0, y0, x1], , query] of placed) {
    context.fillStyle = classColour(label(query));
    context.fillRect(x0, y0, x1 - x0, TEXT_HEIGHT);
    context.fillStyle = classInk(label(query));
    context.fillText(written(query), x0 + 5, y0 + TEXT_HEIGHT - 4.5, x1 - x0 - 10);
  }
}

function drawArrow(context, from, to, colour) {
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
  if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 3) return;
  const barbs = [-0.45, 0.45].map((side) => [to[0] - 10 * Math.cos(angle + side), to[1] - 10 * Math.sin(angle + side)]);
  stroke(context, [[from, to], [barbs[0], to, barbs[1]]], colour, 2);
}

function drawPath(context, k, query) {
  for (const layer of range(N)) drawBox(context, k, box(query, layer), layerColour(layer), 1);
  const places = range(N).map((layer) => centre(box(query, layer)));
  if (arrays.references) places.unshift([...at(arrays.references, 0, query)].slice(0, 2));
  const stops = places.map(([x, y]) => [x * k, y * k]);
  stroke(context, [stops.slice(0, -1)], "rgba(255,255,255,.8)", 1, [3, 3]);
  stops.forEach(([x, y], i) => {
    fillMark(context, 0, x, y, 4, layerColour(arrays.references ? Math.max(0, i - 1) : i));
    stroke(context, null, "#fff", 1);
    context.fill();
  });
  drawArrow(context, stops[0], stops.at(-1), "#fff");
}

function drawReference(context, k, query) {
  for (const layer of shownLayers()) {
    const [x, y, w, h] = at(arrays.references, layer, query);
    if (w > 0) drawBox(context, k, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], "#fff", 1, [2, 4]);
    const arm = ([dx, dy]) => [4, 12].map((far) => [x * k + far * dx, y * k + far * dy]);
    stroke(context, [[1, 0], [-1, 0], [0, 1], [0, -1]].map(arm), "#fff", 2);
  }
}

function drawPoints(context, k, points) {
  context.lineWidth = 1;
  for (const { x, y, weight, level } of points.sort((one, two) => one.weight - two.weight)) {  // the heaviest on top
    const root = Math.sqrt(weight);
    fillMark(context, level, x * W * k, y * H * k, 2.6 + 4 * root, colourOf(weightColours, root));
    context.strokeStyle = weight > 0.25 ? "#000" : "rgba(255,255,255,.75)";
    context.stroke();
  }
}

const shownPoints = (query) => [...sampled(query, shownLayers(), chosen(state.heads), chosen(state.levels))];
