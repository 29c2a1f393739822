"""A sample of scores, computed again with the package that each profile follows, in every scoring.

check_parity("hf", [Checked(name="plos, id 3", text="a cat sat", references=["the cat sat"], metrics={...})])
-> Parity(package="rouge-score 0.1.2", num_predictions=1, largest_difference=0.0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from eval.errors import UserError
from eval.metrics.rouge import Splitter, split_sentences
from eval.metrics.unicode_text import counted_words, unicode_sentences, unicode_words
from eval.records.schema import Parity
from eval.scoring.examples import Scored
from eval.scoring.profiles import PROFILES

NUM_PREDICTIONS = 50
TOLERANCE = 1e-9
_SEED = 20
# Pairs of words that the packages compare at most, which they do one by one: two to four seconds.
_MOST_WORK = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A prediction as it is scored, with its scores; the name is for messages."""

    name: str
    text: str
    references: Sequence[str]
    metrics: Mapping[str, float]


Pair = Callable[[str, str], Mapping[str, float]]  # of a prediction and a reference


@dataclass(frozen=True, kw_only=True)
class Package:
    """A reference package: its name on PyPI, and what makes a function that scores as it does."""

    name: str
    load: Callable[[], Pair]


class _Tokenizer:
    """Words as `rouge_score` takes them of others."""

    def __init__(self, split_words: Splitter) -> None:
        self.tokenize = split_words


def _rouge_score(*, use_stemmer: bool, split_words: Splitter | None = None, sentences: Splitter) -> Pair:
    # Imports nltk, which takes seconds.
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = None if split_words is None else _Tokenizer(split_words)
    scorer = RougeScorer(list(PROFILES["hf"].metrics), use_stemmer=use_stemmer, tokenizer=tokenizer)

    def score(prediction: str, reference: str) -> dict[str, float]:
        ours, theirs = ("\n".join(sentences(text)) for text in (prediction, reference))
        return {metric: float(one.fmeasure) for metric, one in scorer.score(theirs, ours).items()}

    return score


def _rouge() -> Pair:
    from rouge import Rouge

    scorer = Rouge(metrics=["rouge-l"])

    def score(prediction: str, reference: str) -> dict[str, float]:
        try:
            [scores] = scorer.get_scores([prediction], [reference])
        except ValueError:  # a text without a sentence
            return {"rougeL": 0.0}
        return {"rougeL": scores["rouge-l"]["f"]}

    return score


def _sacrebleu() -> Pair:
    from sacrebleu import sentence_chrf

    return lambda prediction, reference: {"chrf": sentence_chrf(prediction, [reference]).score / 100}


# Profiles that are not here have no package that is kept up: SQuAD's rule is a script.
PACKAGES: dict[str, Package] = {
    "hf": Package(name="rouge-score", load=partial(_rouge_score, use_stemmer=True, sentences=split_sentences)),
    "scrolls": Package(name="rouge-score", load=partial(_rouge_score, use_stemmer=False, sentences=split_sentences)),
    "longbench": Package(name="rouge", load=_rouge),
    "unicode": Package(
        name="rouge-score",
        load=partial(_rouge_score, use_stemmer=False, split_words=unicode_words, sentences=unicode_sentences),
    ),
    "chrf": Package(name="sacrebleu", load=_sacrebleu),
}


def check_parity(profile: str, predictions: Iterable[Checked]) -> Parity:
    """Return how far a seeded sample of predictions is from the profile's reference package.

    Texts so long that the package would take longer than the scoring are left out.

    Raises:
        UserError: A score differs by more than 1e-9.
    """
    package = PACKAGES.get(profile)
    if package is None:
        return Parity(package=None, num_predictions=0, largest_difference=None)
    score, name = package.load(), f"{package.name} {metadata.version(package.name)}"
    largest, count = 0.0, 0
    for one in _sample(predictions):
        try:
            each = [score(one.text, reference) for reference in one.references]
        except RecursionError:  # `rouge` gives up on a sentence of a thousand words
            continue
        count += 1
        for metric, ours in one.metrics.items():
            theirs = max(scores[metric] for scores in each)
            if abs(ours - theirs) > TOLERANCE:
                raise UserError(
                    f"{one.name}: {metric} is {ours!r} under profile {profile}, and {theirs!r} by {name}; install the "
                    "versions of constraints.txt, and report this if it stays"
                )
            largest = max(largest, abs(ours - theirs))
    return Parity(package=name, num_predictions=count, largest_difference=largest if count else None)


def check_scores(scored: Iterable[Scored]) -> dict[str, Parity]:
    """Return `check_parity` of the predictions under each profile."""
    by_profile: dict[str, list[Checked]] = {}
    for one in scored:
        if one.is_model:
            task, template, name, maxlen = one.prediction.key
            scores = one.line.samples or [one.line.metrics]
            for number, (metrics, text) in enumerate(zip(scores, one.texts, strict=True), start=1):
                sample = f", sample {number}" if len(scores) > 1 else ""
                where = f"task {task}, template {template}, id {name}, length {maxlen}{sample}"
                checked = Checked(name=where, text=text, references=one.references, metrics=metrics)
                by_profile.setdefault(one.profile, []).append(checked)
    return {profile: check_parity(profile, checked) for profile, checked in by_profile.items()}


def _sample(predictions: Iterable[Checked]) -> Iterator[Checked]:
    """Yield the first predictions in an order that their names and a seed give, without those that take too long."""
    left = _MOST_WORK
    for one in sorted(predictions, key=lambda one: _draw(one.name))[:NUM_PREDICTIONS]:
        work = len(counted_words(one.text)) * sum(len(counted_words(reference)) for reference in one.references)
        if work <= left:
            left -= work
            yield one


def _draw(name: str) -> bytes:
    return hashlib.sha256(f"{_SEED} {name}".encode(errors="surrogatepass")).digest()


def describe_parity(found: Mapping[str, Parity]) -> str:
    """Return what was checked, for reports."""
    return "; ".join(_describe(profile, one, len(found) > 1) for profile, one in found.items())


def _describe(profile: str, parity: Parity, is_named: bool) -> str:
    prefix = f"`{profile}`: " if is_named else ""
    if parity.package is None:
        return f"{prefix}no reference package"
    if parity.largest_difference is None:
        return f"{prefix}no text was short enough for {parity.package}"
    return (
        f"{prefix}{parity.num_predictions} prediction{'s' * (parity.num_predictions != 1)} scored again by "
        f"{parity.package}, largest difference {parity.largest_difference:.1g}"
    )
