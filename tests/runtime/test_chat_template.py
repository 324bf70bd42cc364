"""Chat templates render as transformers renders them, in a sandbox."""

import re
import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from siren_runtime import BackendError, BundleError, InputError
from siren_runtime.text.chat_template import ChatTemplate
from trajectories import TEMPLATES, TOOLS

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = {
    "one": [{"role": "user", "content": "hi"}],
    "system": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi <b> é"}],
    "turns": [
        {"role": "user", "content": "a\n  b  "},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "{{ 7 * 7 }} {% raise %}"},
    ],
    "more": [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "1", "name": "f"},
    ],
}
# What templates of published models do, each by itself.
SMALL = {
    "json": "{{ messages | tojson }}",
    "json-ascii": "{{ messages | tojson(ensure_ascii=true, indent=2, sort_keys=true) }}",
    "html": "{{ messages[0].content }}{{ messages[-1]['content'] | e }}",
    "tools": "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ messages[0].nothing }}",
    "loop-controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role ~ loop.index }}\n"
    "{% endgeneration %}{% endfor %}",
    "generation-set": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}"
    "{{ a }}",
    "namespace": "{% set ns = namespace({'a': 1}, b=2) %}{% set ns.a = ns.a + ns.b %}{{ ns.a }}",
    "dict": "{{ dict(a=1, b='x') | tojson }}{{ dict.fromkeys(['a'], 2) | tojson }}",
    "trim": "  {%- if true %}  \n  {{ 'a' }}\n  {% endif %}\n\n  b\n",
    "newline-at-the-end": "a\n",
    "methods": "{{ messages[0].content.strip().split('\n') | join('|') }}{{ 'ab'.upper() }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}{{ documents }}",
    "year": "{{ strftime_now('%Y-%m') }}",
    "macro": "{% macro f(m) %}<{{ m.role }}>{{ caller() }}{% endmacro %}"
    "{% for m in messages %}{% call f(m) %}{{ m.content }}{% endcall %}{% endfor %}",
}


def outcome(render):
    try:
        return render()
    except Exception as error:
        return error


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", [*TEMPLATES, *SMALL])
def test_a_template_renders_as_transformers_renders_it(name, chat):
    source, messages = {**TEMPLATES, **SMALL}[name], CHATS[chat]
    ours = ChatTemplate(source, TOKENS, "a template")
    for options in ({}, {"tools": TOOLS}, {"add_generation_prompt": True}):
        expected = outcome(
            lambda o=options: render_jinja_template([messages], chat_template=source, **o, **TOKENS)
        )
        found = outcome(lambda o=options: ours.render(messages, **o))
        if isinstance(expected, Exception):
            assert isinstance(found, InputError)
        else:
            assert found == expected[0][0]


HOSTILE = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "namespace-set": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns }}",
    "mutation": "{{ messages.append(1) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "raises": "{{ raise_exception('no such role') }}",
    "divides": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{% for i in range(10000000) %}{% endfor %}",
    "json": "{{ raise_exception | tojson }}",
    "text": "{{ 'two words' | wordwrap(0) }}",
    "date": "{{ strftime_now(3) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_template_must_not_do_is_an_error(name):
    template = ChatTemplate(HOSTILE[name], {}, "a template")
    with pytest.raises(InputError, match="a template refuses the messages"):
        template.render(CHATS["one"])


class _Raises:
    """Raises of the caller's code, as a handler of a signal may amid a template."""

    def __init__(self, error):
        self._error = error

    def __str__(self):
        raise self._error


@pytest.mark.parametrize("kind", [TimeoutError, ValueError, Exception])
def test_what_the_callers_code_raises_comes_out_as_it_is(kind):
    error = kind("of the caller")
    with pytest.raises(kind) as caught:
        ChatTemplate("{{ messages[0].content }}", {}, "a template").render(
            [{"role": "user", "content": _Raises(error)}]
        )
    assert caught.value is error


def test_a_lack_of_memory_is_no_refusal():
    template = ChatTemplate("{{ messages[0].content * 10 ** 18 }}", {}, "a template")
    with pytest.raises(MemoryError):
        template.render(CHATS["one"])


def test_a_text_without_end_is_not_rendered_to_its_end():
    template = ChatTemplate("{% for i in range(99999) %}long{% endfor %}", {}, "a template")
    with pytest.raises(InputError, match="more than 1,000 characters"):
        template.render(CHATS["one"], max_characters=1000)
    with pytest.raises(InputError, match="no messages"):
        template.render([])


def test_a_template_that_does_not_compile_is_a_damaged_bundle():
    for source in ("{% for %}", "{{ a", "{% nothing %}", "{% generation %}", "{{ a | nothing }}"):
        with pytest.raises(BundleError, match=re.escape("x.jinja: not a valid chat template")):
            ChatTemplate(source, {}, "x.jinja")


def test_the_messages_of_a_caller_are_left_as_they_are():
    messages = [{"role": "user", "content": "a"}]
    ChatTemplate("{{ messages }}", {}, "a template").render(messages)
    assert messages == [{"role": "user", "content": "a"}]


def test_without_jinja_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BackendError, match=re.escape("pip install '.[trajectory]'")):
        ChatTemplate("a", {}, "a template")


def test_a_jinja_whose_sandbox_leaks_is_not_used(monkeypatch):
    monkeypatch.setattr("jinja2.__version__", "3.1.5")
    with pytest.raises(BackendError, match=r"jinja2 3\.1\.5 lets a template out"):
        ChatTemplate("a", {}, "a template")
