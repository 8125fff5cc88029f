"""``msdeform ablate`` on planted detectors, of which is known what each head is for; and how its passes are kept."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from msdeform.cli import main
from msdeform.explain import workspace
from msdeform.explain.ablation.ablation import ap_change, counts_of, heads_of, orders, switched_off
from msdeform.explain.ablation.report import curves_picture, matrix_picture
from msdeform.explain.ablation.runs import AblationRuns
from msdeform.explain.ablation.screening import head_gradients, logits_of, loss_of
from msdeform.explain.commands import ablate
from msdeform.explain.core.interventions import intervene, mean_outputs
from msdeform.explain.core.masks import Mask, Masks
from msdeform.explain.core.sites import find_sites
from msdeform.explain.options import AblateOptions
from msdeform.models.attention import MSDeformAttn
from msdeform.models.families.detector import Detector
from msdeform.train.config.options import Source, TrainOptions
from msdeform.train.data.annotations import Category
from msdeform.train.engine.checkpoint import Trained
from msdeform.train.evaluation.detect import detect
from tests.explain.models import images, uneven
from tests.explain.planted import COLOURS, OTHER_HEAD, PLANTED, random_board

IMAGES = 4
CATEGORIES = [Category(10 * label, name) for label, name in enumerate(COLOURS, start=1)]
IDS = [category.id for category in CATEGORIES]


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of boards with two squares each, but for the first, which is black. Not to be written to."""
    folder = tmp_path_factory.mktemp("boards")
    (folder / "val2017").mkdir()
    listed, annotations = [], []
    for number in range(IMAGES):
        board = random_board(number, squares=2 if number else 0)
        to_pil_image(board.image).save(folder / "val2017" / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        for (x0, y0, x1, y1), label in zip(board.boxes.tolist(), board.labels, strict=True):
            one = {"category_id": IDS[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "image_id": number}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **one})
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    (folder / "annotations").mkdir()
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def annotated(boards: Path, label: int) -> int:
    content = json.loads((boards / "annotations" / "instances_val2017.json").read_text())
    return sum(one["category_id"] == IDS[label] for one in content["annotations"])


@pytest.fixture
def run(boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Ablates a planted detector, which the checkpoint's name chooses, as if a run had trained it."""

    def load(path: Path, device: torch.device, *_: Any) -> Trained:
        model = uneven(path.name).float() if path.name in ("two-stage",) else PLANTED[path.name]()
        return Trained(model, "planted", CATEGORIES, TrainOptions(), "reference", device, 7)

    monkeypatch.setattr(workspace, "load_trained", load)
    settings = {"device": "cpu", "progress": False, "workers": 0, "samples": 40, "out": tmp_path / "out"}

    def make(kind: str = "deformable", **changed: Any) -> dict[str, Any]:
        assert ablate(AblateOptions(checkpoint=Path(kind), source=Source(boards), **{**settings, **changed})) == 0
        return json.loads((tmp_path / "out" / "ablation.json").read_text())

    return make


def ap(one: dict[str, Any]) -> float:
    return one["metrics"]["AP"]["after"]


# without a head in both layers the scores of its colour are all alike: some hit by chance
CHANCE = 0.02


@pytest.mark.parametrize("kind", ["deformable", pytest.param("dense", marks=pytest.mark.slow)])
def test_a_head_off_deletes_its_colour_alone(
    kind: str, run: Callable[..., dict[str, Any]], boards: Path, tmp_path: Path
) -> None:
    texts = [f"decoder.*.cross:h{head}" for head in range(3)]
    found = run(kind, matrix=True, mask=(*texts, "decoder.*.cross:h0 + decoder.*.cross:h2"))
    assert ap(found["base"]) == pytest.approx(1)
    assert len(found["matrix"]) == 2 * 4
    for one in found["matrix"]:
        head, did = one["head"], one["effects"]
        # of one layer alone, it halves all scores of a colour: no detection any more, and in the same order
        if head != OTHER_HEAD:
            assert ap_change(one) == 0
            assert did["lost"] == annotated(boards, head) > 0
        elif kind == "deformable":
            assert (ap_change(one), did["lost"]) == (0, 0)
        else:  # there the fourth head reads where the boxes are
            assert ap_change(one) < -0.1
        if kind == "deformable":
            assert (did["gained"], did["changed"]) == (0, 0)
            assert (did["overlap"], did["iou_change"]) == (1, 0)
    for head in range(3):
        # an average over three classes, one of which is gone
        assert ap_change(found["masks"][head]) == pytest.approx(-1 / 3, abs=CHANCE)
        assert found["masks"][head]["effects"]["lost"] == annotated(boards, head)
    assert ap_change(found["masks"][3]) == pytest.approx(-2 / 3, abs=CHANCE)

    out = tmp_path / "out"
    for table, count in (("matrix", 8), ("masks", 4)):
        rows = list(csv.DictReader((out / f"{table}.csv").read_text().splitlines()))[-count:]
        assert [row["mask"] for row in rows] == [one["mask"] for one in found[table]]
        for row, one in zip(rows, found[table], strict=True):
            assert float(row["AP change"]) == one["metrics"]["AP"]["change"]
            assert int(row["lost"]) == one["effects"]["lost"]
    assert [one["mask"] for one in found["masks"]][2:] == [texts[2], "decoder.*.cross:h0+decoder.*.cross:h2"]
    assert (out / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_orders_curves_and_pruning(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What reads nothing goes first; the budget ends where a colour would go."""
    found = run(matrix=True, cumulative=True, budget=0.1, screen_by="logit", steps=2, random_orders=1)
    for one in found["screening"]:
        assert (one["importance"] < 1e-6) == (one["head"] == OTHER_HEAD), one
    assert set(found["cumulative"]) == {
        *("screening", "screening, reversed", "measurement", "measurement, reversed", "random 0")
    }
    aps = {name: [ap(point) for point in curve["points"]] for name, curve in found["cumulative"].items()}
    for name, curve in found["cumulative"].items():
        assert [point["off"] for point in curve["points"]] == [0, 4, 8]
        assert aps[name][0] == pytest.approx(1)
        assert aps[name][-1] < CHANCE, name
    # two heads that read nothing, and two of which each leaves half of a colour or, together, nothing
    assert aps["screening, reversed"][1] > aps["screening"][1] + 0.2
    *two, third = found["pruned"]
    assert [(one["site"], one["head"]) for one in two] == [(f"decoder.{n}.cross", OTHER_HEAD) for n in (0, 1)]
    assert ap(third) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert f"without 3 heads AP is 1.000; see it with: msdeform explain IMAGE --mask '{third['mask']}'" in printed
    written = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert written == {
        *("ablation.json", "matrix.csv", "matrix.png", "screening.png", "cumulative.csv", "cumulative.png"),
        *("pruning.csv", "pruning.png", "passes"),
    }


@pytest.mark.slow
def test_pruning_to_a_number(run: Callable[..., dict[str, Any]]) -> None:
    """One head more than costs nothing, and its colour is gone: its other head is, alone, of no importance."""
    found = run(prune=4, screen_by="logit")
    *_, third, fourth = found["pruned"]
    assert len(found["pruned"]) == 4
    assert {third["site"], fourth["site"]} == {"decoder.0.cross", "decoder.1.cross"}
    assert third["head"] == fourth["head"]
    assert ap(fourth) == pytest.approx(2 / 3, abs=CHANCE)


# --- passes


def passes_of(model: Detector, boards: Path, folder: Path, **changed: Any) -> AblationRuns:
    settings = {"image_size": 64, "workers": 0, "progress": False, "confidence": 0.3, "matrix": True, **changed}
    options = AblateOptions(checkpoint=Path("none"), source=Source(boards), **settings)
    trained = Trained(model, "a test", CATEGORIES, TrainOptions(), "reference", torch.device("cpu"), 7)
    return AblationRuns(workspace.with_data(trained, options), options, folder)


@pytest.mark.parametrize("pattern", ["decoder.*.cross", "encoder.*.self"])
@pytest.mark.parametrize(
    "family", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("detr", "two-stage")), "demo", "deformable"]
)
def test_what_is_computed_once_changes_nothing(family: str, pattern: str, boards: Path, tmp_path: Path) -> None:
    model = uneven(family)
    passes = passes_of(model, boards, tmp_path)
    wanted: list[Masks] = [(Mask(pattern, heads=(0,)),), (Mask(pattern),), ()]
    stem = next(one for one in model.modules() if isinstance(one, torch.nn.Conv2d) and one.kernel_size == (7, 7))
    bodies: list[int] = []
    hook = stem.register_forward_hook(lambda *_: bodies.append(1))
    found = passes.run(wanted)
    hook.remove()
    # once without a mask, and once for all masks
    assert len(bodies) == 2 * IMAGES
    for masks, one in zip(wanted, found, strict=True):
        with intervene(model, *masks):
            expected = detect(model, passes.data, torch.device("cpu"), category_ids=IDS)
        assert np.allclose(one.rows, expected.results, rtol=0, atol=1e-9)
    assert not np.allclose(found[0].rows, found[2].rows, rtol=0, atol=1e-6)
    assert not any("forward" in vars(module) for module in model.modules())


def test_passes_are_made_once_and_taken_up(boards: Path, tmp_path: Path) -> None:
    model = uneven("deformable")
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    wanted: list[Masks] = [(Mask(heads=(head,)),) for head in (0, 1)]
    first = passes_of(model, boards, tmp_path).run(wanted)
    assert len(forwards) == 3 * IMAGES
    again = passes_of(model, boards, tmp_path).run([*wanted, ()])
    assert len(forwards) == 3 * IMAGES
    for one, two in zip(first, again, strict=False):
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.predictions.scores, two.predictions.scores)
    other = passes_of(model, boards, tmp_path, confidence=0.31)
    assert other.missing([(), *wanted]) == [(), *wanted]

    path = other.path(())
    assert not path.exists()
    path.write_bytes(b"half of a file")
    assert () in other.missing([()])
    other.run([()])
    assert len(forwards) == 4 * IMAGES


def test_a_stopped_run_leaves_nothing_half_written(boards: Path, tmp_path: Path) -> None:
    passes = passes_of(uneven("deformable"), boards, tmp_path)
    wanted: list[Masks] = [(Mask(heads=(head,)),) for head in (0, 1)]
    forwards: list[int] = []

    def stop(*_: Any) -> None:
        forwards.append(1)
        if len(forwards) == IMAGES + 3:
            raise KeyboardInterrupt

    hook = passes.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        passes.run(wanted)
    hook.remove()
    assert [path.name for path in tmp_path.iterdir()] == [passes.path(()).name]
    assert not any("forward" in vars(module) for module in passes.model.modules())
    assert passes_of(passes.model, boards, tmp_path).missing([(), *wanted]) == wanted


def test_queries_are_those_of_the_model_as_it_is(boards: Path, tmp_path: Path) -> None:
    """A query that is a detection without a mask is there with it, however unsure: what ``query`` pairing needs."""
    model = PLANTED["deformable"]()
    base, off = passes_of(model, boards, tmp_path).run([(), (Mask(),)])
    keys = set(zip(base.predictions.image.tolist(), base.predictions.query.tolist(), strict=True))
    assert len(keys) == 2 * (IMAGES - 1)
    assert keys == set(zip(off.predictions.image.tolist(), off.predictions.query.tolist(), strict=True))
    assert base.predictions.scores.max(1).min() > 0.9
    assert off.predictions.scores.max() < 0.1


def test_means_are_those_of_the_data(boards: Path, tmp_path: Path) -> None:
    model = uneven("deformable")
    passes = passes_of(model, boards, tmp_path, mean_images=2)
    mask = Mask("decoder.*.cross", heads=(1,), mode="mean")
    (got,) = passes.run([(mask,)])
    with torch.no_grad(), mean_outputs(model, "decoder.*.cross") as means:
        for place, (_, batch, _) in enumerate(passes.batches()):
            if place < 2:
                model(batch)
    with intervene(model, mask, means=means):
        expected = detect(model, passes.data, torch.device("cpu"), category_ids=IDS)
    assert np.allclose(got.rows, expected.results, rtol=0, atol=1e-9)
    assert passes.missing([(mask,)]) == []
    assert passes_of(model, boards, tmp_path, mean_images=3).missing([(mask,)]) == [(mask,)]


# --- screening


@pytest.mark.parametrize("family", ["detr", "demo", "deformable", "two-stage"])
def test_screening_is_the_slope_of_a_heads_weight(family: str) -> None:
    """dy/dm, by growing and shrinking what the output projection takes of the head, image by image."""
    model = uneven(family).train()
    batch = [image.double() for image in images((64, 64), (64, 64))]
    targets = [
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]]).double()},
        {"labels": torch.tensor([], dtype=torch.int64), "boxes": torch.zeros(0, 4).double()},
    ]
    state = [parameter.requires_grad for parameter in model.parameters()]
    got = head_gradients(model, "*", batch, loss_of(model, targets))
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == state
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert set(got) == {site.name for site in find_sites(model, "*")}

    model.eval()
    # before the last layer, a decoder that refines boxes detaches them
    for site in find_sites(model, "decoder.1.*" if family == "two-stage" else "decoder.0.*"):
        out = site.module.output_proj if isinstance(site.module, MSDeformAttn) else site.module.out_proj
        columns = out.weight.data.unflatten(1, (site.heads, -1))[:, 1]
        kept, values = columns.clone(), []
        for factor in (1 + 1e-5, 1 - 1e-5):
            columns.copy_(kept * factor)
            with torch.no_grad():
                outputs = model(batch)
            one = {name: outputs[name] for name in ("pred_logits", "pred_boxes")}
            each = [{name: value[row : row + 1] for name, value in one.items()} for row in range(2)]
            values.append([loss_of(model, [target])(mine) for target, mine in zip(targets, each, strict=True)])
        columns.copy_(kept)
        for image in range(2):
            slope = (values[0][image] - values[1][image]).item() / 2e-5
            assert float(got[site.name][image, 1]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_without_a_detection_no_head_matters() -> None:
    model = uneven("deformable")
    got = head_gradients(model, "*", [images((64, 64))[0].double()], logits_of(model, 1.0))
    assert not torch.cat(list(got.values()), -1).any()


# --- sets of heads, and pictures


def test_heads_and_their_orders() -> None:
    heads = heads_of(uneven("deformable", dec_layers=2), "decoder.*.cross")
    assert heads == [(f"decoder.{layer}.cross", head) for layer in (0, 1) for head in (0, 1)]
    assert switched_off([heads[3], heads[0], heads[2]], "uniform", 5) == (
        Mask("decoder.0.cross", heads=(0,), mode="uniform", seed=5),
        Mask("decoder.1.cross", heads=(0, 1), mode="uniform", seed=5),
    )
    found = orders(
        {"one": dict(zip(heads, (3, 1, 4, 2), strict=True))},
        heads,
        AblateOptions(checkpoint=Path("none"), matrix=True, seed=3, random_orders=2),
    )
    assert found["one"] == [heads[place] for place in (2, 0, 3, 1)]
    assert found["one, reversed"] == found["one"][::-1]
    assert sorted(found["random 0"]) == sorted(found["random 1"]) == heads
    assert found["random 0"] != found["random 1"]
    assert counts_of(48, 8) == [0, 6, 12, 18, 24, 30, 36, 42, 48]
    assert counts_of(3, 8) == [0, 1, 2, 3]


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def measured(*change: float | None, **more: Any) -> dict[str, Any]:
    names = ("before", "after", "change", "low", "high")
    return {**more, "metrics": {"AP": dict(zip(names, change, strict=True))}}


def test_the_matrix_marks_what_is_sure_and_is_centred() -> None:
    matrix = [
        measured(0.4, 0.38, -0.02, -0.03, -0.01, site="decoder.0.cross", head=0),
        measured(0.4, 0.405, 0.005, -0.01, 0.02, site="decoder.0.cross", head=1),
        measured(None, None, None, None, None, site="decoder.1.cross", head=0),
    ]
    figure = matrix_picture(matrix, "title")
    assert texts(figure) == ["-2.0*", "-3.0 to -1.0", "+0.5", "-1.0 to +2.0"]
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows == ["decoder layer 0, cross-attention", "decoder layer 1, cross-attention"]
    (image,) = figure.axes[0].images
    assert image.get_clim() == (-2, 2)
    red, _, blue, _ = image.cmap(0.0)
    assert red > blue  # where AP falls


def test_random_orders_are_drawn_as_one() -> None:
    def curve(*aps: float) -> dict[str, Any]:
        return {"points": [measured(0.4, one, one - 0.4, None, None, off=off) for off, one in enumerate(aps)]}

    curves = {f"random {n}": curve(0.4, 0.1 * n) for n in range(3)} | {"screening": curve(0.4, 0.2)}
    axes = curves_picture(curves, "title").axes[0]
    assert np.allclose([line.get_ydata() for line in axes.lines], [[0.4, 0.1], [0.4, 0.2]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "random: mean and range of 3",
        "by screening, most important first",
    ]


# --- what one asks for


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({}, "nothing to do: expected --mask MASK, --matrix, --cumulative, --prune N or --budget FALL"),
        ({"mask": ("decoder.*.crss",)}, "'decoder.*.crss' matches nothing; this model has encoder.0.self"),
        ({"mask": ("decoder.*.cross:h4",)}, "expected a head from 0 to 3 of decoder.0.cross, got 4"),
        ({"mask": ("decoder.*.cross:x",)}, "'x' is none of its parts"),
        ({"matrix": True, "sites": "decoder.9.cross"}, "matches nothing; this model has"),
        ({"matrix": True, "limit": 1}, "limit: expected a box in the first 1 images"),
        ({"prune": 9}, "prune: expected at most the 8 heads of decoder.*.cross, got 9"),
        ({"prune": 0}, "prune: expected at least 1, got 0"),
        ({"budget": 2.0}, "budget: expected a fall of AP from 0 to 1"),
        ({"matrix": True, "confidence": 1.5}, "confidence: expected a number from 0 to 1, got 1.5"),
        ({"matrix": True, "samples": 3}, "samples: expected at least 40, got 3"),
        ({"matrix": True, "pairing": "query", "kind": "two-stage"}, "chooses its queries anew at every pass"),
    ],
)
def test_what_cannot_be_done_is_told(
    changed: dict[str, Any], sentence: str, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence.replace("*", r"\*")):
        run(changed.pop("kind", "deformable"), **changed)
    assert not list((tmp_path / "out").glob("*.*")) or "limit" in changed


def test_the_command(
    boards: Path, run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    (tmp_path / "dense").mkdir()  # stands in for the checkpoint
    words = ["ablate", "--checkpoint", str(tmp_path / "dense"), "--data", str(boards), "--out", str(tmp_path / "out")]
    words += ["--no-progress", "--workers", "0", "--device", "cpu", "--samples", "40", "--mode", "uniform"]
    assert main([*words, "--mask", "decoder.*.cross:h0", "--mask", "decoder.*.cross:h1:zero+encoder.0.self:h1"]) == 0
    printed = capsys.readouterr().out
    assert f"{3 * IMAGES} forward passes" in printed
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [one["mask"] for one in content["masks"]] == [
        "decoder.*.cross:h0:uniform",
        "decoder.*.cross:h1+encoder.0.self:h1:uniform",
    ]
    assert content["about"]["images"] == IMAGES
    assert main([*words, "--mask", "decoder.*.cross:h0"]) == 0
    assert "0 passes still to run" in capsys.readouterr().out
    assert main([*words, "--mask", "decoder.*.cross:h7"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
