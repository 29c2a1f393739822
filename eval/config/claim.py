"""What a run is claimed to show, written down before it answers: options of `eval/run.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from eval.config.checks import Value, fraction, positive
from eval.config.options import Group, Options
from eval.errors import UserError
from eval.scoring.profiles import metric_columns

DIRECTIONS = ("as-good", "better")


def length_or_name(value: Value) -> str:
    """Return what a claim is beside, where a number is a length."""
    text = str(value)
    return str(positive(text)) if text.isdecimal() else text


@dataclass(frozen=True, kw_only=True)
class ClaimOptions(Options):
    """A claim about this run beside another, or about one of its lengths beside another."""

    claim: str | None = Group.CLAIM.option(
        None,
        "what will be claimed of this run; run.json records it while no answer is there, for python -m eval.compare",
        choices=DIRECTIONS,
        unset="nothing",
    )
    claim_metric: str | None = Group.CLAIM.option(None, "in which metric")
    claim_margin: float | None = Group.CLAIM.option(
        None, "a smaller loss is as good, a fraction as of eval.compare", fraction
    )
    claim_against: str | None = Group.CLAIM.option(
        None, "beside what: a plan, another model, or a length of this run", length_or_name, metavar="WHAT"
    )
    claim_maxlen: int | None = Group.CLAIM.option(None, "at which length", positive, unset="all")

    @property
    def unset_claim_options(self) -> tuple[str, ...]:
        """Return the names of these options that are not given, which records of 0.1 do not have."""
        return tuple(name for name in CLAIM_OPTIONS if getattr(self, name) is None)

    def claimed(self) -> dict[str, Any] | None:
        """Return the fields of the claim; None where nothing is claimed."""
        if self.claim is None:
            return None
        return {
            "direction": self.claim,
            "metric": self.claim_metric,
            "margin": self.claim_margin,
            "against": self.claim_against,
            "maxlen": self.claim_maxlen,
        }

    def check_claim(self, profiles: Iterable[str], lengths: Sequence[int]) -> None:
        """Raise `UserError` for a claim that is not whole, or of what the run will not have."""
        if self.claim is None:
            for name in set(CLAIM_OPTIONS) - {*self.unset_claim_options}:
                raise UserError(f"--{name.replace('_', '-')} is of a claim; say which with --claim as-good or better")
            return
        if not self.claim_metric or not self.claim_against:
            raise UserError(f"--claim {self.claim} is not whole; name its --claim-metric and --claim-against")
        if (self.claim_margin is None) == (self.claim == "as-good"):
            raise UserError("--claim as-good needs a --claim-margin, 0.01 for example, and --claim better has none")
        known = list(dict.fromkeys(metric for profile in profiles for metric in metric_columns(profile)))
        if self.claim_metric not in known:
            raise UserError(f"--claim-metric {self.claim_metric} is none of this run's; known: {', '.join(known)}")
        is_of_lengths = self.claim_against.isdecimal()
        if is_of_lengths and self.claim_maxlen is None:
            raise UserError(f"--claim-against {self.claim_against} is a length; give --claim-maxlen, the one beside it")
        named = [self.claim_maxlen, int(self.claim_against) if is_of_lengths else None]
        for length in named:
            if length is not None and length not in lengths:
                raise UserError(f"the claim is about {length} tokens, which --maxlen does not have; add it there")


CLAIM_OPTIONS = tuple(one.name for one in fields(ClaimOptions))
