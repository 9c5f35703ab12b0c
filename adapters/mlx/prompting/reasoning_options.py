"""How a chat template is told whether and how much the model is to reason: variables that differ from model to model.

Owns which names there are, which of them a template reads, and the refusal of degrees to a template that knows none.
What becomes of a model that cannot be told not to reason stands in ``preparation``.
"""

import functools
from collections.abc import Mapping

from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.request import Effort

EFFORT = "reasoning_effort"
"""What templates call the degree: gpt-oss and others."""

SWITCHES = ("enable_thinking", "thinking")
"""What templates call it: Qwen, GLM, SmolLM and most others the first, DeepSeek and Granite the second."""


def reasoning_options(template: object, thinking: bool | None, effort: Effort | None) -> dict[str, object]:
    """Return what a template is to be given, by the names that it reads; empty when it reads none.

    Args:
        template: Its text, or several by their names, as tokenizers hold them; anything else reads nothing.
        thinking: Whether the model is to reason; None gives the template nothing.
        effort: How much; None gives the template nothing.

    Raises:
        CapabilityError: See ``refuse_degrees``.
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
        refuse_degrees(effort)
    return options


def tells_to_think(options: Mapping[str, object]) -> bool:
    """Whether what a template is given says whether the model is to reason."""
    return not options.keys().isdisjoint(SWITCHES)


def refuse_degrees(effort: Effort | None) -> None:
    """Refuse any degree but the usual, for a model that cannot be told of it.

    Raises:
        CapabilityError: Less or more reasoning is wanted.
    """
    if effort not in {None, Effort.MEDIUM}:
        raise CapabilityError.in_field(
            EFFORT, "this model knows no degrees of reasoning", hint="Leave it out, or choose a model that knows them."
        )


@functools.lru_cache(maxsize=16)
def _variables(text: str) -> frozenset[str]:
    """Return the variables that a template reads without setting them first; none of one that is no template."""
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.meta import find_undeclared_variables
    from jinja2.parser import Parser

    class Generation(Extension):
        """The tag that transformers adds, for marking what the assistant said; it changes no text."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Return what stands in the block."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    # Only parsed, never rendered: rendering is transformers' business, in its sandbox.
    environment = Environment(extensions=["jinja2.ext.loopcontrols", Generation])
    try:
        return frozenset(find_undeclared_variables(environment.parse(text)))
    except TemplateSyntaxError:
        return frozenset()
