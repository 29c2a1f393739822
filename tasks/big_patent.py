"""BIGPATENT: description of a US patent -> abstract, of all patents or of one class (`big_patent_a` to `_h`, `_y`).

    accelerate launch eval/run.py --task big_patent_g --maxlen 8192 --limit 100
    accelerate launch eval/run.py --task big_patent --data bigPatentData --maxlen 8192

Rows of the hub have two fields, cased text of version 2.1.2:

    {"description": "FIELD OF THE INVENTION ...", "abstract": "This invention relates to ..."}

The authors' own folder, tokenized and lower-cased (version 1.0.0), has gzipped JSON lines with more fields in
`SPLIT/CLASS/*.gz`. Descriptions may repeat the abstract word for word; nothing is taken out of them.

Scores are usually ROUGE of the package rouge_score with its stemmer (profile `hf`), as in PEGASUS.

Source: sizes of the card of big_patent on the hub at a815ad4; ROUGE as in pegasus/eval/text_eval.py of
google-research/pegasus at 13fcf2b.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tasks.base import SPLIT_NAMES, DataError, Example, LoadedExamples, LoadRequest, Task, template_variants
from tasks.readers.files import read_records, record_rows, require_path, split_file, split_names
from tasks.readers.hub import CONVERTED_REVISION, hub_rows
from tasks.readers.rows import BadRow, Row, Rows, collect, file_provenance, text_pair

HUB_ID = "NortheasternUniversity/big_patent"
FIELDS = ("description", "abstract")
# Codes of the Cooperative Patent Classification.
CLASSES = {
    "a": "human necessities",
    "b": "operations, transporting",
    "c": "chemistry, metallurgy",
    "d": "textiles, paper",
    "e": "fixed constructions",
    "f": "mechanical engineering",
    "g": "physics",
    "h": "electricity",
    "y": "new technology across classes",
}
SIZES = {
    "all": (1_207_222, 67_068, 67_072),
    "a": (174_134, 9_674, 9_675),
    "b": (161_520, 8_973, 8_974),
    "c": (101_042, 5_613, 5_614),
    "d": (10_164, 565, 565),
}


def load_big_patent(config: str, request: LoadRequest) -> LoadedExamples:
    """Return patents with their abstracts as references; `config` is one of `CLASSES`, or `all`."""
    if request.data is None:
        files = (f"{config}/{request.split}/*.parquet", f"{config}/{request.split}-*.parquet")
        rows = hub_rows(HUB_ID, files, request=request, columns=FIELDS, config=config)
    else:
        rows = _file_rows(require_path(request.data), config, request.split)

    def read(row: Row) -> Iterator[Example]:
        if pair := text_pair(rows, row, FIELDS):
            name = f"{request.split}-{row.index}"
            yield Example(id=name, document_id=name, context=pair[0], references=(pair[1],))

    return collect(request, rows, read)


def _file_rows(path: Path, config: str, split: str) -> Rows[Row]:
    if not path.is_dir():
        return record_rows(path, FIELDS)
    folders = [path / name for name in split_names(split) if (path / name).is_dir()]
    if not folders:
        return record_rows(split_file(path, split), FIELDS)
    codes = CLASSES if config == "all" else (config,)
    files = [file for code in codes for file in sorted((folders[0] / code).glob("*.gz"))]
    if not files:
        raise DataError(
            f"{folders[0]} holds no {'CLASS' if config == 'all' else config}/*.gz; give --data bigPatentData"
        )

    def read() -> Iterator[Row | BadRow]:
        for file in files:
            for row in read_records(file):
                yield row if isinstance(row, BadRow) else Row(f"{file.parent.name}/{row.where}", row.fields)

    return Rows(read(), file_provenance(path, files))


def _task(name: str, config: str, what: str) -> Task:
    code = "a" if config == "all" else config
    sample = [
        {
            "publication_number": f"US-{i}-A1",
            "abstract": "a bridge that floats .",
            "application_number": f"US-{i}",
            "description": f"field {i} . the river rose , and the bridge was closed .",
        }
        for i in range(3)
    ]
    return Task(
        name=name,
        description=f"US patent ({what}), its description -> abstract",
        source=f"hub {HUB_ID}; --data takes Parquet, JSON lines, also gzipped, or the folder bigPatentData",
        licence="CC BY 4.0",
        splits=dict(zip(SPLIT_NAMES, SIZES.get(config, (None, None, None)), strict=True)),
        read=partial(load_big_patent, config),
        templates=template_variants(
            "instruct",
            "Summarize the following description of a patent.\n\n",
            "\n\nWrite the abstract of the patent above in one paragraph.",
            "\n\nAbstract:",
        ),
        # The data set itself is a script, which nothing runs any more.
        revision=CONVERTED_REVISION,
        sample={f"test/{code}/data-test-{code}-0.gz": sample},
    )


BIG_PATENT_TASKS = {"big_patent": _task("big_patent", "all", "all classes")} | {
    f"big_patent_{code}": _task(f"big_patent_{code}", code, what) for code, what in CLASSES.items()
}
