"""Trains the model behind the metric `support`, and says how it ranks answers that people judged.

    python benchmarks/support.py --frank CLONE --human FOLDER [--qags CLONE] [--storysumm CLONE] [--longdoc CLONE]
        [--features FILE] [--write]

Data, none of which is part of this repository:

- `--frank`: a clone of artidoro/frank (MIT): judgements of news summaries; articles and summaries are in its commit
  5860706. The model is trained on the validation split, and on nothing else.
- `--human`: `longsciverify.jsonl` (jbshp/LongDocFACTScore, MIT) and `squality.jsonl` (nyu-mll/SQuALITY, CC BY), an
  answer a line: `document_id`, `system`, `document`, `summary`, and the judgements of each rater in
  `sentence_factuality` or `ratings`.
- `--qags`: a clone of W4ngatang/qags, which states no licence; judgements of sentences of news summaries.
- `--storysumm`: a clone of melaniesubbiah/storysumm (MIT): stories, and summaries by language models.
- `--longdoc`: a clone of jbshp/LongDocFACTScore: LongEval's summaries of PubMed papers (Apache-2.0).

`--features` keeps the features, which take minutes, in a file and reads them from there if it exists. `--write` writes
`eval/metrics/support.json`.

AUC is the chance that of two answers which people judged differently the better one has the greater value, 0.5 for
nothing; "within" takes pairs of one system alone. Intervals are over documents, drawn again with replacement. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from eval.metrics.embed import worded_sentences
from eval.metrics.encoder import Encoder
from eval.metrics.evidence import FEATURES, Evidence
from eval.metrics.support import COEFFICIENTS
from eval.metrics.unicode_text import unicode_words

FRANK_TEXTS = "5860706"
TRAIN = ("frank validation cnndm", "frank validation bbc")
NUM_RESAMPLES = 1000
RIDGE = 1e-3
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An answer that people judged, from 0 to 1; `sentences` and `labels` where they judged each sentence."""

    name: str
    document_id: str
    system: str
    document: str
    answer: str
    human: float
    sentences: tuple[str, ...] = ()
    labels: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A judged answer with the features of its sentences (N, 5)."""

    name: str
    document_id: str
    system: str
    human: float
    labels: tuple[float, ...]
    features: Floats


# What people judged


def git_show(clone: Path, file: str, commit: str = "HEAD") -> str:
    command = ["git", "-C", str(clone), "show", f"{commit}:{file}"]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout


def read_frank(clone: Path) -> Iterator[Judged]:
    """Yield the summaries of FRANK; `Factuality` is the share of sentences without an error."""
    folder = "data/articles-wbertscore-json"
    texts: dict[str, Any] = {}
    for row in json.loads(git_show(clone, "data/human_annotations.json")):
        key, system = row["hash"], row["model_name"]
        if key not in texts:
            texts[key] = json.loads(git_show(clone, f"{folder}/{key}.json", FRANK_TEXTS))
        yield Judged(
            name=f"frank {'validation' if row['split'].startswith('val') else 'test'} {row['dataset']}",
            document_id=key,
            system=system,
            document=texts[key]["article"],
            answer=texts[key][system],
            human=row["Factuality"],
        )


def read_human(folder: Path) -> Iterator[Judged]:
    """Yield answers of which people judged three sentences, and answers that they gave points for correctness."""
    for name in ("longsciverify", "squality"):
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if name == "longsciverify":
                given = [value for rater in row["sentence_factuality"] for value in rater]
            else:
                given = [None if value is None else value / 100 for value in row["ratings"]["correctness"]]
            yield Judged(
                name=name,
                document_id=row.get("document_id") or row["id"],
                system=row["system"],
                document=row["document"],
                answer=row["summary"],
                human=float(np.mean([value for value in given if value is not None])),
            )


def read_qags(clone: Path) -> Iterator[Judged]:
    """Yield the summaries of QAGS; a sentence counts by the share of three people who found it consistent."""
    for name in ("cnndm", "xsum"):
        for line in git_show(clone, f"data/mturk_{name}.jsonl").splitlines():
            row = json.loads(line)
            found = row["summary_sentences"]
            labels = tuple(float(np.mean([one["response"] == "yes" for one in each["responses"]])) for each in found)
            yield _by_sentence(
                f"qags {name}", row["article"], "one", row["article"], [x["sentence"] for x in found], labels
            )


def read_storysumm(clone: Path) -> Iterator[Judged]:
    """Yield the summaries of StorySumm; the file has a line break within one string, and one list is too short."""
    text = git_show(clone, "storysumm.json").replace('", "\n', '",\n')
    for row in json.loads(text, strict=False).values():
        if len(row["errors"]) == len(row["summary"]):
            yield _by_sentence(
                "storysumm",
                row["story-id"],
                row["model"],
                row["story"],
                row["summary"],
                tuple(map(float, row["errors"])),
            )


def _by_sentence(
    name: str, document_id: str, system: str, document: str, sentences: Sequence[str], labels: tuple[float, ...]
) -> Judged:
    pairs = [(text, label) for text, label in zip(sentences, labels, strict=True) if unicode_words(text)]
    return Judged(
        name=name,
        document_id=document_id,
        system=system,
        document=document,
        answer=" ".join(sentences),
        human=float(np.mean(labels)),
        sentences=tuple(text for text, _ in pairs),
        labels=tuple(label for _, label in pairs),
    )


def read_longeval(clone: Path) -> Iterator[Judged]:
    """Yield LongEval's summaries of PubMed papers; three people judged facts of each, in per cent."""
    folder = "data/raw_data/LongEval/pubmed_summary_src_doc_data.json"
    texts = json.loads(git_show(clone, folder))
    for row in json.loads(git_show(clone, "data/human_eval_results/LongEval/pubmed_fine_scores.json")):
        match = re.fullmatch(r"(article_\d+)_(.+)", row["story"])
        assert match is not None
        found = texts[row["story"]]
        yield Judged(
            name="longeval",
            document_id=match[1],
            system=match[2],
            document=found["source_doc"].replace("<br />", " "),
            answer=re.sub(r"<br />|</?[a-z]+>", " ", found["summary"]),
            human=float(np.mean(row["score"])) / 100,
        )


READERS = {
    "frank": read_frank,
    "human": read_human,
    "longdoc": read_longeval,
    "storysumm": read_storysumm,
    "qags": read_qags,
}


# Features


def compute(judged: Sequence[Judged]) -> Iterator[Row]:
    """Yield the answers with their features, a document at a time."""
    encoder = Encoder()
    order = sorted(range(len(judged)), key=lambda index: (judged[index].name, judged[index].document_id))
    document, evidence = None, None
    start = time.perf_counter()
    for done, index in enumerate(order):
        row = judged[index]
        if evidence is None or document != row.document:
            document, evidence = row.document, Evidence(row.document, encoder)
        sentences = list(row.sentences) or worded_sentences(row.answer)
        if not sentences:
            continue
        yield Row(
            name=row.name,
            document_id=row.document_id,
            system=row.system,
            human=row.human,
            labels=row.labels,
            features=evidence.of(sentences),
        )
        if done % 200 == 0:
            print(f"{done} of {len(order)} answers, {time.perf_counter() - start:.0f} s", file=sys.stderr)


def read_features(file: Path) -> list[Row]:
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        known = json.loads(line)
        rows.append(Row(**known | {"labels": tuple(known["labels"]), "features": np.array(known["features"])}))
    return rows


def write_features(rows: Iterator[Row], file: Path) -> None:
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(vars(row) | {"features": row.features.round(6).tolist()}) + "\n")
    part.replace(file)


# The model


def probabilities(features: Floats, weights: Floats) -> Floats:
    """Return the probability of each sentence; the last weight is the bias."""
    found: Floats = 1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1])))
    return found


def fit(rows: Sequence[Row]) -> Floats:
    """Return weights under which the mean over the sentences of an answer is nearest to what people gave it.

    Nearest by cross-entropy. No weight is negative: more evidence never takes support away.
    """
    features = np.concatenate([row.features for row in rows])
    owners = np.repeat(np.arange(len(rows)), [len(row.features) for row in rows])
    counts = np.bincount(owners)
    human = np.array([row.human for row in rows])

    def loss(weights: Floats) -> float:
        mean = np.bincount(owners, weights=probabilities(features, weights)) / counts
        mean = mean.clip(1e-9, 1 - 1e-9)
        entropy = -(human * np.log(mean) + (1 - human) * np.log(1 - mean)).mean()
        return float(entropy + RIDGE * (weights[:-1] ** 2).sum())

    bounds = [(0, None)] * len(FEATURES) + [(None, None)]
    found: Floats = minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x
    return found


# How it ranks


def auc(values: Floats, human: Floats, documents: Sequence[str], systems: Sequence[str] | None) -> tuple[float, ...]:
    """Return the AUC and the ends of its 95% interval; only pairs of one system where systems are given."""
    above = human[:, None] > human[None, :]
    if systems is not None:
        above &= np.array(systems)[:, None] == np.array(systems)[None, :]
    right = np.where(above, (values[:, None] > values[None, :]) + 0.5 * (values[:, None] == values[None, :]), 0.0)
    names = sorted(set(documents))
    owner = np.array([names.index(document) for document in documents])
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), NUM_RESAMPLES)
    counts = np.vstack([np.ones(len(owner)), drawn[:, owner]])
    shares = ((counts @ right) * counts).sum(1) / ((counts @ above) * counts).sum(1)
    return (float(shares[0]), *np.nanquantile(shares[1:], [0.025, 0.975]).tolist())


def judge(rows: Sequence[Row], weights: Floats) -> dict[str, Any]:
    """Return how the model and each feature alone rank answers, and sentences where people judged these."""
    answers = {"model": [float(probabilities(row.features, weights).mean()) for row in rows]}
    answers |= {name: [float(row.features[:, at].mean()) for row in rows] for at, name in enumerate(FEATURES)}
    human = np.array([row.human for row in rows])
    documents, systems = [row.document_id for row in rows], [row.system for row in rows]
    found: dict[str, Any] = {
        "answers": len(rows),
        "documents": len(set(documents)),
        "human": float(human.mean()),
        "model": float(np.mean(answers["model"])),
        "auc": {name: auc(np.array(values), human, documents, None) for name, values in answers.items()},
    }
    if len(set(systems)) > 1:
        found["within"] = {name: auc(np.array(values), human, documents, systems) for name, values in answers.items()}
    if rows[0].labels:
        sentences = np.concatenate([row.features for row in rows])
        values = {"model": probabilities(sentences, weights)}
        values |= {name: sentences[:, at] for at, name in enumerate(FEATURES)}
        labels = np.concatenate([row.labels for row in rows]) > 0.5
        owners = [row.document_id for row in rows for _ in row.labels]
        found["sentences"] = {name: auc(value, labels.astype(float), owners, None) for name, value in values.items()}
    return found


def show(name: str, found: dict[str, Any]) -> None:
    for level in ("auc", "within", "sentences"):
        if level in found:
            cells = "  ".join(f"{key} {v:.3f} [{lo:.3f}, {hi:.3f}]" for key, (v, lo, hi) in found[level].items())
            print(f"{name:24} {level:9} {cells}")
    print(
        f"{name:24} {found['answers']} answers, mean of people {found['human']:.3f}, of the model {found['model']:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in READERS:
        parser.add_argument(f"--{name}", type=Path, required=name == "frank")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.features and args.features.exists():
        rows = read_features(args.features)
    else:
        places = {name: getattr(args, name) for name in READERS if getattr(args, name)}
        rows = list(compute([row for name, place in places.items() for row in READERS[name](place)]))
        if args.features:
            write_features(iter(rows), args.features)
    train = [row for row in rows if row.name in TRAIN]
    weights = fit(train)
    named = {name: round(float(value), 4) for name, value in zip((*FEATURES, "bias"), weights, strict=True)}
    weights = np.array(list(named.values()))
    results = {name: judge([r for r in rows if r.name == name], weights) for name in Counter(r.name for r in rows)}
    for name, found in results.items():
        show(name, found)
    if args.write:
        about = {
            "source": "artidoro/frank (MIT), validation split: human_annotations.json, texts of commit 5860706",
            "answers": len(train),
            "documents": len({row.document_id for row in train}),
        }
        text = json.dumps({"weights": named, "trained_on": about}, indent=2) + "\n"
        COEFFICIENTS.write_text(text, encoding="utf-8")
        print(f"{COEFFICIENTS.name} has sha256 {hashlib.sha256(text.encode()).hexdigest()}")
    print(json.dumps({"weights": named, "results": results}))


if __name__ == "__main__":
    main()
