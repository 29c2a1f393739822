"""Published data sets as examples: `TASKS[name].load(LoadRequest(split=...))`."""

from tasks.aclsum import ACLSUM, ACLSUM_ASPECTS
from tasks.arxiv import ARXIV
from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task
from tasks.plos import PLOS
from tasks.pubmed import PUBMED
from tasks.qmsum import QMSUM
from tasks.text import TEXT

__all__ = ["TASKS", "DataError", "Example", "LoadRequest", "LoadedExamples", "Task"]

TASKS: dict[str, Task] = {
    "arxiv": ARXIV,
    "pubmed": PUBMED,
    "qmsum": QMSUM,
    "plos": PLOS,
    "aclsum": ACLSUM,
    "aclsum_aspects": ACLSUM_ASPECTS,
    "text": TEXT,
}
