"""Let a judge say which of two runs answers better: each pair in both orders, with its liking for a place measured.

    python -m eval.judge RUN_A RUN_B --judge FILE.yaml
    python -m eval.judge RUN RUN --judge FILE.yaml --maxlen-a 1024 --maxlen-b 8192

The file is of mode `pairwise` (see docs/metrics.md). Replies are kept beside it, so that the same command asks nothing
twice. A judge of single answers is a metric: python -m eval.score RUN --metrics judge:FILE.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.judging.judge import count_tokens, price_of
from eval.judging.pairs import Outcome, PairJudge, PairSummary, summarize_pairs
from eval.judging.replies import Asked
from eval.judging.runs import PairedSetting, pair_runs
from eval.records.typed import to_json
from eval.reporting.columns import percent
from eval.reporting.tables import WIDTH, as_columns
from eval.runtime.jobs import CommandParser, command

Judged = list[tuple[PairedSetting, list[Outcome], PairSummary]]
_LEGEND = (
    "B preferred: share of pairs in which the judge prefers B, ties half, with a 95% interval over documents; 50 is no "
    "preference. Only repeats that were read in both orders count. First place: share of decided replies that prefer "
    "the answer in the first place; 50 is no liking for it. Orders agree: share of repeats in which both say the same. "
    "Longer: share of decided replies that prefer the longer answer. Each interval holds by itself."
)


def render(judge: PairJudge, judged: Judged) -> str:
    """Return what the judge says, for a terminal."""
    has_spread = any(summary.spread is not None for _, _, summary in judged)
    header = ["task, template, maxlen", "pairs", "documents", "B preferred", "first place", "orders agree", "longer"]
    rows = [[*header, *(["sd of repeats"] if has_spread else []), "unread"]]
    for setting, _, one in judged:
        rows.append(
            [
                setting.name,
                f"{one.num_judged:,}",
                f"{one.num_documents:,}",
                percent(one.preference, 1),
                percent(one.first_place, 1),
                _share(one.agreement),
                percent(one.longer, 1),
                *([_share(one.spread)] if has_spread else []),
                f"{sum(one.unread.values()):,} of {one.num_replies:,}",
            ]
        )
    return "\n".join([as_columns(rows), "", *_notes(judge, judged), "", textwrap.fill(_LEGEND, WIDTH)])


def _notes(judge: PairJudge, judged: Judged) -> list[str]:
    settings = judge.settings
    outcomes = [one for _, of_setting, _ in judged for one in of_setting]
    asked = _replies_of(outcomes)
    notes = [f"judge: {settings.served_model or settings.model} at {settings.base_url}, prompt {judge.prompt.name}"]
    if unread := Counter(kind for outcome in outcomes for kind in outcome.unread):
        notes.append(f"not read: {', '.join(f'{count:,} {kind}' for kind, count in sorted(unread.items()))}")
    if alike := sum(summary.num_alike for _, _, summary in judged):
        notes.append(f"alike, and so ties that were not asked about: {alike:,} pairs")
    notes.append(f"replies: {len(asked):,}, asked now: {judge.replies.num_new:,}")
    tokens = [count_tokens(one) for one in asked]
    if None not in tokens:
        prompts, completions = (sum(pair[index] for pair in tokens if pair) for index in (0, 1))
        price = price_of(asked, settings)
        cost = "" if price is None or settings.prices is None else f", {price:.4f} {settings.prices.currency}"
        notes[-1] += f"; tokens: {prompts:,} of prompts, {completions:,} of replies{cost}"
    return notes


def _replies_of(outcomes: Iterable[Outcome]) -> list[Asked]:
    """Return the replies that pairs were judged by, each once: equal pairs are one question."""
    return list({(one.request, one.repeat): one for outcome in outcomes for one in outcome.asked}.values())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def as_json(judge: PairJudge, judged: Judged) -> dict[str, Any]:
    """Return all that the judge said, ready for JSON."""
    rows = []
    for setting, outcomes, summary in judged:
        pairs = [{"id": one.pair.id, "preference": one.preference, "choices": one.choices} for one in outcomes]
        place = {"task": setting.task, "template": setting.template}
        lengths = dict(zip(("maxlen_a", "maxlen_b"), setting.maxlens, strict=True))
        costs = {"price": price_of(_replies_of(outcomes), judge.settings)}
        rows.append({**place, **lengths, **vars(summary), **costs, "examples": pairs})
    # Answers that stay as they are at another length are one question: less than the sum of the rows.
    price = price_of(_replies_of([one for _, of_setting, _ in judged for one in of_setting]), judge.settings)
    result: dict[str, Any] = to_json({"judge": judge.provenance(), "price": price, "comparisons": rows})
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.judge", __doc__)
    parser.add_argument("first", metavar="RUN_A", type=Path, help="folder of a run")
    parser.add_argument("second", metavar="RUN_B", type=Path, help="folder of another, or of the same")
    parser.add_argument("--judge", metavar="FILE", type=Path, required=True, help="the judge's YAML file")
    parser.add_argument("--maxlen-a", metavar="N", type=int, help="length of the first run (default: all)")
    parser.add_argument("--maxlen-b", metavar="N", type=int, help="length of the second (default: the first's)")
    parser.add_argument(
        "--judge-may-see-documents",
        action="store_true",
        help="send documents to the judge's address, where its prompt shows them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Judge what a command line names."""
    options = _parse(argv)
    judge = PairJudge(options.judge, may_see_documents=options.judge_may_see_documents)
    with judge.replies:
        settings = pair_runs(options.first, options.second, (options.maxlen_a, options.maxlen_b))
        # All at once, so that no request waits for the end of a setting.
        outcomes = judge.judge([pair for setting in settings for pair in setting.pairs])
        judged: Judged = []
        for setting in settings:
            of_setting, outcomes = outcomes[: len(setting.pairs)], outcomes[len(setting.pairs) :]
            judged.append((setting, of_setting, summarize_pairs(of_setting)))
    if options.json:
        print(json.dumps(as_json(judge, judged), indent=2, ensure_ascii=False))
    else:
        print(render(judge, judged))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
