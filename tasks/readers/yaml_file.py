"""One loader for every YAML file of a user: task files, settings, studies; JSON is YAML, and is read too.

    content = read_yaml(Path("run.yaml"), "--config run.yaml")

A file of 402 bytes can stand for gigabytes, so size, depth, aliases and numbers have limits. Every failure is a
`DataError` of one line with the number of the line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import CollectionNode, Node
from yaml.reader import ReaderError

from tasks.base import DataError
from tasks.readers.decoding import decode_text
from tasks.readers.kept import reading

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
# With every alias written out; the longest study that is shipped has some hundred values.
MAX_VALUES = 20_000
_MAX_BITS = 128
_MAX_SHOWN = 100


class _Loader(yaml.SafeLoader):
    """Refuses what is beyond a limit, and says the line of a value that Python cannot build, such as the 13th month."""

    def construct_document(self, node: Node) -> Any:
        _count_values(node, {}, 1)  # before the values are built: merge keys (`<<: *a`) copy what they name
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML lets through what int(), date() and its own tables raise
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"no {kind}: {str(error)[:_MAX_SHOWN]}", node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise ConstructorError(None, None, f"a number of more than {_MAX_BITS} bits", node.start_mark)
        return value


def read_yaml(file: Path, what: str) -> Any:
    """Return the content of a YAML file; `what` names it in errors.

    Raises:
        DataError: It cannot be read, is no YAML, or is beyond a limit.
    """
    with reading(file, what, may_be_pipe=True) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"{what} is longer than {MAX_BYTES >> 20} MiB; give a file of settings")
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{what} is not YAML: line {line}: {error.reason}") from error
    return parse_yaml(text, what)


def parse_yaml(text: str, what: str) -> Any:
    """Return the content of a text of YAML, such as the value of a flag; `what` names it in errors.

    Raises:
        DataError: It is no YAML, or is beyond a limit.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise DataError(f"{what} is not YAML: nested more than {MAX_DEPTH} levels deep; write it flat") from error
    except yaml.YAMLError as error:
        raise DataError(f"{what} is not YAML: {_problem(error)}") from error


def shown(value: object) -> str:
    """Return a value for an error message, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _count_values(node: Node, counts: dict[int, int], depth: int) -> int:
    """Return the values below a node with every alias written out; `counts` has those of nodes seen before."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            _refuse(node, "an alias (*name) inside of what it names")
        return counts[id(node)]
    if not isinstance(node, CollectionNode):
        if "\0" in node.value:
            _refuse(node, "a NUL character, which no path or name can hold")
        return 1
    if depth > MAX_DEPTH:
        _refuse(node, f"nested more than {MAX_DEPTH} levels deep")
    counts[id(node)] = 0
    total = 1
    for entry in node.value:
        for part in entry if isinstance(entry, tuple) else (entry,):
            total += _count_values(part, counts, depth + 1)
            if total > MAX_VALUES:
                _refuse(part, f"more than {MAX_VALUES:,} values, with aliases (*name) written out")
    counts[id(node)] = total
    return total


def _refuse(node: Node, problem: str) -> NoReturn:
    raise ConstructorError(None, None, problem, node.start_mark)


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        return where + " ".join(problem.split())[:300]
    if isinstance(error, ReaderError):
        return f"character {error.position + 1} is U+{int(error.character):04X}, a control character; take it out"
    return " ".join(str(error).split())[:300]
