"use strict";
// One image in one detector. Everything shown is computed here from the arrays of the element "data".

const $ = (id) => document.getElementById(id);
const meta = JSON.parse($("data").textContent);
const { width: W, height: H, shapes, layers: N, queries: Q, heads: HEADS, levels: LEVELS, points: POINTS } = meta;
const TYPES = { float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array };
// in the order of MARKERS of points.py
const MARKS = ["circle", "square", "triangle", "diamond", "triangle down", "plus", "cross", "star"];
const starts = shapes.map((_, i) => shapes.slice(0, i).reduce((sum, [h, w]) => sum + h * w, 0));
const TOKENS = shapes.reduce((sum, [h, w]) => sum + h * w, 0);
// the finest grid that a map is computed on, along its longer side; the canvas smooths between
const GRID = 448;
const gridScale = Math.min(1, GRID / Math.max(W, H));
const gridW = Math.max(1, Math.round(W * gridScale)), gridH = Math.max(1, Math.round(H * gridScale));

let arrays = {}, picture;
const state = {
  a: meta.selected ?? null, b: null, hover: null, layer: N - 1, all: false, method: meta.methods[0].name,
  heads: Array(HEADS).fill(true), levels: Array(LEVELS).fill(true),
  map: true, points: true, boxes: true, path: false, opacity: 0.8, confidence: meta.confidence,
};

function fromBase64(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function unpack({ dtype, shape, data }) {
  const bytes = fromBase64(data);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new TYPES[dtype](await new Response(stream).arrayBuffer());
  values.shape = shape;
  return values;
}

/** The part of a row-major array that leading indices name, as a view. */
function at(array, ...index) {
  const rest = array.shape.slice(index.length).reduce((a, b) => a * b, 1);
  const start = index.reduce((sum, i, k) => sum * array.shape[k] + i, 0) * rest;
  return array.subarray(start, start + rest);
}

const score = (query, layer = N - 1) => arrays.own[layer * Q + query];
const label = (query, layer = N - 1) => at(arrays.labels, layer, query)[0];
const className = (index) => meta.names[index] ?? `class ${index}`;
const box = (query, layer = N - 1) => at(arrays.boxes, layer, query);
const shownLayers = () => (state.all ? [...Array(N).keys()] : [state.layer]);
const chosen = (switches) => switches.flatMap((on, i) => (on ? [i] : []));
const detection = (query) => meta.mapped.indexOf(query);

/** Adds `weight` at normalised (x, y) to the four pixels around it; what falls outside is lost. */
function splat(tokens, level, x, y, weight) {
  const [h, w] = shapes[level];
  x = x * w - 0.5;
  y = y * h - 0.5;
  const left = Math.floor(x), top = Math.floor(y);
  for (let dy = 0; dy < 2; dy++) {
    for (let dx = 0; dx < 2; dx++) {
      const column = left + dx, row = top + dy;
      if (column < 0 || row < 0 || column >= w || row >= h) continue;
      const share = (dx ? x - left : 1 - x + left) * (dy ? y - top : 1 - y + top);
      tokens[starts[level] + row * w + column] += weight * share;
    }
  }
}

/** Raw attention (S) of a query: the mean over `heads` and `layers`, of `levels` only. */
function rawMap(query, layers, heads, levels) {
  const tokens = new Float64Array(TOKENS), share = 1 / (layers.length * heads.length);
  for (const layer of layers) {
    if (arrays.locations) {
      const xy = at(arrays.locations, layer, query), weights = at(arrays.weights, layer, query);
      for (const head of heads) {
        for (const level of levels) {
          for (let p = 0; p < POINTS; p++) {
            const i = (head * LEVELS + level) * POINTS + p;
            splat(tokens, level, xy[2 * i], xy[2 * i + 1], weights[i] * share);
          }
        }
      }
      continue;
    }
    const d = detection(query);
    const parts = d < 0 || heads.length === HEADS
      ? [[at(arrays.mean, layer, query), arrays.mean_scale[layer * Q + query] * heads.length]]
      : heads.map((head) => [at(arrays.attention, layer, d, head), at(arrays.attention_scale, layer, d)[head]]);
    for (const [values, scale] of parts) {
      for (let s = 0; s < TOKENS; s++) tokens[s] += values[s] * scale * share;
    }
  }
  return tokens;
}

/** A map (S) of any method over the levels' tokens, or null where the page has none for the query. */
function tokenMap(query, method = state.method, layers = shownLayers(), heads = chosen(state.heads),
                  levels = chosen(state.levels)) {
  if (method === "raw") return heads.length ? rawMap(query, layers, heads, levels) : new Float64Array(TOKENS);
  const d = detection(query);
  if (d < 0) return null;
  const maps = arrays[method];
  // over all layers last; rollout has no other
  const layer = maps.shape[0] === 1 ? 0 : layers.length > 1 ? N : layers[0];
  const scale = at(arrays[`${method}_scale`], layer)[d];
  const tokens = Float64Array.from(at(maps, layer, d), (value) => value * scale);
  for (let level = 0; level < LEVELS; level++) {
    if (!levels.includes(level)) tokens.fill(0, starts[level], starts[level] + shapes[level][0] * shapes[level][1]);
  }
  return tokens;
}

/**
 * For each of `count` places along a side of the image: the two of `size` tokens around it and the second one's share.
 */
function between(count, size) {
  const first = new Int32Array(count), second = new Int32Array(count), share = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const place = Math.min(Math.max(((i + 0.5) * size) / count - 0.5, 0), size - 1);
    first[i] = Math.floor(place);
    second[i] = Math.min(first[i] + 1, size - 1);
    share[i] = place - first[i];
  }
  return { first, second, share };
}

/** Tokens (S) as a density on the page's grid, per pixel of the image; levels are added. */
function gridMap(tokens) {
  const out = new Float32Array(gridW * gridH);
  shapes.forEach(([h, w], level) => {
    const density = (h * w) / (H * W), base = starts[level];
    const xs = between(gridW, w), ys = between(gridH, h), line = new Float32Array(w);
    for (let y = 0; y < gridH; y++) {
      const one = base + ys.first[y] * w, two = base + ys.second[y] * w, down = ys.share[y];
      let empty = true;
      for (let x = 0; x < w; x++) {
        line[x] = (tokens[one + x] * (1 - down) + tokens[two + x] * down) * density;
        empty = empty && line[x] === 0;
      }
      if (empty) continue;
      for (let x = 0, i = y * gridW; x < gridW; x++, i++) {
        const near = line[xs.first[x]];
        out[i] += near + (line[xs.second[x]] - near) * xs.share[x];
      }
    }
  });
  return out;
}

const cache = new Map();
function cachedMap(query) {
  const key = [query, state.method, shownLayers(), chosen(state.heads), chosen(state.levels)].join("|");
  if (!cache.has(key)) {
    if (cache.size > 40) cache.delete(cache.keys().next().value);
    const tokens = tokenMap(query);
    const grid = tokens && gridMap(tokens);
    cache.set(key, { grid, most: grid ? grid.reduce((a, b) => Math.max(a, b), 0) : 0 });
  }
  return cache.get(key);
}
