"""A server with OpenAI's interfaces that runs already, wherever it is.

    python eval/run.py --engine endpoint --base-url http://localhost:8000/v1 --model NAME --tokenizer REF ...

Prompts are cut here, with the tokenizer of the model, and go as token ids where the server takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.engines.access import is_here, read_key
from eval.engines.client import Client
from eval.engines.contact import Server, contact
from eval.engines.service import Service, Trial, digest_of, say
from eval.errors import UserError
from eval.records.engines import FORMS
from eval.records.schema import ModelRecord
from masformer.checkpoints.open import CheckpointError, open_tokenizer


class EndpointService(Service):
    """Asks a server that runs already.

    Args:
        config: Settings of the command.
        form, trial: As of `open_service`.

    Raises:
        UserError: The server cannot be reached, or does not take what is asked.
        CheckpointError: There is no tokenizer.
    """

    dtype = "unknown"
    plan_description = "the server's own"

    def __init__(self, config: Any, form: str | None = None, trial: Trial | None = None) -> None:
        super().__init__(config)
        _check_settings(config)
        self.tokenizer = _load_tokenizer(config)
        address = str(config.base_url)
        settings = self.client_settings(address, read_key(config.api_key_env), config.model, is_ours=is_here(address))
        self.client = Client(settings, say=say)
        self.found = contact(self.client, config, self.tokenizer, form or config.prompts_as)
        if trial is not None:
            trial(self.client, self.found)
        self.dialect, self.form = self.found.dialect, self.found.form
        self.model = ModelRecord(reference=config.model, source="endpoint")
        self.identity = {
            "name": "endpoint",
            "server": self.dialect,
            "model": self.found.model,
            "prompts_as": self.form,
            "tokenizer": digest_of(self.tokenizer),
        }
        self.record = {"name": self.found.name, "address": address, "concurrency": self.concurrency}

    @contextmanager
    def running(self, log: Path) -> Iterator[tuple[Client, Server]]:
        try:
            yield self.client, self.found
        finally:
            self.client.close()

    def describe(self) -> str:
        return (
            f"{self.found.name or 'a server'} at {self.config.base_url}, prompts as {FORMS[self.form]}, "
            f"{self.concurrency} requests at a time"
        )

    def describe_model(self) -> str:
        return f"served at {self.config.base_url}"


def _check_settings(config: Any) -> None:
    """Raise `UserError` for a setting of a model that a server has loaded already."""
    loads = {"plan": "auto", "dtype": None, "quantize": None, "adapter": None, "adapter_revision": None}
    loads |= {"model_revision": None, "device_map": None, "threads": None, "batch_size": None, "memory_budget": None}
    for name, unset in loads.items():
        if (value := getattr(config, name, unset)) != unset:
            raise UserError(
                f"--{name.replace('_', '-')} {value} is of a model that is loaded here, and --engine endpoint asks a "
                "server that has loaded its own; leave it out"
            )


def _load_tokenizer(config: Any) -> Any:
    """Return the tokenizer of the served model. Raises `CheckpointError` where there is none."""
    reference = config.tokenizer or config.model
    try:
        return open_tokenizer(reference, trust_remote_code=config.trust_remote_code)
    except CheckpointError as error:
        if config.tokenizer is not None:
            raise
        raise CheckpointError(f"no tokenizer by the name of --model: {error}; name one with --tokenizer") from error
