"""Process layouts: accelerate reads each, and those for a CPU start what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "accelerate"
EXPECTED = {
    "cpu": DistributedType.NO,
    "cpu_two_processes": DistributedType.MULTI_GPU,
    "one_gpu": DistributedType.NO,
    "one_model_over_gpus": DistributedType.NO,
    "several_gpus": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "several_nodes": DistributedType.MULTI_GPU,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == EXPECTED[name]
    # The dtype is the business of --dtype; a layout that also names one would be another setting.
    assert config.mixed_precision == "no"


def test_every_layout_is_tested() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.nightly  # tests/eval/test_run.py launches two processes with theirs
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("cpu_two_processes", 2)])
def test_layouts_for_a_cpu_start_their_processes(name: str, processes: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "from pathlib import Path\n"
        "a = Accelerator()\n"
        f"Path({str(tmp_path)!r}, str(a.process_index)).write_text(f'{{a.num_processes}} {{a.device.type}}')\n"
    )
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    environ["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [sys.executable, *command, "--main_process_port", "0", str(script)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert found == {str(index): f"{processes} cpu" for index in range(processes)}
