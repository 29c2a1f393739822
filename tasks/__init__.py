"""Published data sets as examples: `TASKS[name].load(LoadRequest(split=...))`."""

import difflib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from tasks.aclsum import ACLSUM, ACLSUM_ASPECTS
from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.big_patent import BIG_PATENT_TASKS
from tasks.book_sum import BOOK_SUM
from tasks.custom import CustomTask, check_instruction, read_task_file
from tasks.eips import EIPS
from tasks.helmet import HELMET_TASKS
from tasks.infinite_bench import INFINITE_BENCH_TASKS
from tasks.longbench import LONGBENCH_E_TASKS, LONGBENCH_TASKS, LONGBENCH_ZH_TASKS
from tasks.longbench2 import LONGBENCH2
from tasks.multi_news import MULTI_NEWS
from tasks.needles import NEEDLE_TASKS
from tasks.plos import PLOS
from tasks.qmsum import QMSUM
from tasks.readers.rows import one_line
from tasks.scientific_papers import ARXIV, PUBMED
from tasks.scrolls_tasks import SCROLLS_TASKS
from tasks.squality import SQUALITY
from tasks.text import TEXT

__all__ = [
    "CUSTOM",
    "LONGBENCH",
    "LONGBENCH_E",
    "NEEDLES",
    "SCROLLS",
    "SUMMARIES",
    "TASKS",
    "TASK_FILES",
    "CustomTask",
    "DataError",
    "Example",
    "LoadRequest",
    "LoadedExamples",
    "Task",
    "Template",
    "check_instruction",
    "find_task",
    "installed_tasks",
    "read_task_file",
    "tasks_of",
]

# The name of a user's own data in --task.
CUSTOM = "custom"

TASKS: dict[str, Task] = {
    "arxiv": ARXIV,
    "pubmed": PUBMED,
    "qmsum": QMSUM,
    **SCROLLS_TASKS,
    "multi_news": MULTI_NEWS,
    "book_sum": BOOK_SUM,
    **BIG_PATENT_TASKS,
    **LONGBENCH_TASKS,
    **LONGBENCH_ZH_TASKS,
    **LONGBENCH_E_TASKS,
    "longbench2": LONGBENCH2,
    **INFINITE_BENCH_TASKS,
    **HELMET_TASKS,
    "squality": SQUALITY,
    "eips": EIPS,
    "plos": PLOS,
    "aclsum": ACLSUM,
    "aclsum_aspects": ACLSUM_ASPECTS,
    **NEEDLE_TASKS,
    "text": TEXT,
}

# Entry points of installed packages: a `Task`, a function that returns one, or the path of a task file.
GROUP = "masformer.tasks"
TASK_FILES = (".yaml", ".yml")

# Suites: tasks that are reported together.
SCROLLS = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")
LONGBENCH = tuple(LONGBENCH_TASKS)
LONGBENCH_E = tuple(LONGBENCH_E_TASKS)
NEEDLES = tuple(NEEDLE_TASKS)
SUMMARIES = ("arxiv", "pubmed", "gov_report", "multi_news", "big_patent", "book_sum", "qmsum", "summ_screen_fd")


def find_task(name: str, folder: Path | None = None) -> Task:
    """Return a task: of a YAML task file, of a folder of such files, of the table, or of an installed package.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    if name.endswith(TASK_FILES):
        return _in_file(Path(name))
    shared = {} if folder is None else tasks_of(folder)
    if name in shared:
        return shared[name]
    if name in TASKS:
        return TASKS[name]
    installed = entry_points(group=GROUP)
    if found := installed.select(name=name):
        [*_, point] = found
        return _made_by(point)
    if name == CUSTOM:
        raise DataError(f"task '{CUSTOM}' is made of flags; give a YAML task file")
    others = sorted({*shared, *installed.names})
    close = difflib.get_close_matches(name, [*TASKS, *others], n=1)
    meant = f", perhaps '{close[0]}'" if close else ""
    more = f"; others here: {', '.join(others)}" if others else ""
    text = (
        f"unknown task '{name}'{meant}; python -m tasks list names all, and {CUSTOM} or a .yaml task file is for your "
        "own data"
    )
    raise DataError(text + more)


def tasks_of(folder: Path) -> dict[str, Task]:
    """Return the tasks of a folder of task files, by name. Raises `DataError` for a bad file, or if there is none."""
    files = sorted(file for file in folder.glob("*") if file.suffix in TASK_FILES)
    if not files:
        raise DataError(f"--tasks-from {folder} holds no {' or '.join(TASK_FILES)} file; give a folder of task files")
    found: dict[str, Task] = {}
    for file in files:
        task = _in_file(file)
        if task.name in found:
            raise DataError(f"two task files of {folder} are called '{task.name}'; rename one")
        found[task.name] = task
    return found


def installed_tasks() -> tuple[dict[str, Task], list[str]]:
    """Return the tasks of installed packages, by name, and a line about each that cannot be used."""
    found: dict[str, Task] = {}
    problems = []
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = _made_by(point)
        except DataError as error:
            problems.append(str(error))
    return found, problems


def _in_file(file: Path) -> Task:
    task = read_task_file(file).task()
    if task.name in TASKS:
        raise DataError(f"task file {file} is called '{task.name}' like a published task; rename it")
    return task


def _made_by(point: EntryPoint) -> Task:
    where = f"task '{point.name}' of the entry point {point.value}"
    try:
        made: Any = point.load()
        made = made() if callable(made) else made
    except Exception as error:  # code of others, which may fail in any way
        raise DataError(
            f"{where} cannot be loaded: {one_line(error)}; install its package again, or take it out"
        ) from error
    task = _in_file(Path(made)) if isinstance(made, (str, Path)) else made
    if not isinstance(task, Task) or task.name != point.name:
        what = f"a task called '{task.name}'" if isinstance(task, Task) else f"a {type(task).__name__}"
        raise DataError(f"{where} is {what}; it must be a Task of that name, or the path of its task file")
    return task
