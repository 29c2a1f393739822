"""Records and predictions in the form of LongBench, made here, and what LongBench's own code makes of them.

    git clone https://github.com/THUDM/LongBench CLONE && pip install fuzzywuzzy==0.18.0 jieba rouge
    python -m tests.helpers.longbench_cases CLONE/LongBench tests/tasks/longbench.json

The command runs `get_pred` of its `pred.py` with a model that notes its prompts, and the metrics of its `eval.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import random
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.tiny_models import tiny_tokenizer

NUM_RECORDS = 200
MAX_LENGTH = 901  # tokens of the tiny tokenizer, which are characters: about half of the prompts are cut
_OF_CLASSES = ("trec", "lsht")
_WORDS = (
    "the",
    "a",
    "an",
    "river",
    "Bridge",
    "mayor's",
    "rain,",
    "7",
    "12",
    "closed.",
    "who?",
    "(never)",
    "it's",
    "on",
)
# Some are parts of others, and LongBench passes over those that follow directly on such a one.
CLASSES = (
    "river",
    "Bridge",
    "Bridge of stone",
    "stone",
    "rain",
    "Date",
    "Bridge of stone, closed",
    "of",
    "12",
    "体育新闻",
)
_BLANKS = ("", "", " ", "\n", " \n\n", "\t")
_LINES = ("return x", "    y = 2 * x", "# a comment", "for i in range(7):", "```python", "print(y) // 3", "")


def records(name: str) -> list[dict[str, Any]]:
    """Return records of a set, the same in each call; texts have blanks at their ends."""
    rng = random.Random(f"records of {name}")

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(_WORDS, k=rng.randint(low, high)))

    def spaced(shown: str) -> str:
        return rng.choice(_BLANKS) + shown + rng.choice(_BLANKS)

    def answer() -> str:
        if name == "passage_retrieval_en":
            return f"Paragraph {rng.randint(1, 30)}"
        if name == "passage_count":
            return str(rng.randint(1, 30))
        if name == "passage_retrieval_zh":
            return f"段落{rng.randint(1, 30)}"
        if name in _OF_CLASSES:
            return rng.choice(CLASSES)
        if name in ("lcc", "repobench-p"):
            return rng.choice(_LINES[:2]) + rng.choice(("", "  # why", "()"))
        return spaced(text(1, 30))

    made = []
    for index in range(NUM_RECORDS):
        paragraphs = [text(5, 40) for _ in range(rng.randint(1, 8))]
        made.append(
            {
                "input": ""
                if name in ("gov_report", "multi_news", "passage_count", "lcc")
                else spaced(f"{text(3, 12)}?"),
                "context": spaced("\n\n".join(paragraphs)),
                "answers": [answer() for _ in range(rng.choice((1, 1, 3)))],
                "length": (index * 61) % 12_001,
                "dataset": name,
                "language": "en",
                "all_classes": list(CLASSES) if name in _OF_CLASSES else None,
                "_id": f"{index:048x}",
            }
        )
    return made


def predictions(name: str) -> list[str]:
    """Return an answer to each record, of many kinds: right, in part, empty, several lines."""
    rng = random.Random(f"predictions of {name}")
    made = []
    for record in records(name):
        right = rng.choice(record["answers"])
        words = right.split(" ")
        kinds = [
            right,
            f"\n\n{right}\nSummary: more",
            " ".join(words[: len(words) // 2 + 1]),
            f"{right.upper()}. {rng.choice(_WORDS)}",
            " ".join(rng.choices(_WORDS, k=rng.randint(1, 40))),
            "\n".join(rng.choices(_LINES, k=4)),
            f"Paragraph {rng.randint(1, 30)} and 7, {right}",
            rng.choice(("", ".", " ", "the", "\n")),
        ]
        if name in _OF_CLASSES:
            kinds += [f"{right}, {one}" for one in rng.sample(CLASSES, 4)]
        made.append(rng.choice(_BLANKS) + rng.choice(kinds) + rng.choice(_BLANKS))
    return made


def digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def summary(prompts: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    """Return what is kept of prompts and scores; the second number tells scores in another order apart."""
    return {
        "prompts": digest(prompts),
        "score": sum(scores) / len(scores),
        "weighted": sum(index * score for index, score in enumerate(scores, start=1)) / len(scores),
    }


class _Noting:
    """A tokenizer that notes the texts it encodes, as `get_pred` calls it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []
        self.eos_token_id = tokenizer.eos_token_id

    def __call__(self, text: str, **options: Any) -> Any:
        self.texts.append(text)
        encoded = self.tokenizer(text, **options)
        type(encoded).to = lambda self, device: self  # there is no GPU
        return encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def _reference(clone: Path, name: str, folder: Path) -> dict[str, Any]:
    import torch.distributed

    sys.path.insert(0, str(clone))
    for missing in ("llama_flash_attn_monkey_patch", "datasets"):
        module: Any = types.ModuleType(missing)
        module.replace_llama_attn_with_flash_attn = module.load_dataset = None
        sys.modules[missing] = module
    pred = importlib.import_module("pred")
    spec: Any = importlib.util.spec_from_file_location("longbench_eval", clone / "eval.py")  # `eval` is ours
    scoring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scoring)
    torch.distributed.destroy_process_group = lambda: None
    tokenizer = _Noting(tiny_tokenizer(chat=False))

    class Model:
        def generate(self, **inputs: Any) -> Any:
            return inputs["input_ids"]

    pred.load_model_and_tokenizer = lambda *_: (Model(), tokenizer)
    prompt = json.loads((clone / "config" / "dataset2prompt.json").read_text())[name]
    made = records(name)
    output = folder / "predictions.jsonl"
    pred.get_pred(0, 1, made, MAX_LENGTH, 8, prompt, name, "cpu", "none", {"none": ""}, str(output))
    output.unlink()
    metric = scoring.dataset2metric[name]
    each = []
    for text, record in zip(predictions(name), made, strict=True):
        if name in ("trec", "triviaqa", "samsum", "lsht"):
            text = text.lstrip("\n").split("\n")[0]
        classes = record["all_classes"]
        each.append(max(float(metric(text, answer, all_classes=classes)) for answer in record["answers"]))
    answers, classes = [record["answers"] for record in made], made[-1]["all_classes"]
    rounded = scoring.scorer(name, predictions(name), answers, classes)
    lengths = [record["length"] for record in made]
    by_length = scoring.scorer_e(name, predictions(name), answers, lengths, classes)
    # `get_pred` encodes each prompt twice, the second time as the model reads it.
    return summary(tokenizer.texts[1::2], each) | {"published": rounded, "by_length": by_length}


if __name__ == "__main__":
    from tasks.longbench import PUBLISHED

    clone, table = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    found = {name: _reference(clone, name, table.parent) for name in PUBLISHED}
    table.write_text(json.dumps(found, indent=1) + "\n")
