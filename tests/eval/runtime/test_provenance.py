"""A checkout with a user's data in it has no uncommitted changes; one with other code has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from eval.runtime import provenance


def test_only_changes_of_tracked_files_are_uncommitted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    file.write_text("first")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "papers.jsonl").write_text("{}\n")
    commit, dirty = provenance._commit()
    assert commit is not None
    assert dirty is False
    file.write_text("second")
    assert provenance._commit() == (commit, True)
