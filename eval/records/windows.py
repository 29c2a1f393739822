"""Names of windows: what a prompt shows of its document, beside the beginning that fits.

    named("instruct", "evidence")       # "instruct@evidence", the template of those predictions
    window_of("instruct@evidence")      # "evidence"
    base_of("instruct@evidence")        # "instruct"

A window is a variant of a template, so that whatever reads a run reads its windows too. The rules are in
`eval.prompting.windows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eval.records.schema import Prediction

HEAD = "head"
EVIDENCE, EVIDENCE_FIRST, WITHOUT_EVIDENCE = "evidence", "evidence_first", "without_evidence"
ORACLE, FOREIGN = "oracle", "foreign"
WINDOWS = {
    HEAD: "what a run shows without this option: the beginning of the document, as much as fits",
    EVIDENCE: "the evidence alone, as much as fits",
    EVIDENCE_FIRST: "the evidence, then the document without it, as many tokens as head has",
    WITHOUT_EVIDENCE: "the document without the evidence, as many tokens as head has",
    ORACLE: "of the sentences that head shows, those that the visible oracle picks",
    FOREIGN: "another document of the task, instead of the example's own document",
}
_MARK = "@"


def named(template: str, window: str) -> str:
    """Return the name of a template under a window; under `head` it is the template's own."""
    return template if window == HEAD else f"{template}{_MARK}{window}"


def base_of(template: str) -> str:
    """Return the template of the task behind the name of a template under a window."""
    return template.partition(_MARK)[0]


def window_of(template: str) -> str:
    """Return the window that the name of a template has."""
    return template.partition(_MARK)[2] or HEAD


def beside_head(templates: Iterable[str]) -> list[str]:
    """Return the templates under windows that stand beside the same template under `head`."""
    known = list(templates)
    return [one for one in known if window_of(one) != HEAD and base_of(one) in known]


def shown_of(prediction: Prediction, document_id: str) -> tuple[str, Sequence[Sequence[int]]]:
    """Return whose text a prompt shows, and its spans in the order in which they stand there."""
    window = prediction.window
    if window is None:
        return document_id, prediction.context_spans
    return window.document_id or document_id, window.spans
