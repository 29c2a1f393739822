"""Evidence about two systems that may be looked at after every document, and stopped at any look.

    differs(gains) >= DIFFERS                  # of runs without a difference one in twenty at most ever comes to it
    as_good(gains, firsts, 0.01) >= AS_GOOD    # of runs that lose the margin one in forty

These are e-values: what somebody has who bets one unit on the documents as they come, and who would win nothing on
average if the claim were false. Such a one hardly ever has 20 units, at any time. A p value has no such bound over
several looks.

- **A difference** is bet on by signs. Were two systems alike, each difference could as well have the other sign, so a
  bet of strength `l` pays `2 e^(l d) / (e^(l d) + e^(-l d))`, whatever the sizes of differences are. The permutation
  test of `eval.scoring.claims` has the same null hypothesis.
- **As good** is bet on by means: a bet of share `s` pays `1 + s (d + margin) / (L - margin)`, where `L` is the most
  that a document can lose. A document that loses so much takes the largest bet whole, so collapses that few documents
  would not have shown are allowed for, as `guarded_loss` does. Signs of `d + margin` would call a system as good that
  loses a whole answer now and then and nothing else.

Source: Ville, Étude critique de la notion de collectif (1939), for the bound; Waudby-Smith and Ramdas, Estimating means
of bounded random variables by betting, JRSS B 86 (2024), section 4, for bets on means. Deviation: `L` is learned from
the first system's scores on earlier documents, so that summaries do not need as many documents as answers do.

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


def differs(gains: ArrayLike) -> float:
    """Return the e-value of (D,) gains against "the two are alike"."""
    found = _fractions(gains)
    return _mean_of(_by_signs(found, _STRENGTHS), _by_signs(found, -_STRENGTHS))


def as_good(gains: ArrayLike, firsts: ArrayLike, margin: float, *, are_answers: bool = False) -> float:
    """Return the e-value of (D,) gains against "the second loses the margin or more" in the mean.

    Args:
        gains: Second minus first.
        firsts: (D,) scores of the first system.
        margin: Loss up to which the second is as good, below 1.
        are_answers: Scores are right or wrong in the main, so a document can lose a whole one.
    """
    found, most = _fractions(gains), most_lost(_fractions(firsts), are_answers=are_answers)
    # A margin near all that can be lost would leave nothing to divide by; smaller bets are as valid.
    takes_all = np.maximum(most - margin, most / 2)
    paid = np.maximum(1.0 + np.outer((found + margin) / takes_all, _SHARES), 0.0)
    with np.errstate(divide="ignore"):
        return _mean_of(np.log(paid).sum(axis=0))


def most_lost(firsts: Floats, *, are_answers: bool) -> Floats:
    """Return (D,) what each document is taken to lose at most, from (D,) scores of the first system.

    What a document itself scores must not decide how much is bet on it, so this is the greatest score before, and a
    part of what lies above it, which few documents leave open.
    """
    if are_answers or not len(firsts):
        return np.ones(len(firsts))
    before = np.concatenate([[0.0], np.maximum.accumulate(firsts)[:-1]])
    most: Floats = before + (1.0 - before) / np.sqrt(np.arange(1, len(firsts) + 1))
    return most


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
