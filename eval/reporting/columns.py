"""The columns of all reports, each declared once: tables, page, charts, CSV files and trackers draw from here.

A new cost is a row of `COSTS` and, where the value is new on disk, a field of `eval.records.schema.Cost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from eval.metrics.agreement import LEGEND as DOUBT_LEGEND
from eval.metrics.agreement import mark
from eval.records.schema import BoardRow, Comparison, Estimate, Noise, Result, Share, ValueRecord
from eval.scoring.claims import open_collapses
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import PROFILES, metric_name


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value of a record, and how reports show it.

    Attributes:
        key: Field of the record; empty where only `show` reads it.
        unit: What the value is divided by.
        show: Returns the text of a cell; by default it shows the field as a number, or a dash where it is not known.
        legend: A sentence on what it means, which begins with its name and a colon; may be empty.
        plain_name: Name in CSV files, which hold base units; by default the key.
        axis: Title of the axis against which quality is drawn, for a cost of which less is better; empty draws none.
        phrase: The cost within a sentence.
    """

    heading: str
    key: str = ""
    digits: int = 0
    unit: float = 1
    show: Callable[[Any], str] | None = None
    legend: str = ""
    plain_name: str = ""
    axis: str = ""
    phrase: str = ""

    def value(self, record: Any) -> float | None:
        """Return the value in base units; None where it is not known."""
        found: float | None = None if record is None else getattr(record, self.key)
        return found

    def cell(self, record: Any) -> str:
        """Return what a table shows of a record."""
        return self.show(record) if self.show else number_or_dash(self.value(record), self.digits, self.unit)

    @property
    def note(self) -> str:
        """Return what the name means, without the name."""
        return self.legend.partition(": ")[2].removesuffix(".")


def number_or_dash(value: float | None, digits: int, unit: float = 1) -> str:
    """Return a number in some unit, or a dash for one that is not known."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"


def units_of(record: Result | Comparison | BoardRow) -> tuple[int, str]:
    """Return how many of what are resampled: documents, or clusters of them."""
    return (record.num_documents, "documents") if record.num_clusters is None else (record.num_clusters, "clusters")


def count(record: Result | Comparison | BoardRow) -> str:
    """Return the number of examples, and that of documents, or of clusters, where there are fewer."""
    examples, (units, name) = record.num_examples, units_of(record)
    return str(examples) if examples == units else f"{examples} ({units}{' clusters' * (name == 'clusters')})"


def interval(low: float | None, high: float | None, form: str, scale: float = 1) -> str:
    """Return an interval with a space before it, its ends in a form of `format`; empty where there is none."""
    return "" if low is None or high is None else f" [{scale * low:{form}}, {scale * high:{form}}]"


def percent(estimate: Estimate | None, digits: int = 2) -> str:
    """Return an estimate x 100 with its interval; a dash for one that is not known."""
    if estimate is None or estimate.mean is None:
        return "-"
    return f"{100 * estimate.mean:.{digits}f}" + interval(estimate.low, estimate.high, ".1f", 100)


def percent_mean(estimate: Estimate | None, digits: int = 2) -> str:
    """Return an estimate x 100 without its interval; a dash for one that is not known."""
    return "-" if estimate is None else percent(replace(estimate, low=None, high=None), digits)


def scale_of(value: ValueRecord | None) -> float:
    """Return what reports multiply a value with: shares, as all scores of profiles are, are shown x 100."""
    return 100 if value is None or value.is_share else 1


def estimate_in_units(share: Share | None, value: ValueRecord, *, with_interval: bool = True) -> str:
    """Return the mean of a further metric's value as reports show it; a dash where it is not known."""
    if share is None or share.mean is None:
        return "-"
    scale = scale_of(value)
    ends = interval(share.low, share.high, ".1f", scale) if with_interval else ""
    return f"{scale * share.mean:.{1 if value.is_share else 2}f}{ends}"


def value_heading(value: ValueRecord) -> str:
    """Return the name of a further metric's value, with an arrow to where it is better."""
    return value.label + {"higher": " \u2191", "lower": " \u2193", None: ""}[value.better]


def signed_percent(comparison: Comparison) -> str:
    """Return a difference with its interval, shares x 100."""
    return f"{scale_of(comparison.value) * comparison.difference:+.2f}{signed_interval(comparison)}"


def signed_interval(comparison: Comparison) -> str:
    """Return the interval of a difference, shares x 100."""
    return interval(comparison.low, comparison.high, "+.1f", scale_of(comparison.value))


def p_value(value: float | None) -> str:
    """Return a p value; a dash where there is none."""
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


Outcome = Literal["better", "worse", "slightly worse", "as good", "not settled", "same prompts", "different"]


def outcome(comparison: Comparison) -> Outcome:
    """Return what a comparison shows of the second setting; slightly worse is worse by less than the margin.

    Different is what a value without a direction can be.
    """
    if not comparison.num_examples:
        return "same prompts"
    is_different = comparison.p_corrected is not None and comparison.p_corrected < 0.05
    better = "higher" if comparison.value is None else comparison.value.better
    if is_different and better is None:
        return "different"
    if is_different and (comparison.difference > 0) == (better == "higher"):
        return "better"
    if is_different:
        return "slightly worse" if comparison.non_inferior else "worse"
    return "as good" if comparison.non_inferior else "not settled"


def verdict(comparison: Comparison) -> str:
    """Return the outcome of a comparison as tables show it."""
    found, margin = outcome(comparison), f"{scale_of(comparison.value) * comparison.margin:g}"
    if found == "as good":
        num_units, name = units_of(comparison)
        return f"as good, margin {margin} (collapses of up to {open_collapses(num_units):.0%} of {name} open)"
    return f"worse, within the margin of {margin}" if found == "slightly worse" else found


def leaves_open(comparison: Comparison) -> str:
    """Return what a claim of as good about so few documents cannot know, as a clause."""
    num_units, name = units_of(comparison)
    share = open_collapses(num_units)
    return f"{num_units} {name} without a collapse leave collapses of up to {share:.0%} of {name} open"


def wins_and_losses(comparison: Comparison) -> str:
    """Return wins, ties and losses, by each metric where the headline joins several."""
    if comparison.by_metric:
        counts = comparison.by_metric.items()
        return ", ".join(f"{metric_name(name)} {'/'.join(map(str, of_one))}" for name, of_one in counts)
    return f"{comparison.wins}/{comparison.ties}/{comparison.losses}"


def detectable(comparison: Comparison) -> str:
    """Return the detectable difference x 100, or how many documents would have one."""
    if comparison.needs_documents is not None and comparison.num_examples:
        return f"none: takes {comparison.needs_documents} {units_of(comparison)[1]}"
    return number_or_dash(comparison.detectable, 2, 1 / scale_of(comparison.value))


def name_metric(comparison: Comparison) -> str:
    """Return the name of what a comparison is of."""
    return metric_name(comparison.metric) if comparison.value is None else value_heading(comparison.value)


_PEAK = Column(
    key="peak_memory_bytes",
    heading="peak GiB",
    digits=2,
    unit=2**30,
    legend="peak: device memory on a GPU, resident memory of the process (weights and libraries included) on a CPU.",
)
_CACHE = Column(
    key="cache_bytes",
    heading="cache MiB",
    digits=1,
    unit=2**20,
    legend="cache: keys and values at the end, allocated.",
    axis="Key/value cache (MiB)",
    phrase="bytes of keys and values",
)
_ATTENTION = Column(
    key="attention_flops",
    heading="attn TFLOP",
    digits=3,
    unit=1e12,
    legend="attn: attention's matrix products for one example, in closed form.",
    plain_name="attention_flops_per_example",
    axis="Attention per example (TFLOP)",
    phrase="attention operations of an example",
)


def text(name: str) -> Column:
    """Return the column of a field that is shown as it is."""
    return Column(heading=name, show=lambda record: str(getattr(record, name)))


def metric_heading(metric: str, profile: str) -> str:
    """Return the name of a profile's metric, marked where people were not seen to agree with it."""
    return metric_name(metric) + mark(profile, metric, SCORING_VERSION)


def doubt_legend(profiles: Iterable[str]) -> list[str]:
    """Return what the mark means, where one of these profiles has a metric with it."""
    metrics = ((profile, metric) for profile in set(profiles) for metric in PROFILES[profile].metrics)
    return [DOUBT_LEGEND] if any(mark(*one, SCORING_VERSION) for one in metrics) else []


def score(metric: str, profile: str | None = None) -> Column:
    """Return the column of a metric without intervals; a profile marks it where people were not seen to agree."""
    heading = metric_name(metric) if profile is None else metric_heading(metric, profile)
    return Column(heading=heading, show=lambda record: percent_mean(record.metrics[metric]))


def of_value(key: str, value: ValueRecord) -> Column:
    """Return the column of a further metric's value by its `NAME.VALUE`, without intervals."""

    def show(record: Any) -> str:
        return estimate_in_units((record.further or {}).get(key), value, with_interval=False)

    metric, _, name = key.rpartition(".")
    return Column(heading=value_heading(value) + mark(metric, name), show=show)


def of_cost(column: Column) -> Column:
    """Return a column of a cost for tables of the records that have the cost."""
    return replace(column, show=lambda record: column.cell(record.cost))


# What predictions cost: fields of `Cost`.
COSTS = [
    Column(
        key="prefill_tokens_per_second",
        heading="prefill tok/s",
        digits=1,
        legend="prefill and decode: tokens of all examples over their seconds, in one process; what prompts share "
        "counts for each of them, and decoding is that of a whole batch.",
    ),
    Column(key="decode_tokens_per_second", heading="decode tok/s", digits=1),
    Column(
        key="seconds",
        heading="s/example",
        digits=1,
        plain_name="seconds_per_example",
        axis="Time per example (s)",
        phrase="seconds an example",
    ),
    _PEAK,
    _CACHE,
    _ATTENTION,
]


# Shown where some predictions have thoughts with a room of their own.
_THOUGHT = Column(
    key="thought_tokens",
    heading="thought tok",
    legend="thought: tokens of an example's thoughts, which decode tok/s counts too.",
    plain_name="thought_tokens_per_example",
)
# Shown where a server told some of them.
_SERVED = [
    Column(
        key="first_token_seconds",
        heading="first tok s",
        digits=2,
        legend="first tok s: from sending a request to its first token, in the mean.",
        plain_name="first_token_seconds_per_example",
    ),
    Column(
        key="token_seconds",
        heading="s/tok",
        digits=4,
        legend="s/tok: seconds between further tokens of an answer.",
        plain_name="seconds_per_further_token",
    ),
    Column(
        key="cached_share",
        heading="cached %",
        digits=1,
        unit=0.01,
        legend="cached: share of the prompts' tokens that the server had in its prefix cache.",
        plain_name="cached_prompt_tokens_fraction",
    ),
]


def costs_of(records: Iterable[Any]) -> list[Column]:
    """Return the columns of what the predictions of some results cost."""
    costs = [record.cost for record in records]
    known = [column for column in (*_SERVED, _THOUGHT) if any(column.value(cost) is not None for cost in costs)]
    return [*COSTS, *known]


def charted_costs() -> dict[str, Column]:
    """Return the costs against which quality is drawn, by key."""
    return {column.key: column for column in reversed(COSTS) if column.axis}


# What a measurement of perplexity cost: fields of `PerplexityCost`.
PERPLEXITY_COSTS = [
    Column(key="tokens_per_second", heading="tok/s"),
    replace(_PEAK, legend="peak: device memory on a GPU, resident memory of the process on a CPU."),
    replace(_CACHE, legend="cache: keys and values after the longest window."),
    replace(_ATTENTION, legend="attn: attention's matrix products for one document, in closed form."),
]

# What the page shows of an answer beside its scores: fields of `Prediction`.
ANSWERS = [
    Column(key="context_tokens_kept", heading="kept"),
    Column(key="context_tokens_dropped", heading="dropped"),
    Column(key="seconds", heading="seconds", digits=1),
    _CACHE,
    Column(key="finish_reason", heading="end"),
]

THOUGHT_OF_ANSWER = Column(key="num_thought_tokens", heading="thought tok")

# What tables of scores show of a result beside its metrics. A baseline has the counts of the model above it.
MAXLEN = Column(key="maxlen", heading="maxlen")
N = Column(heading="n", show=count, legend="n: examples (documents, or clusters, where fewer).")
CUT = Column(key="num_truncated", heading="cut", legend="cut: examples whose context was truncated.")
WORDS = Column(key="words", heading="words", legend="words: of a text, in the median.")


def num_answers(record: Any) -> int:
    """Return how many answers a result is of: one to each prompt, or as many as there are samples."""
    return int(record.num_examples * (record.num_samples or 1))


def ended_by_length(record: Any) -> str:
    """Return the share of the answers that used up their room; a dash where it is not known."""
    count = record.num_ended_by_length
    return "-" if count is None else f"{100 * count / num_answers(record):.0f}%"


ENDED = Column(
    heading="by length",
    show=ended_by_length,
    legend="by length: answers that ended because their room was used up; their scores are those of beginnings.",
)
COUNTS = [N, CUT, WORDS, ENDED]
EVIDENCE = Column(
    heading="evidence %",
    show=lambda result: percent(result.evidence_visible, 1) if result.evidence_visible else "",
    legend="evidence: share of the gold evidence that was shown.",
)


# What tables of the noise of sampling show: pairs of a result and a metric of it.
NOISE = [
    Column(heading="maxlen", show=lambda row: str(row[0].maxlen)),
    Column(heading="metric", show=lambda row: metric_name(row[1])),
    Column(heading="samples", show=lambda row: str(row[0].num_samples), legend="samples: answers to each prompt."),
    Column(
        heading="SD samples",
        show=lambda row: number_or_dash(row[0].noise[row[1]].samples, 2, 0.01),
        legend="SD samples: standard deviation x 100 between samples of a prompt.",
    ),
    Column(
        heading="SD documents",
        show=lambda row: number_or_dash(row[0].noise[row[1]].documents, 2, 0.01),
        legend="SD documents: that between documents, without what samples add to it.",
    ),
    Column(
        heading="due to samples",
        show=lambda row: share_of_samples(row[0].noise[row[1]]),
        legend="due to samples: part of the squared standard error of the mean that more samples of each prompt would "
        "take away; only more documents lessen the rest.",
    ),
]


def share_of_samples(noise: Noise) -> str:
    """Return the part of the squared standard error that is due to samples; a dash where it is not known."""
    return "-" if noise.share_of_samples is None else f"{noise.share_of_samples:.0%}"


@dataclass(frozen=True, kw_only=True)
class BaselineStyle:
    """A system that needs no model: its name, its line in charts, and its column beside the model, if it has one."""

    heading: str
    dash: Sequence[int]
    column: Column | None = None
    is_charted: bool = True


_AT_LENGTH = "at length: with as many words as the answer of the row, which a model is to be compared with."
BASELINE_STYLES = {
    "visible_oracle": BaselineStyle(
        heading="visible oracle",
        dash=[7, 3],
        column=Column(
            heading="oracle",
            legend="oracle: sentences that this row's window showed, picked greedily with the references in hand; a "
            "reference line, no strict ceiling.",
        ),
    ),
    "foreign_oracle": BaselineStyle(heading="foreign oracle", dash=[7, 3, 2, 3]),
    "lead": BaselineStyle(heading="lead", dash=[2, 2], is_charted=False),
    "tail": BaselineStyle(heading="tail", dash=[9, 3, 2, 3], is_charted=False),
    "matched_oracle": BaselineStyle(
        heading="oracle at length", dash=[4, 2], column=Column(heading="oracle at length", legend=_AT_LENGTH)
    ),
    "matched_lead": BaselineStyle(heading="lead at length", dash=[2, 2], column=Column(heading="lead at length")),
    "matched_tail": BaselineStyle(heading="tail at length", dash=[9, 3, 2, 3], is_charted=False),
    "foreign_reference": BaselineStyle(heading="foreign reference", dash=[1, 2], is_charted=False),
    "shuffled_reference": BaselineStyle(heading="shuffled reference", dash=[1, 2], is_charted=False),
    "reference": BaselineStyle(heading="reference", dash=[1, 2], is_charted=False),
    "query_echo": BaselineStyle(heading="query echo", dash=[1, 4], is_charted=False),
    "common_answer": BaselineStyle(
        heading="common answer",
        dash=[12, 2],
        column=Column(
            heading="common answer",
            legend="common answer: the answer that most examples share, without what one alone has.",
        ),
    ),
}
_BASELINE_LEGEND = (
    "lead, tail: as many words as references have in the median, from either end of what was shown. visible oracle: "
    "sentences that were shown, picked greedily with the references in hand; a reference line, no strict ceiling. "
    "foreign oracle: the same where another document's text replaces all beyond the smallest window, the floor of what "
    f"the oracle gains with length. {_AT_LENGTH} "
    "common answer: the answer that most examples share, without what one alone has."
)

# What tables of further metrics show beside the model, from floor to ceiling.
FURTHER_BESIDE = (
    *("foreign_reference", "shuffled_reference", "matched_lead", "matched_oracle", "visible_oracle", "reference"),
)
FURTHER_LEGEND = (
    "value: of a further metric, with an arrow to where it is better; without one it describes and ranks nothing. n: "
    "examples that have it at the greatest length. Shares are x 100. foreign reference: that of an example about "
    "another document, a floor. reference: the first one, beside the others where there are several, else beside "
    "itself. shuffled reference: its sentences in another order. different: a difference in a value without direction."
)

# What tables of paired comparisons show.
COMPARISONS = [
    Column(heading="metric", show=name_metric),
    Column(heading="n", show=count),
    Column(
        heading="difference",
        show=signed_percent,
        legend="difference: second minus first on the same examples, x 100, 95% bootstrap interval over documents, of "
        "this row alone; of one model, examples with the same prompt on both sides are left out.",
    ),
    Column(
        heading="p",
        show=lambda one: p_value(one.p_value),
        legend="p: permutation of whole documents; corrected: for the rows of the table, permuted together (max-T).",
    ),
    Column(heading="corrected", show=lambda one: p_value(one.p_corrected)),
    Column(heading="wins/ties/losses", show=wins_and_losses),
    Column(
        heading="detectable",
        show=detectable,
        legend="detectable: the smallest difference that so many documents would have shown with power 0.8 in this "
        "table; none where no difference could be shown with so few documents, with the least number that could.",
    ),
    Column(
        heading="verdict",
        show=verdict,
        legend="as good: a loss of the margin, as given to this command, is ruled out even if one more document "
        "collapsed; open: the share of all documents that may collapse although none of so many did.",
    ),
]


def legend_of(columns: Iterable[Column]) -> str:
    """Return what the columns mean, in sentences."""
    return " ".join(column.legend for column in columns if column.legend)


LEGEND = f"{legend_of(COUNTS)} {_BASELINE_LEGEND} {EVIDENCE.legend}"
COMPARISON_LEGEND = legend_of(COMPARISONS)


def system_name(result: Result) -> str:
    """Return the name of a result's system in tables."""
    return "model" if result.kind == "model" else BASELINE_STYLES[result.system].heading
