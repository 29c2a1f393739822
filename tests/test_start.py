"""Help and mistakes come at once: what takes seconds to import waits until the arguments are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from masformer.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
# What costs a command a tenth of a second or more; scipy alone is a list of names that it imports later.
HEAVY = ("torch", "transformers", "accelerate", "datasets", "pandas", "pyarrow", "nltk", "scipy.stats", "scipy.special")
# Runs commands in one process, and prints their statuses and what of `HEAVY` is imported then.
PROGRAM = """
import json, sys
from masformer.__main__ import COMMANDS, main
COMMANDS["prompt"] = "eval.prompt"
commands, heavy, statuses = *map(json.loads, sys.argv[1:]), []
for words in commands:
    try:
        statuses.append(main(words))
    except SystemExit as ended:
        statuses.append(ended.code or 0)
print(json.dumps([statuses, [name for name in heavy if name in sys.modules]]))
"""
RUN = ("run", "--task", "plos", "--maxlen", "64")
MISTAKES: dict[tuple[str, ...], str] = {
    ("run", "--task", "plso", "--maxlen", "64"): "unknown task 'plso', perhaps 'plos'",
    ("run", "--task", "none.yaml", "--maxlen", "64"): "task file none.yaml cannot be read",
    ("run", "--config", "none.yaml"): "--config none.yaml cannot be read",
    (*RUN, "--plan", "botom:8"): "plan 'botom:8', character 1: 'botom:8' is no placement",
    (*RUN, "--plan", ";"): "plan ';', character 1: no layer has attention",
    (*RUN, "--plan", "full span=3"): "'span=3' has no layer to apply to",
    (*RUN, "--plan", "none@1; span=64@0,x"): "plan 'none@1; span=64@0,x', character 19: 'x' is no layer",
    (*RUN, "--plan", "none.json"): "plan file 'none.json' cannot be read",
    (*RUN, "--data", "none.jsonl"): "no such file or folder: none.jsonl",
    (*RUN, "--model", "./none"): "model folder './none' does not exist",
    (*RUN, "--model", "none.gguf"): "model file 'none.gguf' does not exist",
    (*RUN, "--until", "rouge1: 64 differs from none"): "--until names 'none', where no run is",
    (*RUN, "--adapter", "./none"): "model folder './none' does not exist",
    (*RUN, "--model", "a", "--adapter", "./none"): "adapter folder './none' does not exist",
    (*RUN, "--engine", "vllm", "--model", "./none"): "model folder './none' does not exist",
    ("perplexity", *RUN[1:], "--plan", "every:0"): "plan 'every:0', character 7: every needs a positive number",
    ("finetune", "--task", "aclsum", "--maxlen", "64", "--plan", "full@"): "plan 'full@', character 6: '' is no layer",
    ("placement", *RUN[1:], "--local", "spn=8"): "--local 'spn=8' is no span",
    ("placement", *RUN[1:], "--budget", "lyers=8"): "budget 'lyers=8' is none",
    ("placement", *RUN[1:], "--held-out-split", "test", "--measure", "full@1 span=x"): "span needs a whole number",
    ("score", "none"): "none holds no run",
    ("compare", "none", "none"): "none holds no run",
    ("leaderboard", "none"): "none is not a folder",
    ("view", "none"): "none is not a folder",
    ("study", "none.yaml"): "study none.yaml cannot be read",
    ("tasks", "show", "plso", "--example"): "unknown task 'plso'",
    ("prompt", "plos", "--data", "none.jsonl"): "no such file or folder: none.jsonl",
    ("show", "none.gguf"): "model file 'none.gguf' does not exist",
    ("show", "smollm2-135m", "--plan", "span=8"): "plan 'span=8', character 1: 'span=8' needs a placement before it",
    ("convert", "./none", "--plan", "full", "--output", "mas"): "model folder './none' does not exist",
    ("convert", "a", "--plan", "full@3; full span=1", "--output", "mas"): "'full span=1' names no layers",
}


def started(commands: Sequence[Sequence[str]], folder: Path) -> tuple[list[int], list[str], list[str]]:
    """Run commands one after the other in a process; return their statuses, its heavy imports and lines on stderr."""
    arguments = [json.dumps([list(words) for words in commands]), json.dumps(HEAVY)]
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}){PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    statuses, imported = json.loads(done.stdout.splitlines()[-1])
    return statuses, imported, done.stderr.splitlines()


@pytest.mark.parametrize("command", [*COMMANDS, "prompt"])
def test_help_and_unknown_flags_wait_for_no_heavy_import(command: str, tmp_path: Path) -> None:
    # The flags of the harness are read by lm-evaluation-harness itself, which gets torch's threads set first.
    wrong = [] if command == "harness" else [[command, "--no-such-flag"]]
    statuses, imported, lines = started([[command, "--help"], *wrong], tmp_path)
    assert (statuses, imported) == ([0, *(2 for _ in wrong)], [])
    assert [line for line in lines if line.startswith("error: ")] == lines
    assert len(lines) == len(wrong)


def test_what_arguments_alone_show_to_be_wrong_is_told_before_heavy_imports(tmp_path: Path) -> None:
    statuses, imported, lines = started([*MISTAKES], tmp_path)
    assert [line for line, told in zip(lines, MISTAKES.values(), strict=True) if told not in line] == []
    assert (set(statuses), imported) == ({2}, [])
    assert not list(tmp_path.iterdir())


def test_the_public_names_of_masformer_are_imported_when_they_are_used(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import masformer\n"
        "from masformer import PlanError, SpanPlan\n"
        "from masformer.checkpoints.references import SHORT_NAMES\n"
        "print([name for name in ('torch', 'transformers', 'safetensors', 'huggingface_hub') if name in sys.modules])\n"
        "for name in masformer.__all__: getattr(masformer, name)\n"
        "from masformer import SpanCache\n"
        "print('torch' in sys.modules, SpanCache is masformer.SpanCache, hasattr(masformer, 'none'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True False"]
