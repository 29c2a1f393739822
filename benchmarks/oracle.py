"""What the yardsticks of a paper cost, and what a greedy oracle costs that asks `rouge_score` about every candidate.

    python benchmarks/oracle.py [--profile hf] [--peer-papers 2]

Articles of PLOS (package allofplos) with 6,000 words or more, cut to 6,000 words, at four lengths: the first 1,024,
2,048, 4,096 and 8,192 tokens at 4.6 characters a token. The first pass meets words whose stems are not known yet; a
long run is nearer to the second. Splitting and counting happen once a document, whatever its lengths and queries.

The peer, on a few papers: at each length, from nothing, add the sentence that `RougeScorer.score` likes best until none
helps or fits. Both choices are then measured by `rouge_score` on their text, ROUGE-1 F + ROUGE-2 F, which is the peer's
objective; ours counts no bigrams across sentences, and so is at a disadvantage there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from rouge_score.rouge_scorer import RougeScorer

from benchmarks.pairs import Case, alternate, finish, show
from eval.metrics.rouge import sentence_spans
from eval.scoring.baselines import document_baselines, prepare_document, word_budget
from eval.scoring.profiles import PROFILES
from tasks import TASKS, LoadRequest

LENGTHS = (1024, 2048, 4096, 8192)
CHARACTERS_A_TOKEN = 4.6
NUM_WORDS = 6_000
ARXIV_PAPERS = 6_440


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A text of `NUM_WORDS` words, what was shown of it at each length, and its abstract."""

    text: str
    windows: dict[int, list[tuple[int, int]]]
    reference: str


def load_papers() -> list[Paper]:
    """Return the articles that are long enough, cut to the same number of words."""
    papers = []
    for example in TASKS["plos"].load(LoadRequest(split="test")).examples:
        ends = [match.end() for match in re.finditer(r"\S+", example.context)]
        if len(ends) >= NUM_WORDS:
            text = example.context[: ends[NUM_WORDS - 1]]
            windows = {maxlen: [(0, min(len(text), int(maxlen * CHARACTERS_A_TOKEN)))] for maxlen in LENGTHS}
            papers.append(Paper(text=text, windows=windows, reference=example.references[0]))
    return papers


def ours(paper: Paper, profile: str, budget: int) -> list[str]:
    """Return the oracle's text at each length."""
    rows = document_baselines(
        prepare_document(paper.text, PROFILES[profile].objective), paper.windows, [paper.reference], None, budget
    )
    return [rows[maxlen][-1].text for maxlen in LENGTHS]


def plain(paper: Paper, scorer: RougeScorer, budget: int) -> list[str]:
    """Return the same by the plain way."""
    spans = sentence_spans(paper.text)
    texts = []
    for maxlen in LENGTHS:
        [(_, shown)] = paper.windows[maxlen]
        sentences = [paper.text[start:end] for start, end in spans if end <= shown]
        chosen: list[int] = []
        reached = 0.0
        while True:
            candidates = []
            for new in [place for place in range(len(sentences)) if place not in chosen]:
                text = "\n".join(sentences[place] for place in sorted([*chosen, new]))
                if len(text.split()) <= budget:
                    candidates.append((objective(scorer, paper.reference, text), new))
            value, new = max(candidates, key=itemgetter(0), default=(0.0, 0))
            if value <= reached:
                break
            reached, chosen = value, [*chosen, new]
        texts.append("\n".join(sentences[place] for place in sorted(chosen)))
    return texts


def objective(scorer: RougeScorer, reference: str, text: str) -> float:
    """Return ROUGE-1 F + ROUGE-2 F as `rouge_score` has it."""
    scores = scorer.score(reference, text)
    return scores["rouge1"].fmeasure + scores["rouge2"].fmeasure


def time_parts(papers: Sequence[Paper], profile: str, budget: int) -> dict[str, list[float]]:
    """Return milliseconds of each part, a number a paper."""
    names = ("splitting", "counting words", "lead and tail", "oracle", "all")
    parts: dict[str, list[float]] = {name: [] for name in names}
    for paper in papers:
        start = time.perf_counter()
        sentence_spans(paper.text)
        split = time.perf_counter()
        document = prepare_document(paper.text, PROFILES[profile].objective)
        prepared = time.perf_counter()
        document_baselines(document, paper.windows, [paper.reference], None, budget)
        done = time.perf_counter()
        # Without a word in the reference the oracle has nothing to look for.
        document_baselines(document, paper.windows, ["?"], None, budget)
        no_oracle = time.perf_counter() - done
        # Preparing splits once more.
        splitting = split - start
        counting = prepared - split - splitting
        seconds = (splitting, counting, no_oracle, done - prepared - no_oracle, done - split)
        for times, part in zip(parts.values(), seconds, strict=True):
            times.append(1000 * part)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=["hf", "scrolls"], default="hf")
    parser.add_argument("--peer-papers", type=int, default=2)
    arguments = parser.parse_args()

    profile, papers = arguments.profile, load_papers()
    budget = word_budget(paper.reference for paper in papers)
    print(f"{len(papers)} papers of {NUM_WORDS:,} words, profile {profile}, {budget} words to spend, {LENGTHS}")
    ours(papers[0], profile, budget)  # the sentence model loads on its first use
    for label in ("first pass", "second pass"):
        parts = time_parts(papers, profile, budget)
        means = {name: statistics.fmean(times) for name, times in parts.items()}
        print(f"{label}, mean ms a paper: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items()))
        print(f"  median {statistics.median(parts['all']):.1f}, slowest {max(parts['all']):.1f}", end="; ")
        print(f"{ARXIV_PAPERS:,} papers in {ARXIV_PAPERS * means['all'] / 60_000:.1f} minutes", flush=True)

    scorer = RougeScorer(["rouge1", "rouge2"], use_stemmer=PROFILES[profile].use_stemmer)
    cases, reached = [], []
    for number, paper in enumerate(papers[: arguments.peer_papers], start=1):
        texts: dict[str, list[str]] = {}
        mine, theirs = alternate(
            [
                lambda paper=paper, texts=texts: texts.update(ours=ours(paper, profile, budget)),
                lambda paper=paper, texts=texts: texts.update(peer=plain(paper, scorer, budget)),
            ],
            repeats=1,
            warm_up=False,
        )
        case = Case(case=f"yardsticks of paper {number}, {profile}", ours=1000 * mine, peer=1000 * theirs, unit="ms")
        show(case)
        cases.append(case)
        for maxlen, *pair in zip(LENGTHS, texts["ours"], texts["peer"], strict=True):
            values = [objective(scorer, paper.reference, text) for text in pair]
            reached.append(values)
            print(f"  {maxlen:,} tokens: ROUGE-1 F + ROUGE-2 F ours {values[0]:.4f}, peer {values[1]:.4f}", flush=True)
    if reached:
        best = [statistics.fmean(values) for values in zip(*reached, strict=True)]
        print(f"mean: ours {best[0]:.4f}, peer {best[1]:.4f}, difference {best[0] - best[1]:+.4f}")
        assert best[0] >= best[1] - 0.005, "the fast oracle is worse than the plain one"
    finish(cases)


if __name__ == "__main__":
    main()
