"""The engine of this suite: transformers with masformer's attention, shared prefills, batches.

Processes take the next group of prompts by making a file in the run folder, so that none waits for another. A group's
prompts form a tree; each edge is prefilled once, and rows decode together, in a stream or in batches. What was
interrupted is decoded again whole, with the rows that are written already, so that a resumed run computes what an
undisturbed one does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.answer import Answer, set_end_tokens
from eval.generation.backend import Backend, check_embeddings, start_for
from eval.generation.claims import Claims
from eval.generation.forecast import describe_plan
from eval.generation.groups import DocumentPrompts, Group, ModelSize, Size, deal, form_groups, measure
from eval.generation.progress import Progress, duration
from eval.generation.requests import Request, Requests
from eval.generation.thinking import find_thinking
from eval.generation.tree_decoder import Observer, TreeDecoder
from eval.prompting.chat import ChatTemplate
from eval.prompting.ends import Ends, find_ends
from eval.records.schema import Grouping, Prediction, Sample
from eval.runtime.memory import memory_budget, peak_bytes, reset_peak
from eval.runtime.model import TORCH_DTYPES, OpenedModel, describe_weights, open_model, suggested_ends
from eval.runtime.processes import AcceleratedProcess
from masformer import fixed_frequencies
from masformer.errors import ConversionError, NumbersError
from masformer.hardware import dtype_name
from masformer.loss import check_head

Answered = Callable[[PreTrainedModel, Request, Callable[[], Cache]], None]


def open_local(config: RunConfig) -> LocalBackend:
    """Return the engine for the kind of the model, with everything checked that needs no weights.

    Raises:
        UserError: A setting does not fit the launch or the model.
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan is malformed, or does not fit the model.
    """
    from eval.generation.encoder_decoder import EncoderDecoderBackend  # which shares most of this one

    process = start_for(config, needs_torch=True)
    assert isinstance(process, AcceleratedProcess)
    if config.device_map and process.count > 1:
        raise UserError(
            f"--device-map {config.device_map} is one model over all devices, and {process.count} processes"
            " would each have one; launch one process"
        )
    torch.manual_seed(config.seed)
    opened = open_model(config, config.plan, process, max(config.maxlen), keeps_full=True, takes_encoder_decoders=True)
    kind = EncoderDecoderBackend if opened.checkpoint.config.is_encoder_decoder else LocalBackend
    return kind(config, opened)


class LocalBackend(Backend):
    """Runs a decoder in the processes of this launch.

    Args:
        config: Settings of the run.
        opened: The model, checked and without weights.
    """

    process: AcceleratedProcess
    ends: Ends
    # Called with the model, each request that was answered, and what returns a cache of its prompt but for its end.
    answered: Answered | None = None

    def __init__(self, config: RunConfig, opened: OpenedModel) -> None:
        self.config = config
        self.process = opened.process
        self.opened = opened
        self.tokenizer = self.opened.checkpoint.tokenizer
        self.model, self.dtype = self.opened.record, self.opened.dtype
        self.plan, self.plan_description = self.opened.plan_json, self.opened.plan_description
        checkpoint = self.opened.checkpoint
        self.quantization = checkpoint.quantization
        chat = ChatTemplate(self.tokenizer, config.chat_settings())
        self.ends = find_ends(self.tokenizer, suggested_ends(checkpoint), chat)
        self.thinking = find_thinking(config, self.tokenizer, chat, self.ends)
        self._measured_of: tuple[object, list[DocumentPrompts]] = (None, [])

    @cached_property
    def size(self) -> Size:
        """Return what tokens cost the model."""
        trusts = self.config.trust_remote_code
        return ModelSize(
            self.opened.checkpoint.config, self.opened.plan, self.opened.itemsize, trust_remote_code=trusts
        )

    def describe_model(self) -> str:
        return describe_weights(self.opened.checkpoint)

    def grouping(self, saved: Grouping | None) -> Grouping:
        """Return the batching settings: of the command line, else of the saved run, else for this machine."""
        chosen = saved or Grouping(
            num_shares=self.process.count,
            batch_size=64 if self.process.device_type == "cuda" else 16,
            memory_budget=memory_budget(
                self.process.device,
                self.size.num_weights * self.opened.itemsize,
                TORCH_DTYPES[self.dtype],
                os.environ,
                self.config.device_map,
            ),
        )
        # Machines may differ, in memory and in what they see of the folder; the groups must not.
        chosen = self.process.broadcast(chosen)
        if self.config.batch_size is not None:
            chosen = replace(chosen, batch_size=self.config.batch_size)
        if self.config.memory_budget is not None:
            chosen = replace(chosen, memory_budget=int(self.config.memory_budget * 2**30))
        return chosen

    def check(self, requests: Requests) -> None:
        """Raise `CheckpointError` for a text with tokens that the model has no embedding for."""
        check_embeddings(requests, self.opened.checkpoint)

    def share(self, requests: Requests, part: int, num_parts: int) -> Requests:
        """Return the requests of one of several jobs: documents by cost, whatever the machine."""
        mine = {key for unit in deal(self._measured(requests), part - 1, num_parts) for key in unit.keys}
        # What is finished was dealt to some job then, and belongs to the one whose folder has it.
        return replace(requests, part=mine | {key for key in requests.fingerprints if requests.is_finished(key)})

    def forecast(self, requests: Requests) -> str:
        dtype = TORCH_DTYPES[self.dtype]
        return describe_plan(
            self._groups(requests),
            requests,
            self.size,
            dtype,
            self.process,
            measures_references=self.config.likelihood,
        )

    def answer(self, requests: Requests, shared: Path) -> Iterator[Prediction]:
        groups = self._groups(requests)
        missing = [group for group in groups if any(key not in requests.existing for key in group.keys)]
        missing.sort(key=lambda group: (-group.cost, group.index))
        claims = Claims(shared, missing)  # checks that all processes see the folder, before weights load
        progress = Progress(claims, self.size, self.process)
        decoder = self.decoder(self._loaded, progress, "--memory-budget or --batch-size")
        if self.answered is not None:
            try:
                check_head(self._loaded)
            except ConversionError as error:
                raise UserError(f"--likelihood: {error}; leave it out") from error
        answering = _Answering(self._loaded, decoder, self.size, requests.existing, claims, progress, self.answered)
        yield from answering.run()

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        """Return the model with its weights, which one session loads once."""
        model = self.opened.load(self.config.device_map)
        set_end_tokens(model, self.ends.token_ids)
        return model

    def decoder(self, model: PreTrainedModel, observer: Observer, hint: str) -> TreeDecoder:
        """Return what decodes prompts; arguments as those of `TreeDecoder`."""
        return TreeDecoder(model, self.tokenizer, observer, hint, self.config.draft_tokens)

    def _measured(self, requests: Requests) -> list[DocumentPrompts]:
        """Return the prompts by document; those of the same documents are measured once."""
        if self._measured_of[0] is not requests.sources:
            self._measured_of = requests.sources, measure(requests, self.size, is_silent=not self.process.is_main)
        return self._measured_of[1]

    def _groups(self, requests: Requests) -> list[Group]:
        units = self._measured(requests)
        if requests.part is not None:
            units = [unit for unit in units if unit.keys[0] in requests.part]
        return form_groups(units, requests.grouping)


class _Answering:
    """Answers groups with one model, one after the other."""

    def __init__(
        self,
        model: Any,
        decoder: TreeDecoder,
        size: Size,
        existing: Any,
        claims: Claims,
        progress: Progress,
        answered: Answered | None,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.size = size
        self.existing = existing
        self.claims = claims
        self.progress = progress
        self.answered = answered

    def run(self) -> Iterator[Prediction]:
        """Yield predictions until no group is left to take, as `TreeDecoder.decode` does."""
        is_warm = False
        with self.progress.bar:
            for group in self.claims.take():
                if not is_warm:
                    self.decoder.warm_up()
                    is_warm = True
                yield from self._answer(group)

    def _answer(self, group: Group) -> Iterator[Prediction]:
        started = time.monotonic()
        by_prompt: dict[tuple[int, ...], list[Request]] = {}
        for request in group.requests():
            by_prompt.setdefault(request.prompt.token_ids, []).append(request)
        prompts, askers = list(by_prompt), list(by_prompt.values())
        tree = self.size.tree(prompts)

        def fits(leaves: Sequence[int]) -> bool:
            ends = [tree.ends[leaf] for leaf in leaves]
            return self.size.num_bytes(ends, group.settings.room, group.settings.num_rows) <= group.memory_budget

        batches = [
            batch
            for batch in self.decoder.batches(tree.order, group.settings, group.num_rows, fits)
            if self._is_missing(batch, askers)
        ]
        caches = self.decoder.caches(tree, [leaf for batch in batches for leaf in batch])
        num_samples = group.settings.num_samples
        num_written, num_requested, num_prefilled = 0, 0, 0
        # All prompts of a group have the same frequencies.
        with fixed_frequencies(self.model, len(prompts[0])):
            for batch in batches:
                reset_peak(self.model.device)
                answered = self.decoder.decode(batch, prompts, caches, group.settings, group.num_rows, fits)
                for leaves, answers in self._named(answered, prompts, askers):
                    peak = peak_bytes(self.model.device)
                    for index, leaf in enumerate(leaves):
                        samples = answers[index * num_samples : (index + 1) * num_samples]
                        prefill_seconds = caches.seconds(leaf) + sum(one.prefill_seconds for one in samples)
                        for copy, request in enumerate(askers[leaf]):
                            prefilled = 0 if copy else caches.num_prefilled.get(leaf, 0) + 1
                            num_prefilled += prefilled
                            num_requested += len(request.prompt.token_ids)
                            if request.key not in self.existing:
                                line = self._line(group, request, samples, prefill_seconds)
                                yield replace(line, prefilled_tokens=prefilled, peak_bytes=peak)
                                num_written += 1
                                if self.answered is not None:
                                    self.answered(self.model, request, partial(caches.take, leaf))
                                    reset_peak(self.model.device)
                    caches.release(leaves)
        self.claims.finish(group)
        self.progress.finish(
            group,
            f"{len(group.units)} document(s), {num_written} predictions, {num_prefilled:,} tokens prefilled of "
            f"{num_requested:,} asked for ({num_prefilled / num_requested:.2f}), "
            f"{duration(time.monotonic() - started)}",
        )

    def _named(
        self,
        answered: Iterator[tuple[Sequence[int], list[Answer]]],
        prompts: Sequence[Sequence[int]],
        askers: Sequence[Sequence[Request]],
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Yield answers; an error about logits names the document."""
        try:
            yield from answered
        except NumbersError as error:
            task, template, example_id, maxlen = askers[error.row][0].key
            raise NumbersError(
                f"the logits on document '{example_id}' of task '{task}' (template '{template}', maxlen {maxlen}, a "
                f"prompt of {len(prompts[error.row]):,} tokens)",
                dtype_name(self.model.dtype),
            ) from error

    def _is_missing(self, batch: Sequence[int], askers: Sequence[Sequence[Request]]) -> bool:
        return any(request.key not in self.existing for leaf in batch for request in askers[leaf])

    def _line(self, group: Group, request: Request, samples: Sequence[Answer], prefill_seconds: float) -> Prediction:
        seconds, drafted = sum(one.seconds for one in samples), sum(one.num_drafted for one in samples)
        return request.prediction(
            [
                Sample(
                    text=one.text,
                    num_generated_tokens=len(one.token_ids),
                    finish_reason=one.finish_reason,
                    thought=one.thought,
                    num_thought_tokens=one.num_thought_tokens,
                    thought_finish_reason=one.thought_finish_reason,
                )
                for one in samples
            ],
            seconds=prefill_seconds + seconds,
            prefill_seconds=prefill_seconds,
            decode_seconds=seconds,
            batch_size=samples[0].batch_size,
            group=group.index,
            cache_bytes=samples[0].cache_bytes,
            drafted_tokens=drafted or None,
            accepted_tokens=sum(one.num_accepted for one in samples) if drafted else None,
            attention_flops=self.decoder.attention_flops(
                len(request.prompt.token_ids), [len(one.token_ids) for one in samples]
            ),
        )
