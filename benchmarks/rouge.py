"""The ROUGE profiles against the packages that they follow, on 1,000 real pairs, in one process.

    python benchmarks/rouge.py [--pairs 1000]

References are the abstracts of ACL papers (package aclsum) and of PLOS articles (package allofplos), and summaries of
the ACL papers in three sentences; predictions are as many words of the paper, from its start, middle or end. Peers are
rouge_score 0.1.2, which the scripts behind `hf` and `scrolls` call, and `rouge-l` of rouge 1.0.1, as LongBench has it.
All texts are split into sentences beforehand, and the time of that is printed apart.

Ours and the peer take turns in blocks of 100 pairs. No block comes twice, so ours finds no reference prepared, and the
cache of stems is empty at first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.pairs import Case, finish, show
from eval.metrics.rouge import score_longbench, score_sentences, split_sentences
from eval.scoring.profiles import PROFILES
from tasks import TASKS, LoadRequest

ACL_SPLITS = ("test", "train", "validation")
BLOCK = 100

# One prediction and one reference, each as its sentences.
Pair = tuple[list[str], list[str]]
Scorer = Callable[[Pair], dict[str, float]]


def papers() -> Iterator[tuple[str, str]]:
    """Yield the text of a paper with a reference."""
    for name, splits in (("aclsum", ACL_SPLITS), ("plos", ("test",))):
        for split in splits:
            for example in TASKS[name].load(LoadRequest(split=split)).examples:
                yield example.context, example.references[0]
    for split in ACL_SPLITS:
        aspects = TASKS["aclsum_aspects"].load(LoadRequest(split=split)).examples
        for _, group in itertools.groupby(aspects, key=lambda example: example.document_id):
            paper = list(group)
            yield paper[0].context, " ".join(example.references[0] for example in paper)


def real_pairs(num_pairs: int) -> list[tuple[str, str]]:
    """Return predictions with references, those of different sources and places in turn."""
    pairs = []
    for place, (text, reference) in itertools.product((0.0, 0.5, 1.0), papers()):
        words = text.split()
        length = len(reference.split())
        start = int(place * max(0, len(words) - length))
        pairs.append((" ".join(words[start : start + length]), reference))
    if len(pairs) < num_pairs:
        raise SystemExit(f"there are {len(pairs)} pairs, {num_pairs} asked for; ask for fewer")
    # A step that shares no factor with the number of pairs visits all, and mixes them without a random order.
    return [pairs[i * 1009 % len(pairs)] for i in range(num_pairs)]


def timed(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[list[dict[str, float]], float]:
    """Return the scores of the pairs, and the seconds that they took."""
    start = time.perf_counter()
    scores = [scorer(pair) for pair in pairs]
    return scores, time.perf_counter() - start


def compare(name: str, target: float | None, ours: Scorer, peer: Scorer, pairs: Sequence[Pair]) -> Case:
    """Print how far the scores are apart, and return the seconds of both."""
    seconds = [0.0, 0.0]
    scores: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for start in range(0, len(pairs), BLOCK):
        for side, scorer in enumerate((ours, peer)):
            got, took = timed(scorer, pairs[start : start + BLOCK])
            scores[side].extend(got)
            seconds[side] += took
    metrics = list(scores[0][0])
    both = list(zip(*scores, strict=True))
    per_pair = max(abs(a[metric] - b[metric]) for a, b in both for metric in metrics)
    of_means = max(abs(sum(a[metric] - b[metric] for a, b in both)) / len(pairs) for metric in metrics)
    case = Case(case=name, ours=seconds[0], peer=seconds[1], unit="s", target=target)
    show(case)
    print(f"  largest difference: {per_pair:.2g} of a pair, {of_means:.2g} of a mean; metrics {', '.join(metrics)}")
    return case


def rouge_score_pair(use_stemmer: bool) -> Scorer:
    scorer = RougeScorer(list(PROFILES["hf"].metrics), use_stemmer=use_stemmer)

    def score(pair: Pair) -> dict[str, float]:
        prediction, reference = pair
        scores = scorer.score("\n".join(reference), "\n".join(prediction))
        return {metric: float(score.fmeasure) for metric, score in scores.items()}

    return score


def rouge_pair() -> Scorer:
    scorer = Rouge(metrics=["rouge-l"])

    def score(pair: Pair) -> dict[str, float]:
        prediction, reference = map(" ".join, pair)
        return {"rougeL": scorer.get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]}

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    arguments = parser.parse_args()
    texts = real_pairs(arguments.pairs)
    start = time.perf_counter()
    pairs = [(split_sentences(prediction), split_sentences(reference)) for prediction, reference in texts]
    seconds = time.perf_counter() - start
    num_words = sum(len(text.split()) for pair in texts for text in pair)
    num_sentences = sum(len(text) for pair in pairs for text in pair)
    print(f"{len(pairs)} pairs, {num_words} words, {num_sentences} sentences, split in {seconds:.2f} s", flush=True)
    cases = [
        compare(
            "profile hf against rouge_score, with stemmer",
            10.0,
            lambda pair: score_sentences(*pair, use_stemmer=True),
            rouge_score_pair(use_stemmer=True),
            pairs,
        ),
        compare(
            "profile scrolls against rouge_score, without stemmer",
            None,
            lambda pair: score_sentences(*pair, use_stemmer=False),
            rouge_score_pair(use_stemmer=False),
            pairs,
        ),
        compare(
            "profile longbench against rouge",
            None,
            lambda pair: {"rougeL": score_longbench(*map(" ".join, pair))},
            rouge_pair(),
            pairs,
        ),
    ]
    finish(cases)


if __name__ == "__main__":
    main()
