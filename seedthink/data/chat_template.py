"""Chat templates: Jinja text from a model folder, rendered in a sandbox as Hugging Face renders it.

A template is a stranger's code, so it runs in jinja2's immutable sandbox. Block trimming, loop controls, `tojson`
without HTML escapes, `raise_exception`, `strftime_now` and the `{% generation %}` tag are what published templates use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from seedthink.errors import DataError

Message = Mapping[str, Any]


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for other tools; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Replace the tag by its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = _tojson
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return sandbox.from_string(template)


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Text of a conversation (`{"role", "content"}` each). `variables` are the special tokens and template switches.

    Raises `DataError` with the template's own words when it refuses the messages or is broken.
    """
    try:
        return _compile(template).render(
            {**(variables or {}), "messages": messages, "add_generation_prompt": add_generation_prompt}
        )
    except Exception as error:  # a template can raise anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(f"the chat template refuses a conversation with roles {roles}: {error}") from error
