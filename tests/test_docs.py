"""The documentation says what is there: links lead somewhere, commands parse, quoted messages are those of the code.

Shell blocks are run by bash itself, so that variables, loops and quotes mean what they mean to a reader. Every program
is replaced by one that notes how it was called; one that is not listed here is not found, and the test fails.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt
from markdown_it.token import Token

from eval.config.finetune import TrainConfig
from eval.config.options import Options
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.judging.settings import JudgeSettings, read_settings
from eval.records.typed import describe_fields
from eval.studies.parts import KINDS, read_study
from masformer import SpanPlan
from masformer.__main__ import COMMANDS
from tasks import CustomTask, read_task_file

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eval", "tasks", "masformer")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)],
)
SHELL = ("sh", "{flags}")
# Blocks that hold output or structure and nothing that a reader types.
OTHER_BLOCKS = ("", "text", "json", "{toctree}")
# Scripts whose settings are checked beyond their flags.
SETTINGS: dict[str, type[Options]] = {
    "eval.run": RunConfig,
    "eval.finetune": TrainConfig,
    "eval.perplexity": PerplexityConfig,
    "eval.placement": PlacementConfig,
}
# Programs of others, whose flags are theirs; modules of theirs that `python -m` runs; and what blocks may really call.
OTHER_PROGRAMS = ("pip", "tox", "pytest", "pre-commit", "hf")
OTHER_MODULES = ("venv", "pip")
REAL_PROGRAMS = ("tr",)
# Files that a reader writes, and a folder that `tox -e docs` makes.
FILES_OF_READERS = {"tasks/new.py", "tasks/NAME.py", "eval/generation/mine.py", "docs/_build/html"}
# Layers and key/value heads of SmolLM2-135M, the model of all plans in the documentation.
NUM_LAYERS, NUM_HEADS = 30, 3

NOTE = """#!{bash}
printf '%s\\0' "$#" "${{0##*/}}" "$@" >> "$NOTES"
"""

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks_of(page: Path, *languages: str) -> list[str]:
    """Return the blocks of code in these languages; an indented block is one of shell."""
    found = []
    for token in tokens_of(page):
        language = token.info.split()[0] if token.type == "fence" and token.info else ""
        if (token.type == "fence" and language in languages) or (token.type == "code_block" and "sh" in languages):
            found.append(token.content)
    return found


# Links


class _Targets(HTMLParser):
    """Collects what the tags of raw HTML lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src", "srcset") and value]


def targets_of(page: Path) -> Iterator[str]:
    """Return all that a page links to or shows."""
    for token in tokens_of(page):
        for part in [token, *(token.children or [])]:
            if part.type in ("link_open", "image"):
                yield str(part.attrs.get("href") or part.attrs["src"])
            elif part.type in ("html_block", "html_inline"):
                parser = _Targets()
                parser.feed(part.content)
                yield from parser.found


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a code host gives to the headings of a page."""
    tokens, seen, anchors = tokens_of(page), Counter[str](), set()
    for opening, heading in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(part.content for part in heading.children or [])
            anchor = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
            seen[anchor] += 1
    return anchors


def problem_with(target: str, page: Path) -> str | None:
    """Return what is wrong with a link of a page; None for good ones, and for those to other sites."""
    url = urlsplit(target)
    if url.scheme or url.netloc:
        return None if url.scheme in ("http", "https") else f"{target}: not a link to a site or a file"
    file = (page.parent / unquote(url.path)).resolve() if url.path else page
    if not file.is_file() or not file.is_relative_to(ROOT):
        return f"{target}: no such file in the repository"
    if url.fragment and (file.suffix != ".md" or url.fragment not in anchors_of(file)):
        return f"{target}: {file.name} has no such heading"
    return None


@named
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert [problem for target in targets_of(page) if (problem := problem_with(target, page))] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "index.md"
    bad = ("nowhere.md", "spans.md#nowhere", "#nowhere", "../../elsewhere.md", "file:///etc/hosts", "commands")
    assert [target for target in bad if problem_with(target, page) is None] == []
    good = ("spans.md#why-sinks", "../README.md", "https://example.org/x")
    assert [problem_with(target, page) for target in good] == [None] * 3
    written = tmp_path / "page.md"
    written.write_text(
        '# A `b_c`: d\n\n# A b_c d\n\n[x](<y z>) ![i](i.png)\n\n<source srcset="k.png"><img src="j.png">\n'
    )
    assert list(targets_of(written)) == ["y%20z", "i.png", "k.png", "j.png"]
    assert anchors_of(written) == {"a-b_c-d", "a-b_c-d-1"}


def test_the_demo_is_a_small_page_that_needs_no_network() -> None:
    demo = ROOT / "docs/demo"
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 10_000_000
    assert "default-src 'none'" in html.unescape(page)
    assert "50 documents" in page
    assert sum(file.stat().st_size for file in demo.glob("*.png")) < 400_000


# Commands


def calls_of(block: str, folder: Path) -> list[list[str]]:
    """Return what a block of shell calls, each call as its words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    programs = folder / "programs"
    programs.mkdir()
    for name in ("accelerate", "python", "python3", "masformer", *OTHER_PROGRAMS):
        (programs / name).write_text(NOTE.format(bash=bash), encoding="utf-8")
        (programs / name).chmod(0o755)
    for name in REAL_PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    for name in (".venv", ".venv-tox"):
        (folder / name / "bin").mkdir(parents=True)
        (folder / name / "bin" / "activate").touch()
    notes = folder / "notes"
    notes.touch()
    environment = {"PATH": str(programs), "NOTES": str(notes)}
    done = subprocess.run(
        [bash, "-eu", "-o", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    words = notes.read_text(encoding="utf-8").split("\0")[:-1]
    calls = []
    while words:
        end = 2 + int(words[0])
        calls.append(words[1:end])
        words = words[end:]
    return calls


def check_call(call: Sequence[str]) -> None:
    """Fail where a call is not one that its program would take."""
    program, *words = call
    if program in OTHER_PROGRAMS or (words[0] == "-m" and words[1] in OTHER_MODULES):
        return
    if program == "accelerate":
        assert words[0] == "launch"
        launch = launch_command_parser().parse_args(words[1:])
        assert launch.config_file is None or (ROOT / launch.config_file).is_file()
        words = [*(["-m"] if launch.module else []), launch.training_script, *launch.training_script_args]
    if program == "masformer":
        words = ["-m", program, *words]
    if words[0] == "-m":
        module, arguments = words[1], words[2:]
    else:
        assert (ROOT / words[0]).is_file()
        module, arguments = words[0].removesuffix(".py").replace("/", "."), words[1:]
    if module == "masformer" and arguments and not COMMANDS.get(arguments[0], "masformer.").startswith("masformer."):
        module, arguments = COMMANDS[arguments[0]], arguments[1:]
    # Brackets stand around what may be left out, and dots for what is not repeated.
    arguments = [word.removeprefix("[").removesuffix("]") for word in arguments]
    given = [word for word in arguments if not (word.startswith("...") or word.endswith("..."))]
    check_arguments(module, given, is_short=given != arguments)


def check_arguments(module: str, arguments: list[str], *, is_short: bool) -> None:
    """Fail where a module would not take its arguments; `is_short` where some were left out."""
    printed = io.StringIO()
    status: int | str | None = None
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if module in SETTINGS:
                config = SETTINGS[module]
                asked = config.build_parser().parse_args(arguments) if is_short else config.from_command_line(arguments)
                plan = getattr(asked, "plan", "auto")
                # A file is what another command has written.
                assert plan == "auto" or plan.endswith(".json") or SpanPlan.parse(plan, NUM_LAYERS, NUM_HEADS)
            else:
                parse(module, arguments)
    except SystemExit as ended:
        status = ended.code
    assert not status, printed.getvalue()
    assert ("--help" in arguments) == ("usage:" in printed.getvalue())


class _Parsed(BaseException):
    """The flags were understood; nothing else of the command is to be done."""


def parse(name: str, arguments: list[str]) -> None:
    """Let a module parse a command line, as far as that goes without its work."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if hasattr(module, "_parse"):
        module._parse(arguments)
        return
    own = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
        own(parser, given)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *arguments])
        module.main(*([arguments] if module.main.__code__.co_argcount else []))
        raise AssertionError(f"{name} did not parse {arguments}")


# The commands of the tutorial build on each other, and tests/test_tutorial.py runs them.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "tutorial.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # Task files are the reader's own.
    monkeypatch.setattr("tasks.read_task_file", lambda file: CustomTask(name=file.stem))
    for number, block in enumerate(blocks_of(page, *SHELL)):
        folder = tmp_path / str(number)
        folder.mkdir()
        calls = calls_of(block, folder)
        assert calls, f"nothing is called by: {block}"
        for call in calls:
            try:
                check_call(call)
            except Exception as error:
                raise AssertionError(f"{' '.join(call)}\n{error}") from error


@pytest.mark.parametrize(
    "block",
    [
        "python -m eval.compare A B --metrics rouge1",
        "accelerate launch eval/run.py --task plso --maxlen 1024",
        "accelerate launch eval/run.py --task plos --maxlen 1024 --plan middle:31",
        "accelerate launch --config_file nowhere.yaml eval/run.py --task plos --maxlen 1024",
        "for n in 1 2; do python benchmarks/attention.py --rounds $n; done",
        "python eval/merge.py part-1",
        "jq . runs/a/scores.json",
        'python -m eval.score "$UNKNOWN"',
    ],
)
def test_a_command_that_went_stale_is_found(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError)):
        [check_call(call) for call in calls_of(block, tmp_path)]


def test_quotes_and_loops_mean_what_they_mean_to_bash(tmp_path: Path) -> None:
    calls = calls_of('for n in 1 2; do X=1 python a.py --plan "b c" \'\' "$n"; done', tmp_path)
    assert calls == [["python", "a.py", "--plan", "b c", "", "1"], ["python", "a.py", "--plan", "b c", "", "2"]]


# Other blocks


@named
def test_blocks_are_of_kinds_that_are_checked(page: Path) -> None:
    kinds = {token.info.split()[0] if token.info else "" for token in tokens_of(page) if token.type == "fence"}
    assert kinds <= {*SHELL, *OTHER_BLOCKS, "python", "yaml"}


@named
def test_python_imports_what_is_there(page: Path) -> None:
    for block in blocks_of(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@named
def test_yaml_is_settings_of_a_run(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page, "yaml"):
        file = tmp_path / "settings.yaml"
        file.write_text(block, encoding="utf-8")
        if "context_field" in block:
            assert read_task_file(file).task().templates
        elif "sections:" in block:
            assert {section.kind for section in read_study(file).sections} == set(KINDS)
        elif "base_url:" in block:
            assert read_settings(file).model
        else:
            RunConfig.from_command_line(["--config", str(file)])


def test_the_page_of_judges_has_all_keys_of_their_files() -> None:
    rows = "".join(f"| `{name}` | {kind} | {doc} |\n" for name, kind, doc in describe_fields(JudgeSettings))
    assert f"{rows}<!-- end of keys -->" in (ROOT / "docs/judge.md").read_text(encoding="utf-8")


PAGES_OF_STUDIES = {"study.md": "context.yaml", "study-further.md": "context.yaml", "placement.md": "smollm2.yaml"}


def test_parts_are_those_of_the_study() -> None:
    named: dict[str, set[str]] = {}
    for page, study in PAGES_OF_STUDIES.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        paragraphs = re.findall(r"^Parts: (.+?)\n\n", text, re.MULTILINE | re.DOTALL)
        parts = {name for paragraph in paragraphs for name in re.findall(r"`(.+?)`", paragraph)}
        named[study] = named.get(study, set()) | parts
        assert parts <= set(read_study(ROOT / "configs/study" / study).parts)
        assert len(text.split()) <= 2000
    assert named["context.yaml"] == set(read_study(ROOT / "configs/study/context.yaml").parts)
    assert len(named["smollm2.yaml"]) > 3


@named
def test_json_is_json(page: Path) -> None:
    for block in blocks_of(page, "json"):
        json.loads(block)


def test_the_page_of_masformer_names_every_command() -> None:
    page = (ROOT / "docs" / "commands" / "masformer.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `masformer ")]
    named = [cell.removeprefix("masformer ").split()[0] for row in rows for cell in re.findall(r"`([^`]+)`", row)]
    assert sorted(set(named)) == sorted(COMMANDS)


def test_every_benchmark_has_its_flags_on_the_page() -> None:
    shown = {block.split()[1] for block in blocks_of(ROOT / "docs/commands/benchmarks.md", "{flags}")}
    scripts = {file for file in ROOT.glob("benchmarks/*.py") if "\ndef main(" in file.read_text(encoding="utf-8")}
    assert shown == {file.relative_to(ROOT).as_posix() for file in scripts}


def test_the_architecture_page_quotes_the_rooms() -> None:
    (quoted_rooms,) = [block for block in blocks_of(ROOT / "docs/design.md", "python") if "BELOW" in block]
    assert quoted_rooms in (ROOT / "tests/test_rooms.py").read_text(encoding="utf-8")


@named
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:eval|tasks|masformer|tests|configs|benchmarks|docs)/[\w./-]*)`", text))
    assert sorted(path for path in paths - FILES_OF_READERS if not (ROOT / path).exists()) == []


# Messages


def patterns() -> Iterator[re.Pattern[str]]:
    """Return a pattern for each text of the code, with any text in the place of a value."""
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
            # A text with hardly a word of its own would match any message.
            if max(len(text or "") for text in texts) >= 10:
                yield re.compile("".join("(.+)" if text is None else re.escape(text) for text in texts))


def quoted(page: Path) -> Iterator[str]:
    """Return what is quoted as printed: code in block quotes."""
    depth = 0
    for token in tokens_of(page):
        depth += (token.type == "blockquote_open") - (token.type == "blockquote_close")
        if depth:
            yield from (part.content for part in token.children or [] if part.type == "code_inline")


def test_messages_are_those_of_the_code() -> None:
    messages = [message.strip().removeprefix("error: ") for message in quoted(ROOT / "docs" / "faq.md")]
    known = list(patterns())
    assert len(messages) > 20
    assert [message for message in messages if not any(pattern.fullmatch(message) for pattern in known)] == []
    # A message that the code no longer has is found.
    assert not any(pattern.fullmatch("unknown job 'plso'; known: plos") for pattern in known)
