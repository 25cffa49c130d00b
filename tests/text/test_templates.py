"""Chat templates: rendered as transformers renders them, in a sandbox, refusals in the template's own words."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from anyformer import text
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import TextError
from anyformer.text import Tokenizer
from anyformer.text.templates import render

MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "Zwölf?"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "日本?"},
]
CHATML = """\
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("role " ~ message.role ~ " is not known") }}
    {%- endif %}
    {% if message.role == "assistant" %}
<|im_start|>{{ message.role }}
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEMPLATES = {
    "chatml": CHATML,
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "json": "{{ messages | tojson }} {{ tools | tojson(indent=2) }} {{ messages[0] | tojson(ensure_ascii=true) }}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
    "macro": "{% macro turn(m) %}[{{ m.role | upper }}] {{ m.content | trim }}\n{% endmacro %}"
    "{{ bos_token }}{% for m in messages %}{{ turn(m) }}{% endfor %}{{ eos_token }}",
    "undefined": "{{ nothing }}|{{ documents is none }}|{% if nothing is defined %}x{% endif %}",
    "methods": "{{ messages[1].content.strip().split('?')[0] }} {{ dict(a=1) }} {{ 'x' in messages[0].content }}",
}


def tokenizer(template: str) -> Tokenizer:
    plain = text.byte_level()
    return Tokenizer(plain._backend, {**plain._config, "chat_template": template})


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(name: str, prompt: bool, tmp_path: Path) -> None:
    """Loop controls, generation blocks, JSON, macros, undefined names: the same text to the character."""
    ours = tokenizer(TEMPLATES[name])
    ours.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
    assert ours.chat(MESSAGES, add_generation_prompt=prompt) == expected


def test_the_real_template_renders_as_in_transformers(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2's own template, out of its GGUF file; a conversation ends where the assistant is to write."""
    ours = text.from_gguf(GgufFile(smollm2).metadata)
    ours.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        for prompt in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.chat(messages, add_generation_prompt=prompt) == expected
    assert ours.chat(MESSAGES).endswith("<|im_start|>assistant\n")
    turn = ours.encode(ours.chat([{"role": "user", "content": "Hi"}]), special=False)
    assert turn.count(1) == 3 and turn.count(2) == 2, "the turns' marks are single tokens"


def test_extra_variables_reach_the_template() -> None:
    """Tools, documents and switches that a template knows are handed to it."""
    assert tokenizer("{{ tools[0] }} {{ thinking }}").chat([], tools=["hammer"], thinking=False) == "hammer False"


def test_the_date_is_there_for_templates_that_ask() -> None:
    """`strftime_now` formats the present time."""
    assert re.fullmatch(r"\d{4}", year := render("{{ strftime_now('%Y') }}", [], {}))
    assert abs(int(year) - datetime.now().year) <= 1


def test_a_template_refuses_in_its_own_words() -> None:
    """`raise_exception` becomes one sentence with what the template said."""
    with pytest.raises(TextError, match="the chat template refuses these messages: role bishop is not known"):
        tokenizer(CHATML).chat([{"role": "bishop", "content": "Amen"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[5].content.strip() }}",
        "{{ messages | length + 'a' }}",
        "{% for a in 3 %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_goes_wrong_in_a_template_is_told(template: str) -> None:
    """Errors inside a template are one sentence too, not a traceback of jinja's."""
    with pytest.raises(TextError, match="the chat template refuses these messages: ") as error:
        tokenizer(template).chat(MESSAGES)
    assert "\n" not in str(error.value)


def test_what_a_template_was_not_given_is_told() -> None:
    """Where a template fails for want of a variable, those that it reads and has no value of are named; not where it
    speaks for itself."""
    template = "{{ eos_token }}{% for tool in tools %}{{ tool.name ~ thinking }}{% endfor %}"
    with pytest.raises(TextError, match=r"'NoneType' object is not iterable; it was not given: thinking, tools$"):
        tokenizer(template).chat(MESSAGES)
    assert tokenizer(template).chat(MESSAGES, tools=[{"name": "saw"}]) == "<|endoftext|>saw"
    with pytest.raises(TextError, match=r"these messages: no tools, no work$"):
        tokenizer("{{ raise_exception('no tools, no work') if not tools }}").chat(MESSAGES)


def test_an_invalid_template_is_told() -> None:
    """A template that does not parse says so."""
    with pytest.raises(TextError, match="the chat template is not valid: "):
        tokenizer("{% if %}").chat([])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages[0].__setitem__('role', 'x') }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_templates_cannot_reach_out(template: str) -> None:
    """A template is a stranger's program: it can neither look at Python's inside nor change what it is given."""
    before = [dict(message) for message in MESSAGES]
    try:
        rendered = tokenizer(template).chat(MESSAGES)
    except TextError:
        rendered = ""
    assert rendered == ""
    assert before == MESSAGES
