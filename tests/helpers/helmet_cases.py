"""Records and answers in the form of HELMET's sets, made here, and what HELMET's own code makes of them.

    git clone https://github.com/princeton-nlp/HELMET CLONE && git -C CLONE checkout 4526dfb
    python -m tests.helpers.helmet_cases CLONE tests/tasks/helmet.json

The command runs the loaders and `post_process` of its `data.py` and `tokenize` of its `model_utils.py`, with the room
for answers and the lengths of documents that its configs have. One tokenizer, whose tokens are words and characters,
stands for Llama 2's and for the model's. Nothing is shuffled, and all documents count as long enough.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.helpers.longbench_cases import summary
from tests.helpers.tiny_models import CHAT_TEMPLATE

NUM_RECORDS = 120
NUM_SHOTS = 2
PROMPT_TOKENS = 600  # of a prompt without the room for the answer: about half of them are cut
# As HELMET names its sets, with the config that has their lengths.
CONFIGS = {
    "infbench_qa_eng": "longqa",
    "infbench_choice_eng": "longqa",
    "infbench_sum_eng": "summ",
    "narrativeqa": "longqa",
    "multi_lexsum": "summ",
}
# Ours by its own names of metrics.
METRICS = {
    "infbench_qa_eng": {"rougeL": "rougeL_f1"},
    "infbench_choice_eng": {"accuracy": "exact_match"},
    "narrativeqa": {
        "rougeL": "rougeL_f1",
        "rougeL_recall": "rougeL_recall",
        "f1": "f1",
        "exact_match": "exact_match",
        "contained": "substring_exact_match",
    },
    "multi_lexsum": {"rougeL": "rougeL_f1", "rougeL_recall": "rougeL_recall"},
}
TEMPLATES = ("helmet", "helmet-plain")
_OF_RECORDS = "the a an river Bridge mayor's rain, 7 12 closed. who? (never) it's on yes no Answer: running ran"
_OF_PROMPTS = """
    You are given a story question with multiple choices Choose the best answer from options provided Only one of
    following is correct output using single letter Don't say anything else which can be either novel or movie script
    and Answer as concisely you phrase if possible For example text Question Now read use to book tasked summarize it
    Write summary about words plot characters Do not discuss themes background provide any analysis commentary legal
    documents in civil rights lawsuit case concise paragraph The should contain short description parties involved
    outcomes Example summaries write Legal please Options rest omitted
"""
_WORDS = _OF_RECORDS.split()


def word_tokenizer(*, chat: bool = True, trims: bool = False) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the words here, with a blank before them or without, and of the bytes of all others.

    Args:
        chat: It has a chat template.
        trims: The chat template takes off the white space at the ends of a turn.
    """
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    for word in (*_WORDS, *_OF_PROMPTS.split()):
        for token in (word, f"Ġ{word}"):
            vocab.setdefault(token, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    if chat:
        shown = "message['content'] | trim" if trims else "message['content']"
        tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", shown)
        assert trims == (tokenizer.chat_template != CHAT_TEMPLATE)
    return tokenizer


def records(name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the records of a set by the name of their file, the same in each call; texts have blanks at their ends."""
    rng = random.Random(f"records of {name}")

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(_WORDS, k=rng.randint(low, high)))

    def spaced(low: int, high: int) -> str:
        blanks = ("", "", " ", "\n", " \n\n", "\t")
        return rng.choice(blanks) + text(low, high) + rng.choice(blanks)

    def document() -> str:
        return "\n\n".join(spaced(5, 90) for _ in range(rng.randint(1, 12)))

    def made(index: int) -> dict[str, Any]:
        if name == "narrativeqa":
            return {
                "document": {"id": f"{index}", "text": document()},
                "question": {"text": spaced(3, 12)},
                "answers": [{"text": spaced(1, 6)} for _ in range(2)],
            }
        if name == "multi_lexsum":
            sources = [spaced(5, 200) for _ in range(rng.randint(1, 6))]
            return {"id": f"{index}", "sources": sources, "summary/short": spaced(10, 60)}
        options = [spaced(1, 5) + f"{letter}" for letter in "wxyz"] if "choice" in name else []
        return {
            "id": index,
            "context": document(),
            "input": "" if "sum" in name else spaced(3, 12),
            "answer": [rng.choice(options)] if options else [spaced(1, 20) for _ in range(rng.choice((1, 2)))],
            "options": options,
        }

    if name in ("narrativeqa", "multi_lexsum"):
        scored = {"narrativeqa": "test", "multi_lexsum": "validation"}[name]
        counts = {"train": NUM_SHOTS, scored: NUM_RECORDS}
    else:
        counts = {f"longbook_{name.removeprefix('infbench_')}": NUM_RECORDS}
    numbers = iter(range(sum(counts.values())))
    return {file: [made(next(numbers)) for _ in range(count)] for file, count in counts.items()}


def scored_records(name: str) -> list[dict[str, Any]]:
    """Return the records of a set that are scored."""
    *_, last = records(name).values()
    return last


def answers(name: str) -> list[str]:
    """Return an answer to each record, of many kinds: right, in part, empty, several lines, after a cue."""
    rng = random.Random(f"answers of {name}")
    cue = "Summary:" if name == "multi_lexsum" else "Answer:"
    given = []
    for record in scored_records(name):
        found = record.get("answer") or record.get("answers") or [record.get("summary/short")]
        right = rng.choice([one["text"] if isinstance(one, dict) else one for one in found])
        if record.get("options"):
            letter = "ABCD"[record["options"].index(right)]
            right = rng.choice((letter, f"{letter}. {right}", f"({letter})", right, letter.lower()))
        words = right.split()
        other = " ".join(rng.choices(_WORDS, k=rng.randint(1, 40)))
        kinds = (
            right,
            f"{cue} {right}\nQuestion: {other}",
            f"{other}\n{cue.lower()}{cue} {right}",
            f"\n\n{right}\n{other}",
            " ".join(words[: len(words) // 2 + 1]),
            f"{right.upper()}. {other}",
            other,
            rng.choice(("", ".", " ", "the", "\n", "A", "no", "yes", cue)),
        )
        given.append(rng.choice(kinds))
    return given


def _of_configs(clone: Path, name: str) -> tuple[int, int]:
    """Return the room for an answer, and the tokens that HELMET leaves free beside it and the document."""
    import yaml

    config = yaml.safe_load((clone / "configs" / f"{CONFIGS[name]}.yaml").read_text())
    fields = ("datasets", "input_max_length", "generation_max_length")
    for full, longest, room in zip(*(config[field].split(",") for field in fields), strict=True):
        if full.rpartition("_")[0] == name:
            assert config["shots"] == NUM_SHOTS
            return int(room), int(longest) - int(room) - int(full.rpartition("_")[2])
    raise LookupError(name)


class _Llama2:
    """Stands for the tokenizer that cuts documents; those that are merely counted are long."""

    def __init__(self, note: str) -> None:
        self._note = note
        self._tokenizer = word_tokenizer(chat=False)

    def from_pretrained(self, name: str) -> _Llama2:
        return self

    def __call__(self, text: str, return_offsets_mapping: bool = False) -> dict[str, Any]:
        if not return_offsets_mapping and text != self._note:
            return {"input_ids": range(1 << 20)}
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        return {"input_ids": [1, *encoded.input_ids], "offset_mapping": [(0, 0), *encoded.offset_mapping]}


def _import(clone: Path) -> tuple[Any, Any]:
    """Return its modules `data` and `model_utils`, which keep the order of records."""
    import datasets

    from tasks.helmet import HELMET_NARRATIVEQA

    sys.path.insert(0, str(clone))
    sys.modules["pytrec_eval"] = types.ModuleType("pytrec_eval")
    datasets.disable_progress_bars()
    plain = {method: getattr(datasets.Dataset, method) for method in ("map", "filter")}
    for method, call in plain.items():
        # Its 16 and 32 processes would each have a copy of what stands for the tokenizer.
        def alone(self: Any, *given: Any, call: Any = call, num_proc: int | None = None, **more: Any) -> Any:
            return call(self, *given, **more)

        setattr(datasets.Dataset, method, alone)
    datasets.Dataset.shuffle = lambda self, *given, **more: self
    data, models_ = importlib.import_module("data"), importlib.import_module("model_utils")
    data.AutoTokenizer = _Llama2(HELMET_NARRATIVEQA.templates["helmet"].note)
    return data, models_


def _reference(clone: Path, data: Any, models_: Any, name: str) -> dict[str, Any]:
    import datasets

    room, aside = _of_configs(clone, name)
    made = {file: datasets.Dataset.from_list(rows) for file, rows in records(name).items()}
    data.load_dataset = datasets.load_dataset = lambda *_, **__: datasets.DatasetDict(made)
    full = f"{name}_{PROMPT_TOKENS - aside}"
    options = types.SimpleNamespace(shots=NUM_SHOTS, max_test_samples=None, seed=42)
    loaded = data.load_data(options, full)
    assert len(loaded["data"]) == NUM_RECORDS
    scored = [
        loaded["post_process"]({"output": text}, sample)[0]
        for text, sample in zip(answers(name), loaded["data"], strict=True)
    ]
    found: dict[str, Any] = {"room": room, "aside": aside}
    for kind in ("helmet", "helmet-plain", "trimmed"):
        tokenizer = word_tokenizer(chat=kind != "helmet-plain", trims=kind == "trimmed")
        prompts = [
            tokenizer.decode(
                models_.tokenize(
                    dict(sample),
                    loaded,
                    tokenizer=tokenizer,
                    max_length=PROMPT_TOKENS + room,
                    generation_max_length=room,
                    use_chat_template=kind != "helmet-plain",
                    system_message=None,
                ).input_ids[0]
            )
            for sample in loaded["data"]
        ]
        found[kind] = summary(prompts, [0.0] * NUM_RECORDS)["prompts"]
    for ours, theirs in METRICS.get(name, {}).items():
        scores = summary([], [float(one[theirs]) for one in scored])
        found[ours] = [scores["score"], scores["weighted"]]
    return found


if __name__ == "__main__":
    clone, table = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    modules = _import(clone)
    table.write_text(json.dumps({name: _reference(clone, *modules, name) for name in CONFIGS}, indent=1) + "\n")
