"""A call that was forced: the grammar made the answer's text the call, and here it is shown as one."""

import json
import uuid
from collections.abc import Sequence

from mlxk.domain.call_text import CallText
from mlxk.domain.conversation import ToolCall
from mlxk.domain.generation import Finished, GenerationEvent, TextDelta, ToolCallDelta


class CallWriter:
    """Rewrites the events of one answer.

    With a name, the text is the arguments and streams as it comes. Without one, the text is an object that holds name
    and arguments, and is shown from where the arguments begin; when it was cut before, it stays text.

    Args:
        name: The function; None when the answer chooses it.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._id = f"call_{uuid.uuid4().hex[:24]}"
        self._begun = False
        self._written = CallText()
        self._text: list[str] = []

    def rewrite(self, event: GenerationEvent) -> Sequence[GenerationEvent]:
        """Return the events to show in place of one."""
        if isinstance(event, TextDelta):
            return self._arguments(event.text)
        if isinstance(event, Finished) and self._name is None and not self._begun:
            return (*self._chosen(), event)
        return (event,)

    def _arguments(self, text: str) -> Sequence[GenerationEvent]:
        name = self._name
        if name is None:
            self._text.append(text)
            text, name = self._written.feed(text), self._written.name
        if name is None or not text:
            return ()
        opening = () if self._begun else (ToolCallDelta(0, ToolCall(name, "", self._id)),)
        self._begun = True
        return (*opening, ToolCallDelta(0, ToolCall("", text)))

    def _chosen(self) -> Sequence[GenerationEvent]:
        text = "".join(self._text)
        try:
            call = json.loads(text)
        except ValueError:
            call = None
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            return (TextDelta(text),) if text else ()
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        return (ToolCallDelta(0, ToolCall(call["name"], arguments, self._id)),)
