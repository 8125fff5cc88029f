"""``msdeform demo``, which ``make demo`` runs: from nothing to a trained, evaluated and drawn detector.

Synthetic data, a small two-stage Deformable DETR from random weights, COCO's metrics on held-out images, predictions
beside ground truth, and the curves. A fixed number of steps from a fixed seed: a slow machine takes longer and gets
as far. The attention runs on `cpu`, and on a CUDA machine on the Triton kernels, by the same command.
"""

import time

import torch

from ...common.command_line import command
from ...common.device import choose_device
from ...common.files import write_json
from ..config.options import Batch, Compute, Input, Loading, Model, Optim, Run, Schedule, Source, TrainOptions
from ..data.loader import validation_data
from ..data.synthetic.options import SynthOptions
from ..data.synthetic.synth import make_dataset
from ..engine.checkpoint import load_trained
from ..engine.run import train
from ..evaluation.coco_metrics import coco_metrics
from ..evaluation.detect import detect
from ..monitor.curves import save_curves
from ..monitor.history import History
from ..visual.boxes import save_picture
from ..visual.sheets import predictions_beside_truth
from .options import DemoOptions

# the mini model's tensors are too small to share out among many cores
MAX_THREADS = 4
DRAWN_IMAGES = 8


def demo(options: DemoOptions) -> dict[str, float]:
    """Runs all of it; returns COCO's metrics on the held-out images."""
    begun = time.perf_counter()
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    data = options.out / f"data-{options.train_images}-{options.val_images}-{options.size}-seed{options.seed}"
    if not data.exists():
        make_dataset(SynthOptions(data, options.train_images, options.val_images, size=options.size, seed=options.seed))
    # for a small net from random weights, higher rates than published, warmed up and then cosine
    recipe = TrainOptions(
        source=Source(data=data),
        input=Input(image_size=options.size, augment="flip"),
        loading=Loading(workers=0, cache_images="pixels"),
        model=Model(model=options.model, attn_backend=options.attn_backend, backbone_weights="none"),
        batch=Batch(epochs=options.epochs, total_batch_size=8, batch_size=8, seed=options.seed),
        optim=Optim(lr=2e-3, lr_factor_offsets=0.5),
        schedule=Schedule("cosine", warmup_steps=100),
        compute=Compute(device=options.device),
        run=Run(out=options.out / f"training-{time.strftime('%Y%m%d-%H%M%S')}", eval_every=2),
    )
    run = train(recipe)

    trained = load_trained(run, device, options.attn_backend)
    validation = validation_data(Source(data=data), trained.options.input, trained.categories)
    results = detect(trained.model, validation, device)
    metrics = coco_metrics(validation.annotations.ground_truth(), results, validation.image_ids)

    pictures, curves = options.out / "predictions.png", options.out / "curves.png"
    names = [category.name for category in trained.categories]
    save_picture(
        predictions_beside_truth(trained.model, names, validation, validation.rows[:DRAWN_IMAGES].tolist()), pictures
    )
    save_curves([History.read(run)], curves, ("loss", "AP", "AP50"))
    minutes = (time.perf_counter() - begun) / 60
    print(f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on {len(validation)} held-out images")
    print(f"{minutes:.1f} minutes on {device} with the {trained.attn_backend} backend")
    print(f"predictions beside ground truth: {pictures}")
    print(f"loss and AP over training:       {curves}")
    print(f"checkpoint and log:              {run}")
    print(f"try: {command('predict', data / 'val2017', '--checkpoint', run)}")
    image = min((data / "val2017").iterdir())
    print(f"and: {command('explain', image, '--checkpoint', run, '--confidence', 0.3)}")
    return metrics


def run(options: DemoOptions) -> int:
    """``msdeform demo``."""
    metrics = demo(options)
    write_json(options.out / "metrics.json", metrics)
    return 0
