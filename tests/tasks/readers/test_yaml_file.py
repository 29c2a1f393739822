"""YAML of a user, read by one loader with limits: what is beyond them is one line with the number of the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.studies.parts import read_study
from tasks import DataError, read_task_file
from tasks.readers.yaml_file import MAX_BYTES, read_yaml
from tests.helpers.properties import tries

ROOT = Path(__file__).parents[3]


def bomb(key: str, levels: int = 9) -> str:
    lines = [f"{key}:", "  - &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merge_bomb(levels: int = 9) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


BEYOND = {
    "an alias bomb": (bomb("name"), "line 5: more than 20,000 values, with aliases (*name) written out"),
    "a bomb of merge keys": (merge_bomb(), "more than 20,000 values"),
    "an alias of itself": ("\n\nname: &a [*a]\n", "line 3: an alias (*name) inside of what it names"),
    "33 levels": (f"name: {'[' * 33}{']' * 33}\n", "line 1: nested more than 32 levels deep"),
    "60,000 levels": (f"name: {'[' * 60_000}", "nested more than 32 levels deep"),
    "a 13th month": ("title: x\nname: 2024-13-45\n", "line 2: no timestamp: month must be in 1..12"),
    "a word as a number": ("name: !!int abc\n", "line 1: no int: "),
    "a word as a truth value": ("name: !!bool abc\n", "line 1: no bool: "),
    "a word as a time": ("name: !!timestamp abc\n", "line 1: no timestamp: "),
    "5,000 digits": (f"name: {'9' * 5000}\n", "line 1: no int: "),
    "100 digits": (f"a: b\nname: {'9' * 100}\n", "line 2: a number of more than 128 bits"),
    "50,000 hexadecimal digits": (f"name: 0x{'f' * 50_000}\n", "line 1: a number of more than 128 bits"),
    "an object of Python": ("name: !!python/object/apply:os.system [ls]\n", "line 1: could not determine"),
    "a control character": ("name: x\ntext: \x07\n", "character 15 is U+0007"),
    "more than a mebibyte": (f"name: {'x' * MAX_BYTES}\n", "is longer than 1 MiB"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "task file": read_task_file,
    "--config": lambda file: RunConfig.from_command_line(["--task", "plos", "--config", str(file)]),
    "study": read_study,
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("kind", BEYOND)
def test_what_is_beyond_a_limit_is_one_short_line_for_every_file_of_a_user(
    kind: str, what: str, tmp_path: Path
) -> None:
    text, told = BEYOND[kind]
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises((DataError, UserError)) as caught:
        READERS[what](file)
    message = str(caught.value)
    assert message.startswith(f"{what} {file} is ")
    assert told in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500 + len(str(file))


def test_a_message_quotes_the_beginning_of_a_long_value(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"metrics: [{'x, ' * 5000}x]\n")
    with pytest.raises(DataError, match=r"metrics is \['x', 'x'.*\.\.\.; expected a text") as caught:
        read_task_file(file)
    assert len(str(caught.value)) < 300 + len(str(file))


def test_anchors_and_merge_keys_within_the_limits_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 4}\nc: [*a, *a]\n")
    assert read_yaml(file, "x") == yaml.safe_load(file.read_text())
    file.write_text("")
    assert read_yaml(file, "x") is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("name: a\n".encode("utf-16"), "line 1: not UTF-8 text but UTF-16; save it as UTF-8"),
        ("name: a\n".encode("utf-16-be"), "is not YAML: "),
        ("name: a\ntext: Stra\xdfe\n".encode("cp1252"), "line 2: not UTF-8 text .* perhaps Windows-1252"),
    ],
)
def test_another_encoding_is_told_with_the_line(data: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(data)
    with pytest.raises(DataError, match=told):
        read_yaml(file, "x")
    file.write_bytes(b"\xef\xbb\xbfname: a\r\n")
    assert read_yaml(file, "x") == {"name": "a"}, "with a byte order mark"


def test_a_nul_character_is_told_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text('name: a\noutput: "a\\0b"\n')
    with pytest.raises(DataError, match="line 2: a NUL character"):
        read_yaml(file, "x")


def test_every_shipped_file_is_read_as_pyyaml_reads_it() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(files) > 10
    for file in files:
        assert read_yaml(file, "x") == yaml.safe_load(file.read_text())


SEED = (ROOT / "configs" / "study" / "smollm2.yaml").read_bytes()[:1500]
PIECES = st.sampled_from(
    [b"&a ", b"*a", b"<<: ", b"!!int ", b"!!set ", b"[", b"{", b"? ", b"- ", b"\xff", b"\0", b"9" * 99]
)


@pytest.mark.nightly
@tries(500)
@given(st.lists(st.tuples(st.integers(0, len(SEED)), st.integers(0, 8), PIECES), min_size=1, max_size=6))
@example([(0, 0, b"\xff\xfe")])
def test_a_garbled_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, bytes]]
) -> None:
    data = SEED
    for place, length, piece in changes:
        data = data[:place] + piece + data[place + length :]
    file = tmp_path_factory.getbasetemp() / "garbled.yaml"
    file.write_bytes(data)
    problems = []
    for read in READERS.values():
        try:
            read(file)
        except (DataError, UserError) as error:
            problems.append(str(error))
    assert [problem for problem in problems if len(problem.splitlines()) != 1] == []
