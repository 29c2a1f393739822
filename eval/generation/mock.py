"""An engine without a model: answers from a table, or the beginning of the document. For tests, and to try a command.

    python eval/run.py --engine mock --task plos --maxlen 64 128 --limit 2
    python eval/run.py --engine mock --answers answers.jsonl ...    # {"id": "...", "text": "..."}

Of several samples of an answer, the first is this text, and each further one begins a word later.

Its tokens are words. It needs neither torch nor weights, and knows no cost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.backend import Backend, share_by_turns, start_for
from eval.generation.requests import Request, Requests
from eval.records.journal import fingerprint
from eval.records.schema import ModelRecord, Prediction, Sample
from tasks.readers.decoding import decode_text

_TOKEN = re.compile(r"\s*\S+|\s+$")


class WordTokenizer:
    """Words with the white space before them as tokens; the part of transformers' interface that prompts need."""

    is_fast = True
    chat_template = None
    bos_token_id = None
    eos_token_id = 0
    all_special_tokens: Sequence[str] = ()
    name_or_path = "mock"

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"": 0}
        self._words = [""]

    def __call__(self, text: str, *, return_offsets_mapping: bool = False, **_: Any) -> Any:
        spans = [match.span() for match in _TOKEN.finditer(text)]
        encoded = SimpleNamespace(input_ids=[self._id(text[start:stop]) for start, stop in spans])
        if return_offsets_mapping:
            encoded.offset_mapping = spans
        return encoded

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the text of some tokens."""
        return "".join(self._words[index] for index in ids)


class MockBackend(Backend):
    """Answers from a table, or with the beginning of what the prompt shows of the document.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The table cannot be read.
    """

    dtype = "none"

    def __init__(self, config: RunConfig) -> None:
        self.process = start_for(config, needs_torch=False)
        self.tokenizer = self._words = WordTokenizer()
        self.model = ModelRecord(reference="mock", source="mock")
        self.plan_description = "none"
        self._answers = {} if config.answers is None else _read_answers(config.answers)
        self.identity = {"name": "mock", "answers": fingerprint(sorted(map(str, self._answers.items())))}

    def answer(self, requests: Requests, shared: Path) -> Iterator[Prediction]:
        for request in share_by_turns(requests, self.process):
            _, _, example_id, maxlen = request.key
            of_any_length = self._answers.get((example_id, None))
            text = self._answers.get((example_id, maxlen), of_any_length)
            text = self._beginning(request) if text is None else text
            ids, settings = self._words(text).input_ids, request.settings
            texts = [text, *(self._words.decode(ids[first:]).strip() for first in range(1, settings.num_samples))]
            yield request.prediction([self._sample(one, settings.max_new_tokens) for one in texts])

    def _beginning(self, request: Request) -> str:
        num_words = request.settings.max_new_tokens + request.settings.num_samples - 1
        return self._words.decode(self._words(request.shown_text).input_ids[:num_words]).strip()

    def _sample(self, text: str, room: int) -> Sample:
        ids = self._words(text).input_ids
        if len(ids) < room:
            return Sample(text=text, num_generated_tokens=len(ids) + 1, finish_reason="stop")
        return Sample(text=self._words.decode(ids[:room]).strip(), num_generated_tokens=room, finish_reason="length")


def _read_answers(file: Path) -> dict[tuple[str, int | None], str]:
    answers: dict[tuple[str, int | None], str] = {}
    try:
        # At line ends alone: texts may hold other characters that Python takes for one.
        lines = decode_text(file.read_bytes()).removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--answers {file} cannot be read: {error.reason}") from error
    except OSError as error:
        raise UserError(f"--answers {file} cannot be read: {error.strerror}; give a JSON-lines file") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            answers[str(entry["id"]), entry.get("maxlen")] = str(entry["text"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f'--answers {file}, line {number} is no {{"id": ..., "text": ...}}: {line[:60]}') from error
    return answers
