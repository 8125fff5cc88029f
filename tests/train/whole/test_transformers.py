"""Detectors of transformers, tiny and without a network, through all of ``msdeform train`` and what follows it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

import msdeform  # noqa: E402
from msdeform.cli import main  # noqa: E402
from msdeform.integrations.detectors import detector  # noqa: E402
from msdeform.integrations.detectors.detector import TransformersDetector  # noqa: E402
from msdeform.models.inference.image_size import ExactSize  # noqa: E402
from msdeform.models.weights import hub  # noqa: E402
from msdeform.train.api import Run  # noqa: E402
from msdeform.train.commands.options import ReplayOptions  # noqa: E402
from msdeform.train.commands.replay import replay  # noqa: E402
from msdeform.train.config.options import TrainOptions  # noqa: E402
from msdeform.train.config.resolve import resolve  # noqa: E402
from msdeform.train.engine.build import with_model_of_start  # noqa: E402
from msdeform.train.engine.checkpoint import load_checkpoint, load_trained, save_checkpoint  # noqa: E402
from msdeform.train.engine.run import run_steps, train  # noqa: E402
from msdeform.train.engine.state import Training  # noqa: E402
from tests.integrations.architectures import make  # noqa: E402

SIDES = {"lw_detr": 96, "deformable_detr": 96}
"""of images, where they are not of 64 pixels"""
FAMILIES = [
    "rt_detr_v2",
    "lw_detr",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("d_fine", "deimv2", "deformable_detr")),
]

Change = Callable[..., TrainOptions]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model's folder, as transformers writes it, with an image processor for squares; 5 classes."""

    def write(name: str) -> Path:
        out = tmp_path_factory.getbasetemp() / "of_transformers" / name
        if not out.exists():
            side = SIDES.get(name, 64)
            processor = transformers.RTDetrImageProcessor(size={"height": side, "width": side}, do_normalize=False)
            make(name, torch.float32).save_pretrained(out)
            processor.save_pretrained(out)
        return out

    return write


@pytest.fixture
def started(changed: Change, folder_of: Callable[[str], Path]) -> Change:
    """The small run, started from a model of transformers."""

    def start(name: str, **settings: Any) -> TrainOptions:
        usual = {"model": "transformers", "override": (), "init_from": folder_of(name), "image_size": None}
        return with_model_of_start(changed(**{**usual, **settings}))

    return start


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(out)
    return {**state["model"], **{f"ema {name}": tensor for name, tensor in state["ema"]["weights"].items()}}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_resumes_to_the_bit_and_goes_back_to_transformers(
    started: Change, shapes: Path, tmp_path: Path, name: str
) -> None:
    denoising = () if name in ("lw_detr", "deformable_detr") else ("num_denoising=8",)
    options = started(name, override=denoising, ema=0.9, total_batch_size=4, batch_size=2, out=tmp_path / "whole")
    side = SIDES.get(name, 64)
    assert (options.model.model, options.input.size) == ("transformers", ExactSize(side, side))
    whole = train(options)
    assert torch.isfinite(torch.tensor(losses_of(whole))).all()

    stopped = started(name, override=denoising, ema=0.9, total_batch_size=4, batch_size=2, out=tmp_path / "stopped")
    train(
        dataclasses.replace(stopped, run=dataclasses.replace(stopped.run, checkpoint_every=1), batch=one_step(stopped))
    )
    again = dataclasses.replace(stopped, run=dataclasses.replace(stopped.run, resume=tmp_path / "stopped"))
    train(again)
    assert losses_of(tmp_path / "stopped") == losses_of(whole)
    first, second = weights_of(whole), weights_of(tmp_path / "stopped")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())

    usual = ["--device", "cpu", "--attn-backend", "reference", "--no-progress"]
    assert main(["eval", "--checkpoint", str(whole), "--data", str(shapes), "--workers", "0", *usual]) == 0
    photographs, pictures = str(shapes / "val2017"), str(tmp_path / "pictures")
    assert main(["predict", photographs, "--checkpoint", str(whole), "--out", pictures, *usual]) == 0
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4

    assert main(["convert", str(whole), str(tmp_path / "back"), "--to", "huggingface"]) == 0
    ours = Run(whole).model
    theirs = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "back").eval()
    assert theirs.config.id2label == dict(enumerate(["disc", "square", "triangle"]))
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(pixel_values=ours.settings.convert(images, torch.zeros(2, side, side, dtype=torch.bool)))
        found = ours(images)
    torch.testing.assert_close(found["pred_logits"], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, rtol=0, atol=1e-5)
    loaded = TransformersDetector.from_pretrained(tmp_path / "back")
    assert (loaded.settings, loaded.categories) == (ours.settings, ours.categories)


def one_step(options: TrainOptions) -> Any:
    return dataclasses.replace(options.batch, max_steps=1)


def test_it_learns_the_images_it_sees(started: Change) -> None:
    options = started("rt_detr_v2", overfit=2, total_batch_size=2, epochs=2, lr=3e-3, schedule="constant", clip=1.0)
    losses = run_steps(options, 25)
    assert losses[-1] < 0.8 * losses[0]


def words(shapes: Path, *rest: object) -> list[str]:
    usual = ["--data", str(shapes), "--device", "cpu", "--attn-backend", "reference", "--workers", "0"]
    usual += ["--no-progress", "--no-tensorboard", "--dry-steps", "0", "--pictures", "0", "--max-steps", "1"]
    return ["train", *usual, *map(str, rest)]


def test_the_command_takes_the_model_and_its_size_from_the_folder(
    folder_of: Callable[[str], Path], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("rt_detr_v2")
    start = ["--preset", "finetune", "--init-from", folder, "--total-batch-size", "2", "--out", tmp_path / "run"]
    assert main(words(shapes, *start)) == 0
    state = load_checkpoint(tmp_path / "run")
    assert state["model_config"]["config"]["model_type"] == "rt_detr_v2"
    assert (state["options"]["input"]["image_size"], state["options"]["input"]["square"]) == (64, True)
    # the run is repeated by its settings, and a start itself
    again = resolve(["--config", str(tmp_path / "run" / "config.yaml")])
    assert (again.model.model, again.input.size) == ("transformers", ExactSize(64, 64))
    second = ["--init-from", tmp_path / "run", "--image-size", "96", "--total-batch-size", "2"]
    assert main(words(shapes, *second, "--out", tmp_path / "second")) == 0
    loaded = Run(tmp_path / "second").model
    assert (loaded.input_size, loaded.categories) == (ExactSize(96, 96), ["disc", "square", "triangle"])
    assert TransformersDetector.from_pretrained(tmp_path / "second").input_size == ExactSize(96, 96)
    with pytest.raises(ValueError, match=r"is a detector of transformers; .*from_pretrained loads it"):
        msdeform.load_model(tmp_path / "second")
    capsys.readouterr()
    named = ["--model", "transformers"]
    for asked, told in (
        (
            ["--model", "detr_tiny"],
            f"--model: {folder} is a detector of transformers, not detr_tiny; leave --model out",
        ),
        (
            [*named, "--override", "num_querys=3"],
            "--override: num_querys is not a field of the configuration of rt",
        ),
        ([*named, "--override", "d_model=8"], "; --override has changed its structure"),
    ):
        assert main(words(shapes, "--init-from", folder, *asked, "--out", tmp_path / "third")) == 1
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words(shapes, "--model", "transformers"))
    assert "model: transformers stands for the detector of some weights" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_finetune_takes_the_folder_as_its_model(folder_of: Callable[[str], Path], shapes: Path, tmp_path: Path) -> None:
    quick = {"max_steps": 1, "workers": 0, "dry_steps": 0, "progress": False, "tensorboard": False, "device": "cpu"}
    quick |= {"pictures": 0, "attn_backend": "reference", "total_batch_size": 2}
    run = msdeform.finetune(folder_of("rt_detr_v2"), shapes, out=tmp_path / "run", **quick)
    assert run.metrics["best"]["AP"] >= 0
    assert run.model.predict(sorted((shapes / "val2017").iterdir())[0], confidence=0.0).names


def test_a_name_that_the_hub_did_not_give_says_what_to_fetch(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "_no_answer", lambda: "no route to host")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(words(shapes, "--init-from", "owner-of-none/no-model")) == 1
    error = capsys.readouterr().err
    assert "owner-of-none/no-model is no local folder, and could not be had from the Hugging Face Hub (no rou" in error
    assert "fetch config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/" in error
    assert error.count("\n") == 1


def test_without_transformers_a_run_says_so(
    started: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Callable[[str], Path]
) -> None:
    training = Training(started("rt_detr_v2"))
    save_checkpoint(tmp_path / "checkpoint-00000000.pt", training.state())
    monkeypatch.setattr(detector, "find_spec", lambda name: None)
    for path in (tmp_path, folder_of("rt_detr_v2")):
        with pytest.raises(RuntimeError, match="needs the package transformers, which is not installed"):
            load_trained(path, torch.device("cpu"))


def test_a_batch_that_is_not_finite_is_replayed(started: Change, tmp_path: Path) -> None:
    training = Training(started("rt_detr_v2"))
    samples = next(training.batches())
    result = training.step(samples)
    assert result is not None
    assert result["finite"] == 1.0
    kept = tmp_path / "batch.pt"
    torch.save(training.replayable(samples), kept)
    told = replay(ReplayOptions(batch=kept, device="cpu", attn_backend="reference"))
    assert "; all is finite" in told[-1]
    with torch.no_grad():
        training.model.model.class_embed[0].weight.fill_(float("nan"))
    assert training.step(samples)["finite"] == 0.0


def test_deimv2_is_told_to_depart_from_its_authors(started: Change) -> None:
    start = Training(started("deimv2")).start
    assert start is not None
    assert "transformers computes DEIMv2 otherwise than its authors' code" in start.sentences()[-1]
    assert any(line.startswith("new: class_embed") for line in start.sentences())


@pytest.mark.slow
def test_deimv2_atto_learns_blood_cells(tmp_path: Path) -> None:
    """Published weights, on photographs; how well whole runs do is measured elsewhere."""
    shared = Path(__file__).parents[4] / "shared" / "data"
    onnx, data = shared / "deimv2" / "deimv2_hgnetv2_atto_coco.onnx", shared / "bccd"
    if not (onnx.is_file() and data.is_dir()):
        pytest.skip("the trained weights ../shared/data/deimv2 and the photographs ../shared/data/bccd are not here")
    pytest.importorskip("onnx", reason="needs onnx, which reads the published weights")
    from tests.integrations.deimv2.convert import write_folder

    write_folder(onnx, tmp_path / "atto")
    given = ["--init-from", tmp_path / "atto", "--data", data, "--overfit", "4", "--batch-size", "4", "--epochs", "2"]
    given += ["--lr", "1e-3", "--lr-backbone", "5e-4", "--schedule", "constant", "--bad-data", "skip"]
    usual = ["--device", "cpu", "--workers", "0", "--no-progress", "--no-tensorboard", "--dry-steps", "0"]
    out = tmp_path / "run"
    assert main(["train", *map(str, given), *usual, "--pictures", "0", "--log-every", "1", "--out", str(out)]) == 0
    state = load_checkpoint(out)
    assert state["options"]["input"]["image_size"] == 320
    assert [category["name"] for category in state["categories"]] == ["Platelets", "RBC", "WBC"]
    losses = losses_of(out)
    assert losses[-1] < 0.8 * losses[0]
