"""The variables of chat templates that switch reasoning on and off and set its effort; they differ between models.

A model whose template has no switch is handled in ``engine.build_sequence``.
"""

import functools
from collections.abc import Mapping

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.request import Effort

EFFORT = "reasoning_effort"
"""The variable for the effort: gpt-oss and others."""

SWITCHES = ("enable_thinking", "thinking")
"""The variables for the switch: Qwen, GLM, SmolLM and most others have the first, DeepSeek and Granite the second."""


def reasoning_options(template: object, thinking: bool | None, effort: Effort | None) -> dict[str, object]:
    """Return the variables to pass to a template, by the names that it reads; empty when it reads none.

    Args:
        template: Its text, or several texts by name, as tokenizers hold them; anything else has no variables.
        thinking: Whether the model shall reason; None passes no variable.
        effort: How much it shall reason; None passes no variable.

    Raises:
        CapabilityError: See ``refuse_effort``.
    """
    if thinking is None and effort is None:
        return {}
    texts = template.values() if isinstance(template, Mapping) else (template,)
    read = {name for text in texts if isinstance(text, str) for name in _variables(text)}
    options: dict[str, object] = {}
    if thinking is not None:
        options |= {name: thinking for name in SWITCHES if name in read}
    if effort is not None and EFFORT in read:
        options[EFFORT] = effort.value
    else:
        refuse_effort(effort)
    return options


def has_reasoning_switch(options: Mapping[str, object]) -> bool:
    """Whether the variables passed to a template switch reasoning on or off."""
    return not options.keys().isdisjoint(SWITCHES)


def refuse_effort(effort: Effort | None) -> None:
    """Refuse any effort except the default, for a model whose template has no variable for it.

    Raises:
        CapabilityError: The effort is low or high.
    """
    if effort not in {None, Effort.MEDIUM}:
        raise CapabilityError.in_field(
            EFFORT, "this model knows no degrees of reasoning", hint="Leave it out, or choose a model that knows them."
        )


class _GenerationTag(Extension):
    """The block tag that transformers adds for marking the assistant's text; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _variables(text: str) -> frozenset[str]:
    """Return the variables that a template reads without setting them first; none for an invalid template."""
    # Only parsed, never rendered: transformers renders, in its sandbox.
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationTag])
    try:
        return frozenset(find_undeclared_variables(environment.parse(text)))
    except TemplateSyntaxError:
        return frozenset()
