"""Whether the claims of a study are shown, by the folders of its parts.

Each claim has two p values on the scale of a two-sided test: that what it says is not so, and that the contrary is not.
The smaller one is corrected over all claims that were ever registered (Holm), and over nothing else, so one study in
twenty at most calls a claim shown or refuted that is neither. The p values are those of the tables: exchanges of
documents for differences of answers, the bounds with a document that collapses for `as good`, and bootstrap-t for
ratios of perplexities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.schema import LadderLine, LadderRecord, PairedResult, RunRecord, StudyClaim
from eval.records.typed import from_json
from eval.reporting.columns import interval, number_or_dash, signed_percent, units_of
from eval.reporting.perplexity_report import units_of as units_of_examples
from eval.reporting.placement_report import task_of
from eval.scoring.bootstrap import ALPHA, detectable_difference
from eval.scoring.claims import compare_table, fewest_documents, p_of_loss
from eval.scoring.compare_runs import check_comparable, rows_of
from eval.scoring.comparisons import compare_lines, pair_of
from eval.scoring.exchanges import Pair as ExchangedPair
from eval.scoring.ladder import Rung, beside, gains_of
from eval.scoring.scored_run import read_scored
from eval.scoring.significance import MIN_DOCUMENTS, detectable_ratio, p_of_ratio, ratios_of_perplexities
from eval.studies.claims import LADDER_METRICS, PERPLEXITY_METRIC
from eval.studies.folder import DONE, LADDER, StudyFolder, has_ladder
from eval.studies.losses import ALL_TASKS, Pair, losses_of, pairs_of, ratio_cells
from eval.studies.parts import Section
from eval.studies.section import Draft, in_both

Found = TypeVar("Found")
Verdict: TypeAlias = Literal["shown", "refuted", "not shown", "cannot be judged yet"]


class NotYetError(Exception):
    """A claim cannot be judged; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the folders hold about a claim.

    Attributes:
        found: The numbers, or why there are none.
        p_shown: p value, two-sided, of what is found if the claim does not hold; 1 where it points the other way.
        p_refuted: The same for the contrary of the claim.
        is_known: Whether there are numbers.
    """

    found: str
    p_shown: float = 1.0
    p_refuted: float = 1.0
    is_known: bool = True


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its evidence, and what this comes to beside all other claims."""

    evidence: Evidence
    p_corrected: float
    verdict: Verdict


def judge(folder: StudyFolder, claims: Sequence[StudyClaim]) -> list[Judged]:
    """Return what is shown of each claim; those that cannot be judged yet count in the correction.

    Args:
        folder: Folder of the study.
        claims: All wordings that were ever registered, over which p values are corrected.
    """
    found = [gather(folder, claim, len(claims)) for claim in claims]
    corrected = holm([min(one.p_shown, one.p_refuted) for one in found])
    return [
        Judged(evidence=one, p_corrected=p_corrected, verdict=_verdict(one, p_corrected))
        for one, p_corrected in zip(found, corrected, strict=True)
    ]


def _verdict(evidence: Evidence, p_corrected: float) -> Verdict:
    if not evidence.is_known:
        return "cannot be judged yet"
    if p_corrected >= ALPHA:
        return "not shown"
    return "shown" if evidence.p_shown < evidence.p_refuted else "refuted"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def gather(folder: StudyFolder, claim: StudyClaim, num_claims: int = 1) -> Evidence:
    """Return the evidence about a claim, one of so many over which p values are corrected."""
    names = dict.fromkeys([claim.part, *([] if claim.against_length else [claim.against])])
    parts = {name: folder.study.parts.get(name) for name in names}
    states = {name: "no part any more" if part is None else folder.state(part) for name, part in parts.items()}
    if missing := [f"`{name}` ({state})" for name, state in states.items() if state != DONE]:
        return Evidence(found=f"missing: {', '.join(missing)}", is_known=False)
    try:
        if claim.metric in LADDER_METRICS:
            return _of_ladder(folder, claim, num_claims)
        if claim.metric == PERPLEXITY_METRIC:
            return _of_perplexity(folder, claim, num_claims)
        return _of_answers(folder, claim, num_claims)
    except (UserError, NotYetError) as error:
        return Evidence(found=str(error), is_known=False)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        # One broken folder must not hide the other claims.
        return Evidence(found=f"a folder is broken ({type(error).__name__}: {error})", is_known=False)


def _of_answers(folder: StudyFolder, claim: StudyClaim, num_claims: int) -> Evidence:
    second = read_scored(folder.path / claim.part)
    first = second if claim.against_length else read_scored(folder.path / claim.against)
    check_comparable(first, second)
    rows = rows_of(first, second, [claim.metric], (claim.against_length or claim.maxlen, claim.maxlen))
    places = {}
    for row in rows:
        line = next(iter(row.second.values()))
        if row.subset == "all" and claim.task in (None, line.task) and claim.template in (None, line.template):
            places[f"{line.task}, {line.template}"] = row
    row = _only(places)
    names = row.differing()
    if not names:
        raise NotYetError("both show the same prompts, so nothing is compared")
    [result] = compare_lines([row], *([] if claim.margin is None else [claim.margin]))
    if result.num_documents < MIN_DOCUMENTS:
        raise NotYetError(f"{result.num_documents} documents differ, and {MIN_DOCUMENTS} are the least")
    p_shown, p_refuted = _p_values(claim, result, pair_of(row, names))
    num_units, units = units_of(result)
    found = f"{signed_percent(result)}, n = {num_units} {units}, {_say_detectable(claim, result, num_claims, units)}"
    return Evidence(found=found, p_shown=p_shown, p_refuted=p_refuted)


def _say_detectable(
    claim: StudyClaim, result: PairedResult, num_claims: int, units: str = "documents", scale: float = 100.0
) -> str:
    """Return the difference that so many documents show where p values are corrected over all claims, in words."""
    fewest = fewest_documents(num_claims)
    # A claim of as good has bounds, and no test by exchanges, whose p has a least value.
    if claim.margin is None and result.num_documents < fewest:
        return f"nothing can be shown with {result.num_documents} {units}: takes {fewest}"
    # In a table of one row, what is detectable is so many standard errors as its documents alone tell.
    alone = detectable_difference(result.num_documents, 1.0)
    if result.detectable is None or alone is None:
        return "detectable -"
    least = detectable_difference(result.num_documents, result.detectable / alone, level=ALPHA / num_claims)
    return f"detectable {number_or_dash(least, 2, 1 / scale)}"


def _of_ladder(folder: StudyFolder, claim: StudyClaim, num_claims: int) -> Evidence:
    """Return the evidence about a rung: at a length beside the smallest, or of two parts; over all tasks or one."""
    (rung, is_gain), length = LADDER_METRICS[claim.metric], claim.against_length
    parts = [claim.part] if length else [claim.part, claim.against]
    # A ladder has gains over the smallest length; a claim may be about that one beside a greater.
    smaller, greater = sorted([length or claim.maxlen, claim.maxlen])
    found = [_ladder_lines(folder.path / name, replace(claim, maxlen=greater), rung) for name in parts]
    shared = [key for key in found[0] if all(key in other for other in found)]
    lines, *others = ([of_part[key] for key in shared] for of_part in found)
    if length is not None and (wrong := {line.smallest for line in lines} - {smaller}):
        raise NotYetError(f"the ladder begins at {min(wrong):,} tokens and not at {smaller:,}")
    if len({(line.task, line.unit) for line in lines}) < MIN_DOCUMENTS:
        raise NotYetError(f"{len(lines)} examples have this rung, of fewer than {MIN_DOCUMENTS} documents")
    record = folder.record(folder.study.parts[claim.part])
    if not isinstance(record, RunRecord):  # as of a wording of earlier parts
        raise NotYetError(f"`{claim.part}` is no run of answers")
    profiles = {record.profiles[line.task] for line in lines}
    if len(profiles) > 1:
        raise NotYetError(f"tasks have several profiles ({', '.join(sorted(profiles))}); name one task")
    [profile] = profiles
    pair = beside(rung, lines, others[0], profile, is_gain=is_gain) if others else gains_of(rung, lines, profile)
    if length == greater:
        pair = replace(pair, first=pair.second, second=pair.first)
    [result] = compare_table([pair], *([] if claim.margin is None else [claim.margin]))
    p_shown, p_refuted = _p_values(claim, result, pair)
    scale = 1.0 if rung == "used" else 100.0
    ends = interval(result.low, result.high, "+.2f", scale)
    said = f"{scale * result.difference:+.2f}{ends}{' nats a token' if rung == 'used' else ''}"
    least = _say_detectable(claim, result, num_claims, scale=scale)
    return Evidence(
        found=f"{said}, n = {result.num_documents} documents, {least}", p_shown=p_shown, p_refuted=p_refuted
    )


def _ladder_lines(part: Path, claim: StudyClaim, rung: Rung) -> dict[tuple[str, str, str], LadderLine]:
    """Return the lines of a claim that have a rung, by task, template and id.

    Raises:
        UserError: The part has no ladder, or one of other predictions than those that were scored.
    """
    if not has_ladder(part):
        raise UserError(f"{part.name} has no ladder of its present answers; run: python -m eval.ladder {part}")
    record = from_json(LadderRecord, read_json(part / LADDER), str(part / LADDER), remedy="run its part again")
    return {
        (line.task, line.template, line.id): line
        for line in record.lines
        if line.maxlen == claim.maxlen
        and claim.task in (None, line.task)
        and claim.template in (None, line.template)
        and getattr(line, rung) is not None
    }


def _p_values(claim: StudyClaim, result: PairedResult, pair: ExchangedPair) -> tuple[float, float]:
    if claim.margin is not None:
        contrary = replace(pair, first=pair.second, second=pair.first)
        # By the plain interval too, as in tables.
        p_shown = 2 * p_of_loss(pair, claim.margin) if result.non_inferior else 1.0
        return min(1.0, p_shown), min(1.0, 2 * p_of_loss(contrary, -claim.margin))
    return _sided(claim, result.p_value or 1.0, is_better=result.difference > 0)


def _sided(claim: StudyClaim, p_value: float, *, is_better: bool) -> tuple[float, float]:
    """Return both p values of a claim without a margin."""
    if claim.direction == "differs":
        return p_value, 1.0
    return (p_value, 1.0) if is_better == (claim.direction == "better") else (1.0, p_value)


def _of_perplexity(folder: StudyFolder, claim: StudyClaim, num_claims: int) -> Evidence:
    names = dict.fromkeys([claim.part] if claim.against_length else [claim.against, claim.part])
    section = Section(number=0, kind="perplexity", title="Claims", parts=tuple(names), reference=next(iter(names)))
    records = {name: folder.record(folder.study.parts[name]) for name in names}
    draft = Draft(section=section, folders={name: folder.path / name for name in names}, records=records)
    losses = losses_of(_lengths(draft, claim) if claim.against_length else _parts(draft, claim))
    if len(losses) < MIN_DOCUMENTS:
        raise NotYetError(f"{len(losses)} documents are shared, and {MIN_DOCUMENTS} are the least")
    [ratio] = ratios_of_perplexities([losses], task_of)
    least = detectable_ratio(losses, ALPHA / num_claims, task_of)
    value, said = ratio_cells(replace(ratio, detectable=least))
    found = f"ratio {value}, n = {ratio.num_documents} documents, detectable {said}"
    limit = 1 + (claim.margin or 0.0)
    p_value = p_of_ratio(losses, limit, task_of)
    if p_value is None:
        raise NotYetError(f"{found}; documents that are all alike do not tell how far others may differ")
    is_below = ratio.ratio < limit
    if claim.margin is None:
        p_shown, p_refuted = _sided(claim, p_value, is_better=is_below)
    else:
        p_shown, p_refuted = (p_value, 1.0) if is_below else (1.0, p_value)
    return Evidence(found=found, p_shown=p_shown, p_refuted=p_refuted)


def _parts(draft: Draft, claim: StudyClaim) -> Pair:
    """Return what two parts measured on the same documents: of the claim's task, or of all tasks."""
    found = {task: pair for (task, maxlen), pair in pairs_of(draft)[claim.part].items() if maxlen == claim.maxlen}
    if claim.task is None and ALL_TASKS in found:
        return found[ALL_TASKS]
    said = " ".join(draft.blocks)
    if not found:
        raise NotYetError(said or f"no document in common at {claim.maxlen:,} tokens")
    return _only({task: pair for task, pair in found.items() if claim.task in (None, task)})


def _lengths(draft: Draft, claim: StudyClaim) -> Pair:
    """Return what a part measured on its documents at two lengths."""
    lines = draft.lines(claim.part)
    places = {}
    for (task, template, maxlen), after in lines.items():
        before = lines.get((task, template, claim.against_length or 0), {})
        if maxlen == claim.maxlen and claim.task in (None, task) and claim.template in (None, template):
            places[f"{task}, {template}"] = Pair(*in_both(before, after), units_of_examples(draft.examples(claim.part)))
    pair = _only(places)
    for one, other in zip(pair.before.values(), pair.after.values(), strict=True):
        if one.num_tokens != other.num_tokens:
            raise NotYetError(
                f"'{one.id}' has {one.num_tokens:,} predicted tokens at {one.maxlen:,} and {other.num_tokens:,} at "
                f"{other.maxlen:,}; measure with --stride, which predicts all at each length"
            )
    return pair


def _only(places: Mapping[str, Found]) -> Found:
    if len(places) != 1:
        found = "; ".join(places) or "nothing that is shared"
        raise NotYetError(f"the claim is about one task and template, and there is {found}; name its task and template")
    return next(iter(places.values()))
