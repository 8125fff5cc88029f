"""Recipes on the same photographs: what they change, what is held out, what a row holds, and the tables of rows."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from msdeform.bench.harness import records
from msdeform.bench.models.training import recipes, runs
from msdeform.bench.options import RecipesOptions
from msdeform.cli import main
from msdeform.common.command_line import parse
from msdeform.train.config.resolve import resolve
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.synth import make_dataset
from msdeform.train.engine.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "photographs"
    make_dataset(SynthOptions(out, 12, 4, size=64, progress=False))
    return out


def test_rows_of_recipes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[list[str]] = []

    def act(command: list[str], log: Path, end: float) -> tuple[int, str]:
        begun.append(command[command.index("train") + 1 :])
        train(resolve([*begun[-1], "--max-steps", "2", "--device", "cpu"]))
        return 0, ""

    monkeypatch.setattr(runs, "_apart", act)
    words = ["--data", str(data), "--preset", "debug", "--recipes", "preset", "augment none", "--seeds", "0", "1"]
    words += ["--out", str(tmp_path / "rows"), "--runs", str(tmp_path / "runs")]
    assert main(["bench", "recipes", *words]) == 0
    rows = records.read(tmp_path / "rows").of("recipe")
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        ("preset", 0),
        ("augment none", 0),
        ("preset", 1),
        ("augment none", 1),
    ]
    for row in rows:
        assert (row["data"], row["validated"], row["val_images"], row["failure"]) == ("photographs", "own", 4, None)
        ap50 = row["intervals"]["AP50"]
        assert ap50["value"] == pytest.approx(row["ap50"], abs=1e-9)
        assert ap50["low"] <= ap50["value"] <= ap50["high"]
        assert {"name", "boxes", "AP", "AP50"} <= row["classes"][0].keys()
    assert ["--augment none" in " ".join(given) for given in begun] == [False, True, False, True]
    out = capsys.readouterr().out
    assert "photographs" in out
    assert "95% interval" in out
    # all have rows
    assert main(["bench", "recipes", *words]) == 0
    assert len(begun) == 4

    # held out of the training images, whatever validates otherwise
    words = ["--data", str(data), "--preset", "debug", "--val-share", "0.25", "--seeds", "0"]
    options = parse(RecipesOptions, [*words, "--runs", str(tmp_path / "other")], "msdeform bench recipes")
    assert recipes.measure_rows(options) == 0
    assert str(data / "train2017") in begun[-1]
    assert not any("val2017" in word for word in begun[-1])


def test_the_table_tells_means_and_ranges() -> None:
    def of(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    def row(recipe: str, seed: int, ap: float) -> dict[str, Any]:
        classes = [{"name": "cat", "boxes": 3, "AP": of(ap), "AP50": of(ap + 0.2)}]
        intervals = {"AP": of(ap), "AP50": of(ap + 0.2)}
        lead = {
            "data": "mine",
            "validated": "own",
            "preset": "scratch",
            "recipe": recipe,
            "flags": recipe,
            "seed": seed,
        }
        curves = {"loss_curve": [[1, 2.0], [2, 1.0]], "ap_curve": [[2, ap]]}
        return {**lead, "classes": classes, "intervals": intervals, "seconds": 90.0, **curves}

    rows = [row("preset", 0, 0.4), row("no EMA", 0, 0.3), row("preset", 1, 0.5)]
    _, first, second = recipes.recipe_table(rows)
    ap, ap50 = ("0.450", "0.400 to 0.500"), ("0.650", "0.600 to 0.700")
    assert first == ("mine", "own", "scratch", "preset", "2", *ap, *ap50, "0.650", "1.50")
    assert second[3:6] == ("no EMA", "1", "0.300")
    head, line, *_ = recipes.interval_table(rows)
    assert head[5:] == ("AP (95% interval)", "AP50 (95% interval)", "AP50 cat")
    told = ("0.400 (0.300 to 0.500)", "0.600 (0.500 to 0.700)", "0.600 (0.500 to 0.700)")
    assert line == ("mine", "own", "scratch", "preset", "0", *told)
    drawn = [text.get_text() for text in recipes.curves(rows).findobj(Text)]
    assert any(text.startswith("scratch: preset") for text in drawn)
    assert any(text.startswith("scratch: no EMA") for text in drawn)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipes", "augment nnoe"], "--recipes: no recipe is called 'augment nnoe'; did you mean augment none"),
        (["--preset", "scrach"], "did you mean scratch"),
        (["--val-share", "2"], "--val-share: expected"),
    ],
)
def test_mistakes_are_told(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "recipes", "--data", str(tmp_path), *words])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
