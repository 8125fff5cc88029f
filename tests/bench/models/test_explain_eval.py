"""The benchmark of explanations' quality: rows of every method, known again, and tables of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.bench.harness import records
from msdeform.bench.models.explanations import quality
from msdeform.cli import main
from msdeform.explain.quality.scores import MEASURES

NAMES = ("relevance", "random", "centre", "box")


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """Of a command whose judgement is made up: relevance is better than all baselines by deletion, and worse by energy.

    A detection in each of ten images, and one more that is no object.
    """

    def judged(options: Any, keep: Path | None) -> dict[str, Any]:
        assert keep is None or keep.parent == Path("runs/explain-eval")
        generator = np.random.default_rng(options.seed)
        rows = []
        for image in range(11):
            scores = {name: {one: 0.5 + 0.01 * float(generator.random()) for one in MEASURES} for name in NAMES}
            scores["relevance"] |= {"deletion": 0.1, "energy": 0.1}
            scores["random"]["rank_mask"] = None
            truth = None if image == 10 else [0.0, 0.0, 1.0, 1.0]
            rows.append({"image_id": image, "truth": truth, "scores": scores})
        return {"detections": rows}

    monkeypatch.setattr(quality, "evaluate", judged)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights").mkdir()
    return ["bench", "explain-eval", "Mine", "--checkpoint", "weights", "--data", "photos", "--out", "rows"]


def test_rows_of_every_method_with_seeds_together(words, tmp_path, capsys) -> None:
    assert main([*words, "--methods", "relevance", "--seeds", "0", "1"]) == 0
    printed = capsys.readouterr().out
    rows = records.read(*Path("rows").glob("*.jsonl")).rows
    assert [records.key(row)[:-1] for row in rows] == [
        ("explanation-quality", "Mine", "photos", "class", name) for name in NAMES
    ]
    assert {records.key(row)[-1] for row in rows} == {
        "measures perturbation,removal,place,sanity,noise, confidence 0.5, limit None, most 3, steps 8, "
        "randomise smooth, seeds 0 1"
    }
    first = rows[0]
    assert (first["detections"], first["images"], first["seeds"]) == (11, 11, [0, 1])
    assert first["intervals"]["deletion"] == [0.1, 0.1, 0.1]
    assert first["beats"]["deletion"] == ["random", "centre", "box"]
    assert first["beats"]["energy"] == []
    assert "0.100 [0.10, 0.10] *" in printed
    assert quality.counted_detections(rows) == "11 detections in 11 images, 10 of them of an annotated object; 2 seeds"
    assert len(list(Path("runs/explain-eval").glob("mine-photos-class-seed*.json"))) == 2
    # what is recorded is not judged again
    assert main([*words, "--methods", "relevance", "--seeds", "0", "1"]) == 0
    assert len(records.read(*Path("rows").glob("*.jsonl")).rows) == len(NAMES)
    assert main([*words, "--methods", "relevance", "--seeds", "0"]) == 0
    rows = records.read(*Path("rows").glob("*.jsonl")).rows
    assert len(rows) == 2 * len(NAMES), "one seed is another measurement"
    assert {tuple(row["seeds"]) for row in quality.of_group(rows, "place")} == {(0,)}, "the last one is shown"
    for row in rows[len(NAMES) :]:
        row["intervals"] |= {name: [None] * 3 for name, one in MEASURES.items() if one.group == "place"}
    assert {tuple(row["seeds"]) for row in quality.of_group(rows, "place")} == {(0, 1)}, "of those with its measures"


def test_a_table_has_the_measures_of_its_group(words) -> None:
    assert main([*words, "--methods", "relevance"]) == 0
    rows = records.read(*Path("rows").glob("*.jsonl")).rows
    head, *lines = quality.quality_table(rows, "place")
    assert head[:3] == ["method", "pointing (high)", "energy in box (high)"]
    assert [line[0] for line in lines] == list(NAMES)
    assert lines[1][head.index("rank in mask (high)")] == "-"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--methods", "relevanse"], "did you mean relevance?"),
        (["--measures", "plase"], "did you mean place?"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, more, sentence, capsys) -> None:
    assert main([*words, *more]) != 0
    assert sentence in " ".join(capsys.readouterr().err.split())
