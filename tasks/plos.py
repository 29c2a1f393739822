"""PLOS: research article -> abstract, from the corpus inside the package allofplos.

    pip install --no-deps allofplos==0.11.1
    accelerate launch eval/run.py --task plos

Articles are JATS XML, as `SAMPLE` shows. An abstract without `abstract-type` is the article's own; the others are
blurbs for a table of contents, and summaries by authors and editors.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task
from tasks.readers.articles import Section, article_text
from tasks.readers.files import require_path
from tasks.readers.opening import parsing
from tasks.readers.rows import Rows, collect, file_provenance, package_folder, package_provenance
from tasks.scientific_papers import TEMPLATES

PACKAGE = "allofplos"
PIP_REQUIREMENT = "allofplos==0.11.1"
MIN_ABSTRACT_WORDS = 80
MIN_BODY_WORDS = 2_000
# The journal within a DOI: `pone` in 10.1371/journal.pone.0000001.
_JOURNAL = re.compile(r"journal\.([a-z]+)\.")
# What walks an article calls itself at each level; articles have some twenty.
MAX_LEVELS = 200
# Not running text. MathML stays: its letters and signs are readable, and sentences need them.
_SKIPPED = {"fig", "fig-group", "table-wrap", "table-wrap-group", "supplementary-material", "graphic", "media"}
_SKIPPED |= {"inline-graphic", "label", "tex-math", "annotation", "fn", "fn-group", "ref-list"}
# Elements that part words even where the XML has no space between them.
_BLOCKS = {"p", "list", "list-item", "disp-quote", "disp-formula", "break", "title"}
# Elements that hold further paragraphs.
_CONTAINERS = {"boxed-text", "disp-quote", "list", "list-item"}
SAMPLE = f"""<article article-type="research-article">
<front><article-meta><article-id pub-id-type="doi">10.1371/x</article-id>
<abstract><p>{"It rains. " * 45}</p></abstract></article-meta></front>
<body><sec><title>Results</title><p>{"The river rose. " * 700}</p></sec></body></article>"""


def load_plos(request: LoadRequest) -> LoadedExamples:
    """Return research articles with their own abstracts as references, in the order of their file names.

    Kept are research articles with more than `MIN_ABSTRACT_WORDS` in the abstract and `MIN_BODY_WORDS` in the body.
    Of the package's 122 articles, those whose first abstract is a blurb for a table of contents are left out too,
    which makes the fixed set of 90.
    """
    if request.data is None:
        folder = package_folder(PACKAGE, "starter_corpus", PIP_REQUIREMENT)
        files = sorted(folder.glob("*.xml"))
        provenance = package_provenance(PACKAGE, files)
    else:
        path = require_path(request.data)
        files = sorted(path.glob("*.xml")) if path.is_dir() else [path]
        if not files or files[0].suffix != ".xml":
            raise DataError(f"{path}: format not recognized; give --data a JATS .xml file or a folder of them")
        provenance = file_provenance(path.resolve(), files)
    rows = Rows(files, provenance)
    return collect(request, rows, partial(_read_examples, rows))


def _read_examples(rows: Rows[Path], file: Path) -> Iterator[Example]:
    root, doi = _read_article(file)
    abstracts = root.findall("front/article-meta/abstract")
    own = [abstract for abstract in abstracts if not abstract.get("abstract-type")]
    abstract = "\n".join(_paragraphs(own[0])) if own else ""
    body = root.find("body")
    if body is None:
        body = ET.Element("body")
    num_body_words = len(" ".join(body.itertext()).split())
    is_usable = root.get("article-type") == "research-article"
    is_usable &= len(abstract.split()) > MIN_ABSTRACT_WORDS and num_body_words > MIN_BODY_WORDS
    if rows.provenance["kind"] == "package":
        is_usable &= abstracts[:1] == own[:1]
    if is_usable:
        journal = _JOURNAL.search(doi)
        yield Example(
            id=doi,
            document_id=doi,
            context=article_text(_sections(body), abstract),
            references=(abstract,),
            stratum=journal[1] if journal else None,
        )
    else:
        rows.num_skipped += 1


def _read_article(file: Path) -> tuple[ET.Element, str]:
    """Return the root element of an article, and its DOI."""
    with parsing(f"{file.name}: not valid XML", "correct it or take it out"):
        root = _parse(file)
    if root.tag != "article":
        raise DataError(f"{file.name}: the root element is <{root.tag}>; expected a JATS <article>")
    doi = root.findtext("front/article-meta/article-id[@pub-id-type='doi']", "").strip()
    if not doi:
        raise DataError(f"{file.name}: field article-id[@pub-id-type='doi'] is missing; give the article its DOI")
    return root, doi


def _parse(file: Path) -> ET.Element:
    """Return the root element of a file that is nested as an article is."""
    depth = 0
    events = ET.iterparse(file, ("start", "end"))
    for event, _ in events:
        depth += 1 if event == "start" else -1
        if depth > MAX_LEVELS:
            raise DataError(f"{file.name}: nested more than {MAX_LEVELS} levels deep; correct it or take it out")
    root: ET.Element = events.root  # type: ignore[attr-defined]
    return root


def _paragraphs(element: ET.Element) -> list[str]:
    """Return titles and paragraphs anywhere below an element, in order."""
    texts = []
    for child in element:
        if child.tag in ("title", "p"):
            texts.append(_text(child))
        elif child.tag == "sec" or child.tag in _CONTAINERS:
            texts += _paragraphs(child)
    return [text for text in texts if text]


def _sections(element: ET.Element) -> Iterator[Section]:
    """Yield an element's own paragraphs, then its sections, each before those inside it."""
    title = element.find("title")
    own: list[str] = []
    for child in element:
        if child.tag in ("p", "disp-formula"):
            own.append(_text(child))
        elif child.tag in _CONTAINERS:
            own += _paragraphs(child)
    inner = element.findall("sec")
    if any(own) or inner:  # else a title over figures or supplements alone
        yield Section(title="" if title is None else _text(title), paragraphs=[text for text in own if text])
    for section in inner:
        yield from _sections(section)


def _text(element: ET.Element) -> str:
    """Return the running text of an element on one line, without what `_SKIPPED` names."""
    return " ".join("".join(_pieces(element)).split())


def _pieces(element: ET.Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        name = str(child.tag).rpartition("}")[2]  # MathML tags carry their namespace
        if name not in _SKIPPED:
            space = " " if name in _BLOCKS else ""
            yield space
            yield from _pieces(child)
            yield space
        yield child.tail or ""


PLOS = Task(
    name="plos",
    description="PLOS research article -> abstract",
    source=f"package {PIP_REQUIREMENT}; --data takes a JATS .xml file or a folder of them",
    licence="CC BY",
    splits={"test": 90},
    read=load_plos,
    templates=TEMPLATES,
    sample={"journal.pone.0000001.xml": SAMPLE},
)
