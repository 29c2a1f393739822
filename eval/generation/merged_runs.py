"""The folders of a run's shards, joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.generation.recorded_claim import merged_claim
from eval.generation.run_job import finish_run
from eval.records.merging import merge_tasks
from eval.records.read_run import gather_inputs
from eval.records.run_folder import METRICS, UNFINISHED, RunFolder
from eval.records.schema import Prediction, RunRecord, TaskRecord
from eval.runtime.jobs import print_facts
from eval.scoring.metric_files import join_metric_files


def _prompts(record: RunRecord) -> dict[str, Any]:
    return {name: task.templates for name, task in record.tasks.items()}


def merge_runs(parts: Sequence[Path], output: Path) -> None:
    """Join the folders of a run's shards into a new one, and score them together.

    Raises:
        UserError: A part is no run of `eval/run.py`, is at work, or was made under other settings; or the new folder
            holds a run already.
    """
    folders = [RunFolder(part, remedy="give the folders of its shards") for part in parts]
    records: list[RunRecord] = []
    for folder in folders:
        record = folder.read_record(RunRecord)
        if record is None:
            raise UserError(f"{folder.path} holds no run of eval/run.py; give the folders of its shards")
        records.append(record)
        first, date = records[0].template_date, record.template_date
        if date != first and _prompts(record) != _prompts(records[0]):
            raise UserError(
                f"{folder.path} has prompts of {date}, {folders[0].path} of {first}; begin all shards with the same "
                "--template-date"
            )
        # Both ways, so that neither may have more examples than the other.
        folders[0].check_accepts(records[0], record.identity, record.tasks)
        folder.check_accepts(record, records[0].identity, records[0].tasks)
    whole = RunFolder(output)
    existing = whole.read_record(RunRecord)
    tasks: dict[str, TaskRecord] = {}
    for record in records:
        tasks = merge_tasks(tasks, record.tasks)
    with_texts = all(record.config.get("texts") is not False for record in records)
    merged = replace(
        records[0],
        config=records[0].config | {"shard": None, "output": str(output), "texts": with_texts},
        tasks=tasks,
        claim=merged_claim(records),
        sessions=[session for record in records for session in record.sessions],
        checksums=True,
    )
    # The same merge is made again, as after a kill, unless another command has gone on in its folder since.
    if existing is not None and existing != merged:
        raise UserError(f"output folder {output} holds a run already; give a new one with --output")
    with ExitStack() as locks:
        for folder, record in zip(folders, records, strict=True):
            locks.enter_context(folder.lock(record, RunRecord))
        locks.enter_context(whole.lock(existing, RunRecord))
        journals = [folder.read_journal(Prediction) for folder in folders]
        print_facts({str(one.path): journal.describe() for one, journal in zip(folders, journals, strict=True)})
        lines = {key: line for journal in journals for key, line in journal.lines.items()}
        examples = {(line.task, line.id): line for folder in folders for line in folder.read_examples()}
        documents = {(line.task, line.document_id): line for folder in folders for line in folder.read_documents()}
        # What cannot be scored is reported before anything is written.
        gather_inputs(output, merged, lines, [*examples.values()], [*documents.values()])
        metrics, left_out = join_metric_files(parts, output)
        print_facts({"metrics": [f"{one}; score {output} with --metrics" for one in left_out]})
        whole.write_text(UNFINISHED, "")
        whole.write_documents(documents.values())
        whole.write_lines("examples.jsonl", examples.values())
        whole.write_lines("predictions.jsonl", lines.values())
        for name, records in metrics.items():
            whole.write_lines(f"{METRICS}/{name}", records)
        finish_run(whole, merged, set())  # writes the record, once all that it describes is there
        (output / UNFINISHED).unlink()
