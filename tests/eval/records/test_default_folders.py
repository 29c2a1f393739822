"""The folder of a command without --output keeps its name between versions, so that a run finds what it has done."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.config.finetune import TrainConfig
from eval.config.perplexity import PerplexityConfig
from eval.config.placement import PlacementConfig
from eval.config.run import RunConfig
from eval.generation.backend import output_of
from eval.losses import perplexity_job, placement_job
from eval.records.run_folder import default_output
from eval.training.job import folder_of

RUN = "--task plos --maxlen 1024 2048 4096 8192 --limit 2 --max-new-tokens 128"
PERPLEXITY = "--task aclsum --maxlen 1024 2048 4096 8192 --limit 4"
PLACEMENT = "--task aclsum --split validation --limit 3 --maxlen 4096 --budget layers=4"
TRAINING = "--task aclsum --maxlen 2048 --max-steps 20 --lora-rank 8"


# Names are those of version 0.1 (fca1ebb).
@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("", "plos-smollm2-135m-auto-de0845ce"),
        ("--batch-size 1 --no-texts --overwrite --maxlen 512 --limit 9", "plos-smollm2-135m-auto-de0845ce"),
        ("--min-words 5 --model a/b --plan plans/x.json", "plos-b-x.json-44c4e112"),
        (
            "--truncation middle --stop x --shard 1/2 --template instruct",
            "plos-smollm2-135m-auto-a6e2a364-shard-1-of-2",
        ),
    ],
)
def test_runs_keep_the_names_of_their_folders(more: str, name: str) -> None:
    assert output_of(RunConfig.from_command_line(f"{RUN} {more}".split())) == Path("runs") / name


def test_measurements_searches_and_trainings_keep_the_names_of_their_folders() -> None:
    perplexity = PerplexityConfig.from_command_line(PERPLEXITY.split())
    placement = PlacementConfig.from_command_line(PLACEMENT.split())
    training = TrainConfig.from_command_line(TRAINING.split())
    names = (
        default_output("perplexity", perplexity, perplexity_job.free_options(perplexity)),
        default_output("placement", placement, placement_job._FREE),
        folder_of(training).path,
    )
    assert [str(name) for name in names] == [
        "runs/perplexity-aclsum-smollm2-135m-auto-ad929da4",
        "runs/placement-aclsum-smollm2-135m-local-span-1024-sinks-4-ad42309e",
        "runs/train-aclsum-smollm2-135m-auto-ed8a0d47",
    ]
