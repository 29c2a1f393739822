"""Two runs on the same examples -> pairs of answers for a judge, by task, template and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.errors import UserError
from eval.judging.pairs import Pair
from eval.records.read_run import RunInputs, open_run, read_inputs
from eval.records.schema import ExampleRecord, Key, Prediction
from eval.scoring.examples import scored_text

Maxlens = tuple[int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class PairedSetting:
    """The pairs of one task and template, at one length of each run."""

    task: str
    template: str
    maxlens: tuple[int, int]
    pairs: list[Pair]

    @property
    def name(self) -> str:
        """Return task, template and lengths, for people."""
        lengths = dict.fromkeys(f"{maxlen:,}" for maxlen in self.maxlens)
        return f"{self.task}, {self.template}, {' to '.join(lengths)}"


def pair_runs(first: Path, second: Path, maxlens: Maxlens = (None, None)) -> list[PairedSetting]:
    """Return the pairs of answers of two runs, of several samples the first.

    Args:
        first: Folder of a run.
        second: Folder of another, or of the same.
        maxlens: Length of each run; None is every length of the first, and the first's length of the second.

    Raises:
        UserError: They have no setting in common, or an example differs.
    """
    runs = [_read(path) for path in (first, second)]
    examples = [{(one.task, one.id): one for one in run.examples} for run in runs]
    documents = {(one.task, one.document_id): one.text for one in runs[0].documents}
    answers = [{one.key: one for one in run.predictions} for run in runs]
    found: dict[tuple[str, str, tuple[int, int]], list[Pair]] = {}
    for (task, template, name, maxlen), prediction in answers[0].items():
        lengths = maxlen, maxlen if maxlens[1] is None else maxlens[1]
        other = answers[1].get((task, template, name, lengths[1]))
        if maxlens[0] not in (None, maxlen) or other is None:
            continue
        example = examples[0][task, name]
        _check_same(example, examples[1][task, name], first, second)
        texts = [scored_text(one, run.record) for run, one in zip(runs, (prediction, other), strict=True)]
        pair = Pair(
            id=name,
            unit=example.unit,
            query=example.query,
            references=tuple(example.references),
            document=documents[task, example.document_id],
            first=texts[0],
            second=texts[1],
        )
        found.setdefault((task, template, lengths), []).append(pair)
    if not found:
        has = "; ".join(
            f"{path} has {_describe(of_run)}" for path, of_run in zip((first, second), answers, strict=True)
        )
        raise UserError(f"no task, template, length and example in common: {has}")
    return [
        PairedSetting(task=task, template=template, maxlens=lengths, pairs=pairs)
        for (task, template, lengths), pairs in sorted(found.items())
    ]


def _read(path: Path) -> RunInputs:
    return read_inputs(*open_run(path))


def _check_same(one: ExampleRecord, other: ExampleRecord, first: Path, second: Path) -> None:
    if (one.query, one.references) != (other.query, other.references):
        what = "query" if one.query != other.query else "references"
        raise UserError(
            f"examples differ: '{one.id}' of {one.task} has another {what} in {first} than in {second}; compare runs "
            "on the same data"
        )


def _describe(answers: dict[Key, Prediction]) -> str:
    settings = sorted({(task, template, maxlen) for task, template, _, maxlen in answers})
    return ", ".join(f"{task} {template} {maxlen:,}" for task, template, maxlen in settings)
