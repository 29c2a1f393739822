"""The same work by this suite's engine and by a vLLM that it starts, with full attention and with mixed spans.

    python benchmarks/engines.py --engine-python ENVIRONMENT/bin/python [--dtype bfloat16] [--queries QMSUM.jsonl]

ENVIRONMENT holds vLLM (docs/engines.md). The work is that of benchmarks/sweep.py: SmolLM2-135M on 4 PLOS articles at
1,024, 2,048, 4,096 and 8,192 tokens; with `--queries`, 8 queries about the first long meeting of QMSum's validation
file. Each way writes 128 tokens to each prompt, greedily, through the same requests: full attention, and 4 full layers
with span 512 without sinks, which vLLM reads in its native form. Each way runs in a process of its own.

Seconds count from the first request, with the model loaded or the server answering, to the last answer; and from the
beginning, with that start. "ours" of the table is this suite's engine, "peer" vLLM, so a ratio above 1 is ours faster.
Then the answers are compared: the share that is the same, and where others begin to differ, how near a tie the two
tokens were for the model here (`--gaps`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pairs import Case, finish, show
from eval.config.run import RunConfig
from eval.engines.served import ServedBackend
from eval.generation.backend import open_backend
from eval.generation.local import LocalBackend
from eval.generation.run_job import open_run
from masformer.hardware import device_name
from tasks import TASKS, LoadRequest

LENGTHS = ("1024", "2048", "4096", "8192")
NUM_ARTICLES, NUM_QUERIES = 4, 8
PLANS = {"full": "full", "4 full layers, span 512": "full@17,18,20,23 span=512 sinks=0"}
WAYS = ("local", "vllm")


@dataclass(frozen=True, kw_only=True)
class Way:
    """What one way came to.

    Attributes:
        seconds: From the first request to the last answer.
        whole: With loading the model, or starting the server.
        answers: Texts, by document and length.
        cached: Share of the prompts' tokens that were not computed again; None where it is not told.
    """

    seconds: float
    whole: float
    answers: Mapping[str, str]
    cached: float | None


def queries_of(file: Path, folder: Path) -> Path:
    """Write the queries about one long meeting as a file of the task `custom`, and return it."""
    by_meeting: dict[str, list[Any]] = {}
    for example in TASKS["qmsum"].load(LoadRequest(split="validation", data=file)).examples:
        found = by_meeting.setdefault(example.document_id, [])
        found.append(example)
        if len(found) == NUM_QUERIES and len(example.context.split()) > int(LENGTHS[-1]):
            rows = [{"context": one.context, "query": one.query, "target": one.references[0]} for one in found]
            target = folder / "queries.jsonl"
            target.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return target
    raise ValueError(f"no meeting of {file} has {NUM_QUERIES} queries and {LENGTHS[-1]} words")


def run_here(argv: Sequence[str]) -> Way:
    """Answer what a command line of eval/run.py asks for, without scoring."""
    config = RunConfig.from_command_line(list(argv))
    backend = open_backend(config)
    ready: list[float] = []
    if config.engine == "local":
        assert isinstance(backend, LocalBackend)
        opened: Any = backend.opened
        load = type(opened).load

        def loaded(self: Any, *arguments: Any) -> Any:
            model = load(self, *arguments)
            ready.append(time.perf_counter())
            return model

        type(opened).load = loaded
    else:
        assert isinstance(backend, ServedBackend)
        service: Any = backend.service
        running = service.running
        service.running = lambda log: _Noted(running(log), ready)
    run = open_run(config, config.load_tasks(), backend)
    requests = run.requests(backend)
    with run.lock(backend.process):
        requests, shared = run.start(requests, backend, argv)
        begun = time.perf_counter()
        lines = list(backend.answer(requests, shared))
        ended = max(time.perf_counter(), ready[0])
    asked = sum(line.prompt_tokens for line in lines)
    computed = [line.prefilled_tokens for line in lines]
    return Way(
        # Ending the server is no part of the answers.
        seconds=(ready[1] if len(ready) > 1 else ended) - ready[0],
        whole=(ready[1] if len(ready) > 1 else ended) - begun,
        answers={f"{line.id} {line.maxlen}": line.text for line in lines},
        cached=None if None in computed else 1 - sum(map(int, computed)) / asked,  # type: ignore[arg-type]
    )


class _Noted:
    """A context whose beginning and end are noted."""

    def __init__(self, inner: Any, times: list[float]) -> None:
        self.inner = inner
        self.times = times

    def __enter__(self) -> Any:
        found = self.inner.__enter__()
        self.times.append(time.perf_counter())
        return found

    def __exit__(self, *error: Any) -> Any:
        self.times.append(time.perf_counter())
        return self.inner.__exit__(*error)


def gaps_of(dtype: str, plan: str, requests: Sequence[tuple[Sequence[int], str, str]]) -> list[float]:
    """Return, for each prompt with two different answers, how far apart the model's logits are where they part.

    Where one answer ends and the other goes on, the end token stands against the next one.

    Args:
        dtype: Key of `TORCH_DTYPES`.
        plan: Spans of the model.
        requests: Token ids of the prompt, and both answers.
    """
    import torch

    from eval.runtime.model import TORCH_DTYPES
    from masformer import apply_plan, prefill, read_plan
    from masformer.attention.prefill import new_cache
    from masformer.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint("smollm2-135m")
    model, gaps = checkpoint.load_model(TORCH_DTYPES[dtype]), []
    apply_plan(model, read_plan(plan, model.config))
    for prompt, first, second in requests:
        texts = [
            [*checkpoint.tokenizer(text, add_special_tokens=False).input_ids, checkpoint.tokenizer.eos_token_id]
            for text in (first, second)
        ]
        at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None)
        if at is not None:
            ids = torch.tensor([[*prompt, *texts[0][:at]]])
            cache = new_cache(model, ids.shape[1])
            with torch.no_grad():
                prefill(model, ids[:, :-1], cache)
                logits = model(ids[:, -1:], past_key_values=cache).logits[0, -1].float()
            gaps.append(abs(float(logits[texts[0][at]] - logits[texts[1][at]])))
    return gaps


def main() -> None:
    """Run all ways, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-python", type=Path, help="Python of an environment with vLLM")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--queries", type=Path, help="QMSum's validation file")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS))
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), help="all without it")
    parser.add_argument("--work", nargs="+", choices=["sweep", "queries"], help="all without it")
    parser.add_argument("--gaps", action="store_true", help="say how near a tie differing answers were")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("\n" + json.dumps(vars(run_here(arguments.one))))
        return
    amx = "amx_tile" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "unknown"
    print(f"machine: {device_name()}, AMX {amx}, dtype {arguments.dtype}", flush=True)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = ["--task", "plos", "--limit", str(NUM_ARTICLES), "--maxlen", *arguments.lengths]
        work = {"sweep": sweep}
        if arguments.queries:
            file = queries_of(arguments.queries, folder)
            fields = ["--query-field", "query", "--instruction", "Answer the query about the meeting."]
            longest = arguments.lengths[-1:]
            work["queries"] = ["--task", "custom", "--data", str(file), *fields, "--maxlen", *longest]
        for what, flags in work.items():
            if what not in (arguments.work or work):
                continue
            for label in arguments.plans or PLANS:
                plan = PLANS[label]
                ways = [_separately(arguments, [*flags, "--plan", plan], engine, folder) for engine in WAYS]
                for times in ("seconds", "whole"):
                    ours, peer = (getattr(way, times) for way in ways)
                    start = ", with start" if times == "whole" else ""
                    case = Case(case=f"{what}, {label}{start}", ours=ours, peer=peer, unit="s")
                    show(case)
                    cases.append(case)
                _compare(arguments, ways, [*flags, "--plan", plan], plan, folder)
    finish(cases)


def _separately(arguments: argparse.Namespace, flags: Sequence[str], engine: str, folder: Path) -> Way:
    room = str(arguments.new_tokens)
    argv = [*flags, "--max-new-tokens", room, "--min-new-tokens", room, "--dtype", arguments.dtype]
    argv += ["--engine", engine, "--output", str(folder / f"{engine}-{len(list(folder.iterdir()))}"), "--no-texts"]
    if engine == "vllm" and arguments.engine_python:
        argv += ["--engine-python", str(arguments.engine_python)]
    if engine == "vllm":  # by default it wants more than this process leaves of 24 GiB
        argv += ["--engine-args", "--gpu-memory-utilization 0.8"]
    done = subprocess.run(
        [sys.executable, __file__, "--one", *argv], stdout=subprocess.PIPE, text=True, check=True, cwd=sys.path[0]
    )
    return Way(**json.loads(done.stdout.splitlines()[-1]))


def _compare(arguments: argparse.Namespace, ways: Sequence[Way], flags: Sequence[str], plan: str, folder: Path) -> None:
    ours, peer = ways
    differing = [key for key, text in ours.answers.items() if peer.answers[key] != text]
    told: dict[str, Any] = {"answers": len(ours.answers), "identical": len(ours.answers) - len(differing)}
    told |= {"computed again no more": [way.cached and round(way.cached, 3) for way in ways]}
    if arguments.gaps and differing:
        room = ["--max-new-tokens", str(arguments.new_tokens), "--output", str(folder / "prompts")]
        config = RunConfig.from_command_line([*flags, *room])
        backend = open_backend(config)
        requests = open_run(config, config.load_tasks(), backend).requests(backend)
        prompts = {f"{one.key[2]} {one.key[3]}": one.prompt.token_ids for one in requests.missing()}
        parted = [(prompts[key], ours.answers[key], peer.answers[key]) for key in differing]
        told["gaps"] = [round(gap, 5) for gap in gaps_of(arguments.dtype, plan, parted)]
    print(f"  {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main()
