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
# # Train on your own data
#
# From a folder of images with boxes to a detector in a file: check the data, look at it, train, read the curves,
# evaluate on images that were held out, choose a threshold, look at what is found, and export.
#
# - **It needs** a CPU and no download: a data set of synthetic shapes stands for your photographs. Training takes about
#   a minute. Exporting needs `pip install onnx onnxscript onnxruntime`.
# - **With your data**, set `DATA` to your folder. COCO, YOLO and Pascal VOC are recognised;
#   [Data](../data.md#layouts) shows the layouts. Images that nobody divided into training and validation need
#   `val_share=0.2`.
# - **What to start from.** For photographs start from published weights:
#   `msdeform.finetune("deformable_detr_r50_two_stage", data=DATA)` downloads them. Here training starts from the run
#   that `MSDEFORM_RUN` names, or from random weights. The committed pictures started from the run of `msdeform demo`,
#   which knows five of the eight classes below.

# %%
# %matplotlib inline
import os
from pathlib import Path

import torch
from IPython.display import Image, display

import msdeform
from msdeform.cli import main
from msdeform.models.export.runtime import ExportedDetector

SMALL = os.environ.get("MSDEFORM_NOTEBOOK_SMALL") == "1"  # for the test of this notebook: too short to learn anything
START = os.environ.get("MSDEFORM_RUN")  # the folder of a training run
DATA = Path("made/yours-small" if SMALL else "made/yours")

if not DATA.exists():
    sizes = "--train 8 --val 4" if SMALL else "--train 240 --val 40"
    main(f"data synth --out {DATA} {sizes} --classes 8 --size 96 --seed 11 --no-progress".split())

# %% [markdown]
# ## 1. Check it
#
# Mistakes in the annotations cost more than any setting. This command lists what looks like one: boxes outside the
# image, duplicates, classes with few examples, and so on.

# %%
_ = main(f"data check {DATA}".split())

# %% [markdown]
# ## 2. Look at it
#
# The images as training sees them, with their boxes:

# %%
_ = main(f"data show --data {DATA} --out made/looked --count 6 --image-size 96 --augment flip --no-progress".split())
display(Image("made/looked/images.png", width=700))

# %% [markdown]
# ## 3. Train
#
# All settings of `msdeform train` go by their names. A callback sees every step and every evaluation; this one prints
# the AP, and could end the run by returning `True`.


# %%
class Printer(msdeform.Callback):
    """Prints the result of every evaluation."""

    def on_evaluation(self, event):
        print(f"epoch {event.epoch}: AP {event.metrics['AP']:.3f}, AP50 {event.metrics['AP50']:.3f}")


settings = {"preset": None, "image_size": 96, "augment": "flip", "batch_size": 8, "total_batch_size": 8}
settings |= {"max_steps": 2} if SMALL else {"epochs": 8, "warmup_steps": 20, "schedule": "cosine", "eval_every": 2}
settings |= {"workers": 0, "cache_images": "pixels", "progress": False, "tensorboard": False}
if START:
    model, settings = START, settings | {"lr": 1e-3}
else:
    model = "deformable_detr_tiny" if SMALL else "deformable_detr_mini"
    settings |= {"lr": 2e-3, "lr_factor_offsets": 0.5, "backbone_weights": "none"}

run = msdeform.finetune(model, DATA, out="made/trained", callbacks=[Printer()], **settings)
print(f"best AP: {run.metrics['best']['AP']:.3f}, at step {run.metrics['best']['step']}")

# %% [markdown]
# ## 4. Curves

# %%
display(run.plot(curves=["loss", "AP", "AP50"]))

# %% [markdown]
# Read the two together. A loss that falls while AP stands still means that the detector learns its training images by
# heart. A loss that does not fall means a learning rate that is wrong, or annotations that are.
#
# ## 5. Evaluate
#
# On the validation images, by class, with the errors by kind. AP answers how good the detector is over all thresholds;
# the second table answers what you get at one.

# %%
pictures = "made/errors.png"
_ = main(f"eval --checkpoint made/trained --per-class --workers 0 --no-progress --pictures {pictures}".split())

# %% [markdown]
# Forty images are few. `--intervals` says within which range AP would lie for other images of the same kind, and
# [Evaluation](../evaluation.md) explains every column.
#
# ## 6. Threshold
#
# A detector gives every query a score. Which ones count is your decision. Training stores for each class the score with
# the highest F1, and `predict` takes it unless you say otherwise:

# %%
detector = run.model
print("class      minimum score")
for name, threshold in zip(detector.categories, detector.thresholds or [], strict=False):
    print(f"{name:10} {threshold:.2f}")

images = sorted((DATA / "val2017").iterdir())
for confidence in (0.1, 0.3, 0.5, None):
    count = sum(len(found) for found in detector.predict_each(images, confidence=confidence))
    chosen = "the stored ones" if confidence is None else confidence
    print(f"minimum score {chosen}: {count} detections in {len(images)} images")

# %% [markdown]
# A lower threshold finds more objects and makes more mistakes. If a missed object costs more than a false one, go lower
# than F1 suggests.
#
# ## 7. Look at what it finds
#
# Step 5 drew four images that nobody chose, objects beside detections. The key names the kinds of errors, which are
# those of the table:

# %%
display(Image(pictures, width=700))

# %% [markdown]
# Numbers do not show what kind of object is missed; these pictures do. `msdeform eval --report report.html` has the
# images with most errors.
#
# ## 8. Export
#
# The file runs in onnxruntime and OpenVINO, without this package. Before it is kept it is run beside the model, and the
# largest difference is printed.

# %%
size = "--size 96x96 --dynamic none --checks 2 --no-progress"
_ = main(f"export made/trained made/detector.onnx {size}".split())

# %%
exported = ExportedDetector("made/detector.onnx")
ours, theirs = (one.predict(images[0], confidence=0.0) for one in (detector, exported))
print(f"{exported.engine}: surest detection {theirs.names[0]} {theirs.scores[0]:.3f}")
print(f"PyTorch: surest detection {ours.names[0]} {ours.scores[0]:.3f}")
print(f"largest difference of {len(ours)} scores: {torch.abs(ours.scores - theirs.scores).max():.1e}")

# %% [markdown]
# ## Next
#
# - `msdeform serve made/trained` answers HTTP: [Serving](../serving.md).
# - [Training](../training.md) has the settings, several processes, and how to resume; `run.resume(epochs=20)` goes on.
# - [Photographs](../photographs.md) is a real data set from start to end, with what was gained by which setting.
