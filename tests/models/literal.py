"""The detectors written from their equations, one image, one pixel, one head, one point at a time.

Slow on purpose, and sharing nothing with the code under test but its weights: no padding, no masks and no batches.
Numbers are float64; an image's pixels are a list of (C,) vectors.
"""

import math

import torch
from torch import Tensor, nn


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    deviation = x - x.sum() / len(x)
    return layer.weight * deviation / torch.sqrt((deviation**2).sum() / len(x) + 1e-5) + layer.bias


def feed(layer: nn.Module, x: Tensor) -> Tensor:
    return linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))


def box_head(head: nn.Module, x: Tensor) -> Tensor:
    first, second, third = head.layers
    return linear(third, linear(second, linear(first, x).clamp(min=0)).clamp(min=0))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(x: float) -> float:
    """Of a probability kept 1e-5 away from 0 and 1."""
    return math.log(max(x, 1e-5) / max(1 - x, 1e-5))


def sines(x: float, channels: int) -> list[float]:
    """Channel i is the sine, or for odd i the cosine, of 2 pi x / 10000^(2 floor(i/2) / channels)."""
    return [
        (math.cos if i % 2 else math.sin)(2 * math.pi * x / 10000 ** (2 * (i // 2) / channels)) for i in range(channels)
    ]


def pixel_position(module: nn.Module, i: int, j: int, height: int, width: int, channels: int, centre: float) -> Tensor:
    """Position of row i, column j of an image's map: sines of y, then of x; or learned, the column's, then the row's.

    `centre` is what is taken from a pixel's count: 0.5 in Deformable DETR, 0 in DETR.
    """
    if hasattr(module, "row_embed"):
        return torch.cat([module.col_embed.weight[j], module.row_embed.weight[i]])
    y, x = (i + 1 - centre) / (height + 1e-6), (j + 1 - centre) / (width + 1e-6)
    return torch.tensor(sines(y, channels // 2) + sines(x, channels // 2), dtype=torch.float64)


def softmax_attention(attention, query, key, value, padded):
    """Multi-head attention from its definition, one head, one query at a time: (n, C) each, `padded` (keys,)."""
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads
    parts = zip(attention.in_proj_weight.split(width), attention.in_proj_bias.split(width), strict=True)
    q, k, v = (x @ weight.T + bias for x, (weight, bias) in zip((query, key, value), parts, strict=True))
    rows = []
    for i in range(len(q)):
        heads_out = []
        for h in range(heads):
            channels = slice(h * size, (h + 1) * size)
            seen = [j for j in range(len(k)) if not padded[j]]
            scores = [math.exp((q[i, channels] @ k[j, channels]).item() / math.sqrt(size)) for j in seen]
            heads_out.append(sum(s / sum(scores) * v[j, channels] for s, j in zip(scores, seen, strict=True)))
        rows.append(torch.cat(heads_out))
    return torch.stack(rows) @ attention.out_proj.weight.T + attention.out_proj.bias


def detr_transformer(transformer, pixels, padded, position, query_embed, *, pre_norm):
    """DETR's transformer for one image (Carion et al. 2020, figure 10): pixels, position (S, C), query_embed (Q, C)."""

    def rows(function, layer, x):
        return torch.stack([function(layer, row) for row in x])

    x = pixels
    for layer in transformer.encoder.layers:
        if pre_norm:
            n = rows(norm, layer.norm1, x)
            x = x + softmax_attention(layer.self_attn, n + position, n + position, n, padded)
            x = x + rows(feed, layer, rows(norm, layer.norm2, x))
        else:
            attended = softmax_attention(layer.self_attn, x + position, x + position, x, padded)
            x = rows(norm, layer.norm1, x + attended)
            x = rows(norm, layer.norm2, x + rows(feed, layer, x))
    memory = x if transformer.encoder.norm is None else rows(norm, transformer.encoder.norm, x)
    x = torch.zeros_like(query_embed)
    nothing = [False] * len(x)
    hidden = []
    for layer in transformer.decoder.layers:
        if pre_norm:
            n = rows(norm, layer.norm1, x)
            x = x + softmax_attention(layer.self_attn, n + query_embed, n + query_embed, n, nothing)
            n = rows(norm, layer.norm2, x)
            x = x + softmax_attention(layer.multihead_attn, n + query_embed, memory + position, memory, padded)
            x = x + rows(feed, layer, rows(norm, layer.norm3, x))
        else:
            attended = softmax_attention(layer.self_attn, x + query_embed, x + query_embed, x, nothing)
            x = rows(norm, layer.norm1, x + attended)
            attended = softmax_attention(layer.multihead_attn, x + query_embed, memory + position, memory, padded)
            x = rows(norm, layer.norm2, x + attended)
            x = rows(norm, layer.norm3, x + rows(feed, layer, x))
        hidden.append(rows(norm, transformer.decoder.norm, x))
    return hidden


def deformable_attention(attention, query, reference, levels):
    """Zhu et al. 2021, equation 3, for one query (C,); `reference` is (x, y) or (x, y, w, h), shares of the image.

    `levels` lists maps as {(row, column): (C,)}, with their height and width. Nothing lies outside a map.
    """
    heads, points, size = attention.n_heads, attention.n_points, attention.d_model // attention.n_heads
    offsets = linear(attention.sampling_offsets, query).view(heads, len(levels), points, 2).tolist()
    scores = linear(attention.attention_weights, query).view(heads, len(levels) * points).tolist()
    out = []
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        total = sum(math.exp(score) for score in scores[head])
        sampled = torch.zeros(size, dtype=torch.float64)
        for level, (pixels, height, width) in enumerate(levels):
            for point in range(points):
                dx, dy = offsets[head][level][point]
                if len(reference) == 4:
                    dx = dx / points * reference[2] * width / 2
                    dy = dy / points * reference[3] * height / 2
                x, y = reference[0] * width + dx - 0.5, reference[1] * height + dy - 0.5
                weight = math.exp(scores[head][level * points + point]) / total
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if (row, column) in pixels:
                            value = linear(attention.value_proj, pixels[row, column])[channels]
                            sampled = sampled + weight * (1 - abs(y - row)) * (1 - abs(x - column)) * value
        out.append(sampled)
    return linear(attention.output_proj, torch.cat(out))


class DeformableImage:
    """Deformable DETR after its projections, for one image: `maps` lists its levels (C, h, w), without padding.

    ``logits`` and ``boxes`` hold (Q, classes) and (Q, 4) of every decoder layer. In two stages `padding` is how many
    padded pixels of each level compete beside the image's own, and ``offers`` maps each pixel (level, row, column) to
    its logits and box; a padded pixel has the key None.
    """

    def __init__(self, model, maps, padding=0):
        self.model, self.transformer, self.padding = model, model.transformer, padding
        self.config = model.config  # what was asked for, whatever the modules made of it
        self.sizes = [tuple(x.shape[1:]) for x in maps]
        self.keys = [(l, i, j) for l, (h, w) in enumerate(self.sizes) for i in range(h) for j in range(w)]
        self.centre = {(l, i, j): ((j + 0.5) / self.sizes[l][1], (i + 0.5) / self.sizes[l][0]) for l, i, j in self.keys}
        self.memory = self.encode({(l, i, j): maps[l][:, i, j] for l, i, j in self.keys})
        queries, positions, references = self.propose() if self.config.two_stage else self.learned()
        self.logits, self.boxes = self.decode(queries, positions, references)

    def levels(self, x):
        return [
            ({(i, j): x[level, i, j] for level, i, j in self.keys if level == l}, *self.sizes[l])
            for l in range(len(self.sizes))
        ]

    def encode(self, x):
        model, width = self.model, self.transformer.hidden_dim
        position = {
            (l, i, j): pixel_position(model.backbone[1], i, j, *self.sizes[l], width, 0.5)
            + self.transformer.level_embed[l]
            for l, i, j in self.keys
        }
        for layer in self.transformer.encoder.layers:
            seen = {key: norm(layer.norm1, x[key]) for key in x} if self.config.pre_norm else x
            levels = self.levels(seen)
            new = {}
            for key in self.keys:
                attended = deformable_attention(layer.self_attn, seen[key] + position[key], self.centre[key], levels)
                y = x[key] + attended
                if self.config.pre_norm:
                    new[key] = y + feed(layer, norm(layer.norm2, y))
                else:
                    y = norm(layer.norm1, y)
                    new[key] = norm(layer.norm2, y + feed(layer, y))
            x = new
        last = self.transformer.encoder.norm
        return x if last is None else {key: norm(last, x[key]) for key in x}

    def learned(self):
        width = self.transformer.hidden_dim
        positions, queries = self.model.query_embed.weight[:, :width], self.model.query_embed.weight[:, width:]
        references = [[sigmoid(x) for x in linear(self.transformer.reference_points, p).tolist()] for p in positions]
        return queries, positions, references

    def propose(self):
        self.offers = []
        model, transformer = self.model, self.transformer
        for key in [*self.keys, *[None] * self.padding]:
            box = None if key is None else [*self.centre[key], 0.05 * 2 ** key[0], 0.05 * 2 ** key[0]]
            if box is not None and not all(0.01 < x < 0.99 for x in box):
                box = None
            memory = torch.zeros(transformer.hidden_dim, dtype=torch.float64) if box is None else self.memory[key]
            memory = norm(transformer.enc_output_norm, linear(transformer.enc_output, memory))
            logits = linear(model.class_embed[-1], memory)
            shift = box_head(model.bbox_embed[-1], memory).tolist()
            # nothing can move a proposal that has no logit
            found = [1.0] * 4 if box is None else [sigmoid(s + logit(x)) for s, x in zip(shift, box, strict=True)]
            self.offers.append((key, logits, found))
        best = sorted(self.offers, key=lambda offer: -offer[1][0].item())[: transformer.num_queries]
        references = [box for _, _, box in best]
        halves = []
        for box in references:
            angles = torch.tensor([s for x in box for s in sines(x, transformer.hidden_dim // 2)], dtype=torch.float64)
            halves.append(norm(transformer.pos_trans_norm, linear(transformer.pos_trans, angles)))
        positions, queries = (torch.stack(half) for half in zip(*(x.chunk(2) for x in halves), strict=True))
        return queries, positions, references

    def decode(self, x, position, references):
        decoder, levels = self.transformer.decoder, self.levels(self.memory)
        all_logits, all_boxes = [], []
        for number, layer in enumerate(decoder.layers):
            nothing = [False] * len(x)

            def among(y, layer=layer, nothing=nothing):
                return softmax_attention(layer.self_attn, y + position, y + position, y, nothing)

            def across(y, layer=layer, references=references):
                return torch.stack(
                    [
                        deformable_attention(layer.cross_attn, row + p, reference, levels)
                        for row, p, reference in zip(y, position, references, strict=True)
                    ]
                )

            if self.config.pre_norm:
                x = x + among(torch.stack([norm(layer.norm2, row) for row in x]))
                x = x + across(torch.stack([norm(layer.norm1, row) for row in x]))
                x = torch.stack([row + feed(layer, norm(layer.norm3, row)) for row in x])
            else:
                x = torch.stack([norm(layer.norm2, row) for row in x + among(x)])
                x = torch.stack([norm(layer.norm1, row) for row in x + across(x)])
                x = torch.stack([norm(layer.norm3, row + feed(layer, row)) for row in x])
            hidden = x if decoder.norm is None else torch.stack([norm(decoder.norm, row) for row in x])
            all_logits.append(torch.stack([linear(self.model.class_embed[number], row) for row in hidden]))
            boxes = []
            for row, reference in zip(hidden, references, strict=True):
                shift = box_head(self.model.bbox_embed[number], row).tolist()
                start = [logit(r) for r in reference] + [0.0] * (4 - len(reference))
                boxes.append([sigmoid(s + r) for s, r in zip(shift, start, strict=True)])
            all_boxes.append(torch.tensor(boxes, dtype=torch.float64))
            if self.config.with_box_refine:
                references = boxes
        return all_logits, all_boxes
