"""The samples of the tasks, written as the official files that they are in miniature.

    data = write_official("quality", folder)  # folder/quality.zip
    TASKS["quality"].load(LoadRequest(split="validation", data=data))

What is written for a task is named for it, so that a folder of all serves a run of all.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tasks import TASKS

Records = Sequence[Mapping[str, Any]]


def as_lines(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records: Records) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().encode()


def sample_records(task: str) -> Records:
    """Return the records of a sample that is one file."""
    (content,) = TASKS[task].sample.values()
    assert not isinstance(content, str)
    return content


def write_official(task: str, folder: Path, content: bytes | None = None) -> Path:
    """Write a task's sample into a folder, as a file or folder named for the task, and return that.

    Args:
        task: Name of the task.
        folder: Where to write.
        content: Written in place of that of the sample, which is one file.
    """
    sample = TASKS[task].sample
    assert content is None or len(sample) == 1
    names = [PurePosixPath(path) for path in sample]
    is_file = len(names) == 1 and (len(names[0].parts) == 1 or names[0].parts[0].endswith(".zip"))
    root = folder / f"{task}{PurePosixPath(names[0].parts[0]).suffix}" if is_file else folder / task
    for name, made in zip(names, sample.values(), strict=True):
        encode = as_csv if name.suffix == ".csv" else as_lines
        data = content or (made.encode() if isinstance(made, str) else encode(made))
        if is_file and len(name.parts) > 1:
            with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("/".join(name.parts[1:]), data)
            continue
        path = root if is_file else root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.suffix == ".gz" else data)
    return root
