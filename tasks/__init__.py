"""Published data sets as examples: `TASKS[name].load(LoadRequest(split=...))`."""

from pathlib import Path

from tasks.aclsum import ACLSUM, ACLSUM_ASPECTS
from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.big_patent import BIG_PATENT_TASKS
from tasks.book_sum import BOOK_SUM
from tasks.custom import CustomTask, check_instruction, read_task_file
from tasks.eips import EIPS
from tasks.longbench import LONGBENCH_TASKS
from tasks.longbench2 import LONGBENCH2
from tasks.multi_news import MULTI_NEWS
from tasks.needles import NEEDLE_TASKS
from tasks.plos import PLOS
from tasks.qmsum import QMSUM
from tasks.scientific_papers import ARXIV, PUBMED
from tasks.scrolls_tasks import SCROLLS_TASKS
from tasks.squality import SQUALITY
from tasks.text import TEXT

__all__ = [
    "CUSTOM",
    "LONGBENCH",
    "NEEDLES",
    "SCROLLS",
    "SUMMARIES",
    "TASKS",
    "CustomTask",
    "DataError",
    "Example",
    "LoadRequest",
    "LoadedExamples",
    "Task",
    "Template",
    "check_instruction",
    "find_task",
    "read_task_file",
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
    "longbench2": LONGBENCH2,
    "squality": SQUALITY,
    "eips": EIPS,
    "plos": PLOS,
    "aclsum": ACLSUM,
    "aclsum_aspects": ACLSUM_ASPECTS,
    **NEEDLE_TASKS,
    "text": TEXT,
}

# Suites: tasks that are reported together.
SCROLLS = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")
LONGBENCH = tuple(LONGBENCH_TASKS)
NEEDLES = tuple(NEEDLE_TASKS)
SUMMARIES = ("arxiv", "pubmed", "gov_report", "multi_news", "big_patent", "book_sum", "qmsum", "summ_screen_fd")


def find_task(name: str) -> Task:
    """Return a task of the table, or that of a YAML task file. Raises `DataError` if there is none."""
    if name.endswith((".yaml", ".yml")):
        return read_task_file(Path(name)).task()
    if name not in TASKS:
        hint = f"; '{CUSTOM}' is made of flags: give a YAML task file" if name == CUSTOM else ""
        raise DataError(f"unknown task '{name}'; python -m tasks list names all{hint}")
    return TASKS[name]
