"""The metrics without weights on 5,000 predictions, and copying against the procedure that NEWSROOM published.

    python benchmarks/metrics.py [--predictions 5000] [--peer 20]

Documents are the ACL papers of package aclsum and the PLOS articles of package allofplos, each at four lengths; answers
are words of the abstract and of the paper in turn. Their values go to a file as `python -m eval.score --metrics` writes
them, and the seconds of that are printed.

The peer finds the fragments of coverage and density by the procedure of Grusky et al. 2018 (figure 3), as NEWSROOM and
lighteval have it, and novel n-grams by sets, on the same words; ours and the peer take turns on the first answers. The
largest difference of a value is printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pairs import Case, finish, show
from benchmarks.rouge import papers
from eval.metrics.base import Item
from eval.metrics.document_index import index_document
from eval.metrics.open import open_metric
from eval.metrics.unicode_text import unicode_words
from eval.scoring.metric_files import score_missing

# The metrics without weights.
NAMES = ("diagnostics",)
# Characters of 1,024 to 8,192 tokens.
LENGTHS = (4_000, 8_000, 16_000, 32_000)
COMPARED = ("coverage", "density", "compression", "novel_1", "novel_2", "novel_3", "novel_4")


def items_of(name: str, count: int) -> Iterator[Item]:
    """Yield predictions, those about a document one after the other."""
    metric = open_metric(name)
    texts = dict(papers())
    rounds = -(-count // (len(texts) * len(LENGTHS)))
    found = (
        Item.of(
            metric,
            prediction=answer(text, reference, index, turn),
            window=text[:length],
            document=text,
            shorter_window=text[:shorter] if shorter else None,
            finish_reason="stop",
        )
        for index, (text, reference) in enumerate(texts.items())
        for turn in range(rounds)
        for shorter, length in itertools.pairwise((0, *LENGTHS))
    )
    return itertools.islice(found, count)


def answer(text: str, reference: str, index: int, turn: int) -> str:
    """Return an answer: runs of words of the abstract and of the paper in turn, of another place at each turn."""
    start = (index * 7919 + turn * 104_729) % max(1, len(text) - 2000)
    sources = reference.split(), text[start : start + 2000].split()
    places = range(turn * 5, turn * 5 + 60, 10)
    return " ".join(" ".join(words[place : place + 10]) for place in places for words in sources)


def published(words: Sequence[str], window: Sequence[str]) -> dict[str, float]:
    """Return the values that are compared, by the published procedures."""
    lengths = fragments(words, window)
    found = {
        "coverage": sum(lengths) / len(words),
        "density": sum(length**2 for length in lengths) / len(words),
        "compression": len(window) / len(words),
    }
    for n in range(1, 5):
        ours, theirs = (set(zip(*(text[start:] for start in range(n)), strict=False)) for text in (words, window))
        found[f"novel_{n}"] = len(ours - theirs) / len(ours)
    return found


def fragments(summary: Sequence[str], text: Sequence[str]) -> list[int]:
    """Return the lengths of the fragments, by the procedure of the paper: text behind a match is sought on."""
    found, place = [], 0
    while place < len(summary):
        best = start = 0
        while start < len(text):
            length = 0
            while (
                place + length < len(summary)
                and start + length < len(text)
                and summary[place + length] == text[start + length]
            ):
                length += 1
            best, start = max(best, length), start + max(length, 1)
        found += [best] if best else []
        place += max(best, 1)
    return found


def compare(count: int) -> Case:
    """Print how far values are apart, and return the seconds of both."""
    metric = open_metric("diagnostics")
    seconds, largest = [0.0, 0.0], 0.0
    for item in items_of("diagnostics", count):
        index_document.cache_clear()  # the peer has none either
        start = time.perf_counter()
        [ours] = metric.score([item])
        middle = time.perf_counter()
        theirs = published(unicode_words(item.prediction), unicode_words(item.window or ""))
        seconds = [seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle]
        largest = max(largest, *(abs((ours[name] or 0.0) - theirs[name]) / max(1, theirs[name]) for name in COMPARED))
    case = Case(
        case=f"all diagnostics of {count} answers, against these values alone",
        ours=seconds[0],
        peer=seconds[1],
        unit="s",
    )
    show(case)
    print(f"  largest difference: {largest:.2g} of a value; words that a window cuts count for the peer")
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=5000)
    parser.add_argument("--peer", type=int, default=20, help="answers that the peer scores too")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, one process")
    line = SimpleNamespace(task="papers", template="none", id="any", maxlen=1, system="benchmark")
    for name in NAMES:
        items = list(items_of(name, arguments.predictions))
        with tempfile.TemporaryDirectory() as folder:
            start, cpu = time.perf_counter(), time.process_time()
            score_missing(Path(folder), open_metric(name), ((line, item) for item in items))
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        num_documents = len({item.document for item in items})
        print(
            f"{name}: {len(items):,} predictions about {num_documents} documents in {seconds:.1f} s "
            f"({cpu:.1f} s of the processor), {1e3 * seconds / len(items):.2f} ms each, written to a file",
            flush=True,
        )
    finish([compare(arguments.peer)])


if __name__ == "__main__":
    main()
