"""The messages of a conversation, built of the items of a request, with the fields that they come from.

What the assistant said between two other turns is one message: its reasoning, its text and its calls.
"""

from collections.abc import Callable, Sequence

import attrs

from mlxk.entrypoints.http.openai.chat.messages import (
    FunctionCall,
    ImagePart,
    MessageParam,
    Part,
    RefusalPart,
    TextPart,
    ToolCallParam,
)

IMAGES_FOLLOW = "See the image in the next message."
"""The text of a tool's result that is an image: chat templates know images in user messages only."""


@attrs.frozen
class LocatedPart:
    """A content part and the fields that it comes from."""

    part: Part
    names: dict[str, str]
    """Fields of the request by paths below the part; the empty path is the part itself."""


class ConversationBuilder:
    """Collects the turns of a conversation.

    Args:
        name_of: Returns the name by which the model knows a tool, from its name and namespace.
    """

    def __init__(self, name_of: Callable[[str, str | None], str]) -> None:
        self.name_of = name_of
        self.messages: list[MessageParam] = []
        self.names: dict[str, str] = {}
        """Fields of the request by paths of the messages."""
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCallParam] = []
        self._path = ""
        """Field of the assistant's turn that is being collected."""
        self._images: list[tuple[str, LocatedPart]] = []

    def message(self, role: str, content: str | Sequence[LocatedPart], path: str) -> None:
        """Add a message of the user or the developer."""
        self._end_turn()
        self._end_results()
        self._add(role, content, path)

    def text(self, texts: Sequence[str], path: str) -> None:
        """Add what the assistant said."""
        if self._texts and not self._calls:
            self._end_turn()
        self._begin_turn(path)
        self._texts += texts or [""]

    def reasoning(self, text: str, path: str) -> None:
        """Add what the assistant thought before what follows."""
        if self._texts and not self._calls:
            self._end_turn()
        if text:
            self._begin_turn(path)
            self._reasoning.append(text)

    def call(self, name: str, arguments: str, call_id: str, path: str) -> None:
        """Add a call of a tool, by the name that the model knows."""
        self._begin_turn(path)
        place = f"messages[{len(self.messages)}].tool_calls[{len(self._calls)}]"
        self.names |= {place: path, f"{place}.function": path}
        self._calls.append(ToolCallParam(id=call_id, function=FunctionCall(name=name, arguments=arguments)))

    def result(self, call_id: str, content: str | Sequence[LocatedPart], path: str) -> None:
        """Add the result of a call; its images follow the results of all calls of the turn."""
        self._end_turn()
        parts = () if isinstance(content, str) else content
        text = "\n".join(texts_of(content))
        images = [(path, each) for each in parts if isinstance(each.part, ImagePart)]
        self.names[f"messages[{len(self.messages)}]"] = path
        shown = text or (IMAGES_FOLLOW if images else "")
        self.messages.append(MessageParam(role="tool", content=shown, tool_call_id=call_id))
        self._images += images

    def end(self) -> None:
        """Add what is not added yet."""
        self._end_turn()
        self._end_results()

    def _begin_turn(self, path: str) -> None:
        self._end_results()
        if not (self._reasoning or self._texts or self._calls):
            self._path = path

    def _end_turn(self) -> None:
        if not (self._reasoning or self._texts or self._calls):
            return
        self.names[f"messages[{len(self.messages)}]"] = self._path
        message = MessageParam(
            role="assistant",
            content="\n".join(self._texts) if self._texts else None,
            tool_calls=self._calls or None,
            reasoning_content="\n".join(self._reasoning) or None,
        )
        self.messages.append(message)
        self._reasoning, self._texts, self._calls = [], [], []

    def _end_results(self) -> None:
        if self._images:
            path, images = self._images[0][0], [part for _, part in self._images]
            self._images = []
            self._add("user", images, path)

    def _add(self, role: str, content: str | Sequence[LocatedPart], path: str) -> None:
        place = f"messages[{len(self.messages)}]"
        self.names[place] = path
        if isinstance(content, str):
            self.messages.append(MessageParam(role=role, content=content))
            return
        for index, each in enumerate(content):
            for below, field in each.names.items():
                self.names[f"{place}.content[{index}]{below}"] = field
        self.messages.append(MessageParam(role=role, content=[each.part for each in content]))


def texts_of(content: str | Sequence[LocatedPart]) -> list[str]:
    """Return the texts and refusals of a message's content."""
    if isinstance(content, str):
        return [content]
    found = (
        each.part.text if isinstance(each.part, TextPart) else each.part.refusal
        for each in content
        if isinstance(each.part, TextPart | RefusalPart)
    )
    return list(found)
