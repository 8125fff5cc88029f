"""What a model finds in a data set, alone or shared out over processes, its losses there, and ``msdeform eval``."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from msdeform.cli import main
from msdeform.models.families.detector import Detector
from msdeform.models.inference.image_size import Size
from msdeform.models.layers.evaluation_mode import evaluating
from msdeform.models.weights.convert import convert
from msdeform.models.zoo import create_criterion, create_model, load_model
from msdeform.train.commands.options import EvalOptions
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.dataset import Annotations, CocoDetection
from msdeform.train.data.loader import evaluation_loader, to_device
from msdeform.train.data.transforms import evaluation_transform
from msdeform.train.engine.checkpoint import load_trained, save_checkpoint
from msdeform.train.engine.distributed import ProcessGroup
from msdeform.train.engine.run import evaluate
from msdeform.train.engine.state import Training
from msdeform.train.evaluation.coco_metrics import METRICS, coco_metrics, evaluate_boxes
from msdeform.train.evaluation.detect import detect
from msdeform.train.evaluation.results import (
    DetectionResults,
    coco_results,
    merge,
    pack_results,
    read_results,
    unpack_results,
    without_duplicates,
)
from tests.models.huggingface import randomise

CPU = torch.device("cpu")
FOUND = {
    "labels": torch.tensor([1, 0]),
    "scores": torch.tensor([0.75, 0.5]),
    "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 4.0, 4.0]]),
}


def test_detections_carry_the_data_sets_category_ids() -> None:
    assert coco_results(9, FOUND, [3, 5]) == [
        {"image_id": 9, "category_id": 5, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 9, "category_id": 3, "bbox": [0.0, 0.0, 4.0, 4.0], "score": 0.5},
    ]


def test_rows_are_coco_results_and_back() -> None:
    results = coco_results(2**53 - 1, FOUND, [3, 5])
    assert unpack_results(pack_results(results)) == results
    assert pack_results([]).shape == (0, 7)
    with pytest.raises(ValueError, match=r"expected image ids below 2\*\*53, got 9007199254740992"):
        coco_results(2**53, FOUND, [3, 5])


def test_files_that_name_their_images_are_matched_by_name(annotation_file: Callable[..., Path], tmp_path: Path) -> None:
    names = ("a/one.png", "b/one.png", "b/two.png")
    images = [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(names)]
    annotations = Annotations.load(annotation_file({"image_id": 0}, images=images))
    file = tmp_path / "found.json"
    one = {"category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}

    def read(*named: tuple[int, str]) -> list[float]:
        file.write_text(json.dumps([{**one, "image_id": number, "file_name": name} for number, name in named]))
        return read_results(file, annotations)[:, 0].tolist()

    assert read((9, "two.png"), (5, "a/one.png"), (9, "two.png")) == [2, 0, 2]
    for named, sentence in (
        ([(1, "two.png"), (2, "two.png")], "one file_name for each image_id, got 2 pairs with file_name two.png"),
        ([(1, "two.png"), (1, "a/one.png")], "one file_name for each image_id, got 2 pairs with image_id 1"),
        ([(1, "one.png")], "image one.png, which .* lists 2 times"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read(*named)
    file.write_text(json.dumps([{**one, "image_id": 1, "file_name": "two.png"}, {**one, "image_id": 1}]))
    with pytest.raises(ValueError, match="expected a file_name in every detection or in none, got 1"):
        read_results(file, annotations)


class Oracle(Detector):
    """A detector that knows the annotations: one query for each box, in the order of the images."""

    def __init__(self, data: CocoDetection) -> None:
        super().__init__()
        self.left = [data[index][1] for index in range(len(data))]
        self.n_classes = len(data.annotations.categories)

    def forward(self, images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        targets, self.left = self.left[: len(images)], self.left[len(images) :]
        most = max(len(target["labels"]) for target in targets)
        logits = torch.full((len(images), most, self.n_classes), -20.0)
        boxes = torch.full((len(images), most, 4), 0.1)
        for row, target in enumerate(targets):
            queries = torch.arange(len(target["labels"]))
            logits[row, queries, target["labels"]] = 20.0
            boxes[row, queries] = target["boxes"]
        return {"pred_logits": logits, "pred_boxes": boxes}


def test_every_module_has_its_own_mode_again_after_an_evaluation() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()  # such as norms that the user holds constant
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_perfect_detector_scores_one_through_resizing_and_batching(coco_mini: Path, batch_size: int) -> None:
    path = coco_mini / "annotations" / "instances_val2017.json"
    data = CocoDetection(
        coco_mini / "val2017", Annotations.load(path), evaluation_transform(Size(96, 128)), subset=list(range(9))
    )
    oracle = Oracle(data)
    oracle.train()
    results = detect(oracle, data, CPU, batch_size=batch_size)
    assert oracle.training  # left as it was found
    # boxes reach out of some images by a fraction of a pixel, and are clipped when read
    assert coco_metrics(path, results, data.image_ids)["AP"] > 0.99


@pytest.fixture
def data(shapes: Path) -> CocoDetection:
    """The eight training images, not augmented."""
    annotations = Annotations.load(shapes / "annotations" / "instances_train2017.json")
    return CocoDetection(shapes / "train2017", annotations, evaluation_transform(Size(64, 64)))


@pytest.fixture
def model() -> Detector:
    """One whose detections differ from image to image."""
    torch.manual_seed(0)
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")
    randomise(model)
    return model


def in_order(found: DetectionResults) -> np.ndarray:
    return found.results[np.argsort(found.results[:, 0], kind="stable")]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
def test_processes_count_every_image_exactly_once(data: CocoDetection, model: Detector, world: int) -> None:
    criterion = create_criterion(model)
    alone = detect(model, data, CPU, criterion=criterion)
    parts = [detect(model, data, CPU, criterion=criterion, shard=(rank, world)) for rank in range(world)]
    assert [len(part.image_ids) for part in parts] == [len(range(rank, 8, world)) for rank in range(world)]
    together = merge(parts)
    assert sorted(together.image_ids.tolist()) == data.image_ids
    assert np.array_equal(in_order(together), in_order(alone))
    assert len(data) == 8  # nobody else's view of the data has changed
    path = data.annotations.path
    assert coco_metrics(path, together, data.image_ids) == coco_metrics(path, alone, data.image_ids)
    assert together.losses == pytest.approx(alone.losses, rel=1e-9)


class Leader(ProcessGroup):
    """Rank 0 of several processes, which does the others' work, too, when it hears of what they found."""

    def __init__(self, size: int, work: Callable[[int], DetectionResults]) -> None:
        super().__init__(CPU)
        self.size, self.work = size, work

    def gather(self, value: Any, *, patient: bool = False) -> list[Any]:
        if not isinstance(value, DetectionResults):
            return [value] * self.size
        return [value, *(self.work(rank) for rank in range(1, self.size))]


def test_an_evaluation_together_is_that_of_one_process(
    data: CocoDetection, changed: Callable[..., TrainOptions]
) -> None:
    training = Training(changed(batch_size=2))
    model, criterion = training.model, training.criterion
    randomise(model)

    def work(rank: int) -> DetectionResults:
        return detect(model, data, CPU, criterion=criterion, shard=(rank, 3))

    alone = evaluate(training, data)
    losses = {f"val_{name}" for name in ("loss", *criterion(*one_batch(model, data)))}
    assert alone.keys() == {*METRICS, *losses, "per_class", "thresholds"}
    training.group = Leader(3, work)
    several = evaluate(training, data)
    assert several.pop("thresholds") == pytest.approx(alone.pop("thresholds"), rel=1e-5)
    assert several.pop("per_class") == pytest.approx(alone.pop("per_class"), rel=1e-5)
    assert several == pytest.approx(alone, rel=1e-5)


def one_batch(model: Detector, data: CocoDetection) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images, targets = to_device([data[0]], CPU)
    with torch.no_grad():
        return model.eval()(images), targets


def test_an_image_seen_twice_or_never_is_refused(data: CocoDetection, model: Detector) -> None:
    first, second = (detect(model, data, CPU, shard=(rank, 2)) for rank in range(2))
    ids = data.image_ids
    with pytest.raises(ValueError, match=rf"^detections: 4 images looked at more than once, the first is {ids[1]} "):
        merge([first, second, second])
    with pytest.raises(ValueError, match=rf"4 of 8 images not looked at, the first is {ids[1]}$"):
        evaluate_boxes(data.annotations.path, first, ids)
    with pytest.raises(ValueError, match=r"^shard: expected a rank from 0 to 1 of 2 processes, got 2$"):
        detect(model, data, CPU, shard=(2, 2))


@pytest.mark.parametrize("name", ["deformable_detr_tiny", "detr_tiny"])
def test_losses_are_those_of_all_images_as_one_batch(data: CocoDetection, name: str) -> None:
    torch.manual_seed(1)
    model = create_model(name, num_classes=3, attn_backend="reference").eval()
    criterion = create_criterion(model)
    [samples] = evaluation_loader(data, 8, 0)
    images, targets = to_device(samples, CPU)
    with torch.no_grad():
        expected = {name: float(value) for name, value in criterion(model(images), targets).items()}
    for batch_size in (8, 3):
        losses = detect(model, data, CPU, batch_size=batch_size, criterion=criterion).losses
        total = sum(expected[name] * weight for name, weight in criterion.weight_dict.items())
        assert losses == pytest.approx({"loss": total, **expected}, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_moves_scores_a_little(data: CocoDetection, model: Detector, precision: str) -> None:
    exact, rough = (detect(model, data, CPU, precision=chosen).results for chosen in ("fp32", precision))
    assert not np.array_equal(exact, rough)
    assert rough[:, 5] == pytest.approx(exact[:, 5], abs=0.05)


@pytest.fixture
def run(changed: Callable[..., TrainOptions], tmp_path: Path) -> Path:
    """A run's checkpoint of random weights."""
    training = Training(changed())
    randomise(training.model)
    save_checkpoint(tmp_path / "run" / "checkpoint-00000003.pt", training.state())
    return tmp_path / "run"


QUIET = ("--workers", "0", "--device", "cpu", "--attn-backend", "reference", "--no-progress")


def test_eval_prints_and_writes_all_numbers(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "all.json"), "--out", str(tmp_path / "found.json")]
    words = ["eval", "--data", str(shapes)]
    assert main([*words, "--checkpoint", str(run), "--per-class", "--precision", "fp16", *files, *QUIET]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "deformable_detr_tiny at step 0, reference on cpu, 4 images"
    assert lines.pop(1) == f"data: COCO in {shapes}: 4 validation images with 29 boxes, 3 classes"
    assert lines[1].split() == ["class", "boxes", "AP", "AP50", "AR100"]
    assert {line.split()[0] for line in lines[2:5]} == {"disc", "square", "triangle"}
    assert lines[5].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ")
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["metrics"].keys() == set(METRICS)
    assert [one["name"] for one in written["classes"]] == ["disc", "square", "triangle"]
    assert written["precision"] == "fp16"
    assert (written["batch_size"], written["images"], written["of_images"]) == (1, 4, 4)
    assert written["engine"] == "faster-coco-eval"
    assert written["versions"].keys() == {"msdeform", "torch", "torchvision", "numpy", "faster-coco-eval"}
    # the file of detections is measured alike, by either library
    for engine in ("faster", "pycocotools"):
        read = ["--results", str(tmp_path / "found.json"), "--coco-eval", engine]
        assert main([*words, *read]) == 0
        again = capsys.readouterr().out.splitlines()
        assert again[0] == f"{tmp_path / 'found.json'}: 120 detections, 4 images"
        assert again[2:] == lines[5:19]


def test_a_run_is_measured_on_its_own_data_where_no_other_are_named(
    run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--checkpoint", str(run), "--data", str(shapes), "--no-progress"]) == 0
    named = capsys.readouterr().out
    assert main(["eval", "--checkpoint", str(run), "--no-progress"]) == 0
    assert capsys.readouterr().out == named


def test_a_quick_look_says_so(run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--data", str(shapes), "--checkpoint", str(run), "--limit", "3", *QUIET]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("only the first 3 of 4 images")
    assert lines[-1] == "of only the first 3 of 4 images: not the data set's numbers"


def test_what_eval_cannot_measure_is_told_in_one_sentence(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    path = shapes / "annotations" / "instances_val2017.json"
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    stranger = {"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    for content, more, sentence in (
        ([stranger], (), "detections: 1 image not among the 4 annotated ones, the first is 99"),
        ([], ("--val-annotations", str(bare)), f"{bare}: no annotated images: none of 4 images of val has a box"),
        ({}, (), f"results file {file}: expected a list of detections, got a dict"),
        (
            ["x"],
            (),
            "--results: expected image_id, category_id, bbox [x, y, width, height] and score, got x in",
        ),
    ):
        file.write_text(json.dumps(content))
        assert main(["eval", "--data", str(shapes), "--results", str(file), *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"msdeform eval: {sentence}")
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["eval", "--data", str(shapes), "--results", str(tmp_path / "none.json")])
    assert "none.json does not exist" in capsys.readouterr().err


@pytest.fixture
def found(shapes: Path, tmp_path: Path) -> Path:
    """A results file of detections in the four images, a little beside the objects, with falling scores."""
    content = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    results = [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": [one["bbox"][0] + 1, *one["bbox"][1:]],
            "score": 0.9 - 0.01 * number,
        }
        for number, one in enumerate(content["annotations"])
    ]
    (tmp_path / "good.json").write_text(json.dumps(results))
    return tmp_path / "good.json"


def test_two_are_compared_on_the_same_images(
    run: Path, found: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--data", str(shapes), "--compare"]
    assert main([*words, str(run), str(found), "--json", str(tmp_path / "both.json"), *QUIET]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:6] == [f"A: {run}", f"B: {found}"]
    assert lines[-2].startswith("B is better by 0.")
    whole = json.loads((tmp_path / "both.json").read_text())
    assert whole["verdict"] == lines[-2]
    assert whole["metrics"]["AP"]["change"] > 0.5
    assert [kind["name"] for kind in whole["classes"]] == ["disc", "square", "triangle"]
    assert (whole["A"]["checkpoint"], whole["B"]["results"]) == (str(run), str(found))
    assert main([*words, str(found), str(found)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no difference can be told: B - A is +0.000 AP")


def test_the_report_and_all_that_is_printed(
    found: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--data", str(shapes), "--results", str(found), "--per-class", "--no-progress", "--worst", "2"]
    assert main([*words, "--report", str(tmp_path / "report.html"), "--json", str(tmp_path / "all.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {tmp_path / 'report.html'}"
    assert sum(line.startswith("95% intervals over images: AP 0.") for line in lines) == 1
    assert "confused  badly placed  duplicate" in "\n".join(lines)
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["thresholds"]["overall"]["f1"] == 1
    assert whole["worst_images"] == []
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_pictures_of_what_is_found_and_missed(found: Path, shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    path.write_text(json.dumps(json.loads(found.read_text())[1:]))  # one object of the first image is missed
    sheets = []
    for results in (found, path):
        words = ["--results", str(results), "--data", str(shapes), "--pictures", str(tmp_path / "sheet.png"), *QUIET]
        assert main(["eval", *words]) == 0
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))[26:-24].astype(int))
    counts = [(np.abs(sheet - (255, 150, 30)).sum(2) < 30).sum() for sheet in sheets]
    assert counts[0] == 0
    assert counts[1] > 100


def test_nms_counts_an_object_that_is_found_twice_once(found: Path, shapes: Path, tmp_path: Path) -> None:
    results = json.loads(found.read_text())
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps([{**one, "score": one["score"] * 0.9} for one in results] + results))
    told = []
    for path, nms in ((found, []), (twice, []), (twice, ["--nms", "0.7"])):
        words = ["--results", str(path), "--data", str(shapes), "--json", str(tmp_path / "all.json"), *nms, *QUIET]
        assert main(["eval", *words]) == 0
        whole = json.loads((tmp_path / "all.json").read_text())
        told.append((whole["metrics"]["AP"], whole["detections"]["duplicate"], whole["nms"]))
    (once, *_), (before, duplicates, _), after = told
    assert before < once
    assert duplicates > 0
    assert after == (once, 0, 0.7)
    box = (0, 0, 9, 9)
    rows = np.array([[1, *box, 0.5, 1], [2, *box, 0.4, 1], [1, *box, 0.3, 2], [1, 0, 1, 9, 9, 0.6, 1]])
    # of one image and category alone, and in the order that they came in
    assert without_duplicates(rows, 0.7)[:, 5].tolist() == [0.4, 0.3, 0.6]
    assert len(without_duplicates(rows, 0.9)) == 4
    assert len(without_duplicates(rows[:0], 0.7)) == 0


def test_thresholds_are_written_where_predict_finds_them(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text("")
    ours = tmp_path / "ours"
    load_model(run).save_pretrained(ours)
    assert load_model(run).thresholds is load_model(ours).thresholds is None
    words = ["eval", "--data", str(shapes), "--image-size", "64", "--save-thresholds", *QUIET, "--json"]
    for path in (run, ours):
        before = load_model(path).state_dict()
        assert main([*words, str(tmp_path / "all.json"), "--checkpoint", str(path)]) == 0
        told = json.loads((tmp_path / "all.json").read_text())["thresholds"]["by_class"]
        after = load_model(path)
        assert after.thresholds == list(told.values())
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())
        assert after.categories == ["disc", "square", "triangle"]
        assert f"thresholds: {path}" in capsys.readouterr().out
    assert load_trained(run, CPU).step == 0
    convert(ours, tmp_path / "official.pth", "official")
    for path, more, sentence in (
        (
            tmp_path / "official.pth",
            (),
            "--save-thresholds: expected a run's checkpoint or a folder that msdeform convert",
        ),
        (ours, ("--limit", "1"), "--save-thresholds: expected all images, got --limit 1"),
    ):
        with contextlib.suppress(SystemExit):
            main(["eval", "--data", str(shapes), "--checkpoint", str(path), "--save-thresholds", *more, *QUIET])
        assert sentence in capsys.readouterr().err


def test_what_compare_and_save_thresholds_go_with(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--compare", str(found)]) == 1
    assert capsys.readouterr().err == "msdeform eval: --compare: expected two, A and B, got 1\n"
    here = Path("x")
    for given, sentence in (
        ({}, "checkpoint: expected --checkpoint PATH, or --results FILE, or --compare A B, and only one"),
        ({"checkpoint": here, "compare": (here, here)}, "checkpoint: expected"),
        ({"compare": (here, here), "report": here}, "report: expected --checkpoint with it, got --compare"),
        ({"results": here, "save_thresholds": True}, "save_thresholds: expected a --checkpoint"),
        (
            {"results": here, "pictures": Path("x.gif")},
            "pictures: expected a name that ends in .png or .jpg, got x.gif",
        ),
        ({"results": here, "worst": -1}, "worst: expected at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            EvalOptions(**given)
