"""What loads weights prints no bar and no warning of a library, and our own bar fits a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from eval.generation.progress import BAR
from tests.helpers.tiny_models import save_tiny_checkpoint

# In a process of its own: whether transformers shows bars is a state of the process. The bar of GGUF files is stood in
# for, since no tiny one can be written.
LOAD = """
import sys, torch
from transformers import modeling_gguf_pytorch_utils as gguf
from transformers.utils import logging
from eval.runtime.model import load_converted
from masformer.checkpoints.open import open_checkpoint
load_converted(open_checkpoint(sys.argv[1]), "float32", torch.device("cpu"), None, "auto", print)
list(gguf.tqdm(range(3), desc="Converting and de-quantizing"))
logging.get_logger("transformers").warning("a warning of the library")
"""


def test_loading_is_silent(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_the_line_of_progress_fits_80_columns() -> None:
    hours = tqdm.format_meter(31, 100, 20_000, prefix="generating", bar_format=BAR, postfix="prefilled to 131,072")
    assert hours.endswith("left, prefilled to 131,072")
    assert len(hours) <= 80
