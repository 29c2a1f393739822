"""What answers: this suite's own engine, or a server; options of `eval/run.py` and `eval/perplexity.py`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from eval.config.checks import natural, path, positive, positive_number
from eval.config.options import Group, Options
from eval.errors import UserError

# Module of each engine and what opens it there; imported when it is chosen, so that one engine does not need another's
# packages.
ENGINES = {
    "local": "eval.generation.local:open_local",
    "mock": "eval.generation.mock:MockBackend",
    "endpoint": "eval.engines.served:ServedBackend",
    "vllm": "eval.engines.served:ServedBackend",
    "sglang": "eval.engines.served:ServedBackend",
    "llamacpp": "eval.engines.served:ServedBackend",
}
# Engines that answer over the network, and those of them whose server this suite starts.
SERVERS = ("endpoint", "vllm", "sglang", "llamacpp")
STARTED = SERVERS[1:]
PROMPT_FORMS = ("ids", "text", "messages")
# Options for one kind of server; the others are for all servers.
_OF_ENDPOINT = ("base_url", "tokenizer", "prompts_as", "api_key_env")
_OF_STARTED = ("engine_python", "engine_args", "engine_wait")


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Which engine answers, and how a server is asked."""

    engine: str = Group.MODEL.option(
        "local",
        "what answers: this suite's own engine; a server that runs already (endpoint); one that is started for the run "
        "(vllm, sglang, llamacpp); or mock, which has no model",
        choices=tuple(ENGINES),
    )
    base_url: str | None = Group.ENGINE.option(
        None, "where an OpenAI-compatible server answers, such as http://localhost:8000/v1", metavar="URL"
    )
    tokenizer: str | None = Group.ENGINE.option(
        None, "tokenizer of the served model: hub id, folder or .gguf file", metavar="REF", unset="that of --model"
    )
    prompts_as: str | None = Group.ENGINE.option(
        None,
        "form of prompts: token ids, which are exact; text; or chat messages, which the server puts in its template",
        choices=PROMPT_FORMS,
        unset="the first of these that the server takes",
    )
    api_key_env: str | None = Group.ENGINE.option(
        None, "environment variable with the server's key", unset="OPENAI_API_KEY"
    )
    concurrency: int | None = Group.ENGINE.option(None, "requests at a time", positive, unset="16, of llamacpp 1")
    request_timeout: float | None = Group.ENGINE.option(
        None, "seconds without a byte after which a request has failed", positive_number, unset="600"
    )
    max_retries: int | None = Group.ENGINE.option(
        None, "times that a request is sent again after a failure that may pass", natural, unset="6"
    )
    max_requests: int | None = Group.ENGINE.option(
        None, "requests that a session sends at most, repeated ones included", positive, unset="no limit"
    )
    max_total_tokens: int | None = Group.ENGINE.option(
        None, "tokens of prompts and answers that a session asks for at most", positive, unset="no limit"
    )
    engine_python: Path | None = Group.ENGINE.option(
        None, "Python of the environment that holds the engine", path, metavar="FILE", unset="its command on the path"
    )
    engine_args: str | None = Group.ENGINE.option(
        None, 'further flags of the engine\'s server in one text, such as "--tensor-parallel-size 4"', metavar="FLAGS"
    )
    engine_wait: float | None = Group.ENGINE.option(
        None, "seconds that a server has to start", positive_number, unset="900"
    )

    @property
    def unset_engine_options(self) -> tuple[str, ...]:
        """Return the names of these options that are not given, which records of 0.1 do not have."""
        unset = tuple(name for name in ENGINE_OPTIONS if name != "engine" and getattr(self, name) is None)
        return ("engine", *unset) if self.engine == "local" else unset

    @property
    def server_flags(self) -> list[str]:
        """Return the flags of `--engine-args`. Raises `UserError` where quotes do not close."""
        try:
            return shlex.split(self.engine_args or "")
        except ValueError as error:
            raise UserError(f"--engine-args {self.engine_args} cannot be parted into flags: {error}") from None

    def check_engine(self) -> None:
        """Raise `UserError` for options of another engine, and for a `--base-url` that is no address."""
        given = [name for name in ENGINE_OPTIONS if name != "engine" and getattr(self, name) is not None]
        for name in given:
            wanted = ("endpoint",) if name in _OF_ENDPOINT else STARTED if name in _OF_STARTED else SERVERS
            if self.engine not in wanted:
                # An address may hold a key, and a key may stand in the place of its variable.
                shown = "" if name in ("base_url", "api_key_env") else f" {getattr(self, name)}"
                raise UserError(
                    f"--{name.replace('_', '-')}{shown} is of --engine {' or '.join(wanted)}, and this is --engine "
                    f"{self.engine}; leave it out, or choose the engine"
                )
        if self.engine == "endpoint":
            self._check_address()
        _ = self.server_flags

    def _check_address(self) -> None:
        if self.base_url is None:
            raise UserError("--engine endpoint needs --base-url, such as http://localhost:8000/v1")
        # What stands before an @ may be a key.
        shown = "" if "@" in self.base_url else f" {self.base_url}"
        no_address = UserError(f"--base-url{shown} is no address; write it as http://localhost:8000/v1")
        try:
            parts = urlsplit(self.base_url)
            _ = parts.port
        except ValueError:
            raise no_address from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                "--base-url holds a name, a password or a query, which would be recorded; put the key into the "
                "environment variable that --api-key-env names, and leave it out of the address"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise no_address


ENGINE_OPTIONS = tuple(one.name for one in fields(EngineOptions))
# Options that change no answer, and may change when a run goes on.
FREE_ENGINE_OPTIONS = (
    *("base_url", "api_key_env", "concurrency", "request_timeout", "max_retries", "max_requests", "max_total_tokens"),
    *("engine_python", "engine_wait"),
)
