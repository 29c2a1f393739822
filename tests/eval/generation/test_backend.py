"""What every engine shares: how documents are dealt out, and the name of a run folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.backend import open_backend, output_of, share_by_turns
from eval.generation.requests import PromptSource, Requests
from eval.records.schema import Grouping

CONFIG: dict[str, Any] = {"task": ("plos",), "maxlen": (100,), "engine": "mock"}


class Source(SimpleNamespace):
    """A document of which only the keys matter."""


def requests(existing: set[int]) -> Requests:
    sources: list[Any] = []
    for index in range(6):
        key = ("plos", "instruct", str(index), 100)
        sources.append(Source(fingerprints={key: "f"}, requests=lambda key=key: iter([SimpleNamespace(key=key)])))
    documents: list[PromptSource] = sources
    return Requests(
        sources=documents,
        grouping=Grouping(num_shares=2, batch_size=1, memory_budget=0),
        existing={("plos", "instruct", str(index), 100) for index in existing},
    )


@pytest.mark.parametrize(
    ("existing", "shares"), [(set(), ["024", "135"]), ({1, 3, 5}, ["04", "2"]), ({0, 1}, ["24", "35"])]
)
def test_processes_share_the_documents_that_are_missing(existing: set[int], shares: list[str]) -> None:
    for index, share in enumerate(shares):
        process: Any = SimpleNamespace(index=index, count=2)
        assert "".join(request.key[2] for request in share_by_turns(requests(existing), process)) == share


def test_runs_of_other_engines_and_other_answers_have_other_folders(tmp_path: Path) -> None:
    names = {
        output_of(RunConfig(**CONFIG)),
        output_of(RunConfig(**CONFIG, answers=tmp_path / "answers.jsonl")),
        output_of(RunConfig(**CONFIG | {"engine": "local"})),
    }
    assert len(names) == 3
    assert sum("mock" in str(name) for name in names) == 2


def test_an_unknown_tracker_is_one_line_for_every_engine() -> None:
    for backend in ("mock", "local"):
        with pytest.raises(UserError, match="nonsense is no tracker"):
            open_backend(RunConfig(**CONFIG | {"engine": backend, "report_to": ("nonsense",)}))
