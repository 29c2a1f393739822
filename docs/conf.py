"""Settings of the documentation site. `tox -e docs` builds it and fails on any warning.

Pages are plain Markdown that also reads well on a code host. The flags of a command are never written by hand: a block

    ```{flags}
    python eval/run.py --help
    ```

shows the command on a code host, and on the site what the command prints.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "MASFormer evaluation"
author = PROJECT["authors"][0]["name"]
release = PROJECT["version"]
language = "en"

extensions = ["myst_parser", "sphinx_copybutton"]
# What a study has measured links to its own pictures and is no page of the site.
exclude_patterns = ["_build", "study/measured"]
# As many levels as any page links into; the anchors are those that code hosts make.
myst_heading_anchors = 4

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
# Commands and settings are copied; output is not.
copybutton_selector = ", ".join(f"div.highlight-{language} pre" for language in ("sh", "python", "yaml", "json"))
html_copy_source = False
html_show_copyright = False
# Terminal output and tables in blocks without a language are no Python.
highlight_language = "text"

# Opt-in (`tox -e links`): it needs a network.
linkcheck_timeout = 20
linkcheck_retries = 2

_COLUMNS = "88"  # of the help texts; a line of the site's text is about as wide


def help_text(command: str) -> str:
    """Return what a command with `--help` prints, run in this process because torch takes seconds to import.

    Args:
        command: As it is typed: `python PATH ...`, `python -m MODULE ...`, or a script of pyproject.toml.

    Raises:
        ValueError: It is none of these, or it does not end with status 0.
    """
    program, *arguments = shlex.split(command)
    printed = io.StringIO()
    scripts = PROJECT.get("scripts", {})
    with (
        mock.patch.object(sys, "argv", [program]),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": _COLUMNS, "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
    ):
        try:
            if program == "python":
                is_module = arguments[0] == "-m"
                file = _file_of(arguments[1]) if is_module else ROOT / arguments[0]
                sys.argv = [str(file), *arguments[2 if is_module else 1 :]]
                runpy.run_path(str(file), run_name="__main__")
            elif program in scripts:
                sys.argv = [program, *arguments]
                entry = importlib.metadata.EntryPoint(program, scripts[program], "console_scripts").load()
                sys.exit(entry())
        except SystemExit as ended:
            if not ended.code:
                return printed.getvalue()
    raise ValueError(f"'{command}' does not print its help")


def _file_of(module: str) -> Path:
    """Return the file that `python -m MODULE` runs."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module '{module}'")
    return Path(spec.origin)


class Flags(Directive):
    """The help text of the command that is the block's content."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            text = help_text(" ".join(self.content))
        except (ImportError, OSError, ValueError) as problem:
            raise self.error(f"no flags: {problem}") from problem
        return [nodes.literal_block(text, text, language="text")]


def copy_demo(app: Sphinx, problem: Exception | None) -> None:
    """Copy the demo's page and pictures as they are, so that links in HTML lead to them as on a code host."""
    if problem is None and app.builder.format == "html":
        shutil.copytree(ROOT / "docs/demo", app.outdir / "demo", ignore=_PAGES, dirs_exist_ok=True)


_PAGES = shutil.ignore_patterns("*.md")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the block of flags and the demo."""
    app.add_directive("flags", Flags)
    app.connect("build-finished", copy_demo)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
