"""``msdeform explain-eval`` on planted detectors, of which it must say what is known."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from msdeform.cli import main
from msdeform.explain import workspace
from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.options import ExplainEvalOptions
from msdeform.explain.quality import evaluate as module
from msdeform.explain.quality.evaluate import evaluate
from msdeform.explain.quality.measures import noised
from msdeform.explain.quality.randomisation import randomised
from msdeform.explain.quality.scores import MEASURES
from msdeform.train.config.options import Source, TrainOptions
from msdeform.train.data.annotations import Category
from msdeform.train.engine.checkpoint import Trained
from tests.explain.models import images, uneven
from tests.explain.planted import COLOURS, PLANTED, random_board

IMAGES = 3
CATEGORIES = [Category(10 * i, name) for i, name in enumerate(COLOURS, start=1)]
FALSE = 2  # the image of which the annotations lack a square


@pytest.fixture
def boards(tmp_path):
    """A COCO folder of boards, of classes in an order that is not the model's; a square of one is not annotated."""
    folder = tmp_path / "boards"
    (folder / "val2017").mkdir(parents=True)
    images, annotations = [], []
    for number in range(IMAGES):
        board = random_board(number)
        to_pil_image(board.image).save(folder / "val2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        for place, (box, label) in enumerate(zip(board.boxes.tolist(), board.labels, strict=True)):
            if (number, place) != (FALSE, 1):
                x0, y0, x1, y1 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORIES[label].id,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": category.id, "name": category.name} for category in reversed(CATEGORIES)]
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def options(boards, tmp_path, monkeypatch):
    """Options of a quick judgement of a planted detector, which the checkpoint's name chooses.

    The deformable one is as if a run had trained it on these categories; the dense one as weights from elsewhere.
    """

    def load(path, device, *_):
        step = 7 if path.name == "deformable" else None
        model = PLANTED[path.name]()
        model.config = SimpleNamespace(num_classes=len(COLOURS))
        return Trained(model, "planted", CATEGORIES, TrainOptions(), "reference", device, step)

    monkeypatch.setattr(workspace, "load_trained", load)
    settings = {"methods": "raw,relevance", "steps": 4, "out": tmp_path / "out", "device": "cpu", "progress": False}
    settings |= {"samples": 2}

    def make(kind, **changed):
        return ExplainEvalOptions(checkpoint=Path(kind), source=Source(boards), **{**settings, **changed})

    return make


@pytest.mark.parametrize("kind", PLANTED)
def test_relevance_of_a_planted_detector(options, kind) -> None:
    found = evaluate(options(kind))
    assert found["images"] == IMAGES
    assert [row["truth"] is None for row in found["detections"]].count(True) == 1
    assert len(found["detections"]) == 2 * IMAGES
    for row in found["detections"]:
        relevance, random = row["scores"]["relevance"], row["scores"]["random"]
        assert relevance["pointing"] == 1
        # a square is 14% of its board, and the score of an image without it is nothing
        assert relevance["deletion"] < random["deletion"]
        assert relevance["insertion"] > random["insertion"]
        insertion = row["curves"]["raw"]["insertion"]
        assert len(insertion) == 5
        assert insertion[0] < 0.01
        assert insertion[-1] > 0.9


@pytest.mark.parametrize("kind", PLANTED)
def test_every_measure_of_a_planted_detector(options, kind) -> None:
    """A square on black: the map that finds it scores what is known; a random map what chance gives."""
    found = evaluate(options(kind, methods="relevance", randomise="smooth", limit=2))
    for row in found["detections"]:
        scores, random, box = (row["scores"][name] for name in ("relevance", "random", "box"))
        assert set(scores) == set(MEASURES)
        assert scores["road"] < random["road"]
        assert scores["infidelity"] < random["infidelity"]
        assert scores["sensitivity_n"] > random["sensitivity_n"] + 0.2
        # the object's outline is its box here, and relevance lies in it
        assert scores["rank_mask"] == scores["rank"] > 0.6
        assert box["rank_mask"] == 1
        assert random["rank"] == pytest.approx(0.14, abs=0.05), "the square's share of the board"
        # less noise than half a grey level would change nothing at all
        assert 0 <= scores["average_change"] <= scores["largest_change"] < 0.5
        assert box["largest_change"] < 0.01
        # evidence of a colour is made anew in a randomised decoder, and is of another class nowhere
        assert scores["randomised"] < 0.9
        assert scores["random_logit"] < 1


def test_what_is_measured_can_be_chosen(options) -> None:
    found = evaluate(options("dense", limit=1, measures="place"))
    for row in found["detections"]:
        assert not row["curves"]
        assert set(row["scores"]["relevance"]) == {name for name, one in MEASURES.items() if one.group == "place"}
    assert found["decoder_layers_randomised"] == []


def test_a_coordinate_is_followed_where_a_coordinate_is_explained(options) -> None:
    """The planted detector's boxes depend on nothing but the query's place: no pixel takes that away."""
    rows = evaluate(options("deformable", methods="relevance", target="x", measures="perturbation"))["detections"]
    for row in rows:
        assert row["curves"]["relevance"]["deletion"][0] == pytest.approx(1, abs=1e-5)
    # by class the same detections are gone with the square
    of_class = evaluate(options("deformable", methods="relevance", measures="perturbation"))["detections"]
    assert max(row["curves"]["relevance"]["deletion"][-1] for row in of_class) < 0.1


def test_the_surest_detections_alone(options) -> None:
    rows = evaluate(options("dense", most=1, measures="place"))["detections"]
    assert len(rows) == IMAGES
    every = evaluate(options("dense", measures="place"))["detections"]
    assert {(row["image_id"], row["query"]) for row in rows} < {(row["image_id"], row["query"]) for row in every}


def test_the_command_prints_and_writes_what_it_found(options, boards, tmp_path, capsys) -> None:
    options("dense")
    (tmp_path / "dense").mkdir()  # stands in for the checkpoint
    out = tmp_path / "out"
    words = f"--checkpoint {tmp_path / 'dense'} --data {boards} --out {out} --device cpu --steps 4 --no-progress"
    assert main(["explain-eval", *words.split(), "--methods", "relevance", "--randomise", "cascade"]) == 0
    printed = capsys.readouterr().out
    assert "\n5 detections, matched to ground truth\n" in printed
    assert "\nall 6 detections, 5 of them matched to ground truth\n" in printed
    assert "last layers randomised\nrelevance: " in printed
    assert "relevance beats, by deletion: random" in printed
    written = json.loads((out / "scores.json").read_text())
    assert written["decoder_layers_randomised"] == [1, 2]
    matched, everything = written["summary"].values()
    assert (matched["detections"], everything["detections"]) == (5, 6)
    assert matched["differences"]["relevance"]["random"]["deletion"][2] < 0
    assert written["shares"] == [0, 0.0625, 0.25, 0.5625, 1]
    for row in written["detections"]:
        assert len(row["rank_correlations"]["relevance"]) == 2
        assert len(row["curves"]["relevance"]["deletion"]) == 5
        assert "randomised" not in row["scores"]["random"]
    with Image.open(out / "scores.png") as picture:
        assert min(picture.size) > 300


def test_the_same_seed_gives_the_same_numbers(options) -> None:
    first, again, other = (evaluate(options("dense", limit=1, seed=seed))["detections"] for seed in (0, 0, 1))
    assert first == again
    assert first[0]["scores"]["random"] != other[0]["scores"]["random"]
    assert first[0]["scores"]["centre"]["energy"] == other[0]["scores"]["centre"]["energy"]


def test_what_was_stopped_goes_on(options, boards, tmp_path, monkeypatch, capsys) -> None:
    whole, scored, rows = evaluate(options("dense", seed=3)), [], module._Image.rows

    def stop_after_two(image, masks):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(image.image_id)
        return rows(image, masks)

    monkeypatch.setattr(module._Image, "rows", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options("dense", seed=3), tmp_path / "kept")
    half_written = sorted((tmp_path / "kept").rglob("*.json"))[0]
    half_written.write_text("[{")
    scored.clear()
    monkeypatch.setattr(module._Image, "rows", lambda image, masks: scored.append(image.image_id) or rows(image, masks))
    found = evaluate(options("dense", seed=3), tmp_path / "kept")
    assert len(scored) == IMAGES - 1
    assert "1 image scored before, in " in capsys.readouterr().out
    assert found["detections"] == whole["detections"]
    evaluate(options("dense", seed=3, limit=2), tmp_path / "kept")
    assert len(scored) == IMAGES - 1, "a limit changes no image's scores"
    evaluate(options("dense", seed=4, limit=1), tmp_path / "kept")
    assert len(scored) == IMAGES, "another seed does"
    shutil.copy(boards / "val2017" / "1.png", boards / "val2017" / "0.png")
    evaluate(options("dense", seed=4, limit=1), tmp_path / "kept")
    assert len(scored) == IMAGES + 1, "another photograph does"
    file = boards / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(content))
    evaluate(options("dense", seed=4, limit=1), tmp_path / "kept")
    assert len(scored) == IMAGES + 2, "another box does"


def test_a_two_stage_detector_is_followed_by_its_detection() -> None:
    """Query 3 of a noisy image is another one: there the query that finds the detection is asked, in every model."""
    model = uneven("two-stage").float()
    image = images((48, 64))[0]
    trace = AttentionTrace(model, image, size=64)
    prediction = trace.prediction(3)
    of = SimpleNamespace(model=model, image=image, size=64, trace=trace)
    of.map = lambda there, seen, name: heat_map(there, seen, name).numpy()
    again = module._Again(of, prediction, ["relevance"])
    itself = again.seen(model, image)
    assert itself.query == 3
    assert (itself.maps["relevance"] == heat_map(trace, prediction, "relevance").numpy()).all()
    other = randomised(model, seed=1)
    assert again.seen(other, image).query == 3
    moved = 0
    for seed in range(6):
        noisy = noised(image, np.random.default_rng(seed).standard_normal(tuple(image.shape)) * 12)
        found = module.same_detection(AttentionTrace(model, noisy, size=64), prediction)
        seen, scrambled = again.seen(model, noisy), again.seen(other, noisy)
        assert (None if found is None else found.query) == (None if seen is None else seen.query)
        assert (seen is None) == (scrambled is None)
        if seen is not None:
            assert scrambled.query == seen.query
            moved += seen.query != 3
    assert moved
    assert again.seen(model, noisy) is seen, "each is looked at once"


def test_an_image_of_one_line_has_nothing_removed() -> None:
    line = SimpleNamespace(options=None, shape=(1, 50), found=["two", "detections"])
    assert module._Image._removals(line) == [None, None]


def test_nothing_detected_is_told_in_a_sentence(options) -> None:
    with pytest.raises(ValueError, match=r"confidence: no detection of at least 1 in 1 images; lower it"):
        evaluate(options("dense", confidence=1, limit=1))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "raw,relevanse"], "did you mean relevance?"),
        (["--measures", "plase"], "did you mean place?"),
        (["--target", "x"], "target: expected class, as raw explains no coordinate"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--confidence", "2"], "confidence: expected a number from 0 to 1, got 2.0"),
    ],
)
def test_wrong_options_end_with_status_2(capsys, words, sentence) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explain-eval", "--checkpoint", "none", *words])
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
