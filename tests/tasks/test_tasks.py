"""What holds for every task."""

from __future__ import annotations

import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import LONGBENCH, LONGBENCH_E, SCROLLS, TASKS, DataError, LoadedExamples, LoadRequest, Task
from tasks import SUMMARIES as SUITE
from tasks.base import DOCUMENT, Template

SUMMARIES = {"gov_report", "multi_news"}
FEW_SHOT = {f"longbench_{part}{name}" for name in ("trec", "triviaqa", "samsum") for part in ("", "e_")}
QUERY_TASKS = {"qmsum", "aclsum_aspects", *SCROLLS, *LONGBENCH} - SUMMARIES - {"summ_screen_fd"}
QUERY_TASKS -= {f"longbench_{name}" for name in (*SUMMARIES, "passage_count", "lcc")}
# Tasks with the published prompts of their benchmark alone.
PUBLISHED = {f"longbench_{name}" for name in ("passage_count", "passage_retrieval_en", "lcc", "repobench-p")}
PUBLISHED |= {name.replace("longbench", "longbench_e") for name in PUBLISHED}
PUBLISHED |= {"longbench2", "longbench_lsht", "longbench_passage_retrieval_zh"}
# Asked for as often as they are written down: a change of one is a change of what is scored.
NUM_NEW_TOKENS = {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "hotpotqa": 32, "2wikimqa": 32}
NUM_NEW_TOKENS |= {"musique": 32, "gov_report": 512, "qmsum": 512, "multi_news": 512, "triviaqa": 32, "samsum": 128}
OTHER_PROFILES = dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), "longbench")
OTHER_PROFILES |= dict.fromkeys(("passage_count", "passage_retrieval_en"), "longbench_number")
OTHER_PROFILES |= dict.fromkeys(("lcc", "repobench-p"), "longbench_code") | {"trec": "longbench_class"}
NUM_EXAMPLES = {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}
NUM_NEW_TOKENS |= {"passage_count": 32, "passage_retrieval_en": 32, "lcc": 64, "repobench-p": 64, "trec": 64}


def asks(task: Task) -> bool:
    return any("{query}" in template.text for template in task.templates.values())


def test_the_table_is_keyed_by_name() -> None:
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert {name for name, task in TASKS.items() if not task.needs_hub} >= {"plos", "aclsum", "aclsum_aspects", "text"}
    assert {name for name, task in TASKS.items() if asks(task)} >= QUERY_TASKS
    assert not [name for name in SUMMARIES if asks(TASKS[name])]


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.has_references], ids=lambda task: task.name)
def test_templates_hold_the_context_once_and_the_instruction_after_it(task: Task) -> None:
    assert task.default_template in task.templates
    default = "context_first" if asks(task) else "instruct"
    default = "longbench" if task.name in PUBLISHED else default + "-plain" * (task.name in FEW_SHOT)
    default = "helmet" if task.name.startswith("helmet_") else default
    assert task.default_template == default
    assert len(task.templates) > 1
    for template in task.templates.values():
        fields = [name for _, name, _, _ in string.Formatter().parse(template.text) if name is not None]
        assert fields.count("context") == 1
        assert set(fields) - {"shots"} == ({"context", "query"} if asks(task) else {"context"})
        assert ("shots" in fields) == (template.shot is not None) == ("{shots}" in template.shots)
        is_bare = template is task.templates[DOCUMENT]  # for encoders, which read no instruction
        assert template.chat or is_bare or not template.text.endswith("{context}"), "a plain prompt has a cue"
        assert "<" not in template.text or task.name in PUBLISHED, "chat markup is the tokenizer's business"
    default = task.templates[task.default_template].text
    assert not default.endswith("{context}"), "a small model needs the instruction after the context"
    if asks(task):
        assert default.index("{context}") < default.index("{query}"), "queries about a document share its prefill"


def test_encoders_get_the_document_after_the_query_unless_a_task_says_otherwise() -> None:
    assert TASKS["arxiv"].templates[DOCUMENT] == Template(text="{context}", chat=False)
    assert TASKS["qmsum"].templates[DOCUMENT] == Template(text="{query}\n\n{context}", chat=False)
    own = Template(text="summarize: {context}")
    assert replace(TASKS["arxiv"], templates={DOCUMENT: own}).templates == {DOCUMENT: own}
    assert not TASKS["text"].templates


def test_suites_name_tasks() -> None:
    assert set(SCROLLS) | set(LONGBENCH) | set(SUITE) <= set(TASKS)
    assert len(SCROLLS) == 7
    others = {*LONGBENCH_E, "longbench_lsht", "longbench_passage_retrieval_zh"}
    assert {*LONGBENCH, *others} == {name for name in TASKS if name.startswith("longbench_")}
    assert len(LONGBENCH) == 16


def test_longbench_tasks_have_longbenchs_lengths_and_scorers() -> None:
    """Source: config/dataset2maxlen.json, pred.py and eval.py of THUDM/LongBench at f6227eb."""
    assert {name: TASKS[name].max_new_tokens for name in LONGBENCH} == {
        f"longbench_{name}": number for name, number in NUM_NEW_TOKENS.items()
    }
    for name in LONGBENCH:
        task = TASKS[name]
        assert task.profile == OTHER_PROFILES.get(name.removeprefix("longbench_"), "f1")
        assert task.scores_first_line == (name in FEW_SHOT)
        is_chat = name not in FEW_SHOT | {"longbench_lcc", "longbench_repobench-p"}
        assert task.templates[task.default_template].chat == task.templates["longbench"].chat == is_chat
        assert task.splits == {"test": NUM_EXAMPLES.get(name.removeprefix("longbench_"), 200)}


def test_a_task_reads_its_own_revision_unless_another_is_asked_for(tmp_path: Path) -> None:
    asked: list[str | None] = []

    def read(request: LoadRequest) -> LoadedExamples:
        asked.append(request.revision)
        return LoadedExamples(examples=(), provenance={})

    for task in TASKS.values():
        own = replace(task, read=read)
        own.load(LoadRequest(split="test"))
        own.load(LoadRequest(split="test", data=tmp_path))
        assert asked == [task.revision, None]
        if task.needs_hub:
            own.load(LoadRequest(split="test", revision="v2"))
            assert asked[-1] == "v2"
        else:
            with pytest.raises(DataError, match=f"^--revision v2 is of the hub, which task {task.name} does not read$"):
                own.load(LoadRequest(split="test", revision="v2"))
        assert (task.revision is not None) == task.needs_hub
        asked.clear()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_an_unknown_split_lists_those_there_are(task: Task) -> None:
    assert task.default_split in task.splits
    with pytest.raises(
        DataError, match=f"^task {task.name} has no split 'dev'; choose from: .*{list(task.splits)[-1]}$"
    ):
        task.load(LoadRequest(split="dev"))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_a_missing_file_and_a_limit_of_nothing_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        task.load(LoadRequest(split=task.default_split, data=tmp_path / "nothing.here"))
    with pytest.raises(DataError, match="limit is 0; give 1 or more"):
        task.load(LoadRequest(split=task.default_split, data=tmp_path, limit=0))


def test_importing_the_tasks_loads_neither_models_nor_hub_clients() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'datasets', 'pyarrow', 'aclsum', 'allofplos'}"
    code = f"import sys, tasks; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
