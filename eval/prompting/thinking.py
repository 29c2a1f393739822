"""Switches by which chat templates let a model think, as published templates have them.

    switches_of(source)  # [Switch("enable_thinking", on=True, off=False)]

What a template reads is asked of its syntax, not of its text: a message's own `thinking` is no switch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Values that turn thinking on and off. Qwen3, GLM-4.5, SmolLM3, Gemma 4; DeepSeek-V3.1, Granite, Hermes 4; MiniMax;
# Command A; Seed-OSS, which counts tokens.
_SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "thinking_mode": ("enabled", "disabled"),
    "reasoning": (True, False),
    "thinking_budget": (-1, 0),
}
# Degrees of gpt-oss, Mistral, Hunyuan and others, of which each template knows a few. The first that one names is
# taken; gpt-oss names none that turns thinking off.
_EFFORT = "reasoning_effort"
_EFFORTS = (("medium", "high", "max"), ("none", "no_think"))


class Switch(NamedTuple):
    """A variable of a template, with its values; None where the template has no such value."""

    name: str
    on: Any
    off: Any


def switches_of(source: str) -> list[Switch]:
    """Return what may switch thinking in a template, in the order in which it is to be tried."""
    from jinja2 import meta, nodes
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    # Compiled as transformers does, for the tags that it adds to the language.
    tree = _cached_compile_jinja_template(source).environment.parse(source)
    names = meta.find_undeclared_variables(tree)
    found = [Switch(name, *values) for name, values in _SWITCHES.items() if name in names]
    if _EFFORT in names:
        # A list of constants is one too.
        values = [one.value for one in tree.find_all(nodes.Const)]
        known = [text for value in values for text in (value if isinstance(value, (list, tuple)) else [value])]
        on, off = (next((value for value in values if value in known), None) for values in _EFFORTS)
        found.append(Switch(_EFFORT, on, off))
    return found
