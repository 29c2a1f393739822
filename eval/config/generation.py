"""How an answer is chosen: options of `eval/run.py`, and the settings of one call of a model."""

from __future__ import annotations

from dataclasses import dataclass

from eval.config.checks import finite_number, natural, positive, positive_number, share
from eval.config.options import Group

# Tokens that a row which decodes alone guesses at most.
DRAFT_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is chosen, whatever the room for it."""

    min_new_tokens: int = Group.ANSWERS.option(0, "no end token before N tokens", natural)
    num_beams: int = Group.ANSWERS.option(1, "beams of beam search; 1 is none", positive)
    length_penalty: float = Group.ANSWERS.option(1.0, "divide beams' scores by length ** X", finite_number)
    temperature: float | None = Group.ANSWERS.option(
        None, "sample, reproducibly under --seed", positive_number, unset="do not sample"
    )
    num_samples: int = Group.ANSWERS.option(
        1, "with --temperature, answers to a prompt, from one prefill; their mean is scored", positive
    )
    top_p: float = Group.ANSWERS.option(1.0, "sample among the likeliest tokens that hold this probability", share)
    top_k: int = Group.ANSWERS.option(0, "sample among the N likeliest tokens; 0 takes all", natural)
    repetition_penalty: float = Group.ANSWERS.option(
        1.0, "divide the logits of all tokens seen before, in the prompt too; 1 is off", positive_number
    )
    no_repeat_ngram_size: int = Group.ANSWERS.option(
        0, "no N tokens in a row occur twice, in the prompt neither; 0 is off", natural
    )
    stop: tuple[str, ...] = Group.ANSWERS.option(
        (),
        "texts that end an answer and are left out of it; a line's end is $'\\n' in most shells",
        nargs="+",
        collect=tuple,
        metavar="TEXT",
        repeats=True,
    )
    seed: int = Group.MACHINE.option(0, "seed of torch and of sampling", natural)


@dataclass(frozen=True, kw_only=True)
class ThinkingSettings:
    """How a thought is told from the answer after it, and its room.

    Attributes:
        start: Text that begins a thought; empty where all text up to the end mark is one.
        end: Text that ends a thought: the end mark.
        forced: Tokens that are put where the room is used up; they hold the end mark.
        max_tokens: Room for the thought, those tokens not counted.
    """

    start: str
    end: str
    forced: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(GenerationOptions):
    """All that can change an answer beyond the prompt and the model; without `thinking` all text is the answer."""

    max_new_tokens: int
    thinking: ThinkingSettings | None = None

    @property
    def thinking_room(self) -> int:
        """Return the most tokens before the answer."""
        return 0 if self.thinking is None else self.thinking.max_tokens + len(self.thinking.forced)

    @property
    def room(self) -> int:
        """Return the most tokens after a prompt."""
        return self.max_new_tokens + self.thinking_room

    @property
    def num_rows(self) -> int:
        """Return how many rows of a batch a prompt takes: its beams, or its samples."""
        return max(self.num_beams, self.num_samples)
