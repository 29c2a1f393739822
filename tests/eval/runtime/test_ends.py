"""The end tokens that files of a checkpoint name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.runtime.model import suggested_ends
from masformer.checkpoints.open import open_checkpoint
from tests.helpers.tiny_models import save_tiny_checkpoint


@pytest.mark.parametrize("gguf_file", [None, "model.gguf"])
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"top_p": 0.9}, {"config": [3, 5]}),
        (None, {"config": [3, 5]}),
        ({"eos_token_id": [4]}, {"generation_config": [4]}),
    ],
)
def test_ends_of_the_config_count_where_generation_settings_name_none(
    tmp_path: Path, own: dict[str, Any] | None, expected: dict[str, list[int]], gguf_file: str | None
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [3, 5]}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if own is not None:
        (folder / "generation_config.json").write_text(json.dumps(own))
    checkpoint = replace(open_checkpoint(str(folder)), gguf_file=gguf_file)
    assert suggested_ends(checkpoint) == expected
