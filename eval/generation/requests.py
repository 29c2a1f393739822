"""What a run asks: each example under each template at each length, cut to fit.

    requests = make_requests(config, data, record, tokenizer)
    for request in requests.missing():
        request.prompt.token_ids

Requests are made document by document when they are read, so that a large data set is never tokenized as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from eval.config.generation import GenerationSettings, ThinkingSettings
from eval.config.run import RunConfig
from eval.generation.windows import DocumentEvidence, check_windows, foreign_examples
from eval.prompting.prompts import Prompt, PromptBuilder, PromptParts, fit
from eval.prompting.truncation import AROUND, HALVES, Frame, Passages, Ranges, Shown
from eval.prompting.windows import RULES, token_ranges
from eval.records.journal import Journal, fingerprint
from eval.records.schema import Grouping, Key, Prediction, RunRecord, Sample, WindowRecord
from eval.records.typed import to_json
from eval.records.windows import FOREIGN, HEAD, ORACLE, base_of, window_of
from eval.scoring.baselines import Span, merge_spans
from tasks import Example, LoadedExamples

# Fields of a task's record that change no prediction, or have a part of the fingerprint of their own.
_APART = (
    *("templates", "maxlen", "limit", "sample", "sample_seed", "rows"),
    *("description", "licence", "profile", "scores_first_line"),
)
Spans = tuple[Span, ...]
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

    @property
    def shown_text(self) -> str:
        """Return what the prompt shows of a document, in its order."""
        template = self.key[1]
        text = self.source.shown_example(template).context
        return "".join(text[start:stop] for start, stop in self.source.spans_shown(self.prompt, template))

    def prediction(self, samples: Sequence[Sample], **costs: Any) -> Prediction:
        """Return the answer, or the samples of it, as a line of the journal; costs that are not given are unknown.

        Args:
            samples: As many as the settings ask for.
            costs: Further fields of `Prediction`.
        """
        assert len(samples) == self.settings.num_samples
        task, template, example_id, maxlen = self.key
        thought = [one.num_thought_tokens for one in samples if one.num_thought_tokens is not None]
        spans = self.source.spans_shown(self.prompt, template)
        window = self.source.describe_window(self.example, template, spans)
        is_own = window is None or window.document_id is None
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
            context_spans=spans if window is None else [list(one) for one in merge_spans(spans)] if is_own else [],
            window=window,
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
        profile: Metrics of the task, for the oracle of windows.
        foreign: An example about the document that `foreign` shows.
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
    profile: str
    foreign: Example | None = None
    is_encoded: bool = False

    @property
    def room(self) -> int:
        """Return how many tokens of a length are kept for the answer."""
        return 0 if self.is_encoded else self.settings.max_new_tokens

    @cached_property
    def fingerprints(self) -> dict[Key, str]:
        """Return the fingerprint of each request; tokenizes nothing."""
        of_head = {example.id: self._fingerprint(example) for example in self.examples}
        contents = {
            (example.id, window): self._window_fingerprint(example, window, of_head[example.id])
            for window in dict.fromkeys(map(window_of, self.builders))
            for example in self.examples
        }
        return {
            (self.task, template, example.id, maxlen): fingerprint(
                self.pins[template, maxlen],
                contents[example.id, window_of(template)],
                *(["trimmed"] if self._is_trimmed(template, example.query or "") else []),
            )
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

    def _is_trimmed(self, template: str, query: str) -> bool:
        # Earlier runs showed the white space that a chat template takes off.
        return self.builders[template].last_query(query) != query

    def _window_fingerprint(self, example: Example, window: str, of_head: str) -> str:
        """Return the digest of what a window shows of an example, from that of the example."""
        if window == HEAD:
            return of_head
        if window == FOREIGN:
            assert self.foreign is not None
            return fingerprint(of_head, self.foreign.context, self.foreign.kept)
        if window == ORACLE or example.evidence is None:
            return fingerprint(of_head, self.profile, example.references)
        return fingerprint(of_head, example.evidence)

    def reference_tokens(self, template: str, references: Sequence[str]) -> list[tuple[tuple[int, ...], int]]:
        """Return the tokens of each reference, cut to the room of an answer, and how many were cut.

        They are read as an answer of the model, with the end of its turn.
        """
        answers = [self.builders[template].answer(text) for text in references]
        return [(answer[: self.room], max(len(answer) - self.room, 0)) for answer in answers]

    def requests(self) -> Iterator[Request]:
        """Return a request for each example under each template at each length.

        Raises:
            UserError: A query or an instruction leaves no room.
        """
        contexts: dict[tuple[bool, bool], tuple[tuple[int, ...], Passages | None]] = {}
        examples = {example.id: example for example in self.examples}
        ranges_of = cache(self._ranges_of)
        for key, digest in self.fingerprints.items():
            _, template, example_id, maxlen = key
            builder, example = self.builders[template], examples[example_id]
            if builder.template.truncation == HALVES:
                parts = builder.parts(example)
            else:
                shown = self.shown_example(template)
                at = builder.is_context_first, window_of(template) == FOREIGN
                if at not in contexts:
                    passages = None if shown.kept is None else builder.passages(shown.context, shown.kept)
                    contexts[at] = builder.context_ids(shown.context), passages
                parts = builder.fixed_parts(example.query, *contexts[at])
            parts = self._through_window(parts, template, example, ranges_of)
            prompt = fit(parts, maxlen, self.room, self.policy, self.settings.thinking_room)
            yield Request(key=key, prompt=prompt, fingerprint=digest, source=self)
        if any(window_of(template) not in (HEAD, FOREIGN) for template in self.builders):
            self._evidence.forget_document()

    def _through_window(
        self, parts: PromptParts, template: str, example: Example, ranges_of: Callable[[str, Spans], Ranges]
    ) -> PromptParts:
        """Return the parts of a prompt with what its window shows of the context."""
        window = window_of(template)
        if window in (HEAD, FOREIGN):
            return parts

        def show(frame: Frame) -> Shown:
            if window != ORACLE:
                return RULES[window](frame, ranges_of(template, self._evidence.of(example).spans))
            visible = self._builder_of(template).spans_of(example.context, frame.cut(frame.budget))
            return RULES[window](frame, ranges_of(template, self._evidence.oracle(example, visible)))

        return replace(parts, window=show)

    def _ranges_of(self, template: str, spans: Spans) -> Ranges:
        return token_ranges(self._builder_of(template), self.examples[0].context, spans)

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

    @cached_property
    def _evidence(self) -> DocumentEvidence:
        return DocumentEvidence(self.examples[0].context, self.profile)

    def _builder_of(self, template: str) -> PromptBuilder:
        """Return the first builder that encodes a context as this template does: it remembers the context."""
        wanted = self.builders[template].is_context_first
        return next(one for one in self.builders.values() if one.is_context_first == wanted)

    def shown_example(self, template: str) -> Example:
        """Return an example of what a template shows: the example's own document, or another under `foreign`."""
        if window_of(template) != FOREIGN:
            return self.examples[0]
        assert self.foreign is not None
        return self.foreign

    def spans_shown(self, prompt: Prompt, template: str) -> list[list[int]]:
        """Return the characters of the context that a prompt shows in its order, as starts and ends."""
        context = self.shown_example(template).context
        if window_of(template) in (HEAD, FOREIGN) and not prompt.num_context_dropped:
            return [[0, len(context)]]
        return self._builder_of(template).spans_of(context, prompt.context_ranges)

    def describe_window(self, example: Example, template: str, spans: list[list[int]]) -> WindowRecord | None:
        """Return what a prediction records of its window; None for `head`."""
        window = window_of(template)
        if window == HEAD:
            return None
        if window == FOREIGN:
            return WindowRecord(spans=spans, document_id=self.shown_example(template).document_id)
        if window == ORACLE:
            return WindowRecord(spans=spans, evidence=spans, source="oracle")
        found = self._evidence.of(example)
        return WindowRecord(spans=spans, evidence=[list(one) for one in found.spans], source=found.source)


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
    of_task = config.tasks[name].templates
    plain = {
        template: PromptBuilder(tokenizer, of_task[template], chat, shots=loaded.shots, is_framed=is_encoded)
        for template in dict.fromkeys(map(base_of, task.templates))
    }
    builders = {template: plain[base_of(template)] for template in task.templates}
    profile = record.profiles[name]
    check_windows(name, task.templates, loaded.examples, profile)
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
    foreign = foreign_examples(name, task.templates, [examples[0] for examples in by_context.values()])
    for examples in by_context.values():
        yield PromptSource(
            task=name,
            examples=tuple(examples),
            builders=builders,
            lengths=tuple(task.maxlen),
            policy=config.truncation if examples[0].kept is None else AROUND,
            settings=config.generation(task.max_new_tokens),
            pins=pins,
            profile=profile,
            foreign=foreign.get(examples[0].document_id),
            is_encoded=is_encoded,
        )
