"""Run a study, and write its report: many runs, measurements and trainings by one command.

    python -m eval.study [STUDY.yaml] [--output DIR] [--only PART ...] [--list] [--report]

Each part is a script that runs by itself; what is done is not done again, and a study that was killed goes on by the
same command. The report needs no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.errors import UserError
from eval.records.run_folder import locked
from eval.runtime.jobs import CommandParser, command
from eval.studies.folder import open_study_folder
from eval.studies.parts import read_study

_STUDY = Path("configs/study/smollm2.yaml")
_OUTPUT = Path("runs/study")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.study", __doc__)
    about = f"YAML file (default: {_STUDY})"
    parser.add_argument("study", metavar="STUDY", type=Path, nargs="?", default=_STUDY, help=about)
    about = f"folder of all parts (default: {_OUTPUT})"
    parser.add_argument("--output", metavar="DIR", type=Path, default=_OUTPUT, help=about)
    parser.add_argument("--only", metavar="PART", nargs="+", default=[], help="run these parts and what they need")
    about = "folder that gets a copy of what each part measured, without texts, as the part ends, to publish"
    parser.add_argument("--records", metavar="DIR", type=Path, help=about)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print each part, its state, and its command; run nothing")
    what.add_argument("--report", action="store_true", help="write the report from what is there; run nothing")
    return parser.parse_args(arguments)


@command(again="the same command")
def main(argv: Sequence[str]) -> None:
    """Run the study that a command line names; the exit status is 1 where a part failed."""
    options = _parse(argv)
    study = read_study(options.study)
    parts = study.chosen(options.only)
    if options.records is not None and options.list:
        raise UserError("--records copies what parts measured, and --list runs nothing; leave one of them out")
    if options.report and not options.output.is_dir():
        raise UserError(f"there is no folder '{options.output}' to report on; --output names that of a study")
    folder = open_study_folder(study, options.output)
    # What runs and reports takes a while to import, and comes after the checks.
    from eval.studies.launch import list_parts, run_parts
    from eval.studies.records import check_target, copy_records
    from eval.studies.registry import describe_registered, register
    from eval.studies.report import write_report

    if options.records is not None:
        check_target(options.records, options.output)
    if options.list:
        print(list_parts(folder, parts))
    elif options.report:  # also while the study runs
        print(write_report(folder))
        if options.records is not None:
            copy_records(folder, parts, options.records)
    else:
        with locked(folder.path):
            print(describe_registered(folder, register(folder)), end="", flush=True)
            failed = run_parts(folder, parts, options.records)
            print(write_report(folder))
            if options.records is not None:
                copy_records(folder, parts, options.records)
        if failed:
            sys.exit(f"error: {len(failed)} part(s) not done: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
