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
# # Heads switched off
#
# A picture of attention shows where a layer reads. It does not show whether the detection depends on it. To learn that,
# switch a part off and look at what changes. This notebook does so with the heads of the decoder's cross-attention, for
# one image:
#
# 1. heads off one after the other, in all layers: which boxes remain;
# 2. the relevance map of one detection as its heads go;
# 3. its score and its box, in numbers;
# 4. every head of every layer alone.
#
# - **It needs** a CPU and no download. It trains a small detector on synthetic shapes in about a minute.
# - **With a detector of yours**, set `MSDEFORM_RUN` to the folder of its training run before you start Jupyter. The
#   committed pictures were made so, with the run of `msdeform demo`.
# - **With published weights**, write `model = msdeform.from_pretrained("deformable_detr_r50_two_stage")`, which
#   downloads them, and name a photograph.

# %%
# %matplotlib inline
import os
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from torchvision.ops import box_iou

import msdeform
from msdeform.cli import main
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace, QueryPrediction
from msdeform.explain.figures.masked import cumulative_masks, draw_masked_relevance, draw_remaining, follow, variants

SMALL = os.environ.get("MSDEFORM_NOTEBOOK_SMALL") == "1"  # for the test of this notebook: too short to learn anything
RUN = os.environ.get("MSDEFORM_RUN")  # the folder of a training run
SHAPES = Path("made/shapes-small" if SMALL else "made/shapes")

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
    model = msdeform.finetune("deformable_detr_mini", SHAPES, out="made/heads", **settings).model

image = sorted((SHAPES / "val2017").iterdir())[8]  # or the path of a photograph

# %% [markdown]
# ## 1. Which boxes remain
#
# A `Mask` names what is changed: here `decoder.*.cross` with heads 0; 0 and 1; and so on, in every decoder layer. A
# head that is off has weights of zero after the softmax. Its share is not given to the other heads, so the sum of the
# layer's output becomes smaller. That is the same as setting the head's columns of the output projection to zero.

# %%
CONFIDENCE = 0.01 if SMALL else 0.4
masks = cumulative_masks(model)
for name, some in masks:
    print(f"{name}: {' + '.join(map(str, some))}")

made = variants(model, image, masks, confidence=CONFIDENCE)
display(draw_remaining(made, CONFIDENCE).figure)

# %% [markdown]
# The first picture is the detector as it is. With all heads off the decoder sees no image at all: its queries know only
# where they started and what the other queries are.
#
# ## 2. Relevance as heads go
#
# Relevance (Chefer et al. 2021) multiplies each layer's attention with the derivative of the score. There is a picture
# for each mask, of all layers together, cut out around the detection. Above it stand what became of the detection, and
# the map's total over that of all heads on.

# %%
before = made[0].trace
detection = (made[0].found or before.detections(0))[0]
display(draw_masked_relevance(made, detection, CONFIDENCE).figure)

# %% [markdown]
# All pictures share one colour scale, in units of each map's own mean: it compares shapes. In the committed picture the
# map stays on the object while the score falls, and its total does not fall as the score does; it may even become
# larger. So a map of relevance says where the score comes from, not how high it is: derivatives tell what a small
# change would do. With all heads off there is nothing left to multiply, and the map is zero.
#
# ## 3. Score and box in numbers
#
# The order in which heads go matters: the first head off may be the one that counted, or one that did not. So we also
# try every set of heads of each size, and show the best and the worst.


# %%
def after(masks: list[Mask]) -> tuple[float, float]:
    """The score of the detection's class, and the IoU of its box with the box before, under the masks."""
    trace = AttentionTrace(model, image, masks=masks)
    now: QueryPrediction = trace.prediction(follow(before, trace, detection), detection.label)
    return now.score, float(box_iou(torch.tensor([detection.box]), torch.tensor([now.box])))


heads = before.sites[before.cross_sites[0]].heads
in_order = [after([]), *(after(some) for _, some in masks)]
every = {size: [after([Mask(heads=some)]) for some in combinations(range(heads), size)] for size in range(1, heads)}
every |= {0: [in_order[0]], heads: [in_order[-1]]}

print("heads off  score  IoU with the box before")
for count, (score, overlap) in enumerate(in_order):
    print(f"{count:9}  {score:5.2f}  {overlap:.2f}")

# %%
figure, both = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for which, axes, title in zip((0, 1), both, ("score", "IoU with the box before"), strict=True):
    spread = [[one[which] for one in every[size]] for size in range(heads + 1)]
    axes.fill_between(range(heads + 1), list(map(min, spread)), list(map(max, spread)), alpha=0.25, label="any heads")
    axes.plot([one[which] for one in in_order], "o-", label="heads 0, 1, ... in order")
    axes.set(title=f"{detection.name}: {title}", xlabel="heads off in all layers", xticks=range(heads + 1), ylim=(0, 1))
both[0].legend(frameon=False)
display(figure)
plt.close(figure)

# %% [markdown]
# The band is what other choices of the same number of heads would have given. Where it is wide, one curve alone says
# little about "how many heads the detector needs".
#
# In the committed picture the score falls to almost nothing, and the box stays where it is. In a two-stage detector the
# box comes from the encoder's proposal, which no mask on the decoder touches; the decoder decides what the object is.
#
# ## 4. Each head alone
#
# Now one head of one layer at a time, and the change of the score:

# %%
change = torch.tensor(
    [[after([Mask(site, heads=(head,))])[0] - detection.score for head in range(heads)] for site in before.cross_sites]
)
end = max(float(change.abs().max()), 1e-3)

figure, axes = plt.subplots(figsize=(1.1 * heads + 2.5, 0.7 * len(change) + 1.2), layout="constrained")
drawn = axes.imshow(change, cmap="RdBu", vmin=-end, vmax=end)
for layer, row in enumerate(change.tolist()):
    for head, value in enumerate(row):
        ink = "white" if abs(value) > 0.6 * end else "black"
        axes.text(head, layer, f"{value:+.3f}", ha="center", va="center", color=ink)
axes.set(xticks=range(heads), xticklabels=[f"head {n}" for n in range(heads)], yticks=range(len(change)))
axes.set(yticklabels=[f"layer {n}" for n in range(len(change))], title=f"{detection.text}: score, with one head off")
figure.colorbar(drawn, label="change of the score")
display(figure)
plt.close(figure)

# %% [markdown]
# Red heads supported this detection; without a blue one its score would be higher. In the committed picture one head of
# the first layer counts more than all others. The changes of single heads do not add up to that of all heads: heads do
# part of each other's work, and later layers depend on earlier ones.
#
# ## What to keep in mind
#
# - **This is one detection in one image.** `msdeform ablate --checkpoint RUN --data DIR --matrix --cumulative` measures
#   the change of AP over a data set, with intervals. See
#   [heads off, over a data set](../explain.md#heads-off-over-a-data-set).
# - **A detector with heads off is another detector.** It was never trained so, and later layers get inputs that they
#   have not met. A large change may come from that alone. `mode="mean"`, which puts the head's mean output in its
#   place, is the milder test; it needs a data set.
# - **In a two-stage detector, queries are followed by the encoder's pixel that they came from.** Masks on the decoder
#   leave that choice as it is.
