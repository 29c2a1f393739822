"""A user's own data: `--task custom --data FILE` with flags that name its fields, or the same as a YAML task file.

    accelerate launch eval/run.py --task custom --data tickets.jsonl --context-field ticket --target-field summary
    accelerate launch eval/run.py --task tickets.yaml --maxlen 1024 4096

A task file has the attributes of `CustomTask` by name; its `data` is relative to the file itself:

    name: tickets
    data: tickets.jsonl
    context_field: ticket
    target_field: summary
    instruction: Summarize the following support ticket in two sentences.
    metrics: hf
    max_new_tokens: 96

Data is JSON lines, CSV or TSV with a header (also packed: .gz, .bz2, .xz, .zst, .zip), Parquet, or a folder of text
files: `NAME.txt` is a document, `NAME.target.txt` what should be written about it, `NAME.query.txt` the question.
All else is loaded by Hugging Face `datasets`: a data set of the hub (`hf://OWNER/NAME`), a folder with several files, a
pattern of paths, a JSON array, a zip file of several, Arrow as `save_to_disk` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from tasks.base import (
    NAME,
    SHOTS_SPLIT,
    SPLIT_NAMES,
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    Template,
    query_templates,
    template_variants,
)
from tasks.readers.any_dataset import HubPath, files_of, hub_dataset_rows, local_dataset_rows, refuse_subset
from tasks.readers.fields import Field, is_jinja, render_jinja
from tasks.readers.files import RECORDS, files_of_split, read_text_file, record_rows
from tasks.readers.opening import holds_records, unpacked_name
from tasks.readers.rows import BadRow, Row, Rows, collect, file_provenance
from tasks.readers.yaml_file import read_yaml, shown


@dataclass(frozen=True, kw_only=True)
class CustomTask:
    """A user's description of their data. Fields are names of columns, or texts in Jinja made of them.

    Attributes:
        data: A local path, a pattern of paths, or a data set of the hub, `hf://OWNER/NAME`.
        subset: Subset of the data set, which `datasets` calls its config; None for the only one, or the default.
        split: Default split, whatever the source calls it.
        revision: Branch, tag or commit of a data set of the hub.
        id_field: Field of the example's id.
        target_field: Field of what should be written: a text, or a list of texts any of which will do.
        query_field: Field of the question; None if nothing is asked.
        stratum_field: Field of the kind of document, by which reports count what was selected; None without kinds.
        cluster_field: Field of what a document is part of, such as the book of a chapter; None if each is by itself.
        metrics: Metric profile.
        templates: Texts with `{context}` and `{query}`, or `{text: ..., chat: false}`, by name; None makes them of the
            instruction.
        system: System message of all templates.
        maxlen: Default lengths in tokens.
        stop: Texts that end an answer.
        shots: Default number of solved examples in a prompt, drawn with `shots_seed` from `shots_split`.
        version: To be raised when the data or the prompts change.
    """

    name: str = "custom"
    data: Path | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    id_field: str = "id"
    context_field: str = "context"
    target_field: str = "target"
    query_field: str | None = None
    stratum_field: str | None = None
    cluster_field: str | None = None
    instruction: str | None = None
    metrics: str = "hf"
    max_new_tokens: int = 256
    templates: Mapping[str, Template] | None = None
    system: str | None = None
    maxlen: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    shots: int = 0
    shots_split: str = SHOTS_SPLIT
    shots_seed: int = 0
    description: str = "a user's own data"
    licence: str = "that of the data"
    version: int = 1

    def task(self) -> Task:
        """Return the task that loads the data. Raises `DataError` if one field is named for two things."""
        if len({self.context_field, self.target_field, self.query_field}) < 3:
            raise DataError(
                f"task {self.name}: document, target and question are the fields {self.context_field}, "
                f"{self.target_field} and {self.query_field or 'none'}; each needs a field of its own"
            )
        templates = self.templates or self._templates()
        if self.system is not None:
            templates = {name: replace(template, system=self.system) for name, template in templates.items()}
        place = None if self.data is None else HubPath.of(self.data)
        if self.revision is not None and place is None:
            raise DataError(
                f"task {self.name}: revision {self.revision} is of the hub, and the data is not; leave it out"
            )
        return Task(
            name=self.name,
            version=self.version,
            description=self.description,
            source="--data takes JSON lines, CSV, TSV, Parquet, a folder of texts, or what Hugging Face datasets loads",
            licence=self.licence,
            splits=dict.fromkeys((*SPLIT_NAMES, self.split, self.shots_split)),
            takes_any_split=True,
            read=partial(_load, self),
            templates=templates,
            default_template=next(iter(templates)),
            default_split=self.split,
            revision=(self.revision or place.revision or "main") if place else None,
            maxlen=self.maxlen,
            stop=self.stop,
            shots=self.shots,
            shots_split=self.shots_split,
            shots_seed=self.shots_seed,
            max_new_tokens=self.max_new_tokens,
            profile=self.metrics,
        )

    @property
    def fields(self) -> dict[str, Field]:
        """Return the fields that every row has, by attribute."""
        names = ("context_field", "target_field", "query_field", "stratum_field", "cluster_field")
        own = {what: getattr(self, what) for what in (*names, *(["id_field"] if self.id_field != "id" else []))}
        return {what: Field(name) for what, name in own.items() if name is not None}

    def _templates(self) -> dict[str, Template]:
        if self.query_field is None:
            text = self.instruction or "Summarize the following document."
            return template_variants("instruct", f"{text}\n\n", f"\n\n{text}", "\n\nAnswer:")
        text = self.instruction or "Answer the question from the document."
        return query_templates(f"{text}\n\n", f"\n\n{text}\n\n{{query}}", "\n\nAnswer:")


def _is_number(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_NUMBER = _is_number, "a whole number above 0"
_NATURAL = partial(_is_number, least=0), "a whole number, 0 or more"
_TEXT = (lambda value: isinstance(value, str) and value != ""), "a text"
# What the value of a key is, where it is no text.
_EXPECTED: dict[str, tuple[Callable[[object], bool], str]] = {
    "max_new_tokens": _NUMBER,
    "version": _NUMBER,
    "shots": _NATURAL,
    "shots_seed": _NATURAL,
    "stop": (
        lambda value: all(map(_TEXT[0], value)) and value != [] if isinstance(value, list) else _TEXT[0](value),
        "a text or a list of texts",
    ),
    "maxlen": (
        lambda value: all(map(_is_number, value)) and value != [] if isinstance(value, list) else _is_number(value),
        "a whole number above 0, or a list of them",
    ),
    "templates": (lambda value: isinstance(value, dict) and bool(value), "texts by name"),
}


def read_task_file(file: Path) -> CustomTask:
    """Return the task that a YAML file describes. Raises `DataError` if it cannot be read or an entry is wrong."""
    content = read_yaml(file, f"task file {file}")
    if not isinstance(content, dict):
        raise DataError(f"task file {file} holds no 'name: value' lines; see docs/tasks.md for an example")
    known = [field.name for field in fields(CustomTask)]
    for key, value in content.items():
        if key not in known:
            raise DataError(f"task file {file}: unknown key {shown(key)}; known: {', '.join(known)}")
        is_right, expected = _EXPECTED.get(key, _TEXT)
        if not is_right(value):
            raise DataError(f"task file {file}: {key} is {shown(value)}; expected {expected}")
    content = {"name": file.stem, **content}
    if not NAME.fullmatch(content["name"]):
        raise DataError(
            f"task file {file}: name is {shown(content['name'])}; expected at most 100 letters, digits, '.', '_' and "
            "'-', no dot first"
        )
    if "instruction" in content:
        check_instruction(content["instruction"], f"task file {file}: instruction")
        if "templates" in content:
            raise DataError(
                f"task file {file} has an instruction and templates, which hold their own; give one of them"
            )
    if "stop" in content:
        content["stop"] = tuple(content["stop"] if isinstance(content["stop"], list) else [content["stop"]])
    if "maxlen" in content:
        lengths = content["maxlen"] if isinstance(content["maxlen"], list) else [content["maxlen"]]
        content["maxlen"] = tuple(sorted(set(lengths)))
    if "data" in content and HubPath.of(Path(content["data"])) is None:
        content["data"] = file.parent / content["data"]
    elif "data" in content:
        content["data"] = Path(content["data"])
    if "templates" in content:
        content["templates"] = {
            str(name): _template(file, str(name), value, has_query="query_field" in content)
            for name, value in content["templates"].items()
        }
    return CustomTask(**content)


def _template(file: Path, name: str, value: Any, *, has_query: bool) -> Template:
    about = {"text": value} if isinstance(value, str) else value
    where = f"task file {file}: template '{name}'"
    if not NAME.fullmatch(name):
        raise DataError(f"{where}: a name has at most 100 letters, digits, '.', '_' and '-', and begins with no dot")
    if not isinstance(about, dict) or not isinstance(about.get("text"), str) or not set(about) <= {"text", "chat"}:
        raise DataError(f"{where} is {shown(value)}; expected a text, or `text` with `chat: true` or `chat: false`")
    if not isinstance(about.get("chat", True), bool):
        raise DataError(f"{where}: chat is {shown(about['chat'])}; expected true or false")
    if is_jinja(about["text"]):
        about = about | {"text": render_jinja(about["text"], where, {"context": "{context}", "query": "{query}"})}
    if about["text"].count("{context}") != 1:
        raise DataError(f"{where} holds {{context}} {about['text'].count('{context}')} times; expected once")
    if ("{query}" in about["text"]) != has_query:
        what = "no {query}" if has_query else "{query}, and the task has no query_field"
        raise DataError(f"{where} holds {what}; correct one of them")
    return Template(**about)


def check_instruction(text: str, where: str = "--instruction") -> None:
    """Raise `DataError` for an instruction that is empty or looks like a template."""
    if not text.strip():
        raise DataError(f"{where} is empty; leave it out, or say what is to be done")
    if "{context}" in text or "{query}" in text:
        raise DataError(
            f"{where} {shown(text)} holds a placeholder; the document and the question are put in by themselves, and "
            "whole templates go into a task file"
        )


def _load(about: CustomTask, request: LoadRequest) -> LoadedExamples:
    path = request.data or about.data
    if path is None:
        raise DataError(f"task {about.name} has no data; give --data a file, a folder or hf://OWNER/NAME")
    rows = _rows(about, path, request)
    # Other fields of the same file are another source.
    named = {"context": about.context_field, "target": about.target_field, "query": about.query_field}
    rows.provenance = {**rows.provenance, "fields": named}
    if about.cluster_field is not None:
        named["cluster"] = about.cluster_field
    if about.id_field != "id":
        named["id"] = about.id_field
    documents: dict[str, str] = {}
    clusters: dict[str, str] = {}

    def read(row: Row) -> Iterator[Example]:
        for what, field in about.fields.items():
            if missing := [column for column in field.columns if column not in row.fields]:
                raise DataError(
                    f"{row.where}: no field '{missing[0]}', fields found: {', '.join(row.fields) or 'none'}; name one "
                    f"with --{what.replace('_', '-')}, or {what} in a task file"
                )
        for field in about.fields.values():
            row = field.fill(row)
        context = row.text(about.context_field)
        example_id = row.name(request.split, about.id_field)
        cluster = None if about.cluster_field is None else _cluster(row, about.cluster_field)
        if cluster is not None and clusters.setdefault(context, cluster) != cluster:
            raise DataError(
                f"{row.where}: field '{about.cluster_field}' is {shown(cluster)}, and {shown(clusters[context])} in "
                "another row about the same document; give both the same"
            )
        yield Example(
            id=example_id,
            document_id=documents.setdefault(context, example_id),
            cluster_id=cluster,
            context=context,
            references=row.references(about.target_field),
            query=None if about.query_field is None else row.text(about.query_field),
            stratum=None if about.stratum_field is None else row.label(about.stratum_field),
        )

    return collect(request, rows, read)


def _cluster(row: Row, field: str) -> str:
    if (name := row.label(field)) is None:
        raise DataError(f"{row.where}: field '{field}' is empty; name what the document is part of, itself if nothing")
    return name


def _rows(about: CustomTask, path: Path, request: LoadRequest) -> Rows[Row]:
    columns = sorted({about.id_field}.union(*(field.columns for field in about.fields.values())))
    if place := HubPath.of(path):
        return hub_dataset_rows(place, about.subset, columns, request)
    if path.is_dir() and any(path.glob("*.txt")) and not any(map(_has_records, path.iterdir())):
        refuse_subset(about.subset, f"the folder of texts {path}")
        return _text_rows(about, path)
    files = files_of_split(path, request.split) if path.is_dir() else files_of(path)
    # Our own reader names a bad row by its line, and reads Parquet by pages.
    is_own = len(files) == 1 and files[0].suffix.lower() in RECORDS and about.subset is None
    if is_own and holds_records(files[0]):
        return record_rows(files[0])
    return local_dataset_rows(path, about.subset, columns, request.split)


def _has_records(file: Path) -> bool:
    # Something packed beside texts may be anything, unless its name says what.
    return file.suffix.lower() == ".gz" or PurePath(unpacked_name(file.name)).suffix.lower() in RECORDS


def _text_rows(about: CustomTask, folder: Path) -> Rows[Row]:
    parts = {about.target_field: ".target.txt"} | ({about.query_field: ".query.txt"} if about.query_field else {})
    files = sorted(folder.glob("*.txt"))
    documents = [file for file in files if not file.name.endswith((".target.txt", ".query.txt"))]
    for file in sorted(set(files) - set(documents)):
        if about.query_field is None and file.name.endswith(".query.txt"):
            raise DataError(f"{folder} holds {file.name}; give --query-field query so that it is asked")
        if not (document := file.with_name(f"{file.name.rsplit('.', 2)[0]}.txt")).exists():
            raise DataError(f"{folder} holds {file.name} and no {document.name}; put it there or take the other out")

    def read() -> Iterator[Row | BadRow]:
        for file in documents:
            beside = {field: file.with_name(file.stem + end) for field, end in parts.items()}
            try:
                paths = {about.context_field: file, **beside}
                texts = {field: read_text_file(path, path.name) for field, path in paths.items()}
            except DataError as error:
                yield BadRow(str(error))
            else:
                yield Row(file.name, {"id": file.stem, **texts})

    return Rows(read(), file_provenance(folder, files))
