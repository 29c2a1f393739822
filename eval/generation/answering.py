"""Answer groups of prompts: claim one, prefill its tree, decode its rows in batches, write a line a prediction.

Processes take the next group by making a file in the run folder, so that none waits for another and none idles while
there is work. A batch is written once it is decoded; one that was interrupted is decoded again whole, with the rows
that are written already, so that a resumed run computes what an undisturbed one does.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Container, Iterator, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.errors import UserError
from eval.generation.decode import Answer, decode, peak_bytes, reset_peak, rows_together, warm_up
from eval.generation.groups import DECODING, Group, Needs, Request
from eval.generation.prompt_tree import Node, PromptTree, TreeCaches
from eval.records.journal import Key, append_line, disk_errors
from eval.records.run_folder import RunFolder
from eval.runtime.model import plan_of
from masformer import fixed_frequencies
from masformer.plans.cost import attention_flops

# Seconds between two looks at what the other processes have finished.
_LOOK_SECONDS = 2.0


class Claims:
    """Which groups of a session are taken, and which are finished, by files that all its processes see.

    Args:
        folder: Of this session alone; the main process has made it.
        groups: In the order in which they are taken.
    """

    def __init__(self, folder: Path, groups: Sequence[Group]) -> None:
        self.folder = folder
        self.costs = {group.index: group.cost for group in groups}
        self._ahead = iter(groups)
        self._mine: set[int] = set()
        self._finished: set[int] = set()
        self._taken: set[int] = set()
        self._looked = -_LOOK_SECONDS

    def take(self) -> Group | None:
        """Return a group that no process has taken; None when there is none left."""
        for group in self._ahead:
            with disk_errors(self.folder):
                try:
                    os.close(os.open(self.folder / str(group.index), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
            self._mine.add(group.index)
            return group
        return None

    def finish(self, group: Group) -> None:
        """Mark a group as finished."""
        with disk_errors(self.folder):
            (self.folder / f"{group.index}.done").touch()
        self._finished.add(group.index)

    @property
    def num_finished(self) -> int:
        """Return how many groups are finished, as it was a moment ago."""
        self._look()
        return len(self._finished)

    @property
    def done(self) -> float:
        """Return the predicted cost of all finished groups, and half of that of those that others are at."""
        self._look()
        at_work = self._taken - self._finished - self._mine
        return sum(self.costs[index] for index in self._finished) + sum(self.costs[index] for index in at_work) / 2

    def _look(self) -> None:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            for file in self.folder.iterdir():
                (self._finished if file.suffix else self._taken).add(int(file.stem))
            self._looked = time.monotonic()


class Progress:
    """How much of the predicted cost is done, as a bar on a terminal and a line a group.

    Args:
        claims: Of the session.
        accelerator: The main process has the bar.
    """

    def __init__(self, claims: Claims, accelerator: Accelerator) -> None:
        self.claims = claims
        self.who = f"process {accelerator.process_index}: " if accelerator.num_processes > 1 else ""
        self.within = 0.0
        self.started = time.monotonic()
        self.total = sum(claims.costs.values()) or 1.0
        self.bar = tqdm(
            total=self.total,
            desc="generating",
            smoothing=0,
            # None is: where there is no terminal.
            disable=None if accelerator.is_main_process else True,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
        )

    @property
    def share(self) -> float:
        """Return the part of the predicted cost that is done."""
        return min((self.claims.done + self.within) / self.total, 1.0)

    def advance(self, cost: float, what: str) -> None:
        """Count a part of the present group."""
        self.within += cost
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.n = self.share * self.total
        self.bar.refresh()

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.clear()
        print(self.who + text, flush=True)

    def finish(self, group: Group, text: str) -> None:
        """Tell what a group came to, and how much time the rest will take."""
        self.within = 0.0
        self.bar.n = self.share * self.total
        spent, share = time.monotonic() - self.started, self.share
        left = f"; about {_duration(spent * (1 - share) / share)} left" if 0 < share < 1 else ""
        self.tell(f"group {self.claims.num_finished} of {len(self.claims.costs)}: {text}{left}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Answering:
    """Answers the groups of a run with one model.

    Args:
        model: With its plan.
        tokenizer: Of the model.
        needs: What tokens cost.
        folder: Of the run.
        done: Predictions that are there already.
        journal_name: Of this process in this session.
        progress: What is told meanwhile.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        needs: Needs,
        folder: RunFolder,
        done: Container[Key],
        journal_name: str,
        progress: Progress,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.needs = needs
        self.folder = folder
        self.done = done
        self.journal_name = journal_name
        self.progress = progress
        self.spans = plan_of(model)
        # Tokens at once that memory is known not to hold.
        self.too_many: int | None = None

    def run(self, claims: Claims) -> None:
        """Answer groups until none is left to take."""
        group = claims.take()
        if group is None:
            return
        warm_up(self.model, self.tokenizer)
        with self.folder.open_journal(self.journal_name) as journal, self.progress.bar:
            while group is not None:
                self._answer(group, journal, claims)
                group = claims.take()

    def _answer(self, group: Group, journal: RawIOBase, claims: Claims) -> None:
        started = time.monotonic()
        requests = group.requests()
        by_prompt: dict[tuple[int, ...], list[Request]] = {}
        for request in requests:
            by_prompt.setdefault(request.prompt.token_ids, []).append(request)
        prompts = list(by_prompt)
        asked = [by_prompt[prompt] for prompt in prompts]
        tree = PromptTree(prompts)
        most = min(group.num_rows, rows_together(self.model, group.settings) or group.num_rows)
        order = tree.order
        batches = [order[first : first + most] for first in range(0, len(order), most)]
        missing = [
            batch for batch in batches if any(request.key not in self.done for leaf in batch for request in asked[leaf])
        ]
        caches = TreeCaches(self.model, tree, [leaf for batch in missing for leaf in batch], self._filled)
        num_written, num_asked, num_prefilled = 0, 0, 0
        # All prompts of a group have the same frequencies.
        with fixed_frequencies(self.model, len(prompts[0])):
            for batch in missing:
                reset_peak(self.model.device)
                for leaves, answers in self._decode(group, batch, prompts, caches):
                    peak = peak_bytes(self.model.device)
                    for leaf, answer in zip(leaves, answers, strict=True):
                        spent = caches.seconds(leaf) + answer.prefill_seconds
                        for copy, request in enumerate(asked[leaf]):
                            paid = 0 if copy else caches.num_prefilled.get(leaf, 0) + 1
                            num_prefilled += paid
                            num_asked += len(request.prompt.token_ids)
                            if request.key not in self.done:
                                line = self._line(group, request, answer, spent, len(leaves))
                                append_line(journal, {**line, "prefilled_tokens": paid, "peak_bytes": peak})
                                num_written += 1
                    caches.release(leaves)
        claims.finish(group)
        self.progress.finish(
            group,
            f"{len(group.units)} document(s), {num_written} predictions, {num_prefilled:,} tokens prefilled of "
            f"{num_asked:,} asked for ({num_prefilled / num_asked:.2f}), {_duration(time.monotonic() - started)}",
        )

    def _filled(self, node: Node) -> None:
        self.progress.advance(self.needs.prefill(node.start, node.stop), f"prefilled to {node.stop:,}")

    def _decode(
        self, group: Group, leaves: Sequence[int], prompts: Sequence[Sequence[int]], caches: TreeCaches
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Return answers to some prompts: of one batch, or of halves of it where memory does not hold it."""
        num_tokens = sum(len(prompts[leaf]) for leaf in leaves)
        if self.too_many is None or num_tokens < self.too_many or len(leaves) == 1:
            answers = self._decode_at_once(group, leaves, prompts, caches)
            if answers is None and len(leaves) == 1:
                # Beside the edges that others wait for it may not fit, and by itself it may.
                self._let_go(caches)
                answers = self._decode_at_once(group, leaves, prompts, caches)
            if answers is not None:
                yield leaves, answers
                return
            self._let_go(caches)
            if len(leaves) == 1:
                raise UserError(
                    f"out of memory with a single prompt of {num_tokens:,} tokens; lower --maxlen, give layers a span "
                    "with --plan, or take a smaller --dtype"
                )
            self.too_many = num_tokens
            self.progress.tell(
                f"out of memory with {len(leaves)} prompts of {num_tokens:,} tokens at once; going on with half as "
                "many (a smaller --memory-budget or --batch-size avoids this)"
            )
        half = (len(leaves) + 1) // 2
        yield from self._decode(group, leaves[:half], prompts, caches)
        yield from self._decode(group, leaves[half:], prompts, caches)

    def _let_go(self, caches: TreeCaches) -> None:
        caches.release()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _decode_at_once(
        self, group: Group, leaves: Sequence[int], prompts: Sequence[Sequence[int]], caches: TreeCaches
    ) -> list[Answer] | None:
        """Return answers to some prompts as one batch; None when memory does not hold it."""
        settings, batch = group.settings, [prompts[leaf] for leaf in leaves]
        a_step = DECODING * settings.num_beams * sum(self.needs.decode(len(prompt), 1) for prompt in batch)

        def decoded(steps: int) -> None:
            self.progress.advance(a_step * steps, f"decoding {len(batch)} rows")

        try:
            filled = [caches.take(leaf) for leaf in leaves]
            return decode(self.model, self.tokenizer, batch, filled, settings, decoded)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _line(
        self, group: Group, request: Request, answer: Answer, prefill_seconds: float, batch_size: int
    ) -> dict[str, Any]:
        task, template, example_id, maxlen = request.key
        prompt = request.prompt
        num_tokens = len(prompt.token_ids) + len(answer.token_ids)
        return {
            "task": task,
            "template": template,
            "id": example_id,
            "maxlen": maxlen,
            "fingerprint": request.fingerprint,
            "text": answer.text,
            "prompt_tokens": len(prompt.token_ids),
            "context_tokens_kept": prompt.num_context_kept,
            "context_tokens_dropped": prompt.num_context_dropped,
            "context_spans": request.document.spans_shown(prompt),
            "num_generated_tokens": len(answer.token_ids),
            "finish_reason": answer.finish_reason,
            "seconds": prefill_seconds + answer.seconds,
            "prefill_seconds": prefill_seconds,
            "decode_seconds": answer.seconds,
            "batch_size": batch_size,
            "group": group.index,
            "truncation": group.units[0].document.policy,
            "cache_bytes": answer.cache_bytes,
            "attention_flops": self.spans and attention_flops(self.model.config, self.spans, num_tokens),
        }


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory does not hold what was asked of it."""
    told = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in told
