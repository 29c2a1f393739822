"""What `--model_args` of lm-evaluation-harness says of thinking: the template's switch, and a room for thoughts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.config.generation import ThinkingSettings
from eval.errors import UserError
from eval.generation.thinking import DEFAULT_TOKENS, thinking_settings
from eval.prompting.chat import ChatTemplate
from eval.prompting.ends import Ends


@dataclass(frozen=True, kw_only=True)
class ThinkingArguments:
    """Arguments as they are given.

    Attributes:
        switch: `on`, `off` or `auto`.
        max_tokens: Room for a thought; None is `DEFAULT_TOKENS` with the switch on, else no room of its own.
        end: `think_end_token`: the text or the id of the token that ends a thought; None is to be found.
    """

    switch: str
    max_tokens: int | None
    end: Any

    def __post_init__(self) -> None:
        if self.switch not in ("on", "off", "auto"):
            raise UserError(f"model_args: thinking is {self.switch!r}; give on, off or auto")
        if self.max_tokens is not None and self.switch == "off":
            raise UserError(f"model_args: max_thinking_tokens is {self.max_tokens!r}, and thinking=off has no thoughts")
        if self.max_tokens is not None and not (isinstance(self.max_tokens, int) and self.max_tokens > 0):
            raise UserError(
                f"model_args: max_thinking_tokens is {self.max_tokens!r}, a whole number above 0 was expected"
            )

    def settings(self, tokenizer: Any, chat: ChatTemplate, ends: Ends) -> ThinkingSettings | None:
        """Return how thoughts are told from answers; None where they have no room of their own.

        Raises:
            UserError: The template cannot be switched, or the end mark is not known or cannot be written.
        """
        chat.check_switch()
        if self.switch != "on" and self.max_tokens is None:
            return None
        is_id = str(self.end).isdigit()
        return thinking_settings(
            tokenizer,
            chat,
            ends,
            end=str(tokenizer.decode([int(self.end)])) if is_id else self.end,
            max_tokens=self.max_tokens or DEFAULT_TOKENS,
            flag="think_end_token",
        )


def arguments_of(thinking: str | bool, max_tokens: int | None, options: dict[str, Any]) -> ThinkingArguments:
    """Return the arguments, true and false taken for on and off as YAML has them.

    Raises:
        UserError: They contradict each other, or another option.
    """
    switch = ("on" if thinking else "off") if isinstance(thinking, bool) else str(thinking)
    if switch != "auto" and options.get("enable_thinking") is not None:
        raise UserError(f"model_args: thinking={switch} and enable_thinking say the same; leave one out")
    return ThinkingArguments(switch=switch, max_tokens=max_tokens, end=options.get("think_end_token"))
