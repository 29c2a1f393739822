"""Kill commands with SIGKILL at their crash points, resume them, and compare the result with an undisturbed run.

    python benchmarks/kills.py [--kills 1000] [--kinds run pair perplexity placement finetune merge study] [--seed 0]

A crash point lies just before each change of a file below the output folder: an open for writing, a rename, a removal,
a new folder, a link, an fsync. Every point is used once before any is used again; then come kills up to 0.2 s after a
point, in the middle of work. With chance 1/3 a resumed command is killed again. `pair` is a run of two processes: one
is killed, and the other is killed too or told to end, as a launcher does. The parts of a study run in its own process
here, so that one kill ends both. Models are tiny and random, on the CPU; charts are not drawn. Commands are forked from
a process that has imported everything.

Exits with status 1 where a command does not resume, or its result differs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import vl_convert
import yaml
from accelerate.state import AcceleratorState, GradientState
from tqdm import tqdm

import eval.finetune
import eval.generation.local  # forked processes need not import it
import eval.merge
import eval.perplexity
import eval.placement
import eval.run
import eval.study
import eval.training.trainer
from eval.studies import launch
from masformer.hardware import device_name
from tests.helpers.forks import launch_variables
from tests.helpers.texts import text
from tests.helpers.tiny_models import save_tiny_checkpoint

KINDS = ("run", "pair", "perplexity", "placement", "finetune", "merge", "study")
# What differs from run to run: times, memory, who paid for shared work, and what is made of these.
TIMES = {
    *("seconds", "prefill_seconds", "decode_seconds", "peak_bytes", "prefilled_tokens", "tokens_per_second"),
    *("cost", "sessions", "crc32", "train_seconds", "started", "finished", "resume", "needs", "done"),
    # The digest of a file that is not compared either: accelerate counts the steps of a session in it.
    "random_states_0.pkl",
}
# Digests of settings with paths in them, which a study's parts have.
OF_PATHS = {"fingerprint", "predictions", "example_scores"}
# Drawn from what is compared, with times in them; states of random number generators, of which some drive nothing here.
ONLY_THERE = {".md", ".html", ".csv", ".log", ".pkl"}


@dataclass(kw_only=True)
class Count:
    """What was done to one kind of command, and what came of it."""

    points: int = 0
    kills: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command, as it is first run and as it is resumed.

    Attributes:
        start: Runs it in this process and returns its status, given the output folder.
        resume: The same for a folder that a killed one left.
        processes: How many processes run it together.
    """

    start: Callable[[Path], int]
    resume: Callable[[Path], int]
    processes: int = 1


def commands(work: Path) -> dict[str, Callable[[], Kind]]:
    """Return how to make each kind; what a kind needs beforehand is made only then."""
    model = save_tiny_checkpoint(work / "model")
    few, many = work / "few.jsonl", work / "many.jsonl"
    write_papers(few, 4)
    write_papers(many, 6)
    common = f"--task arxiv --model {model} --threads 1"
    plan = "--plan", "full@1 span=64 sinks=4"
    generate = f"{common} --data {many} --maxlen 400 700 --max-new-tokens 12 --dtype float64".split()
    measure = f"{common} --data {many} --maxlen 64 200 --dtype float64".split()
    place = f"{common} --data {many} --maxlen 200 --limit 3 --dtype float64 --budget layers=1".split()
    place += ["--held-out-split", "test", "--random", "3", "--local", "span=16 sinks=2"]
    train = f"{common} --data {many} --maxlen 400 --max-steps 6 --eval-every 2 --held-out 0.25".split()
    train += ["--learning-rate", "1e-3", "--batch-size", "2"]
    generate += plan
    measure += plan

    def same(main: Callable[[Sequence[str]], int], argv: Sequence[str], processes: int = 1) -> Kind:
        def run(output: Path) -> int:
            return main([*argv, "--output", str(output)])

        return Kind(start=run, resume=run, processes=processes)

    def finetune() -> Kind:
        def run(output: Path) -> int:
            return eval.finetune.main([*train, "--output", str(output)])

        def resume(output: Path) -> int:
            is_begun = (output / "run.json").exists()
            return eval.finetune.main([*train, "--output", str(output), *(["--resume"] if is_begun else [])])

        return Kind(start=run, resume=resume)

    def merge() -> Kind:
        parts = [work / f"part-{part}" for part in (1, 2)]
        for number, part in enumerate(parts, start=1):
            shard = [*generate, "--shard", f"{number}/2", "--output", str(part)]
            if not part.exists() and (status := wait(fork(lambda shard=shard: eval.run.main(shard), work / "log"))):
                sys.exit(f"error: shard {number} ended with status {status}; {last_words(work / 'log')}")
        return same(eval.merge.main, list(map(str, parts)))

    def study() -> Kind:
        (work / "study.yaml").write_text(yaml.safe_dump(study_of(model, few)))
        return same(eval.study.main, [str(work / "study.yaml")])

    return {
        "run": lambda: same(eval.run.main, generate),
        "pair": lambda: same(eval.run.main, generate, processes=2),
        "perplexity": lambda: same(eval.perplexity.main, measure),
        "placement": lambda: same(eval.placement.main, place),
        "finetune": finetune,
        "merge": merge,
        "study": study,
    }


def write_papers(file: Path, count: int) -> None:
    papers = [{"article": text(i, 60 + 40 * i), "abstract": text(i + 50, 12)} for i in range(count)]
    file.write_text("".join(json.dumps(paper) + "\n" for paper in papers))


def study_of(model: Path, data: Path) -> dict[str, Any]:
    """Return a study of four parts, one of which needs another."""
    common = {"task": "arxiv", "data": str(data), "model": str(model), "threads": 1}
    steps = {"maxlen": 400, "max_steps": 2, "eval_every": 1, "held_out": 0.25, "learning_rate": 1e-3}
    return {
        "title": "Kills",
        "text": "A study that is killed.",
        "defaults": {
            "eval/run.py": common | {"maxlen": [400], "max_new_tokens": 4},
            "eval/perplexity.py": common | {"maxlen": [64, 200]},
            "eval/finetune.py": common | steps,
        },
        "parts": [
            {"name": "train", "script": "eval/finetune.py", "settings": {"plan": "full"}},
            {"name": "answers", "script": "eval/run.py", "settings": {"plan": "full"}},
            {
                "name": "trained",
                "script": "eval/run.py",
                "settings": {"model": "{output}/train/last"},
                "needs": ["train"],
            },
            {"name": "losses", "script": "eval/perplexity.py", "settings": {"plan": "full"}},
        ],
        "sections": [{"kind": "rouge", "title": "Answers", "parts": ["answers", "trained"], "reference": "answers"}],
    }


def launch_here(words: Sequence[str], log: Path) -> int:
    """Run a part of a study in its process."""
    mains = {
        "eval/run.py": eval.run.main,
        "eval/perplexity.py": eval.perplexity.main,
        "eval/finetune.py": eval.finetune.main,
    }
    status = mains[words[0]](list(words[1:]))
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return status


def fork(work: Callable[[], int], log: Path, environ: dict[str, str] | None = None) -> int:
    """Run a function in a process of its own, its output in a file; return the id."""
    child = os.fork()
    if child:
        return child
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environ or {})
    status = 99
    try:
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Return the status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def last_words(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-4:])[-800:]


def with_crash(work: Callable[[], int], output: Path, at: int | None, delay: float, count: Path | None = None) -> int:
    """Run a function in this process, which dies by SIGKILL at a crash point.

    Args:
        work: What is run.
        output: Folder whose files are watched.
        at: Number of the crash point, from 1; None for none.
        delay: Seconds from the point to the kill.
        count: File that gets the number of points that were passed.
    """
    passed, root = 0, str(output)

    def pass_point() -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            if delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(path, (str, Path)) and root in str(path):
                pass_point()
        elif event in (
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.truncate",
            "os.symlink",
            "os.link",
        ) and any(root in str(argument) for argument in arguments[:2]):
            pass_point()

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        pass_point()
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(audit)
    status = work()
    if count is not None:
        count.write_text(str(passed))
    return status


def attempt(
    kind: Kind, command: Callable[[Path], int], output: Path, at: int, delay: float, chance: random.Random
) -> bool:
    """Run a command that is to be killed; return whether it was."""
    log = output.with_suffix(".log")
    if kind.processes == 1:
        status = wait(fork(lambda: with_crash(lambda: command(output), output, at, delay), log))
        return check_status(status, log)
    doomed = chance.randrange(2)
    children = []
    for rank, environ in enumerate(launch_variables(kind.processes)):
        point = at if rank == doomed else None
        work = lambda point=point: with_crash(lambda: command(output), output, point, delay)  # noqa: E731
        children.append(fork(work, log.with_suffix(f".{rank}.log"), environ))
    status = wait(children[doomed])
    was_killed = check_status(status, log.with_suffix(f".{doomed}.log"))
    if was_killed:
        os.kill(children[1 - doomed], chance.choice([signal.SIGKILL, signal.SIGTERM]))
        reap(children[1 - doomed])
    else:
        wait(children[1 - doomed])
    return was_killed


def reap(child: int) -> None:
    """Wait for a process that was told to end; by force after some seconds, as a launcher does."""
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.02)


def check_status(status: int, log: Path) -> bool:
    """Return whether a process was killed; raises where it ended by a mistake."""
    if status == -signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"status {status}: {last_words(log)}")
    return False


def finish(kind: Kind, command: Callable[[Path], int], output: Path) -> None:
    """Run a command to its end."""
    logs = [output.with_suffix(f".{rank}.log") for rank in range(kind.processes)]
    variables = launch_variables(kind.processes) if kind.processes > 1 else [{}]
    children = [fork(lambda: command(output), log, one) for log, one in zip(logs, variables, strict=True)]
    for status, log in zip(map(wait, children), logs, strict=True):
        check_status(status, log)


def count_points(kind: Kind, output: Path, count: Path) -> int:
    """Return the crash points of the main process of an undisturbed command."""
    variables = launch_variables(kind.processes) if kind.processes > 1 else [{}]
    children = [
        fork(
            lambda rank=rank: with_crash(lambda: kind.start(output), output, None, 0, None if rank else count),
            output.with_suffix(f".{rank}.log"),
            environ,
        )
        for rank, environ in enumerate(variables)
    ]
    for rank, child in enumerate(children):
        check_status(wait(child), output.with_suffix(f".{rank}.log"))
    return int(count.read_text())


def contents(kind: str, output: Path) -> dict[str, Any]:
    """Return what a command left, by file, without what differs from run to run."""
    left_out = TIMES | OF_PATHS if kind == "study" else TIMES
    found: dict[str, Any] = {}
    for file in sorted(output.rglob("*")):
        name = str(file.relative_to(output))
        if file.name == ".lock":
            continue
        if file.is_symlink():
            found[name] = str(file.readlink())
        elif file.is_dir() or file.suffix in ONLY_THERE:
            found[name] = None
        elif file.suffix in (".json", ".jsonl"):
            # The folders that are compared have names of their own.
            content = file.read_text().replace(str(output), "OUTPUT").replace(f"{output.name}/", "OUTPUT/")
            lines = content.splitlines() if file.suffix == ".jsonl" else [content]
            values = [without(json.loads(line), left_out) for line in lines]
            # The measurements of a search stand in the order in which they were made.
            found[name] = sorted(values, key=str) if kind == "placement" else values
        else:
            found[name] = sha256(file.read_bytes()).hexdigest()
    return found


def without(value: Any, names: set[str]) -> Any:
    """Return JSON without the fields of some names."""
    if isinstance(value, dict):
        return {name: without(part, names) for name, part in value.items() if name not in names}
    if isinstance(value, list):
        return [without(part, names) for part in value]
    return value


def differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each file that differs."""
    lines = []
    for name in sorted({*there, *now}):
        if name not in now or name not in there:
            lines.append(f"{name} is {'absent' if name in there else 'left over'}")
        elif there[name] != now[name]:
            lines.append(f"{name} differs: {first_difference(there[name], now[name])}")
    return lines


def first_difference(there: Any, now: Any, path: str = "") -> str:
    if isinstance(there, dict) and isinstance(now, dict):
        for name in [*there, *now]:
            if there.get(name) != now.get(name):
                return first_difference(there.get(name), now.get(name), f"{path}.{name}")
    if isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        for index, (one, other) in enumerate(zip(there, now, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{index}]")
    return f"{path} was {str(there)[:120]}, is {str(now)[:120]}"


def torment(name: str, kind: Kind, work: Path, kills: int, chance: random.Random) -> Count:
    """Kill a command as often as asked, in as many folders as that takes."""
    folder = work / name
    folder.mkdir()
    undisturbed, count = folder / "undisturbed", Count()
    num_points = count_points(kind, undisturbed, folder / "points")
    expected = contents(name, undisturbed)
    finish(kind, kind.start, folder / "twice")
    if lines := differences(expected, contents(name, folder / "twice")):
        sys.exit(f"error: {name} is not repeatable: {lines[0]}")
    points: list[int] = []
    rounds = 0
    while count.kills < kills:
        output = folder / f"run-{count.resumed}"
        command, is_killed = kind.start, True
        try:
            while is_killed and count.kills < kills:
                if not points:
                    points = chance.sample(range(1, num_points + 1), num_points)
                    rounds += 1
                # A resumed command passes fewer points than a new one: where it passes too few, it ends.
                delay = 0.0 if rounds == 1 else chance.uniform(0, 0.2)
                is_killed = attempt(kind, command, output, points.pop(), delay, chance)
                count.kills += is_killed
                command = kind.resume
                if chance.random() > 1 / 3:
                    break
            finish(kind, kind.resume, output)
            problems = differences(expected, contents(name, output))
        except RuntimeError as error:
            problems = [str(error)]
        count.resumed += 1
        if problems:
            count.problems.append(f"{output.name}: {problems[0]}")
            print(f"{name}: {count.problems[-1]}", flush=True)
        else:
            shutil.rmtree(output, ignore_errors=True)
    count.points = num_points
    print(
        f"{name:<10} {num_points:>4} crash points, {count.kills:>4} kills, {count.resumed:>4} resumed to their end, "
        f"{len(count.problems)} that differ or do not resume",
        flush=True,
    )
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that has started others cannot be forked
    # Forks would share its lock of processes, and one that is killed with it would stop the others for ever.
    tqdm.set_lock(threading.RLock())
    # Drawing takes longer than all the rest.
    vl_convert.vegalite_to_png = lambda *_, **__: b"png"
    vl_convert.vegalite_to_svg = lambda *_, **__: "<svg></svg>"
    vl_convert.javascript_bundle = lambda *_, **__: ""
    launch.launch = launch_here
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    chance, begun = random.Random(options.seed), time.monotonic()
    makers, counts = commands(work), {}
    for index, name in enumerate(options.kinds):
        kills = options.kills * (index + 1) // len(options.kinds) - options.kills * index // len(options.kinds)
        counts[name] = torment(name, makers[name](), work, kills, chance)
    bad = sum(len(one.problems) for one in counts.values())
    if not (options.keep or bad):
        shutil.rmtree(work)
    elif bad:
        print(f"folders: {work}")
    total = sum(one.kills for one in counts.values())
    rows = {name: {**vars(one), "problems": len(one.problems)} for name, one in counts.items()}
    seconds = round(time.monotonic() - begun)
    print(json.dumps({"kills": total, "bad": bad, "seconds": seconds, "cpu": device_name(), "kinds": rows}))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
