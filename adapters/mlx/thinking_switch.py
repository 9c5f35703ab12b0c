"""How a chat template is told whether the model is to reason: through variables that differ from model to model.

Owns which names there are and which of them a template reads. What becomes of a model that cannot be told stands in
``preparation``.
"""

import functools
from collections.abc import Mapping

SWITCHES = ("enable_thinking", "thinking")
"""What templates call it: Qwen, GLM, SmolLM and most others the first, DeepSeek and Granite the second."""


def thinking_options(template: object, thinking: bool | None) -> dict[str, object]:
    """Return what a template is to be given, by the names that it reads; empty when it reads none.

    Args:
        template: Its text, or several by their names, as tokenizers hold them; anything else reads nothing.
        thinking: What is wanted; None gives the template nothing.
    """
    if thinking is None:
        return {}
    texts = template.values() if isinstance(template, Mapping) else (template,)
    read = {name for text in texts if isinstance(text, str) for name in _variables(text)}
    return {name: thinking for name in SWITCHES if name in read}


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
