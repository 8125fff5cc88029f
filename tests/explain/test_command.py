"""``msdeform explain``: what it writes, what it prints, and the sentences it ends in."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.cli import main
from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.explain import ExplainOptions, Subject, as_displayed, jobs, lines
from msdeform.explain.figures.drawing import told
from msdeform.explain.figures.masked import follow, read_mask_matrix
from msdeform.explain.figures.views import View
from msdeform.explain.options import AblateOptions, ExplainEvalOptions
from msdeform.explain.workspace import checked, default_folder
from msdeform.train.engine.checkpoint import load_trained
from tests.explain.models import uneven


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of 48 x 64 pixels, annotations of it, and a checkpoint of each family; not to be written to."""
    folder = tmp_path_factory.mktemp("explain")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "street.png")
    found = {"image": folder / "street.png"}
    for family in ("detr", "two-stage", "deformable"):
        model = uneven(family, **({} if family == "two-stage" else {"dec_layers": 2})).float()
        model.categories = ["cat", "dog", "cow"]
        model.save_pretrained(folder / family)
        found[family] = folder / family
    annotations = {
        "images": [{"id": 1, "file_name": "street.png", "height": 48, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 4, 20, 20], "iscrowd": 0, "area": 400}],
        "categories": [{"id": number, "name": name} for number, name in ((3, "cat"), (7, "dog"), (9, "cow"))],
    }
    (folder / "annotations.json").write_text(json.dumps(annotations))
    found["annotations"] = folder / "annotations.json"
    return found


def words(files: dict[str, Path], family: str, out: Path, *rest: Any) -> list[str]:
    known = [
        "--checkpoint",
        str(files[family]),
        "--out",
        str(out),
        "--image-size",
        "64",
        "--no-progress",
        "--dpi",
        "40",
    ]
    return ["explain", str(files["image"]), *known, *map(str, rest)]


def explained(files: dict[str, Path], family: str, out: Path, *rest: Any) -> dict[str, Any]:
    assert main(words(files, family, out, *rest)) == 0
    return json.loads((out / "street-explanation.json").read_text())


def pictures(about: dict[str, Any]) -> set[str]:
    return {name.removeprefix("street-").removesuffix(".png") for name in about["files"] if name.endswith(".png")}


def test_what_is_drawn_by_default(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = explained(
        files, "two-stage", tmp_path, "--confidence", 0, "--most", 1, "--annotations", files["annotations"]
    )
    expected = {"truth", "queries", "seeds", "det0-journey", "det0-points-decoder.1", "det0-relevance"}
    assert pictures(about) == expected
    for name in about["files"]:
        assert (tmp_path / name).stat().st_size > 0
    assert len(about["detections"]) == 10
    best = about["explained"]["det0"]
    assert best == about["detections"][0]
    printed = capsys.readouterr().out
    assert f"det 0  query {best['query']:<4} {best['name']} {best['score']:.3f}  at " in printed
    assert f"6 pictures, each with its numbers as .npz, in {tmp_path}\n" in printed
    assert "journey.png" not in printed
    truth = np.load(tmp_path / "street-truth.npz")
    assert truth["true_labels"].tolist() == [1]
    assert truth["true_boxes"].tolist() == [[4, 4, 24, 24]]


def test_the_numbers_are_the_scenes(files: dict[str, Path], tmp_path: Path) -> None:
    chosen = ("--query", 3, "--method", "relevance", "--method", "raw", "--method", "points", "--target", "w")
    explained(files, "two-stage", tmp_path, *chosen, "--layer", "decoder.0", "--head", 1, "--level", 0)
    model = load_trained(files["two-stage"], torch.device("cpu")).model
    trace = AttentionTrace(model, files["image"], size=64)
    prediction = trace.prediction(3)
    stem = "street-query3-"
    where = {"layer": 0, "head": 1, "level": 0}
    relevance = np.load(tmp_path / f"{stem}relevance-decoder.0-head1-level0.npz")["heat"]
    assert np.allclose(relevance, heat_map(trace, prediction, "relevance", target="w", **where))
    raw = np.load(tmp_path / f"{stem}raw-decoder.0-head1-level0.npz")["heat"]
    assert np.allclose(raw, heat_map(trace, prediction, "raw", **where))
    points = np.load(tmp_path / f"{stem}points-decoder.0-head1-level0.npz")
    assert np.allclose(points["xy"][0, 0], trace.points("decoder.0.cross", 3).xy[1, 0])
    assert np.allclose(points["weights"][0, 0], trace.points("decoder.0.cross", 3).weights[1, 0])


def test_grids_of_layers_heads_and_levels(files: dict[str, Path], tmp_path: Path) -> None:
    every = ("--layer", "decoder.1", "--head", "all", "--level", "all")
    about = explained(files, "two-stage", tmp_path / "one", "--query", 3, "--method", "raw", *every)
    assert pictures(about) == {"queries", "seeds", "query3-journey", "query3-raw-decoder.1-headall-levelall"}
    grid = np.load(tmp_path / "one" / "street-query3-raw-decoder.1-headall-levelall.npz")
    assert grid["heat"].shape == (2, 2, 48, 64)
    about = explained(files, "two-stage", tmp_path / "layers", "--query", 3, "--method", "raw", "--layer", "all")
    layers = np.load(tmp_path / "layers" / "street-query3-raw-all.npz")["heat"]
    assert layers.shape == (2, 1, 48, 64)
    assert np.allclose(layers[1, 0], grid["heat"].sum(1).mean(0), atol=1e-5)


def test_which_pictures_a_view_asks_for(files: dict[str, Path]) -> None:
    """Their names, before any is drawn."""
    trace = AttentionTrace(load_trained(files["two-stage"], torch.device("cpu")).model, files["image"], size=64)
    prediction = [("query3", trace.prediction(3))]

    def named(**view: Any) -> set[str]:
        options = ExplainOptions(files["image"], checkpoint=files["two-stage"], view=View(**view))
        return {name for name, _ in jobs(trace, options, prediction)} - {"queries", "seeds", "query3-journey"}

    every = {"layer": "all", "head": "all", "level": "all"}
    end = "-all-headall-levelall-decoder."
    grids = {f"query3-{method}{end}{layer}" for method in ("points", "raw") for layer in (0, 1)}
    whole = {"query3-rollout-headall-levelall", "query3-input-grad-headall-levelall"}
    assert named(method=("points", "raw", "rollout", "input-grad"), **every) == {"encoder.0", *grids, *whole}
    assert named() == {"query3-points-decoder.1", "query3-relevance"}
    assert named(layer="all", level="all") == {
        "encoder.0", "query3-points-all-levelall", "query3-relevance-all-levelall"
    }  # fmt: skip
    assert named(layer="encoder.0") == {"encoder.0"}
    assert named(slopes=True, method=("points",), head="1") == {"query3-points-decoder.1-head1-slopes"}
    assert named(contributions=True) == {"query3-points-decoder.1", "query3-relevance", "query3-contributions"}


def test_dense_attention_and_places_of_the_encoder(files: dict[str, Path], tmp_path: Path) -> None:
    about = explained(files, "detr", tmp_path, "--ref", "10,10", "--ref", "60,40", "--confidence", 0)
    assert pictures(about) == {"queries", "encoder.0"}
    rows = np.load(tmp_path / "street-encoder.0.npz")
    assert rows["places"].tolist() == [[10, 10], [60, 40]]
    assert np.allclose(rows["rows"].sum((1, 2)), 1, atol=1e-3)
    about = explained(files, "detr", tmp_path, "--det", 0, "--confidence", 0)
    assert pictures(about) == {"queries", "det0-journey", "det0-raw-decoder.1", "det0-relevance"}


def test_what_is_missed_is_explained_by_its_box(files: dict[str, Path], tmp_path: Path) -> None:
    about = explained(files, "deformable", tmp_path, "--box", "4, 4, 2.4e1,24", "--label", "cow", "--confidence", 1)
    assert about["detections"] == []
    (prediction,) = about["explained"].values()
    assert (prediction["label"], prediction["name"]) == (2, "cow")


def test_a_class_chooses_its_own_detections(files: dict[str, Path], tmp_path: Path) -> None:
    """Not the best of all, explained for a class that they are not."""
    model = load_trained(files["two-stage"], torch.device("cpu")).model
    trace = AttentionTrace(model, files["image"], size=64)
    found = trace.detections(0)
    other = next(prediction for prediction in found if prediction.label != found[0].label)
    about = explained(files, "two-stage", tmp_path, "--label", other.name, "--confidence", 0, "--most", 2)
    assert trace.model.focal, "a query may detect several classes"
    queries = trace.layer_scores[-1, :, other.label].argsort(descending=True, stable=True)[:2].tolist()
    wanted = [[prediction.query for prediction in found].index(query) for query in queries]
    assert list(about["explained"]) == [f"det{number}" for number in wanted]
    assert {one["label"] for one in about["explained"].values()} == {other.label}
    assert {f"det{number}-relevance" for number in wanted} <= pictures(about)


def test_detections_of_a_class_are_those_of_predict(files: dict[str, Path]) -> None:
    """Whether classes exclude each other or not."""
    for family in ("two-stage", "detr"):
        model = load_trained(files[family], torch.device("cpu")).model
        trace = AttentionTrace(model, files["image"], size=64)
        confidence = float(trace.layer_scores[-1].amax(-1).median()) - 1e-4
        predicted = model.predict(files["image"], confidence=confidence, size=64)
        for label in range(3):
            own = predicted.scores[predicted.labels == label]
            found = [prediction.score for prediction in trace.detections(confidence, label)]
            assert np.allclose(found, own, atol=1e-5), (family, label)
    with pytest.raises(ValueError, match="label: expected from 0 to 2, got 3"):
        trace.detections(0.5, 3)


def test_a_class_that_is_not_detected_is_told_with_its_best(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = AttentionTrace(load_trained(files["two-stage"], torch.device("cpu")).model, files["image"], size=64)
    first = trace.detections(0)[0]
    label = (first.label + 1) % 3
    query = int(trace.layer_scores[-1, :, label].argmax())
    best = trace.prediction(query, label)
    assert best.score < first.score
    assert main(words(files, "two-stage", tmp_path / "out", "--label", best.name, "--confidence", first.score)) == 1
    told = capsys.readouterr().err
    assert f"label: no {best.name} was detected with at least {first.score:g}; the best is {best.name} with " in told
    assert f"{best.score:.3f} (query {query}" in told
    assert not (tmp_path / "out").exists()


def test_a_class_of_a_named_query_is_explained_and_said(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = AttentionTrace(load_trained(files["deformable"], torch.device("cpu")).model, files["image"], size=64)
    best = trace.detections(0)[0]
    other = trace.prediction(best.query, (best.label + 1) % 3)
    assert other.detected_as == f"{best.name} {best.score:.2f}"
    assert told(other, "street") == (
        f"street: {other.name} {other.score:.2f} (query {best.query}, detected as {best.name} {best.score:.2f})"
    )
    chosen = ("--det", 0, "--label", other.name, "--confidence", 0, "--method", "relevance")
    about = explained(files, "deformable", tmp_path, *chosen)
    assert about["explained"]["det0"]["label"] == other.label
    printed = capsys.readouterr().out
    assert f"det0: explained is {other.name} {other.score:.3f} of query {best.query} at " in printed
    assert f", which is detected as {best.name} {best.score:.2f}" in printed
    heat = np.load(tmp_path / "street-det0-relevance.npz")["heat"]
    assert np.allclose(heat, heat_map(trace, other, "relevance"))
    # under masks that change nothing of it, it was not detected before and is not lost or changed
    masked = explained(files, "deformable", tmp_path / "masked", *chosen[:-2], "--mask", "decoder.0.cross:h0")
    assert masked["masks"][0]["became"] == {str(best.query): f"{other.name} {other.score:.2f}"}


def test_what_is_named_opens_the_page(files: dict[str, Path], tmp_path: Path) -> None:
    """With the maps of the class asked for."""
    trace = AttentionTrace(load_trained(files["deformable"], torch.device("cpu")).model, files["image"], size=64)
    query = trace.detections(0)[-1].query
    label = (trace.prediction(query).label + 1) % 3
    explained(files, "deformable", tmp_path, "--query", query, "--label", label, "--html", "--method", "gradcam")
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "street.html").read_text(), re.DOTALL)
    assert data is not None
    meta = json.loads(data[1])
    assert (meta["selected"], meta["mapped"][0], meta["mapped_classes"][0]) == (query, query, label)
    assert [one["name"] for one in meta["methods"]] == ["gradcam"]


def test_ten_detections_are_listed() -> None:
    options = ExplainOptions(Path("street.png"), checkpoint=Path("run"))
    one = {"label": 0, "name": "cat", "score": 0.9, "box": (0.0, 1.0, 2.0, 3.0), "detected_as": ""}
    found = [one | {"query": query} for query in range(100, 145)]
    about = {
        "attention": True,
        "detections": found,
        "detections_of_label": found[-1:],
        "explained": {},
        "folder": "there",
        "files": ["a.png", "a.npz", "b.png"],
    }
    printed = lines(about, options)
    assert len(printed) == 12
    assert printed[-3:] == [
        "  det 9  query 109  cat 0.900  at 0, 1, 2, 3",
        "  and 35 more (--most 45 explains and lists them all)",
        "2 pictures, each with its numbers as .npz, in there",
    ]
    assert len(lines(about | {"detections": found[:10]}, options)) == 11
    assert len(lines(about, ExplainOptions(Path("street.png"), Subject(most=45), checkpoint=Path("run")))) == 46
    of_class = lines(about, ExplainOptions(Path("street.png"), Subject(label="cat"), checkpoint=Path("run")))
    assert of_class[:-1] == ["  det 44  query 144  cat 0.900  at 0, 1, 2, 3"]


def test_boxes_are_clipped_to_the_image(files: dict[str, Path]) -> None:
    trace = AttentionTrace(load_trained(files["detr"], torch.device("cpu")).model, files["image"], size=64)
    shown = as_displayed(trace, replace(trace.prediction(0), box=(-3.5, 4.0, 64.5, 60.0)))
    assert shown["box"] == (0, 4, 64, 48)
    assert shown["query"] == 0


def test_outputs_lie_in_the_run_and_do_not_overwrite_each_other(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, here = tmp_path / "run", tmp_path / "here"
    shutil.copytree(files["deformable"], run)
    (run / "log.jsonl").touch()
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "street.png"
    Image.new("RGB", (64, 48), (90, 120, 30)).save(other)
    rest = ["--query", "1", "--method", "raw", "--image-size", "64", "--no-progress", "--dpi", "40"]
    for image, folder in ((files["image"], "street"), (other, "street-2"), (files["image"], "street")):
        assert main(["explain", str(image), "--checkpoint", str(run), *rest]) == 0
        place = run / "explanations" / folder
        printed = capsys.readouterr().out
        assert f"in {place}\n" in printed
        assert "  query1: explained is " in printed
        assert (place / f"{folder}-query1-raw-decoder.1.png").is_file()
    assert sorted(one.name for one in (run / "explanations").iterdir()) == ["street", "street-2"]
    assert list(here.iterdir()) == []
    assert main(["explain", str(other), "--checkpoint", str(files["deformable"]), *rest]) == 0
    assert (here / "explanations" / "street" / "street-explanation.json").is_file()
    shutil.copytree(files["deformable"], tmp_path / "model")  # the same image in another model
    assert main(["explain", str(other), "--checkpoint", str(tmp_path / "model"), *rest]) == 0
    assert (here / "explanations" / "street-2" / "street-2-explanation.json").is_file()
    # the other commands that explain
    assert default_folder(run, "ablation") == default_folder(run / "best.pt", "ablation") == run / "ablation"
    assert default_folder(files["deformable"], "explain-eval") == Path("explain-eval")
    assert AblateOptions(checkpoint=run, matrix=True).out is ExplainEvalOptions(checkpoint=run).out is None


def test_a_folder_that_cannot_be_made_is_told_before_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"^out: expected a place that can be written; {tmp_path}/file is a file"):
        checked(tmp_path / "file" / "explanations")
    assert checked(tmp_path / "new") == tmp_path / "new"
    assert not (tmp_path / "new").exists()


def test_annotations_whose_classes_are_not_the_models(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(files["annotations"].read_text())
    content["categories"][0]["name"] = "horse"
    (tmp_path / "horses.json").write_text(json.dumps(content))
    named = ("--annotations", tmp_path / "horses.json", "--query", 1)
    assert main(words(files, "deformable", tmp_path / "out", *named)) == 1
    assert "has no class 'horse'" in capsys.readouterr().err


def test_heads_off_on_one_image(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "off.csv").write_text("0,0\n1,0\n")
    masks = ("--mask", "decoder.0.cross:h0+encoder.*:h1", "--mask-matrix", tmp_path / "off.csv", "--cumulative")
    about = explained(files, "deformable", tmp_path, "--confidence", 0.01, "--det", 0, "--ref", "5,5", *masks)
    assert pictures(about) == {"masked-boxes", "masked-det0-relevance", "masked-ref0-attention"}
    names = [one["name"] for one in about["masks"]]
    assert names == ["all heads on", "decoder.0.cross:h0+encoder.*:h1", "off.csv", "1 head off", "2 heads off"]
    assert about["masks"][2]["masks"] == ["decoder.0.cross:h0-1", "decoder.1.cross:h1"]
    query = str(about["explained"]["det0"]["query"])
    assert about["masks"][0]["became"][query].startswith("kept")
    assert f"all heads on: {len(about['detections'])} detections; query {query} kept" in capsys.readouterr().out
    heat = np.load(tmp_path / "street-masked-det0-relevance.npz")["heat"]
    assert heat.shape == (5, 3, 48, 64)  # masks x two layers and all
    assert np.allclose(heat[:, :2].sum(1), heat[:, 2], rtol=1e-3, atol=1e-6)
    assert heat[4].max() == 0, "with all heads off nothing of the image is relevant"
    # none detected is enough
    about = explained(files, "deformable", tmp_path / "none", "--confidence", 1, "--mask", "encoder.*:h0")
    assert pictures(about) == {"masked-boxes"}
    for name, text in (("bad.json", "[[1, 1]]"), ("two.json", "[[1, 2], [1, 1]]"), ("words.csv", "a,b")):
        (tmp_path / name).write_text(text)
    model = load_trained(files["deformable"], torch.device("cpu")).model
    np.save(tmp_path / "good.npy", np.array([[1, 1], [0, 1]]))
    assert [str(mask) for mask in read_mask_matrix(tmp_path / "good.npy", model)] == ["decoder.1.cross:h0"]
    for name, sentence in (
        ("bad.json", r"expected 2 layers x 2 heads, got \(1, 2\)"),
        ("two.json", "expected 1 .* and 0 .* got other numbers"),
        ("words.csv", "cannot be read as numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_mask_matrix(tmp_path / name, model)


def test_queries_chosen_anew_are_followed(files: dict[str, Path]) -> None:
    """In two stages an encoder's mask moves queries: the one of the same pixel is what a detection became."""
    model = load_trained(files["two-stage"], torch.device("cpu")).model
    before = AttentionTrace(model, files["image"], size=64)
    assert before.tape.seeds is not None
    moved = 0
    for mask in (Mask("encoder.*", heads=(0, 1)), Mask("decoder.1.cross", heads=(0,))):
        after = AttentionTrace(model, files["image"], size=64, masks=[mask])
        assert after.tape.seeds is not None
        for prediction in before.detections(0):
            query = follow(before, after, prediction)
            seed = before.tape.seeds[0, prediction.query]
            moved += query != prediction.query
            if seed in after.tape.seeds[0]:
                assert after.tape.seeds[0, query] == seed
            else:
                assert query == after.nearest(prediction.box).query
    assert moved, "the encoder's heads change which pixels are chosen, or in what order"


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (
            ("--confidence", "1"),
            r"nothing was detected with at least 1; the best is \w+ with 0\.\d+ \(query \d+\)",
        ),
        (("--det", "10", "--confidence", "0"), "det: expected from 0 to 9, of detections of at least 0, got 10"),
        (("--query", "10"), "query: expected from 0 to 9, got 10"),
        (("--layer", "decoder.5", "--query", "1"), "layer: expected one of encoder.0, decoder.0, decoder.1, or all"),
        (("--head", "8", "--query", "1"), "head: expected from 0 to 1, mean or all, got '8'"),
        (("--level", "3", "--query", "1"), "level: expected from 0 to 1, together or all, got '3'"),
        (("--box", "1,2,x"), "box: expected x1,y1,x2,y2 in pixels, got '1,2,x'"),
        (("--ref", "99,1"), "ref: expected a place within 64 x 48, got 99,1"),
        (("--label", "dgo", "--query", "1"), "label: the model knows no class 'dgo'; did you mean dog?"),
        (("--mask", "decoder.4.cross:h0"), "site 'decoder.4.cross' matches nothing; this model has encoder.0.self"),
        (("--mask", "decoder.*.cross:h2"), "expected a head from 0 to 1 of decoder.0.cross, got 2"),
        (("--mask", "decoder.*.cross:z2"), "'z2' is none of its parts"),
        (("--mask-matrix", "none.csv"), "--mask-matrix: expected a file; none.csv does not exist"),
        (("--annotations", "none.json"), "--annotations: expected a file; none.json does not exist"),
        (("--dpi", "5"), "--dpi: expected a number from 20 to 1200, got 5"),
        (("--most", "0"), "most: expected at least 1, got 0"),
        (("--html", "--mask", "decoder.*.cross:h0"), "html: the page shows .*; --mask has no effect on that"),
        (("--html", "--target", "x"), "html: the page shows .*; --target has no effect on that"),
        (
            ("--cumulative", "--head", "1"),
            "cumulative: with masks or .*; --head has no effect on that",
        ),
        (
            ("--cumulative", "--method", "raw"),
            "cumulative: with masks or .*; --method has no effect on that",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: tuple[str, ...], sentence: str
) -> None:
    try:
        status = main(words(files, "deformable", tmp_path / "out", *rest))
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status in (1, 2)
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(sentence, told), told
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_or_has_no_attention(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--checkpoint", str(files["detr"]), "--out", str(tmp_path)]
    assert main(["explain", str(files["annotations"]), *common]) == 1
    assert "annotations.json cannot be decoded" in capsys.readouterr().err
    assert main(words(files, "detr", tmp_path, "--query", 1, "--method", "points")) == 1
    assert "Detr attends to every key and samples no points; try raw" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
