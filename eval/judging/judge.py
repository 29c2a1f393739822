"""A model behind an OpenAI-compatible address judges single answers: `--metrics judge:FILE.yaml`.

- `key-points`: which key points of the references an answer makes (recall), and which of its sentences the references
  support (precision). Key points are made once for each set of references and kept with the replies.
- `rubric`: a user's prompt that asks for values on scales.

What a judge does not answer as asked is counted in `unread`, and is no score. Pairs of answers are judged by
`eval.judging.pairs`.

Source: key-point recall and precision of sentences are those of HELMET (Yen et al. 2024, section 2.2; prompts of
princeton-nlp/HELMET, scripts/eval_gpt4_summ.py). Deviations: the judge names numbers instead of counting; sentences are
split here; fluency is left to a rubric; the mean of several repeats counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.judging.questions import (
    Prompt,
    Question,
    UnreadError,
    built_in,
    list_of,
    numbered,
    object_of,
    read_numbers,
    read_points,
    read_prompt,
    read_values,
    texts_of,
)
from eval.judging.replies import Asked, Replies, read_reply
from eval.judging.settings import JudgeSettings, Scale, read_settings
from eval.metrics.base import EXTRACTS, NEEDS, Item, Metric, Scores, Value
from eval.metrics.unicode_text import unicode_sentences

# Places that hold text of the document.
OF_DOCUMENT = ("window", "document")
SPREAD = "_sd"


class Judge(Metric):
    """What all judges of single answers share.

    Args:
        file: The judge's file.
        settings: What it says.
        prompts: What it asks with.
        values: What it gives, without counts and costs.
        reads: Which of `NEEDS` it sees.
        may_see_documents: Lead and oracle, which are cut out of documents, are judged too.
    """

    version = 1
    # Replies are on the disk as they come; large batches keep all requests at work.
    batch_size = 1024

    def __init__(
        self,
        file: Path,
        settings: JudgeSettings,
        prompts: Sequence[Prompt],
        values: Mapping[str, Value],
        reads: frozenset[str],
        *,
        may_see_documents: bool,
    ) -> None:
        self.reads = reads | {EXTRACTS} if may_see_documents else reads  # type: ignore[misc]
        self.name = f"judge:{file.stem}"
        self.settings, self.prompts = settings, prompts
        self.replies = open_replies(file, settings)
        self.values = {**values, **(_spreads_of(values) if settings.repeats > 1 else {}), **_costs(settings)}

    def provenance(self) -> dict[str, Any]:
        return provenance_of(self.settings, self.prompts)

    def close(self) -> None:
        self.replies.close()

    def _row(self, found: Mapping[str, Sequence[float]], asked: Sequence[Asked], num_unread: int) -> Scores:
        """Return the values of an item: means over repeats, their spread, and what the replies cost.

        Args:
            found: By label, one number a repeat that could be read.
            asked: Replies about this item.
            num_unread: How many of them could not be read.
        """
        row: Scores = {name: statistics.fmean(of_one) if of_one else None for name, of_one in found.items()}
        if self.settings.repeats > 1:
            row |= {
                f"{name}{SPREAD}": statistics.stdev(of_one) if len(of_one) > 1 else None
                for name, of_one in found.items()
            }
        tokens = [count_tokens(one) for one in asked]
        row["unread"] = num_unread / len(asked) if asked else None
        row["judge_tokens"] = float(sum(map(sum, tokens))) if asked and None not in tokens else None  # type: ignore[arg-type]
        if self.settings.prices is not None:
            row["price"] = price_of(asked, self.settings) if asked else None
        return row


class KeyPointJudge(Judge):
    """Recall of key points, precision of sentences, and their harmonic mean."""

    needs = frozenset({"references"})

    def __init__(self, file: Path, settings: JudgeSettings, *, may_see_documents: bool) -> None:
        self._points, self._said, self._supported = map(built_in, ("key_points.v1", "said.v1", "supported.v1"))
        values = {
            "recall": Value(label="key points", title="key points said"),
            "precision": Value(label="supported", title="sentences that the references support"),
            "f1": Value(label="key-point F1", title="harmonic mean of key points and supported sentences"),
        }
        prompts, reads = (self._points, self._said, self._supported), frozenset({"references", "query"})
        super().__init__(file, settings, prompts, values, reads, may_see_documents=may_see_documents)

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        self.replies.ask(map(self._about_references, batch), is_repeated=False)
        about = [self._questions(item) for item in batch]
        self.replies.ask(one for questions in about for one, _ in questions)
        return [self._score(item, questions) for item, questions in zip(batch, about, strict=True)]

    def key_points(self, item: Item) -> list[str]:
        """Return the key points of an item's references. Raises `UnreadError`."""
        return read_reply(self.replies.first_of(self._about_references(item)), read_points)

    def _about_references(self, item: Item) -> Question:
        text = self._points.fill(texts_of(item.query, item.references))
        return Question(kind="key_points", text=text, schema=object_of(key_points=list_of("string")))

    def _questions(self, item: Item) -> list[tuple[Question, tuple[str, int]]]:
        """Return what is asked of an answer, each with the name and the greatest number that replies may hold."""
        if not item.prediction.strip():
            return []
        texts = texts_of(item.query, item.references)
        sentences = unicode_sentences(item.prediction)
        texts["sentences"] = numbered(sentences)
        found = [(self._supported, "supported", len(sentences))]
        try:
            points = self.key_points(item)
        except UnreadError:
            pass
        else:
            texts |= {"key_points": numbered(points), "prediction": item.prediction.strip()}
            found.append((self._said, "said", len(points)))
        return [
            (
                Question(kind=name, text=prompt.fill(texts), schema=object_of(**{name: list_of("integer")})),
                (name, count),
            )
            for prompt, name, count in found
        ]

    def _score(self, item: Item, questions: Sequence[tuple[Question, tuple[str, int]]]) -> Scores:
        if not item.prediction.strip():
            # Nothing was said, and nobody has to be asked.
            return self._row({"recall": [0.0], "precision": [], "f1": [0.0]}, [], 0)
        shares: dict[str, list[float | None]] = {"said": [], "supported": []}
        asked: list[Asked] = []
        num_unread = 0
        for question, (name, count) in questions:
            for reply in self.replies.of(question):
                asked.append(reply)
                try:
                    numbers = read_reply(reply, lambda text, name=name, count=count: read_numbers(text, name, count))  # type: ignore[misc]
                    shares[name].append(len(numbers) / count)
                except UnreadError:
                    shares[name].append(None)
                    num_unread += 1
        if not shares["said"]:  # for want of key points, whose reply could not be read
            asked.append(self.replies.first_of(self._about_references(item)))
            num_unread += 1
        both = zip(shares["said"], shares["supported"], strict=False)
        return self._row(
            {
                "recall": [one for one in shares["said"] if one is not None],
                "precision": [one for one in shares["supported"] if one is not None],
                "f1": [_harmonic(one, other) for one, other in both if one is not None and other is not None],
            },
            asked,
            num_unread,
        )


class RubricJudge(Judge):
    """Values on the scales of a user's rubric."""

    def __init__(self, file: Path, settings: JudgeSettings, *, may_see_documents: bool) -> None:
        self._prompt = prompt = _rubric(file, settings, may_see_documents)
        # Of each rubric its own.
        reads = frozenset(prompt.places & {*NEEDS})
        self.needs = reads - {"query"}  # type: ignore[misc]
        values = {name: _value_of(name, one) for name, one in settings.values.items()}
        super().__init__(file, settings, [prompt], values, reads, may_see_documents=may_see_documents)

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        questions = [self._question(item) for item in batch]
        self.replies.ask(questions)
        return [self._score(question) for question in questions]

    def _question(self, item: Item) -> Question:
        texts = texts_of(item.query, item.references)
        texts |= {"prediction": item.prediction.strip()}
        texts |= {name: str(getattr(item, name)) for name in OF_DOCUMENT if name in self._prompt.places}
        schema = object_of(**{name: {"type": "number"} for name in self.settings.values})
        return Question(kind="rubric", text=self._prompt.fill(texts), schema=schema)

    def _score(self, question: Question) -> Scores:
        asked = self.replies.of(question)
        found: dict[str, list[float]] = {name: [] for name in self.settings.values}
        num_unread = 0
        for reply in asked:
            try:
                values = read_reply(reply, lambda text: read_values(text, self.settings.values))
            except UnreadError:
                num_unread += 1
                continue
            for name, value in values.items():
                found[name].append(value)
        return self._row(found, asked, num_unread)


def open_judge(name: str, *, may_see_documents: bool = False) -> Judge:
    """Return the judge of a file.

    Args:
        name: Path of the judge's YAML file.
        may_see_documents: Documents may be sent to its address.

    Raises:
        UserError: The file does not fit, another process asks this judge, or documents would be
            sent without permission.
    """
    file = Path(name)
    settings = read_settings(file)
    makes: dict[str, Callable[..., Judge]] = {"key-points": KeyPointJudge, "rubric": RubricJudge}
    if settings.mode not in makes:
        raise UserError(
            f"judge {file} compares pairs; run python -m eval.judge RUN_A RUN_B --judge {file}, or give one of mode "
            f"{' or '.join(makes)}"
        )
    return makes[settings.mode](file, settings, may_see_documents=may_see_documents)


def _rubric(file: Path, settings: JudgeSettings, may_see_documents: bool) -> Prompt:
    places = ("prediction", *NEEDS)
    prompt = read_prompt(file.parent / str(settings.prompt), places, ["prediction"])
    check_permission(prompt, settings, may_see_documents)
    return prompt


def check_permission(prompt: Prompt, settings: JudgeSettings, may_see_documents: bool) -> None:
    """Raise `UserError` for a prompt that would send documents without permission.

    An address of this machine is no exception: what listens there may pass texts on to any other.
    """
    if (shown := sorted(prompt.places & {*OF_DOCUMENT})) and not may_see_documents:
        raise UserError(
            f"prompt {prompt.name} sends text of documents ({{{shown[0]}}}) to {settings.base_url}; add "
            "--judge-may-see-documents if that is allowed, or take the place out of the prompt"
        )


def open_replies(file: Path, settings: JudgeSettings) -> Replies:
    """Return the replies of a judge's file; arguments and errors are those of `open_judge`."""
    kept = file.parent / (settings.replies or f"{file.stem}.replies.jsonl")
    return Replies(settings, kept, where=f"judge {file}")


def provenance_of(settings: JudgeSettings, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what a judge's values depend on, ready for JSON."""
    sampling = ("temperature", "seed", "repeats", "max_tokens", "answers_as", "extra")
    return {
        "endpoint": settings.base_url,
        "model": settings.served_model or settings.model,
        **{name: getattr(settings, name) for name in sampling},
        "prompts": {prompt.name: prompt.digest for prompt in prompts},
        "values": {name: [scale.low, scale.high] for name, scale in settings.values.items()},
    }


def count_tokens(asked: Asked) -> tuple[int, int] | None:
    """Return the tokens of a question and of its reply; None where the server does not tell."""
    if asked.refusal is not None:
        return 0, 0
    if asked.prompt_tokens is None or asked.completion_tokens is None:
        return None
    return asked.prompt_tokens, asked.completion_tokens


def price_of(asked: Sequence[Asked], settings: JudgeSettings) -> float | None:
    """Return what replies cost in the currency of the prices; None without prices, or where tokens are not known."""
    tokens = [count_tokens(one) for one in asked]
    if settings.prices is None or None in tokens:
        return None
    prices = settings.prices
    return sum(one[0] * prices.prompt + one[1] * prices.completion for one in tokens if one) / 1e6


def _costs(settings: JudgeSettings) -> dict[str, Value]:
    found = {
        "unread": Value(label="unread", title="replies that could not be read", better="lower"),
        "judge_tokens": Value(
            label="judge tokens", title="tokens of the judge", high=math.inf, better=None, is_share=False
        ),
    }
    if settings.prices is not None:
        currency = settings.prices.currency
        found["price"] = Value(
            label=currency, title=f"price of the judge in {currency}", high=math.inf, better=None, is_share=False
        )
    return found


def _spreads_of(values: Mapping[str, Value]) -> dict[str, Value]:
    return {
        f"{name}{SPREAD}": Value(
            label=f"{one.label}, sd",
            title=f"standard deviation of repeats: {one.title}",
            high=one.high - one.low,
            better=None,
            is_share=one.is_share,
        )
        for name, one in values.items()
    }


def _value_of(name: str, scale: Scale) -> Value:
    is_share = (scale.low, scale.high) == (0.0, 1.0)
    return Value(
        label=name, title=scale.title or name, low=scale.low, high=scale.high, better=scale.better, is_share=is_share
    )


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0
