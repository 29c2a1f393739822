"""What `datasets` loads: folders, patterns, arrays, zip files, saved Arrow; and the hub, kept, offline and pinned."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tasks import CustomTask, DataError, LoadedExamples, LoadRequest
from tasks.readers.any_dataset import BLOCK_ROWS, HubPath
from tests.helpers.hub_standin import hub_standin

ROOT = Path(__file__).parents[3]
ROWS: list[dict[str, Any]] = [
    {"id": f"r{i}", "title": f"T{i}", "article": f"body {i}", "highlights": [f"h {i}", "x"]} for i in range(4)
]
ABOUT: dict[str, Any] = {"context_field": "article", "target_field": "highlights"}


def load(data: Path, split: str = "test", **more: Any) -> LoadedExamples:
    about = {name: more.pop(name) for name in ("context_field", "target_field", "subset", "id_field") if name in more}
    return CustomTask(**ABOUT | about).task().load(LoadRequest(split=split, data=data, **more))


def ids(data: Path, split: str = "test", **more: Any) -> list[str]:
    return [example.id for example in load(data, split, **more).examples]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder as the hub has them: two files for each split."""
    path = tmp_path / "sets"
    path.mkdir()
    for split, rows in (("train", ROWS[:2]), ("test", ROWS)):
        for part in range(2):
            half = rows[part * len(rows) // 2 : (part + 1) * len(rows) // 2]
            (path / f"{split}-0000{part}-of-00002.parquet").write_bytes(parquet(half))
    return path


def test_a_folder_of_parts_and_a_pattern_of_paths_are_one_data_set(folder: Path) -> None:
    loaded = load(folder)
    assert [example.id for example in loaded.examples] == ["r0", "r1", "r2", "r3"]
    assert loaded.examples[1].references == ("h 1", "x")
    assert ids(folder, "train") == ["r0", "r1"]
    pattern = load(folder / "test-*.parquet")
    assert pattern.examples == loaded.examples
    assert pattern.provenance["sha256"] == loaded.provenance["sha256"] != load(folder, "train").provenance["sha256"]
    assert ids(folder / "test-*.parquet", "train") == ["r0", "r1", "r2", "r3"], "files that are named serve every split"
    with pytest.raises(DataError, match="has no split 'validation'; it has train, test: name one with --split"):
        load(folder, "validation")
    with pytest.raises(DataError, match=r"no file matches .*x\*; check the path"):
        load(folder / "x*")


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    saved = {"test": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "disk"))
    assert ids(tmp_path / "disk") == ["r0", "r1", "r2", "r3"]
    assert ids(tmp_path / "disk", "validation") == ["r0"], "dev is a name of validation"
    assert ids(tmp_path / "disk" / "test", "train") == ["r0", "r1", "r2", "r3"]
    with pytest.raises(DataError, match="has no split 'train'; it has test, dev"):
        load(tmp_path / "disk", "train")


def test_an_array_of_json_and_a_zip_of_several_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, packed = tmp_path / "a.json", tmp_path / "a.zip"
    array.write_text(json.dumps(ROWS))
    with zipfile.ZipFile(packed, "w") as archive:
        for row in ROWS:
            archive.writestr(f"{row['id']}.jsonl", json.dumps(row) + "\n")
    assert ids(array) == ids(packed) == ["r0", "r1", "r2", "r3"]
    monkeypatch.chdir(tmp_path)
    assert ids(Path("a.json")) == ids(Path("*.json")) == ["r0", "r1", "r2", "r3"], "also beside the user"
    array.write_text("[{")
    with pytest.raises(DataError, match=r"a\.json: .*; check it$"):
        load(array)


def test_a_field_may_be_a_text_made_of_columns(folder: Path) -> None:
    loaded = load(folder, context_field="{{ title }}:\n{{ article }}", limit=1)
    assert loaded.examples[0].context == "T0:\nbody 0"
    with pytest.raises(DataError, match="row 0: no field 'tilte', fields found: id, title, article, highlights"):
        load(folder, context_field="{{ tilte }}")
    with pytest.raises(DataError, match=r"row 0: field '\{\{ title.x \}\}', columns found.*has no attribute 'x'"):
        load(folder, context_field="{{ title.x }}")
    with pytest.raises(DataError, match=r"field '\{\{ title' is no template in Jinja"):
        load(folder, context_field="{{ title")
    assert ids(folder, id_field="title") == ["T0", "T1", "T2", "T3"]
    (folder.parent / "nested.jsonl").write_text(json.dumps({"article": "a", "answers": {"text": ["b", "c"]}}) + "\n")
    nested = load(folder.parent / "nested.jsonl", target_field="{{ answers.text }}")
    assert nested.examples[0].references == ("b", "c"), "a single expression may be a list"


def test_columns_may_be_called_as_jinja_and_python_call_things(folder: Path) -> None:
    file = folder.parent / "named.jsonl"
    file.write_text(json.dumps({"text": "a", "where": "b", "self": "c", "highlights": "d"}) + "\n")
    loaded = load(file, context_field="{{ text }} {{ where }}")
    assert loaded.examples[0].context == "a b"
    with pytest.raises(DataError, match=r"field '\{\{ self \}\}' names a column 'self', .* rename the column"):
        load(file, context_field="{{ self }}")


def test_a_missing_column_is_told_and_not_one_that_nobody_named(folder: Path) -> None:
    rows = [{"id": "a", "article": "b", "highlights": "c", "picture": b"d"}]
    for name in ("one", "two"):
        (folder.parent / f"{name}.parquet").write_bytes(parquet(rows))
    pictures = folder.parent / "*.parquet"
    with pytest.raises(DataError, match="no field 'artikle', fields found: id, article, highlights, picture; name one"):
        load(pictures, context_field="artikle")
    with pytest.raises(DataError, match="column 'picture' holds binary data; name columns of texts"):
        load(pictures, context_field="picture")


def test_a_subset_of_named_files_is_refused(folder: Path) -> None:
    import datasets

    saved = folder.parent / "saved"
    datasets.Dataset.from_list([{"article": "a", "highlights": "b"}]).save_to_disk(str(saved))
    texts = folder.parent / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a")
    for data in (folder / "test-*.parquet", saved, texts, Path("hf://owner/tickets/mail/*.parquet")):
        with pytest.raises(
            DataError, match=r"^subset mail chooses among the files of a data set, and .*leave one out$"
        ):
            load(data, subset="mail")


def test_a_null_is_no_text_of_a_template(folder: Path) -> None:
    file = folder.parent / "null.jsonl"
    rows = [{"id": "good", "article": "a", "highlights": "b"}, {"id": "bad", "article": None, "highlights": "c"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"^null\.jsonl line 2: field '\{\{ article \}\}', .* a value is null"):
        load(file, context_field="{{ article }}")
    with pytest.raises(DataError, match=r"^null\.jsonl line 2: .* a value is null"):
        load(file, context_field="{{ id }} {{ article }}")
    assert ids(file, context_field="{{ article }}", on_bad_row="skip") == ["good"]
    loaded = load(file, context_field="{{ id }} {{ article or '' }}")
    assert [one.context for one in loaded.examples] == ["good a", "bad"]


def test_a_scan_reads_no_further_than_it_says(folder: Path) -> None:
    loaded = load(folder, sample=2, scan=3)
    assert loaded.provenance["scan"] == loaded.provenance["num_rows"] == 3
    assert len(loaded.examples) == 2
    assert "r3" not in ids(folder, sample=3, scan=3)
    with pytest.raises(DataError, match="scan is 3; give 1 row or more, with a sample"):
        load(folder, scan=3)


def test_shots_are_drawn_once_and_their_documents_are_not_scored(folder: Path) -> None:
    loaded = load(folder, shots=2)
    assert {shot.id for shot in loaded.shots} == {"r0", "r1"}
    assert [example.id for example in loaded.examples] == ["r2", "r3"], "the same texts are in both splits"
    assert loaded.provenance["num_in_shots"] == 2
    one = folder / "test-*.parquet"
    drawn = [load(one, shots=1, shots_seed=seed).shots[0].id for seed in range(8)]
    assert len(set(drawn)) > 1
    for more in ({"limit": 1}, {"sample": 2}, {"min_words": 1}):
        assert load(one, shots=1, shots_seed=5, **more).shots[0].id == drawn[5], "a run that grows keeps its prompts"
        assert drawn[5] not in ids(one, shots=1, shots_seed=5, **more)
    with pytest.raises(DataError, match="2 documents in the first 1,000 rows of split train, and 3 shots are drawn"):
        load(folder, shots=3)


# The hub

# The endpoint is read at import, hence a process of its own; one answers many questions.
ANSWER = """
import json, sys
from pathlib import Path
from huggingface_hub import constants
from tasks import CustomTask, DataError, LoadRequest, read_task_file
for line in sys.stdin:
    asked = json.loads(line)
    constants.HF_HUB_OFFLINE = asked.pop("offline")
    about = {"context_field": "article", "target_field": "highlights", "subset": asked.pop("subset", None)}
    file = asked.pop("file", None)
    data = None if file else Path(asked.pop("data", "hf://owner/tickets"))
    request = LoadRequest(split=asked.pop("split", "test"), data=data, **asked)
    try:
        loaded = (read_task_file(Path(file)) if file else CustomTask(**about)).task().load(request)
        answer = {"ids": [one.id for one in loaded.examples], "provenance": dict(loaded.provenance)}
    except DataError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""
CARD = b"""---
configs:
- config_name: news
  default: true
  data_files:
  - {split: train, path: news/train-*}
  - {split: test, path: news/test-*}
- config_name: mail
  data_files:
  - {split: test, path: mail/*}
---
"""
REPO = "datasets/owner/tickets"


@contextmanager
def asking(environment: Mapping[str, str]) -> Iterator[Callable[..., Any]]:
    """Give a function that loads the data set in a process with these variables."""
    with subprocess.Popen(
        [sys.executable, "-c", ANSWER],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def ask(*, offline: bool = False, **asked: Any) -> Any:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps({"offline": offline, **asked}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def test_a_data_set_of_the_hub_is_pinned_streamed_and_read_again_without_the_hub(tmp_path: Path) -> None:
    many = [{**ROWS[0], "id": f"m{i}", "article": f"body {i}"} for i in range(BLOCK_ROWS + 6)]
    files = {"README.md": CARD, "mail/a.parquet": parquet(ROWS[:1]), "news/test-0.parquet": parquet(many)}
    files["news/train-0.parquet"] = parquet(ROWS)
    with ExitStack() as stack:
        converted = {f"{name}/test/0000.parquet": parquet(ROWS[at:]) for name, at in (("mail", 2), ("news", 3))}
        hub = stack.enter_context(hub_standin({REPO: files, f"{REPO}@refs/convert/parquet": converted}))
        ask = stack.enter_context(asking(hub.environment(tmp_path)))
        first = ask(limit=3)
        assert first["ids"] == ["m0", "m1", "m2"]
        assert first["provenance"]["kind"] == "hub"
        assert first["provenance"]["name"] == "owner/tickets"
        assert first["provenance"]["revision"] == hub.commit(REPO)
        assert "news/train-0.parquet" not in hub.fetched, "nothing of another split is fetched"
        assert ask(subset="mail")["ids"] == ["r0"]
        assert ask(data="hf://owner/tickets/mail/*.parquet", split="train")["ids"] == ["r0"], "files serve every split"
        assert ask(subset="mail", revision="refs/convert/parquet")["ids"] == ["r2", "r3"]
        task = tmp_path / "mail.yaml"
        task.write_text(
            "data: hf://owner/tickets@refs%2Fconvert%2Fparquet\nsubset: mail\ncontext_field: article\n"
            "target_field: highlights\n"
        )
        assert ask(file=str(task))["ids"] == ["r2", "r3"], "a task file's own revision"
        more = ask(limit=5)
        assert more["ids"] == ["m0", "m1", "m2", "m3", "m4"], "goes on behind the rows that are kept"
        assert "it has train, test: name one with --split" in ask(split="validation")["error"]
        assert "'post'" in ask(subset="post")["error"]
        refused = ask(revision="v9")["error"]
        assert refused.startswith("owner/tickets on the hub has no branch, tag or commit v9")
        assert ask(offline=True, limit=3) == first
        error = ask(offline=True)["error"]
        assert error.startswith("the cache holds fewer rows of owner/tickets test than this run needs, and HF_HUB")
        hub.statuses = {REPO: 503}
        assert ask(limit=5) == more, "also where the hub does not answer"
        hub.statuses = {}
        whole = ask()
        assert whole["ids"] == [row["id"] for row in many]
        hub.requests.clear()
        assert ask(offline=True) == whole
        assert not hub.requests


def test_what_follows_hf_names_a_set_a_revision_and_files() -> None:
    assert HubPath.of(Path("hf://owner/name")) == HubPath(repo="owner/name")
    assert HubPath.of(Path("hf://datasets/owner/name@v1/data/*.csv")) == HubPath(
        repo="owner/name", revision="v1", files="data/*.csv"
    )
    assert HubPath.of(Path("hf://owner/name@refs%2Fpr%2F1")) == HubPath(repo="owner/name", revision="refs/pr/1")
    assert HubPath.of(Path("owner/name")) is None
