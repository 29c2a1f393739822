"""A study as a YAML file holds it: parts, each one call of a script, and the sections of the report about them.

    title: What spans cost
    defaults:
      eval/run.py: {task: plos, maxlen: [1024, 8192], limit: 20}
    parts:
      - {name: full, script: eval/run.py, settings: {plan: full}}
      - {name: middle8, script: eval/run.py, settings: {plan: "middle:8 span=1024 sinks=4"}}
    sections:
      - {kind: rouge, title: Summaries, parts: [full, middle8], reference: full}

The file is checked before anything runs: unknown keys fail, and the settings of each part are read as its script would.
Plans, models and data are opened by the script, so that what one part lacks stops no other.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.config.finetune import TrainConfig
from eval.config.options import Options
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.errors import UserError
from tasks.command import as_typed

RUN, PERPLEXITY, FINETUNE, PLACEMENT = "eval/run.py", "eval/perplexity.py", "eval/finetune.py", "eval/placement.py"

# By script, what checks its settings.
SCRIPTS: dict[str, type[Options]] = {
    RUN: RunConfig,
    PERPLEXITY: PerplexityConfig,
    FINETUNE: TrainConfig,
    PLACEMENT: PlacementConfig,
}
# By kind of section, the scripts whose folders it reads.
KINDS: dict[str, tuple[str, ...]] = {
    "perplexity": (PERPLEXITY,),
    "placements": (PLACEMENT,),
    "rouge": (RUN,),
    "training": (FINETUNE,),
    "cost": (RUN, PERPLEXITY),
    "repetition": (RUN,),
}
_OUTPUT = "{output}"
# Settings that are the study's to give, or would make a part something else than one run that can be resumed.
_NOT_FOR_PARTS = ("output", "resume", "overwrite", "dry_run", "shard", "config")
_OWN_ENDS = (".md", ".json", ".log")
_OWN_NAMES = ("plots", "gallery", "report", "study")
# The first position of each bucket of eval/perplexity.py.
_FIRST_EDGE = 256


@dataclass(frozen=True, kw_only=True)
class Part:
    """One call of a script.

    Attributes:
        name: Of its folder in that of the study.
        script: Of `SCRIPTS`, as seen from the checkout.
        arguments: Of the command line, `{output}` standing for the folder of the study; without `--output`.
        needs: Names of parts whose results it uses.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]

    def command(self, output: Path, *more: str) -> list[str]:
        """Return the script and its arguments for the study's folder."""
        given = [word.replace(_OUTPUT, str(output)) for word in self.arguments]
        return [self.script, *given, "--output", str(output / self.name), *more]

    def shell(self, output: Path, *more: str) -> str:
        """Return the command that runs this part alone, as it is typed."""
        return as_typed(f"accelerate launch {shlex.join(self.command(output, *more))}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the report.

    Attributes:
        number: In the report, from 1.
        kind: Of `KINDS`.
        title: Its heading.
        parts: Names, in the order of tables.
        reference: The part that others are compared with; None where the kind has none.
        text: What stands below the heading.
        from_position: Of perplexity: positions from here on are compared too.
    """

    number: int
    kind: str
    title: str
    parts: tuple[str, ...]
    reference: str | None = None
    text: str = ""
    from_position: int | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run and reported.

    Attributes:
        file: That it was read from.
        title: Of the report.
        text: Below it.
        parts: By name, what a part needs before it.
        sections: Of the report.
    """

    file: Path
    title: str
    text: str
    parts: Mapping[str, Part]
    sections: Sequence[Section]

    def chosen(self, names: Sequence[str]) -> list[Part]:
        """Return the parts of these names with all that they need, in order; all where none is named.

        Raises:
            UserError: There is no such part.
        """
        for name in names:
            if name not in self.parts:
                raise UserError(f"--only {name}: {self.file} has no such part; known: {', '.join(self.parts)}")
        wanted = set(names or self.parts)
        for part in reversed(list(self.parts.values())):
            if part.name in wanted:
                wanted.update(part.needs)
        return [part for part in self.parts.values() if part.name in wanted]

    def digest(self, name: str) -> str:
        """Return what differs between parts whose results may: of its settings, and of those of what it needs."""
        part = self.parts[name]
        content = [part.script, *part.arguments, *map(self.digest, sorted(part.needs))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_study(file: Path) -> Study:
    """Return the study of a YAML file.

    Raises:
        UserError: It cannot be read, or something in it cannot be; one line says what and where.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"study {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study {file} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _study(file, content)
    except UserError as error:
        raise UserError(f"study {file}: {error}") from None


def _study(file: Path, content: Any) -> Study:
    found = _fields(
        "the file", content, {"title": str, "parts": list}, {"text": str, "defaults": dict, "sections": list}
    )
    defaults = found.get("defaults", {})
    for script, settings in defaults.items():
        _check_script(f"defaults of {script}", script)
        if not isinstance(settings, dict):
            raise UserError(f"defaults of {script} are {settings!r}; write 'name: value' lines")
    parts: dict[str, Part] = {}
    for number, one in enumerate(found["parts"], start=1):
        part = _part(f"part {number}", one, defaults)
        if part.name in parts:
            raise UserError(f"two parts are called '{part.name}'; give each a name of its own")
        parts[part.name] = part
    if not parts:
        raise UserError("parts is empty; name one at least")
    sections = [_section(number, one, parts) for number, one in enumerate(found.get("sections", []), start=1)]
    titles = [section.title for section in sections]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"two sections are called '{title}'; give each a title of its own")
    return Study(
        file=file,
        title=found["title"],
        text=found.get("text", ""),
        parts={name: parts[name] for name in _in_order(parts)},
        sections=sections,
    )


def _part(where: str, content: Any, defaults: Mapping[str, Mapping[str, Any]]) -> Part:
    found = _fields(where, content, {"name": str, "script": str}, {"settings": dict, "needs": list})
    name, script = found["name"], found["script"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in _OWN_NAMES or Path(name).suffix in _OWN_ENDS:
        raise UserError(
            f"{where} is called '{name}'; it names a folder: letters, digits, '-', '_' and '.', and no .md, .json or "
            ".log at its end"
        )
    where = f"part '{name}'"
    _check_script(where, script)
    settings = {
        str(key).replace("-", "_"): value
        for given in (defaults.get(script, {}), found.get("settings", {}))
        for key, value in given.items()
    }
    for key in _NOT_FOR_PARTS:
        if key in settings:
            raise UserError(f"{where}: '{key}' is no setting of a part; the study gives what it needs of it")
    config = SCRIPTS[script]
    try:
        arguments = config.arguments_of(settings)
        config.from_command_line(arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    used = [match for word in arguments for match in re.findall(rf"{re.escape(_OUTPUT)}/([^/\s]+)", word)]
    return Part(
        name=name,
        script=script,
        arguments=tuple(arguments),
        needs=tuple(dict.fromkeys(map(str, [*found.get("needs", []), *used]))),
    )


def _check_script(where: str, script: str) -> None:
    if script not in SCRIPTS:
        raise UserError(f"{where}: script '{script}' is not known; known: {', '.join(SCRIPTS)}")


def _in_order(parts: Mapping[str, Part]) -> Iterator[str]:
    """Yield the names of parts, in the order of the file, each after all that it needs."""
    done: set[str] = set()
    for part in parts.values():
        for name in part.needs:
            if name not in parts:
                raise UserError(f"part '{part.name}' needs '{name}', which is no part; known: {', '.join(parts)}")
    while len(done) < len(parts):
        ready = next((part for part in parts.values() if part.name not in done and done.issuperset(part.needs)), None)
        if ready is None:
            circle = ", ".join(name for name in parts if name not in done)
            raise UserError(f"parts need each other in a circle: {circle}")
        done.add(ready.name)
        yield ready.name


def _section(number: int, content: Any, parts: Mapping[str, Part]) -> Section:
    where = f"section {number}"
    optional = {"reference": str, "text": str, "from_position": int}
    found = _fields(where, content, {"kind": str, "title": str, "parts": list}, optional)
    where, kind = f"section '{found['title']}'", found["kind"]
    if kind not in KINDS:
        raise UserError(f"{where}: kind '{kind}' is not known; known: {', '.join(KINDS)}")
    names, reference = tuple(map(str, found["parts"])), found.get("reference")
    if not names:
        raise UserError(f"{where}: parts is empty; name one at least")
    for name in names:
        if name not in parts:
            raise UserError(f"{where}: '{name}' is no part; known: {', '.join(parts)}")
        if parts[name].script not in KINDS[kind]:
            fitting = " or ".join(KINDS[kind])
            raise UserError(f"{where}: '{name}' is a part of {parts[name].script}; {kind} shows those of {fitting}")
    if reference is not None and reference not in names:
        raise UserError(f"{where}: reference '{reference}' is none of its parts: {', '.join(names)}")
    if reference is None and kind != "placements":
        raise UserError(f"{where}: reference is missing; name the part that the others are compared with")
    position = found.get("from_position")
    if position is not None and (kind != "perplexity" or position not in [_FIRST_EDGE << n for n in range(20)]):
        raise UserError(
            f"{where}: from_position is {position}; it is of perplexity, and begins a bucket: 256, 512, 1024, ..."
        )
    return Section(**found | {"parts": names, "number": number})


def _fields(where: str, content: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    """Return a mapping whose keys and kinds of values are known to be right."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is {content!r}; write 'name: value' lines")
    known = {**required, **optional}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'; known: {', '.join(known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}; a {_KINDS_OF[known[key]]} was expected")
    for key in required:
        if key not in content:
            raise UserError(f"{where}: {key} is missing")
    return dict(content)


_KINDS_OF = {str: "text", list: "list", dict: "mapping", int: "whole number"}
