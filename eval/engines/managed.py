"""Engines whose server is started for the run: vLLM, SGLang and llama.cpp.

python eval/run.py --engine vllm --engine-python ENVIRONMENT/bin/python --model smollm2-135m --task plos --maxlen 1024

The server runs on this machine's loopback with a random key, loads the checkpoint or its native form, and ends with the
run, whatever ends that.
"""

from __future__ import annotations

import os
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from eval.config.run import RunConfig
from eval.engines.bodies import check_settings
from eval.engines.client import Client
from eval.engines.commands import Launch, find_engine, server_command
from eval.engines.endpoint import CONCURRENCY, Server, ServerBackend, client_settings, digest_of, say
from eval.engines.served_folder import Served, ServedFolder
from eval.engines.server import ServerCommand, free_port, running
from eval.errors import UserError
from eval.generation.backend import check_embeddings, output_of
from eval.generation.requests import Requests
from eval.prompting.chat import ChatTemplate
from eval.prompting.ends import find_ends
from eval.records.schema import ModelRecord
from eval.records.typed import from_json
from eval.runtime.model import check_positions, describe_weights, open_configured, resolve_plan, suggested_ends
from eval.runtime.processes import num_threads
from masformer.checkpoints.open import Checkpoint
from masformer.plans.spans import SpanPlan

LOG = "engine.log"
_WAIT_SECONDS = 900.0
# Tokens that a server keeps beside the greatest length.
_SPARE = 16


class StartedServer:
    """A server of an installed engine with a model; nothing is started yet.

    Args:
        config: Settings of the command.
        checkpoint: Model, without weights.
        plan: Spans that it is to have; None leaves it untouched.

    Raises:
        UserError: The engine is not installed, or cannot load the model with the plan.
    """

    def __init__(self, config: Any, checkpoint: Checkpoint, plan: SpanPlan | None) -> None:
        for name in ("quantize", "device_map", "threads", "batch_size", "memory_budget"):
            if (value := getattr(config, name, None)) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} is of a model that is loaded here; leave it out, and tell the "
                    "server with --engine-args"
                )
        self.config = config
        self.engine = find_engine(config)
        self.dtype = "of the file" if config.engine == "llamacpp" else config.dtype or "bfloat16"
        self.folder = None
        if config.engine == "llamacpp":
            place = Served(location=_gguf_file(config, checkpoint, plan))
        else:
            self.folder = ServedFolder(config.engine, checkpoint, plan, self.dtype)
            place = self.folder.place
        self.launch = Launch(
            model=place.location,
            revision=place.revision,
            name=checkpoint.name,
            port=free_port(),
            key=secrets.token_hex(16),
            max_length=max(config.maxlen) + _SPARE,
            dtype=None if self.folder is None else self.dtype,
            trust_remote_code=config.trust_remote_code,
            threads=num_threads(os.environ),
            wait=config.engine_wait or _WAIT_SECONDS,
            key_file=Path(tempfile.gettempdir()) / f"masformer-{secrets.token_hex(8)}.yaml",
        )
        self.argv, self.environment = server_command(self.engine, self.launch, config.server_flags)

    @property
    def concurrency(self) -> int:
        """Return how many requests go out at a time; llama.cpp answers one after the other."""
        return int(self.config.concurrency or (1 if self.config.engine == "llamacpp" else CONCURRENCY))

    @property
    def identity(self) -> dict[str, Any]:
        """Return what answers depend on."""
        return {"name": self.config.engine, "prompts_as": self.engine.form, "args": self.config.server_flags}

    @property
    def record(self) -> dict[str, Any]:
        """Return what is recorded of a session."""
        return {
            "name": self.engine.name,
            "version": self.engine.version,
            "command": shlex.join(self.argv),
            "concurrency": self.concurrency,
        }

    def describe(self) -> str:
        """Return what answers, for people."""
        return f"{self.engine.name} {self.engine.version}, {self.concurrency} request(s) at a time"

    @contextmanager
    def running(self, log: Path) -> Iterator[tuple[Client, Server]]:
        """Give the server, once it answers; it ends with the block.

        Args:
            log: What it prints goes there.

        Raises:
            UserError: It does not start.
        """
        if self.folder is not None:
            self.folder.prepare(say)
        address, launch = f"http://127.0.0.1:{self.launch.port}/v1", self.launch
        settings = client_settings(self.config, address, launch.key, launch.name, is_ours=True)
        client = Client(settings, say=say)
        command = ServerCommand(argv=self.argv, environment=self.environment, key=launch.key)
        server = Server(
            dialect=self.engine.name,
            version=self.engine.version,
            form=self.engine.form,
            offset=0,
            is_streamed=self.engine.form == "ids",
            model=launch.name,
            max_length=launch.max_length,
        )
        try:
            with (
                _key_in(launch.key_file, launch.key) if self.engine.name == "sglang" else nullcontext(),
                running(
                    command, base_url=address, log=log, wait=launch.wait, is_ready=client.is_ready, say=say
                ) as is_alive,
            ):
                client.is_alive = is_alive
                yield client, server
        finally:
            client.close()


class StartedBackend(ServerBackend):
    """Starts a server for the run, and ends it with the run.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The engine is not installed, or cannot do what is asked.
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan does not fit the model.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.checkpoint = open_configured(config)
        check_positions(max(config.maxlen), self.checkpoint, allow_extrapolation=config.allow_extrapolation)
        self.tokenizer = self.checkpoint.tokenizer
        plan = resolve_plan(config.plan, self.checkpoint, keeps_full=True)
        self.started = StartedServer(config, self.checkpoint, plan)
        check_settings(config, config.engine, self.started.engine.form)
        self.dtype = self.started.dtype
        self.plan = None if plan is None else plan.to_json()
        self.plan_description = "untouched" if plan is None else str(plan)
        self.model = from_json(ModelRecord, self.checkpoint.provenance, self.checkpoint.name)
        self.quantization = self.checkpoint.quantization
        chat = ChatTemplate(self.tokenizer, config.chat_settings())
        self.ends = find_ends(self.tokenizer, suggested_ends(self.checkpoint), chat)
        self.identity = self.started.identity | {"tokenizer": digest_of(self.tokenizer)}
        self.server = self.started.record
        self.remarks = [self.started.describe()]

    @property
    def concurrency(self) -> int:
        return self.started.concurrency

    @contextmanager
    def serving(self) -> Iterator[tuple[Client, Server]]:
        with self.started.running(output_of(self.config) / LOG) as served:
            yield served

    def describe_model(self) -> str:
        return describe_weights(self.checkpoint)

    def check(self, requests: Requests) -> None:
        """Raise `CheckpointError` for a text with tokens that the model has no embedding for."""
        check_embeddings(requests, self.checkpoint)


def _gguf_file(config: Any, checkpoint: Checkpoint, plan: SpanPlan | None) -> str:
    """Return the file that llama.cpp loads. Raises `UserError` where there is none, or with a plan of ours."""
    if not checkpoint.gguf_file or checkpoint.adapter is not None:
        raise UserError(
            f"--engine llamacpp loads a GGUF file, and '{checkpoint.name}' is none; give a .gguf file, or use --engine "
            "vllm"
        )
    if config.plan != "auto" and plan is not None and plan != resolve_plan("auto", checkpoint, keeps_full=True):
        raise UserError(
            f"--engine llamacpp has the spans of the GGUF file alone, and not '{plan}'; leave --plan out, or use "
            "--engine local or vllm"
        )
    if config.dtype is not None:
        raise UserError(f"--dtype {config.dtype}: llama.cpp computes in the types of the GGUF file; leave it out")
    return str(Path(checkpoint.location) / checkpoint.gguf_file)


@contextmanager
def _key_in(file: Path, key: str) -> Iterator[None]:
    """Keep a key in a file that this user alone can read, while the block runs."""
    file.touch(mode=0o600, exist_ok=False)
    try:
        file.write_text(f"api-key: {key}\n", encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)
