"""Evidence about two systems that may be looked at after every document, and stopped at any look.

    differs(gains) >= DIFFERS                  # of runs without a difference one in twenty at most ever comes to it
    as_good(gains, 0.01) >= AS_GOOD            # of runs that lose the margin one in forty

These are e-values. An e-value is the capital of a gambler who starts with 1 and bets against the opposite of the claim.
If that opposite is true, the capital reaches 20 in at most one run in twenty, however often one looks. A p value has no
such bound over several looks.

- **A difference** is bet on by signs. Were two systems alike, each difference could as well have the other sign, so a
  bet of strength `l` pays `2 e^(l d) / (e^(l d) + e^(-l d))`, whatever the sizes of differences are. The permutation
  test of `eval.scoring.claims` has the same null hypothesis.
- **As good** is bet on by means: a bet of share `s` pays `1 + s (d + margin) / (1 - margin)`. A document that loses a
  whole answer takes the largest bet whole. Signs of `d + margin` would call a system as good that loses a whole answer
  now and then and nothing else. A smaller loss than 1 as the greatest one, learned from the scores so far, would allow
  larger bets. But one document of a hundred that scores 90 points and is lost hardly shows in 200: with such bets 29%
  of the runs that lose a point in this way were called as good.

Source: Ville, Étude critique de la notion de collectif (1939), for the bound; Waudby-Smith and Ramdas, Estimating means
of bounded random variables by betting, JRSS B 86 (2024), section 4, for bets on means.

Legend: `D` documents or clusters in the order in which they were answered, `B` bets. All numbers are fractions of the
range of scores; a gain is the second system's score less the first's.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # its parts are imported at their first use: `scipy.stats` takes seconds
from numpy.typing import ArrayLike

from eval.scoring.bootstrap import ALPHA, Floats

# E-values at which a claim is made: the inverse of the levels of tests, two-sided and one-sided.
DIFFERS = 1 / ALPHA
AS_GOOD = 2 / ALPHA
# Strengths of bets on signs, for differences from a point up to whole answers.
_STRENGTHS: Floats = np.exp2(np.arange(-1.0, 6.0))
# Of the bet that a collapse takes whole.
_SHARES = np.array([1.0, 0.5])
# Of the unit that is bet: the largest bet grows fastest, and is gone with the first whole answer that is lost.
_PARTS = np.array([0.9, 0.1])
_PARTS_OF_ANSWERS = np.array([0.5, 0.5])


def differs(gains: ArrayLike) -> float:
    """Return the e-value of (D,) gains against "the two are alike"."""
    found = _fractions(gains)
    return _mean_of(_by_signs(found, _STRENGTHS), _by_signs(found, -_STRENGTHS))


def as_good(gains: ArrayLike, margin: float, *, are_answers: bool = False) -> float:
    """Return the e-value of (D,) gains against "the second loses the margin or more" in the mean.

    Args:
        gains: Second minus first.
        margin: Loss up to which the second is as good, below 1.
        are_answers: Scores are right or wrong in the main, so now and then a document loses a whole one.
    """
    # A margin near 1 would leave nothing to divide by; smaller bets are as valid.
    takes_all = max(1.0 - margin, 0.5)
    paid = np.maximum(1.0 + np.outer((_fractions(gains) + margin) / takes_all, _SHARES), 0.0)
    with np.errstate(divide="ignore"):
        logs = np.log(paid).sum(axis=0) + np.log(len(_SHARES) * (_PARTS_OF_ANSWERS if are_answers else _PARTS))
    return _mean_of(logs)


def anytime_interval(gains: ArrayLike) -> tuple[float | None, float | None]:
    """Return an interval that holds the middle of the differences at every look, in 95% of runs.

    It has the shifts that bets on signs of (D,) gains do not rule out, if differences lie alike on both sides of their
    middle. An end is None while no shift on its side is ruled out.
    """
    found = _fractions(gains)
    low, high = _end(found), _end(-found)
    return low, None if high is None else 0.0 - high


def _fractions(numbers: ArrayLike) -> Floats:
    found = np.asarray(numbers, dtype=np.float64)
    if found.ndim != 1 or not (np.abs(found) <= 1).all():
        raise ValueError(f"{found.tolist()} are not a list of fractions; give one for each document")
    return found


def _by_signs(gains: Floats, strengths: Floats) -> Floats:
    """Return (B,) logarithms of what bets on signs have become."""
    paid: Floats = math.log(2) - np.logaddexp(0.0, -2.0 * np.outer(gains, strengths))
    logs: Floats = paid.sum(axis=0)
    return logs


def _mean_of(*bets: Floats) -> float:
    """Return the mean of bets from their logarithms, at most e^700, which is still a float."""
    logs = np.concatenate(bets)
    return math.exp(min(float(np.logaddexp.reduce(logs)) - math.log(len(logs)), 700.0))


def _end(gains: Floats) -> float | None:
    """Return the greatest shift that bets on gains above it rule out."""

    def excess(shift: float) -> float:
        logs = _by_signs(gains - shift, _STRENGTHS)
        return float(np.logaddexp.reduce(logs)) - math.log(len(logs) * AS_GOOD)

    return None if excess(-1.0) < 0 else float(scipy.optimize.brentq(excess, -1.0, 1.0, xtol=1e-9))
