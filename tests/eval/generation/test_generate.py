"""What prompts get together is what each gets alone, without any cache, by transformers' `generate`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from eval.config.generation import GenerationSettings, ThinkingSettings
from eval.generation import greedy
from eval.generation.answer import Answer, text_of
from eval.generation.decode import decode, rows_together, warm_up
from eval.generation.greedy import _Batch
from eval.generation.lookup import Lookup
from eval.generation.prompt_tree import PromptTree, TreeCaches
from eval.generation.tree_decoder import Observer, TreeDecoder
from masformer import LayerSpan, SpanCache, SpanPlan, apply_plan, fixed_frequencies
from masformer.attention.prefill import frequency_class
from masformer.plans.cost import cache_bytes
from masformer.plans.spans import FULL
from tests.helpers.library import mixed_plan, on_the_page
from tests.helpers.library_models import tiny_library_model
from tests.helpers.streams import streamed
from tests.helpers.tiny_models import SUPPORTED, plan_by_head, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
SOME = (0, 2, 5)  # of the prompts of a sweep: a beginning of another, that other, and one that shares nothing
# With one matrix for embeddings and logits they say one token again and again.
UNTIED = ("gemma2", "gemma3_text")
# Architectures on which plans are exact and that have no model of their own here, for the night.
EXACT = [kind for kind, found in on_the_page(0).items() if found.outcome == "exact" and kind not in SUPPORTED]
NUM_NEW = 40  # more than a batch decodes between two looks at who has ended


def random_model(kind: str, plan: SpanPlan | None, **changes: Any) -> PreTrainedModel:
    """Return a model in fp64, where the order of sums decides nothing, that ends answers at different lengths."""
    changes = ({"tie_word_embeddings": False} if kind in UNTIED else {}) | changes
    model = tiny_model(kind, vocab_size=len(TOKENIZER), initializer_range=0.4, **changes)
    model.set_experts_implementation("eager")  # grouped products of experts know no fp64
    model = model.double()
    if plan is not None:
        apply_plan(model, plan)
    model.generation_config.eos_token_id = list(range(2, 12))
    model.generation_config.pad_token_id = 0
    return model


@torch.no_grad()
def exact_model(kind: str) -> PreTrainedModel:
    """Return a random model of any exact architecture under mixed spans, in fp64 where it can be."""
    model = tiny_library_model(kind)
    # With one matrix for embeddings and logits many say one token again and again.
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(0.02 * torch.randn_like(head.weight))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight *= 10  # for answers that vary
    apply_plan(model, mixed_plan(model, apply_plan(model)))
    model.generation_config.pad_token_id = 0
    return model


def vocabulary(model: PreTrainedModel) -> int:
    """Return how many tokens model and tokenizer both know."""
    return min(len(TOKENIZER), model.config.get_text_config(decoder=True).vocab_size)


def tokens(seed: int, count: int, stop: int = len(TOKENIZER)) -> list[int]:
    return torch.randint(12, stop, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompts_of_a_sweep(stop: int = len(TOKENIZER)) -> list[list[int]]:
    """Return prompts that share beginnings, and one that shares nothing."""
    context = tokens(0, 90, stop)
    lengths = [[*context[:kept], *tokens(1, 5, stop)] for kept in (20, 45, 90)]
    queries = [[*context, *tokens(seed, seed, stop)] for seed in (2, 9)]
    return [*lengths, *queries, tokens(3, 12, stop)]


def together(model: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Answer]:
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(len(prompts)))
    most = rows_together(model, settings) or len(prompts)
    answers = {}
    with fixed_frequencies(model, len(prompts[0])):
        for first in range(0, len(prompts), most):
            leaves = tree.order[first : first + most]
            filled = [caches.take(leaf) for leaf in leaves]
            made = decode(model, TOKENIZER, [prompts[leaf] for leaf in leaves], filled, settings)
            answers |= dict(zip(leaves, made, strict=True))
    return [answers[leaf] for leaf in range(len(prompts))]


def random_thinking(model: PreTrainedModel, max_tokens: int) -> ThinkingSettings:
    """Return settings under which some answers leave their thoughts, and others are cut off."""
    free = together(model, prompts_of_a_sweep(), GenerationSettings(max_new_tokens=40))
    told = (token for answer in free for token in answer.token_ids[5:])
    end = next(token for token in told if TOKENIZER.decode([token]).isascii())
    return ThinkingSettings(start="", end=TOKENIZER.decode([end]), forced=(end,), max_tokens=max_tokens)


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: Sequence[int], settings: GenerationSettings) -> tuple[int, ...]:
    ids = torch.tensor([list(prompt)])
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        do_sample=False,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
    )
    made = model.generate(ids, use_cache=False, generation_config=config)
    return tuple(made[0, ids.shape[1] :].tolist())


def by_library_loop(model: PreTrainedModel, prompt: Sequence[int], settings: GenerationSettings) -> Answer:
    """Return the answer to a prompt alone by transformers' `generate`, which takes no drafts, with a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.generation.decode.is_greedy", lambda *_: False)
        [answer] = together(model, [prompt], settings)
    return answer


def foresee_all(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let drafts be right for none, one, two ... of their tokens in turn, where prompts have such answers."""
    turns = iter(range(1000))

    class Oracle(Lookup):
        def draft(self, most: int) -> list[int]:
            text, turn = list(map(ord, self._text)), next(turns)
            following = next(
                answer[len(text) - len(prompt) :]
                for prompt, answer in zip(prompts, answers, strict=True)
                if len(text) >= len(prompt) and [*prompt, *answer][: len(text)] == text
            )
            return [*following[: turn % (most + 1)], *tokens(turn, most)][:most]

    monkeypatch.setattr(greedy, "Lookup", Oracle)


@torch.no_grad()
def check_greedy(model: PreTrainedModel, prompt: Sequence[int], answer: Answer) -> None:
    """Assert that each token is the likeliest after those before it, and that the answer ends where it must.

    Without a cache, by one pass over prompt and answer: where tokens depend on those before them alone, that is
    transformers' greedy decoding, which makes a pass a token.
    """
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    likeliest = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
    assert answer.token_ids == tuple(likeliest.tolist())
    ends = [token in model.generation_config.eos_token_id for token in answer.token_ids]
    assert not any(ends[:-1])
    assert ends[-1] or len(ends) == NUM_NEW


@cache
def greedy_alone(plan: SpanPlan | None) -> list[tuple[int, ...]]:
    model, settings = random_model("llama", plan), GenerationSettings(max_new_tokens=NUM_NEW)
    return [alone(model, prompt, settings) for prompt in prompts_of_a_sweep()]


@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
def test_a_sweep_is_what_transformers_generates_for_each_prompt(plan: SpanPlan | None) -> None:
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    answers = together(random_model("llama", plan), prompts_of_a_sweep(), settings)
    assert [answer.token_ids for answer in answers] == greedy_alone(plan)


@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
@pytest.mark.parametrize("kind", list(SUPPORTED))
def test_a_sweep_is_greedy_decoding_of_each_prompt(kind: str, plan: SpanPlan | None) -> None:
    model = random_model(kind, plan)
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    prompts = prompts_of_a_sweep()
    answers = together(model, prompts, settings)
    for prompt, answer in zip(prompts, answers, strict=True):
        check_greedy(model, prompt, answer)
        is_ended = answer.token_ids[-1] < 12
        assert answer.finish_reason == ("stop" if is_ended else "length")
        # What ends an answer is no part of it, be it a special token or not.
        said = answer.token_ids[:-1] if is_ended else answer.token_ids
        assert answer.text == TOKENIZER.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", [*SUPPORTED, *(pytest.param(kind, marks=pytest.mark.nightly) for kind in EXACT)])
def test_prompts_that_take_the_places_of_others_get_what_they_get_alone(kind: str) -> None:
    model = random_model(kind, MIXED) if kind in SUPPORTED else exact_model(kind)
    stop = vocabulary(model)
    # So many that answers are of many lengths.
    model.generation_config.eos_token_id = list(range(2, stop, 5))
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    more = ([*tokens(20, 25, stop), *tokens(seed, seed, stop)] for seed in range(4, 10))
    prompts = [*prompts_of_a_sweep(stop), *more]
    answers, entered = streamed(model, TOKENIZER, prompts, settings, most=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        check_greedy(model, prompt, answer)
    is_joined = rows_together(model, settings) is None
    assert max(answer.batch_size for answer in answers) == (4 if is_joined else 1)
    assert any(going for going, _ in entered) == is_joined


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"stop": True, "min_new_tokens": 3},
        {"thinking": True},
    ],
    ids=str,
)
def test_options_hold_for_prompts_that_enter_later(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", plan_by_head(tiny_model("llama").config))
    prompts = prompts_of_a_sweep()
    if "stop" in options:
        free = together(model, prompts, GenerationSettings(max_new_tokens=NUM_NEW))
        options = options | {"stop": tuple(TOKENIZER.decode(free[row].token_ids)[9:11] for row in (0, 3))}
    if "thinking" in options:
        options = {"thinking": random_thinking(model, 14)}
    settings = GenerationSettings(max_new_tokens=NUM_NEW, **options)
    expected = [by_library_loop(model, prompt, settings) for prompt in prompts]
    if not settings.stop and not settings.thinking:
        assert [answer.token_ids for answer in expected] == [alone(model, prompt, settings) for prompt in prompts]
    foresee_all(prompts, [answer.token_ids for answer in expected], monkeypatch)
    answers, entered = streamed(model, TOKENIZER, prompts, settings, most=3)
    assert any(going for going, _ in entered)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert (answer.text, answer.thought, answer.finish_reason) == (other.text, other.thought, other.finish_reason)
    # The last row that is left drafts, unless no run of tokens may occur twice.
    assert any(0 < answer.num_accepted < answer.num_drafted for answer in answers) == (
        not settings.no_repeat_ngram_size
    )


def test_only_what_memory_holds_decodes_at_once() -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    prompts = prompts_of_a_sweep()
    asked: list[int] = []

    def fits(leaves: Sequence[int]) -> bool:
        asked.append(len(leaves))
        return sum(len(prompts[leaf]) for leaf in leaves) < 150

    answers, _ = streamed(model, TOKENIZER, prompts, settings, 4, fits)
    assert [answer.token_ids for answer in answers] == greedy_alone(MIXED)
    assert max(asked) == 3
    assert max(answer.batch_size for answer in answers) == 2, "a third one makes more than 150 tokens"


@pytest.mark.parametrize("where", ["while others enter", "in a step"])
def test_where_memory_runs_out_rows_that_have_not_ended_begin_again(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    prompts, sizes = prompts_of_a_sweep(), list[int]()
    name = "joined" if where == "while others enter" else "step"
    original = greedy._joined if name == "joined" else _Batch.step

    def short_of_memory(first: Any, *rest: Any) -> Any:
        sizes.append(len(first) if name == "joined" else len(first.rows))
        if sizes[-1] == (2 if name == "joined" else 4) and sizes.count(sizes[-1]) == (1 if name == "joined" else 3):
            raise MemoryError
        return original(first, *rest)  # type: ignore[operator]

    monkeypatch.setattr(*((greedy, "_joined") if name == "joined" else (_Batch, "step")), short_of_memory)
    answers, entered = streamed(model, TOKENIZER, prompts, settings, 4)
    assert [answer.token_ids for answer in answers] == greedy_alone(MIXED)
    assert sum(count for _, count in entered) > len(prompts), "some began again"


@pytest.mark.parametrize(("kind", "most"), [("deepseek_v3", 1), ("llama", 1), ("llama", 3)])
def test_what_has_ended_is_not_kept_while_others_are_prefilled(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = random_model(kind, MIXED), [tokens(seed, 30) for seed in range(4)]
    made, kept, original = list[weakref.ref[SpanCache]](), list[int](), TreeCaches.take

    def noted(caches: TreeCaches, leaf: int) -> Any:
        kept.append(sum(ref() is not None for ref in made))
        cache = original(caches, leaf)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(TreeCaches, "take", noted)
    streamed(model, TOKENIZER, prompts, GenerationSettings(max_new_tokens=4), most)
    # Those that enter together are there.
    assert kept == ([0, 0, 0, 0] if most == 1 else [0, 1, 2, 0])


def test_batches_are_even_and_as_memory_holds_them() -> None:
    model = random_model("llama", MIXED)
    decoder = TreeDecoder(model, TOKENIZER, Observer(), "")
    beams = GenerationSettings(max_new_tokens=4, num_beams=2)
    sampled = GenerationSettings(max_new_tokens=4, temperature=1.0)
    order = [4, 2, 0, 1, 3, 6, 5]

    def sizes(settings: GenerationSettings, most: int, held: int = 9) -> list[int]:
        batches = decoder.batches(order, settings, most, lambda leaves: len(leaves) <= held)
        assert [leaf for batch in batches for leaf in batch] == order
        return [len(batch) for batch in batches]

    assert sizes(GenerationSettings(max_new_tokens=4), 3) == [7]
    assert sizes(beams, 9) == [7]
    assert sizes(beams, 6) == [4, 3]
    assert sizes(beams, 6, held=3) == [3, 3, 1]
    assert sizes(beams, 6, held=0) == sizes(sampled, 6) == [1] * 7


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_beams": 3}, marks=pytest.mark.nightly, id="num_beams"),
        {"num_beams": 4, "length_penalty": 2.0, "min_new_tokens": 9},
        {"min_new_tokens": 35},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 1.2, "num_beams": 2},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "min_new_tokens": 3},
        {"num_beams": 2, "no_repeat_ngram_size": 2},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
def test_every_option_gives_each_prompt_what_it_gets_alone(plan: SpanPlan | None, options: dict[str, Any]) -> None:
    model = random_model("llama", plan)
    settings = GenerationSettings(max_new_tokens=NUM_NEW, **options)
    prompts = [prompts_of_a_sweep()[index] for index in SOME]
    answers = [answer.token_ids for answer in together(model, prompts, settings)]
    assert answers == [alone(model, prompt, settings) for prompt in prompts]
    assert answers != [greedy_alone(plan)[index] for index in SOME]


def test_padding_counts_as_nothing_that_was_said() -> None:
    """With one end token, which no prompt holds, and which the answer to the shortest comes to."""
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW, repetition_penalty=30.0)
    prompts = prompts_of_a_sweep()
    end = next(token for token in alone(model, prompts[-1], settings) if not any(token in prompt for prompt in prompts))
    model.generation_config.eos_token_id = [end]
    answers = [answer.token_ids for answer in together(model, prompts, settings)]
    assert answers == [alone(model, prompt, settings) for prompt in prompts]


@pytest.mark.parametrize(
    ("beams", "num_shared"),
    [(1, 0), (1, 1), (1, 30), (2, 1), *(pytest.param(2, count, marks=pytest.mark.nightly) for count in (0, 30))],
)
def test_prompts_of_a_few_tokens_and_ends_of_all_lengths(num_shared: int, beams: int) -> None:
    """Shorter than the sinks, and ends that go through the model together."""
    model = random_model("llama", SpanPlan((LayerSpan(span=9, sinks=6), FULL, LayerSpan(span=4, sinks=20))))
    settings = GenerationSettings(max_new_tokens=NUM_NEW, num_beams=beams)
    for counts in ((2, 3, 4), (9, 5, 70), (2, 100, 12)):
        prompts = [[*tokens(0, num_shared), *tokens(seed + 1, count)] for seed, count in enumerate(counts)]
        answers = together(model, prompts, settings)
        if beams == 1:
            for prompt, answer in zip(prompts, answers, strict=True):
                check_greedy(model, prompt, answer)
        else:
            assert [answer.token_ids for answer in answers] == [alone(model, prompt, settings) for prompt in prompts]


def test_beams_that_end_at_a_stop_text_where_there_is_no_end_token() -> None:
    model = random_model("llama", MIXED)
    model.generation_config.eos_token_id = None
    prompts = prompts_of_a_sweep()
    free = together(model, prompts, GenerationSettings(max_new_tokens=NUM_NEW, num_beams=2))
    stop = TOKENIZER.decode(free[0].token_ids)[4:6]
    settings = GenerationSettings(max_new_tokens=NUM_NEW, num_beams=2, stop=(stop,))
    swept = together(model, prompts, settings)
    assert [answer.token_ids for answer in swept] == [together(model, [p], settings)[0].token_ids for p in prompts]
    assert any(answer.finish_reason == "stop" for answer in swept)
    assert all(stop not in answer.text for answer in swept)


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2"])
def test_states_that_are_written_in_place_are_not_shared(kind: str) -> None:
    """Hybrid models, which masformer does not convert, keep a recurrent state beside keys."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(TOKENIZER), "max_position_embeddings": 512}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    more = {"qwen3_next": experts | heads | {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}}
    more |= {"lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_ff_dim": 48}}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**sizes | more[kind] | {"initializer_range": 0.4})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    settings = GenerationSettings(max_new_tokens=8)
    prompts = prompts_of_a_sweep()
    answers = [answer.token_ids for answer in together(model, prompts, settings)]
    # The recurrence is computed in chunks in a prefill and step by step in decoding, so that no cache is no reference.
    assert answers == [together(model, [prompt], settings)[0].token_ids for prompt in prompts]


def test_sampling_belongs_to_the_prompt_and_the_seed() -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW, temperature=1.5, top_p=0.9, top_k=20)
    prompts = prompts_of_a_sweep()
    answers = [answer.token_ids for answer in together(model, prompts, settings)]
    torch.manual_seed(7)
    backwards = [answer.token_ids for answer in together(model, prompts[::-1], settings)]
    assert backwards[::-1] == answers
    other = GenerationSettings(max_new_tokens=NUM_NEW, temperature=1.5, top_p=0.9, top_k=20, seed=1)
    assert [answer.token_ids for answer in together(model, prompts, other)] != answers


def test_a_checkpoints_own_options_do_not_slip_in() -> None:
    model = random_model("llama", MIXED)
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    prompts = prompts_of_a_sweep()
    expected = [answer.token_ids for answer in together(model, prompts, settings)]
    for name, value in {
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
        "num_beams": 3,
        "do_sample": True,
    }.items():
        setattr(model.generation_config, name, value)
    assert [answer.token_ids for answer in together(model, prompts, settings)] == expected


@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
def test_a_stop_text_ends_an_answer_and_is_left_out_of_it(plan: SpanPlan | None) -> None:
    model = random_model("llama", plan)
    model.generation_config.eos_token_id = None
    prompts = prompts_of_a_sweep()
    free = together(model, prompts, GenerationSettings(max_new_tokens=NUM_NEW))
    # Three letters that the first answer has in its middle; a prompt that ends with two of them stops nothing.
    stop = TOKENIZER.decode(free[0].token_ids)[10:13]
    prompts[1] = prompts[1][:-2] + TOKENIZER(stop[:2], add_special_tokens=False).input_ids
    free = together(model, prompts, GenerationSettings(max_new_tokens=NUM_NEW))
    answers = together(model, prompts, GenerationSettings(max_new_tokens=NUM_NEW, stop=(stop, "no such text")))
    assert answers[0].finish_reason == "stop"
    for answer, whole in zip(answers, free, strict=True):
        text = TOKENIZER.decode(whole.token_ids)
        assert answer.finish_reason == ("stop" if stop in text else "length")
        assert answer.text == text.partition(stop)[0].strip()
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


@pytest.mark.parametrize("after", ["User", "User and more"])
def test_a_stop_text_that_spells_a_control_token_is_left_out_too(after: str) -> None:
    answer = TOKENIZER(f"It is so.<|im_end|>{after}", add_special_tokens=False).input_ids
    assert text_of(answer, ("<|im_end|>User",), TOKENIZER) == "It is so."


def test_what_cannot_share_a_batch_is_decoded_alone() -> None:
    def rows(model: PreTrainedModel, **options: Any) -> int | None:
        return rows_together(model, GenerationSettings(max_new_tokens=4, **options))

    mixed = random_model("llama", MIXED)
    assert rows(mixed) is None
    assert rows(mixed, num_beams=4, repetition_penalty=1.2, no_repeat_ngram_size=3, stop=("a",)) is None
    assert rows(mixed, no_repeat_ngram_size=1) is None
    assert rows(mixed, temperature=1.0) == rows(mixed, num_beams=2, no_repeat_ngram_size=1) == 1
    assert rows(random_model("llama", None)) == rows(random_model("deepseek_v3", MIXED)) == 1
    mixed.generation_config.eos_token_id = None
    assert rows(mixed, no_repeat_ngram_size=3) is None
    assert rows(mixed, num_beams=2, no_repeat_ngram_size=3) == 1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            "phi3",
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 64,
                },
            },
        ),
        (
            "llama",
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            },
        ),
        ("gemma3_text", {}),
        ("gpt2", {}),
    ],
)
def test_prompts_share_keys_only_where_their_rotary_frequencies_agree(kind: str, changes: dict[str, Any]) -> None:
    model = tiny_model(kind, **changes)
    rotary = [module for module in model.modules() if hasattr(module, "inv_freq")]
    found: dict[int, tuple[Any, ...]] = {}
    for count in (10, 63, 64, 65, 66, 200):
        with fixed_frequencies(model, count):
            frequencies = tuple(tuple(module.inv_freq.tolist()) for module in rotary)
        assert found.setdefault(frequency_class(model.config, count), frequencies) == frequencies
    assert len(set(found.values())) == len(found)
    assert len(found) == {"phi3": 2, "llama": 4}.get(kind, 1)


def test_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", MIXED)
    model.generation_config.eos_token_id = None
    warm_up(model, TOKENIZER)
    steps: list[int] = []
    prompts = prompts_of_a_sweep()
    tree = PromptTree(prompts)
    caches = TreeCaches(model, tree, range(len(prompts)))
    times = iter(range(100))
    for loop in ("decode", "greedy"):
        monkeypatch.setattr(f"eval.generation.{loop}.now", lambda device: float(next(times)))
    filled = [caches.take(leaf) for leaf in tree.order]
    settings = GenerationSettings(max_new_tokens=NUM_NEW)
    answers = decode(model, TOKENIZER, [prompts[leaf] for leaf in tree.order], filled, settings, steps.append)
    assert sum(steps) == NUM_NEW
    assert len(steps) == 2
    # A second for joining and the ends of prompts, and two looks of one each, shared by six rows.
    assert [answer.prefill_seconds for answer in answers] == [pytest.approx(1 / 6)] * 6
    assert [answer.seconds for answer in answers] == [pytest.approx(2 / 6)] * 6
    for leaf, answer in zip(tree.order, answers, strict=True):
        needed = cache_bytes(model.config, MIXED, len(prompts[leaf]) + NUM_NEW, 8)
        # The last token is never stored; the tails of all rows are as long as the longest of them.
        assert needed <= answer.cache_bytes * 1.1
        assert answer.cache_bytes <= 2 * needed
