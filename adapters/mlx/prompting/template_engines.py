"""Who renders the conversations of a model: the sandbox with its template, or a library with code of its own."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jinja2 import TemplateError

from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, TemplateFault, TemplateSandbox
from mlxk.adapters.mlx.prompting.wire_messages import WirePrompt
from mlxk.domain.generation.request import nobody_left

LIBRARY_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""Raised by libraries' renderers for unexpected values."""


class TemplateEngine(Protocol):
    """Renders the conversations of one model."""

    @property
    def template(self) -> object:
        """The text of the template, or its texts by name; None where a library has code instead."""

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateFault: It cannot be rendered.
            InterruptedRunError: The client has gone.
        """


class SandboxedTemplate(TemplateEngine):
    """The template of a tokenizer or processor, rendered in the sandbox.

    Args:
        holder: Has the template: ``chat_template``.
        tokenizer: Has the special tokens, which templates may write.
    """

    def __init__(self, holder: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers has no types to name
        self._holder = holder
        self._tokens = {
            name: [str(each) for each in token] if isinstance(token, (list, tuple)) else str(token)
            for name, token in tokenizer.special_tokens_map.items()
        }
        self._sandbox = TemplateSandbox()

    @property
    def template(self) -> object:
        return self._holder.chat_template

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        nothing: list[object] | None = [] if prompt.has_empty_lists else None
        given = {"messages": prompt.messages, "tools": prompt.tools or nothing, "documents": nothing}
        text = self._chosen(has_tools=bool(prompt.tools))
        return self._sandbox.render(text, {**self._tokens, **given, **variables}, is_abandoned)

    def _chosen(self, *, has_tools: bool) -> str:
        """Return the template for a conversation with or without tools, as transformers chooses it."""
        known = self.template
        if not isinstance(known, Mapping):
            return str(known)
        name = "tool_use" if has_tools and "tool_use" in known else "default"
        if name not in known:
            raise TemplateFault(FaultKind.INVALID, "there are several, and none is the default")
        return str(known[name])


class LibraryTemplate(TemplateEngine):
    """A library's own code in place of a template.

    Args:
        holder: Has ``apply_chat_template``.
    """

    def __init__(self, holder: Any) -> None:  # noqa: ANN401
        self._holder = holder

    @property
    def template(self) -> object:
        return getattr(self._holder, "chat_template", None)

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        if not prompt.messages:
            raise TemplateFault(FaultKind.FAILED, "no messages")
        options = {**variables, "tools": list(prompt.tools)} if prompt.tools else dict(variables)
        try:
            text = str(self._holder.apply_chat_template(list(prompt.messages), tokenize=False, **options))
            text.encode()
        except TemplateError as error:
            kind = FaultKind.REFUSED if type(error) is TemplateError else FaultKind.FAILED
            raise TemplateFault(kind, str(error)) from error
        except LIBRARY_ERRORS as error:
            raise TemplateFault(FaultKind.FAILED, type(error).__name__) from error
        return text
