"""When a run stops: the option `--until` of `eval/run.py`.

    parse_until("rougeLsum: 8192 differs from 1024 | as good, margin 0.01 | 2h")

Any of the parts ends the run: a claim about two of its lengths, or about this run and the folder of another, that the
answers so far let one make; or a time.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.config.checks import Value
from eval.config.claim import length_or_name
from eval.config.options import Group, Options
from eval.errors import UserError
from eval.scoring.claims import MARGIN
from eval.scoring.profiles import metric_columns
from tasks.readers.yaml_file import shown

# The side that is this run, at its only length.
THIS = "this"
_EXAMPLE = "write for example 'rougeLsum: 8192 differs from 1024 | as good, margin 0.01 | 2h'"
_CLAIM = re.compile(
    r"(?P<metric>[^\s:]+)\s*:\s*(?P<subject>\S+)\s+(?:(?P<differs>differs\s+from)|(?:is\s+)?as\s+good\s+as)\s+"
    r"(?P<beside>\S+?)(?:\s*,\s*margin\s+(?P<margin>\S+))?"
)
_DIFFERS = re.compile(r"differs")
_AS_GOOD = re.compile(r"as\s+good(?:\s*,\s*margin\s+(?P<margin>\S+))?")
_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>h|min|m|s)")
_TWICE = {"seconds": "two times", "differs": "'differs' twice", "margin": "'as good' twice"}
_SECONDS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Until:
    """What ends a run: any of what is set here.

    Attributes:
        metric: In which metric; None where a time alone ends the run.
        subject: What a claim is about: `this`, a length of this run, or the folder of another run.
        beside: What it stands beside.
        differs: Whether the claim that both differ ends the run.
        margin: Of the claim that the subject is as good; None where that does not end the run.
        seconds: Time after which no further documents are begun.
    """

    metric: str | None = None
    subject: str = THIS
    beside: str = THIS
    differs: bool = False
    margin: float | None = None
    seconds: float | None = None

    @property
    def folder(self) -> str | None:
        """Return the other run's folder, where a side is one."""
        return next((side for side in (self.subject, self.beside) if _is_folder(side)), None)

    def check(self, profile: str, lengths: Sequence[int]) -> None:
        """Check that a run of one task will have what ends it.

        Raises:
            UserError: The metric or a length is none of the run's.
        """
        columns = metric_columns(profile)
        known = [name for name, parts in columns.items() if len(parts) == 1]
        if self.metric in columns and self.metric not in known:
            raise UserError(
                f"--until: '{self.metric}' joins means over all documents, and no single document has it; give one of "
                f"{', '.join(known)}"
            )
        if self.metric not in known:
            raise UserError(
                f"--until: '{self.metric}' is no metric of profile '{profile}', by which answers are scored as they "
                f"come; known: {', '.join(known)}"
            )
        for side in (self.subject, self.beside):
            if side.isdecimal() and int(side) not in lengths:
                raise UserError(f"--until is about {side} tokens, which --maxlen does not have; add it there")
            if side == THIS and len(lengths) > 1:
                raise UserError(
                    f"--until: 'this' is a run of one length, and --maxlen has {len(lengths)}; write the length that "
                    "is meant in its place"
                )


def _is_folder(side: str) -> bool:
    return side != THIS and not side.isdecimal()


def parse_until(text: str) -> Until:
    """Return what ends a run.

    Raises:
        ArgumentTypeError: A part has none of the forms.
    """
    found: dict[str, Any] = {}
    for part in (one.strip() for one in text.split("|")):
        new = _read(part, has_claim="metric" in found)
        if again := sorted(new.keys() & found.keys()):
            raise ArgumentTypeError(f"{shown(text)} has {_TWICE[again[0]]}; give one")
        found |= new
    until = Until(**found)
    if until.metric is None:
        return until
    if until.subject == until.beside:
        raise ArgumentTypeError(
            f"'{until.subject}' stands beside itself; name two lengths, or the folder of another run"
        )
    if _is_folder(until.subject) and _is_folder(until.beside):
        raise ArgumentTypeError(f"{shown(text)} names two folders; one side is this run: write 'this', or its length")
    return until


def _read(part: str, *, has_claim: bool) -> dict[str, Any]:
    """Return the fields of `Until` that a part sets."""
    if named := _TIME.fullmatch(part):
        seconds = float(named["number"]) * _SECONDS[named["unit"]]
        if not 0 < seconds < math.inf:
            raise ArgumentTypeError(f"{shown(part)} is no time; give one above 0, such as 30min")
        return {"seconds": seconds}
    if named := _CLAIM.fullmatch(part):
        if has_claim:
            raise ArgumentTypeError(f"'{part}' is a second comparison; one decides when a run stops")
        sides = {"metric": named["metric"]}
        sides |= {name: length_or_name(named[name]) for name in ("subject", "beside")}
        if named["differs"] and named["margin"]:
            raise ArgumentTypeError(f"'{part}' has a margin, which is of 'as good'; write '| as good, margin X' behind")
        return sides | ({"differs": True} if named["differs"] else {"margin": _margin(named["margin"])})
    if has_claim and _DIFFERS.fullmatch(part):
        return {"differs": True}
    if has_claim and (named := _AS_GOOD.fullmatch(part)):
        return {"margin": _margin(named["margin"])}
    raise ArgumentTypeError(f"'{part}' is no end of a run; {_EXAMPLE}")


def _margin(text: str | None) -> float:
    try:
        margin = MARGIN if text is None else float(text)
    except ValueError:
        raise ArgumentTypeError(f"margin '{text}' is not a number; scores count from 0 to 1, so write 0.01") from None
    if not 0 < margin < 1:
        raise ArgumentTypeError(f"margin {text} must be above 0 and below 1; scores count from 0 to 1 here")
    return margin


def until_text(value: Value) -> str:
    """Return a text that says when a run stops."""
    parse_until(str(value))
    return str(value)


@dataclass(frozen=True, kw_only=True)
class UntilOptions(Options):
    """When a run stops before all documents are answered."""

    until: str | None = Group.STOP.option(
        None,
        "take documents by their hash, look after every few, and stop at the first of these: 'METRIC: A differs from "
        "B', 'as good, margin X', a time such as 2h or 30m, joined by '|'. A and B are lengths of this run, or 'this' "
        "and the folder of another; resuming keeps the comparison, and may give more time",
        until_text,
        metavar="WHEN",
        unset="all documents are answered",
    )

    @property
    def stopping(self) -> Until | None:
        """Return what ends the run; None for one that answers all documents."""
        return None if self.until is None else parse_until(self.until)
