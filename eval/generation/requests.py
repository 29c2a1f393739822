"""What a run asks: each example under each template at each length, cut to fit.

    requests = make_requests(config, data, record, tokenizer)
    for request in requests.missing():
        request.prompt.token_ids

Requests are made document by document when they are read, so that a large data set is never tokenized as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from eval.config.generation import GenerationSettings, ThinkingSettings
from eval.config.run import RunConfig
from eval.prompting.prompts import Prompt, PromptBuilder, fit
from eval.prompting.truncation import AROUND, HALVES
from eval.records.journal import Journal, fingerprint
from eval.records.schema import Grouping, Key, Prediction, RunRecord, Sample
from eval.records.typed import to_json
from tasks import Example, LoadedExamples

# Fields of a task's record that change no prediction, or have a part of the fingerprint of their own.
_APART = (
    *("templates", "maxlen", "limit", "sample", "sample_seed", "rows"),
    *("description", "licence", "profile", "scores_first_line"),
)
# Share of the references beyond which the room for answers is said to be short.
_SHORT_ROOM = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prediction that is asked for."""

    key: Key
    prompt: Prompt
    fingerprint: str
    source: PromptSource

    @property
    def settings(self) -> GenerationSettings:
        return self.source.settings

    @property
    def example(self) -> Example:
        return next(example for example in self.source.examples if example.id == self.key[2])

    def prediction(self, samples: Sequence[Sample], **costs: Any) -> Prediction:
        """Return the answer, or the samples of it, as a line of the journal; costs that are not given are unknown.

        Args:
            samples: As many as the settings ask for.
            costs: Further fields of `Prediction`.
        """
        assert len(samples) == self.settings.num_samples
        task, template, example_id, maxlen = self.key
        thought = [one.num_thought_tokens for one in samples if one.num_thought_tokens is not None]
        unknown = dict.fromkeys(("seconds", "prefill_seconds", "decode_seconds", "cache_bytes", "attention_flops"))
        return Prediction(
            task=task,
            template=template,
            id=example_id,
            maxlen=maxlen,
            fingerprint=self.fingerprint,
            text=samples[0].text,
            prompt_tokens=len(self.prompt.token_ids),
            context_tokens_kept=self.prompt.num_context_kept,
            context_tokens_dropped=self.prompt.num_context_dropped,
            context_spans=self.source.spans_shown(self.prompt, template),
            num_generated_tokens=sum(one.num_generated_tokens for one in samples),
            finish_reason=samples[0].finish_reason,
            thought=samples[0].thought,
            num_thought_tokens=sum(thought) if thought else None,
            thought_finish_reason=samples[0].thought_finish_reason,
            samples=list(samples) if len(samples) > 1 else None,
            truncation=self.source.builders[template].template.truncation or self.source.policy,
            **{**unknown, "prefilled_tokens": None, "peak_bytes": None, **costs},
        )


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Examples of a task that share a context, and all prompts about it.

    Attributes:
        builders: Builders of prompts, by template.
        lengths: Lengths in tokens, ascending.
        policy: Part of the context that is kept.
        is_encoded: An encoder reads the prompts, and answers have a room of their own beside `lengths`.
        pins: Digest of all settings that could change a prediction, by template and length.
    """

    task: str
    examples: tuple[Example, ...]
    builders: Mapping[str, PromptBuilder]
    lengths: tuple[int, ...]
    policy: str
    settings: GenerationSettings
    pins: Mapping[tuple[str, int], str]
    is_encoded: bool = False

    @property
    def room(self) -> int:
        """Return how many tokens of a length are kept for the answer."""
        return 0 if self.is_encoded else self.settings.max_new_tokens

    @cached_property
    def fingerprints(self) -> dict[Key, str]:
        """Return the fingerprint of each request; tokenizes nothing."""
        contents = {example.id: self._fingerprint(example) for example in self.examples}
        return {
            (self.task, template, example.id, maxlen): fingerprint(self.pins[template, maxlen], contents[example.id])
            for template in self.builders
            for example in self.examples
            for maxlen in self.lengths
        }

    def _fingerprint(self, example: Example) -> str:
        encoder = next(iter(self.builders.values())).encoder
        # Version 0.1 let these texts become control tokens.
        spelled = [text for text in (example.context, example.query) if text and encoder.spells_control(text)]
        kept = [] if example.kept is None else [example.kept]
        return fingerprint(example.context, example.query, *(["as text"] if spelled else []), *kept)

    def requests(self) -> Iterator[Request]:
        """Return a request for each example under each template at each length.

        Raises:
            UserError: A query or an instruction leaves no room.
        """
        context, kept = self.examples[0].context, self.examples[0].kept
        builders = {builder.is_context_first: builder for builder in self.builders.values()}
        contexts = {is_first: builder.context_ids(context) for is_first, builder in builders.items()}
        passages = {
            is_first: None if kept is None else builder.passages(context, kept)
            for is_first, builder in builders.items()
        }
        examples = {example.id: example for example in self.examples}
        for key, digest in self.fingerprints.items():
            _, template, example_id, maxlen = key
            builder = self.builders[template]
            is_first = builder.is_context_first
            if builder.template.truncation == HALVES:
                parts = builder.parts(examples[example_id])
            else:
                parts = builder.fixed_parts(examples[example_id].query, contexts[is_first], passages[is_first])
            prompt = fit(parts, maxlen, self.room, self.policy, self.settings.thinking_room)
            yield Request(key=key, prompt=prompt, fingerprint=digest, source=self)

    def check(self) -> None:
        """Check that every query and instruction fits at the smallest length; tokenizes no context that may be cut.

        Raises:
            UserError: One leaves no room.
        """
        if self.examples[0].kept is not None:
            for _ in self.requests():  # at the smallest length passages may not fit
                pass
            return
        for builder in self.builders.values():
            for example in self.examples:
                fit(builder.fixed_parts(example.query), self.lengths[0], self.room, "head", self.settings.thinking_room)

    def spans_shown(self, prompt: Prompt, template: str) -> list[list[int]]:
        """Return the characters of the context that a prompt shows, as starts and ends."""
        context = self.examples[0].context
        if not prompt.num_context_dropped:
            return [[0, len(context)]]
        # One builder remembers the context for all templates that encode it alike.
        wanted = self.builders[template].is_context_first
        builder = next(one for one in self.builders.values() if one.is_context_first == wanted)
        return builder.spans_of(context, prompt.context_ranges)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """All requests of a run, or of one of its shards.

    Attributes:
        sources: Documents with their prompts.
        finished: Fingerprints of predictions of sessions that ended; they take part in no group.
        existing: Keys that are answered already, those of an interrupted session included.
        part: Keys of this shard; None is the whole run.
        grouping: What groups of prompts depend on.
    """

    sources: Sequence[PromptSource]
    grouping: Grouping
    finished: Mapping[Key, str] = field(default_factory=dict)
    existing: AbstractSet[Key] = frozenset()
    part: AbstractSet[Key] | None = None

    @cached_property
    def fingerprints(self) -> dict[Key, str]:
        """Return the fingerprint of every request of the run, shards or not."""
        return {key: digest for source in self.sources for key, digest in source.fingerprints.items()}

    @cached_property
    def keys(self) -> list[Key]:
        """Return the keys of this run, or of this shard."""
        return [key for key in self.fingerprints if self.part is None or key in self.part]

    @property
    def num_missing(self) -> int:
        """Return how many requests have no answer yet."""
        return sum(key not in self.existing for key in self.keys)

    def is_finished(self, key: Key) -> bool:
        """Return whether a session that ended has answered a request as it is now."""
        return self.finished.get(key) == self.fingerprints[key]

    def missing(self, source: PromptSource | None = None) -> Iterator[Request]:
        """Yield the requests without an answer, of one document or of all; a document without any is not tokenized."""
        for one in self.sources if source is None else [source]:
            wanted = {key for key in one.fingerprints if key not in self.existing}
            wanted = wanted if self.part is None else wanted & self.part
            if wanted:
                yield from (request for request in one.requests() if request.key in wanted)

    def without(self, journal: Journal[Prediction]) -> Requests:
        """Return the requests with what is answered already taken out."""
        return replace(self, existing=journal.lines.keys())


def make_requests(
    config: RunConfig,
    data: Mapping[str, LoadedExamples],
    record: RunRecord,
    tokenizer: Any,
    finished: Mapping[Key, Prediction],
    stop_texts: Sequence[str] = (),
    thinking: ThinkingSettings | None = None,
    *,
    is_encoded: bool = False,
) -> Requests:
    """Return the requests of a run, contexts in the order in which they first appear.

    Args:
        config: Settings of the run.
        data: Examples by task.
        record: `run.json`, whose templates and lengths include those that the folder has already.
        tokenizer: Tokenizer of the model.
        finished: Predictions of sessions that ended.
        stop_texts: Texts that end an answer beside those of the settings.
        is_encoded: An encoder reads the prompts.
        thinking: How thoughts are told from answers; None takes all text for the answer.

    Raises:
        UserError: A query or an instruction leaves no room at the smallest length, or the tokenizer loses a script.
    """
    sources = [
        replace(
            source,
            settings=replace(
                source.settings,
                stop=(*source.settings.stop, *config.tasks[name].stop, *stop_texts),
                thinking=thinking,
            ),
        )
        for name in data
        for source in _sources_of(config, name, data[name], record, tokenizer, is_encoded=is_encoded)
    ]
    for source in sources:
        source.check()
    digests = {key: line.fingerprint for key, line in finished.items()}
    return Requests(sources=sources, grouping=record.grouping, finished=digests)


def describe_room(requests: Requests) -> Iterator[str]:
    """Yield a line for each task whose references need more tokens than an answer has room for."""
    by_task: dict[str, list[PromptSource]] = defaultdict(list)
    for source in requests.sources:
        by_task[source.task].append(source)
    for name, sources in by_task.items():
        encoder = next(iter(sources[0].builders.values())).encoder
        needed = sorted(
            1 + min(len(encoder.encode(text, is_data=True)) for text in example.references)  # with the end token
            for source in sources
            for example in source.examples
        )
        room = sources[0].settings.max_new_tokens
        num_longer = sum(one > room for one in needed)
        if num_longer > _SHORT_ROOM * len(needed):
            yield (
                f"{name}: {room} new tokens; {num_longer} of {len(needed)} references need more, "
                f"{needed[len(needed) // 2]} in the median: --max-new-tokens {needed[(9 * len(needed) - 1) // 10]} "
                "holds nine of ten"
            )


def _sources_of(
    config: RunConfig, name: str, loaded: LoadedExamples, record: RunRecord, tokenizer: Any, *, is_encoded: bool
) -> Iterator[PromptSource]:
    task = record.tasks[name]
    # Threads move near ties at most, and the folder refuses another number of them.
    identity = {key: value for key, value in to_json(record.identity).items() if key != "threads"}
    common = fingerprint(identity, name, {key: value for key, value in to_json(task).items() if key not in _APART})
    chat = config.chat_settings(record.template_date)
    builders = {
        template: PromptBuilder(
            tokenizer, config.tasks[name].templates[template], chat, shots=loaded.shots, is_framed=is_encoded
        )
        for template in task.templates
    }
    pins = {
        (template, maxlen): fingerprint(common, template, to_json(about), maxlen)
        for template, about in task.templates.items()
        for maxlen in task.maxlen
    }
    by_context: dict[tuple[str, Any], list[Example]] = defaultdict(list)
    for example in loaded.examples:
        by_context[example.context, example.kept].append(example)
    for builder in list(builders.values())[:1]:
        builder.check_letters(name, [context for context, _ in by_context])
    for examples in by_context.values():
        yield PromptSource(
            task=name,
            examples=tuple(examples),
            builders=builders,
            lengths=tuple(task.maxlen),
            policy=config.truncation if examples[0].kept is None else AROUND,
            settings=config.generation(task.max_new_tokens),
            pins=pins,
            is_encoded=is_encoded,
        )
