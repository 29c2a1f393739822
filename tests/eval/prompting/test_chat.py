"""Chat templates: arguments, names, system messages, clocks and limits; what ends an answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.prompting import chat as module
from eval.prompting.chat import ChatSettings, ChatTemplate
from eval.prompting.encoding import TextEncoder
from eval.prompting.ends import find_ends
from eval.prompting.prompts import PromptBuilder
from tasks import Template
from tests.helpers.properties import tries
from tests.helpers.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

LOOP = "{% for m in messages %}X{% endfor %}"


def tokenizer(template: Any, *more: str) -> Any:
    found = tiny_tokenizer()
    found.add_tokens(list(more), special_tokens=True)
    found.chat_template = template
    return found


def rendered(template: Any, **settings: Any) -> str:
    return "C".join(ChatTemplate(tokenizer(template), ChatSettings(**settings)).around("", ""))


def test_arguments_reach_the_template() -> None:
    template = CHAT_TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
    assert rendered(template, kwargs={"enable_thinking": False}) == rendered(template) + "<think></think>"
    with pytest.raises(UserError, match="--template-kwargs sets 'messages'"):
        rendered(template, kwargs={"messages": []})


PROMPT = "{% if add_generation_prompt %}A:"
# As published templates have it: of Qwen3, SmolLM3, GLM-4.5, Gemma 4, DeepSeek-V3.1, Granite, MiniMax, Seed-OSS,
# Mistral, gpt-oss, and Kimi K3, whose several switches belong together.
SWITCHES = {
    "qwen3": PROMPT + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}",
    "smollm3": "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{{ '/think' if enable_thinking else '/no_think' }}" + PROMPT,
    "glm": "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}" + PROMPT,
    "gemma": "{% set thinking = enable_thinking is defined and enable_thinking %}{% if thinking %}<|think|>{% endif %}"
    + PROMPT,
    "deepseek": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + PROMPT
    + "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "granite": "{% if thinking %}Think first.{% endif %}" + PROMPT,
    "minimax": PROMPT + "{% if thinking_mode is defined and thinking_mode == 'disabled' %}</think>{% endif %}",
    "seed": "{% if not thinking_budget is defined %}{% set thinking_budget = -1 %}{% endif %}"
    "{% if thinking_budget == 0 %}No thoughts.{% endif %}" + PROMPT,
    "mistral": "{% set effort = reasoning_effort | default('high') %}{{ effort }}"
    "{% if effort not in ['none', 'high'] %}{{ raise_exception('which effort') }}{% endif %}" + PROMPT,
    "gpt-oss": "{% macro system() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}"
    "{% endif %}Reasoning: {{ reasoning_effort }}{% endmacro %}{{ system() }}" + PROMPT,
    "kimi": "{% set rens = namespace(off=false) %}{% if reasoning_effort is defined and reasoning_effort == 'none' %}"
    "{% set rens.off = true %}{% endif %}{% if thinking is not defined %}{% if enable_thinking is defined %}"
    "{% set thinking = enable_thinking %}{% else %}{% set thinking = not rens.off %}{% endif %}{% endif %}"
    + PROMPT
    + "{{ '<think>' if thinking else '<think></think>' }}",
}
VALUES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    **dict.fromkeys(
        ("qwen3", "smollm3", "glm", "gemma", "kimi"), ({"enable_thinking": True}, {"enable_thinking": False})
    ),
    **dict.fromkeys(("deepseek", "granite"), ({"thinking": True}, {"thinking": False})),
    "minimax": ({"thinking_mode": "enabled"}, {"thinking_mode": "disabled"}),
    "seed": ({"thinking_budget": -1}, {"thinking_budget": 0}),
    "mistral": ({"reasoning_effort": "high"}, {"reasoning_effort": "none"}),
    "gpt-oss": ({"reasoning_effort": "medium"}, None),
}


@pytest.mark.parametrize("family", SWITCHES)
def test_the_switch_for_thinking_is_found_in_the_template(family: str) -> None:
    template = LOOP.replace("X", "[{{ m['content'] }}]") + SWITCHES[family] + "{% endif %}"
    for thinking, variables in zip(("on", "off"), VALUES[family], strict=True):
        chat = ChatTemplate(tokenizer(template), ChatSettings(thinking=thinking))
        if variables is None:
            with pytest.raises(
                UserError, match=f"cannot switch thinking {thinking}: its variable reasoning_effort has"
            ):
                chat.check_switch()
            continue
        assert chat.variables == variables
        # All that is asked of a template holds under its switch.
        assert "C".join(chat.around("", "")) == rendered(template, kwargs=variables)
        assert rendered(template, thinking=thinking, kwargs={"x": 1}) == rendered(template, kwargs=variables)
    assert ChatTemplate(tokenizer(template), ChatSettings()).variables == {}


@pytest.mark.parametrize(
    ("template", "thinking", "message"),
    [
        (CHAT_TEMPLATE, "on", "--thinking on: the model's chat template has no switch for thinking; leave it out"),
        (None, "off", "--thinking is of a chat template, and the tokenizer of this model has none"),
        ("{% set enable_thinking = true %}{{ enable_thinking }}" + CHAT_TEMPLATE, "off", "has no switch"),
        # What a message holds, and what is said of messages before, is no switch.
        (CHAT_TEMPLATE + "{{ messages[0].thinking }}", "on", "has no switch"),
        (CHAT_TEMPLATE + "{% if messages | length > 1 and enable_thinking %}x{% endif %}", "on", "has no switch"),
        (
            CHAT_TEMPLATE + "{% if enable_thinking is false %}{{ raise_exception('always thinks') }}{% endif %}",
            "off",
            "cannot switch thinking off: with enable_thinking it says always thinks",
        ),
        ("{% for", "on", "has no switch"),
    ],
)
def test_a_template_that_cannot_be_switched_is_refused(template: Any, thinking: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ChatTemplate(tokenizer(template), ChatSettings(thinking=thinking)).check_switch()
    assert "\n" not in str(caught.value)


def test_a_template_that_always_opens_a_thought_needs_no_switch() -> None:
    always = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert rendered(always, thinking="on") == rendered(always)
    with pytest.raises(UserError, match="has no switch for thinking"):
        rendered(always, thinking="off")


def test_one_of_several_templates_is_named() -> None:
    templates = {"rag": CHAT_TEMPLATE, "other": LOOP.replace("X", "[{{ m['content'] }}]")}
    assert rendered(templates, name="other") == "[C]"
    assert rendered({**templates, "default": CHAT_TEMPLATE}) == rendered(CHAT_TEMPLATE)
    with pytest.raises(UserError, match="no default; name one with --chat-template: other, rag"):
        rendered(templates)
    with pytest.raises(UserError, match="no chat template 'x'; known: other, rag"):
        rendered(templates, name="x")
    with pytest.raises(UserError, match="has one chat template only"):
        rendered(CHAT_TEMPLATE, name="rag")
    with pytest.raises(UserError, match="--system is of a chat template"):
        rendered(None, system="Be brief.")


def test_a_system_message_stands_before_the_turn_or_is_missed() -> None:
    needs = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('where is it') }}{% endif %}" + CHAT_TEMPLATE
    assert rendered(needs, system="Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    with pytest.raises(UserError, match="refuses a single user turn: where is it; --system"):
        rendered(needs)
    with pytest.raises(UserError, match="does not show the system message"):
        rendered("{{ messages[-1]['content'] }}", system="Be brief.")


def test_content_in_parts_is_given_to_templates_that_want_it() -> None:
    assert rendered(LOOP.replace("X", "{% for c in m['content'] %}[{{ c['text'] }}]{% endfor %}")) == "[C]"


def test_the_clock_of_a_template_shows_the_date_that_is_set() -> None:
    template = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
    assert rendered(template, date="2026-02-03").startswith("03 Feb 2026 ")
    assert ChatTemplate(tokenizer(template), ChatSettings()).uses_clock
    assert not ChatTemplate(tokenizer(CHAT_TEMPLATE), ChatSettings()).uses_clock


@pytest.mark.parametrize(
    "body",
    [
        "{{ 1 + 'a' }}",
        "{{ messages[7]['role'] + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set s = namespace(x='ab') %}{% for i in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}",
        "{{ 'a' * 10**12 }}",
        "{% for",
        "{{ 'a' * 10**7 }}",
    ],
)
def test_whatever_a_template_raises_is_one_line(body: str) -> None:
    with pytest.raises(UserError, match=r"chat template refuses a single user turn: [A-Za-z]"):
        rendered(body)


CHANGES = (
    *("e", "forceescape", "tojson", "striptags", "urlize", "urlencode", "xmlattr", "string | e", "title", "lower"),
    *("upper", "capitalize", "indent(1)", "indent(2, true)", "wordwrap(60)", "truncate(90)", "center(99)", "reverse"),
    *("replace('\\n\\n', '\\n')", "replace('\\t', ' ')", "replace('&amp;', '&')", "replace('\\\\', '/')"),
    *("replace('\"', '')", "replace('  ', ' ')", "length", "wordcount", "first", "last", "list", "pprint"),
)


@pytest.mark.parametrize("expression", [f"m['content'] | {one}" for one in CHANGES])
def test_a_template_that_changes_the_text_with_a_filter_is_refused(expression: str) -> None:
    with pytest.raises(UserError, match=r"chat template (changes|shows|refuses)"):
        rendered(LOOP.replace("X", "<|im_start|>{{ " + expression + " }}<|im_end|>"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{{ m.content.replace('ß', 'ss') }}", r"shows 'ße, .* as 'sse, "),
        ("{{ m.content.split('\n') | join(' ') }}", "as ' A <b>tag"),
        ("{{ m.content[:5000] }}", "it repeats a longer text, or leaves out an end of it"),
        ("{{ m.content }} ({{ m.content | wordcount }})", "around a longer text it writes something else"),
        ("{% if m.content | length > 9000 %}Long: {% endif %}{{ m.content }}", "around a longer text"),
        (
            "{% if 'http' in m.content %}{{ m.content }}{% endif %}{{ m.content }}",
            "it repeats a longer text, or leaves out an end of it",
        ),
    ],
)
def test_a_change_of_the_text_is_shown(body: str, message: str) -> None:
    with pytest.raises(UserError, match=f"changes the user's text, or depends on it: .*{message}"):
        rendered(LOOP.replace("X", body))


@pytest.mark.parametrize("draw", ["{{ range(2) | random }}", "{{ lipsum(n=1) }}", "{{ 'abc' | random }}"])
def test_a_template_that_draws_at_random_is_refused(draw: str) -> None:
    with pytest.raises(UserError, match="refuses a single user turn: it draws at random"):
        rendered(CHAT_TEMPLATE + draw)


@pytest.mark.parametrize("half", ["{{ '\\ud83d' }}", "{{ raise_exception('\\udfff') }}", "{{ 'a\\ud800b' | upper }}"])
def test_half_a_surrogate_is_one_line_that_can_be_written(half: str) -> None:
    with pytest.raises(UserError, match="refuses a single user turn") as caught:
        rendered(CHAT_TEMPLATE + half)
    assert str(caught.value).encode()


CONTENTS = (
    *("m['content']", "m.content | trim", "m.content.strip()", "m['content'] | safe", "'%s' % m.content"),
    *("m.content | default('', true)", "(m.content | trim).lstrip('\\n')", "'User: ' ~ m.content ~ '\\n'"),
    # What changes markup of turns alone changes no ordinary text: templates of Nemotron take /think out of it.
    *("m.content.replace('/think', '').replace('/no_think', '').strip()",),
    *("m.content.split('</think>')[-1] if m.role == 'assistant' else m.content",),
)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_template_that_keeps_the_text_gives_the_prompt_of_the_whole(content: str) -> None:
    found = tokenizer(LOOP.replace("X", "<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>"))
    text = "Read \"it\":\n\n\n\t<b>R&D</b>  at http://a.b/c?d\n\n    99% {x} \\ 'Ä' 𝄞\n\nWhat?"
    before, after = ChatTemplate(found, ChatSettings()).around("Read ", "What?")
    whole = found.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    assert before + text[len("Read ") : -len("What?")] + after == whole


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for body in (endless, "{{ 7 ** (10 ** 9) }}"):
        with pytest.raises(UserError, match=r"not rendered after 0\.5 s"):
            rendered(body)


def test_a_template_that_hangs_on_answers_alone_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    hangs = "{% if m['role'] == 'assistant' %}{{ 7 ** (10 ** 9) }}{% endif %}{{ m['content'] }}"
    found = tokenizer(LOOP.replace("X", hangs))
    with pytest.raises(UserError, match=r"not rendered after 0\.5 s"):
        ChatTemplate(found, ChatSettings()).turn_end(TextEncoder(found))


def test_end_tokens_that_a_config_does_not_mean_end_nothing() -> None:
    found = tokenizer(None)
    last = len(found) - 1
    ends = find_ends(found, {"config": [-1, 10**6, last]}, ChatTemplate(found, ChatSettings()))
    assert last in ends.token_ids
    assert not {-1, 10**6} & set(ends.token_ids)


@pytest.mark.parametrize(
    ("template", "tokens", "added"),
    [
        (CHAT_TEMPLATE, (), ()),
        (LOOP.replace("X", "<r>{{ m['role'] }}</r>{{ m['content'] }}<|eot_id|>"), ("<|eot_id|>",), ("<|eot_id|>",)),
        # Of several tokens the first one ends the turn.
        (LOOP.replace("X", "{{ m['content'] }}\n<|a|><|b|>\n"), ("<|b|>", "<|a|>"), ("<|a|>",)),
        # The last turn is left open.
        (LOOP.replace("X", "{{ m['content'] }}{% if not loop.last %}<|a|>{% endif %}"), ("<|a|>",), ("<|a|>",)),
        # A token that begins answers too ends none.
        (
            LOOP.replace("X", "<|h|>{{ m['role'] }}: {{ m['content'] }}\n")
            + "{% if add_generation_prompt %}<|h|>assistant: {% endif %}",
            ("<|h|>",),
            ("\n<|h|>user:",),
        ),
        (LOOP.replace("X", "{{ '\n' + m['role'] }}: {{ m['content'] }}"), (), ("\nuser:",)),
        (LOOP.replace("X", "{{ m['content'] }} [DONE]"), (), ("[DONE]",)),
        ("{{ messages[0]['content'] }}", (), ()),
        ("{{ raise_exception('no') }}", (), ()),
    ],
)
def test_an_answer_ends_where_the_template_ends_a_turn(template: str, tokens: Any, added: Any) -> None:
    found = tokenizer(template, *tokens)
    ends = find_ends(found, {"generation_config": [0]}, ChatTemplate(found, ChatSettings()))
    assert ends.added == added
    assert {found.eos_token_id, 0} <= set(ends.token_ids)
    assert ends.texts == tuple(one for one in added if one not in tokens)
    assert ends.sources["<|pad|>"] == ("generation_config",)
    assert all(f"{name if name.isprintable() else repr(name)} (chat template)" in ends.describe() for name in added)


def test_the_digest_of_a_prompt_holds_what_the_settings_change() -> None:
    template = "{{ x }}" + CHAT_TEMPLATE
    digests = {
        PromptBuilder(tokenizer(template), Template(text="{context}"), ChatSettings(kwargs={"x": x})).sha256
        for x in "ab"
    }
    assert len(digests) == 2


# Pieces of templates as checkpoints have them, and mistakes in them.
PIECES = (
    *("{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% else %}", "{% endif %}"),
    *("{{ m['content'] }}", "{{ m.role }}", "{{ messages[0]['content'] }}", "{{ messages[7] }}", "{{ 1 // 0 }}"),
    *("{{ raise_exception('no') }}", "{{ strftime_now('%d %b %Y') }}", "{{ m['content'] + 1 }}", "{{ m | tojson }}"),
    *("{% set x = messages %}", "{{ x[0:1] | length }}", "{% include 'a' %}", "{{ '\\ud83d' }}", "{% macro f() %}"),
    *("{% endmacro %}", "{{ f() }}", "{{ eos_token }}", "<|im_start|>", "<|im_end|>", "{%", "}}", "{{ undefined.x }}"),
    *("{{ ''.__class__ }}", "{{ range(99) | list | length }}", "{{ m['content'] | upper }}", "\n", "user\n"),
)


@tries(25)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_any_template_is_rendered_or_refused_in_one_line(template: str) -> None:
    refused = None
    try:
        before, after = ChatTemplate(tokenizer(template), ChatSettings()).around("Read ", " well.")
    except UserError as error:
        refused = str(error)
    assert "\n" not in refused if refused else before.endswith("Read ") or after.startswith(" well.")
