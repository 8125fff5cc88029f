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
# # Where deformable attention samples
#
# In dense attention a query looks at every pixel of the feature map. In deformable attention it looks at a few points
# only: for each head and each feature level it computes where they lie and how much each counts.
#
# This notebook takes one detection and shows its points: all of them, by decoder layer and head, and by level. Then it
# shows the reference that the points lie around, and how each decoder layer refines it.
#
# - **It needs** a CPU and no download. It trains a small detector on synthetic shapes in about a minute.
# - **With a detector of yours**, set `MSDEFORM_RUN` to the folder of its training run before you start Jupyter. The
#   committed pictures were made so, with the run of `msdeform demo`.
# - **With published weights**, write `model = msdeform.from_pretrained("deformable_detr_r50_two_stage")`, which
#   downloads them, and give `AttentionTrace` a photograph.

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from torchvision.ops import box_convert, box_iou

import msdeform
from msdeform.cli import main
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import canvas, draw_detection
from msdeform.explain.figures.points import draw_point_grid, draw_points
from msdeform.explain.figures.trajectories import draw_journey, draw_seeds

SMALL = os.environ.get("MSDEFORM_NOTEBOOK_SMALL") == "1"  # for the test of this notebook: too short to learn anything
RUN = os.environ.get("MSDEFORM_RUN")  # the folder of a training run
SHAPES = Path("made/shapes-small" if SMALL else "made/shapes")

# %% [markdown]
# ## A detector and an image
#
# The detector is a small two-stage Deformable DETR: three feature levels, one encoder layer, three decoder layers, four
# heads, and two points for each head and level. The image is one that it was not trained on.

# %%
if not SHAPES.exists():
    train = 8 if SMALL else 300
    main(f"data synth --out {SHAPES} --train {train} --val 12 --size 96 --seed 7 --no-progress".split())

if RUN:
    model = msdeform.load_model(RUN)
else:
    settings = {"preset": None, "image_size": 96, "augment": "flip", "backbone_weights": "none"}
    settings |= {"batch_size": 8, "total_batch_size": 8, "lr": 2e-3, "lr_factor_offsets": 0.5, "schedule": "cosine"}
    settings |= {"max_steps": 2} if SMALL else {"epochs": 10, "warmup_steps": 50, "eval_every": 10}
    settings |= {"workers": 0, "cache_images": "pixels", "progress": False, "tensorboard": False}
    model = msdeform.finetune("deformable_detr_mini", SHAPES, out="made/points", **settings).model

image = sorted((SHAPES / "val2017").iterdir())[4]  # or the path of a photograph
trace = AttentionTrace(model, image)
found = trace.detections(confidence=0.4) or trace.detections(confidence=0)[:1]

figure, axes = canvas(trace)
for one in reversed(found):
    draw_detection(axes[0, 0], one)
display(figure)

# %% [markdown]
# `AttentionTrace` runs the model once and records every attention. Everything below is asked of this record.
#
# If you trained the detector here, in a minute, its scores are low and some boxes are wrong. The points are still those
# that this detector used.
#
# ## All points of one detection
#
# We take the detection with the highest score, and the last decoder layer.

# %%
detection = found[0]
last = trace.cross_sites[-1]
display(draw_points(trace, detection, last).figure)

# %% [markdown]
# **What the picture shows.** Each marker is one sampled point. Its shape says which feature level was read, its colour
# and size say how much it counts. The white cross is the reference: the middle of the box that the layer started from.
# Where this box differs from the detection's, it is dotted. The points lie in and around it, because offsets are
# learned in units of its size.
#
# **What it does not show.** A point reads a feature of a deep network, which has already seen a wide area around that
# place. And a weight says how much of a value is taken, not what the value does to the score.
#
# The numbers behind the picture:

# %%
points = trace.points(last, detection.query)
heads, levels, per_level, _ = points.xy.shape
print(f"{heads} heads x {levels} levels x {per_level} points = {heads * levels * per_level} points")
print(f"levels (height, width): {', '.join(str(tuple(shape)) for shape in trace.shapes)}")
print(f"weights of head 0, which add up to {points.weights[0].sum():.3f}:")
print(np.array2string(points.weights[0].numpy(), precision=3, suppress_small=True))

# %% [markdown]
# ## Layer by layer, head by head

# %%
display(draw_point_grid(trace, detection, trace.cross_sites, by="layers x heads").figure)

# %% [markdown]
# Each row is a decoder layer, each column a head. The heads look in different directions from the reference: they are
# initialised so (the bias of the offsets points each head another way), and training keeps much of it. So a direction
# that one head prefers need not be about this object. `Mask(..., mode="frozen")` tests that: it keeps the bias alone.
#
# ## Levels
#
# Level 0 is the finest map, the last level the coarsest. First where each level is read, then which share of the weight
# each has.

# %%
display(draw_point_grid(trace, detection, trace.cross_sites, by="layers x levels").figure)

# %%
shares = torch.stack([trace.points(site, detection.query).weights.sum((0, 2)) for site in trace.cross_sites])
shares = shares / shares.sum(1, keepdim=True)

figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
left = torch.zeros(len(shares))
for level, (height, width) in enumerate(trace.shapes):
    axes.barh(range(len(shares)), shares[:, level], left=left, label=f"level {level} ({height} x {width})")
    left += shares[:, level]
axes.set(yticks=range(len(shares)), yticklabels=[f"decoder layer {n}" for n in range(len(shares))], xlim=(0, 1))
axes.set(xlabel="share of the attention weight", title=f"{detection.text}: which levels are read")
axes.invert_yaxis()
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=len(trace.shapes), frameon=False)
display(figure)
plt.close(figure)

# %% [markdown]
# In the committed picture nearly all weight is on the finest level: this detector was trained on images of 96 pixels,
# where even large objects cover few pixels of the coarser maps. Detectors of photographs use all levels.
#
# ## The reference, and how it is refined
#
# In a two-stage detector the encoder's pixels compete first: each proposes a box and a score, and the best become
# queries. This picture shows from which pixel each detection started:

# %%
if trace.tape.seeds is not None:  # of a detector with one stage the queries are learned
    display(draw_seeds(trace, confidence=min(0.4, detection.score)).figure)

# %% [markdown]
# Then every decoder layer reads around the box, predicts a correction, and hands the corrected box on as the reference
# of the next layer. Of all detections, this is the one whose box changed most:

# %%
if model.config.with_box_refine:
    starts = box_convert(trace.references[0], "cxcywh", "xyxy") if model.config.two_stage else trace.layer_boxes[0]
    kept = box_iou(starts, trace.layer_boxes[-1]).diagonal()
    changed = min(found, key=lambda one: kept[one.query])
    print(f"IoU of the first reference of query {changed.query} with its last box: {kept[changed.query]:.2f}")
else:
    changed = detection
display(draw_journey(trace, changed).figure)

# %%
print("layer  score  box (x1 y1 x2 y2)           points within the reference box")
for layer, site in enumerate(trace.cross_sites):
    points = trace.points(site, changed.query)
    inside = "-"
    if len(points.reference) == 4:
        distance = (points.xy - points.reference[:2]).abs() / (points.reference[2:] / 2)
        inside = f"{(distance <= 1).all(-1).float().mean():.0%}"
    box = " ".join(f"{value:6.1f}" for value in trace.layer_boxes[layer, changed.query].tolist())
    print(f"{layer:5}  {trace.layer_scores[layer, changed.query, changed.label]:5.2f}  {box}  {inside:>6}")

# %% [markdown]
# In the committed picture the first layer does most of the correction, and the later ones change little: the proposal
# was good already. A detector that does not refine boxes keeps one reference point through all layers.
#
# ## Which way would a point have to move?
#
# The operator is differentiable in its locations; this is how the offsets are learned. The arrows show in which
# direction moving a point would raise the score of the class:

# %%
display(draw_points(trace, detection, last, slopes="class").figure)

# %% [markdown]
# Long arrows at points with small weight are rare: a point that counts little can change little. The arrows are
# derivatives, so they hold for small moves only.
#
# ## What to keep in mind
#
# Sampled points show where a layer reads. They do not show why the detector decides as it does: a point may be read
# and have no effect. [Explanations](../explain.md#is-an-explanation-any-good) measures how good such pictures are
# beside simple baselines; the box of the detection alone is a strong one. The notebook [heads_off](heads_off.ipynb)
# switches parts of the attention off and looks at what changes, which is a stronger test than looking at it.
