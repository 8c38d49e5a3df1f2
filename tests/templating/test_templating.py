"""Templates from files that nobody vouches for end in time, or are refused."""

from __future__ import annotations

import pytest
from bounds import soon
from jinja2 import TemplateError

from finetune.templating import FAULTS, LimitError, compile_template, render, render_chat, strict_environment

ENVIRONMENT = strict_environment()
BOMBS = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "power of a variable": "{% set n = 9 %}{{ n ** (n ** n) }}",
    "repeated squares": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x "
    "%}{% endfor %}",
    "string times number": "{{ 'a' * 10000000000 }}",
    "number times string": "{{ 10000000000 * 'a' }}",
    "list times number": "{{ [1] * 10000000000 }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested ranges that write": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% "
    "endfor %}",
    "slice": "{{ [1] | slice(9999999999) | list }}",
    "batch": "{{ [1] | batch(9999999999, 0) | list }}",
    "macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "macro that doubles": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}ab{% endif "
    "%}{% endmacro %}{{ m(60) }}",
    "deep brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep round brackets": "{{ " + "(" * 900 + "1" + ")" * 900 + " }}",
    "deep attributes": "{{ text" + ".a" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "doubling by ~": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x "
    "%}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x "
    "%}{% endfor %}",
    "doubled lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] "
    "%}{% endfor %}{{ ns.x }}",
    "lists compared": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = "
    "[ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "method center": "{{ 'a'.center(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ '\t'.expandtabs(999999999) }}",
    "format width": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "format argument": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "format star": "{{ '%*d' % (9999999999, 1) }}",
    "indent": "{{ 'a\nb' | indent(9999999999) }}",
    "json indent": "{{ [1] | tojson(indent=9999999999) }}",
    "replace": "{% set x = 'a' * 90000 %}{{ x.replace('a', x).replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 90000 %}{{ x | replace('a', x) | replace('a', x) }}",
    "join": "{% set x = 'a' * 900000 %}{{ ([x] * 90000) | join(x) }}",
    "join of a range": "{% set x = 'a' * 900000 %}{{ range(99999) | join(x) }}",
    "method join": "{% set x = 'a' * 900000 %}{{ x.join(['a'] * 90000) }}",
    "block set": "{% set x = 'a' * 900000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% "
    "endset %}{{ y }}",
    "text in a block": "{% set y %}{% for i in range(99999) %}" + "x" * 90000 + "{% endfor %}{% endset %}",
    "sum of lists": "{{ ([[1] * 900] * 900) | sum(start=[]) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "varargs": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% "
    "endif %}{% endmacro %}{{ f(90, 1) }}",
    "long text": "{{ text }}" * 90000,
    "escape": "{{ ''.__class__.__mro__ }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time(name):
    with soon(), pytest.raises(FAULTS):
        render(compile_template(ENVIRONMENT, BOMBS[name]), {"text": "hello"})


def test_what_people_write_is_rendered():
    text = (
        "{% for a, b in pairs %}{{ loop.index }}/{{ loop.length }}: {{ a|upper }} {{ '%.1f' % b }}\n{% "
        "endfor %}"
        "{{ pairs|map(attribute=0)|join(', ') }} {{ text.split('.')[0] ~ '!' }} {{ [1, 2] + [3] }} {{ 2 "
        "** 10 }} {{ 'ab' * 3 }}"
    )
    wanted = "1/2: A 0.5\n2/2: B 1.5\na, b One! [1, 2, 3] 1024 ababab"
    assert (
        render(compile_template(ENVIRONMENT, text), {"pairs": [("a", 0.5), ("b", 1.5)], "text": "One. Two."})
        == wanted
    )


def test_a_long_row_is_no_bomb():
    long = "word " * 1_000_000
    assert (
        len(render(compile_template(ENVIRONMENT, "{{ text|trim }} {{ text }}"), {"text": long}))
        > 2 * len(long) - 3
    )


def test_a_refused_template_leaves_no_account_open():
    with pytest.raises(LimitError):
        render(compile_template(ENVIRONMENT, BOMBS["nested ranges"]), {})
    assert render(compile_template(ENVIRONMENT, "{{ 1 + 1 }}"), {}) == "2"


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content "
    "}}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% endif %}"
)


def test_a_chat_tells_where_the_assistant_speaks():
    messages = [{"role": "user", "content": "Hi\ue0fc"}, {"role": "assistant", "content": "Hello"}]
    text, spans = render_chat(CHAT, {"messages": messages, "add_generation_prompt": True})
    assert text == "<|user|>Hi\n<|assistant|>Hello\n<|assistant|>"
    assert [text[a:b] for a, b in spans] == ["Hello"]


def test_a_chat_template_can_refuse():
    with pytest.raises(TemplateError, match="no system turn"):
        render_chat("{{ raise_exception('no system turn') }}", {"messages": []})
