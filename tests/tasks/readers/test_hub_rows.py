"""Rows of every format from a stand-in of the hub: whole, in parts, from the cache, and what may go wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import DataError
from tasks.readers.files import parse_records
from tasks.readers.hub import matching
from tasks.readers.rows import BadRow, Row
from tests.helpers.hub_standin import hub_standin

ROOT = Path(__file__).parents[3]
NAME = "someone/books"
REPO = f"datasets/{NAME}"
# One process answers many questions: starting it takes longer than all of them.
ANSWER = """
import itertools, json, sys
from huggingface_hub import constants
import tasks.readers.hub_client
from tasks import DataError, LoadRequest
from tasks.readers.hub import hub_rows
from tasks.readers.rows import BadRow
tasks.readers.hub_client.RETRY_SECONDS = (0.0,)
for line in sys.stdin:
    asked = json.loads(line)
    constants.HF_HUB_OFFLINE = asked.pop("offline")
    limit = asked.pop("limit")
    request = LoadRequest(split="test", limit=limit, revision=asked.pop("revision"))
    try:
        rows = hub_rows(request=request, **asked)
        read = []
        for row in itertools.islice(rows, limit):
            if isinstance(row, BadRow):
                raise DataError(row.problem)
            read.append([row.where, row.index, row.fields])
        answer = {"rows": read, "provenance": rows.provenance}
    except DataError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Reader:
    """Reads rows in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read(
        self,
        files: list[str],
        limit: int | None = None,
        *,
        repo: str = NAME,
        revision: str | None = None,
        offline: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        """Return the rows and the provenance, or the error."""
        asked = {"repo": repo, "files": files, "limit": limit, "revision": revision, "offline": offline, **more}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def error(self, files: list[str], limit: int | None = None, **more: Any) -> str:
        """Return the error, which is one line."""
        error: str = self.read(files, limit, **more)["error"]
        assert "\n" not in error
        return error


@contextmanager
def reader(environment: Mapping[str, str]) -> Iterator[Reader]:
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWER],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Reader(process)
    finally:
        process.kill()
        process.communicate()


def make_rows(num_rows: int = 60, num_chars: int = 60_000) -> list[dict[str, str]]:
    random.seed(0)
    return [{"id": f"book-{i}", "text": random.randbytes(num_chars // 2).hex()} for i in range(num_rows)]


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=5)
    return buffer.getvalue()


def as_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def as_zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"books/{name}.jsonl", content)
    return buffer.getvalue()


def test_a_limit_reads_a_small_part_of_a_file_which_then_serves_offline(tmp_path: Path) -> None:
    rows = make_rows()
    formats: dict[str, tuple[Callable[[list[dict[str, str]]], bytes], dict[str, str]]] = {
        "test.parquet": (as_parquet, {}),
        "test.jsonl": (as_lines, {}),
        "test.csv": (as_csv, {}),
        "test.zip": (
            lambda rows: as_zip(train=as_lines(rows), test=as_lines(rows)),
            {"member": "books/test.jsonl"},
        ),
    }
    files = {file: make(rows) for file, (make, _) in formats.items()}
    with hub_standin({REPO: files}) as hub, reader(hub.environment(tmp_path)) as asked:
        for file, (_, more) in formats.items():
            three = asked.read([file], 3, **more)
            assert [fields for _, _, fields in three["rows"]] == rows[:3], file
            assert [index for _, index, _ in three["rows"]] == [0, 1, 2]
            assert three["provenance"] == {
                "kind": "hub",
                "name": NAME,
                "revision": hub.commit(REPO),
                "files": [file],
                **more,
            }
            in_parts = hub.sent[file]
            assert 0 < in_parts < 0.25 * len(files[file]), f"{file}: {in_parts} of {len(files[file])} bytes"

            num_requests = len(hub.requests)
            assert asked.read([file], 3, **more) == three
            assert hub.sent[file] == in_parts, f"{file}: fetched again"
            assert asked.read([file], 3, offline=True, **more) == three
            assert asked.read([file], 1, offline=True, **more)["rows"] == three["rows"][:1]
            assert len(hub.requests) == num_requests + 1, f"{file}: only the commit was asked for"
            for limit in (60, None):  # beyond what is kept, and whole
                error = asked.error([file], limit, offline=True, **more)
                assert "HF_HUB_OFFLINE is set" in error
                assert file in error

            assert asked.read([file], 30, **more)["rows"][:3] == three["rows"]
            assert hub.sent[file] < len(files[file])
            whole = asked.read([file], **more)
            assert whole["provenance"] == three["provenance"]
            assert [fields for _, _, fields in whole["rows"]] == rows, file
            assert whole["rows"][:3] == three["rows"]
            assert asked.read([file], offline=True, **more) == whole


def test_a_kill_loses_no_rows_and_a_broken_connection_is_told_in_one_line(tmp_path: Path) -> None:
    files = {"test.jsonl": as_lines(make_rows())}
    with hub_standin({REPO: files}) as hub:
        with reader(hub.environment(tmp_path)) as asked:
            four = asked.read(["test.jsonl"], 4)
            asked.process.kill()
        (kept,) = (tmp_path / "assets").rglob("test.jsonl@*")
        (kept / ".tmphalf").write_bytes(b"written when the kill came")
        with reader(hub.environment(tmp_path)) as asked:
            assert asked.read(["test.jsonl"], 4, offline=True) == four

            hub.cut_after = hub.sent.total() + 300_000
            error = asked.error(["test.jsonl"], 60)
            assert error.startswith("fetching test.jsonl of someone/books from the hub broke off (")
            assert "run it again" in error
            hub.cut_after = None
            before = hub.sent.total()
            assert len(asked.read(["test.jsonl"], 60)["rows"]) == 60
            assert hub.sent.total() - before < len(files["test.jsonl"]), "what was read before the break is kept"

            (kept / "0").write_bytes(b"half a block")
            assert asked.read(["test.jsonl"], 4) == four, "a damaged block is fetched again"


def test_a_branch_a_tag_or_a_commit_is_read_at_one_recorded_commit(tmp_path: Path) -> None:
    first, second = as_lines([{"text": "first"}]), as_lines([{"text": "second"}])
    repos = {
        REPO: {"books.py": b"", "test.jsonl": first},
        f"{REPO}@v2": {"test.jsonl": second},
        f"{REPO}@refs/convert/parquet": {"default/test/0000.parquet": as_parquet([{"text": "third"}])},
    }
    with hub_standin(repos) as hub, reader(hub.environment(tmp_path)) as asked:
        commits = {branch: hub.commit(f"{REPO}@{branch}") for branch in ("main", "v2", "refs/convert/parquet")}
        for limit in (1, None):
            for revision in (None, "main", "v2", commits["v2"]):
                expected = "second" if revision in ("v2", commits["v2"]) else "first"
                for offline in (False, True):
                    answer = asked.read(["test.jsonl"], limit, revision=revision, offline=offline)
                    assert answer["rows"][0][2]["text"] == expected
                    assert answer["provenance"]["revision"] == commits["v2" if expected == "second" else "main"]
            converted = asked.read(["**/test/*.parquet"], limit, columns=["text"])
            assert converted["provenance"]["revision"] == commits["refs/convert/parquet"]
        assert all(len(commit) == 40 for commit in commits.values())
        files = [request for request in hub.requests if "/resolve/" in request]
        assert all(any(f"/resolve/{commit}/" in request for commit in commits.values()) for request in files)

        # The branch moves: what was read of the old commit is never mixed with the new.
        hub.repos[f"{REPO}@main"] = {"test.jsonl": as_lines([{"text": "moved"}])}
        moved = asked.read(["test.jsonl"], 1)
        assert moved["rows"][0][2]["text"] == "moved"
        assert moved["provenance"]["revision"] == hub.commit(REPO) != commits["main"]
        assert asked.read(["test.jsonl"], 1, offline=True) == moved

        assert "has no branch, tag or commit v9" in asked.error(["test.jsonl"], 1, revision="v9")
        assert "has no file train.jsonl at v2" in asked.error(["train.jsonl"], 1, revision="v2")


@pytest.mark.parametrize("limit", [1, None], ids=["in parts", "whole"])
def test_faults_of_files_are_told_in_one_line_that_names_them(tmp_path: Path, limit: int | None) -> None:
    good = as_zip(test=as_lines(make_rows(4)), train=b"{}\n")
    middle = good.index(b"books/test.jsonl") + 1000
    files = {
        "good.zip": good,
        "none.zip": b"this is no zip file",
        "cut.zip": good[:-30],
        "bits.zip": good[:middle] + bytes(1000) + good[middle + 1000 :],
        "bad.parquet": b"PAR1 and nothing else",
        "bad.csv": b'text,id\n"never closed,1\n',
        "cells.csv": b"text,id\none,1\ntwo\n",
        "bad.jsonl": b'{"text": "whole"\n',
    }
    member = {"member": "books/test.jsonl"}
    with hub_standin({REPO: files}) as hub, reader(hub.environment(tmp_path)) as asked:
        assert len(asked.read(["good.zip"], 4, **member)["rows"]) == 4
        error = asked.error(["good.zip"], limit, member="books/dev.jsonl")
        assert f"good.zip of someone/books at {hub.commit(REPO)[:12]} has no file books/dev.jsonl" in error
        assert "it has books/test.jsonl, books/train.jsonl" in error
        for file in ("none.zip", "cut.zip", "bits.zip"):
            assert f"{file} of someone/books at" in asked.error([file], limit, **member)
            assert "not a readable zip file" in asked.error([file], limit, **member)
        assert "bad.parquet: not a readable Parquet file" in asked.error(["bad.parquet"], limit)
        assert "bad.csv line 2: not readable CSV" in asked.error(["bad.csv"], limit)
        assert "cells.csv line 3: 1 cells under a header of 2" in asked.error(["cells.csv"], limit and 2)
        assert "bad.jsonl line 1: not valid JSON" in asked.error(["bad.jsonl"], limit)
        assert "has no file more.zip at main or refs/convert/parquet" in asked.error(["more.zip"], limit, **member)


def test_refusals_and_proxies_that_send_no_parts(tmp_path: Path) -> None:
    files = {"test.jsonl": as_lines(make_rows(20))}
    with hub_standin({REPO: files}) as hub, reader(hub.environment(tmp_path)) as asked:
        hub.file_status = 403  # gated: the list of files is open, the files are not
        for limit in (1, None):
            error = asked.error(["test.jsonl"], limit)
            assert error.startswith("the hub refuses someone/books (HTTP 403)")
        hub.file_status = None
        hub.sends_parts = False
        assert "leave --limit out to fetch the file whole" in asked.error(["test.jsonl"], 1)
        assert hub.sent.total() <= len(files["test.jsonl"])
        assert len(asked.read(["test.jsonl"])["rows"]) == 20
        assert "no name of a data set" in asked.error(["test.jsonl"], 1, repo="some--one/books")


def test_every_request_goes_through_the_proxy_of_the_user(tmp_path: Path) -> None:
    """The endpoint does not exist; the stand-in is the proxy that knows the way to it."""
    files = {"test.jsonl": as_lines(make_rows(20)), "test.parquet": as_parquet(make_rows(20))}
    with hub_standin({REPO: files}) as hub:
        environment = {**hub.environment(tmp_path), "HF_ENDPOINT": "http://hub.invalid", "NO_PROXY": "", "no_proxy": ""}
        proxies = {"HTTP_PROXY": hub.endpoint, "http_proxy": hub.endpoint, "ALL_PROXY": "", "all_proxy": ""}
        with reader({**environment, **proxies}) as asked:
            assert len(asked.read(["test.jsonl"], 2)["rows"]) == 2
            assert len(asked.read(["test.parquet"])["rows"]) == 20
        assert all(" http://hub.invalid/" in request for request in hub.requests)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with hub_standin({REPO: {"test.jsonl": b"{}\n"}}) as hub:
        environment = {**hub.environment(tmp_path), "HF_ASSETS_CACHE": str(tmp_path / "file" / "assets")}
        with reader(environment) as asked:
            assert "set HF_HOME to a folder" in asked.error(["test.jsonl"], 1)


def test_several_files_are_one_list_of_rows(tmp_path: Path) -> None:
    names = [f"part-0000{i}-of-00003" for i in range(3)]
    files = {f"{name}.jsonl": as_lines([{"text": name}, {"text": "more"}]) for name in names}
    files |= {f"{name}.parquet": as_parquet([{"text": name}, {"text": "more"}]) for name in names}
    with hub_standin({REPO: files}) as hub, reader(hub.environment(tmp_path)) as asked:
        for suffix in ("jsonl", "parquet"):
            part = asked.read([f"*.{suffix}"], 3)
            assert [index for _, index, _ in part["rows"]] == [0, 1, 2]
            assert f"{names[2]}.{suffix}" not in hub.sent, "the third file holds none of the three rows"
            whole = asked.read([f"*.{suffix}"])
            assert [index for _, index, _ in whole["rows"]] == list(range(6))
            assert whole["rows"][:3] == part["rows"]
            assert whole["provenance"] == part["provenance"]
            assert len(whole["provenance"]["files"]) == 3


def test_files_that_another_program_fetched_are_read_without_the_hub(tmp_path: Path) -> None:
    names = [f"part-0000{i}-of-00002.jsonl" for i in range(2)]
    with hub_standin({REPO: {name: as_lines([{"text": name}]) for name in names}}) as hub:
        environment = hub.environment(tmp_path)
        fetch = f"import huggingface_hub as h; h.snapshot_download({NAME!r}, repo_type='dataset', allow_patterns="
        for patterns in (names[:1], names):
            subprocess.run([sys.executable, "-c", f"{fetch}{patterns})"], env={**os.environ, **environment}, check=True)
            with reader(environment) as asked:
                if patterns == names:
                    found = asked.read(["part-*"], offline=True)
                    assert [fields["text"] for _, _, fields in found["rows"]] == names
                    assert found["provenance"]["revision"] == hub.commit(REPO)
                else:
                    error = asked.error(["part-*"], offline=True)
                    assert error.startswith("someone/books part-* is not in the cache, and HF_HUB_OFFLINE is set")


def test_patterns_match_as_paths_do() -> None:
    paths = ["a/test-0.parquet", "a/test-1.parquet", "a/b/test-0.parquet", "test.parquet", "testy/x.parquet", "a.b"]
    assert matching(paths, ["a/test-*.parquet"]) == ("a/test-0.parquet", "a/test-1.parquet")
    assert matching(paths, ["none/*", "test.*", "**/test-*.parquet"]) == ("test.parquet",)
    assert matching(paths, ["**/test-0.parquet"]) == ("a/b/test-0.parquet", "a/test-0.parquet")
    assert matching(paths, ["a.b"]) == ("a.b",)
    assert matching(["axb"], ["a.b"]) == ()


def test_csv_takes_long_fields_and_names_what_it_cannot_read() -> None:
    long = "word, " * 50_000
    content = "\ufeff".encode() + as_csv([{"text": long, "id": "a\nb"}])
    (row,) = parse_records(io.BufferedReader(io.BytesIO(content)), "x.csv")
    assert row == Row("x.csv line 2", {"text": long, "id": "a\nb"}, is_table=True)

    content = b'id\ttext\n1\tone\n2\n3\tb\xffd\n4\tfour\n"5" no\tx\n'
    records = list(parse_records(io.BufferedReader(io.BytesIO(content)), "x.tsv"))
    assert [row.where for row in records if isinstance(row, Row)] == ["x.tsv line 2", "x.tsv line 4", "x.tsv line 5"]
    assert isinstance(records[2], Row)
    with pytest.raises(
        DataError, match=r"^x\.tsv line 4: field 'text' holds bytes that are no UTF-8.*character 2; save the file"
    ):
        records[2].text("text")
    short, quote = (row.problem for row in records if isinstance(row, BadRow))
    assert short == "x.tsv line 3: 1 cells under a header of 2; correct it"
    assert quote.startswith("x.tsv line 6: not readable CSV (")
