"""Conversations of this API as messages of a chat request, with the fields that they come from.

Results of tools come before everything else of their message, and system messages after them, since nothing may stand
between a call and its result.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from mlxk.domain.generation.media import MAX_CHUNK
from mlxk.entrypoints.http.anthropic.blocks import (
    CompactionBlock,
    Content,
    DocumentBlock,
    ImageBlock,
    SearchResultBlock,
    SkippedBlock,
    SystemContent,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    VideoBlock,
)
from mlxk.entrypoints.http.anthropic.request import AnthropicMessage
from mlxk.entrypoints.http.openai.chat import messages as chat
from mlxk.entrypoints.http.openai.chat.parts import AudioPart, FilePart, ImagePart, Part, TextPart

BILLING = "x-anthropic-billing-header:"
"""Begins a line that a client puts before its system prompt; it differs between conversations, so it would keep the
prompt cache from being shared by them, and says nothing to a model."""

UNWATCHED = "[A video was left out here: this model takes no video.]"
UNSEEN = "[An image was left out here: this model takes no images.]"
FOLLOWING = "[The image is in the next message.]"

_OWN_ID = re.compile(r"[0-9a-f]{24}")
_SHORT_ID = re.compile(r"[0-9A-Za-z]{9}")
_PREFIX = "toolu_"


def shown_call_id(identity: str) -> str:
    """Return the id of a call as this API has it."""
    return identity if identity.startswith(_PREFIX) else _PREFIX + identity.removeprefix("call_")


def own_call_id(identity: str) -> str:
    """Return the id of a call that was shown, as the model has it; ids of others stay as they are."""
    rest = identity.removeprefix(_PREFIX)
    if rest == identity:
        return identity
    return f"call_{rest}" if _OWN_ID.fullmatch(rest) else rest if _SHORT_ID.fullmatch(rest) else identity


_Placed = tuple[str, Part]
"""A part of a chat message, and the field that it comes from."""


class ChatConversation:
    """Collects the messages of a chat request.

    Args:
        takes_images: See ``translate``.
    """

    def __init__(self, *, takes_images: bool) -> None:
        self.messages: list[chat.MessageParam] = []
        self.names: dict[str, str] = {}
        self.ignored: list[str] = []
        self._takes_images = takes_images
        self._tools: dict[str, str] = {}
        """Names of the tools called, by the ids of the calls."""
        self._held: list[tuple[str, list[_Placed]]] = []
        """System messages that stand between a call and its results."""

    @property
    def chunk(self) -> int | None:
        """How many images the last message has, to be shown together; None for the usual."""
        content = self.messages[-1].content
        count = sum(isinstance(part, ImagePart) for part in content if isinstance(content, list)) if content else 0
        return count if count > 1 else None

    def add_system(self, content: SystemContent) -> None:
        """Add the system prompt."""
        self._append_system("system", self._system_parts(content, "system"))

    def add_all(self, messages: Sequence[AnthropicMessage]) -> None:
        """Add the messages."""
        last_user = max((index for index, each in enumerate(messages) if each.role == "user"), default=0)
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            if message.role == "assistant":
                self._release()
                self._add_assistant(message, path)
            elif message.role == "user":
                self._add_user(message, path)
            elif message.clear_at != "next_user_message" or index > last_user:
                self._add_late_system(message, path)
        self._release()

    def _add_late_system(self, message: AnthropicMessage, path: str) -> None:
        parts = self._system_parts(message.content, f"{path}.content")
        if self.messages and self.messages[-1].tool_calls:
            self._held.append((path, parts))
        else:
            self._append_system(path, parts)

    def _release(self) -> None:
        """Add the system messages that wait for results."""
        held, self._held = self._held, []
        for path, parts in held:
            self._append_system(path, parts)

    def _append_system(self, path: str, parts: list[_Placed]) -> None:
        if parts:
            self._append_parts(path, "system", parts)

    def _system_parts(self, content: SystemContent | Content, path: str) -> list[_Placed]:
        found: list[_Placed] = []
        texts = [(path, content)] if isinstance(content, str) else self._texts(content or [], path)
        for place, text in texts:
            if text.startswith(BILLING):
                text = text.partition("\n")[2]
                self.ignored.append(f"{place.partition('[')[0]}[].{BILLING.removesuffix(':')}")
            if text:
                found.append((place, TextPart(text=text)))
        return found

    def _texts(self, blocks: Sequence[object], path: str) -> Iterator[tuple[str, str]]:
        for index, block in enumerate(blocks):
            if isinstance(block, TextBlock):
                yield f"{path}[{index}]", block.text
            else:
                self._skip(block)

    def _skip(self, block: object) -> None:
        if isinstance(block, SkippedBlock):
            self.ignored.append(f"messages[].content[].{block.type}")

    def _add_assistant(self, message: AnthropicMessage, path: str) -> None:
        if not isinstance(message.content, list):
            self._append(path, chat.MessageParam(role="assistant", content=message.content or ""))
            return
        text, reasoning = "", ""
        calls: list[chat.ToolCallParam] = []
        names: dict[str, str] = {}
        for index, block in enumerate(message.content):
            place = f"{path}.content[{index}]"
            if isinstance(block, TextBlock):
                text += block.text
            elif isinstance(block, CompactionBlock):
                text += block.content or ""
            elif isinstance(block, ThinkingBlock):
                reasoning += block.thinking
            elif isinstance(block, ToolUseBlock):
                names[f"tool_calls[{len(calls)}]"] = place
                names[f"tool_calls[{len(calls)}].function"] = place
                names[f"tool_calls[{len(calls)}].function.arguments"] = f"{place}.input"
                calls.append(self._call(block))
            else:
                self._skip(block)
        said = chat.MessageParam(
            role="assistant", content=text, tool_calls=calls or None, reasoning_content=reasoning or None
        )
        self._append(path, said, names)

    def _call(self, block: ToolUseBlock) -> chat.ToolCallParam:
        identity = own_call_id(block.id)
        self._tools[identity] = block.name
        return chat.ToolCallParam(
            id=identity, function=chat.FunctionCall(name=block.name, arguments=_arguments(block.input))
        )

    def _add_user(self, message: AnthropicMessage, path: str) -> None:
        """Add the results first, since nothing may stand between a call and its result, then the rest."""
        blocks = message.content if isinstance(message.content, list) else []
        parts: list[_Placed] = []
        for index, block in enumerate(blocks):
            if isinstance(block, ToolResultBlock):
                parts += self._add_result(block, f"{path}.content[{index}]")
        self._release()
        for index, block in enumerate(blocks):
            if not isinstance(block, ToolResultBlock):
                parts += self._parts(block, f"{path}.content[{index}]")
        if isinstance(message.content, str):
            self._append(path, chat.MessageParam(role="user", content=message.content))
        elif parts or not any(isinstance(block, ToolResultBlock) for block in blocks):
            for group in _groups(parts):
                self._append_parts(path, "user", group)

    def _add_result(self, block: ToolResultBlock, path: str) -> list[_Placed]:
        """Add the text of a result; return its images for the user's message that follows."""
        identity = own_call_id(block.tool_use_id)
        content = block.content
        texts = [content] if isinstance(content, str) else []
        images: list[_Placed] = []
        for index, each in enumerate(content if isinstance(content, list) else ()):
            for place, part in self._parts(each, f"{path}.content[{index}]"):
                if isinstance(part, TextPart):
                    texts.append(part.text)
                else:
                    images.append((place, part))
        text = chat.PART_SEPARATOR.join(texts) or (FOLLOWING if images else "")
        if block.is_error and "error" not in text[:_ERROR_BEGINS].lower():
            text = f"Error: {text}"
        result = chat.MessageParam(role="tool", content=text, tool_call_id=identity)
        self._append(path, result, {"tool_call_id": f"{path}.tool_use_id"})
        if not images:
            return []
        title = f"[Image in the result of {self._tools.get(identity, identity)}:]"
        return [(path, TextPart(text=title)), *images]

    def _parts(self, block: object, path: str) -> Iterator[_Placed]:
        """Yield what a block of the user becomes."""
        if isinstance(block, TextBlock):
            yield path, TextPart(text=block.text)
        elif isinstance(block, ImageBlock | VideoBlock):
            yield path, block if self._takes_images else self._left_out(block, path)
        elif isinstance(block, AudioPart):
            yield path, block
        elif isinstance(block, FilePart):
            yield path, TextPart(text=block.text)
        elif isinstance(block, DocumentBlock):
            yield from self._document(block, path)
        elif isinstance(block, SearchResultBlock):
            texts = [f"[Search result: {block.title} ({block.source})]", *(each.text for each in block.content)]
            yield path, TextPart(text=chat.PART_SEPARATOR.join(texts))
        elif isinstance(block, ToolReferenceBlock):
            yield path, TextPart(text=f"[The tool {block.tool_name} can be called.]")
        else:
            self._skip(block)

    def _document(self, block: DocumentBlock, path: str) -> Iterator[_Placed]:
        source = block.source
        title = f"[Document: {block.title}]" if block.title else "[Document]"
        content = source.data if isinstance(source, TextSource) else source.content
        texts = [title, *([block.context] if block.context else []), *([content] if isinstance(content, str) else [])]
        yield path, TextPart(text=chat.PART_SEPARATOR.join(texts))
        for index, each in enumerate(content if isinstance(content, list) else ()):
            yield from self._parts(each, f"{path}.source.content[{index}]")

    def _left_out(self, block: ImageBlock | VideoBlock, path: str) -> TextPart:
        field = block.located[1].partition(".")[0]
        self.ignored.append(re.sub(r"\[\d+\]", "[]", f"{path}.{field}"))
        return TextPart(text=UNSEEN if isinstance(block, ImageBlock) else UNWATCHED)

    def _append_parts(self, path: str, role: str, placed: Sequence[_Placed]) -> None:
        names = {f"content[{index}]": field for index, (field, _) in enumerate(placed)}
        self._append(path, chat.MessageParam(role=role, content=[part for _, part in placed]), names)

    def _append(self, path: str, message: chat.MessageParam, names: Mapping[str, str] = MappingProxyType({})) -> None:
        """Append a message, and the names of its fields."""
        place = f"messages[{len(self.messages)}]"
        self.names |= {place: path, **{f"{place}.{name}": field for name, field in names.items()}}
        self.messages.append(message)


_ERROR_BEGINS = 64
"""Characters of a result in which it may say itself that it is an error."""


def _groups(parts: Sequence[_Placed]) -> Iterator[list[_Placed]]:
    """Yield parts in messages with no more images than a model gets of one message at a time."""
    group: list[_Placed] = []
    images = 0
    for each in parts:
        if isinstance(each[1], ImagePart):
            if images == MAX_CHUNK:
                yield group
                group, images = [], 0
            images += 1
        group.append(each)
    yield group


def _arguments(given: object) -> str:
    """Return the arguments of an earlier call as JSON text: those of a broken call as they are, or in an object."""
    if isinstance(given, str):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            return given
        return given if isinstance(parsed, dict) else json.dumps({"input": parsed}, ensure_ascii=False)
    if given is None:
        return "{}"
    return json.dumps(given if isinstance(given, dict) else {"input": given}, ensure_ascii=False)
