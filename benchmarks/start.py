"""What commands take that do no work: `--help`, and mistakes that arguments alone show; against an earlier commit.

    python benchmarks/start.py [--against COMMIT] [--repeats 5]

Figures are CPU seconds of the whole process, Python's own start included: a machine that does other work stretches the
time on the clock, and the last column shows that of ours. Needs git and the history of the repository.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.pairs import Case, finish, show, sources_of
from masformer.hardware import processor_name

# The last commit at which commands imported torch and transformers before they looked at plans and paths.
BEFORE = "3a85b827de8b3ae716d5d3968f836afb3bd2f2fc"
RUN = ("eval/run.py", "--task", "plos", "--maxlen", "1024")
CASES: dict[str, tuple[str, ...]] = {
    "import masformer": ("-c", "import masformer"),
    "tasks --help": ("-m", "tasks", "--help"),
    "run --help": ("eval/run.py", "--help"),
    "finetune --help": ("eval/finetune.py", "--help"),
    "placement --help": ("eval/placement.py", "--help"),
    "score --help": ("-m", "eval.score", "--help"),
    "study --help": ("-m", "eval.study", "--help"),
    "masformer show --help": ("-m", "masformer", "show", "--help"),
    "run, a mistyped task": ("eval/run.py", "--task", "plso", "--maxlen", "1024"),
    "run, a mistyped plan": (*RUN, "--plan", "botom:8"),
    "run, data that is not there": (*RUN, "--data", "none.jsonl"),
    "run, a model folder that is not there": (*RUN, "--model", "./none"),
    "masformer show, a mistyped plan": ("-m", "masformer", "show", "smollm2-135m", "--plan", "botom:8"),
}


def seconds(arguments: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Return the CPU seconds and the seconds on the clock of a command that runs on the sources in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    passed, after = time.perf_counter() - started, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu, passed


def main() -> None:
    """Print a line a command, then all ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", default=BEFORE, help="default: the last one before it was fast")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cases = []
    with sources_of(options.against) as before:
        print(f"{processor_name()}, CPU seconds; ours against {options.against[:7]}")
        for case, arguments in CASES.items():
            for folder in (ROOT, before):  # Python compiles the sources once
                seconds(arguments, folder)
            ours, theirs = [], []
            for _ in range(options.repeats):
                ours.append(seconds(arguments, ROOT))
                theirs.append(seconds(arguments, before))
            cpu, clock = (statistics.median(one[index] for one in ours) for index in (0, 1))
            peer = statistics.median(one[0] for one in theirs)
            cases.append(Case(case=f"{case} ({clock:.2f} s on the clock)", ours=cpu, peer=peer, unit="s"))
            show(cases[-1])
    finish(cases)


if __name__ == "__main__":
    main()
