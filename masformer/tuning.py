"""A choice among ways that compute the same, by the time they take on this machine; remembered in a file.

    name = choose("linear", "float32 1536x576", {"plain": plain, "packed": packed})

`MASFORMER_WAYS` names ways by topic ("linear=plain window=tiles", `TOPICS`), or is "default": the first way everywhere,
nothing timed.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

import torch

from masformer.errors import OneLineError
from masformer.hardware import processor_name, vector_instructions

WAYS = "MASFORMER_WAYS"
# The ways of each topic that this package knows; those of attention are explained in `masformer.attention.ways`.
TOPICS = {
    # By torch's own function, by oneDNN from the weight as it is, by oneDNN or our kernel from a copy of it.
    "linear": ("plain", "direct", "packed", "simd"),
    "window": ("tiles", "32", "64", "128", "simd"),
    "pattern": ("tiles", "simd"),
    "attention": ("torch", "simd"),
    "step": ("torch", "simd"),
}
_MARGIN = 0.95  # what another way may take of the first one's time; less is noise
_AGREEMENT = 1.2  # what the second best time may be of the best one; a choice from others is made again next time
_ROUNDS = 3
_BEFORE = {"attention": "torch"}
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # they hide instructions from torch and oneDNN

_settled: dict[tuple[str, str], str] = {}  # by machine and key
_used: dict[str, str] = {}
_measured: list[float] = []  # seconds that `now` leaves out


def choose(topic: str, case: str, ways: Mapping[str, Callable[[], object]], *, seconds: float = 0.05) -> str:
    """Return the name of the fastest way: one named in the environment, remembered, or timed now.

    Args:
        topic: What is computed, a word that `MASFORMER_WAYS` names.
        case: What its speed depends on beside the machine, such as dtype and shape.
        ways: Each computes the case once; the first is the default, and is left for one that is clearly faster.
        seconds: Time to spend on all ways together, beyond a few calls of each.

    Raises:
        OneLineError: `MASFORMER_WAYS` names a way that there is not.
    """
    name = remembered(topic, case, ways)
    if name is None:
        key = f"{topic} {case}"
        with uncounted():
            name, is_sure = _fastest(ways, seconds)
        name = _remember(_entry(key, ways), name, ways) if is_sure else name
        settle(key, name)
    return name


def remembered(topic: str, case: str, ways: Collection[str]) -> str | None:
    """Return the way that `choose` takes without timing; None where there is none."""
    key, named = f"{topic} {case}", named_way(topic, tuple(ways))
    name = named or _settled.get((machine(), key))
    if name not in ways:
        name = _read(choices_file()).get(machine(), {}).get(_entry(key, ways))
    if name is None or name not in ways:
        return None
    _used[key] = name
    if named is None:
        _settled[machine(), key] = name
    return name


def _entry(key: str, ways: Collection[str]) -> str:
    """Return the name of a choice in the file; it holds among these ways only."""
    return f"{key}; of {', '.join(ways)}"


def chosen() -> dict[str, str]:
    """Return the way that this process chose last for each topic and case, for a record."""
    return dict(sorted(_used.items()))


def settled(key: str) -> str | None:
    """Return the way of a key that this process chose, or took up from an earlier one; None where there is none."""
    return _settled.get((machine(), key))


def settle(key: str, name: str) -> None:
    """Let a way hold for a key in this process, and in those that take up its ways."""
    _settled[machine(), key] = _used[key] = name


def note(case: str, name: str) -> None:
    """Let `chosen` tell of a way that was not chosen by its time."""
    _used[case] = name


def take_up(ways: Mapping[str, str]) -> None:
    """Let ways that `chosen` returned in an earlier process hold in this one; what the environment names goes first.

    A process that chose ways, but none of a topic that has come since, computed as `_BEFORE` says.
    """
    _settled.update({(machine(), key): name for key, name in ((_BEFORE | dict(ways)) if ways else {}).items()})


def now(device: torch.device) -> float:
    """Return a time in seconds, once the device has done its work; it stands still while ways are measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - sum(_measured)


@contextmanager
def uncounted() -> Iterator[None]:
    """Let `now` stand still while something is done that a machine needs once."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _measured.append(time.perf_counter() - start)


def named_way(topic: str, ways: tuple[str, ...]) -> str | None:
    """Return the way that `MASFORMER_WAYS` names for a topic; None where it names none. Raises as `choose` does."""
    named = _named_ways(os.environ.get(WAYS, ""))
    if "default" in named:
        return ways[0]
    name = named.get(topic)
    if name is not None and name not in ways:
        raise OneLineError(f"{WAYS} names '{name[:40]}' for {topic}; known: {', '.join(ways)}")
    return name


def check_names() -> None:
    """Raise a `OneLineError` where `MASFORMER_WAYS` names a topic or a way that there is not."""
    for topic, name in _named_ways(os.environ.get(WAYS, "")).items():
        if topic != "default" and name not in TOPICS.get(topic, ()):
            known = ", ".join(f"{topic}={'|'.join(ways)}" for topic, ways in TOPICS.items())
            written = f"{topic}={name}" if name else topic
            raise OneLineError(f"{WAYS} has '{written[:40]}'; known: default, {known}")


@cache  # it is asked for in every layer of every step
def _named_ways(text: str) -> Mapping[str, str]:
    return dict(each.partition("=")[::2] for each in text.split())


def choices_file() -> Path:
    """Return where choices are remembered; deleting it has them made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "masformer" / "ways.json"


def machine() -> str:
    """Return what choices hold for: processor, its instructions as far as libraries may use them, torch, threads."""
    return f"{_processor()}; {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return "; ".join([processor_name(), vector_instructions(), *limits, f"torch {torch.__version__}"])


def _fastest(ways: Mapping[str, Callable[[], object]], seconds: float) -> tuple[str, bool]:
    """Return the name of the way that takes the least time, the first one unless another is clearly faster.

    The second value says whether the two best times of each way agree, that is, nothing else disturbed them.
    """
    for compute in ways.values():
        compute()  # what is set up once is not timed
    times: dict[str, list[float]] = {name: [] for name in ways}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < _ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, compute in ways.items():  # in turns, so that other programs disturb all alike
            start = time.perf_counter()
            compute()
            times[name].append(time.perf_counter() - start)
    best = {name: sorted(each)[:2] for name, each in times.items()}
    first, fastest = next(iter(ways)), min(best, key=lambda name: best[name][0])
    name = fastest if best[fastest][0] < _MARGIN * best[first][0] else first
    return name, all(second <= _AGREEMENT * least for least, second in best.values())


def _read(file: Path) -> Mapping[str, Mapping[str, str]]:
    """Return the remembered ways by machine and key; nothing where the file is absent or of another form."""
    try:
        stat = file.stat()
    except OSError:
        return {}
    return _parsed(file, stat.st_ino, stat.st_mtime_ns)


@lru_cache(maxsize=1)  # what is too short to be measured asks in every layer
def _parsed(file: Path, *version: int) -> Mapping[str, Mapping[str, str]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {name: {key: str(way) for key, way in ways.items()} for name, ways in known.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(key: str, name: str, known_ways: Collection[str]) -> str:
    """Return the way of a key after storing it; where another process was first, its way is kept."""
    file = choices_file()
    known = {name: dict(ways) for name, ways in _read(file).items()}
    ways = known.setdefault(machine(), {})
    if ways.get(key) not in known_ways:
        ways[key] = name
        with suppress(OSError):  # a folder that cannot be written only costs the time of choosing again
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{secrets.token_hex(8)}")
            partial.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
            partial.replace(file)
    return ways[key]
