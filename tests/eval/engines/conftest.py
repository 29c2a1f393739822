"""A run from the command line against the stand-in for a server, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.run import main
from tests.helpers.engine_standin import EngineStandIn, engine_standin
from tests.helpers.run_folders import without_checksums
from tests.helpers.tiny_models import tiny_tokenizer

NUM_DOCUMENTS, LENGTHS = 4, ("400", "700")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the line of the error; there is one, and nothing after it."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        return lines[0]


@dataclass(frozen=True)
class Runs:
    """Runs of one command line in one folder."""

    folder: Path
    common: Sequence[str]
    capsys: pytest.CaptureFixture[str]

    def arguments(self, server: EngineStandIn, *more: str) -> list[str]:
        """Return the command line."""
        where = ("--base-url", server.base_url, "--model", server.models[0])
        return [*self.common, *where, "--output", str(self.folder), *more]

    def __call__(self, server: EngineStandIn, *more: str) -> Outcome:
        self.capsys.readouterr()
        status = main(self.arguments(server, *more))
        printed = self.capsys.readouterr()
        return Outcome(status, printed.out, printed.err)

    def read(self, name: str) -> Any:
        """Return a file of the folder."""
        return read(self.folder, name)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Return the whole lines that an interrupted run has left."""
        return journal_of(self.folder)

    @property
    def answers(self) -> dict[tuple[str, int], str]:
        """Return the texts of a finished run."""
        return answers_of(self.folder)


def read(folder: Path, name: str) -> Any:
    """Return the content of a JSON file, or of the lines of one."""
    text = without_checksums((folder / name).read_text())
    return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)


def journal_of(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines in the journals of a folder."""
    found = []
    for file in sorted(folder.glob("journal/*.jsonl")):
        for line in without_checksums(file.read_text()).splitlines():
            with suppress(ValueError):  # the last one may be half a line
                found.append(json.loads(line))
    return found


def answers_of(folder: Path) -> dict[tuple[str, int], str]:
    """Return the texts of a finished run; nothing is there twice."""
    lines = read(folder, "predictions.jsonl")
    texts = {(line["id"], line["maxlen"]): line["text"] for line in lines}
    assert len(texts) == len(lines)
    assert not (folder / "journal").exists()
    return texts


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and no weights; without a chat template, whose rendering takes most of a run here."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(chat=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of some 900 tokens each."""
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    with file.open("w") as lines:
        for index in range(NUM_DOCUMENTS):
            text = f"Report {index} says that river {index} rose. " + f"Nothing else was seen of it in {index}. " * 22
            lines.write(json.dumps({"id": f"doc{index}", "context": text, "target": "It rose."}) + "\n")
    return file


@pytest.fixture
def common(tokenizer: Path, data: Path) -> list[str]:
    """What all runs of these tests share: 8 predictions of 8 tokens at most."""
    text = f"--engine endpoint --tokenizer {tokenizer} --task custom --data {data} --max-new-tokens 8 --no-texts"
    return [*text.split(), "--maxlen", *LENGTHS]


@pytest.fixture
def run(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runs:
    """A command line that is run in a folder of its own, again and again."""
    return Runs(tmp_path / "run", common, capsys)


@pytest.fixture
def server() -> Iterator[EngineStandIn]:
    """A healthy server."""
    with engine_standin() as standin:
        yield standin


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out report.html, which takes longer than a run here and has tests of its own."""
    monkeypatch.setattr("eval.reporting.score_run.write_page", lambda *inputs, **more: [])


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, no_plots: None) -> None:
    """No key of the machine, no charts, and no waits before a request is sent again."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("eval.engines.client._FIRST_DELAY", 0.001)
