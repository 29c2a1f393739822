"""Facts hidden in long texts that are made here, as tasks `needle_NAME`: what does a model still find, and how deep?

    accelerate launch eval/run.py --task needle_single,needle_multikey --maxlen 1024 2048 4096 8192 --limit 10
    accelerate launch eval/run.py --task needle_single --data essays/ --maxlen 4096
    accelerate launch eval/run.py --task needle_qa --data questions.jsonl --maxlen 4096 8192

A context is made for the longest prompt that is asked for. Its needles are `Example.kept`: shorter lengths cut what
lies between them, evenly, so a needle stands at the same depth at each length, whatever the tokenizer. Needles that
answer are the example's evidence, one for each reference and in their order, by which reports draw what was found over
depth and length. `needle_words` hides nothing: each part of its list has the same frequent words.

The text between needles is made of sentences of our own, or taken from `--data`: a text file or a folder of them; for
`needle_words` a file with one word a line. For `needle_qa` it holds questions, as JSON lines, CSV, TSV
or Parquet:

    {"question": "Who closed the bridge?", "answers": ["the mayor"], "context": "The mayor closed the bridge."}

Source: the kinds of tasks and their scoring are those of RULER, arXiv 2404.06654; texts, words and prompts are our own.
No score is comparable with those that RULER publishes: its needles stand in essays or noise of its own, and its prompts
show an example and begin the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Sample, Task, Template, query_templates
from tasks.base import template_variants as variants
from tasks.readers.files import read_text_file, record_rows, require_file, require_path, split_file
from tasks.readers.rows import BadRow, Row, Rows, collect, file_provenance

NUM_EXAMPLES = 100
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_VERSION = "1"
# Of plain English no common tokenizer makes longer tokens in the mean, so that a context fills its length.
_CHARACTERS_PER_TOKEN = 6
_LEAST_TOKENS = 8192
_NUM_OTHERS = 3  # needles with other keys
_NUM_ASKED = 4  # values of one key, and keys of one question
_NUM_HOPS = 4
_NUM_COMMON = 10
_TIMES_COMMON = 4  # as often as others
_MOST_OTHERS = 100
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def _listed(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",")]


_ADJECTIVES = _listed(
    """amber, ancient, brass, brown, clever, copper, crooked, dusty, empty, faded, gentle, golden, green, heavy, hollow,
    humble, iron, ivory, jolly, little, lonely, lucky, marble, mellow, narrow, oaken, orange, painted, pale, patient,
    plain, polished, purple, quiet, rapid, rusty, scarlet, secret, silent, silver, simple, slender, solid, spotted,
    square, striped, sturdy, velvet, wooden, yellow"""
)
_NOUNS = _listed(
    """anchor, apron, arrow, badge, banner, barrel, basket, beacon, bell, bench, blanket, bottle, bowl, bridge, broom,
    bucket, button, cabin, camera, candle, canoe, carpet, chair, chest, clock, compass, cradle, cup, curtain, drum,
    engine, feather, fence, fiddle, flag, flute, fountain, gate, glove, hammer, harbor, hat, jacket, kettle, key, kite,
    ladder, lamp, lantern, letter, locket, mirror, needle, oven, paddle, parcel, pencil, pillow, rope, saddle, spoon,
    statue, table, trumpet, wagon, whistle, window"""
)
_PEOPLE = _listed(
    """The baker, A teacher, My uncle, The old sailor, A young painter, The gardener, Our neighbor, The clerk,
    A tall farmer, The nurse, A traveler, The carpenter, Her cousin, The judge, A student, The weaver"""
)
_VERBS = _listed(
    """looked at, walked past, painted, asked about, cleaned, repaired, forgot, described, carried, borrowed, sold,
    admired, waited near, drew, remembered, moved"""
)
_PLACES = _listed(
    """in the village, near the river, behind the school, at the market, on the hill, by the old mill, in the garden,
    across the street, beside the lake, under the trees, at the station, in the valley, along the coast,
    inside the barn, outside the town, at the edge of the forest"""
)
_TIMES = _listed(
    """in the morning, before lunch, late at night, after the rain, on a cold day, early in spring, during the storm,
    for the third time, without a word, once again, a week later, with great care"""
)


@dataclass(frozen=True, kw_only=True)
class _Needle:
    """A sentence that is hidden.

    Attributes:
        depth: Share of the text before it, from 0 to 1.
        answer: What of it is asked for; None if it is not.
    """

    text: str
    depth: float
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Hidden:
    """What one example hides and asks.

    Attributes:
        depth: Of the needle that is asked for, where it is one.
    """

    needles: Sequence[_Needle]
    query: str
    depth: float | None = None


def _filler(rng: random.Random) -> Iterator[str]:
    """Yield sentences without numbers, for ever."""
    while True:
        thing = f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
        yield f"{rng.choice(_PEOPLE)} {rng.choice(_VERBS)} the {thing} {rng.choice(_PLACES)} {rng.choice(_TIMES)}."


def _names(rng: random.Random, count: int) -> list[str]:
    """Return distinct names such as "amber lantern"."""
    pairs = rng.sample(range(len(_ADJECTIVES) * len(_NOUNS)), count)
    return [f"{_ADJECTIVES[pair // len(_NOUNS)]} {_NOUNS[pair % len(_NOUNS)]}" for pair in pairs]


def _numbers(rng: random.Random, count: int) -> list[str]:
    return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]


def _single(rng: random.Random, depth: float, num_others: int = 0) -> _Hidden:
    names, values = _names(rng, 1 + num_others), _numbers(rng, 1 + num_others)
    texts = [f"The number of the {name} is {value}." for name, value in zip(names, values, strict=True)]
    others = [_Needle(text=text, depth=rng.random()) for text in texts[1:]]
    return _Hidden(
        needles=[_Needle(text=texts[0], depth=depth, answer=values[0]), *others],
        query=f"What is the number of the {names[0]}?",
        depth=depth,
    )


def _multivalue(rng: random.Random, _: float) -> _Hidden:
    [name], values = _names(rng, 1), _numbers(rng, _NUM_ASKED)
    return _Hidden(
        needles=[
            _Needle(text=f"One of the numbers of the {name} is {value}.", depth=rng.random(), answer=value)
            for value in values
        ],
        query=f"What are the {_NUM_ASKED} numbers of the {name}?",
    )


def _multiquery(rng: random.Random, _: float) -> _Hidden:
    names, values = _names(rng, _NUM_ASKED), _numbers(rng, _NUM_ASKED)
    asked = ", ".join(f"the {name}" for name in names[:-1])
    return _Hidden(
        needles=[
            _Needle(text=f"The number of the {name} is {value}.", depth=rng.random(), answer=value)
            for name, value in zip(names, values, strict=True)
        ],
        query=f"What are the numbers of {asked} and the {names[-1]}?",
    )


def _variables(rng: random.Random, _: float) -> _Hidden:
    """Hide two chains of variables, each of which has the value of the one before; ask for those of the first."""
    letters = "BCDFGHJKLMNPQRSTVWXZ"
    count = 2 * (1 + _NUM_HOPS)
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(letters, k=5))] = None
    values = [str(number) for number in rng.sample(range(10_000, 100_000), 2)]
    needles = []
    for value, chain in zip(values, (list(names)[: count // 2], list(names)[count // 2 :]), strict=True):
        depths = sorted(rng.random() for _ in chain)  # a value is there before it is passed on
        for depth, name, source in zip(depths, chain, [value, *chain], strict=False):
            answer = name if value == values[0] else None
            needles.append(_Needle(text=f"VAR {name} = {source}.", depth=depth, answer=answer))
    return _Hidden(needles=needles, query=f"Which variables have the value {values[0]}?")


def _hide(sentences: Sequence[str], needles: Sequence[_Needle], between: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text with the needles in it, and start and end of each of them in their order."""
    order = sorted(range(len(needles)), key=lambda index: (round(needles[index].depth * len(sentences)), index))
    spans: dict[int, tuple[int, int]] = {}
    pieces: list[str] = []
    length = 0
    for place in range(len(sentences) + 1):
        here = []
        while order and round(needles[order[0]].depth * len(sentences)) == place:
            here.append(order.pop(0))
        for piece, index in [(needles[one].text, one) for one in here] + [(one, -1) for one in sentences[place:][:1]]:
            spans[index] = (length, length + len(piece))
            pieces.append(piece)
            length += len(piece) + len(between)
    return between.join(pieces), [spans[index] for index in range(len(needles))]


def _up_to(num_characters: int, sentences: Iterator[str]) -> list[str]:
    """Return sentences of so many characters together."""
    kept, length = [], 0
    while length < num_characters and (sentence := next(sentences, "")):
        kept.append(sentence)
        length += 1 + len(sentence)
    return kept


def _example(number: int, hidden: _Hidden, sentences: Sequence[str], between: str = " ") -> Example:
    context, spans = _hide(sentences, hidden.needles, between)
    answers = [(span, one.answer) for span, one in zip(spans, hidden.needles, strict=True) if one.answer is not None]
    return Example(
        id=f"test-{number}",
        document_id=f"test-{number}",
        context=context,
        references=tuple(answer for _, answer in answers),
        query=hidden.query,
        evidence=tuple(span for span, _ in answers),
        stratum=None if hidden.depth is None else f"depth {100 * hidden.depth:.0f}%",
        kept=tuple(sorted(spans)),
    )


def _words(number: int, names: Sequence[str], num_characters: int) -> Example:
    """Return a list in which ten entries are four times as frequent as any other, in each part of it."""
    rng = random.Random(f"words {number}")
    drawn = rng.sample(names, min(len(names), _NUM_COMMON + _MOST_OTHERS))
    common, others = drawn[:_NUM_COMMON], drawn[_NUM_COMMON:]
    entries: list[str] = []
    length = 0
    while length < num_characters:
        turn = rng.sample(others + _TIMES_COMMON * common, len(others) + _TIMES_COMMON * len(common))
        entries += turn
        length += sum(len(one) + 1 for one in turn)
    name = f"test-{number}"
    return Example(id=name, document_id=name, context="\n".join(entries), references=tuple(common))


def _num_characters(request: LoadRequest) -> int:
    """Return the characters of a context, the same for many lengths, so that a run can get longer ones."""
    num_tokens = _LEAST_TOKENS
    while num_tokens < request.longest:
        num_tokens *= 2
    return _CHARACTERS_PER_TOKEN * num_tokens


def _haystack(path: Path) -> tuple[list[str], list[Path]]:
    """Return the sentences of a text file, or of a folder of them, and the files."""
    files = [path] if require_path(path).is_file() else sorted(path.glob("*.txt"))
    texts = [read_text_file(file, file.name) for file in files]
    sentences = [one for text in texts for one in _SENTENCE.split(" ".join(text.split())) if one]
    if not sentences:
        raise DataError(f"{path} holds no text; give --data a text file or a folder of .txt files, or leave it out")
    return sentences, files


def _from(sentences: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield the sentences in their order from one of them on, over and over."""
    start = rng.randrange(len(sentences))
    while True:
        yield sentences[start % len(sentences)]
        start += 1


def load_needles(name: str, hide: Callable[[random.Random, float], _Hidden], request: LoadRequest) -> LoadedExamples:
    """Return examples that hide needles, at each depth in turn."""
    num_characters = _num_characters(request)
    provenance: dict[str, object] = {"kind": "made", "name": "needles", "version": _VERSION}
    sentences: list[str] = []
    if request.data is not None:
        sentences, files = _haystack(request.data)
        provenance = file_provenance(request.data, files)

    def read(number: int) -> Iterator[Example]:
        rng = random.Random(f"{name} {number}")
        hidden = hide(rng, DEPTHS[number % len(DEPTHS)])
        filler = _from(sentences, rng) if sentences else _filler(rng)
        yield _example(number, hidden, _up_to(num_characters, filler))

    return collect(request, Rows(range(NUM_EXAMPLES), {**provenance, "characters": num_characters}), read)


def load_words(request: LoadRequest) -> LoadedExamples:
    """Return lists of words, of our own or of a file with one a line."""
    num_characters = _num_characters(request)
    provenance: dict[str, object] = {"kind": "made", "name": "needles", "version": _VERSION}
    names = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    if (file := request.data) is not None:
        lines = map(str.strip, read_text_file(require_file(file), file.name).splitlines())
        names = list(dict.fromkeys(line for line in lines if line))
        if len(names) < 2 * _NUM_COMMON:
            raise DataError(f"{file} has {len(names)} different lines; give --data {2 * _NUM_COMMON} words or more")
        provenance = file_provenance(file)

    def read(number: int) -> Iterator[Example]:
        yield _words(number, names, num_characters)

    return collect(request, Rows(range(NUM_EXAMPLES), {**provenance, "characters": num_characters}), read)


def load_qa(request: LoadRequest) -> LoadedExamples:
    """Return a user's questions, the document of each among those of other questions, at each depth in turn."""
    if request.data is None:
        raise DataError(
            "task needle_qa has no questions of its own; give --data a file with question, answers, context"
        )
    path = require_path(request.data)
    source = record_rows(split_file(path, request.split) if path.is_dir() else path)
    rows = list(source)
    num_characters = _num_characters(request)

    @cache
    def documents() -> list[str]:
        return list(dict.fromkeys(text for row in rows if isinstance(row, Row) and (text := _context(row))))

    def read(row: Row) -> Iterator[Example]:
        gold, answers, query = row.text("context"), row.references("answers"), row.text("question")
        rng = random.Random(f"qa {row.index}")
        others = rng.sample(documents(), len(documents()))
        depth = DEPTHS[row.index % len(DEPTHS)]
        distractors = _up_to(num_characters, (one for one in others if one != gold))
        context, spans = _hide(distractors, [_Needle(text=gold, depth=depth)], "\n\n")
        name = row.name(request.split)
        yield Example(
            id=name,
            document_id=name,
            context=context,
            references=answers,
            query=query,
            evidence=tuple(spans),
            stratum=f"depth {100 * depth:.0f}%",
            kept=tuple(spans),
        )

    counted: Rows[Row | BadRow] = Rows(rows, {**source.provenance, "characters": num_characters})
    return collect(request, counted, read)  # type: ignore[arg-type]


def _context(row: Row) -> str:
    try:
        return row.text("context")
    except DataError:  # told where its own question is read
        return ""


_HAYSTACK: Sample = {"a.txt": "It rained for a week. The river rose.\n", "b.txt": "A bridge was closed.\n"}
_QUESTIONS: Sample = {
    "questions.jsonl": [
        {
            "question": f"Who closed bridge {index}?",
            "answers": [f"mayor {index}", "the mayor"],
            "context": f"Bridge number {index} was old. The people of town {index} asked for help, and help came.",
        }
        for index in range(3)
    ]
}
_FACTS = "Some facts are hidden in the following text. Remember them: you will be asked about them."


def _task(
    name: str,
    description: str,
    read: Callable[[LoadRequest], LoadedExamples],
    templates: Mapping[str, Template],
    max_new_tokens: int,
    source: str = "made here; --data takes a text file or a folder of .txt files, in which needles are hidden",
    sample: Sample = _HAYSTACK,
    profile: str = "found_all",
    num_examples: int | None = NUM_EXAMPLES,
) -> Task:
    return Task(
        name=f"needle_{name}",
        description=f"needles: {description}",
        source=source,
        licence="Apache-2.0 (this suite)" if num_examples else "that of the data",
        splits={"test": num_examples},
        read=read,
        templates=templates,
        default_template="instruct" if "instruct" in templates else "context_first",
        max_new_tokens=max_new_tokens,
        profile=profile,
        needs_data=num_examples is None,
        sample=sample,
    )


def _hidden(
    name: str, description: str, hide: Callable[[random.Random, float], _Hidden], ask: str, max_new_tokens: int
) -> Task:
    templates = query_templates(f"{_FACTS}\n\n", f"\n\n{ask}", "\n\nAnswer:")
    return _task(name, description, partial(load_needles, name, hide), templates, max_new_tokens)


_NUMBERS = "Answer from the text above, with nothing but numbers: {query}"
_TASKS = (
    _hidden("single", "one number in a text and question -> number", _single, _NUMBERS, 32),
    _hidden(
        "multikey", "four numbers, one asked for -> number", partial(_single, num_others=_NUM_OTHERS), _NUMBERS, 32
    ),
    _hidden("multivalue", "four numbers of one thing -> all of them", _multivalue, _NUMBERS, 96),
    _hidden("multiquery", "four numbers of four things -> all of them", _multiquery, _NUMBERS, 96),
    _hidden(
        "variables",
        "variables that pass a value on -> all that have it",
        _variables,
        "A variable that is set to another one has its value. From the text above, name all variables that answer "
        "the question, with nothing else: {query}",
        64,
    ),
    _task(
        "words",
        "list of words -> the ten that occur most often",
        load_words,
        variants(
            "instruct",
            "Here is a list of things, one a line. Some occur more often than others.\n\n",
            "\n\nName the ten things that occur most often in the list above, one a line.",
            "\n\nThe ten most frequent:",
        ),
        96,
        source="made here; --data takes a text file with one word or name a line",
        sample={"words.txt": "".join(f"rain {index}\n" for index in range(20))},
    ),
    _task(
        "qa",
        "documents, one of which answers, and question -> short answer",
        load_qa,
        query_templates(
            "Here are some documents.\n\n",
            "\n\nAnswer the question from the documents above, in as few words as possible: {query}",
            "\n\nAnswer:",
        ),
        32,
        source="--data takes records with question, answers and context: JSON lines, CSV, TSV or Parquet",
        sample=_QUESTIONS,
        profile="found_any",
        num_examples=None,
    ),
)

NEEDLE_TASKS = {task.name: task for task in _TASKS}
