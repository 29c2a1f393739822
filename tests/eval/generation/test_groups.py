"""What is to be predicted: fingerprints, groups, and what they need are known before any weights load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.config.generation import GenerationSettings
from eval.config.run import RunConfig
from eval.generation.backend import Backend
from eval.generation.forecast import _cache_bytes, _rows_at_once
from eval.generation.groups import DocumentPrompts, Group, ModelSize, deal, form_groups, measure
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.generation.requests import PromptSource, Requests, make_requests
from eval.generation.run_job import run_record
from eval.prompting.prompts import PromptBuilder
from eval.records.journal import Journal
from eval.records.schema import Grouping, Key, ModelRecord, Prediction
from eval.records.typed import from_json
from eval.runtime.memory import storage_bytes
from eval.runtime.processes import Process
from masformer import LayerSpan, SpanPlan, apply_plan
from masformer.attention.cache import join
from masformer.checkpoints.open import Checkpoint
from masformer.plans.spans import FULL
from tasks import Example, LoadedExamples
from tests.helpers.tiny_models import plan_by_head, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
GROUPING = Grouping(num_shares=1, batch_size=64, memory_budget=2**40)
CONFIG = RunConfig(task=("qmsum",), maxlen=(600, 1200), model="m")


def examples(num_documents: int = 3, num_queries: int = 2) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{document}-{query}",
            document_id=str(document),
            context=f"meeting {document} " * (40 + 20 * document),
            query=f"what about {query}?",
            references=("nothing",),
        )
        for document in range(num_documents)
        for query in range(num_queries)
    )


def checkpoint(**changes: Any) -> Checkpoint:
    values = {
        "name": "m",
        "config": tiny_model("llama", max_position_embeddings=4096, vocab_size=len(TOKENIZER)).config,
        "tokenizer": TOKENIZER,
        "provenance": {"reference": "m", "source": "folder", "files": {"model.safetensors": "1"}},
        "location": "m",
        "gguf_file": None,
        "revision": None,
        "trust_remote_code": False,
    }
    return Checkpoint(**values | changes)


class Engine(Backend):
    """An engine that answers nothing."""

    def __init__(self, opened: Checkpoint, plan: SpanPlan, dtype: str) -> None:
        self.process = Process(1)
        self.tokenizer, self.dtype = opened.tokenizer, dtype
        self.model = from_json(ModelRecord, opened.provenance, "m")
        self.plan = plan.to_json()

    def answer(self, *_: Any) -> Iterator[Prediction]:
        return iter(())


def requests_of(
    config: RunConfig = CONFIG,
    plan: SpanPlan = MIXED,
    dtype: str = "float32",
    loaded: LoadedExamples | None = None,
    finished: Mapping[Key, str] | None = None,
    **changes: Any,
) -> Requests:
    data = {"qmsum": loaded or LoadedExamples(examples=examples(), provenance={"kind": "file", "sha256": "2"})}
    engine = Engine(checkpoint(**changes), plan, dtype)
    record = run_record(config, data, engine, None, Path("out"))
    requests = make_requests(config, data, record, engine.tokenizer, {})
    return replace(requests, grouping=GROUPING, finished=finished or {})


def fingerprints(*arguments: Any, **changes: Any) -> set[str]:
    requests = requests_of(*arguments, **changes)
    made = {request.key: request.fingerprint for request in requests.missing()}
    assert made == requests.fingerprints
    return set(made.values())


def units_of(requests: Requests) -> list[DocumentPrompts]:
    return measure(requests, ModelSize(checkpoint().config, MIXED, 4), is_silent=True)


def test_a_prediction_is_pinned_by_all_that_could_change_it_and_by_nothing_else() -> None:
    first = fingerprints()
    assert len(first) == 3 * 2 * 2
    others = [
        fingerprints(replace(CONFIG, truncation="tail")),
        fingerprints(replace(CONFIG, max_new_tokens=9)),
        fingerprints(replace(CONFIG, num_beams=2)),
        fingerprints(replace(CONFIG, temperature=1.0)),
        fingerprints(replace(CONFIG, repetition_penalty=1.1)),
        fingerprints(replace(CONFIG, stop=("x",))),
        fingerprints(replace(CONFIG, seed=1)),
        fingerprints(replace(CONFIG, template=("query_first",))),
        fingerprints(replace(CONFIG, split="train")),
        fingerprints(CONFIG, SpanPlan.full(3)),
        fingerprints(CONFIG, MIXED, "bfloat16"),
        fingerprints(provenance={"reference": "m", "source": "folder", "files": {"model.safetensors": "9"}}),
        fingerprints(tokenizer=tiny_tokenizer(chat=False)),
        fingerprints(loaded=LoadedExamples(examples=examples(), provenance={"kind": "file", "sha256": "3"})),
    ]
    for other in others:
        assert len(other) == 12
        assert not other & first
    changed = tuple(replace(example, context=example.context + "x") for example in examples()[:1])
    told = LoadedExamples(examples=changed + examples()[1:], provenance={"kind": "file", "sha256": "2"})
    assert len(fingerprints(loaded=told) & first) == 10
    # These say how much is done, where, and how it is scored.
    for same in (
        replace(CONFIG, limit=6),
        replace(CONFIG, profile="scrolls"),
        replace(CONFIG, batch_size=3, memory_budget=1.0, threads=1),
    ):
        assert fingerprints(same) == first
    assert first < fingerprints(replace(CONFIG, maxlen=(600, 900, 1200)))
    assert first < fingerprints(replace(CONFIG, template=("context_first", "query_first")))


def test_examples_that_share_a_context_are_one_document_and_its_prompts_one_unit() -> None:
    requests = requests_of()
    assert [len(source.examples) for source in requests.sources] == [2, 2, 2]
    units = units_of(requests)
    (group,) = form_groups(units, GROUPING)
    sizes = {key: size for unit in units for key, size in unit.sizes.items()}
    assert len(group.keys) == len(requests.fingerprints) == len(sizes) == 12
    assert [request.key for request in group.requests()] == group.keys
    assert {request.key: request.fingerprint for request in group.requests()} == requests.fingerprints
    for unit in group.units:
        prompts = {request.prompt.token_ids for request in unit.source.requests()}
        assert unit.num_rows == len(prompts) <= 4
        assert unit.prefilled == PromptTree(list(prompts)).num_tokens < unit.requested
    for example in examples():
        num_prompt, kept, dropped = sizes["qmsum", "context_first", example.id, 600]
        assert num_prompt == 600 - 256
        assert kept + dropped == len(example.context)


def test_what_a_finished_session_has_predicted_is_in_no_group() -> None:
    finished = {**requests_of().fingerprints, ("qmsum", "context_first", "0-0", 600): "of something else"}
    requests = requests_of(replace(CONFIG, maxlen=(600, 900, 1200)), finished=finished)
    (group,) = form_groups(units_of(requests), GROUPING)
    assert {key[3] for key in group.keys} == {600, 900}
    assert [key for key in group.keys if key[3] == 600] == [("qmsum", "context_first", "0-0", 600)]
    assert len(group.keys) == 7
    assert len(requests.fingerprints) == 18
    assert [request.key for request in group.requests()] == group.keys


def test_a_document_without_missing_requests_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of()
    first = requests.sources[0]
    existing = Journal[Prediction](lines=dict.fromkeys(first.fingerprints))  # type: ignore[arg-type]
    left = requests.without(existing)
    tokenized: list[str] = []
    original = PromptBuilder.context_ids
    monkeypatch.setattr(
        PromptBuilder, "context_ids", lambda self, context: tokenized.append(context) or original(self, context)
    )
    assert {request.key for request in left.missing()} == requests.fingerprints.keys() - first.fingerprints.keys()
    assert tokenized == [source.examples[0].context for source in requests.sources[1:]]
    assert left.num_missing == 8


def unit(rows: int = 4, cost: float = 1.0, num_bytes: int = 10, task: str = "t", kind: int = 0) -> DocumentPrompts:
    source = PromptSource(
        task=task,
        examples=(),
        builders={},
        lengths=(1,),
        policy="head",
        settings=GenerationSettings(max_new_tokens=1),
        pins={},
        profile="hf",
    )
    return DocumentPrompts(
        source=source,
        kind=kind,
        sizes={},
        num_rows=rows,
        requested=1,
        prefilled=1,
        prefill_cost=cost,
        decode_cost=0.0,
        num_bytes=num_bytes,
    )


def sizes(groups: Sequence[Group]) -> list[int]:
    return [len(group.units) for group in groups]


def test_groups_are_as_large_as_rows_and_an_even_share_allow() -> None:
    def grouped(units: Sequence[DocumentPrompts], shares: int = 1, rows: int = 4) -> list[Group]:
        return form_groups(units, Grouping(num_shares=shares, batch_size=rows, memory_budget=1000))

    units = [unit() for _ in range(10)]
    assert sizes(grouped(units)) == [4, 4, 2]
    assert {group.num_rows for group in grouped(units)} == {4}
    assert sizes(grouped([unit(), unit(task="u"), unit(), unit(kind=1), unit(task="u")])) == [2, 2, 1]
    assert sizes(grouped([unit(rows=20), unit(rows=3)])) == [1, 1]
    # Processes get eight groups each before groups have more rows than decode together.
    assert [sizes(grouped([unit()] * count, shares=2)) for count in (15, 32, 64)] == [[1] * 15, [2] * 16, [4] * 16]
    # More examples leave the groups before them as they were.
    assert [group.units for group in grouped(units + units)[:2]] == [group.units for group in grouped(units)[:2]]


def test_a_forecast_counts_the_rows_and_bytes_that_decode_together() -> None:
    def group(*units: DocumentPrompts, rows: int = 8, memory: int = 1000) -> Group:
        return Group(index=0, units=units, num_rows=rows, memory_budget=memory)

    units = [unit(rows=4, num_bytes=size) for size in (40, 80, 120, 60)]
    assert (_rows_at_once(group(*units)), _cache_bytes(group(*units))) == (8, 200)
    assert (_rows_at_once(group(*units, rows=64)), _cache_bytes(group(*units, rows=64))) == (16, 300)
    # Of 19 bytes each; one prompt decodes whatever there is.
    assert (_rows_at_once(group(*units, memory=60)), _cache_bytes(group(*units, memory=60))) == (3, 60)
    assert (_rows_at_once(group(*units, memory=2)), _cache_bytes(group(*units, memory=2))) == (1, 30)


@pytest.mark.parametrize(("num_units", "shares"), [(8, 2), (10, 2), (16, 2), (100, 8), (7, 3), (30, 4)])
def test_processes_that_take_the_largest_group_first_end_together(num_units: int, shares: int) -> None:
    units = [unit(rows=1, cost=1.0 + index % 3, num_bytes=0) for index in range(num_units)]
    groups = form_groups(units, Grouping(num_shares=shares, batch_size=10**6, memory_budget=1))
    loads = [0.0] * shares
    for group in sorted(groups, key=lambda group: (-group.cost, group.index)):
        loads[loads.index(min(loads))] += group.cost
    even = sum(unit.cost for unit in units) / shares
    assert max(loads) <= even + max(unit.cost for unit in units)
    assert max(loads) <= 1.15 * even or num_units < 10


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_every_unit_goes_to_exactly_one_part_and_none_is_idle(num_parts: int) -> None:
    units = [unit(rows=index + 1, cost=1.0 + index % 5) for index in range(14)]
    parts = [deal(units, part, num_parts) for part in range(num_parts)]
    assert sorted(unit.num_rows for part in parts for unit in part) == list(range(1, 15))
    assert all([unit.num_rows for unit in part] == sorted(unit.num_rows for unit in part) for part in parts)
    loads = [sum(unit.cost for unit in part) for part in parts]
    assert min(loads) > 0
    assert max(loads) - min(loads) <= 5


@torch.no_grad()
@pytest.mark.parametrize("by_head", [False, True])
def test_what_a_model_needs_is_what_it_takes(by_head: bool) -> None:
    model = tiny_model("llama", vocab_size=len(TOKENIZER), tie_word_embeddings=False)
    plan = apply_plan(model, plan_by_head(model.config) if by_head else MIXED)
    needs = ModelSize(model.config, plan, 4)
    assert needs.num_weights == sum(x.numel() for x in model.parameters())
    outer = model.get_input_embeddings().weight.numel()
    assert needs.body == sum(x.numel() for x in model.parameters() if x.ndim > 1) - 2 * outer
    assert needs.prefill(0, 50) + needs.prefill(50, 80) == needs.prefill(0, 80)
    assert needs.decode(80, 5) > needs.prefill(80, 85)
    # Ends that are long enough to be prefilled one by one.
    prompts = [[*range(3, 80), *[token] * count, 91] for token, count in ((90, 70), (89, 100))]
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(2))
    filled = [caches.take(leaf) for leaf in tree.order]
    kept = {id(cache): cache for cache in (*filled, *caches._filled.values())}
    held: dict[int, int] = {}
    for cache in (*kept.values(), join(filled, 10)):  # type: ignore[arg-type]
        for layer in cache.layers:
            held |= layer.storages
    # What is left to the batch of the ends is counted with them and with the tails.
    assert sum(held.values()) <= needs.num_bytes(tree.ends, 10, copies=1) <= 1.6 * sum(held.values())
    assert storage_bytes(filled[0]) < sum(held.values())


def test_unconverted_models_are_counted_as_full_and_copied() -> None:
    config = tiny_model("falcon").config
    tree = PromptTree([list(range(40)), [*range(30), 5, 6]])
    needs = ModelSize(config, None, 4)
    full = needs.num_bytes(tree.ends, 10, copies=1) / needs.cost.cache_bytes(1, 4)
    assert full > tree.num_tokens + 20
