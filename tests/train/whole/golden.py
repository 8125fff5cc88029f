"""A small training whose losses are kept beside this file, to be had again by every backend and on every machine.

``python -m tests.train.whole.golden`` writes golden.json anew, when what is computed was meant to change.
"""

import json
import tempfile
from pathlib import Path

import torch

from msdeform.kernels.diagnostics.options import AttnBackend
from msdeform.models.zoo import create_model
from msdeform.train.config.options import (
    Batch,
    Compute,
    Input,
    Loading,
    Logging,
    Model,
    Optim,
    Run,
    Schedule,
    Source,
    TrainOptions,
)
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.synth import make_dataset
from msdeform.train.engine.run import run_steps

FILE = Path(__file__).with_name("golden.json")
STEPS = 10
# between machines, whose float64 sums differ in their last bits, which Adam amplifies
BOUND = 1e-6
# on one machine; float64, because Adam blows rounding up: float32 runs drift apart by 1e-3, and a gradient that is 1%
# off takes them no further (test_training.py shows that such a one breaks this)
SAME_MACHINE = 1e-10


def start_weights(path: Path, num_classes: int) -> Path:
    """Weights whose samples lie off the pixels' centres, where the published initialisation puts them all.

    Bilinear sampling has kinks there, and rounding decides which of two gradients a backend takes.
    """
    torch.manual_seed(0)
    model = create_model("deformable_detr_tiny", num_classes=num_classes, attn_backend="reference").double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter.add_(torch.empty_like(parameter).uniform_(0.1, 0.4))
    torch.save(model.state_dict(), path)
    return path


def golden_options(folder: Path, backend: AttnBackend = "reference") -> TrainOptions:
    """Ten steps of two images, in float64, with warm-up and without dropout."""
    data = folder / "data"
    if not data.exists():
        make_dataset(SynthOptions(data, train=20, val=4, size=64, classes=3, seed=7, workers=1, progress=False))
        start_weights(folder / "weights.pt", 3)
    return TrainOptions(
        source=Source(data=data),
        input=Input(image_size=64, augment="flip"),
        loading=Loading(workers=0),
        model=Model(
            "deformable_detr_tiny", ("backbone_frozen=true",), backend, "none", init_from=folder / "weights.pt"
        ),
        batch=Batch(total_batch_size=2, max_steps=STEPS),
        optim=Optim(lr=1e-3, lr_factor_offsets=1.0),
        schedule=Schedule("cosine", warmup_steps=3),
        compute=Compute(device="cpu", precision="fp64", timeout=2.0),
        run=Run(out=folder / "run", dry_steps=0),
        logging=Logging(log_every=1, tensorboard=False, progress=False, pictures=0),
    )


def golden_losses() -> list[float]:
    """Those that are kept."""
    return json.loads(FILE.read_text())["losses"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = run_steps(golden_options(Path(folder)), STEPS)
    FILE.write_text(json.dumps({"torch": torch.__version__, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
