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

from eval.engines.client import Client
from eval.engines.commands import Launch, find_engine, server_command
from eval.engines.contact import Server
from eval.engines.served_folder import Served, ServedFolder
from eval.engines.server import ServerCommand, free_port, running
from eval.engines.service import Service, Trial, digest_of, say
from eval.errors import UserError
from eval.records.schema import ModelRecord
from eval.records.typed import from_json
from eval.runtime.model import check_positions, describe_weights, open_configured, resolve_plan
from eval.runtime.processes import num_threads
from masformer.checkpoints.open import Checkpoint
from masformer.plans.spans import SpanPlan

_WAIT_SECONDS = 900.0
# Tokens that a server keeps beside the greatest length.
_SPARE = 16


class StartedService(Service):
    """A server of an installed engine with a model; it is started when it is asked to work.

    Args:
        config: Settings of the command.
        trial: As of `open_service`.

    Raises:
        UserError: The engine is not installed, or cannot do what is asked.
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan does not fit the model.
    """

    def __init__(self, config: Any, trial: Trial | None = None) -> None:
        super().__init__(config)
        self.trial = trial
        for name in ("quantize", "device_map", "threads", "batch_size", "memory_budget"):
            if (value := getattr(config, name, None)) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} is of a model that is loaded here; leave it out, and tell the "
                    "server with --engine-args"
                )
        self.engine = find_engine(config)
        self.dialect, self.form = self.engine.name, self.engine.form
        self.checkpoint = checkpoint = open_configured(config)
        check_positions(max(config.maxlen), checkpoint, allow_extrapolation=config.allow_extrapolation)
        self.tokenizer = checkpoint.tokenizer
        self.model = from_json(ModelRecord, checkpoint.provenance, checkpoint.name)
        plan = resolve_plan(config.plan, checkpoint, keeps_full=True)
        self.plan = None if plan is None else plan.to_json()
        self.plan_description = "untouched" if plan is None else str(plan)
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
        self.identity = {
            "name": config.engine,
            "prompts_as": self.form,
            "args": config.server_flags,
            "tokenizer": digest_of(self.tokenizer),
        }
        self.record = {
            "name": self.engine.name,
            "version": self.engine.version,
            "command": shlex.join(self.argv),
            "concurrency": self.concurrency,
        }

    @property
    def concurrency(self) -> int:
        """Return how many requests go out at a time; llama.cpp answers one after the other."""
        return 1 if self.dialect == "llamacpp" and self.config.concurrency is None else super().concurrency

    def describe_model(self) -> str:
        assert self.checkpoint is not None
        return describe_weights(self.checkpoint)

    def describe(self) -> str:
        """Return what answers, for people."""
        return f"{self.engine.name} {self.engine.version}, {self.concurrency} request(s) at a time"

    @contextmanager
    def running(self, log: Path) -> Iterator[tuple[Client, Server]]:
        if self.folder is not None:
            self.folder.prepare(say)
        address, launch = f"http://127.0.0.1:{self.launch.port}/v1", self.launch
        settings = self.client_settings(address, launch.key, launch.name, is_ours=True)
        client = Client(settings, say=say)
        command = ServerCommand(argv=self.argv, environment=self.environment, key=launch.key)
        server = Server(
            dialect=self.engine.name,
            version=self.engine.version,
            form=self.form,
            offset=0,
            is_streamed=self.form == "ids",
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
                if self.trial is not None:
                    self.trial(client, server)
                yield client, server
        finally:
            client.close()


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
