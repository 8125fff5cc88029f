"use strict";
// One image in one detector. Everything shown is computed here from the arrays of the element "data".

const $ = (id) => document.getElementById(id);
const meta = JSON.parse($("data").textContent);
const { width: W, height: H, shapes, layers: N, queries: Q, heads: HEADS, levels: LEVELS, points: POINTS } = meta;
const TYPES = { float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array };
const range = (count) => [...Array(count).keys()];
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
// where each level's tokens begin, and the number of all
const starts = shapes.reduce((found, [h, w]) => [...found, found.at(-1) + h * w], [0]);
const TOKENS = starts.at(-1);
// the finest grid that a map is computed on, along its longer side; the canvas smooths between
const GRID = 448;
const [gridW, gridH] = [W, H].map((side) => Math.max(1, Math.round(side * Math.min(1, GRID / Math.max(W, H)))));

let arrays = {}, picture;
const state = {
  a: meta.selected ?? null, b: null, hover: null, layer: N - 1, all: false, method: meta.methods[0].name,
  heads: Array(HEADS).fill(true), levels: Array(LEVELS).fill(true),
  map: true, points: true, boxes: true, path: false, opacity: 0.8, confidence: meta.confidence,
};

const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function unpack({ dtype, shape, data }) {
  const stream = new Blob([fromBase64(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return Object.assign(new TYPES[dtype](await new Response(stream).arrayBuffer()), { shape });
}

/** The part of a row-major array that leading indices name, as a view. */
function at(array, ...index) {
  const rest = array.shape.slice(index.length).reduce((a, b) => a * b, 1);
  const start = index.reduce((sum, i, k) => sum * array.shape[k] + i, 0) * rest;
  return array.subarray(start, start + rest);
}

const score = (query, layer = N - 1) => at(arrays.own, layer, query)[0];
const label = (query, layer = N - 1) => at(arrays.labels, layer, query)[0];
const className = (index) => meta.names[index] ?? `class ${index}`;
const box = (query, layer = N - 1) => at(arrays.boxes, layer, query);
const shownLayers = () => (state.all ? range(N) : [state.layer]);
const chosen = (switches) => range(switches.length).filter((i) => switches[i]);
const detection = (query) => meta.mapped.indexOf(query);

/** The points {x, y, weight, level} that a query sampled, x and y normalised. */
function* sampled(query, layers, heads, levels) {
  for (const layer of layers) {
    const xy = at(arrays.locations, layer, query), weights = at(arrays.weights, layer, query);
    for (const head of heads) {
      for (const level of levels) {
        const first = (head * LEVELS + level) * POINTS;
        for (let i = first; i < first + POINTS; i++) yield { x: xy[2 * i], y: xy[2 * i + 1], weight: weights[i], level };
      }
    }
  }
}

/** Raw attention (S) of a query: the mean over `heads` and `layers`, of `levels` only. */
function rawMap(query, layers, heads, levels) {
  const tokens = new Float64Array(TOKENS), share = 1 / (layers.length * heads.length);
  if (arrays.locations) {
    for (const { x, y, weight, level } of sampled(query, layers, heads, levels)) {
      // to the four pixels around it; what falls outside is lost
      const [h, w] = shapes[level], across = x * w - 0.5, down = y * h - 0.5;
      const left = Math.floor(across), top = Math.floor(down);
      for (const row of [top, top + 1]) {
        for (const column of [left, left + 1]) {
          if (column < 0 || row < 0 || column >= w || row >= h) continue;
          const part = (1 - Math.abs(across - column)) * (1 - Math.abs(down - row));
          tokens[starts[level] + row * w + column] += weight * share * part;
        }
      }
    }
    return tokens;
  }
  const d = detection(query);
  for (const layer of layers) {
    const parts = d < 0 || heads.length === HEADS
      ? [[at(arrays.mean, layer, query), at(arrays.mean_scale, layer, query)[0] * heads.length]]
      : heads.map((head) => [at(arrays.attention, layer, d, head), at(arrays.attention_scale, layer, d)[head]]);
    for (const [values, scale] of parts) values.forEach((value, s) => { tokens[s] += value * scale * share; });
  }
  return tokens;
}

/** A map (S) of any method over the levels' tokens, or null where the page has none for the query. */
function tokenMap(query, method = state.method, layers = shownLayers(), heads = chosen(state.heads),
                  levels = chosen(state.levels)) {
  if (method === "raw") return heads.length ? rawMap(query, layers, heads, levels) : new Float64Array(TOKENS);
  const d = detection(query), maps = arrays[method];
  if (d < 0) return null;
  // over all layers last; rollout has no other
  const layer = maps.shape[0] === 1 ? 0 : layers.length > 1 ? N : layers[0];
  const scale = at(arrays[`${method}_scale`], layer)[d];
  const tokens = Float64Array.from(at(maps, layer, d), (value) => value * scale);
  for (const level of range(LEVELS)) if (!levels.includes(level)) tokens.fill(0, starts[level], starts[level + 1]);
  return tokens;
}

/** For each of `count` places along a side of the image: the two of `size` tokens around it, the second one's share. */
const between = (count, size) => range(count).map((i) => {
  const place = clip(((i + 0.5) * size) / count - 0.5, 0, size - 1), first = Math.floor(place);
  return [first, Math.min(first + 1, size - 1), place - first];
});

/** Tokens (S) as a density on the page's grid, per pixel of the image; levels are added. */
function gridMap(tokens) {
  const out = new Float32Array(gridW * gridH);
  shapes.forEach(([h, w], level) => {
    const density = (h * w) / (H * W), columns = between(gridW, w), line = new Float32Array(w);
    between(gridH, h).forEach(([top, bottom, down], y) => {
      const one = starts[level] + top * w, two = starts[level] + bottom * w;
      for (let x = 0; x < w; x++) line[x] = (tokens[one + x] * (1 - down) + tokens[two + x] * down) * density;
      if (line.every((value) => value === 0)) return;
      columns.forEach(([left, right, across], x) => {
        out[y * gridW + x] += line[left] + (line[right] - line[left]) * across;
      });
    });
  });
  return out;
}

const cache = new Map();
function cachedMap(query) {
  const key = [query, state.method, shownLayers(), chosen(state.heads), chosen(state.levels)].join("|");
  if (!cache.has(key)) {
    if (cache.size > 40) cache.delete(cache.keys().next().value);
    const tokens = tokenMap(query), grid = tokens && gridMap(tokens);
    cache.set(key, { grid, most: grid ? grid.reduce((a, b) => Math.max(a, b), 0) : 0 });
  }
  return cache.get(key);
}
