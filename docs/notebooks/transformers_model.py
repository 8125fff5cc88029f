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
# # Our operator in a model of transformers
#
# `msdeform.accelerate(model)` finds the deformable attention in a model that you have and computes it with this
# package's operator. This notebook does it to a Deformable DETR of transformers, reads the report, compares the
# outputs, measures the time, and undoes it.
#
# - **It needs** a CPU, no download, and `pip install transformers`. The model has random weights and a small backbone:
#   what it finds means nothing, but it computes the same operations as a trained one.
# - **With trained weights**, write
#   `transformers.DeformableDetrForObjectDetection.from_pretrained("SenseTime/deformable-detr")`, which downloads them.

# %%
# %matplotlib inline
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from IPython.display import display

import msdeform

SMALL = os.environ.get("MSDEFORM_NOTEBOOK_SMALL") == "1"  # for the test of this notebook: a tiny image, one repetition
SIDE, REPEATS = (64, 1) if SMALL else (512, 7)

# %% [markdown]
# ## A model

# %%
torch.manual_seed(0)
backbone = transformers.ResNetConfig(
    embedding_size=16,
    hidden_sizes=[16, 32, 64, 128],
    depths=[1, 1, 1, 1],
    layer_type="basic",
    out_features=["stage2", "stage3", "stage4"],
)
config = transformers.DeformableDetrConfig(
    backbone_config=backbone,
    use_timm_backbone=False,
    backbone=None,
    d_model=128,
    encoder_layers=2,
    decoder_layers=2,
    encoder_ffn_dim=256,
    decoder_ffn_dim=256,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    num_queries=100,
    auxiliary_loss=False,
)
model = transformers.DeformableDetrForObjectDetection(config).eval()
image = torch.randn(1, 3, SIDE, SIDE)
print(f"{sum(one.numel() for one in model.parameters()):,} parameters, one image of {SIDE} x {SIDE}")

with torch.no_grad():
    before = model(image)

# %% [markdown]
# ## One line, and its report
#
# A place is found by what a module is or calls, not by the model's name. Each is tried on a small example, and replaced
# only if the results are equal. What is not replaced is listed with the reason.

# %%
report = msdeform.accelerate(model)
print(report)

# %% [markdown]
# ## The same outputs
#
# Another order of the same sums rounds otherwise, so in float32 outputs agree to some digits; in float64 to many more.

# %%
with torch.no_grad():
    after = model(image)


def largest_difference(one, other) -> float:
    """Of logits and boxes, as a share of the largest number of each."""
    pairs = [(one.logits, other.logits), (one.pred_boxes, other.pred_boxes)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


print(f"float32: {largest_difference(before, after):.1e}")

model.double()
with torch.no_grad():
    exact_after = model(image.double())
report.undo()
with torch.no_grad():
    exact_before = model(image.double())
print(f"float64: {largest_difference(exact_before, exact_after):.1e}")
_ = model.float()

# %% [markdown]
# ## The time
#
# We measure in turns, theirs and ours, so that a busy moment of the machine hits both, and look at the ratio of each
# turn. Milliseconds belong to a machine; a ratio carries over better, but it too depends on the processor, the image
# and the model.


# %%
def seconds() -> float:
    """One forward pass."""
    start = time.perf_counter()
    with torch.no_grad():
        model(image)
    return time.perf_counter() - start


def turn() -> tuple[float, float]:
    """Seconds without and with our operator, each after a pass to warm up."""
    seconds()
    theirs = seconds()
    with msdeform.accelerate(model):  # undone at the end of the block
        seconds()
        return theirs, seconds()


turns = np.array([turn() for _ in range(REPEATS)])
ratios = turns[:, 0] / turns[:, 1]
print(f"transformers' time / ours: median {np.median(ratios):.2f}, from {ratios.min():.2f} to {ratios.max():.2f}")

# %%
figure, axes = plt.subplots(figsize=(5, 2.2), layout="constrained")
axes.plot(ratios, np.zeros(len(ratios)), "o", alpha=0.6)
axes.axvline(1, color="0.6", linestyle="--")
axes.axvline(np.median(ratios), color="C1", label=f"median {np.median(ratios):.2f}")
axes.set(yticks=[], xlim=(0, max(1.1, 1.15 * ratios.max())), xlabel="transformers' time / ours, of one forward pass")
axes.set_title(f"{len(ratios)} turns; right of the dashed line ours is faster")
axes.legend(frameon=False)
display(figure)
plt.close(figure)

# %% [markdown]
# This is the time of the whole model on the machine that made these outputs, which other work shared: a sketch, not a
# benchmark. How much is gained depends on the share of the attention in the model. [Speed](../integrations.md#speed)
# has whole models as their libraries configure them, with the method and intervals.
#
# ## Undo
#
# `undo()` puts back what was there, and the outputs are those of before, to the bit:

# %%
report = msdeform.accelerate(model)
report.undo()
with torch.no_grad():
    again = model(image)
print("logits equal to the bit:", torch.equal(before.logits, again.logits))
print("boxes equal to the bit:", torch.equal(before.pred_boxes, again.pred_boxes))

# %% [markdown]
# ## What to know
#
# - Parameters, state dict and configuration stay as they are. `save_pretrained` writes nothing of ours; call
#   `accelerate` again after loading.
# - The model can be trained after it: the operator has its own backward.
# - `msdeform.accelerate(model, "reference")` names a backend; `auto`, the default, takes the fastest that runs here.
# - [In models you already have](../integrations.md) lists the architectures, and what differs.
