"""Everything that is on disk, as documented records: `run.json`, examples, predictions, scores, trainings, studies.

    record = folder.read_record(RunRecord)
    record.tasks["plos"].maxlen

Fields have the names of the JSON keys. Tables of `docs/run-folder.md` are made from this module.
A field with a default may be absent, as in folders of earlier versions. What has no fixed fields (settings of a command
line, provenance of a data set) is a plain object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from eval.records.rules import (
    CONFIG,
    COST,
    COUNT,
    GENERATION,
    LENGTH,
    LENGTHS,
    NAMES,
    NOT_EMPTY,
    OUTCOMES,
    POSITIVE,
    ROWS,
    SAMPLES,
    SECONDS,
    SHARE,
    SHOTS,
    SOURCE,
    SPAN,
    SPANS_IN_ORDER,
    TEMPLATES,
    TIME,
    TRUNCATION,
)
from eval.records.typed import entry

# What intervals resample: a cluster of documents or a document by itself, and its name.
Unit: TypeAlias = tuple[str, str]
# Names a prediction within its folder: task, template, id, maxlen.
Key = tuple[str, str, str, int]
# All examples, or those that even the greatest length cuts.
Subset = Literal["all", "always_truncated"]


# ---------------------------------------------------------------------------------------------------------------------
# Sessions and models, in the run.json of every kind of folder


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a session ran on."""

    device: str = entry("name of the accelerator, or of the processor")
    processor: str | None = entry("name of the processor", default=None)
    cores: int | None = entry("logical cores", default=None, rule=COUNT)
    memory_bytes: int | None = entry("physical memory", default=None, rule=COUNT)
    system: str | None = entry("operating system", default=None)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One launch that worked on a folder."""

    started: str = entry("UTC, ISO 8601", rule=TIME)
    finished: str | None = entry("UTC; null for a session that was interrupted", default=None, rule=TIME)
    command: list[str] = entry("arguments of the command line", default=[])
    world_size: int = entry("processes", rule=POSITIVE)
    threads: int = entry("torch threads of each process", rule=POSITIVE)
    machine: Machine = entry("what it ran on")
    versions: dict[str, str] = entry("versions of Python and of packages", default={})
    commit: str | None = entry("commit of the code; null outside a checkout", default=None)
    dirty: bool | None = entry("whether tracked files of the checkout were changed", default=None)
    num_to_generate: int | None = entry("predictions that were missing", default=None, is_left_out=True, rule=COUNT)
    num_to_measure: int | None = entry("measurements that were missing", default=None, is_left_out=True, rule=COUNT)
    first_step: int | None = entry("first step of a training session", default=None, is_left_out=True, rule=COUNT)
    seconds: float | None = entry("seconds of measuring in a search", default=None, is_left_out=True, rule=SECONDS)
    num_layers_run: int | None = entry("layers that a search computed", default=None, is_left_out=True, rule=COUNT)
    quantization: str | None = entry("method and bits of the loaded weights", default=None, is_left_out=True)
    ways: dict[str, str] | None = entry(
        "way that was taken for each computation with several, as measured on the machine",
        default=None,
        is_left_out=True,
    )
    engine: dict[str, Any] | None = entry(
        "server that answered: its name and version, address, and the command that started it, without keys",
        default=None,
        is_left_out=True,
    )


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What pins a LoRA adapter."""

    reference: str = entry("folder or hub id")
    source: str = entry("`folder` or `hub`")
    hub_id: str | None = entry("repository on the hub", default=None, is_left_out=True)
    revision: str | None = entry("commit on the hub", default=None, is_left_out=True)
    files: dict[str, str] | None = entry("SHA-256 of each file that is read", default=None, is_left_out=True)


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What pins the weights."""

    reference: str = entry("`--model`, or the base of an adapter: short name, file, folder or hub id")
    source: str = entry("`package`, `gguf`, `folder` or `hub`; `endpoint` where nothing pins the weights of a server")
    hub_id: str | None = entry("repository on the hub", default=None, is_left_out=True)
    revision: str | None = entry("commit on the hub", default=None, is_left_out=True)
    files: dict[str, str] | None = entry("SHA-256 of each file that is read", default=None, is_left_out=True)
    adapter: AdapterRecord | None = entry("LoRA adapter on the weights", default=None, is_left_out=True)
    quantize: str | None = entry("`--quantize`: `4bit` or `8bit`", default=None, is_left_out=True)

    @property
    def label(self) -> str:
        """Return what reports call the model."""
        name = self.reference if self.adapter is None else f"{self.adapter.reference} on {self.reference}"
        return name if self.quantize is None else f"{name} in {self.quantize}"


# ---------------------------------------------------------------------------------------------------------------------
# Generation: run.json, examples.jsonl, documents.jsonl.gz, predictions.jsonl


@dataclass(frozen=True, kw_only=True)
class TemplateRecord:
    """A prompt."""

    text: str = entry("the template, `{context}` and `{query}` in their places")
    chat: bool = entry("whether the chat template is put around it", default=True)
    system: str | None = entry("system message of the task itself", default=None, is_left_out=True)
    prompt_sha256: str = entry("digest of the rendered template, chat markup and shots included", default="")
    truncation: str | None = entry("what is kept, whatever the run keeps of others", default=None, is_left_out=True)
    window: str | None = entry("name of the window, such as `evidence`", default=None, is_left_out=True)


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What a run did with one task."""

    description: str = entry("source -> target")
    version: int = entry("raised when examples or prompts change")
    licence: str | None = entry("licence of the data", default=None)
    source: dict[str, Any] = entry("provenance of the data: kind, name, and a revision, version or digest", rule=SOURCE)
    rows: dict[str, Any] = entry(
        "counts of rows that were read, left out, or bad, and the first bad ones", default={}, rule=ROWS
    )
    split: str = entry("split of the data set")
    shots: dict[str, Any] | None = entry(
        "solved examples that open each prompt: their split, seed and ids", default=None, is_left_out=True, rule=SHOTS
    )
    templates: dict[str, TemplateRecord] = entry(
        "prompts by name, `TEMPLATE@WINDOW` under a window; may grow", rule=TEMPLATES
    )
    profile: str | None = entry("metrics", default=None, is_left_out=True)
    scores_first_line: bool = entry("score the first line of an answer alone", default=False)
    max_new_tokens: int = entry("room for the answer, in tokens", rule=LENGTH)
    stop: list[str] | None = entry("texts of the task itself that end an answer", default=None, is_left_out=True)
    limit: int | None = entry("first N examples; null for all; may grow", rule=COUNT)
    sample: int | None = entry("N documents, drawn; may grow", default=None, is_left_out=True, rule=POSITIVE)
    sample_seed: int | None = entry("seed of the drawing", default=None, is_left_out=True, rule=COUNT)
    min_words: int | None = entry("documents with fewer words are left out", default=None, rule=COUNT)
    maxlen: list[int] = entry("lengths in tokens, ascending; may grow", rule=LENGTHS)


# Kind of a model, in `engine`, whose prompts an encoder reads.
ENCODER_DECODER = "encoder-decoder"
ENCODED_LENGTHS = "maxlen counts tokens of the encoder, special ones included, and not the answer"


@dataclass(frozen=True, kw_only=True)
class ThinkingRecord:
    """How thoughts are told from answers."""

    start: str = entry("text that begins a thought; empty where all text up to `end` is one")
    end: str = entry("text that ends a thought")
    max_tokens: int = entry("room for the thought, in tokens", rule=LENGTH)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Settings that hold for a whole run folder; a resumed run must have the same."""

    model: ModelRecord = entry("what pins the weights")
    plan: list[Any] | None = entry("span of each layer; null for a model that is left untouched", default=None)
    dtype: str = entry("dtype of the computation")
    truncation: str = entry("part of the context that is kept: `head`, `middle` or `tail`", rule=TRUNCATION)
    trust_remote_code: bool = entry("run code that comes with the checkpoint", default=False)
    threads: int | None = entry("`--threads`", default=None, rule=COUNT)
    seed: int | None = entry("seed of sampling", default=None)
    generation: dict[str, Any] = entry("options by which answers are chosen", default={}, rule=GENERATION)
    generation_version: int | None = entry("raised when the code changes what is generated", default=None)
    profile: str | None = entry("metrics of all tasks, in folders of early versions", default=None, is_left_out=True)
    turn_ends: list[str] | None = entry(
        "what ends an answer because the chat template alone says so", default=None, is_left_out=True
    )
    thinking: ThinkingRecord | None = entry(
        "how thoughts are told from answers, where they have a room of their own", default=None, is_left_out=True
    )
    engine: dict[str, Any] | None = entry(
        "what answered, where it was not the `local` engine with a decoder: name, and what its answers depend on",
        default=None,
        is_left_out=True,
    )


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What groups of prompts depend on beyond the prompts, so that a resumed run forms the same groups."""

    num_shares: int = entry("processes among which the work is shared", rule=POSITIVE)
    batch_size: int = entry("most rows that decode together, beams and samples included", rule=POSITIVE)
    memory_budget: int = entry("bytes for keys and values", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """What is claimed of a run, written down while it had no answer."""

    direction: Literal["as-good", "better"] = entry("what is claimed of this run, or of one of its lengths")
    metric: str = entry("metric of the claim")
    margin: float | None = entry("loss up to which it is as good, as a fraction; null for `better`", rule=SHARE)
    against: str = entry("what it stands beside: a plan, another model, or a length of this run")
    maxlen: int | None = entry("length in tokens; null for all", rule=LENGTH)
    recorded: str = entry("UTC, ISO 8601", rule=TIME)


@dataclass(frozen=True, kw_only=True)
class UntilRecord:
    """What `--until` asked for, and what the documents said at the last look. Numbers are fractions."""

    asked: str = entry("as the last command had it")
    metric: str | None = entry("what is compared; null where a time alone ends the run")
    subject: str = entry("what a claim is about: `this`, a length of this run, or the folder of another run")
    beside: str = entry("what it stands beside")
    differs: bool = entry("whether the claim that both differ ends the run")
    margin: float | None = entry("of the claim that the subject is as good; null where that ends nothing", rule=SHARE)
    other: str | None = entry("digest of the other run's predictions", default=None, is_left_out=True)
    sample_seed: int = entry("of the order in which documents are taken")
    order: str | None = entry("digest of the names of those answered, in this order", default=None)
    recorded: str = entry("when the first command asked for it: UTC, ISO 8601", rule=TIME)
    seconds: float = entry("spent on answers until the last look, by all sessions", default=0.0, rule=SECONDS)
    num_answered: int = entry("documents, or clusters, that were answered at the last look", default=0, rule=COUNT)
    num_all: int = entry("those that there are", default=0, rule=COUNT)
    num_compared: int = entry("those answered that both sides show with different prompts", default=0, rule=COUNT)
    difference: float | None = entry("mean over documents of subject minus the other", default=None)
    low: float | None = entry("lower end of its 95% interval, which holds at every look", default=None)
    high: float | None = entry("upper end of that", default=None)
    e_differs: float | None = entry("e-value against 'they are alike'; 20 is a claim", default=None)
    e_as_good: float | None = entry("e-value against 'it loses the margin'; 40 is a claim", default=None)
    stopped: Literal["differs", "as good", "time", "all documents"] | None = entry(
        "what ended the run; null while it goes on", default=None
    )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json` of a run of `eval/run.py`."""

    config: dict[str, Any] = entry("settings of the last command, defaults filled in", rule=CONFIG)
    plan_description: str = entry("text form of the plan, or `untouched`")
    world_size: int | None = entry("processes of the last session that generated", rule=COUNT)
    identity: Identity = entry("settings that a resumed run must share")
    tasks: dict[str, TaskRecord] = entry("settings and data of each task", rule=NAMES)
    sessions: list[Session] = entry("every launch that generated", rule=NOT_EMPTY)
    grouping: Grouping = entry("what groups are formed by")
    ends: dict[str, list[str]] | None = entry(
        "what ends an answer, and where each end comes from", default=None, is_left_out=True
    )
    template_date: str | None = entry(
        "what the clock of the chat template shows, where it has one", default=None, is_left_out=True
    )
    think_end_token: str | None = entry(
        "answers are scored from behind the last of these", default=None, is_left_out=True
    )
    claim: ClaimRecord | None = entry("what `--claim` said before the first answer", default=None, is_left_out=True)
    until: UntilRecord | None = entry("what `--until` asked for, and how it ended", default=None, is_left_out=True)
    checksums: bool = entry("whether each line of the folder's `.jsonl` files must have a checksum", default=False)

    @property
    def profiles(self) -> dict[str, str]:
        """Return the profile of each task; runs of early versions had one for all."""
        return {name: task.profile or self.identity.profile or "" for name, task in self.tasks.items()}


def unit_of(document_id: str, cluster_id: str | None) -> Unit:
    """Return the name of a cluster, or of a document by itself, which no other kind shares."""
    return ("document", document_id) if cluster_id is None else ("cluster", cluster_id)


@dataclass(frozen=True, kw_only=True)
class ExampleRecord:
    """A line of `examples.jsonl`."""

    task: str = entry("name of the task")
    id: str = entry("name of the example within its task")
    document_id: str = entry("name of the document within its task; examples may share one")
    cluster_id: str | None = entry(
        "what the document is part of, over which intervals resample in its place", default=None, is_left_out=True
    )
    query: str | None = entry("question about the document")
    references: list[str] = entry("answers to score against")
    evidence: list[list[int]] | None = entry(
        "character ranges of the document that hold the answer, where known", rule=SPAN
    )
    classes: list[str] | None = entry("names of all classes that the answer is one of", default=None, is_left_out=True)
    groups: list[str] | None = entry(
        "groups whose scores are reported apart, such as `0-4k`", default=None, is_left_out=True
    )

    @property
    def unit(self) -> Unit:
        """Return what is drawn and exchanged as one: the cluster, or the document where it is in none."""
        return unit_of(self.document_id, self.cluster_id)


@dataclass(frozen=True, kw_only=True)
class DocumentRecord:
    """A line of `documents.jsonl.gz`."""

    task: str = entry("name of the task")
    document_id: str = entry("name of the document within its task")
    text: str = entry("the whole document")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One of several answers to a prompt."""

    text: str = entry("the answer, without its thought")
    num_generated_tokens: int = entry("tokens of thought and answer, end token included", rule=COUNT)
    finish_reason: str = entry("`stop` at an end token or stop text, `length` when the room was used up")
    thought: str | None = entry("what was thought before the answer", default=None, is_left_out=True)
    num_thought_tokens: int | None = entry(
        "tokens of the thought, its marks included", default=None, is_left_out=True, rule=COUNT
    )
    thought_finish_reason: str | None = entry(
        "`stop` at its end mark, `length` when its room was used up, `turn` when the answer ended within it",
        default=None,
        is_left_out=True,
    )


@dataclass(frozen=True, kw_only=True)
class WindowRecord:
    """What a prompt shows of documents where that is not the beginning."""

    spans: list[list[int]] = entry("character ranges of what is shown, in the order of the prompt", rule=SPAN)
    document_id: str | None = entry(
        "the document shown instead of the example's own document", default=None, is_left_out=True
    )
    evidence: list[list[int]] | None = entry(
        "character ranges of the evidence that the window is about", default=None, is_left_out=True, rule=SPAN
    )
    source: Literal["gold", "oracle"] | None = entry(
        "who names the evidence: the data set, or the oracle with the references in hand",
        default=None,
        is_left_out=True,
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A line of `predictions.jsonl` or of the journal. Costs that an engine cannot know are null."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    id: str = entry("name of the example")
    maxlen: int = entry(
        "length in tokens; counts all the model sees and the room for the answer, of an encoder-decoder the prompt",
        rule=LENGTH,
    )
    fingerprint: str = entry("digest of all that could change the prediction")
    text: str = entry("the answer, without its thought; of several samples the first")
    prompt_tokens: int = entry("tokens of the prompt", rule=COUNT)
    context_tokens_kept: int = entry("tokens of the context in the prompt", rule=COUNT)
    context_tokens_dropped: int = entry("tokens of the context that were cut", rule=COUNT)
    context_spans: list[list[int]] = entry(
        "character ranges of the document that the prompt shows", rule=SPANS_IN_ORDER
    )
    window: WindowRecord | None = entry(
        "what is shown in place of the beginning of the document", default=None, is_left_out=True
    )
    num_generated_tokens: int = entry("tokens of thought and answer, end token included; of all samples", rule=COUNT)
    finish_reason: str = entry(
        "`stop` at an end token or stop text, `length` when the room was used up; of several samples that of the first"
    )
    thought: str | None = entry(
        "what was thought before the answer; of several samples the first", default=None, is_left_out=True
    )
    num_thought_tokens: int | None = entry(
        "tokens of the thought, its marks included, where thoughts have a room of their own; of all samples",
        default=None,
        is_left_out=True,
        rule=COUNT,
    )
    thought_finish_reason: str | None = entry(
        "`stop` at its end mark, `length` when its room was used up, `turn` when the answer ended within it",
        default=None,
        is_left_out=True,
    )
    samples: list[Sample] | None = entry(
        "all answers, where `--num-samples` asks for several", default=None, is_left_out=True, rule=SAMPLES
    )
    seconds: float | None = entry(
        "prefill and decode seconds together; of a server, from sending the request to its end, beside others",
        rule=SECONDS,
    )
    prefill_seconds: float | None = entry(
        "seconds of all edges of the prompt tree that lead to this prompt, shared or not", rule=SECONDS
    )
    decode_seconds: float | None = entry("even share of the seconds that its batch took to decode", rule=SECONDS)
    batch_size: int | None = entry("most rows that decoded together, samples included", default=None, rule=COUNT)
    group: int | None = entry("number of the group of prompts that shared a tree", default=None, rule=COUNT)
    truncation: str | None = entry("part of the context that was kept", default=None)
    cache_bytes: int | None = entry("storage of the keys and values that this prompt reads at the end", rule=COUNT)
    attention_flops: int | None = entry("two matrix products of attention, in closed form", rule=COUNT)
    prefilled_tokens: int | None = entry("tokens that went through the model for this prompt alone", rule=COUNT)
    peak_bytes: int | None = entry(
        "most memory since its batch, or group of greedy answers, began: of the device on a GPU, else of the process",
        rule=COUNT,
    )
    drafted_tokens: int | None = entry(
        "tokens that were guessed from the text before them, where the row decoded alone",
        default=None,
        is_left_out=True,
        rule=COUNT,
    )
    accepted_tokens: int | None = entry(
        "those of them that the model would have written", default=None, is_left_out=True, rule=COUNT
    )
    first_token_seconds: float | None = entry(
        "of a server, from sending the request to the first token", default=None, is_left_out=True, rule=SECONDS
    )
    token_seconds: float | None = entry(
        "of a server, mean seconds between further tokens", default=None, is_left_out=True, rule=SECONDS
    )
    reported_prompt_tokens: int | None = entry(
        "of a server, tokens of the prompt as it counts them", default=None, is_left_out=True, rule=COUNT
    )
    cached_tokens: int | None = entry(
        "tokens of the prompt that a server had in its prefix cache, where it says so",
        default=None,
        is_left_out=True,
        rule=COUNT,
    )

    @property
    def key(self) -> Key:
        """Return what names the prediction within its folder."""
        return self.task, self.template, self.id, self.maxlen

    @property
    def answers(self) -> list[Sample]:
        """Return all answers to the prompt: the samples, or the only one."""
        only = Sample(**{field.name: getattr(self, field.name) for field in fields(Sample)})
        return self.samples or [only]


@dataclass(frozen=True, kw_only=True)
class ProgressRecord:
    """`journal/progress.json` of a run that has not ended: how far its session is, by the predicted cost."""

    share: float = entry("part of the session's predicted cost that is done", rule=SHARE)
    seconds: float = entry("seconds that the session has computed", rule=SECONDS)
    doing: str = entry("what the main process did last", default="")
    written: str = entry("UTC, ISO 8601", rule=TIME)


# ---------------------------------------------------------------------------------------------------------------------
# Scores: scores.json, example_scores.jsonl


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95% interval, as fractions; the ends are null with fewer than six documents."""

    mean: float | None = entry("the mean")
    low: float | None = entry("lower end of the interval")
    high: float | None = entry("upper end of the interval")
    error: float | None = entry(
        "standard error of the mean over documents, where there is an interval", default=None, is_left_out=True
    )

    @property
    def value(self) -> float:
        """Return the mean where it must be known, as that of every score is."""
        assert self.mean is not None
        return self.mean


@dataclass(frozen=True, kw_only=True)
class Share(Estimate):
    """A mean share of something that not all examples have."""

    num_examples: int = entry("examples that have it", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class ValueRecord:
    """What a value of a further metric can be, and how it is shown."""

    label: str = entry("heading of its columns")
    title: str = entry("its name")
    low: float | None = entry("least value that is possible; null where there is none")
    high: float | None = entry("greatest value that is possible; null where there is none")
    better: Literal["higher", "lower"] | None = entry("direction; null for a value that describes and ranks nothing")
    is_share: bool = entry("whether reports show it x 100")

    @property
    def within(self) -> tuple[float, float]:
        """Return the range, with infinite ends where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """The first line of `metrics/NAME@VERSION.jsonl`: a further metric, and what its values depend on."""

    name: str = entry("what `--metrics` calls it")
    version: int = entry("raised when its values change")
    provenance: dict[str, Any] = entry("what its values depend on: packages, digests of weights, prompts, endpoints")
    needs: list[str] = entry("what a prediction must have to be scored")
    reads: list[str] = entry("what else of a prediction its values depend on, needs included")
    values: dict[str, ValueRecord] = entry("its values, in the order of tables")


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss:
    """The likelihood of a reference after a prompt."""

    negative_log_likelihood: float = entry("of its tokens, in nats", rule=COUNT)
    num_tokens: int = entry("tokens that are scored, as many as an answer has room for", rule=COUNT)
    num_tokens_dropped: int = entry("tokens beyond that room", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class MetricLine:
    """A further line of `metrics/NAME@VERSION.jsonl`: the values of one text."""

    fingerprint: str = entry("digest of all that the metric reads")
    task: str = entry("name of the task of the first prediction that has the text")
    template: str = entry("its prompt")
    id: str = entry("its example")
    maxlen: int = entry("its length in tokens", rule=LENGTH)
    system: str = entry("the model, or the name of a baseline")
    values: dict[str, float | None] = entry("values by name; null where one is not defined")
    references: list[ReferenceLoss] | None = entry(
        "of a likelihood, what it is of each reference", default=None, is_left_out=True
    )


@dataclass(frozen=True, kw_only=True)
class UsedMetric(MetricRecord):
    """A further metric of a scored run."""

    file: str = entry("where its values are, within the folder")
    num_bytes: int = entry("bytes of the file when the run was scored; it only grows", rule=COUNT)
    sha256: str = entry("digest of these bytes")
    num_absent: int = entry("texts that it can score, and did not yet", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What predictions cost; unknown costs are null."""

    prefill_tokens_per_second: float | None = entry(
        "tokens of all prompts over their prefill seconds, one process", rule=COST
    )
    decode_tokens_per_second: float | None = entry(
        "tokens of all answers over their decode seconds, one process", rule=COST
    )
    seconds: float | None = entry("mean seconds of an example", rule=COST)
    peak_memory_bytes: int | None = entry("largest of any prediction", rule=COST)
    cache_bytes: int | None = entry("largest of any prediction", rule=COST)
    attention_flops: float | None = entry("mean of an example", rule=COST)
    thought_tokens: float | None = entry(
        "mean tokens of an example's thoughts, where they have a room of their own",
        default=None,
        is_left_out=True,
        rule=COST,
    )
    first_token_seconds: float | None = entry(
        "of a server, mean seconds from sending a request to the first token",
        default=None,
        is_left_out=True,
        rule=COST,
    )
    token_seconds: float | None = entry(
        "of a server, mean seconds between further tokens", default=None, is_left_out=True, rule=COST
    )
    cached_share: float | None = entry(
        "part of the prompts' tokens that a server had in its prefix cache", default=None, is_left_out=True, rule=SHARE
    )


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The two parts of a score's spread where prompts have several samples; as fractions."""

    samples: float = entry("standard deviation between samples of a prompt", rule=COST)
    documents: float = entry("standard deviation between documents, without that of samples", rule=COST)
    share_of_samples: float | None = entry(
        "part of the mean's squared standard error that is due to samples; null without an interval", rule=SHARE
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """An entry of `results` in `scores.json`: one task, template, length, subset and system."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    profile: str = entry("metrics")
    system: str = entry(
        "the model, or the name of a baseline: lead, tail, query_echo, visible_oracle, common_answer, matched_lead, "
        "matched_tail, matched_oracle, foreign_oracle; with further metrics reference, shuffled_reference, "
        "foreign_reference"
    )
    kind: Literal["model", "yardstick"] = entry("whether a model or a baseline wrote the texts")
    subset: Subset = entry("all examples, or those that even the greatest length cuts")
    maxlen: int = entry("length in tokens", rule=LENGTH)
    num_examples: int = entry("examples", rule=COUNT)
    num_documents: int = entry("documents", rule=COUNT)
    num_clusters: int | None = entry(
        "what intervals resample, where documents are in clusters", default=None, is_left_out=True, rule=COUNT
    )
    num_truncated: int = entry("examples whose context was cut", rule=COUNT)
    words: float | None = entry("words of a text, in the median", default=None, is_left_out=True, rule=COUNT)
    num_ended_by_length: int | None = entry(
        "answers that used up their room; null for baselines", default=None, is_left_out=True, rule=COUNT
    )
    num_samples: int | None = entry(
        "answers to each prompt, where there are several", default=None, is_left_out=True, rule=POSITIVE
    )
    flaws: dict[str, int] | None = entry(
        "how many answers have which flaw; null for baselines, and in folders of earlier versions",
        default=None,
        is_left_out=True,
    )
    metrics: dict[str, Estimate] = entry("scores by metric, as fractions")
    noise: dict[str, Noise] | None = entry(
        "how samples of a prompt, and documents, differ, by metric, where there are several samples",
        default=None,
        is_left_out=True,
    )
    further: dict[str, Share] | None = entry(
        "means of further metrics, by `NAME.VALUE`, over the examples that have the value",
        default=None,
        is_left_out=True,
    )
    evidence_visible: Share | None = entry("share of the gold evidence that was shown; null for baselines")
    cost: Cost | None = entry("what the predictions cost; null for baselines")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One side of a comparison within a run."""

    template: str = entry("name of the prompt")
    maxlen: int = entry("length in tokens", rule=LENGTH)


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """What a second system has over a first on the same examples, as a fraction."""

    difference: float = entry("second minus first")
    low: float | None = entry("lower end of the 95% interval")
    high: float | None = entry("upper end of the 95% interval")
    p_value: float | None = entry("two-sided, by exchanging whole documents", rule=SHARE)
    wins: int = entry("examples on which the second is better", rule=COUNT)
    ties: int = entry("examples on which both are equal", rule=COUNT)
    losses: int = entry("examples on which the second is worse", rule=COUNT)
    num_examples: int = entry("examples", rule=COUNT)
    num_documents: int = entry("documents, or clusters of them", rule=COUNT)
    detectable: float | None = entry(
        "smallest difference that so many documents show with power 0.8, at the level of the table"
    )
    needs_documents: int | None = entry(
        "where so few documents can show no difference at the level of the table: how many could",
        default=None,
        is_left_out=True,
        rule=COUNT,
    )
    margin: float = entry("loss up to which the second is as good, as a fraction")
    non_inferior: bool = entry("whether a loss of the margin is ruled out, collapses of a few documents allowed for")
    claim_low: float | None = entry(
        "lower bound of the difference on which `non_inferior` rests, at the level of the table",
        default=None,
        is_left_out=True,
    )
    p_corrected: float | None = entry(
        "p value corrected for the comparisons of the table (max-T)", rule=SHARE, former="p_holm"
    )


@dataclass(frozen=True, kw_only=True)
class LadderLine:
    """An entry of `lines` in `ladder.json`: one example at a length, beside its smallest one.

    Each rung is a pair of values, at the smallest length and at this one; null where it is not known.
    """

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    id: str = entry("name of the example within its task")
    document_id: str = entry("name of the document within its task")
    cluster_id: str | None = entry("what the document is part of", default=None, is_left_out=True)
    smallest: int = entry("the smallest length in tokens", rule=LENGTH)
    maxlen: int = entry("this length in tokens", rule=LENGTH)
    of: Literal["oracle", "evidence"] = entry("what key sentences are of, and what is shown")
    shown: list[float] | None = entry("score of the oracle's floor and of the oracle; or share of the evidence")
    used: list[float] | None = entry("negative log likelihood of the reference, in nats a token")
    said: list[float] | None = entry("share of the newly shown key sentences that the answer says")
    credited: list[float] | None = entry("score of the answer")

    @property
    def unit(self) -> Unit:
        """Return what is drawn and exchanged as one."""
        return unit_of(self.document_id, self.cluster_id)


@dataclass(frozen=True, kw_only=True)
class LadderRung(PairedResult):
    """An entry of `rungs` in `ladder.json`: what the examples of a length gain over the smallest one."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    smallest: int = entry("the smallest length in tokens", rule=LENGTH)
    maxlen: int = entry("the length in tokens", rule=LENGTH)
    rung: Literal["shown", "used", "said", "credited"] = entry("what is gained")
    of: str = entry("what it is measured by: `oracle` or `evidence`, `nll`, `sentences`, or a metric")
    before: float = entry("mean at the smallest length, or of the oracle's floor")
    after: float = entry("mean at this length")


@dataclass(frozen=True, kw_only=True)
class LadderRecord:
    """`ladder.json`: what longer windows show, what the likelihood uses, what answers say, what the metric credits."""

    ladder_version: int = entry("raised when its values change")
    model: str = entry("name of the model")
    plan: str = entry("attention spans of the run")
    rungs: list[LadderRung] = entry("gains over the smallest length, with intervals over documents")
    words: dict[str, str] = entry("where the extra tokens are lost, by task and template")
    lines: list[LadderLine] = entry("what the gains are made of")
    predictions: str | None = entry(
        "digest of the predictions that it is of, as in `scores.json`; null without answers", default=None
    )


@dataclass(frozen=True, kw_only=True)
class Comparison(PairedResult):
    """An entry of `comparisons` in `scores.json`."""

    task: str = entry("name of the task")
    subset: Subset = entry("examples that are compared")
    metric: str = entry("headline metric of the task")
    first: Compared = entry("what the second is compared with")
    second: Compared = entry("what is compared")
    num_clusters: int | None = entry(
        "what is exchanged and resampled, where documents are in clusters; equal to `num_documents`",
        default=None,
        is_left_out=True,
        rule=COUNT,
    )
    num_same_prompts: int = entry(
        "examples for which both settings give the same prompt, which are left out", default=0, rule=COUNT
    )
    value: ValueRecord | None = entry(
        "of a further metric, what its values can be; `wins` are examples where the second is better, or higher where "
        "no direction is",
        default=None,
        is_left_out=True,
    )
    by_metric: dict[str, list[int]] | None = entry(
        "wins, ties and losses by each metric that the headline joins, where it joins several",
        default=None,
        is_left_out=True,
        rule=OUTCOMES,
    )


ContrastName = Literal["not_in_window", "not_used", "position", "document"]


@dataclass(frozen=True, kw_only=True)
class Contrast(Comparison):
    """An entry of `windows` in `scores.json`: what one window has over another, by the same examples."""

    contrast: ContrastName = entry("what the two windows tell apart")
    num_gold: int = entry("examples whose evidence the data set marks", rule=COUNT)
    num_oracle: int = entry("examples whose evidence the oracle picked", rule=COUNT)
    num_left_out: int = entry("examples without evidence, or whose evidence the window does not show whole", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class UsefulLength:
    """The smallest length that loses less than the margin to every longer one."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    system: str = entry("the model, or `visible_oracle`")
    kind: Literal["model", "yardstick"] = entry("whether a model or a baseline wrote the texts")
    metric: str = entry("headline metric of the task")
    margin: float = entry("a smaller loss counts as none, as a fraction")
    lengths: list[int] = entry("lengths that were compared, ascending, in tokens", rule=LENGTHS)
    observed: int = entry("what it is on these documents", rule=LENGTH)
    low: int | None = entry(
        "lower end of the 95% interval: shorter ones are shown to lose more than the margin to a longer one; null with "
        "too few documents",
        rule=LENGTH,
    )
    high: int | None = entry(
        "upper end: the smallest that is shown, as all above it are, to lose less than the margin to every longer one",
        rule=LENGTH,
    )
    is_open: bool = entry("whether the greatest length cuts documents, so that more may be of use")
    num_documents: int = entry(
        "documents, or clusters, that the smallest and the greatest length show differently", rule=COUNT
    )


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What the baselines of a task are made with."""

    word_budget: int | None = entry("words of lead and tail; null where no part of a document is scored", rule=COUNT)
    objective: str | None = entry("metric that the oracle aims at")
    common_answer: str | None = entry("the most frequent reference; null where it is no baseline")


@dataclass(frozen=True, kw_only=True)
class ScrollsEntry(Estimate):
    """The SCROLLS score at one length and set of templates."""

    maxlen: int = entry("length in tokens", rule=LENGTH)
    template: str = entry("template that sets this entry apart; empty where each task has one")
    templates: dict[str, str] = entry("template of each task")
    num_examples: dict[str, int] = entry("examples of each task")
    tasks: dict[str, float] = entry("headline score of each task")


@dataclass(frozen=True, kw_only=True)
class ScrollsScore:
    """The SCROLLS score of a run."""

    scores: list[ScrollsEntry] = entry("one a length and set of templates at which all seven tasks are")
    missing: list[str] = entry("what is missing, in words")


@dataclass(frozen=True, kw_only=True)
class LettersKept:
    """What the words of a profile leave of the references of a task."""

    share: float | None = entry("share of the letters that are in a word; null without letters", rule=SHARE)
    unspaced: float | None = entry("share of the letters that are of scripts without spaces", rule=SHARE)
    num_references: int = entry("references", rule=COUNT)
    num_without_words: int = entry("references with letters or digits, and without a word", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A sample of predictions that the reference package of a profile scored too."""

    package: str | None = entry("package and version; null for a profile without one")
    num_predictions: int = entry("predictions that were scored again", rule=COUNT)
    largest_difference: float | None = entry("largest difference of a score; above 1e-9 is an error")


@dataclass(frozen=True, kw_only=True)
class DepthCell:
    """Needles of one fifth of the context at one length."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    maxlen: int = entry("length in tokens", rule=LENGTH)
    depth: float = entry("beginning of the fifth, as a share of what the prompt shows of the context", rule=SHARE)
    found: float = entry("share of these needles that answers contain", rule=SHARE)
    num_needles: int = entry("needles that stand there, each in one prompt", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """Answers to the examples of one group at one length."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    maxlen: int = entry("length in tokens", rule=LENGTH)
    group: str = entry("name of the group")
    metrics: dict[str, Estimate] = entry("means with intervals")
    num_examples: int = entry("examples of the group", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`scores.json`."""

    profiles: dict[str, str] = entry("metrics of each task")
    scoring_version: int = entry("raised when the code changes what a score is")
    predictions: str = entry("digest of the predictions that were scored")
    example_scores: str = entry("digest of the lines of `example_scores.jsonl`")
    texts: bool = entry("whether the page shows texts", default=True)
    yardsticks: dict[str, Baselines] = entry("what the baselines of each task are made with")
    results: list[Result] = entry("means with intervals")
    comparisons: list[Comparison] = entry("paired tests within the run")
    windows: list[Contrast] | None = entry(
        "paired tests of windows, where there are several", default=None, is_left_out=True
    )
    scrolls_score: ScrollsScore | None = entry("null with fewer than two tasks of SCROLLS", default=None)
    letters: dict[str, LettersKept] = entry("what profiles leave of the references, by task", default={})
    accept_ascii_words: bool = entry("whether `--accept-ascii-words` was given", default=False)
    parity: dict[str, Parity] = entry("checks with reference packages, by profile", default={})
    further: dict[str, UsedMetric] | None = entry(
        "further metrics by name, where there are any", default=None, is_left_out=True
    )
    further_comparisons: list[Comparison] | None = entry(
        "paired tests by further metrics, where there are any", default=None, is_left_out=True
    )
    useful_lengths: list[UsefulLength] | None = entry(
        "how much context is of use, of runs of several lengths", default=None, is_left_out=True
    )
    depths: list[DepthCell] | None = entry(
        "what was found of needles, where there are any", default=None, is_left_out=True
    )
    groups: list[GroupScore] | None = entry(
        "scores of the groups that a task's publishers report apart", default=None, is_left_out=True
    )


@dataclass(frozen=True, kw_only=True)
class ExampleScore:
    """A line of `example_scores.jsonl`: a prediction, or a baseline beside it."""

    task: str = entry("name of the task")
    template: str = entry("name of the prompt")
    id: str = entry("name of the example")
    document_id: str = entry("name of the document")
    cluster_id: str | None = entry("what the document is part of", default=None, is_left_out=True)
    maxlen: int = entry("length in tokens", rule=LENGTH)
    system: str = entry("the model, or the name of a baseline")
    is_truncated: bool = entry("whether the context was cut")
    is_model: bool = entry("whether a model wrote the text")
    metrics: dict[str, float] = entry("scores, as fractions")
    sentences: list[list[int]] | None = entry(
        "character ranges that the oracle picked", default=None, is_left_out=True, rule=SPAN
    )
    samples: list[dict[str, float]] | None = entry(
        "scores of each sample, of which `metrics` are the means", default=None, is_left_out=True, rule=SAMPLES
    )
    flaws: dict[str, int] | None = entry(
        "how many of the answers have which flaw: `empty`, `loop`, `copy` or `unread`", default=None, is_left_out=True
    )
    further: dict[str, float | None] | None = entry(
        "values of further metrics, by `NAME.VALUE`; of several samples the mean of those that have one",
        default=None,
        is_left_out=True,
    )

    @property
    def unit(self) -> Unit:
        """Return what is drawn and exchanged as one: the cluster, or the document where it is in none."""
        return unit_of(self.document_id, self.cluster_id)


# ---------------------------------------------------------------------------------------------------------------------
# Perplexity


@dataclass(frozen=True, kw_only=True)
class DocumentsTask:
    """What a measurement of losses did with one task."""

    version: int = entry("raised when the documents change")
    source: dict[str, Any] = entry("provenance of the data")
    rows: dict[str, Any] = entry("counts of rows that were read, left out, or bad", default={}, rule=ROWS)
    split: str | None = entry("split of the data set")
    limit: int | None = entry("first N documents; null for all; may grow", rule=COUNT)
    sample: int | None = entry("N documents, drawn; may grow", default=None, is_left_out=True, rule=POSITIVE)
    sample_seed: int | None = entry("seed of the drawing", default=None, is_left_out=True, rule=COUNT)
    min_words: int | None = entry("documents with fewer words are left out", default=None, rule=COUNT)
    maxlen: list[int] = entry("lengths in tokens, ascending; may grow", rule=LENGTHS)


@dataclass(frozen=True, kw_only=True)
class PerplexityTask(DocumentsTask):
    """What a measurement of perplexity did with one task."""

    description: str = entry("source -> target", default="")
    min_tokens: int | None = entry("documents with fewer tokens are left out", default=None, rule=COUNT)
    template: str | None = entry("template of the prompts before references", default=None, is_left_out=True)
    prompt_sha256: str | None = entry("digest of that template as rendered", default=None, is_left_out=True)


@dataclass(frozen=True, kw_only=True)
class PerplexityIdentity:
    """Settings that a resumed measurement must share."""

    model: ModelRecord = entry("what pins the weights")
    plan: list[Any] | None = entry("span of each layer; null for a model that is left untouched")
    dtype: str = entry("dtype of the computation")
    tokens: int | None = entry("tokens of each document that are read; null for references", rule=COUNT)
    of: Literal["references"] | None = entry(
        "what is measured: `references`, each after its prompt; null for documents", default=None, is_left_out=True
    )
    trust_remote_code: bool = entry("run code that comes with the checkpoint", default=False)
    threads: int | None = entry("torch threads of each process", default=None, rule=COUNT)
    perplexity_version: int = entry("raised when the code changes what is measured")
    stride: int | None = entry(
        "tokens that are scored at the end of each overlapping window; null where windows follow each other",
        default=None,
        is_left_out=True,
        rule=POSITIVE,
    )
    token_losses: bool = entry("keep the loss of each token", default=False)
    engine: dict[str, Any] | None = entry(
        "server that measured: name, and what its losses depend on", default=None, is_left_out=True
    )


@dataclass(frozen=True, kw_only=True)
class PerplexityRecord:
    """`run.json` of a run of `eval/perplexity.py`."""

    config: dict[str, Any] = entry("settings of the last command, defaults filled in", rule=CONFIG)
    plan_description: str = entry("text form of the plan, or `untouched`")
    world_size: int | None = entry("processes of the last session that measured", rule=COUNT)
    identity: PerplexityIdentity = entry("settings that a resumed run must share")
    tasks: dict[str, PerplexityTask] = entry("what was read of each task", rule=NAMES)
    sessions: list[Session] = entry("every launch that measured", rule=NOT_EMPTY)
    template_date: str | None = entry(
        "what the clock of the chat template shows, ISO 8601", default=None, is_left_out=True
    )
    checksums: bool = entry("whether each line of the folder's `.jsonl` files must have a checksum", default=False)


@dataclass(frozen=True, kw_only=True)
class DocumentLoss:
    """A line of `predictions.jsonl` of a measurement of perplexity: one document at one length."""

    task: str = entry("name of the task")
    template: str = entry("`text`, since documents are read as they are; that of the prompts before references")
    id: str = entry("name of the document")
    maxlen: int = entry("tokens of a window", rule=LENGTH)
    num_tokens: int = entry("tokens that were predicted", rule=COUNT)
    num_tokens_dropped: int = entry("tokens of the document that were not read", rule=COUNT)
    negative_log_likelihood: float = entry("sum over the predicted tokens, in nats")
    buckets: list[tuple[int, int, float, int]] = entry(
        "first position, position after the last, sum of losses and number of tokens"
    )
    seconds: float = entry("seconds of the document; of a server's, the sum of its requests", rule=SECONDS)
    cache_bytes: int | None = entry("keys and values after the longest window; null for a server", rule=COUNT)
    peak_bytes: int | None = entry("most memory", rule=COUNT)
    attention_flops: int | None = entry("two matrix products of attention, in closed form", rule=COUNT)
    token_losses: list[float | None] | None = entry(
        "losses of the tokens that were read, in nats; null where none was predicted", default=None, is_left_out=True
    )

    @property
    def key(self) -> Key:
        """Return what names the measurement within its folder."""
        return self.task, self.template, self.id, self.maxlen


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Perplexity of tokens by their position in the window."""

    first: int = entry("first position", rule=COUNT)
    last: int = entry("last position", rule=COUNT)
    num_tokens: int = entry("tokens", rule=COUNT)
    perplexity: Estimate = entry("exp(loss a token)")


@dataclass(frozen=True, kw_only=True)
class PerplexityCost:
    """What a measurement cost."""

    tokens_per_second: float | None = entry("predicted tokens over seconds, one process", rule=COST)
    seconds: float = entry("mean seconds of a document", rule=COST)
    peak_memory_bytes: int | None = entry("largest of any document", rule=COST)
    cache_bytes: int | None = entry("largest of any document", rule=COST)
    attention_flops: float | None = entry("mean of a document", rule=COST)


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """An entry of `results` in `scores.json` of a measurement of perplexity: one task and length."""

    task: str = entry("name of the task")
    template: str = entry("`text`, or that of the prompts before references")
    system: str = entry("the model")
    maxlen: int = entry("tokens of a window", rule=LENGTH)
    num_documents: int = entry("documents", rule=COUNT)
    num_truncated: int = entry("documents that were not read to their end", rule=COUNT)
    num_tokens: int = entry("tokens that were predicted", rule=COUNT)
    metrics: dict[str, Estimate] = entry(
        "`perplexity`: exp(loss a token); of references also `nats`, the loss a token, and `nats_to_shortest` and "
        "`nats_to_previous`, what it is more than at these lengths"
    )
    by_position: list[PositionLoss] = entry("the same by position")
    cost: PerplexityCost = entry("what it cost")


@dataclass(frozen=True, kw_only=True)
class PerplexityScores:
    """`scores.json` of a measurement of perplexity."""

    results: list[PerplexityResult] = entry("one a task and length")


# ---------------------------------------------------------------------------------------------------------------------
# Placement


@dataclass(frozen=True, kw_only=True)
class PlacementIdentity:
    """Settings that a resumed search must share."""

    model: ModelRecord = entry("what pins the weights")
    dtype: str = entry("dtype of the computation")
    maxlen: int = entry("tokens of a document", rule=LENGTH)
    score_from: int = entry("first token whose loss counts", rule=COUNT)
    trust_remote_code: bool = entry("run code that comes with the checkpoint", default=False)
    threads: int | None = entry("torch threads of each process", default=None, rule=COUNT)
    placement_version: int = entry("raised when the code changes what is measured")


@dataclass(frozen=True, kw_only=True)
class PlacementRecord:
    """`run.json` of a run of `eval/placement.py`."""

    config: dict[str, Any] = entry("settings of the last command, defaults filled in", rule=CONFIG)
    plan_description: str = entry("always `untouched`", default="untouched")
    world_size: int | None = entry("processes of the last session", rule=COUNT)
    identity: PlacementIdentity = entry("settings that a resumed search must share")
    tasks: dict[str, DocumentsTask] = entry("what was read of each task")
    sessions: list[Session] = entry("every launch that measured", rule=NOT_EMPTY)
    checksums: bool = entry("whether each line of the folder's `.jsonl` files must have a checksum", default=False)


@dataclass(frozen=True, kw_only=True)
class PlanLoss:
    """A line of `predictions.jsonl` of a search: one document under one plan, or the gradients of its gates."""

    task: str = entry("name of the task; held-out documents have a mark after it")
    template: str = entry("text form of the plan, or what the gradients are of")
    id: str = entry("name of the document")
    maxlen: int = entry("tokens of the document", rule=LENGTH)
    negative_log_likelihood: float | None = entry(
        "sum over the tokens that count, in nats", default=None, is_left_out=True
    )
    gradients: list[list[float]] | None = entry(
        "derivative of the loss by the gate of each layer and key/value head", default=None, is_left_out=True
    )

    @property
    def key(self) -> Key:
        """Return what names the measurement within its folder."""
        return self.task, self.template, self.id, self.maxlen


@dataclass(frozen=True, kw_only=True)
class PlanMeasurement:
    """A line of `measurements.jsonl`: the loss of one document under one plan."""

    part: Literal["calibration", "held-out"] = entry("whether the document calibrates or judges")
    task: str = entry("name of the task")
    id: str = entry("name of the document")
    plan: str = entry("text form of the plan")
    negative_log_likelihood: float = entry("sum over the tokens that count, in nats")
    num_tokens: int = entry("tokens that count", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What a layer or a key/value head is worth alone."""

    unit: str = entry("`LAYER` or `LAYER.HEAD`")
    layer: int = entry("index of the layer", rule=COUNT)
    head: int | None = entry("index of the key/value head", rule=COUNT)
    only_full: float = entry("nats a token gained when this unit alone is full, or the slope of its gate")
    only_local: float | None = entry("nats a token lost when this unit alone is local")


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """A plan that was measured; `--plan` takes a file that holds one."""

    text: str = entry("text form of the plan")
    plan: list[Any] = entry("span of each layer")
    units: list[str] = entry("units with full attention")
    loss: float = entry("nats a token")
    perplexity: float = entry("exp(loss)")
    cost: dict[str, float] = entry("layers, and cache and attention operations relative to full attention")


@dataclass(frozen=True, kw_only=True)
class FoldRecord:
    """What the search found on the documents of one fold."""

    num_documents: int = entry("documents", rule=COUNT)
    chosen: PlanEntry = entry("the best within the budget, with its loss on these documents")


@dataclass(frozen=True, kw_only=True)
class UnitCount:
    """How often a layer or a key/value head was chosen."""

    unit: str = entry("`LAYER` or `LAYER.HEAD`")
    num_folds: int = entry("folds whose search chose it", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class StabilityRecord:
    """Whether searches on different documents find the same units."""

    folds: list[FoldRecord] = entry("one a fold")
    jaccard: list[float] = entry(
        "share of the units of a pair of folds that both chose: of folds 1 and 2, 1 and 3, and so on"
    )
    median_jaccard: float = entry("median over the pairs")
    chance_jaccard: float = entry("mean over the pairs that random choices of the same sizes would have")
    units: list[UnitCount] = entry("units that were chosen, most often first")
    majority: PlanEntry | None = entry(
        "units that at least half of the folds chose, with their loss on all calibration documents; null: none"
    )
    is_within_budget: bool | None = entry("whether the majority keeps the budget")


@dataclass(frozen=True, kw_only=True)
class PerplexityRatio:
    """Perplexity under a second plan over that under a first, on the same documents."""

    ratio: float = entry("second over first")
    low: float | None = entry("lower end of the 95% interval")
    high: float | None = entry("upper end of the 95% interval")
    detectable: float | None = entry(
        "smallest ratio that so many documents show with power 0.8, at the level of the table"
    )
    num_documents: int = entry("documents, or clusters of them", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A plan on the held-out documents."""

    name: str = entry("name of the plan")
    plan: str = entry("text form of the plan")
    num_documents: int = entry("documents", rule=COUNT)
    perplexity: float = entry("exp(loss a token)")
    low: float | None = entry("lower end of the 95% interval")
    high: float | None = entry("upper end of the 95% interval")
    to_full: PerplexityRatio | None = entry("relative to the plan `full`")
    cost: dict[str, float] = entry("layers, and cache and attention operations relative to full attention")


@dataclass(frozen=True, kw_only=True)
class PlacementResult:
    """`placement.json`."""

    units: str | None = entry("`layers` or `heads`", default=None)
    local: str | None = entry("span of what is not full", default=None)
    budget: str | None = entry("what a plan may cost", default=None)
    rank: str = entry("how units were ranked: `scan`, `gates` or `none`", default="none")
    cost_at: int | None = entry("tokens at which costs are counted", default=None, rule=COUNT)
    scores: list[UnitRecord] = entry("what each unit is worth alone", default=[])
    found: list[PlanEntry] = entry("all plans that were measured on the calibration documents", default=[])
    frontier: list[PlanEntry] = entry("those that no other beats in both loss and attention", default=[])
    chosen: PlanEntry | None = entry("the best within the budget", default=None)
    stability: StabilityRecord | None = entry("what folds of the documents find", default=None, is_left_out=True)
    held_out: list[HeldOutRow] = entry("plans on the held-out documents", default=[])
    held_out_cost_at: int | None = entry("tokens at which their costs are counted", default=None, rule=COUNT)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What a training did with one task."""

    source: dict[str, Any] = entry("provenance of the data")
    split: str = entry("split of the data set")
    version: int = entry("raised when examples or prompts change")
    prompt_sha256: str = entry("digest of the rendered template")


@dataclass(frozen=True, kw_only=True)
class TrainingIdentity:
    """Settings that a resumed training must share."""

    task: list[str] = entry("names of the tasks")
    model: ModelRecord = entry("what pins the weights it began with")
    plan: list[Any] | None = entry("span of each layer")
    dtype: str = entry("dtype of the computation; weights are float32")
    objective: str = entry("`target` or `lm`")
    distill: float | None = entry(
        "share of the loss that is the divergence from the teacher", default=None, is_left_out=True, rule=SHARE
    )
    teacher_plan: str | None = entry(
        "spans of the teacher, which is the model it began with; `untouched` by a plan", default=None, is_left_out=True
    )
    maxlen: int = entry("most tokens of a sequence", rule=LENGTH)
    limit: int | None = entry("first N examples", rule=COUNT)
    sample: int | None = entry("N documents, drawn", default=None, is_left_out=True, rule=POSITIVE)
    sample_seed: int | None = entry("seed of the drawing", default=None, is_left_out=True, rule=COUNT)
    held_out: float = entry("share of the documents that is held out")
    held_out_limit: int | None = entry("most held-out sequences that an evaluation reads", rule=COUNT)
    truncation: str = entry("part of the context that is kept")
    extend_positions: str | None = entry("how positions beyond the trained ones are made")
    schedule: str = entry("learning rate after the warm-up")
    min_words: int | None = entry("documents with fewer words are left out", default=None, rule=COUNT)
    weight_decay: float = entry("weight decay of AdamW")
    max_grad_norm: float = entry("norm to which gradients are clipped")
    gradient_checkpointing: bool = entry("compute activations again in the backward pass")
    lora_rank: int = entry("0 trains all weights", rule=COUNT)
    seed: int = entry("seed of order, dropout, new weights and held-out documents")
    batch_size: int = entry("rows of a forward pass of one process", rule=COUNT)
    lora_alpha: int = entry("scale of the adapters", rule=COUNT)
    lora_targets: list[str] = entry("modules with adapters")
    learning_rate: float = entry("highest learning rate")
    warmup_steps: int = entry("steps over which it rises", rule=COUNT)
    total_steps: int = entry("optimizer steps", rule=COUNT)
    step_rows: int = entry("rows of a step, all processes together", rule=COUNT)
    packing: bool = entry("several short documents in a row")
    threads: int = entry("torch threads of each process", rule=COUNT)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """`run.json` of a training."""

    config: dict[str, Any] = entry("settings of the last command, defaults filled in", rule=CONFIG)
    plan_description: str = entry("text form of the plan, or `untouched`")
    identity: TrainingIdentity = entry("settings that a resumed training must share")
    tasks: dict[str, TrainingTask] = entry("what pins the data and the prompt of each task", rule=NAMES)
    num_train_examples: int = entry("examples that are trained on", rule=COUNT)
    num_held_out_examples: int = entry("examples that are held out", rule=COUNT)
    held_out_documents: dict[str, list[str]] = entry("documents that are held out, by task", default={})
    num_held_out_rows: int | None = entry("held-out rows that an evaluation reads", default=None, rule=COUNT)
    num_trainable: int | None = entry("numbers that are trained", default=None, rule=COUNT)
    num_parameters: int | None = entry("numbers of the model", default=None, rule=COUNT)
    peak_bytes: int | None = entry("most memory", default=None, rule=COUNT)
    sessions: list[Session] = entry("every launch that trained", default=[])
    template_date: str | None = entry(
        "what the clock of the chat template shows, where it has one", default=None, is_left_out=True
    )
    checksums: bool = entry("whether each line of the folder's `.jsonl` files must have a checksum", default=False)


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A line of `steps.jsonl`."""

    step: int = entry("number of the step, from 1", rule=COUNT)
    loss: float = entry("negative log likelihood, nats a target token")
    kl_divergence: float | None = entry("KL(teacher, model), nats a target token", default=None, is_left_out=True)
    mixture: float | None = entry(
        "(1 - distill) x loss + distill x kl_divergence, which is trained on", default=None, is_left_out=True
    )
    grad_norm: float | None = entry("norm of the gradients before clipping")
    learning_rate: float = entry("learning rate of the step")
    num_tokens: int = entry("tokens of the step", rule=COUNT)
    num_targets: int = entry("tokens whose loss counts", rule=COUNT)
    seconds: float = entry("seconds of the step", rule=SECONDS)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A line of `evals.jsonl`."""

    step: int = entry("step after which it was measured; 0 is before the first", rule=COUNT)
    loss: float = entry("negative log likelihood, nats a held-out target token")
    kl_divergence: float | None = entry(
        "KL(teacher, model), nats a held-out target token", default=None, is_left_out=True
    )
    mixture: float | None = entry(
        "(1 - distill) x loss + distill x kl_divergence, by which the best is chosen", default=None, is_left_out=True
    )
    perplexity: float | None = entry("exp(loss); null beyond what a float holds")
    num_targets: int = entry("tokens whose loss counts", rule=COUNT)
    seconds: float = entry("seconds of the evaluation", rule=SECONDS)

    @property
    def trained_on(self) -> float:
        """Return the loss that the training lowers."""
        return self.loss if self.mixture is None else self.mixture


# ---------------------------------------------------------------------------------------------------------------------
# Studies


@dataclass(frozen=True, kw_only=True)
class StudyPart:
    """A part of a study that has ended."""

    command: str = entry("command that made it")
    digest: str = entry("digest of its settings and of those of the parts it needs")
    finished: str = entry("when its last session ended, UTC")
    needs: dict[str, str | None] = entry("when each part that it needs had ended", default={})


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """`study.json`."""

    title: str = entry("title of the report", default="")
    file: str = entry("file of the study", default="")
    parts: dict[str, StudyPart] = entry("parts that have ended, by name")


@dataclass(frozen=True, kw_only=True)
class StudyClaim:
    """What a study claims of one of its parts."""

    name: str = entry("name of the claim")
    text: str = entry("a sentence for readers", default="", is_left_out=True)
    part: str = entry("part that it is about")
    against: str = entry("what that stands beside: another part, or a length of its own")
    metric: str = entry("metric of the scores, or `perplexity`")
    direction: Literal["better", "worse", "as-good", "differs"] = entry("what the part is beside the other")
    margin: float | None = entry(
        "loss up to which it is as good: a fraction of the score's range, or of the perplexity; null for others",
        default=None,
        rule=SHARE,
    )
    maxlen: int = entry("length in tokens", rule=LENGTH)
    task: str | None = entry("name of the task, where parts have several", default=None, is_left_out=True)
    template: str | None = entry("name of the prompt, where parts have several", default=None, is_left_out=True)

    @property
    def against_length(self) -> int | None:
        """Return the length of the part that the claim's own is compared with; None beside another part."""
        return int(self.against) if self.against.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class RegisteredClaim:
    """A wording of a claim, and when it was written down."""

    claim: StudyClaim = entry("what is claimed")
    settings: dict[str, str] = entry("digests of the settings of its parts at that time, by name", default={})
    sha256: str = entry("digest of the claim and of these")
    recorded: str = entry("UTC, ISO 8601", rule=TIME)
    begun: list[str] = entry("parts that had begun by then; none of a claim that was made beforehand", default=[])
    withdrawn: str | None = entry("when the study was found to claim this no more", default=None)


@dataclass(frozen=True, kw_only=True)
class ClaimsRecord:
    """`claims.json`."""

    claims: list[RegisteredClaim] = entry("every wording since the first part began, in order")


# ---------------------------------------------------------------------------------------------------------------------
# Leaderboards


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    """A run at one template and length."""

    run: str = entry("folder of the run, as seen from the folder that is ranked")
    model: str = entry("the model")
    plan: str = entry("text form of the plan")
    dtype: str = entry("dtype of the computation")
    engine: str | None = entry(
        "what answered, where it was not the `local` engine with a decoder", default=None, is_left_out=True
    )
    template: str = entry("name of the prompt")
    maxlen: int = entry("length in tokens", rule=LENGTH)
    settings: dict[str, Any] = entry("other settings of the answers")
    num_examples: int = entry("examples", rule=COUNT)
    num_documents: int = entry("documents", rule=COUNT)
    num_clusters: int | None = entry(
        "what intervals resample, where documents are in clusters", default=None, is_left_out=True, rule=COUNT
    )
    num_truncated: int = entry("examples whose context was cut", rule=COUNT)
    words: float | None = entry("words of a text, in the median", default=None, is_left_out=True, rule=COUNT)
    num_ended_by_length: int | None = entry(
        "answers that used up their room; null for baselines", default=None, is_left_out=True, rule=COUNT
    )
    num_samples: int | None = entry(
        "answers to each prompt, where there are several", default=None, is_left_out=True, rule=POSITIVE
    )
    flaws: dict[str, int] | None = entry(
        "how many answers have which flaw; null for baselines, and in folders of earlier versions",
        default=None,
        is_left_out=True,
    )
    metrics: dict[str, Estimate] = entry("scores by metric, as fractions")
    evidence_visible: Share | None = entry("share of the gold evidence that was shown")
    useful_length: UsefulLength | None = entry(
        "how much context is of use to the run, where it has several lengths", default=None, is_left_out=True
    )
    cost: Cost | None = entry("what the predictions cost")
    further: dict[str, Share] | None = entry(
        "means of further metrics that the rows of the board share, by `NAME.VALUE`", default=None, is_left_out=True
    )
    yardsticks: dict[str, dict[str, Estimate]] = entry("scores of the baselines, by name and metric")
    rank: int = entry("1 is the highest mean; equal means share a rank", default=0, rule=COUNT)
    rank_range: list[int] | None = entry(
        "first and last rank that the row may have: one more than the rows shown to be better, and all but those shown "
        "to be worse",
        default=None,
        is_left_out=True,
    )
    is_best: bool = entry("whether no row has a higher mean", default=False)
    is_within_margin: bool = entry("whether the row is shown to be within the margin of the best", default=False)
    is_on_frontier: bool = entry("whether no row is both better and cheaper", default=False)


@dataclass(frozen=True, kw_only=True)
class Board:
    """The rows of one task, on the same examples."""

    task: str = entry("name of the task")
    profile: str = entry("metrics")
    metric: str = entry("metric that ranks")
    description: str = entry("source -> target")
    version: int = entry("version of the task")
    split: str = entry("split of the data set")
    num_runs: int = entry("runs", rule=COUNT)
    num_examples: int = entry("examples", rule=COUNT)
    num_documents: int = entry("documents", rule=COUNT)
    is_one_machine: bool = entry("whether all rows were measured in one place")
    notes: list[str] = entry("what to know before comparing rows")
    further: dict[str, ValueRecord] | None = entry(
        "what values of further metrics can be, by `NAME.VALUE`", default=None, is_left_out=True
    )
    rows: list[BoardRow] = entry("best first")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is not ranked."""

    run: str = entry("folder of the run")
    task: str | None = entry("task that is left out; null for all")
    reason: str = entry("why")


@dataclass(frozen=True, kw_only=True)
class RankedRun:
    """What made the rows of a run."""

    run: str = entry("folder of the run")
    model: str = entry("the model")
    weights: dict[str, Any] = entry("revision, or digests of the files")
    plan: str = entry("text form of the plan")
    dtype: str = entry("dtype of the computation")
    machines: list[str] = entry("what its sessions ran on")
    commits: list[str | None] = entry("commits of its sessions")
    commands: list[str] = entry("commands of its sessions")


@dataclass(frozen=True, kw_only=True)
class ScrollsRow(ScrollsEntry):
    """The SCROLLS score of a system at one length and set of templates."""

    model: str = entry("the model")
    plan: str = entry("text form of the plan")
    dtype: str = entry("dtype of the computation")
    runs: list[str] = entry("folders of the runs that answered the tasks")


@dataclass(frozen=True, kw_only=True)
class ScrollsMissing:
    """What keeps a system from a SCROLLS score."""

    runs: list[str] = entry("folders of the system's runs")
    missing: list[str] = entry("what is missing, in words")
    has_scores: bool = entry("whether it has a score at some length")


@dataclass(frozen=True, kw_only=True)
class ScrollsBoard:
    """The ranking by the SCROLLS score."""

    rows: list[ScrollsRow] = entry("best first")
    missing: list[ScrollsMissing] = entry("systems without a score, or not everywhere")


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """`leaderboard.json`."""

    margin: float = entry("loss up to which a row is as good as the best, as a fraction")
    cost: str = entry("cost against which the frontier is drawn")
    scoring_version: int = entry("raised when the code changes what a score is")
    boards: list[Board] = entry("one a task")
    scrolls_score: ScrollsBoard | None = entry("null where no system has two tasks of SCROLLS", default=None)
    left_out: list[LeftOut] = entry("runs that are not ranked")
    runs: list[RankedRun] = entry("runs that are ranked")
