"""Print one prompt as a model will see it: special tokens, and a mark where the context was cut.

    python -m eval.prompt qmsum --data val.jsonl --maxlen 2048
    python -m tasks show qmsum --example --data val.jsonl --maxlen 2048  # the same

Only the tokenizer of the model is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.config.chat import iso_date
from eval.config.checks import mapping
from eval.errors import UserError
from eval.prompting.chat import ChatSettings
from eval.prompting.prompts import Prompt, PromptBuilder, PromptParts, fit
from eval.prompting.truncation import AROUND, POLICIES
from eval.runtime.jobs import CommandParser, command
from eval.scoring.profiles import PROFILES
from masformer.checkpoints.references import check_reference
from masformer.errors import CheckpointError
from tasks import DataError, Example, LoadRequest, Task, find_task
from tasks.base import DOCUMENT
from tasks.command import add_prompt_flags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@command()
def main(argv: Sequence[str]) -> None:
    """Print the prompt that a command line names."""
    parser = CommandParser("python -m eval.prompt", __doc__)
    add_prompt_flags(parser)
    print("\n".join(prompt_lines(parser.parse_args(argv))))


def prompt_lines(options: argparse.Namespace) -> list[str]:
    """Return lines: a title, the number of tokens of each part, then the prompt itself.

    Raises:
        DataError: Task, data, template, policy, model or length cannot be used.
    """
    task = find_task(options.task, options.tasks_from)
    if not task.has_references:
        raise DataError(f"task {task.name} has no prompts: nothing is asked about its texts")
    maxlen = 2048 if options.maxlen is None else options.maxlen
    example, shots = _load_example(task, options, maxlen)
    policy = options.truncation or "head"
    for what, value, known in (("template", options.template, task.templates), ("truncation", policy, POLICIES)):
        if value is not None and value not in known:
            raise DataError(f"task {task.name} has no {what} '{value}'; known: {', '.join(known)}")
    model = options.model or "smollm2-135m"
    try:
        check_reference(model)
        from masformer.checkpoints.open import open_checkpoint  # after the checks: it imports transformers

        checkpoint = open_checkpoint(model, takes_encoder_decoders=True)
        tokenizer, is_encoded = checkpoint.tokenizer, checkpoint.config.is_encoder_decoder
        name = options.template or (DOCUMENT if is_encoded else task.default_template)
        chat = ChatSettings(
            name=options.chat_template,
            system=options.system,
            kwargs=mapping(options.template_kwargs or {}),
            date=options.template_date and iso_date(options.template_date),
        )
        builder = PromptBuilder(tokenizer, task.templates[name], chat, shots=shots, is_framed=is_encoded)
        builder.check()
        parts = builder.parts(example)
        room = 0 if is_encoded else task.max_new_tokens
        prompt = fit(parts, maxlen, room, policy)
    except (CheckpointError, UserError, argparse.ArgumentTypeError) as error:
        raise DataError(str(error)) from error  # `python -m tasks`, which calls this, knows no other
    kind = "chat template" if builder.uses_chat_template else "no chat template"
    cut = task.templates[name].truncation or (policy if example.kept is None else AROUND)
    return [
        f"task {task.name}, example {example.id}, template {name}, model {model} ({kind}), truncation {cut}",
        *_token_counts(parts, prompt, maxlen, room),
        "",
        *_text(tokenizer, parts, prompt).split("\n"),
    ]


def check_metrics(task: Task) -> None:
    """Raise `DataError` for a task that names metrics which are not there."""
    if task.profile not in PROFILES:
        raise DataError(f"task '{task.name}' asks for unknown metrics '{task.profile}'; known: {', '.join(PROFILES)}")


def _load_example(task: Task, options: argparse.Namespace, maxlen: int) -> tuple[Example, tuple[Example, ...]]:
    """Return the example that is asked for, and the task's shots."""
    index = options.index or 0
    if index < 0:
        raise DataError(f"--index is {index}; give 0 or more")
    split = options.split or task.default_split
    request = LoadRequest(
        split=split,
        data=options.data,
        revision=options.revision,
        limit=index + 1,
        longest=maxlen,
        shots=task.shots if options.shots is None else options.shots,
        shots_split=options.shots_split,
        shots_seed=task.shots_seed if options.shots_seed is None else options.shots_seed,
    )
    loaded = task.load(request)
    examples = loaded.examples
    if index >= len(examples):
        raise DataError(f"--index is {index}, and task {task.name} has {len(examples)} examples there")
    return examples[index], loaded.shots


def _token_counts(parts: PromptParts, prompt: Prompt, maxlen: int, max_new_tokens: int) -> list[str]:
    counts = {
        "before the context": f"{len(parts.prefix):,}",
        "context": f"{prompt.num_context_kept:,} of {len(parts.context):,}, {prompt.num_context_dropped:,} cut",
        "after the context": f"{len(parts.suffix):,}",
        "prompt": f"{len(prompt.token_ids):,}",
        "room for the answer": f"{max_new_tokens:,}" if max_new_tokens else "apart, in the decoder",
        "maxlen": f"{maxlen:,}",
    }
    return [f"{name + ' (tokens)':30}{count}" for name, count in counts.items()]


def _text(tokenizer: PreTrainedTokenizerBase, parts: PromptParts, prompt: Prompt) -> str:
    """Return the prompt with a mark in place of each run of tokens that was cut, if the context alone is."""
    if parts.whole is not None:
        return _decode(tokenizer, prompt.token_ids)
    pieces = [_decode(tokenizer, parts.prefix)]
    end = 0
    for start, stop in (*prompt.context_ranges, (len(parts.context), len(parts.context))):
        if start > end:
            pieces.append(f"\n[... {start - end:,} tokens of the context cut here ...]\n")
        pieces.append(_decode(tokenizer, parts.context[start:stop]))
        end = stop
    return "".join((*pieces, _decode(tokenizer, prompt.note), _decode(tokenizer, parts.suffix)))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
