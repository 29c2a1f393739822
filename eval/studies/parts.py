"""A study as a YAML file holds it: parts, each one call of a script, the sections of the report, and claims.

    title: What spans cost
    defaults:
      eval/run.py: {task: plos, maxlen: [1024, 8192], limit: 20}
    parts:
      - {name: full, script: eval/run.py, settings: {plan: full}}
      - {name: middle8, script: eval/run.py, settings: {plan: "middle:8 span=1024 sinks=4"}}
    sections:
      - {kind: rouge, title: Summaries, parts: [full, middle8], reference: full}
    claims:
      - {name: enough, part: middle8, against: full, metric: rougeLsum, direction: as good, margin: 0.01, maxlen: 8192}

The file is checked before anything runs: unknown keys fail, and the settings of each part are read as its script would.
Plans, models and data are opened by the script, so that what one part lacks stops no other.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.config.finetune import TrainConfig
from eval.config.options import Options
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.records.schema import StudyClaim
from eval.studies.claims import read_claims
from eval.studies.yaml_fields import fields_of
from tasks.base import DataError
from tasks.command import as_launched, as_typed
from tasks.readers.yaml_file import read_yaml, shown

RUN, PERPLEXITY, FINETUNE, PLACEMENT = "eval/run.py", "eval/perplexity.py", "eval/finetune.py", "eval/placement.py"

# What checks the settings of each script.
SCRIPTS: dict[str, type[Options]] = {
    RUN: RunConfig,
    PERPLEXITY: PerplexityConfig,
    FINETUNE: TrainConfig,
    PLACEMENT: PlacementConfig,
}
# The scripts whose folders each kind of section reads.
KINDS: dict[str, tuple[str, ...]] = {
    "perplexity": (PERPLEXITY,),
    "placements": (PLACEMENT,),
    "rouge": (RUN,),
    "ladder": (RUN,),
    "training": (FINETUNE,),
    "cost": (RUN, PERPLEXITY),
    "repetition": (RUN,),
}
_WITHOUT_REFERENCE = ("placements", "ladder")  # their parts stand by themselves
LADDER = "eval/ladder.py"  # follows a run, in one process
CLAIMED = (RUN, PERPLEXITY)  # the scripts whose results claims are about
_OUTPUT = "{output}"
# Settings that the study gives, or that would keep a part from being one run that can be resumed.
_NOT_FOR_PARTS = ("output", "resume", "overwrite", "dry_run", "shard", "config")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_OWN_ENDS = (".md", ".json", ".log")
_OWN_NAMES = ("plots", "gallery", "report", "study")
_POSITIONS = [256 << doublings for doublings in range(20)]  # where buckets of eval/perplexity.py begin


def as_shell(words: Sequence[str]) -> str:
    """Return the command line that starts a script with its arguments, as it is typed."""
    if words[0] == LADDER:
        return as_typed(shlex.join(["python", "-m", "eval.ladder", *words[1:]]))
    return as_launched(words)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One call of a script."""

    name: str
    script: str  # one of `SCRIPTS`
    arguments: tuple[str, ...]  # without `--output`; `{output}` stands for the folder of the study
    needs: tuple[str, ...]  # names of parts whose results it uses
    ladder: bool = False  # `eval.ladder` follows the run
    likelihood: bool = False  # the run gets `--likelihood`

    def command(self, output: Path, *more: str) -> list[str]:
        """Return the script and its arguments for the study's folder."""
        words = [word.replace(_OUTPUT, str(output)) for word in self.arguments]
        words += ["--likelihood"] if self.likelihood else []
        return [self.script, *words, "--output", str(output / self.name), *more]

    def then(self, output: Path) -> list[str]:
        """Return the script that follows on the part's folder, and its arguments; empty where none does."""
        return [LADDER, str(output / self.name)] if self.ladder else []

    def shell(self, output: Path, *more: str) -> str:
        """Return the command that runs this part alone, as it is typed."""
        return as_shell(self.command(output, *more))

    def shells(self, output: Path, *more: str) -> list[str]:
        """Return all commands of this part in order, as they are typed."""
        then = self.then(output)
        return [self.shell(output, *more), *([as_shell(then)] if then else [])]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the report."""

    number: int  # from 1
    kind: str  # one of `KINDS`
    title: str
    parts: tuple[str, ...]  # names, in the order of tables
    reference: str | None = None  # the part that others are compared with
    text: str = ""  # a paragraph below the heading
    from_position: int | None = None  # in a section of perplexity, positions from here on are compared too
    labels: Mapping[str, str] = field(default_factory=dict)  # words of charts for names of parts or plans

    def label(self, name: str) -> str:
        """Return what charts call a part or a plan."""
        return self.labels.get(name, name)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run and reported."""

    file: Path
    title: str
    text: str  # a paragraph below the title
    parts: Mapping[str, Part]  # by name, each after those that it needs
    sections: Sequence[Section]
    claims: Sequence[StudyClaim] = ()

    def chosen(self, names: Sequence[str]) -> list[Part]:
        """Return the named parts with all that they need, in order; all parts if none is named.

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
        """Return a hash of a part's settings and of those of the parts it needs."""
        part = self.parts[name]
        follows = ["ladder"] if part.ladder else []
        content = [part.script, *part.arguments, *follows, *map(self.digest, sorted(part.needs))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_study(file: Path) -> Study:
    """Return the study of a YAML file.

    Raises:
        UserError: The file cannot be read, or an entry is wrong; one line says what and where.
    """
    try:
        content = read_yaml(file, f"study {file}")
    except DataError as error:
        raise UserError(str(error)) from error
    try:
        return _study(file, content)
    except UserError as error:
        raise UserError(f"study {file}: {error}") from None


def _study(file: Path, content: Any) -> Study:
    optional = {"text": str, "defaults": dict, "sections": list, "claims": list}
    fields = fields_of("the file", content, {"title": str, "parts": list}, optional)
    defaults = fields.get("defaults", {})
    for script, settings in defaults.items():
        _check_known(f"defaults of {script}", "script", script, SCRIPTS)
        if not isinstance(settings, dict):
            raise UserError(f"defaults of {script} are {shown(settings)}; write 'name: value' lines")
    parts: dict[str, Part] = {}
    for number, one in enumerate(fields["parts"], start=1):
        part = _part(f"part {number}", one, defaults)
        if part.name in parts:
            raise UserError(f"two parts are called '{part.name}'; give each a name of its own")
        parts[part.name] = part
    if not parts:
        raise UserError("parts is empty; name one at least")
    sections = [_section(number, one, parts) for number, one in enumerate(fields.get("sections", []), start=1)]
    titles = [section.title for section in sections]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"two sections are called '{title}'; give each a title of its own")
    settings = {
        name: SCRIPTS[part.script].from_command_line(part.arguments)
        for name, part in parts.items()
        if part.script in CLAIMED
    }
    return Study(
        file=file,
        title=fields["title"],
        text=fields.get("text", ""),
        parts={part.name: part for part in _in_order(parts)},
        sections=sections,
        claims=read_claims(fields.get("claims", []), settings, {name for name, part in parts.items() if part.ladder}),
    )


def _part(where: str, content: Any, defaults: Mapping[str, Mapping[str, Any]]) -> Part:
    fields = fields_of(where, content, {"name": str, "script": str}, {"settings": dict, "needs": list, "ladder": bool})
    name, script = fields["name"], fields["script"]
    if not _NAME.fullmatch(name) or name in _OWN_NAMES or Path(name).suffix in _OWN_ENDS:
        raise UserError(
            f"{where} is called {shown(name)}; it names a folder: at most 100 letters, digits, '-', '_' and '.', and "
            "no .md, .json or .log at its end"
        )
    where = f"part '{name}'"
    _check_known(where, "script", script, SCRIPTS)
    ladder = fields.get("ladder", False)
    if ladder and script != RUN:
        raise UserError(f"{where}: a ladder is of answers, which {script} does not make; leave it out")
    given = [*defaults.get(script, {}).items(), *fields.get("settings", {}).items()]
    settings = {str(key).replace("-", "_"): value for key, value in given}
    for key in _NOT_FOR_PARTS:
        if key in settings:
            raise UserError(f"{where}: '{key}' is no setting of a part; the study gives what it needs of it")
    try:
        arguments = SCRIPTS[script].arguments_of(settings)
        config = SCRIPTS[script].from_command_line(arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    used = [name for word in arguments for name in re.findall(rf"{re.escape(_OUTPUT)}/([^/\s]+)", word)]
    needs = dict.fromkeys(map(str, [*fields.get("needs", []), *used]))
    return Part(
        name=name,
        script=script,
        arguments=tuple(arguments),
        needs=tuple(needs),
        ladder=ladder,
        likelihood=ladder and "likelihood" not in settings and _can_share(config),
    )


def _can_share(config: Options) -> bool:
    """Return whether a run may measure likelihoods on the prefill of its answers."""
    if not isinstance(config, RunConfig):
        return False
    return config.engine == "local" and config.generate and not config.handles_thoughts


def _in_order(parts: Mapping[str, Part]) -> Iterator[Part]:
    """Yield parts in the order of the file, each after all that it needs."""
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
        yield ready


def _section(number: int, content: Any, parts: Mapping[str, Part]) -> Section:
    required = {"kind": str, "title": str, "parts": list}
    optional = {"reference": str, "text": str, "from_position": int, "labels": dict}
    fields = fields_of(f"section {number}", content, required, optional)
    where, kind = f"section '{fields['title']}'", fields["kind"]
    _check_known(where, "kind", kind, KINDS)
    names, reference = tuple(map(str, fields["parts"])), fields.get("reference")
    if not names:
        raise UserError(f"{where}: parts is empty; name one at least")
    for name in names:
        if name not in parts:
            raise UserError(f"{where}: '{name}' is no part; known: {', '.join(parts)}")
        if parts[name].script not in KINDS[kind]:
            fitting = " or ".join(KINDS[kind])
            raise UserError(f"{where}: '{name}' is a part of {parts[name].script}; {kind} shows those of {fitting}")
        if kind == "ladder" and not parts[name].ladder:
            raise UserError(f"{where}: '{name}' has no ladder; add `ladder: true` to that part")
    if reference is not None and reference not in names:
        raise UserError(f"{where}: reference '{reference}' is none of its parts: {', '.join(names)}")
    if reference is None and kind not in _WITHOUT_REFERENCE:
        raise UserError(f"{where}: reference is missing; name the part that the others are compared with")
    position = fields.get("from_position")
    if position is not None and (kind != "perplexity" or position not in _POSITIONS):
        raise UserError(
            f"{where}: from_position is {position}; it is of perplexity, and begins a bucket: 256, 512, 1024, ..."
        )
    labels = fields.get("labels", {})
    for name, label in labels.items():
        if not isinstance(name, str) or not isinstance(label, str):
            raise UserError(f"{where}: labels has {shown(name)}: {shown(label)}; write 'name: words in quotes' lines")
        if list(labels.values()).count(label) > 1:
            raise UserError(f"{where}: labels calls two names '{label}'; give each words of its own")
    return Section(**fields | {"parts": names, "number": number})


def _check_known(where: str, what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UserError(f"{where}: {what} '{name}' is not known; known: {', '.join(known)}")
