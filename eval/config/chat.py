"""How the chat template of a model is used: options of the commands that build prompts."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from eval.config.checks import Value, mapping
from eval.config.options import Group, Options
from eval.prompting.chat import ChatSettings


def iso_date(value: Value) -> str:
    """Return a date as `YYYY-MM-DD`."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ArgumentTypeError(f"'{value}' is no date; write 2026-01-31") from None


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """How the chat template is used."""

    chat_template: str | None = Group.MODEL.option(
        None, "which of the tokenizer's chat templates, where it has several", unset="the one named default"
    )
    template_kwargs: Mapping[str, Any] | None = Group.MODEL.option(
        None,
        "variables of the chat template, as JSON or YAML: '{\"enable_thinking\": false}'",
        mapping,
        metavar="MAPPING",
    )
    system: str | None = Group.MODEL.option(None, "system message of the chat template", metavar="TEXT", unset="none")
    template_date: str | None = Group.MODEL.option(
        None,
        "date that the chat template's clock shows",
        iso_date,
        metavar="YYYY-MM-DD",
        unset="that of the first session",
    )

    def chat_settings(self, clock: str | None = None) -> ChatSettings:
        """Return how the chat template is used.

        Args:
            clock: What its clock shows, ISO 8601; None is the present.
        """
        return ChatSettings(
            name=self.chat_template, system=self.system, kwargs=dict(self.template_kwargs or {}), date=clock
        )

    @property
    def unset_chat_options(self) -> tuple[str, ...]:
        """Return the names of these options that are not given, which records of 0.1 do not have."""
        return tuple(one.name for one in fields(ChatOptions) if getattr(self, one.name) is None)
