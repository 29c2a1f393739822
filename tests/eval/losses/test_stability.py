"""Searches on folds of the calibration documents: what they share, and that nothing is measured twice."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from eval.config.placement import PlacementConfig
from eval.losses.ledger import CALIBRATION, SearchText
from eval.losses.placement_job import _in_folds, open_placement
from eval.losses.search import Space, plans_to_judge
from eval.losses.stability import chance_jaccard, count_units, jaccard, majority_of
from eval.placement import main
from eval.runtime.model import open_model
from eval.runtime.processes import start_accelerated
from masformer import SpanPlan
from masformer.checkpoints.open import Checkpoint
from masformer.placement import Found, PlanMeter, Unit
from tasks import Example
from tests.helpers.texts import WORDS, read, text

LOCAL = "span=1 sinks=0"


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return rows of twelve documents, of which two and two are of one book."""
    file = tmp_path_factory.mktemp("folds") / "rows.jsonl"
    rows = [
        {"context": text(index, 60, WORDS[:13]), "target": "x", "book": f"book {index // 2}"} for index in range(12)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture
def folded(texts: Path, model: Path, tmp_path: Path) -> list[str]:
    """Arguments of a search for one head, in three folds of eight documents, judged on the four others."""
    arguments = f"--task custom --data {texts} --model {model} --maxlen 48 --limit 8 --threads 1 --rank gates --folds 3"
    judged = "--units heads --candidates 3 --budget layers=0.5 --held-out-split test --random 2"
    return [*arguments.split(), *judged.split(), "--local", LOCAL, "--output", str(tmp_path / "run")]


def test_documents_of_two_tasks_under_one_name_are_two() -> None:
    of_task = [Example(id=name, document_id=name, context=name, references=("x",)) for name in "012"]
    texts = [
        SearchText(part=CALIBRATION, task=task, id=one.id, token_ids=[1]) for task in ("a", "b") for one in of_task
    ]
    found = _in_folds(texts, {"a": of_task, "b": of_task}, 6)
    assert sorted({one.fold for one in found if one.fold is not None}) == list(range(6))


def folds_of(arguments: list[str]) -> dict[str, int | None]:
    """Return the fold of each document."""
    config = PlacementConfig.from_command_line(arguments)
    opened = open_model(config, "full", start_accelerated(1), config.maxlen)
    return {one.id: one.fold for one in open_placement(config, opened).texts}


def test_indices_are_those_counted_by_hand() -> None:
    one, other, third = frozenset({(0, 1), (2, 0)}), frozenset({(0, 1), (3, 1), (4, None)}), frozenset({(2, 0)})
    assert jaccard(one, other) == 1 / 4
    assert jaccard(one, one) == jaccard(frozenset(), frozenset()) == 1
    assert jaccard(one, frozenset()) == 0
    assert count_units([one, other, third]) == {(0, 1): 2, (2, 0): 2, (3, 1): 1, (4, None): 1}
    assert majority_of([list(one), list(other), list(third)]) == [(0, 1), (2, 0)]
    # Half of the folds is enough.
    assert majority_of([[(0, 0)], [(0, 0)], [(1, 0)], [(2, 0)]]) == [(0, 0)]
    assert majority_of([[(0, 0)], [(1, 0)], [(2, 0)]]) == []


def test_the_index_by_chance_is_the_mean_over_all_choices() -> None:
    for one, other, count in ((2, 2, 5), (1, 3, 4), (3, 3, 4), (0, 2, 3), (4, 4, 4)):
        choices = [
            [frozenset((unit, None) for unit in some) for some in itertools.combinations(range(count), size)]
            for size in (one, other)
        ]
        expected = statistics.fmean(jaccard(first, second) for first in choices[0] for second in choices[1])
        assert chance_jaccard(one, other, count) == pytest.approx(expected)
    assert chance_jaccard(0, 0, 3) == 1


def test_each_fold_finds_what_a_search_on_its_documents_alone_finds(
    folded: list[str], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = folds_of(folded)
    assert main(folded) == 0
    printed = capsys.readouterr().out
    found = read(tmp_path / "run", "placement.json")
    stability = found["stability"]
    assert [fold["num_documents"] for fold in stability["folds"]] == [3, 3, 2]
    rows = texts.read_text().splitlines(keepends=True)
    chosen = []
    for number, fold in enumerate(stability["folds"]):
        alone = tmp_path / f"{number}.jsonl"
        alone.write_text("".join(rows[int(name.rpartition("-")[2])] for name, of in folds.items() if of == number))
        output = tmp_path / f"alone {number}"
        at = folded.index("--held-out-split")
        search = [*folded[:at], "--data", str(alone), "--local", LOCAL, "--output", str(output)]
        search[search.index("--folds") : search.index("--folds") + 2] = []
        assert main(search) == 0
        by_itself = read(output, "placement.json")["chosen"]
        assert fold["chosen"]["text"] == by_itself["text"]
        assert fold["chosen"]["loss"] == pytest.approx(by_itself["loss"], rel=1e-6)
        chosen.append(set(by_itself["units"]))
    indices = [len(one & other) / len(one | other) for one, other in itertools.combinations(chosen, 2)]
    assert stability["jaccard"] == pytest.approx(indices)
    assert stability["median_jaccard"] == statistics.median(indices)
    assert f"of {statistics.median(indices):.2f} in the median over 3 pairs" in printed
    # What all documents find is what they find without folds.
    assert found["chosen"]["units"]
    assert (tmp_path / "run" / "plots" / "folds.svg").exists()
    report = (tmp_path / "run" / "report.md").read_text()
    assert "What 3 folds find, each on its own documents" in report
    assert "plots/folds.svg" in report


def test_the_majority_is_written_judged_and_taken_away_again(folded: list[str], tmp_path: Path, no_plots: None) -> None:
    assert main(folded) == 0
    found = read(tmp_path / "run", "placement.json")
    stability = found["stability"]
    counts = {one["unit"]: one["num_folds"] for one in stability["units"]}
    file = tmp_path / "run" / "plan-majority.json"
    often = {unit for unit, count in counts.items() if 2 * count >= 3}
    assert often
    assert set(stability["majority"]["units"]) == often
    assert json.loads(file.read_text())["text"] == stability["majority"]["text"]
    rows = {row["name"]: row for row in found["held_out"]}
    assert rows["majority"]["plan"] == stability["majority"]["text"]
    assert rows["majority"]["num_documents"] == 4
    # Its loss is that of all calibration documents.
    lines = [line for line in read(tmp_path / "run", "measurements.jsonl") if line["part"] == "calibration"]
    own = [line for line in lines if line["plan"] == stability["majority"]["text"]]
    assert len(own) == 8
    mean = sum(line["negative_log_likelihood"] for line in own) / sum(line["num_tokens"] for line in own)
    assert stability["majority"]["loss"] == pytest.approx(mean)
    without = [*folded]
    without[without.index("--folds") : without.index("--folds") + 2] = []
    assert main(without) == 0
    assert not file.exists()
    again = read(tmp_path / "run", "placement.json")
    assert "stability" not in again
    assert again["chosen"] == found["chosen"]


def test_folds_measure_only_what_is_new_and_go_on_after_a_kill(
    folded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    measure, measured = PlanMeter._loss, []

    def noting(self: PlanMeter, index: int, plan: SpanPlan) -> float:
        measured.append((tuple(self.texts[index]), str(plan)))
        if len(measured) == 40:
            raise KeyboardInterrupt
        return measure(self, index, plan)

    monkeypatch.setattr(PlanMeter, "_check_reuse", lambda self: None)
    monkeypatch.setattr(PlanMeter, "_loss", noting)
    assert main(folded) == 130
    assert main(folded) == 0
    stopped = measured.pop(39)
    assert stopped in measured[39:]
    # No document twice under one plan, though it is in a fold and in the whole.
    assert len(measured) == len(set(measured)) > 50
    monkeypatch.setattr(Checkpoint, "load_model", lambda *_: pytest.fail("weights were loaded"))
    before = read(tmp_path / "run", "placement.json")
    assert main(folded) == 0
    assert read(tmp_path / "run", "placement.json") == before


def test_documents_of_a_cluster_are_in_one_fold(folded: list[str]) -> None:
    folds = folds_of([*folded, "--cluster-field", "book"])
    calibrating = [fold for fold in folds.values() if fold is not None]
    assert len(calibrating) == 8
    assert calibrating[::2] == calibrating[1::2]
    assert sorted(calibrating.count(fold) for fold in range(3)) == [2, 2, 4]
    # Held-out documents are in none.
    assert sum(fold is None for fold in folds.values()) == 4


def test_random_heads_can_be_drawn_in_the_layers_that_were_found(folded: list[str], model: Path) -> None:
    config = PlacementConfig.from_command_line([*folded, "--random", "40", "--random-within", "layers"])
    opened = open_model(config, "full", start_accelerated(1), config.maxlen)
    space = Space(config, opened.checkpoint.config)
    # Both heads of layer 0, and one of each other layer.
    units: list[Unit] = [(0, 0), (1, 1), (0, 1), (2, 0)]
    chosen = Found(plan=space.plan(units), units=tuple(units), loss=1.0, cost={})
    judged = plans_to_judge(config, space, opened.checkpoint, {}, chosen)
    random = {str(plan) for name, plan in judged.items() if name.startswith("random")}
    # All that are not the found one.
    assert random == {f"full@0,1.{one},2.{two} {LOCAL}" for one, two in ((0, 0), (0, 1), (1, 1))}
    assert {space.cost(judged[name])["flops"] for name in judged if name.startswith("random")} == {
        space.cost(chosen.plan)["flops"]
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "--folds: 1 must be at least 2"),
        (["--folds", "9"], "--folds 9 needs at least 9 calibration documents"),
        (["--folds", "5", "--cluster-field", "book"], "and there are 4"),
        (["--rank", "none", "--measure", "full", "--random", "0"], "--folds 3 searches in each of them"),
        (["--units", "layers", "--budget", "layers=1", "--random-within", "layers"], "give --units heads and --random"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_weights_load(
    more: list[str],
    message: str,
    folded: list[str],
    no_weights: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([*folded, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
