"""What reports show of useful lengths: a cell, the columns of their table and of leaderboards, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eval.records.schema import UsefulLength
from eval.reporting.columns import Column


def useful_cell(one: UsefulLength | None) -> str:
    """Return a useful length with its interval; a dash where it is not known."""
    if one is None or one.low is None or one.high is None:
        return "-"
    if one.low == one.high:
        return or_more(one, one.high, "+")
    low, observed, high = (or_more(one, length, "+") for length in (one.low, one.observed, one.high))
    return f"{observed} [{low}, {high}]"


def or_more(one: UsefulLength, length: int, mark: str) -> str:
    """Return a length, with a mark behind the greatest where that cuts documents: longer ones may be of more use."""
    return f"{length:,}{mark if one.is_open and length == one.lengths[-1] else ''}"


_USEFUL = Column(
    heading="useful length",
    legend="useful length: the smallest that loses less than the margin to every longer one, as observed, with its 95% "
    "interval: shorter ones than the first are shown to lose more to a longer one, and the last is shown to lose less "
    "to all, even if one more document collapsed; no interval where both ends agree. +: or more, since the greatest "
    "length cuts documents and no shorter one is shown to be as good.",
)
USEFUL = [
    Column(heading="system", show=lambda one: "model" if one.kind == "model" else one.system.replace("_", " ")),
    Column(
        heading="n",
        show=lambda one: str(one.num_documents),
        legend="n: documents, or clusters of them, that the smallest and the greatest length show differently.",
    ),
    Column(heading="margin", show=lambda one: f"{100 * one.margin:g}"),
    replace(_USEFUL, show=useful_cell),
]
USEFUL_OF_ROW = replace(_USEFUL, show=lambda row: useful_cell(row.useful_length))


def describe_useful(found: Sequence[UsefulLength]) -> str:
    """Return how much context is of use to the model, and to the oracle beside it; empty where it is not known."""
    parts = []
    known = [one for one in found if one.low is not None and one.high is not None]
    for one in known:
        low, high = (or_more(one, length or 0, " or more") for length in (one.low, one.high))
        ends = f"{high} tokens" if low == high else f"{low} to {high} tokens (observed {one.observed:,})"
        parts.append(ends if one.kind == "model" else f"of the visible oracle {ends}")
    if not known or known[0].kind != "model":
        return ""
    return f"Useful length, margin {100 * known[0].margin:g}, 95%: {'; '.join(parts)}."
