"""What answered a run, as comparisons and reports name it, and by which clock its seconds were taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.records.schema import Session

Engine = Mapping[str, Any] | None  # `engine` of an identity, None for the `local` engine with a decoder

LOCAL = "local"
SHARE_OF_BATCH = "share of a batch"
REQUEST_BESIDE_OTHERS = "request beside others"
# Engines that answer within this process; all others are servers.
_HERE = (LOCAL, "mock")
FORMS = {"ids": "token ids", "text": "text", "messages": "chat messages"}


def name_engine(engine: Engine) -> str:
    """Return the name of an engine; that of another kind of model is the kind."""
    engine = engine or {}
    return str(engine.get("name") or engine.get("kind") or LOCAL)


def engine_details(engine: Engine) -> dict[str, Any]:
    """Return what answers depend on besides the engine's name and the model, by name."""
    return {name: value for name, value in (engine or {}).items() if name not in ("name", "kind", "model")}


def is_server(engine: Engine) -> bool:
    """Return whether a server answered."""
    name = (engine or {}).get("name")
    return name is not None and name not in _HERE


def clock_of(engine: Engine) -> str:
    """Return what the seconds of a prediction are: its share of a batch here, or its request to a server.

    The first counts work on a machine that does nothing else; the second is wall time, waiting included. They do not
    compare.
    """
    return REQUEST_BESIDE_OTHERS if is_server(engine) else SHARE_OF_BATCH


def describe_engine(engine: Engine, sessions: Iterable[Session]) -> str:
    """Return the name of an engine with the servers that answered and their versions, where sessions tell."""
    name = name_engine(engine)
    told = [one.engine or {} for one in sessions]
    servers = dict.fromkeys(" ".join(str(one[key]) for key in ("name", "version") if one.get(key)) for one in told)
    known = [server for server in servers if server not in ("", name)]
    if len(known) == 1 and known[0].startswith(f"{name} "):
        return known[0]
    return f"{name} ({', '.join(known)})" if known else name


def engine_facts(engine: Engine, session: Session) -> dict[str, str]:
    """Return what a report says of a server, by name; nothing where none answered."""
    if not engine or not is_server(engine):
        return {}
    told = session.engine or {}
    parts = [describe_engine(engine, [session])]
    parts += [f"at {told['address']}"] if told.get("address") else []
    parts += [f"serving `{engine['model']}`"] if engine.get("model") else []
    parts += [f"prompts as {FORMS.get(form, form)}"] if (form := engine.get("prompts_as")) else []
    parts += [f"arguments `{' '.join(map(str, arguments))}`"] if (arguments := engine.get("args")) else []
    return {"engine": ", ".join(parts)}


def describe_clock(engine: Engine, session: Session) -> str:
    """Return how the seconds of a server's answers were taken, in sentences; empty where none answered."""
    if not is_server(engine):
        return ""
    at_once = (session.engine or {}).get("concurrency")
    many = f", at most {at_once} at a time" if at_once else ""
    return (
        f"Seconds are those of a {REQUEST_BESIDE_OTHERS}{many}, from sending it to its end; they do not compare with "
        f"those of the local engine, each of which is a {SHARE_OF_BATCH}. What a server does not tell is a dash."
    )


def clocks_apart(clocks: Mapping[str, Sequence[str]]) -> str:
    """Return that seconds do not compare, in a sentence; empty with fewer than two clocks.

    Args:
        clocks: Names of what was timed, by clock.
    """
    if len(clocks) < 2:
        return ""
    places = "; ".join(f"{clock}: {', '.join(names)}" for clock, names in clocks.items())
    return f"Seconds were taken in different ways and do not compare: {places}."
