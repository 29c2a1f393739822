"""Join the folders of a run's shards, score them together, and report.

python eval/merge.py part-1 part-2 --output whole

Parts that lack predictions are joined too, which is said; the run's own command on the joined folder makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# A script that is run by path gets its own folder first on the path, where `eval/` would not be found.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.errors import UserError
from eval.jobs import CommandParser, run_command
from eval.records.read_run import gather_inputs, index_predictions
from eval.records.record import merge_tasks
from eval.records.run_folder import RunFolder
from eval.run import finish_folder


def merge(parts: Sequence[Path], output: Path) -> None:
    """Join run folders into a new one.

    Raises:
        UserError: A part is no run of `eval/run.py`, is at work, or was made under other settings; or
            the new folder holds a run already.
    """
    folders = [RunFolder(part) for part in parts]
    records: list[dict[str, Any]] = []
    for folder in folders:
        record = folder.read_run()
        if record is None or "grouping" not in record:
            raise UserError(f"{folder.path} holds no run of eval/run.py; give the folders of its shards")
        records.append(record)
        # Both ways, so that neither may have more examples than the other.
        folders[0].check_accepts(record["identity"], record["tasks"])
        folder.check_accepts(records[0]["identity"], records[0]["tasks"])
    whole = RunFolder(output)
    if whole.read_run() is not None:
        raise UserError(f"output folder {output} holds a run already; give a new one with --output")
    tasks: dict[str, Any] = {}
    for record in records:
        tasks = merge_tasks(tasks, record["tasks"])
    merged = records[0] | {
        "config": records[0]["config"]
        | {"shard": None, "output": str(output)}
        | {"texts": all(record["config"].get("texts") is not False for record in records)},
        "tasks": tasks,
        "sessions": [session for record in records for session in record["sessions"]],
    }
    with ExitStack() as locks:
        for folder, record in zip(folders, records, strict=True):
            locks.enter_context(folder.lock(record))
        locks.enter_context(whole.lock(None))
        lines = [line for folder in folders for line in folder.read_predictions().lines.values()]
        examples = {(line["task"], line["id"]): line for folder in folders for line in folder.read_examples()}
        documents = {
            (line["task"], line["document_id"]): line for folder in folders for line in folder.read_documents()
        }
        # What cannot be scored is told before anything is written.
        gather_inputs(output, merged, index_predictions(lines), [*examples.values()], [*documents.values()])
        whole.write_json("run.json", merged)
        whole.write_documents(documents.values())
        whole.write_lines("examples.jsonl", examples.values())
        whole.write_lines("predictions.jsonl", lines)
        finish_folder(whole, merged, set())


def main(arguments: Sequence[str]) -> int:
    """Join, and return the exit status: 0, or 2 after one line on what is wrong."""
    parser = CommandParser("python eval/merge.py", __doc__)
    parser.add_argument("parts", metavar="FOLDER", type=Path, nargs="+", help="of one shard")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="new folder for the whole run")
    asked = parser.parse_args(arguments)
    return run_command(lambda: merge(asked.parts, asked.output))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
