"""The part of a study's report about its claims: what was registered and when, and what is shown."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records.schema import RegisteredClaim
from eval.reporting.columns import p_value
from eval.reporting.tables import as_markdown, markdown
from eval.studies.claims import say_claim
from eval.studies.folder import StudyFolder
from eval.studies.judging import judge
from eval.studies.registry import FILE, latest, registered, settings_of

EXPLORATORY = "Exploratory: beyond the claims above, nothing here was fixed beforehand."
_LEGEND = (
    "found: part minus what it stands beside, on the same examples, x 100; of perplexities the ratio; the interval is "
    "of this comparison alone. detectable: the smallest difference, or ratio, that so many documents would have shown "
    "with power 0.8 at a p below 0.05 / {count}. p: two-sided, of what is "
    "found if neither the claim nor its contrary holds. corrected: for the {count} wordings of claims that were ever "
    "registered, those that cannot be judged too, and for nothing else (Holm). shown, refuted: the claim, or its "
    "contrary, at a corrected p below 0.05. A claim that two differ cannot be refuted."
)


def write_claims(folder: StudyFolder) -> list[str]:
    """Return the blocks about claims; none where nothing was ever claimed.

    Raises:
        UserError: `claims.json` cannot be read, or was edited.
    """
    wordings = registered(folder)
    claims = latest(wordings)
    if not claims:
        return []
    rows = [["claim", "what is claimed", "registered", "found", "p", "corrected", "verdict"]]
    # All wordings count in the correction, and the last one of each name is shown.
    judged = dict(
        zip((one.claim.name for one in wordings), judge(folder, [one.claim for one in wordings]), strict=True)
    )
    for name, one in claims.items():
        found = judged[name]
        evidence = found.evidence
        numbers = (min(evidence.p_shown, evidence.p_refuted), found.p_corrected) if evidence.is_known else (None, None)
        said = say_claim(one.claim)
        rows.append([name, said, _registered(one, wordings), evidence.found, *map(p_value, numbers), found.verdict])
    history = [f"- {markdown(line)}" for line in _history(folder, wordings)]
    opening, table = markdown(_opening(claims)), as_markdown(rows, 4)
    legend = _LEGEND.format(count=len(wordings))
    return ["## Claims", opening, table, "\n".join(history), markdown(legend)]


def _opening(claims: dict[str, RegisteredClaim]) -> str:
    fixed = sum(not one.begun and one.withdrawn is None for one in claims.values())
    count = len(claims)
    return (
        f"Of {count} claim{'s' * (count != 1)}, {fixed} stood here in these words before any part began; `{FILE}` has "
        "times and digests. All else in this report is exploratory."
    )


def _registered(one: RegisteredClaim, wordings: Sequence[RegisteredClaim]) -> str:
    """Return when a claim got its last wording, or was taken away."""
    if one.withdrawn is not None:
        return f"removed {_day(one.withdrawn)}"
    if not one.begun:
        return f"{_day(one.recorded)}, before any part"
    is_first = next(other for other in wordings if other.claim.name == one.claim.name) is one
    count = len(one.begun)
    return (
        f"{'added' if is_first else 'changed'} {_day(one.recorded)}, after {count} part{'s' * (count != 1)} had begun"
    )


def _history(folder: StudyFolder, wordings: Sequence[RegisteredClaim]) -> list[str]:
    """Return what was claimed before, and what had begun by the time of each later wording, in sentences."""
    current, lines = list(latest(wordings).values()), []
    for one in wordings:
        name = one.claim.name
        if one not in current and one.withdrawn is not None:
            lines.append(f"{name}, from {one.recorded} to {one.withdrawn}: {say_claim(one.claim)}")
        if one in current and one.begun:
            lines.append(f"{name}, since {one.recorded}, when these had begun: {', '.join(one.begun)}.")
        if one in current and one.withdrawn is not None:
            lines.append(f"{name}, registered {one.recorded}, is not in the study since {one.withdrawn}.")
        now = settings_of(folder.study, one.claim)
        if one in current and (others := [part for part, digest in one.settings.items() if now.get(part) != digest]):
            lines.append(f"{name}: the study has other settings now than on {_day(one.recorded)}: {', '.join(others)}.")
    return lines


def _day(time: str) -> str:
    return time[:10]
