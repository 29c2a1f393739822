"""Runs that are killed, interrupted, or short of disk or memory: what is written stays, the rest is made again."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.generation import decode, tree_decoder
from eval.run import main
from tests.eval.test_run import ROOT, expect_error, read, rows
from tests.helpers.forks import Forked, run_forked, start_forked, start_ranks
from tests.helpers.run_folders import without_checksums
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

NUM_DOCUMENTS, LENGTHS = 12, ("400", "700")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run of 24 predictions in 6 groups, which takes a second or two."""
    folder = tmp_path_factory.mktemp("faults")
    model = save_tiny_checkpoint(folder / "model")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(NUM_DOCUMENTS)))
    data = folder / "data.jsonl"
    text = f"--task arxiv --model {model} --data {data} --max-new-tokens 30 --threads 1"
    text += " --batch-size 4 --dtype float64"
    return [*text.split(), "--maxlen", *LENGTHS, "--plan", "full@1 span=64 sinks=4"]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*arguments, "--output", str(folder)]) == 0
    return folder


def predictions(folder: Path) -> list[dict[str, Any]]:
    """Return the predictions without what differs from run to run: times and memory, and who paid for shared edges."""
    apart = ("seconds", "prefill_seconds", "decode_seconds", "peak_bytes", "prefilled_tokens")
    lines = read(folder, "predictions.jsonl")
    return [{key: value for key, value in line.items() if key not in apart} for line in lines]


def num_written(folder: Path) -> int:
    """Return the whole lines in the journals of a run."""
    num_lines = 0
    for file in (folder / "journal").glob("*.jsonl"):
        with suppress(FileNotFoundError):  # the run has merged it since
            num_lines += file.read_bytes().count(b"\n")
    return num_lines


def wait_for_lines(folder: Path, process: Forked | subprocess.Popen[str], more_than: int = 0) -> None:
    """Wait until the journals hold more lines than a number, or the process has ended."""
    deadline = time.monotonic() + 120
    while num_written(folder) <= more_than and (
        process.is_alive if isinstance(process, Forked) else process.poll() is None
    ):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_moments_and_resumed(
    count: int, arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Each of several runs is killed again and again, at a random moment after it wrote its first prediction."""
    chance, kills, attempts = random.Random(0), 0, 0
    while kills < count:
        folder = tmp_path / f"run-{attempts}"
        before = num_written(folder)
        process = start_forked("eval.run", [*arguments, "--output", str(folder)])
        wait_for_lines(folder, process, before)
        time.sleep(chance.uniform(0, 0.4))
        process.signal(signal.SIGKILL)
        done = process.end()
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode == -signal.SIGKILL
        attempts += (folder / "scores.json").exists()
    folders = [tmp_path / f"run-{attempt}" for attempt in range(attempts + 1)]
    for folder in folders:
        assert main([*arguments, "--output", str(folder)]) == 0
        assert predictions(folder) == predictions(undisturbed)
        assert not (folder / "journal").exists()
    sessions = [len(read(folder, "run.json")["sessions"]) for folder in folders]
    assert max(sessions) > 1, "no run was resumed"


def test_a_killed_run_has_noted_its_ways_and_goes_on_with_them(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MASFORMER_WAYS", "")  # as where nothing is set: measured
    folder = tmp_path / "run"
    wide = save_tiny_checkpoint(tmp_path / "wide", hidden_size=256, head_dim=64)
    arguments = [*arguments, "--model", str(wide), "--dtype", "float32", "--output", str(folder)]
    process = start_forked("eval.run", arguments)
    wait_for_lines(folder, process)
    process.signal(signal.SIGKILL)
    assert process.end().returncode == -signal.SIGKILL
    record = read(folder, "run.json")
    [session] = record["sessions"]
    assert session["finished"] is None
    assert {f"linear float32 256x256, rows {rows}" for rows in (1, 16, 128)} <= set(session["ways"])

    # What the file of choices says by now is of no account, and what another machine took is not taken up.
    shutil.rmtree(tmp_path / "masformer")
    session["ways"] = {key: "direct" if key.startswith("linear") else way for key, way in session["ways"].items()}
    other = session | {"machine": session["machine"] | {"cores": 999}, "ways": dict.fromkeys(session["ways"], "plain")}
    record["sessions"] = [session, other]
    (folder / "run.json").write_text(json.dumps(record))
    done = run_forked("eval.run", arguments)
    assert done.returncode == 0, done.stderr
    assert read(folder, "run.json")["sessions"][-1]["ways"] == session["ways"]


def test_an_interrupt_leaves_a_run_that_can_be_resumed_and_says_how(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    for name, number in (("int", signal.SIGINT), ("term", signal.SIGTERM)):
        folder = tmp_path / name
        process = start_forked("eval.run", [*arguments, "--output", str(folder)])
        wait_for_lines(folder, process)
        process.signal(number)
        done = process.end()
        assert done.returncode == 130
        assert "interrupted: the same command goes on where this one stopped" in done.stderr
        assert "Traceback" not in done.stderr
        assert 0 < num_written(folder) < 24
        assert main([*arguments, "--output", str(folder)]) == 0
        assert predictions(folder) == predictions(undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_leaves_the_work_of_the_others_whole(
    rank: int, arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ranks = start_ranks("eval.run", [*arguments, "--output", str(folder)])
    wait_for_lines(folder, ranks[rank], more_than=3)
    ranks[rank].signal(signal.SIGKILL)
    ranks[1 - rank].signal(signal.SIGTERM)  # as a launcher does then
    assert ranks[rank].end().returncode == -signal.SIGKILL
    assert ranks[1 - rank].end().returncode != 0
    check_what_a_dead_rank_leaves(folder, arguments, undisturbed)


@pytest.mark.nightly
def test_a_rank_that_dies_ends_the_launch(arguments: list[str], undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launcher = "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --main_process_port 0"
    process = subprocess.Popen(
        [sys.executable, *launcher.split(), "eval/run.py", *arguments, "--output", str(folder)],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_lines(folder, process, more_than=3)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(ranks.split()[0]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    check_what_a_dead_rank_leaves(folder, arguments, undisturbed)


def check_what_a_dead_rank_leaves(folder: Path, arguments: list[str], undisturbed: Path) -> None:
    before = [line for file in (folder / "journal").glob("*.jsonl") for line in file.read_bytes().splitlines(True)]
    ended = b"".join(line for line in before if line.endswith(b"\n"))
    whole = [json.loads(line) for line in without_checksums(ended.decode()).splitlines()]
    assert len(whole) >= 4
    assert len({(line["id"], line["maxlen"]) for line in whole}) == len(whole), "no prediction was made twice"
    assert read(folder, "run.json")["world_size"] == 2
    assert main([*arguments, "--output", str(folder)]) == 0
    lines = read(folder, "predictions.jsonl")
    assert len(lines) == 24
    assert all(line in lines for line in whole)
    assert [line["text"] for line in lines] == [line["text"] for line in predictions(undisturbed)]


def test_an_interrupted_run_that_began_anew_goes_on_without_beginning_anew_again(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert main([*arguments, "--limit", "1", "--truncation", "tail", "--output", str(folder)]) == 0
    process = start_forked("eval.run", [*arguments, "--overwrite", "--output", str(folder)])
    wait_for_lines(folder, process)
    process.signal(signal.SIGINT)
    told = process.end().stderr
    assert "interrupted: the same command, without --overwrite, goes on where this one stopped" in told
    assert main([*arguments, "--output", str(folder)]) == 0
    assert predictions(folder) == predictions(undisturbed)
    assert len(read(folder, "run.json")["sessions"]) == 2


def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start_forked("eval.run", [*arguments, "--output", str(folder)])
    # Files may grow no further than this: what a full disk does.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (9_000, 9_000))
    done = process.end()
    assert done.returncode == 2
    (told,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert (
        "cannot be written: File too large; what is there is kept; run the same command again once there is room"
        in told
    )
    assert "Traceback" not in done.stderr
    assert 0 < num_written(folder) < 24
    assert main([*arguments, "--output", str(folder)]) == 0
    assert predictions(folder) == predictions(undisturbed)


def test_torn_garbled_and_duplicated_lines_are_told_and_made_again(
    arguments: list[str], undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*arguments, "--output", str(folder)]) == 0
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal").mkdir()
    (folder / "predictions.jsonl").write_text("".join(lines[:4]))
    journal = [lines[5], lines[5], "garbage\n", lines[6].replace('"arxiv"', '"arxiv'), lines[7], lines[8][:50]]
    (folder / "journal" / "00000.jsonl").write_text("".join(journal))
    capsys.readouterr()
    assert main([*arguments, "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "6 of 24 predictions are there" in printed
    dropped = r"lines dropped from the journal: 1 torn, 2 damaged \(.*00000\.jsonl, line 3.*\), 1 duplicated"
    assert re.search(dropped, printed)
    # What a finished session had left is in no group any more, so that the others are in other groups.
    assert [line["text"] for line in predictions(folder)] == [line["text"] for line in predictions(undisturbed)]


def test_a_second_run_in_the_same_folder_is_refused(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start_forked("eval.run", [*arguments, "--output", str(folder)])
    wait_for_lines(folder, first)
    first.signal(signal.SIGSTOP)
    second = run_forked("eval.run", [*arguments, "--output", str(folder)])
    first.signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "is in use by another run" in second.stderr
    assert first.end().returncode == 0
    assert len(read(folder, "predictions.jsonl")) == 24


def test_a_changed_checkpoint_under_the_same_name_is_never_taken_for_the_former(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    changed = [*arguments, "--model", str(model), "--limit", "2", "--output", str(tmp_path / "run")]
    assert main(changed) == 0
    former = predictions(tmp_path / "run")
    save_tiny_checkpoint(model, rms_norm_eps=0.1)
    expect_error(changed, capsys, "holds another run", "model files", "; --overwrite begins anew")
    assert predictions(tmp_path / "run") == former
    assert main([*changed, "--overwrite"]) == 0
    assert [line["text"] for line in predictions(tmp_path / "run")] != [line["text"] for line in former]
    assert not {line["fingerprint"] for line in predictions(tmp_path / "run")} & {f["fingerprint"] for f in former}


def test_out_of_memory_halves_the_batch_and_says_so(
    arguments: list[str],
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, most = decode.join, 700

    def short_of_memory(caches: Any, room: int) -> Any:
        if sum(cache.get_seq_length() for cache in caches) > most:
            # What torch really raises for more than there is.
            torch.empty(2**60, dtype=torch.uint8)
        return original(caches, room)

    monkeypatch.setattr(decode, "join", short_of_memory)
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("out of memory with 4 prompts of") == 1
    found = read(tmp_path / "run", "predictions.jsonl")
    assert max(line["batch_size"] for line in found) == 2
    assert [line["text"] for line in found] == [line["text"] for line in predictions(undisturbed)]
    most = 100
    expect_error([*arguments, "--output", str(tmp_path / "none")], capsys, "out of memory with a single prompt of")


def test_a_bug_is_no_lack_of_memory(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tree_decoder, "decode_stream", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*arguments, "--output", str(tmp_path / "run")])


def test_machines_that_do_not_share_the_folder_are_told(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.generation.claims._VISIBLE_SECONDS", 0)
    monkeypatch.setattr("eval.generation.run_job.make_folder", lambda *_: None)  # made on another machine
    expect_error([*arguments, "--output", str(tmp_path / "run")], capsys, "on a shared disk", "--shard I/N")
