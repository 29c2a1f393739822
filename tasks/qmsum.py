"""QMSum: meeting transcript and query -> summary that answers the query.

    accelerate launch eval/run.py --task qmsum --data val.jsonl

The original release has one meeting a line:

    {"meeting_transcripts": [{"speaker": "Grad G", "content": "So {disfmarker} yes ."}, ...],
     "general_query_list": [{"query": "Summarize the whole meeting.", "answer": "..."}],
     "specific_query_list": [{"query": "...", "answer": "...", "relevant_text_span": [["459", "530"]]}]}

SCROLLS has one reference a line, the input being the query, a blank line, and the transcript (`readers.scrolls_lines`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, query_templates
from tasks.readers.files import read_json
from tasks.readers.rows import Row, Rows, collect, document_names, file_provenance
from tasks.readers.scrolls_lines import HUB_ID, REVISION, ScrollsItem, sample_lines, scrolls_rows

# {disfmarker}, { vocalsound }, {pause}, ...: sounds besides words.
_MARKUP = re.compile(r"\{ ?[a-z]+ ?\}")
# L_C_D_ and T_V_s: letters that were spelled out.
_SPELLED = re.compile(r"(?<![^\W_])(?:[A-Za-z]_)+")


# What copies of the original release call the field that names a meeting; the release's own lines have none.
_NAMES = ("meeting_id", "meeting_name", "meeting", "file_name", "id")
# AMI: four meetings of one team, ES2002a to ES2002d. ICSI: weekly meetings of one group, Bmr001, Bmr002, ...
_SERIES = re.compile(r"((?:ES|IS|TS|EN|IB|IN)\d{4})[a-z]?|(B[a-z]{2})\d{3}")


def meeting_series(name: str) -> str | None:
    """Return the series that a meeting of AMI or ICSI is part of, by its name; None for others."""
    found = _SERIES.fullmatch(name.removesuffix(".json"))
    return found and (found[1] or found[2])


def clean_transcript(text: str) -> str:
    """Return the text without transcription markup, with spelled letters joined (L_C_D_ -> LCD).

    Source: `clean_data` of Yale-LILY/QMSum, data_process.ipynb. Deviations: every braced token goes, where upstream
    leaves {comment}; every spelled abbreviation is joined, where upstream lists four; the case is kept.
    """
    text = _SPELLED.sub(lambda match: match.group().replace("_", ""), _MARKUP.sub(" ", text))
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))


def _meeting_kind(transcript: str) -> str:
    """Return the kind of a meeting by who speaks: QMSum is made of AMI, ICSI and committees of parliaments."""
    if re.search(r"^(Project Manager|Marketing|User Interface|Industrial Designer):", transcript, re.MULTILINE):
        return "product"
    is_academic = re.search(r"^(Grad|PhD|Professor|Postdoc|Undergrad)( [A-Z])?:", transcript, re.MULTILINE)
    return "academic" if is_academic else "committee"


def load_qmsum(request: LoadRequest) -> LoadedExamples:
    """Return one example a query; the queries of one meeting share `document_id`."""
    rows: Rows[Row | ScrollsItem]
    if request.data is not None and request.data.suffix == ".json":
        rows = Rows([read_json(request.data)], file_provenance(request.data))
    else:
        rows = scrolls_rows("qmsum", request, elsewhere=", or give the original release's test.jsonl with --data FILE")
    numbers, name_meeting = itertools.count(), document_names(f"{request.split}-meeting")

    def read(row: Row | ScrollsItem) -> Iterator[Example]:
        if isinstance(row, ScrollsItem):
            yield _scrolls_example(row, name_meeting)
        elif "meeting_transcripts" in row.fields:
            yield from _meeting_examples(row, request.split, numbers)
        else:
            raise DataError(
                f"{row.where}: format not recognized, fields found: {', '.join(row.fields) or 'none'}; expected "
                "`meeting_transcripts, general_query_list, specific_query_list` or SCROLLS' `id, pid, input, output`"
            )

    return collect(request, rows, read)


def _meeting_examples(meeting: Row, split: str, numbers: Iterator[int]) -> Iterator[Example]:
    turns: list[str] = []
    places: list[tuple[int, int] | None] = []
    position = 0
    for turn in meeting.rows("meeting_transcripts"):
        content = clean_transcript(turn.text("content", may_be_empty=True))
        if not re.search(r"\w", content):  # only markup
            places.append(None)
            continue
        turns.append(f"{turn.text('speaker')}: {content}")
        places.append((position, position + len(turns[-1])))
        position += len(turns[-1]) + 1
    if not turns:
        raise DataError(f"{meeting.where}: field 'meeting_transcripts' has no words; take the meeting out")
    context = "\n".join(turns)
    names = [meeting.label(field) for field in _NAMES]
    series = next((series for name in names if name and (series := meeting_series(name))), None)
    queries = meeting.rows("general_query_list") + meeting.rows("specific_query_list")
    if not queries:
        raise DataError(f"{meeting.where}: no queries; give the meeting some or take it out")
    for query in queries:
        yield Example(
            id=f"{split}-{next(numbers)}",
            document_id=f"{split}-meeting-{meeting.index}",
            cluster_id=series,
            context=context,
            references=(query.text("answer"),),
            query=query.text("query"),
            evidence=_evidence(query, places),
            stratum=_meeting_kind(context),
        )


def _evidence(query: Row, places: Sequence[tuple[int, int] | None]) -> tuple[tuple[int, int], ...] | None:
    """Return the places in the context of the turns of `relevant_text_span`; turns beyond the last are left out."""
    if "relevant_text_span" not in query.fields:
        return None
    spans = query.fields["relevant_text_span"]
    try:
        ranges = [(int(first), int(last)) for first, last in spans]
    except (TypeError, ValueError):
        ranges = [(-1, -1)]
    if any(first < 0 for first, _ in ranges):
        raise DataError(
            f'{query.where}: field \'relevant_text_span\' is {str(spans)[:80]}; expected pairs of turns: [["4", "9"]]'
        )
    evidence = []
    for first, last in ranges:
        turns = [place for place in places[first : last + 1] if place]
        if turns:
            evidence.append((turns[0][0], turns[-1][1]))
    return tuple(evidence) or None


def _scrolls_example(row: ScrollsItem, name_meeting: Callable[[str], str]) -> Example:
    query, transcript = row.query_and_document()
    context = clean_transcript(transcript).strip()
    if not context:
        raise DataError(f"{row.where}: field 'input' has no words after the query and a blank line")
    meeting = name_meeting(context)
    return Example(
        id=row.id,
        document_id=meeting,
        context=context,
        references=row.references,
        query=query,
        stratum=_meeting_kind(context),
    )


QMSUM = Task(
    name="qmsum",
    version=2,
    description="meeting transcript and query -> summary that answers the query",
    source=f"hub {HUB_ID} qmsum.zip; --data takes the original JSON lines, one meeting as .json, or SCROLLS JSON lines",
    licence="MIT",
    splits={"train": 1_257, "validation": 272, "test": 281},
    read=load_qmsum,
    templates=query_templates(
        "Here is the transcript of a meeting.\n\n",
        "\n\nUsing the transcript above, answer in one paragraph: {query}",
        "\n\nAnswer:",
    ),
    default_template="context_first",
    default_split="validation",
    profile="scrolls",
    revision=REVISION,
    sample=sample_lines("qmsum", "What was closed?", "The bridge.", "A bridge.", "It was a bridge."),
)
