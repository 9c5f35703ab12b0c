"""A call that was forced: the grammar made the answer's text the call, and here it is shown as one."""

import json
import uuid
from collections.abc import Sequence

from mlxk.domain.formats.tool_call_stream import CallText
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import Finished, GenerationEvent, TextDelta, ToolCallDelta


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
        self._written = CallText(self._read)
        self._text: list[str] = []

    def rewrite(self, event: GenerationEvent) -> Sequence[GenerationEvent]:
        """Return the events to show in place of one."""
        if isinstance(event, TextDelta):
            return self._arguments(event.text)
        if isinstance(event, Finished) and self._name is None and not self._begun:
            return (*self._chosen(), event)
        return (event,)

    def _arguments(self, text: str) -> Sequence[GenerationEvent]:
        if self._name is None:
            self._text.append(text)
            calls = self._written.feed(text)
        else:
            opening = [] if self._begun else [ToolCall(self._name, "", self._id)]
            calls = [*opening, ToolCall("", text)] if text else []
        self._begun = self._begun or bool(calls)
        return [ToolCallDelta(0, call) for call in calls]

    def _chosen(self) -> Sequence[GenerationEvent]:
        text = "".join(self._text)
        calls = self._read(text)
        if calls or not text:
            return [ToolCallDelta(0, call) for call in calls]
        return (TextDelta(text),)

    def _read(self, text: str) -> tuple[ToolCall, ...]:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return ()
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            return ()
        return (ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False), self._id),)
