"""Translates conversations of this API into messages of a chat request, and tracks the fields that they come from.

Nothing may come between a call and its result: tool results precede everything else in their message, and system
messages are moved behind them.
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
"""Begins a line that a client puts before its system prompt; it is removed, because it differs between conversations,
which would keep them from sharing cached prompts."""

UNWATCHED = "[A video was left out here: this model takes no video.]"
UNSEEN = "[An image was left out here: this model takes no images.]"
FOLLOWING = "[The image is in the next message.]"

_OWN_ID = re.compile(r"[0-9a-f]{24}")
_SHORT_ID = re.compile(r"[0-9A-Za-z]{9}")
_PREFIX = "toolu_"


def shown_call_id(identity: str) -> str:
    """Return the id of a call in the form of this API."""
    return identity if identity.startswith(_PREFIX) else _PREFIX + identity.removeprefix("call_")


def own_call_id(identity: str) -> str:
    """Return the engine's id of a call from that of ``shown_call_id``; ids of other servers are returned unchanged."""
    rest = identity.removeprefix(_PREFIX)
    if rest == identity:
        return identity
    return f"call_{rest}" if _OWN_ID.fullmatch(rest) else rest if _SHORT_ID.fullmatch(rest) else identity


_LocatedPart = tuple[str, Part]
"""The path of a field, and the part of a chat message that it becomes."""


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
        """Names of the called tools, by call id."""
        self._deferred: list[tuple[str, list[_LocatedPart]]] = []
        """System messages that were sent between a call and its results."""

    @property
    def chunk(self) -> int | None:
        """Number of images in the last message, so that one prompt holds all of them; None for the default."""
        content = self.messages[-1].content
        count = sum(isinstance(part, ImagePart) for part in content) if isinstance(content, list) else 0
        return count if count > 1 else None

    def add_system(self, content: SystemContent) -> None:
        """Add the system prompt."""
        self._append_system("system", self._system_parts(content, "system"))

    def add_all(self, messages: Sequence[AnthropicMessage]) -> None:
        """Add the messages."""
        last_user = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            if message.role == "assistant":
                self._append_deferred()
                self._add_assistant(message, path)
            elif message.role == "user":
                self._add_user(message, path)
            elif message.clear_at != "next_user_message" or index > last_user:
                self._add_system_message(message, path)
        self._append_deferred()

    def _add_system_message(self, message: AnthropicMessage, path: str) -> None:
        parts = self._system_parts(message.content, f"{path}.content")
        if self.messages and self.messages[-1].tool_calls:
            self._deferred.append((path, parts))
        else:
            self._append_system(path, parts)

    def _append_deferred(self) -> None:
        """Append the deferred system messages."""
        deferred, self._deferred = self._deferred, []
        for path, parts in deferred:
            self._append_system(path, parts)

    def _append_system(self, path: str, parts: list[_LocatedPart]) -> None:
        if parts:
            self._append_parts(path, "system", parts)

    def _system_parts(self, content: SystemContent | Content, path: str) -> list[_LocatedPart]:
        parts: list[_LocatedPart] = []
        texts = [(path, content)] if isinstance(content, str) else self._texts(content or [], path)
        for text_path, text in texts:
            if text.startswith(BILLING):
                text = text.partition("\n")[2]
                self.ignored.append(f"{text_path.partition('[')[0]}[].{BILLING.removesuffix(':')}")
            if text:
                parts.append((text_path, TextPart(text=text)))
        return parts

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
            if isinstance(block, TextBlock):
                text += block.text
            elif isinstance(block, CompactionBlock):
                text += block.content or ""
            elif isinstance(block, ThinkingBlock):
                reasoning += block.thinking
            elif isinstance(block, ToolUseBlock):
                block_path, call_path = f"{path}.content[{index}]", f"tool_calls[{len(calls)}]"
                names |= {call_path: block_path, f"{call_path}.function": block_path}
                names[f"{call_path}.function.arguments"] = f"{block_path}.input"
                calls.append(self._call(block))
            else:
                self._skip(block)
        assistant = chat.MessageParam(
            role="assistant", content=text, tool_calls=calls or None, reasoning_content=reasoning or None
        )
        self._append(path, assistant, names)

    def _call(self, block: ToolUseBlock) -> chat.ToolCallParam:
        identity = own_call_id(block.id)
        self._tools[identity] = block.name
        return chat.ToolCallParam(
            id=identity, function=chat.FunctionCall(name=block.name, arguments=_arguments(block.input))
        )

    def _add_user(self, message: AnthropicMessage, path: str) -> None:
        """Add the tool results, then the deferred system messages, then the other blocks."""
        blocks = message.content if isinstance(message.content, list) else []
        parts: list[_LocatedPart] = []
        for index, block in enumerate(blocks):
            if isinstance(block, ToolResultBlock):
                parts += self._add_result(block, f"{path}.content[{index}]")
        self._append_deferred()
        for index, block in enumerate(blocks):
            if not isinstance(block, ToolResultBlock):
                parts += self._parts(block, f"{path}.content[{index}]")
        if isinstance(message.content, str):
            self._append(path, chat.MessageParam(role="user", content=message.content))
        elif parts or not any(isinstance(block, ToolResultBlock) for block in blocks):
            for group in _groups(parts):
                self._append_parts(path, "user", group)

    def _add_result(self, block: ToolResultBlock, path: str) -> list[_LocatedPart]:
        """Add the text of a result; return its images, for the user message that follows."""
        identity = own_call_id(block.tool_use_id)
        content = block.content
        texts = [content] if isinstance(content, str) else []
        images: list[_LocatedPart] = []
        for index, result_part in enumerate(content if isinstance(content, list) else ()):
            for part_path, part in self._parts(result_part, f"{path}.content[{index}]"):
                if isinstance(part, TextPart):
                    texts.append(part.text)
                else:
                    images.append((part_path, part))
        text = chat.PART_SEPARATOR.join(texts) or (FOLLOWING if images else "")
        if block.is_error and "error" not in text[:_ERROR_PREFIX].lower():
            text = f"Error: {text}"
        result = chat.MessageParam(role="tool", content=text, tool_call_id=identity)
        self._append(path, result, {"tool_call_id": f"{path}.tool_use_id"})
        if not images:
            return []
        title = f"[Image in the result of {self._tools.get(identity, identity)}:]"
        return [(path, TextPart(text=title)), *images]

    def _parts(self, block: object, path: str) -> Iterator[_LocatedPart]:
        """Yield the parts of a chat message for a block of the user; none for a skipped block."""
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
            texts = [f"[Search result: {block.title} ({block.source})]", *(part.text for part in block.content)]
            yield path, TextPart(text=chat.PART_SEPARATOR.join(texts))
        elif isinstance(block, ToolReferenceBlock):
            yield path, TextPart(text=f"[The tool {block.tool_name} can be called.]")
        else:
            self._skip(block)

    def _document(self, block: DocumentBlock, path: str) -> Iterator[_LocatedPart]:
        source = block.source
        title = f"[Document: {block.title}]" if block.title else "[Document]"
        content = source.data if isinstance(source, TextSource) else source.content
        texts = [title, *([block.context] if block.context else []), *([content] if isinstance(content, str) else [])]
        yield path, TextPart(text=chat.PART_SEPARATOR.join(texts))
        for index, part in enumerate(content if isinstance(content, list) else ()):
            yield from self._parts(part, f"{path}.source.content[{index}]")

    def _left_out(self, block: ImageBlock | VideoBlock, path: str) -> TextPart:
        field = block.located[1].partition(".")[0]
        self.ignored.append(re.sub(r"\[\d+\]", "[]", f"{path}.{field}"))
        return TextPart(text=UNSEEN if isinstance(block, ImageBlock) else UNWATCHED)

    def _append_parts(self, path: str, role: str, parts: Sequence[_LocatedPart]) -> None:
        names = {f"content[{index}]": field for index, (field, _) in enumerate(parts)}
        self._append(path, chat.MessageParam(role=role, content=[part for _, part in parts]), names)

    def _append(self, path: str, message: chat.MessageParam, names: Mapping[str, str] = MappingProxyType({})) -> None:
        """Append a message, and the names of its fields."""
        chat_path = f"messages[{len(self.messages)}]"
        self.names |= {chat_path: path, **{f"{chat_path}.{name}": field for name, field in names.items()}}
        self.messages.append(message)


_ERROR_PREFIX = 64
"""Characters at the start of a result that are searched for the word error."""


def _groups(parts: Sequence[_LocatedPart]) -> Iterator[list[_LocatedPart]]:
    """Split parts into messages of at most ``MAX_CHUNK`` images, the most in one prompt."""
    group: list[_LocatedPart] = []
    images = 0
    for path, part in parts:
        if isinstance(part, ImagePart):
            if images == MAX_CHUNK:
                yield group
                group, images = [], 0
            images += 1
        group.append((path, part))
    yield group


def _arguments(value: object) -> str:
    """Return the arguments of an earlier call as JSON text of an object; invalid JSON text is returned unchanged."""
    if value is None:
        return "{}"
    if isinstance(value, str):
        try:
            if isinstance(json.loads(value), dict):
                return value
        except (ValueError, RecursionError):
            return value
        return f'{{"input": {value}}}'
    return json.dumps(value if isinstance(value, dict) else {"input": value}, ensure_ascii=False)
