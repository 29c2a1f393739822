"""What answers requests. A new engine is a file here and a line in `ENGINES` of eval/config/engine.py.

    backend = open_backend(config)  # checks the model and its settings; loads no weights
    for prediction in backend.answer(requests, shared):
        ...

Requests are token ids; a cost that an engine cannot know is None.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config.claim import CLAIM_OPTIONS
from eval.config.engine import ENGINES, FREE_ENGINE_OPTIONS
from eval.config.generation import ThinkingSettings
from eval.config.run import RunConfig
from eval.generation.requests import PromptSource, Request, Requests
from eval.prompting.ends import Ends
from eval.records.run_folder import default_output
from eval.records.schema import Grouping, ModelRecord, Prediction
from eval.reporting.trackers import check_trackers
from eval.runtime.processes import Process, check_launch, num_processes, num_threads, start_accelerated

if TYPE_CHECKING:
    from masformer.checkpoints.open import Checkpoint


class Backend(ABC):
    """An engine, with what it was asked to run.

    Attributes:
        process: This process; the engine starts it, since it decides what it runs on.
        tokenizer: Tokenizer of the model, with the interface of transformers'.
        model: What pins the weights.
        plan: Span of each layer, JSON-ready; None for an engine that has its own attention.
        plan_description: Text form of the plan.
        dtype: dtype of the computation.
        is_encoded: An encoder reads the prompts: they end as its tokenizer ends a text, are by default the document
            alone, and `maxlen` counts them and not the answer.
        ends: What ends an answer; None for an engine without end tokens.
        thinking: How thoughts are told from answers; None where all text is the answer.
        identity: Further settings that a resumed run must share; None where there are none.
        quantization: Method and bits of the loaded weights; None for plain ones.
        server: Which server answers: name, version, address, and the command that started it.
        remarks: What people should know of the engine, in lines.
    """

    process: Process
    tokenizer: Any
    model: ModelRecord
    plan: list[Any] | None = None
    plan_description = "untouched"
    is_encoded = False
    dtype: str
    ends: Ends | None = None
    thinking: ThinkingSettings | None = None
    identity: dict[str, Any] | None = None
    quantization: str | None = None
    server: dict[str, Any] | None = None
    remarks: Sequence[str] = ()

    @abstractmethod
    def answer(self, requests: Requests, shared: Path) -> Iterator[Prediction]:
        """Yield a prediction for each missing request that falls to this process, as soon as it is made.

        Args:
            requests: All requests, the same in all processes; `requests.missing()` are those without an answer.
            shared: Empty folder that all processes of this session see, for sharing the work.
        """

    def kept(self) -> AbstractContextManager[None]:
        """Keep what answers, once it is there, for all calls of `answer`, which are made in this block."""
        return nullcontext()

    def grouping(self, saved: Grouping | None) -> Grouping:
        """Return what groups of prompts depend on, recorded so that a resumed run forms the same groups.

        Args:
            saved: What the folder has; None for a new one.
        """
        return saved or Grouping(num_shares=self.process.count, batch_size=1, memory_budget=0)

    def check(self, requests: Requests) -> None:  # noqa: B027  an engine may have nothing to check
        """Raise an error that a user can mend for texts that the model cannot read; before the folder is written."""

    def share(self, requests: Requests, part: int, num_parts: int) -> Requests:
        """Return the requests of one of several independent jobs.

        Args:
            requests: All requests of the run.
            part: Number of the job, from 1.
            num_parts: Count of the jobs.
        """
        mine = requests.sources[part - 1 :: num_parts]
        return replace(requests, part=frozenset(key for source in mine for key in source.fingerprints))

    def describe_model(self) -> str:
        """Return what pins the weights, for people."""
        return self.model.reference

    def forecast(self, requests: Requests) -> str:
        """Return what a run would do and take, for `--dry-run`."""
        return f"{requests.num_missing:,} predictions to make; this engine predicts no time and no memory"


def open_backend(config: RunConfig) -> Backend:
    """Return the engine that the settings name, with everything checked that needs no weights.

    Raises:
        UserError: The model or a setting does not fit.
    """
    module, _, name = ENGINES[config.engine].partition(":")
    backend: Backend = getattr(importlib.import_module(module), name)(config)
    return backend


def start_for(config: RunConfig, *, needs_torch: bool) -> Process:
    """Return this process; an engine without torch needs accelerate for several processes and for trackers alone.

    Args:
        config: Settings of the run.
        needs_torch: Whether the engine runs a model here.
    """
    check_launch(os.environ)
    if not (needs_torch or config.report_to or num_processes(os.environ) > 1):
        return Process(config.threads or num_threads(os.environ))
    check_trackers(config.report_to)
    return start_accelerated(
        config.threads, log_with=list(config.report_to) or None, project_dir=str(output_of(config))
    )


def output_of(config: RunConfig) -> Path:
    """Return the run folder: the one that is named, or a name from the settings."""
    if config.output is not None:
        return config.output
    free = [
        *("maxlen", "template", "window", "limit", "sample", "on_bad_row", "output", "overwrite", "dry_run"),
        *("batch_size", "memory_budget", "shard", "device_map", "texts", "report_to", "think_end_token"),
        *("accept_ascii_words", "draft_tokens", "generate", "likelihood", "until"),
        *CLAIM_OPTIONS,
        *FREE_ENGINE_OPTIONS,
    ]
    named = replace(config, model=config.engine) if config.engine == "mock" else config
    folder = default_output("", named, (*free, *config.unknown_to_0_1))
    return folder.with_name(f"{folder.name}-shard-{config.shard[0]}-of-{config.shard[1]}") if config.shard else folder


def check_embeddings(requests: Requests, checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for a text with tokens that the model has no embedding for."""
    if not checkpoint.has_tokens_beyond:
        return
    for source in requests.sources:
        for example in source.examples:
            where = f"document '{example.id}' of task '{source.task}'"
            checkpoint.check_text(f"{example.context}\n{example.query or ''}", where)
        for request in source.requests():
            where = f"the prompt about document '{request.key[2]}' of task '{request.key[0]}'"
            checkpoint.check_tokens(request.prompt.token_ids, where)


def share_by_turns(requests: Requests, process: Process) -> Iterator[Request]:
    """Yield the missing requests of this process: every n-th document of n processes, of those with any."""
    for source in sources_by_turns(requests, process):
        yield from requests.missing(source)


def sources_by_turns(requests: Requests, process: Process) -> list[PromptSource]:
    """Return the documents with missing requests that fall to this process."""
    open_sources = [source for source in requests.sources if not requests.existing >= source.fingerprints.keys()]
    return open_sources[process.index :: process.count]
