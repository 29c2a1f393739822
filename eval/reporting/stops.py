"""What a run with `--until` lets one say: a claim that holds although the run was looked at as it went on."""

from __future__ import annotations

from eval.records.schema import UntilRecord
from eval.reporting.columns import interval
from eval.scoring.anytime import AS_GOOD, DIFFERS
from eval.scoring.profiles import metric_name


def describe_look(until: UntilRecord) -> str:
    """Return what documents said at the last look, in a line for a terminal."""
    return f"after {_counted(until)}{': ' if until.metric else ''}{_numbers(until)}"


def describe_stop(until: UntilRecord) -> str:
    """Return what a run shows at its last look, and why it stopped, in sentences."""
    why = {
        "differs": "The run stopped there",
        "as good": "The run stopped there",
        "time": "The run stopped because its time was up",
        "all documents": "All documents were answered",
        None: "The run has not stopped",
    }[until.stopped]
    if until.metric is None:
        return f"{why}, after {_counted(until)} in the order of their hashes."
    return f"{_claim(until)}: {_numbers(until)}, n = {_counted(until)}. {why} (--until)."


def warn_of_stop(until: UntilRecord) -> str:
    """Return what of the report does not hold for a run that was looked at; empty where nothing depends on looks."""
    if until.metric is None:
        return ""
    return (
        "The run looked at its scores and could stop (--until): intervals, p values and verdicts of tables are those "
        "of a number of documents that was fixed beforehand, and claim nothing here. What is said with e-values holds."
    )


def _claim(until: UntilRecord) -> str:
    subject, beside = (_name(side) for side in (until.subject, until.beside))
    verbs = ("are", "differ") if until.subject.isdecimal() else ("is", "differs")
    margin = "" if until.margin is None else f"within the margin of {100 * until.margin:g}"
    if until.stopped == "differs":
        way = "better" if (until.difference or 0) > 0 else "worse"
        return f"{subject} {verbs[1]} from {beside}, for the {way}"
    if until.stopped == "as good":
        return f"{subject} {verbs[0]} as good as {beside}, {margin}"
    asked = ["to differ from"] * until.differs + ["to be as good as"] * (until.margin is not None)
    return f"{subject} {verbs[0]} not shown {' or '.join(asked)} {beside}{', ' * bool(margin)}{margin}"


def _name(side: str) -> str:
    return f"{int(side):,} tokens" if side.isdecimal() else f"{side} run" if side == "this" else side


def _counted(until: UntilRecord) -> str:
    alike = until.num_answered - until.num_compared if until.metric else 0
    remark = f" ({alike} with the same prompt left out)" if alike else ""
    return f"{until.num_answered:,} of {until.num_all:,} documents{remark}"


def _numbers(until: UntilRecord) -> str:
    if until.metric is None or until.difference is None:
        return "nothing to compare yet" if until.metric else ""
    ends = interval(until.low, until.high, "+.1f", 100)
    values = []
    if until.differs and until.e_differs is not None:
        values.append(f"e-value {until.e_differs:.3g} against 'alike' ({DIFFERS:g} needed)")
    if until.e_as_good is not None:
        values.append(f"e-value {until.e_as_good:.3g} against 'loses the margin' ({AS_GOOD:g} needed)")
    at_any_look = " (95% at every look)" if ends else ""
    return f"{metric_name(until.metric)} {100 * until.difference:+.1f}{ends}{at_any_look}, {', '.join(values)}"
