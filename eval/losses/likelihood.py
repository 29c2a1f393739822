"""The likelihood of references after the prompts of a run, by its model: whether it uses what it is shown.

    for line in measure_likelihood(requests, backend, seen):
        append_line(journal, line)

Nothing is decoded: the tokens of a reference follow the prompt as an answer would, and each is predicted from all that
stands before it. The prompts of a document share their prefill (`eval.generation.prompt_tree`); each reference goes
through the model on a fork of what its prompt has filled. Of a reference as many tokens count as an answer has room
for, so that prompt and reference are within `maxlen`, and the tokens are the same at all lengths.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from eval.errors import UserError
from eval.generation.backend import Backend
from eval.generation.local import LocalBackend
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.generation.requests import Request, Requests
from eval.losses.windows import losses_of
from eval.records.journal import append_line
from eval.records.schema import Key, MetricLine, MetricRecord, ReferenceLoss, ValueRecord
from eval.scoring.ladder import LIKELIHOOD, LIKELIHOOD_READS, NLL, likelihood_item
from eval.scoring.metric_files import open_metric_file, open_pending, take_pending
from masformer import fixed_frequencies
from masformer.attention.prefill import fork
from masformer.errors import NumbersError, is_out_of_memory
from masformer.loss import check_head

REMEDY = "see the other rungs with --no-likelihood"
# Raised by hand whenever a change of the code changes what is measured.
_VERSION = 1


def check_backend(backend: Backend, *, lets_think: bool) -> None:
    """Raise `UserError` for the engine of a run that cannot measure likelihoods.

    Args:
        backend: The engine.
        lets_think: The run lets its model think before it answers.
    """
    if backend.is_encoded:
        raise UserError(f"likelihoods are of decoders, and the model of this run is an encoder-decoder; {REMEDY}")
    if lets_think:
        raise UserError(
            f"this run lets its model think before it answers, and no reference comes with a thought; {REMEDY}"
        )


def likelihood_record(tokenizer: Any) -> MetricRecord:
    """Return the first line of `metrics/likelihood@1.jsonl`: tokens of another vocabulary are others."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode(errors="surrogatepass")
    return MetricRecord(
        name=LIKELIHOOD,
        version=_VERSION,
        provenance={"vocabulary_sha256": hashlib.sha256(vocabulary).hexdigest()},
        needs=["references"],
        reads=sorted(LIKELIHOOD_READS),
        values={
            NLL: ValueRecord(
                label="NLL",
                title="Negative log likelihood of the reference (nats a token)",
                low=0.0,
                high=None,
                better="lower",
                is_share=False,
            )
        },
    )


def measure_likelihood(
    requests: Requests, backend: LocalBackend, wanted: Collection[Key], seen: Collection[str]
) -> Iterator[MetricLine]:
    """Yield the likelihood of the references at each wanted prompt, document by document.

    Args:
        requests: All of the run.
        backend: Engine of the run; its weights load when something is to be measured.
        wanted: Keys of what is measured.
        seen: Fingerprints of what is measured already.

    Raises:
        UserError: Memory does not hold a single prompt.
        NumbersError: A loss is no number.
        ConversionError: The model makes its logits in a way that is not known here.
    """
    model: PreTrainedModel | None = None
    for asked, done in documents_of(requests, wanted, seen):
        if model is None:
            model = backend.opened.load(backend.config.device_map)
            check_head(model)
        by_kind: dict[int, list[tuple[Request, str]]] = defaultdict(list)
        for request, fingerprint in asked:
            by_kind[backend.size.kind(len(request.prompt.token_ids))].append((request, fingerprint))
        for of_kind in by_kind.values():
            yield from _OneTree(model, backend, of_kind).lines(done)


def documents_of(
    requests: Requests, wanted: Collection[Key], seen: Collection[str]
) -> Iterator[tuple[list[tuple[Request, str]], set[str]]]:
    """Yield for each document the requests with the fingerprints of their likelihoods, and which of these are done.

    Args:
        requests: All of the run.
        wanted: Keys of what is measured.
        seen: Fingerprints of what is measured already; documents of which nothing is left are not yielded.
    """
    for source in requests.sources:
        if not any(key in wanted for key in source.fingerprints):
            continue
        asked = [
            (request, likelihood_item(request.example.references, request.fingerprint).fingerprint)
            for request in source.requests()
        ]
        done = {one for request, one in asked if one in seen or request.key not in wanted}
        if len(done) < len(asked):
            yield asked, done


def references_of(request: Request) -> list[tuple[tuple[int, ...], int]]:
    """Return the tokens of each reference of a request, cut to the room of an answer, and how many were cut."""
    return request.source.reference_tokens(request.key[1], request.example.references)


def name_of_reference(request: Request) -> str:
    """Return what errors call a reference of a request."""
    task, template, example_id, maxlen = request.key
    return f"the reference of '{example_id}' of task '{task}' (template '{template}', maxlen {maxlen})"


def likelihood_line(request: Request, fingerprint: str, system: str, losses: list[ReferenceLoss]) -> MetricLine:
    """Return the line of a prompt, from the losses of its references."""
    task, template, example_id, maxlen = request.key
    return MetricLine(
        fingerprint=fingerprint,
        task=task,
        template=template,
        id=example_id,
        maxlen=maxlen,
        system=system,
        values={NLL: statistics.fmean(one.negative_log_likelihood / one.num_tokens for one in losses)},
        references=losses,
    )


class _OneTree:
    """The prompts of a document that share a tree, measured or not, so that a resumed run fills the same edges."""

    def __init__(self, model: PreTrainedModel, backend: LocalBackend, asked: Sequence[tuple[Request, str]]) -> None:
        self.model, self.system, self.dtype = model, backend.model.label, backend.dtype
        self.askers: dict[tuple[int, ...], list[tuple[Request, str]]] = defaultdict(list)
        for request, fingerprint in asked:
            self.askers[request.prompt.token_ids].append((request, fingerprint))
        self.prompts = list(self.askers)

    def lines(self, done: Collection[str]) -> Iterator[MetricLine]:
        tree = PromptTree(self.prompts)
        missing = {
            leaf: [one for one in self.askers[prompt] if one[1] not in done] for leaf, prompt in enumerate(self.prompts)
        }
        caches = TreeCaches(self.model, tree, [leaf for leaf, of_leaf in missing.items() if of_leaf])
        # All prompts of a kind have the same frequencies.
        with fixed_frequencies(self.model, len(self.prompts[0])):
            for leaf in tree.order:
                if missing[leaf]:
                    yield from self._of_leaf(missing[leaf], leaf, caches)
                    caches.release([leaf])

    def _of_leaf(self, missing: Sequence[tuple[Request, str]], leaf: int, caches: TreeCaches) -> Iterator[MetricLine]:
        prompt = self.prompts[leaf]
        try:
            filled = caches.take(leaf)
            for request, fingerprint in missing:
                yield self._line(request, fingerprint, filled)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with a prompt of {len(prompt):,} tokens; give layers a span with --plan, or take a "
                "smaller --dtype"
            ) from error

    def _line(self, request: Request, fingerprint: str, filled: Cache) -> MetricLine:
        losses = _reference_losses(self.model, request, filled, self.dtype)
        return likelihood_line(request, fingerprint, self.system, losses)


def _reference_losses(model: PreTrainedModel, request: Request, filled: Cache, dtype: str) -> list[ReferenceLoss]:
    """Return the loss of each reference after a prompt; the last tokens of that may still be missing in the cache."""
    rest = request.prompt.token_ids[filled.get_seq_length() :]
    found = []
    for kept, num_cut in references_of(request):
        cache = fork(filled, filled.get_seq_length() + len(rest) + len(kept))
        losses, _ = losses_of(model, (*rest, *kept), len(rest), cache)
        total = float(losses.sum(dtype=torch.float64))
        if not total / len(kept) < float("inf"):
            raise NumbersError(f"losses on {name_of_reference(request)}", dtype)
        found.append(ReferenceLoss(negative_log_likelihood=total, num_tokens=len(kept), num_tokens_dropped=num_cut))
    return found


class WhileAnswering:
    """Measures the references of prompts that are being answered, and writes each line to the file of this process.

    What memory does not hold beside the answers, and losses that are no numbers, are left to `measure_likelihood`.

    Args:
        backend: Engine of the run.
        folder: Folder of the run, locked.
        name: Of this process in this session.
    """

    def __init__(self, backend: LocalBackend, folder: Path, name: str) -> None:
        self.system, self.dtype = backend.model.label, backend.dtype
        self.folder, self.name = folder, name
        self.record = likelihood_record(backend.tokenizer)
        self.journal: RawIOBase | None = None

    def __call__(self, model: PreTrainedModel, request: Request, take: Callable[[], Cache]) -> None:
        """Measure the references of a request.

        Args:
            model: The model of the run.
            request: One that was answered.
            take: Returns a cache that holds its prompt but for the last tokens.
        """
        if self.journal is None:
            self.journal = open_pending(self.folder, self.record, self.name)
        try:
            losses = _reference_losses(model, request, take(), self.dtype)
        except NumbersError:
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return
        item = likelihood_item(request.example.references, request.fingerprint)
        append_line(self.journal, likelihood_line(request, item.fingerprint, self.system, losses))

    def keep(self) -> None:
        """Move what all processes have measured to the file of the metric; in the main process, once all are done."""
        with open_metric_file(self.folder, self.record) as (journal, seen):
            take_pending(self.folder, self.record, journal, seen)
