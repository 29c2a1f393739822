"""Modules of Hugging Face `evaluate` are metrics: their own scores, of one pair at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.errors import UserError
from eval.metrics.base import Item, checked_scores, describe_source
from eval.metrics.open import open_metric

evaluate = pytest.importorskip("evaluate", reason="the package evaluate is an extra")

MODULE = """
import datasets
import evaluate

class Overlap(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": REFERENCES}),
        )

    def _compute(self, predictions, references):
        first = [[one] if isinstance(one, str) else one for one in references]
        shares = [
            max(len(set(a.split()) & set(b.split())) / len(set(b.split())) for b in of_one)
            for a, of_one in zip(predictions, first)
        ]
        mean = sum(shares) / len(shares)
        return {"exact_match": float(mean == 1), "overlap": mean, "each": shares * 2, "kind": "words"}
"""


@pytest.fixture(params=["datasets.Value('string')", "datasets.Sequence(datasets.Value('string'))"], ids=["one", "all"])
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    kind = "one" if "Sequence" not in request.param else "all"
    file = tmp_path / f"overlap_{kind}" / f"overlap_{kind}.py"
    file.parent.mkdir()
    file.write_text(MODULE.replace("REFERENCES", request.param))
    return file


def test_a_module_by_path_scores_each_pair_as_it_does_itself(module: Path) -> None:
    metric = open_metric(f"evaluate:{module}")
    assert metric.name == f"evaluate:{module.stem}", "no folder of this machine"
    assert metric.values.keys() == {"exact_match", "overlap"}, "single numbers alone"
    assert metric.values["exact_match"].better == "higher"
    assert metric.values["overlap"].better is None, "nobody knows what a module's own values mean"
    items = [
        Item.of(metric, prediction="a b", references=("a c", "a b c d e")),
        Item.of(metric, prediction="a b", references=("b a",)),
    ]
    assert checked_scores(metric, items) == [{"exact_match": 0.0, "overlap": 0.5}, {"exact_match": 1.0, "overlap": 1.0}]
    made = metric.provenance()
    assert made["packages"]["evaluate"] == evaluate.__version__
    assert len(made["module_sha256"]) == 64
    assert describe_source(metric) == {}


def test_a_module_of_this_repository_scores_as_its_profile() -> None:
    metric = open_metric("evaluate:eval/rouge_metric.py/hf")
    assert metric.name == "evaluate:rouge_metric/hf"
    [found] = metric.score([Item.of(metric, prediction="The cat sat.", references=("A dog lay.", "The cat lay."))])
    assert found["rouge1"] == pytest.approx(2 / 3)
    assert (metric.values["rouge1"].low, metric.values["rouge1"].high) == (0, 1)


def test_a_module_that_gives_one_number_has_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "one_number.py"
    alone = MODULE.replace("REFERENCES", "datasets.Value('string')").partition('        return {"exact')[0]
    file.write_text(f"{alone}        return mean\n")
    metric = open_metric(f"evaluate:{file}")
    assert metric.score([Item.of(metric, prediction="a", references=("a b",))]) == [{"overlap": 0.5}]


def test_a_module_that_is_nowhere_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"evaluate:no_such_module cannot be opened: .*Give the path of a module"
    ) as told:
        open_metric("evaluate:no_such_module")
    assert "\n" not in str(told.value)


def test_a_module_that_scores_no_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "numbers_only.py"
    file.write_text(
        MODULE.replace("REFERENCES", "datasets.Value('string')").replace(
            "shares = [", "shares = [int(a) for a in predictions] or ["
        )
    )
    with pytest.raises(UserError, match="scores no pairs of texts: ValueError"):
        open_metric(f"evaluate:{file}")


def test_an_answer_that_a_module_cannot_take_has_no_value_or_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "fails" / "fails.py"
    file.parent.mkdir()
    # A share of the answer, as many modules have it.
    text = MODULE.replace("REFERENCES", "datasets.Value('string')").replace("Overlap", "Fails")
    file.write_text(text.replace("len(set(b.split())) for b", "len(set(a.replace('bad', '').split())) for b"))
    metric = open_metric(f"evaluate:{file}")
    batch = [Item.of(metric, prediction=one, references=("a",)) for one in ("a", " ")]
    assert checked_scores(metric, batch) == [
        {"exact_match": 1.0, "overlap": 1.0},
        {"exact_match": None, "overlap": None},
    ]
    with pytest.raises(UserError, match=r"evaluate:fails fails at the answer 'bad': ZeroDivisionError"):
        checked_scores(metric, [Item.of(metric, prediction="bad", references=("a",))])
    with pytest.raises(UserError, match="names no module"):
        open_metric("evaluate:")
