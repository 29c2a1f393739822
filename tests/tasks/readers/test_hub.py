"""Loading from the hub, against a stand-in on this machine."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import TASKS
from tasks.readers.hub_client import HUB_DEADLINE_SECONDS
from tests.helpers.hub_standin import hub_standin
from tests.helpers.official_files import sample_records, write_official

ROOT = Path(__file__).parents[3]
ARXIV = f"datasets/ccdv/arxiv-summarization@{TASKS['arxiv'].revision}"
SCROLLS = f"datasets/tau/scrolls@{TASKS['qmsum'].revision}"
# The endpoint and the offline switch are read at import, hence a process of its own.
LOAD = """
import json, os, sys
from pathlib import Path
import tasks.readers.hub_client
from tasks import TASKS, DataError, LoadRequest
client = tasks.readers.hub_client
client.HUB_DEADLINE_SECONDS = float(os.environ.get("DEADLINE", client.HUB_DEADLINE_SECONDS))
try:
    data = Path(sys.argv[4]) if sys.argv[4:] else None
    loaded = TASKS[sys.argv[1]].load(LoadRequest(split=sys.argv[2], limit=int(sys.argv[3]) or None, data=data))
except DataError as error:
    print(json.dumps({"error": str(error)}))
else:
    examples = [[e.id, e.document_id, e.query, e.context, list(e.references)] for e in loaded.examples]
    print(json.dumps({"examples": examples, "provenance": dict(loaded.provenance)}))
"""


def load(task: str, split: str, environment: Mapping[str, str], limit: int = 0, *data: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, task, split, str(limit), *data],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def paper(i: int) -> dict[str, str]:
    return {"article": f"body of paper {i}", "abstract": f"abstract of paper {i}"}


@pytest.fixture
def arxiv_files() -> dict[str, bytes]:
    return {
        "README.md": b"---\n---\n",
        "document/train-00000-of-00001.parquet": parquet([paper(100)]),
        "document/validation-00000-of-00001.parquet": parquet([paper(200)]),
        "document/test-00000-of-00002.parquet": parquet([paper(0), paper(1), {"article": "", "abstract": "lost"}]),
        "document/test-00001-of-00002.parquet": parquet([paper(3)]),
        "section/test-00000-of-00001.parquet": parquet([paper(300)]),
    }


def test_only_the_asked_split_is_fetched_pinned_and_then_served_from_the_cache(
    tmp_path: Path, arxiv_files: dict[str, bytes]
) -> None:
    with hub_standin({ARXIV: arxiv_files}) as hub:
        loaded = load("arxiv", "test", hub.environment(tmp_path))
        assert sorted(hub.fetched) == ["document/test-00000-of-00002.parquet", "document/test-00001-of-00002.parquet"]
        fetches = [request for request in hub.requests if request.startswith("GET /datasets/")]
        assert all(f"/resolve/{hub.commit(ARXIV)}/" in request for request in fetches)
        environment = hub.environment(tmp_path)
        commit = hub.commit(ARXIV)

    # The row without an article is left out and counted; ids keep the row of the source.
    assert [(example[0], *example[3:]) for example in loaded["examples"]] == [
        (f"test-{i}", f"body of paper {i}", [f"abstract of paper {i}"]) for i in (0, 1, 3)
    ]
    assert loaded["provenance"] == {
        "kind": "hub",
        "name": "ccdv/arxiv-summarization",
        "config": "document",
        "revision": commit,
        "files": ["document/test-00000-of-00002.parquet", "document/test-00001-of-00002.parquet"],
        "num_rows": 4,
        "num_skipped": 1,
        "num_bad": 0,
    }

    # The stand-in is gone: first switched off by the user, then simply not there.
    assert load("arxiv", "test", {**environment, "HF_HUB_OFFLINE": "1"}) == loaded
    assert load("arxiv", "test", environment) == loaded
    error = load("arxiv", "train", {**environment, "HF_HUB_OFFLINE": "1"})["error"]
    assert "HF_HUB_OFFLINE" in error
    assert "--data FILE" in error


def test_a_limit_reads_no_further_rows(tmp_path: Path, arxiv_files: dict[str, bytes]) -> None:
    with hub_standin({ARXIV: arxiv_files}) as hub:
        loaded = load("arxiv", "test", hub.environment(tmp_path), limit=2)
        assert hub.fetched == ["document/test-00000-of-00002.parquet"]
        environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert [example[0] for example in loaded["examples"]] == ["test-0", "test-1"]
    assert loaded["provenance"]["num_rows"] == 2
    assert load("arxiv", "test", environment, limit=2) == loaded


def test_a_set_without_parquet_on_main_is_read_from_the_hubs_conversion(tmp_path: Path) -> None:
    pubmed = "datasets/ccdv/pubmed-summarization"
    converted = {"document/test/0000.parquet": parquet([paper(0)]), "document/train/0000.parquet": parquet([paper(1)])}
    repos = {pubmed: {"pubmed-summarization.py": b"", "test.zip": b""}, f"{pubmed}@refs/convert/parquet": converted}
    with hub_standin(repos) as hub:
        loaded = load("pubmed", "test", hub.environment(tmp_path))
        assert hub.fetched == ["document/test/0000.parquet"]
        assert loaded["provenance"]["revision"] == hub.commit(f"{pubmed}@refs/convert/parquet")
        environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert load("pubmed", "test", environment) == loaded


def scrolls_zip(**splits: list[dict[str, str | None]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, rows in splits.items():
            archive.writestr(f"qmsum/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return buffer.getvalue()


def test_qmsum_comes_from_inside_the_zip_of_scrolls(tmp_path: Path) -> None:
    talk = "A: Hello {disfmarker} there .\nB: Bye ."
    rows: list[dict[str, str | None]] = [
        {"id": "q1", "pid": "q1_0", "input": f"Who spoke?\n\n{talk}", "output": "A and B."},
        {"id": "q1", "pid": "q1_1", "input": f"Who spoke?\n\n{talk}", "output": "Two people."},
        {"id": "q2", "pid": "q2_0", "input": f"What was said?\n\n{talk}", "output": "Hello and bye."},
        {"id": "q3", "pid": "q3_0", "input": "What else?\n\nC: Nothing .\n\nD: Right .", "output": "Nothing."},
    ]
    files = {"qmsum.zip": scrolls_zip(validation=rows), "gov_report.zip": b"large"}
    with hub_standin({SCROLLS: files}) as hub:
        loaded = load("qmsum", "validation", hub.environment(tmp_path))
        assert hub.fetched == ["qmsum.zip"]
        assert loaded["provenance"]["revision"] == hub.commit(SCROLLS)
    assert loaded["examples"] == [
        ["q1", "validation-meeting-0", "Who spoke?", "A: Hello there .\nB: Bye .", ["A and B.", "Two people."]],
        ["q2", "validation-meeting-0", "What was said?", "A: Hello there .\nB: Bye .", ["Hello and bye."]],
        ["q3", "validation-meeting-1", "What else?", "C: Nothing .\n\nD: Right .", ["Nothing."]],
    ]
    assert loaded["provenance"]["num_rows"] == 4


def test_sets_of_every_shape_are_found_at_the_revision_of_their_task(tmp_path: Path) -> None:
    shapes = {
        "book_sum": ("kmfoda/booksum", "test.csv"),
        "longbench_hotpotqa": ("zai-org/LongBench", "data.zip"),
        "multi_news": ("alexfabbri/multi_news", "default/test/0000.parquet"),
        "big_patent_y": ("NortheasternUniversity/big_patent", "y/test/0000.parquet"),
        "longbench2": ("zai-org/LongBench-v2", "default/train/0000.parquet"),
        "helmet_infbench_qa": ("xinrongzhang2022/InfiniteBench", "longbook_qa_eng.jsonl"),
        "helmet_narrativeqa": ("deepmind/narrativeqa", "data/test-00000-of-00001.parquet"),
    }
    news = [{"document": "One. ||||| Two.", "summary": "Both."}, {"document": "", "summary": "Lost."}]
    contents = {
        "book_sum": write_official("book_sum", tmp_path).read_bytes(),
        "longbench_hotpotqa": write_official("longbench_hotpotqa", tmp_path).read_bytes(),
        "multi_news": parquet(news),
        "big_patent_y": parquet([{"description": "A lamp.", "abstract": "Light."}]),
        "helmet_infbench_qa": write_official("helmet_infbench_qa", tmp_path).read_bytes(),
        "helmet_narrativeqa": parquet([dict(row) for row in sample_records("helmet_narrativeqa")]),
        "longbench2": parquet([dict(row) for row in sample_records("longbench2")]),
    }
    repos = {
        f"datasets/{repo}@{TASKS[task].revision}": {path: contents[task], "README.md": b""}
        for task, (repo, path) in shapes.items()
    }
    with hub_standin(repos) as hub:
        for task, (repo, path) in shapes.items():
            loaded = load(task, "test", hub.environment(tmp_path / "home"), limit=1)
            assert loaded["provenance"]["name"] == repo
            assert loaded["provenance"]["files"] == [path]
            assert loaded["provenance"]["revision"] == hub.commit(f"datasets/{repo}@{TASKS[task].revision}")
            references = loaded["examples"][0][4]
            # A limit must not cost a chapter the summaries that stand further down.
            assert (
                references
                == {
                    "book_sum": ["Rain.", "It rains."],
                    "longbench_hotpotqa": ["the bridge", "a bridge"],
                    "multi_news": ["Both."],
                    "big_patent_y": ["Light."],
                    "longbench2": ["B"],
                    "helmet_infbench_qa": ["the bridge"],
                    "helmet_narrativeqa": ["the bridge", "the bridge of the town"],
                }[task]
            )
        whole = load("multi_news", "test", hub.environment(tmp_path / "home"))
        assert whole["provenance"]["num_skipped"] == 1


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    with hub_standin({SCROLLS: {"qmsum.zip": b"not a zip"}}) as hub:
        assert "qmsum.zip" in load("qmsum", "validation", hub.environment(tmp_path))["error"]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses .*HTTP 401"), (403, "refuses .*HTTP 403"), (404, "has no data set")]
)
def test_a_refusal_is_told_apart_from_an_unreachable_hub(
    tmp_path: Path, arxiv_files: dict[str, bytes], status: int, words: str
) -> None:
    with hub_standin({ARXIV: arxiv_files}, statuses={ARXIV.split("@")[0]: status}) as hub:
        error = load("arxiv", "test", hub.environment(tmp_path))["error"]
        about_it = [request for request in hub.requests if "ccdv" in request]
        assert len(about_it) == 1, "a refusal is final: no retries"
    assert re.search(words, error), error
    assert "cannot be reached" not in error


def test_a_split_that_the_hub_does_not_hold_is_named(tmp_path: Path, arxiv_files: dict[str, bytes]) -> None:
    only_train = {path: content for path, content in arxiv_files.items() if "train" in path}
    with hub_standin({ARXIV: only_train}) as hub:
        error = load("arxiv", "test", hub.environment(tmp_path))["error"]
    assert f"has no file document/test-*.parquet or document/test/*.parquet at {TASKS['arxiv'].revision}" in error


@pytest.mark.parametrize("accepts", [False, True], ids=["refused", "silent"])
def test_an_unreachable_hub_ends_soon_with_the_ways_out(tmp_path: Path, accepts: bool) -> None:
    """Nobody listens on the port; or somebody does and never answers, as behind a firewall that drops packets."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if accepts:
            server.listen()
        port = server.getsockname()[1]
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        environment["DEADLINE"] = "1.5"
        started = time.monotonic()
        error = load("qmsum", "validation", {**environment, "HF_HUB_CACHE": str(tmp_path), "NO_PROXY": "127.0.0.1"})
    # Without the shorter deadline: the start of Python, then the deadline itself.
    assert time.monotonic() - started - 1.5 + HUB_DEADLINE_SECONDS < 20
    assert f"is not in the cache, and the hub at http://127.0.0.1:{port} cannot be reached (" in error["error"]
    assert "--data FILE" in error["error"]
    assert "needs no hub: plos, aclsum, aclsum_aspects" in error["error"]
    assert "\n" not in error["error"]


@pytest.mark.parametrize("name", ["someone/books", "someone/books-1.0"])
def test_any_set_of_texts_is_read_by_its_name(name: str, tmp_path: Path) -> None:
    files = {
        "data/train-00000-of-00001.parquet": parquet([{"text": "first book"}, {"text": ""}, {"text": "second book"}]),
        "data/test-00000-of-00001.parquet": parquet([{"text": "third book"}]),
    }
    with hub_standin({f"datasets/{name}": files}) as hub:
        loaded = load("text", "train", hub.environment(tmp_path), 0, name)
        assert [example[3] for example in loaded["examples"]] == ["first book", "second book"]
        assert loaded["provenance"]["revision"] == hub.commit(f"datasets/{name}")
        assert loaded["provenance"]["num_skipped"] == 1
        assert hub.fetched == ["data/train-00000-of-00001.parquet"]
