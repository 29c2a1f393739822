"""One prompt as a model will see it: special tokens, and a mark where the context was cut.

    python -m tasks show qmsum --example --data val.jsonl --maxlen 2048

Only the tokenizer of the model is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from eval.errors import UserError
from eval.prompting.prompts import Prompt, PromptBuilder, PromptParts, fit
from eval.prompting.truncation import POLICIES
from masformer.checkpoints.open import CheckpointError, open_checkpoint
from tasks import DataError, Example, Task


def show_prompt(
    task: Task, example: Example, *, model: str, maxlen: int, template: str | None, truncation: str
) -> list[str]:
    """Return lines: what the prompt is, tokens of its parts, then the prompt itself.

    Args:
        task: Of the example.
        example: What the prompt is about.
        model: As `--model` takes it.
        maxlen: Length in tokens, the room for the answer included.
        template: Name; None takes the task's default.
        truncation: Which part of the context is kept.

    Raises:
        DataError: Template, policy, model or length is none that there is.
    """
    name = template or task.default_template
    for what, value, known in (("template", name, task.templates), ("truncation", truncation, POLICIES)):
        if value not in known:
            raise DataError(f"task {task.name} has no {what} '{value}'; known: {', '.join(known)}")
    try:
        tokenizer = open_checkpoint(model).tokenizer
        builder = PromptBuilder(tokenizer, task.templates[name])
        parts = builder.parts(example)
        prompt = fit(parts, maxlen, task.max_new_tokens, truncation)
    except (CheckpointError, UserError) as error:
        raise DataError(str(error)) from error
    chat = "chat template" if builder.uses_chat_template else "no chat template"
    return [
        f"task {task.name}, example {example.id}, template {name}, model {model} ({chat}), truncation {truncation}",
        *_token_counts(parts, prompt, maxlen, task.max_new_tokens),
        "",
        *_text(tokenizer, parts, prompt).split("\n"),
    ]


def _token_counts(parts: PromptParts, prompt: Prompt, maxlen: int, max_new_tokens: int) -> list[str]:
    counts = {
        "before the context": f"{len(parts.prefix):,}",
        "context": f"{prompt.num_context_kept:,} of {len(parts.context):,}, {prompt.num_context_dropped:,} cut",
        "after the context": f"{len(parts.suffix):,}",
        "prompt": f"{len(prompt.token_ids):,}",
        "room for the answer": f"{max_new_tokens:,}",
        "maxlen": f"{maxlen:,}",
    }
    return [f"{name + ' (tokens)':30}{count}" for name, count in counts.items()]


def _text(tokenizer: PreTrainedTokenizerBase, parts: PromptParts, prompt: Prompt) -> str:
    """Return the prompt with a line in place of each run of tokens that was cut."""
    pieces = [_decode(tokenizer, parts.prefix)]
    end = 0
    for start, stop in (*prompt.context_ranges, (len(parts.context), len(parts.context))):
        if start > end:
            pieces.append(f"\n[... {start - end:,} tokens of the context cut here ...]\n")
        pieces.append(_decode(tokenizer, parts.context[start:stop]))
        end = stop
    return "".join((*pieces, _decode(tokenizer, parts.suffix)))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
