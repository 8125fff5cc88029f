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
  // "queries", or "encoder": then the pixel of one of its levels is shown, and a layer among those that the page holds
  mode: "queries", pixel: null, pixelLevel: 0, encoderLayer: Math.max(0, (meta.encoder?.layers.length ?? 0) - 1),
};

// as it opens, which links are told apart from
const opened = structuredClone(state);

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

const score = (query, layer = N - 1) => arrays.own[layer * Q + query];
const label = (query, layer = N - 1) => arrays.labels[(layer * Q + query) * arrays.labels.shape[2]];
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
        for (let i = first; i < first + meta.counts[level]; i++) {
          yield { x: xy[2 * i], y: xy[2 * i + 1], weight: weights[i], layer, head, level, point: i - first };
        }
      }
    }
  }
}

/** Adds to the tokens around a place of a level what is there of `weight`: to four pixels; what falls outside is lost. */
function splat(tokens, x, y, level, weight) {
  const [h, w] = shapes[level], across = x * w - 0.5, down = y * h - 0.5;
  const left = Math.floor(across), top = Math.floor(down);
  for (let row = top; row <= top + 1; row++) {
    for (let column = left; column <= left + 1; column++) {
      if (column < 0 || row < 0 || column >= w || row >= h) continue;
      tokens[starts[level] + row * w + column] += weight * (1 - Math.abs(across - column)) * (1 - Math.abs(down - row));
    }
  }
}

/** Adds values times a factor to tokens. */
function add(tokens, values, factor) {
  for (let s = 0; s < tokens.length; s++) tokens[s] += values[s] * factor;
}

/** Raw attention (S) of a query: the mean over `heads` and `layers`, of `levels` only. */
function rawMap(query, layers, heads, levels) {
  const tokens = new Float64Array(TOKENS), share = 1 / (layers.length * heads.length);
  if (arrays.locations) {
    for (const { x, y, weight, level } of sampled(query, layers, heads, levels)) splat(tokens, x, y, level, weight * share);
    return tokens;
  }
  const d = detection(query);
  for (const layer of layers) {
    const parts = d < 0 || heads.length === HEADS
      ? [[at(arrays.mean, layer, query), at(arrays.mean_scale, layer, query)[0] * heads.length]]
      : heads.map((head) => [at(arrays.attention, layer, d, head), at(arrays.attention_scale, layer, d)[head]]);
    for (const [values, scale] of parts) add(tokens, values, scale * share);
  }
  return tokens;
}

/** A map (S) of any method over the levels' tokens, or null where the page has none for the query. */
function tokenMap(query, method = state.method, layers = shownLayers(), heads = chosen(state.heads),
                  levels = chosen(state.levels)) {
  if (method === "raw") return heads.length ? rawMap(query, layers, heads, levels) : new Float64Array(TOKENS);
  const d = detection(query), maps = arrays[method];
  if (d < 0) return null;
  // by head where the page has it: the mean over those chosen, as of raw attention
  if (method === "relevance" && heads.length < HEADS && d < meta.by_head) {
    const tokens = new Float64Array(TOKENS);
    for (const layer of layers) {
      for (const head of heads) {
        const scale = at(arrays.relevance_heads_scale, layer, d)[head] / heads.length;
        if (scale > 0) add(tokens, at(arrays.relevance_heads, layer, d, head), scale);
      }
    }
    return keepLevels(tokens, levels);
  }
  // over all layers last; rollout has no other
  const layer = maps.shape[0] === 1 ? 0 : layers.length > 1 ? N : layers[0];
  const scale = at(arrays[`${method}_scale`], layer)[d];
  return keepLevels(Float64Array.from(at(maps, layer, d), (value) => value * scale), levels);
}

function keepLevels(tokens, levels) {
  for (const level of range(LEVELS)) if (!levels.includes(level)) tokens.fill(0, starts[level], starts[level + 1]);
  return tokens;
}

/** For each of `count` places along a side of the image: the two of `size` tokens around it, the second one's share. */
function between(count, size) {
  const first = new Int32Array(count), second = new Int32Array(count), share = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const place = clip(((i + 0.5) * size) / count - 0.5, 0, size - 1);
    first[i] = Math.floor(place);
    second[i] = Math.min(first[i] + 1, size - 1);
    share[i] = place - first[i];
  }
  return { first, second, share };
}
const grids = shapes.map(([h, w]) => [between(gridH, h), between(gridW, w)]);

/** Tokens (S) as a density on the page's grid, per pixel of the image; levels are added. */
function gridMap(tokens) {
  const out = new Float32Array(gridW * gridH);
  shapes.forEach(([h, w], level) => {
    const density = (h * w) / (H * W), line = new Float32Array(w), [down, across] = grids[level];
    for (let y = 0; y < gridH; y++) {
      const one = starts[level] + down.first[y] * w, two = starts[level] + down.second[y] * w, share = down.share[y];
      let empty = true;
      for (let x = 0; x < w; x++) {
        line[x] = (tokens[one + x] * (1 - share) + tokens[two + x] * share) * density;
        empty &&= line[x] === 0;
      }
      if (empty) continue;
      for (let x = 0, i = y * gridW; x < gridW; x++, i++) {
        const left = line[across.first[x]];
        out[i] += left + (line[across.second[x]] - left) * across.share[x];
      }
    }
  });
  return out;
}

/** What a key stands for, made once; the last forty are kept. */
const cache = new Map();
function cached(key, make) {
  if (!cache.has(key)) {
    if (cache.size > 40) cache.delete(cache.keys().next().value);
    const tokens = make(), grid = tokens && gridMap(tokens);
    let most = 0;
    for (let i = 0; grid && i < grid.length; i++) if (grid[i] > most) most = grid[i];
    cache.set(key, { tokens, grid, most });
  }
  return cache.get(key);
}
const cachedMap = (query) => cached([query, state.method, shownLayers(), chosen(state.heads), chosen(state.levels)].join("|"),
  () => tokenMap(query));
