// The encoder's self-attention at a pixel of one of its levels: where it looks (its row), who looks at it (its column).

const encoder = meta.encoder?.layers.length ? meta.encoder : null;
const encoderMode = () => state.mode === "encoder";
const encoderLayers = () => (state.all ? range(encoder.layers.length) : [state.encoderLayer]);
// of attention to every key the page holds the mean over heads alone
const encoderHeads = () => (encoder.heads === HEADS ? chosen(state.heads) : range(encoder.heads));

/** The token, of all levels, that a place of the image in its pixels lies in; and the middle of a token. */
function tokenAt([x, y], level) {
  const [h, w] = shapes[level];
  const column = clip(Math.floor((x / W) * w), 0, w - 1), row = clip(Math.floor((y / H) * h), 0, h - 1);
  return starts[level] + row * w + column;
}
function placeOf(token, level) {
  const [h, w] = shapes[level], inside = token - starts[level];
  return [(((inside % w) + 0.5) / w) * W, ((Math.floor(inside / w) + 0.5) / h) * H];
}

/** The points {x, y, weight, level} that a pixel of the encoder samples, x and y normalised. */
function* encoderSampled(token, layers, heads, levels) {
  const step = (encoder.far - encoder.near) / 65535, points = encoder.points;
  for (const layer of layers) {
    const xy = at(arrays.encoder_xy, layer, token);
    for (const head of heads) {
      const weights = at(arrays.encoder_weights, layer, token, head);
      const scale = at(arrays.encoder_weights_scale, layer, token)[head];
      for (const level of levels) {
        for (let point = 0; point < points; point++) {
          const i = level * points + point, place = 2 * (head * LEVELS * points + i), weight = weights[i] * scale;
          if (weight === 0) continue;
          yield { x: encoder.near + step * xy[place], y: encoder.near + step * xy[place + 1], weight, layer, head, level, point };
        }
      }
    }
  }
}

/** Where a pixel looks: (S), the mean over heads and layers, of levels only. */
function encoderRow(token, layers, heads, levels) {
  const tokens = new Float64Array(TOKENS);
  if (!heads.length) return tokens;
  if (arrays.encoder_rows) {
    for (const layer of layers) {
      add(tokens, at(arrays.encoder_rows, layer, token), at(arrays.encoder_rows_scale, layer)[token] / layers.length);
    }
    return keepLevels(tokens, levels);
  }
  const share = 1 / (layers.length * heads.length);
  for (const { x, y, weight, level } of encoderSampled(token, layers, heads, levels)) splat(tokens, x, y, level, weight * share);
  return tokens;
}

/** Which pixels look at a token of a level: (S), the mean over heads and layers, of those on levels only. */
function encoderColumn(token, level, layers, heads, levels) {
  const tokens = new Float64Array(TOKENS), share = 1 / (layers.length * heads.length);
  if (!heads.length) return tokens;
  if (arrays.encoder_rows) {
    for (const layer of layers) {
      const rows = at(arrays.encoder_rows, layer), scales = at(arrays.encoder_rows_scale, layer);
      for (let s = 0; s < TOKENS; s++) tokens[s] += (rows[s * TOKENS + token] * scales[s]) / layers.length;
    }
    return keepLevels(tokens, levels);
  }
  const [h, w] = shapes[level], inside = token - starts[level], row = Math.floor(inside / w), column = inside % w;
  const step = (encoder.far - encoder.near) / 65535, { points } = encoder, each = encoder.heads * LEVELS * points;
  for (const layer of layers) {
    const xy = at(arrays.encoder_xy, layer), weights = at(arrays.encoder_weights, layer);
    const scales = at(arrays.encoder_weights_scale, layer);
    for (const other of levels) {
      for (let s = starts[other]; s < starts[other + 1]; s++) {
        for (const head of heads) {
          const first = s * each + (head * LEVELS + level) * points;
          for (let i = first; i < first + points; i++) {
            const across = 1 - Math.abs((encoder.near + step * xy[2 * i]) * w - 0.5 - column);
            if (across <= 0) continue;
            const down = 1 - Math.abs((encoder.near + step * xy[2 * i + 1]) * h - 0.5 - row);
            if (down > 0) tokens[s] += weights[i] * scales[s * encoder.heads + head] * across * down * share;
          }
        }
      }
    }
  }
  return tokens;
}

/** The map of view "a", the row, or "b", the column, of the chosen pixel. */
function encoderMap(side) {
  const token = tokenAt(state.pixel, state.pixelLevel);
  const where = [encoderLayers(), encoderHeads(), chosen(state.levels)];
  return cached(["encoder", side, token, ...where].join("|"),
    () => (side === "a" ? encoderRow(token, ...where) : encoderColumn(token, state.pixelLevel, ...where)));
}

function drawEncoder(side, context, k) {
  const level = state.pixelLevel, token = tokenAt(state.pixel, level), [x, y] = placeOf(token, level);
  const [h, w] = shapes[level], half = [W / w / 2, H / h / 2];
  if (state.boxes) drawOthers(context, k, candidates());
  if (side === "a" && state.points && arrays.encoder_xy) {
    drawPoints(context, k, [...encoderSampled(token, encoderLayers(), encoderHeads(), chosen(state.levels))]);
  }
  drawBox(context, k, [x - half[0], y - half[1], x + half[0], y + half[1]], "#40e0ff", 2);
}

const encoderTitle = (side) => (side === "a" ? "Where this pixel looks" : "Which pixels look here");
const encoderLayerName = () => (state.all
  ? `all ${encoder.layers.length} encoder layers here`
  : `encoder layer ${encoder.layers[state.encoderLayer]} of 0 to ${encoder.of - 1}`);

function describeEncoder(view, side) {
  const [x, y] = placeOf(tokenAt(state.pixel, state.pixelLevel), state.pixelLevel).map(Math.round);
  const where = `x ${x}, y ${y}, level ${state.pixelLevel}`;
  view.scores.hidden = true;
  view.what.replaceChildren(make("b", {}, encoderTitle(side)), span("faint", `${where}, ${encoderLayerName()}`));
  view.canvas.ariaLabel = `${encoderTitle(side)}: ${where}, ${encoderLayerName()}`;
}

/** The pixel so many columns and rows away, on its level. */
function movePixel(columns, rows) {
  const [h, w] = shapes[state.pixelLevel];
  const [x, y] = placeOf(tokenAt(state.pixel, state.pixelLevel), state.pixelLevel);
  state.pixel = [clip(x + (columns * W) / w, 0, W - 1), clip(y + (rows * H) / h, 0, H - 1)];
  redraw();
}

function setMode(mode) {
  if (mode === "encoder" && !encoder) return;
  state.mode = mode;
  state.hover = null;
  // begins where one was looking
  state.pixel ??= (state.a === null ? [W / 2, H / 2] : centre(box(state.a))).map((value, i) => clip(value, 0, [W, H][i] - 1));
  play(false);
  redraw();
}
