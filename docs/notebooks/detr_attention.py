# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The attention of DETR
#
# DETR (Carion et al. 2020) flattens the last feature map of a backbone into tokens. Its encoder lets every token attend
# to every other; its decoder lets every query attend to every token. Both are softmax weights that one can draw. The
# authors' hands-on notebook made two such pictures well known, and this one makes them with our tools:
#
# 1. the decoder's cross-attention of each detection: which tokens a query reads;
# 2. the encoder's self-attention at chosen places: which tokens a token reads.
#
# It adds what is easily missed: the heads, which the mean hides, and the difference between the row and the column of
# an attention matrix.
#
# - **It needs** a CPU and no download. DETR learns slowly: after the few hundred steps of the default its detections
#   are poor. The committed pictures are of the same training, three times as long, and still of a weak detector: AP50
#   0.34 on the images held out. It finds where objects are, and confuses what they are. The text says what its pictures
#   show.
# - **With a DETR of yours**, set `MSDEFORM_RUN` to the folder of its training run before you start Jupyter.
# - **With published weights**, write `model = msdeform.from_pretrained("detr_r50")`, which downloads them, and name a
#   photograph. `detr_demo` is the minimal DETR of the paper's listing; everything below works with it, too.

# %%
# %matplotlib inline
import os
import random

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.patches import ConnectionPatch
from PIL import Image, ImageDraw

import msdeform
from msdeform.explain.core.capture import capture
from msdeform.explain.core.maps import heat_map, row_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import draw_detection
from msdeform.explain.figures.encoder import draw_encoder
from msdeform.explain.figures.heat import draw_heat_grid

SMALL = os.environ.get("MSDEFORM_NOTEBOOK_SMALL") == "1"  # for the test of this notebook: too short to learn anything
STEPS = 2 if SMALL else int(os.environ.get("MSDEFORM_NOTEBOOK_STEPS", "500"))
RUN = os.environ.get("MSDEFORM_RUN")  # the folder of a training run
SIDE = 64 if SMALL else 256  # of an image, in pixels

# %% [markdown]
# ## A DETR and an image
#
# A DETR from random weights needs an easy task: one or two plain shapes on a grey ground.


# %%
class Shapes(torch.utils.data.Dataset):
    """Images of one or two discs, squares and triangles that do not overlap; another seed, other images."""

    categories = {1: "disc", 2: "square", 3: "triangle"}  # noqa: RUF012

    def __init__(self, count: int, seed: int, side: int = SIDE) -> None:
        self.count, self.seed, self.side = count, seed, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, list]]:
        rng, side = random.Random(1_000_003 * self.seed + index), self.side
        image = Image.new("RGB", (side, side), (rng.randint(170, 235),) * 3)
        draw, boxes, labels = ImageDraw.Draw(image), [], []
        for _ in range(rng.randint(1, 2)):
            for _ in range(20):  # tries to find a free place
                r = rng.uniform(0.12, 0.2) * side
                x, y = rng.uniform(r, side - r), rng.uniform(r, side - r)
                if all(max(abs(x - (a + c) / 2), abs(y - (b + d) / 2)) > r + (c - a) / 2 for a, b, c, d in boxes):
                    break
            else:
                continue
            colour, label = tuple(rng.randint(0, 150) for _ in range(3)), rng.randint(1, 3)
            box = (x - r, y - r, x + r, y + r)
            if label == 1:
                draw.ellipse(box, fill=colour)
            elif label == 2:
                draw.rectangle(box, fill=colour)
            else:
                draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
            boxes.append(box)
            labels.append(label)
        return image, {"boxes": boxes, "labels": labels}


held_out = Shapes(8 if SMALL else 100, seed=1)

# %%
if RUN:
    model = msdeform.load_model(RUN)
else:
    settings = {"preset": None, "augment": "flip", "batch_size": 8, "total_batch_size": 8, "warmup_steps": 50}
    settings |= {"workers": 0, "progress": False, "tensorboard": False, "pictures": 0}
    small = ["backbone=resnet10_tiny", "pre_norm=true", "focal=true", "num_queries=8", "enc_layers=2"]
    count = 8 if SMALL else 2000
    # first on small images, which are quick, then on those of the pictures below, whose maps are finer
    data = (Shapes(count, 0, SIDE // 2), Shapes(len(held_out), 1, SIDE // 2))
    coarse = settings | {"image_size": SIDE // 2, "max_steps": STEPS, "lr": 1e-3, "schedule": "constant"}
    run = msdeform.finetune(
        "detr_mini", data, out="made/detr-coarse", **coarse, backbone_weights="none", override=small
    )
    fine = settings | {"image_size": SIDE, "max_steps": -(-STEPS // 2), "lr": 5e-4, "schedule": "cosine"}
    model = msdeform.finetune(run.folder, (Shapes(count, 0), held_out), out="made/detr", **fine).model

image, _ = held_out[18 % len(held_out)]  # or the path of a photograph
trace = AttentionTrace(model, image)
found = trace.detections(confidence=0.25)[:3] or trace.detections(confidence=0)[:2]
for one in found:
    print(f"query {one.query}: {one.text}, box {', '.join(f'{value:.0f}' for value in one.box)}")

# %% [markdown]
# ## What is recorded
#
# `capture` records attention while a model runs, here of every layer. Each site has the weights after the softmax, for
# each head one matrix of queries x keys, whose rows add up to 1:

# %%
with capture(model, "*") as tape:
    model.predict(image)
for site, record in tape.items():
    batch, heads, queries, keys = record.weights.shape
    print(f"{site}: {heads} heads, {queries} queries x {keys} keys, rows add up to {record.weights.sum(-1).mean():.3f}")

height, width = trace.shapes[0]
print(f"the {height * width} tokens are a map of {height} x {width}")

# %% [markdown]
# ## Which tokens a query reads
#
# For each detection: above, its row of the last decoder layer's cross-attention, mean over heads, one square a token;
# below, its box.

# %%
pixels = trace.image.permute(1, 2, 0).numpy()
last = trace.cross_sites[-1]
maps = [row_map(trace.record(last), one.query).view(height, width) for one in found]
end = max(float(one.max()) for one in maps)

figure, axes = plt.subplots(2, len(found), figsize=(2.6 * len(found) + 1, 5), squeeze=False, layout="constrained")
for (above, below), one, tokens in zip(axes.T, found, maps, strict=True):
    drawn = above.imshow(tokens, vmin=0, vmax=end)
    above.set_title(f"query {one.query}")
    below.imshow(pixels, extent=(0, trace.width, trace.height, 0))
    draw_detection(below, one)
for one in axes.flat:
    one.set_axis_off()
figure.colorbar(drawn, ax=axes[0], label="attention")
display(figure)
plt.close(figure)

# %% [markdown]
# **What the picture shows.** In the committed picture the box is right and the class is wrong. The tokens that the
# query reads most are one at the corner of its box, and others on empty ground, far from it. Published pictures of
# trained DETRs show weights at the ends of an object, from which the box is read; this one has learned a part of that.
#
# **What it does not show.** A token is not the patch of the image below it. The backbone and the encoder have already
# mixed in what lies around, so a query can know of an object without reading the tokens on top of it.
#
# ## Heads
#
# The mean hides that heads differ. The same query, by layer and head, on the image and on one colour scale:

# %%
detection = found[0]
layers, heads = range(len(trace.cross_sites)), range(trace.sites[last].heads)
maps = [[heat_map(trace, detection, "raw", layer=layer, head=head) for head in heads] for layer in layers]
rows, columns = [f"decoder layer {n}" for n in layers], [f"head {n}" for n in heads]
display(draw_heat_grid(trace, maps, rows, columns, detection, "attention by layer and head").figure)

# %% [markdown]
# Now the mean comes apart. In the committed picture heads 1 and 3 of the last layer read the rim of the object, heads 0
# and 2 the ground. In layer 1 all heads read the left margin, where there is nothing. A head that reads the same place
# in every image says nothing about this object. One picture cannot tell; look at several images, or switch the head off
# ([heads_off](heads_off.ipynb)).
#
# ## Which tokens a token reads
#
# The encoder's self-attention. Four places of the image, each with the row of its token: the middle of up to two
# detections, and corners of the image.

# %%
centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in (one.box for one in found)]
places = [(min(max(x, 0), trace.width), min(max(y, 0), trace.height)) for x, y in centres[:2]]
corners = [(x * trace.width, y * trace.height) for x, y in ((0.88, 0.12), (0.88, 0.88), (0.12, 0.88))]
places = [*places, *corners][:4]
encoder = [name for name, site in trace.sites.items() if site.stack == "encoder"][-1]
rows = [row_map(trace.record(encoder), trace.token_at(x, y)).view(height, width) for x, y in places]
end = max(float(row.max()) for row in rows)

figure = plt.figure(figsize=(9, 5), layout="constrained")
axes = figure.subplot_mosaic([[0, "image", "image", 1], [2, "image", "image", 3]], width_ratios=[1, 0.9, 0.9, 1])
axes["image"].imshow(pixels, extent=(0, trace.width, trace.height, 0))
for number, ((x, y), row) in enumerate(zip(places, rows, strict=True)):
    colour = f"C{number + 1}"
    drawn = axes[number].imshow(row, vmin=0, vmax=end)
    axes[number].set_title(f"x {x:.0f}, y {y:.0f}", color=colour)
    axes["image"].plot(x, y, "o", color=colour, markersize=9, markeredgecolor="white")
    ends = {"xyA": (x, y), "axesA": axes["image"], "xyB": (width / 2, height / 2), "axesB": axes[number]}
    figure.add_artist(ConnectionPatch(**ends, coordsA="data", coordsB="data", color=colour, alpha=0.6))
for one in axes.values():
    one.set(xticks=[], yticks=[])
figure.colorbar(drawn, ax=[axes[1], axes[3]], label="attention", shrink=0.7)
display(figure)
plt.close(figure)

# %% [markdown]
# In DETRs that trained for long, a token on an object reads the tokens of that object: the encoder already separates
# objects. In the committed picture it does not: the token on the disc and the one in an empty corner read the same
# places. A map is no sign that something was learned.
#
# ## Row and column
#
# Pictures of "the attention of a point" mean one of two things. The **row** is what this token reads. The **column** is
# which tokens read this one. Published pictures of DETR's encoder often show the column. Here are both, for the first
# two places:

# %%
display(draw_encoder(trace, encoder, [(round(x), round(y)) for x, y in places[:2]]).figure)

# %% [markdown]
# Rows add up to 1, columns need not: a token that many others read has a large column.
#
# ## What to keep in mind
#
# - **Attention is not an explanation.** Weights say what is read, not what follows from it. The value that is read can
#   be of no use, and what matters can come past the attention through the residual connection.
# - **The mean over heads and the choice of a layer are choices.** Other choices make other pictures.
# - [Explanations](../explain.md#is-an-explanation-any-good) measures whether maps point at what the detector depends
#   on, for a Deformable DETR. There raw attention is good at finding the object, and almost the same after the decoder
#   got random weights again. So it says little about what the decoder learned.
# - [deformable_points](deformable_points.ipynb) asks the same of deformable attention, where a query reads a few points
#   in place of all tokens.
