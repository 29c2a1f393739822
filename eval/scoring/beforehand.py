"""Whether a comparison of two runs is the claim that the second recorded before it had an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.records.schema import ClaimRecord
from eval.scoring.profiles import metric_name
from eval.scoring.scored_run import ScoredRun


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a comparison of a first and a second run asks for.

    Attributes:
        direction: What is claimed of the second, `as-good` or `better`; None where nothing is.
        metrics: Metrics that are compared; none means all.
        margin: Loss up to which the second is as good.
        maxlens: Length of each, None for all; the second's is the first's where it is None.
    """

    direction: str | None
    metrics: Sequence[str]
    margin: float
    maxlens: tuple[int | None, int | None] = (None, None)


def recorded_claim(first: ScoredRun, second: ScoredRun, asked: Asked) -> ClaimRecord | None:
    """Return the claim that the second run recorded, if it is what is asked for; None else.

    What somebody chose after looking is none: another metric, margin, profile or length, or some of the tasks.
    """
    claim = second.record.claim
    if claim is None or asked.direction != claim.direction or list(asked.metrics) != [claim.metric]:
        return None
    if claim.direction == "as-good" and asked.margin != claim.margin:
        return None
    tasks = second.record.tasks
    if set(tasks) != {task for task, _ in first.content} or second.scores.profiles != second.record.profiles:
        return None
    length = asked.maxlens[0] if asked.maxlens[1] is None else asked.maxlens[1]
    return claim if length == claim.maxlen and claim.against in _names_of(first, second, asked.maxlens[0]) else None


def _names_of(first: ScoredRun, second: ScoredRun, maxlen: int | None) -> set[str]:
    """Return what a claim about the second run may call the first: its length, its plan, or its model."""
    if first.path.resolve() == second.path.resolve():
        return {str(maxlen)}
    record = first.record
    if record.identity.model == second.record.identity.model:
        return {record.plan_description, str(record.config.get("plan"))}
    return {record.identity.model.reference}


def describe_claim(second: ScoredRun, asked: Asked, found: ClaimRecord | None) -> str:
    """Return where the claim that is asked for comes from, in a sentence."""
    metrics = " and ".join(map(metric_name, asked.metrics)) or "every metric"
    margin = f", --margin {asked.margin:g}" if asked.direction == "as-good" else ""
    origin = provenance(None if found is None else found.recorded)
    other = second.record.claim
    if found is None and other is not None:
        also = "" if other.margin is None else f", --claim-margin {other.margin:g}"
        at = "" if other.maxlen is None else f" at {other.maxlen:,}"
        origin += f"; recorded is another: {other.direction} beside {other.against}{at} in {other.metric}{also}"
    return f"Claim that B is {str(asked.direction).replace('-', ' ')} in {metrics}{margin}: {origin}."


def provenance(recorded: str | None) -> str:
    """Return where metric, margin and direction of a claim come from; None stands for one that was not recorded."""
    return "as given to this command" if recorded is None else f"fixed beforehand (recorded {recorded})"
