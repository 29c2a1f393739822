"""A server with a model, as a run or a measurement asks it, whoever has started it."""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.engines.client import Client, ClientSettings
from eval.engines.contact import Server
from eval.errors import UserError
from eval.records.schema import ModelRecord
from eval.runtime.processes import check_launch, num_processes

if TYPE_CHECKING:
    from masformer.checkpoints.open import Checkpoint

# In the output folder.
LOG = "engine.log"
_CONCURRENCY = 16
# Asks a server for something that the command needs, and raises an error where it does not have it.
Trial = Callable[[Client, Server], None]


class Service(ABC):
    """A server with a model.

    Attributes:
        checkpoint: The model, without weights; None where it is a server's own.
        tokenizer: Tokenizer of the model.
        model: What pins the weights.
        plan: Span of each layer, JSON-ready; None where a server has its own attention.
        dialect: Which engine it is, one of `DIALECTS` or `UNKNOWN`.
        form: How prompts go to it, one of `PROMPT_FORMS`.
        identity: What answers depend on.
        record: What is recorded of a session, without the key.

    Args:
        config: Settings of the command.

    Raises:
        UserError: The client is not installed, or several processes would ask.
    """

    checkpoint: Checkpoint | None = None
    tokenizer: Any
    model: ModelRecord
    plan: list[Any] | None = None
    plan_description: str
    dtype: str
    dialect: str
    form: str
    identity: dict[str, Any]
    record: dict[str, Any]

    def __init__(self, config: Any) -> None:
        if find_spec("openai") is None:
            raise UserError('the client of servers is not installed; run: pip install "masformer[endpoint]"')
        check_launch(os.environ)
        if (count := num_processes(os.environ)) > 1:
            # Each would have all of the limits.
            raise UserError(
                f"--engine {config.engine} is asked by one process, and {count} were launched; launch one, and give "
                "--concurrency"
            )
        self.config = config

    @property
    def concurrency(self) -> int:
        """Return how many requests go out at a time."""
        return int(self.config.concurrency or _CONCURRENCY)

    @abstractmethod
    def running(self, log: Path) -> AbstractContextManager[tuple[Client, Server]]:
        """Give the server, ready to be asked.

        Args:
            log: Where a server that is started prints.

        Raises:
            UserError: It does not start.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return what answers, for people."""

    @abstractmethod
    def describe_model(self) -> str:
        """Return what pins the weights, for people."""

    def client_settings(self, base_url: str, key: str | None, model: str, *, is_ours: bool) -> ClientSettings:
        """Return the settings of a client, with the limits of the command line."""
        given = ("max_retries", "max_requests", "max_total_tokens")
        limits = {name: getattr(self.config, name) for name in given if getattr(self.config, name) is not None}
        if self.config.request_timeout is not None:
            limits["timeout"] = self.config.request_timeout
        return ClientSettings(base_url=base_url, key=key, model=model, is_ours=is_ours, **limits)


def open_service(config: Any, form: str | None = None, trial: Trial | None = None) -> Service:
    """Return the server that the settings name, with everything checked before it is asked to work.

    Args:
        config: Settings of the command.
        form: How prompts must go to it; None is as the settings have it.
        trial: Made as soon as the server answers: at once, or where it is started, once it has.

    Raises:
        UserError: The server or a setting does not fit.
        CheckpointError: The reference leads to no usable model, or to no tokenizer.
        PlanError: The plan does not fit the model.
    """
    if config.engine == "endpoint":
        from eval.engines.endpoint import EndpointService

        return EndpointService(config, form, trial)
    from eval.engines.managed import StartedService

    return StartedService(config, trial)


def digest_of(tokenizer: Any) -> str:
    """Return a digest of a tokenizer with its chat template."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    whole = inner.to_str() if inner is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{whole}\0{tokenizer.chat_template}".encode()).hexdigest()[:16]


def say(text: str) -> None:
    """Print a line beside the bar."""
    print(text, file=sys.stderr, flush=True)
