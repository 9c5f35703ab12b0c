"""The content blocks of messages: text, media, reasoning, tool calls and results, and skipped blocks."""

from typing import Annotated, Any, ClassVar

import attrs

from mlxk.entrypoints.http.openai.chat import parts as chat
from mlxk.entrypoints.http.requests.validation import Range, StrictConverter


@attrs.frozen(kw_only=True)
class TextBlock:
    """Text."""

    text: str
    type: str = "text"


@attrs.frozen(kw_only=True)
class ImageBlock(chat.ImagePart):
    """An image, in the form of this API or another."""

    fields: ClassVar[tuple[str, ...]] = ("source", *chat.ImagePart.fields)


@attrs.frozen(kw_only=True)
class VideoBlock(chat.VideoPart):
    """A clip, in this API's form of an image, since it has none for clips, or in the form of another API."""

    fields: ClassVar[tuple[str, ...]] = ("source", *chat.VideoPart.fields)


@attrs.frozen(kw_only=True)
class TextSource:
    """A document of plain text."""

    data: str
    media_type: str = "text/plain"
    type: str = "text"


DocumentPart = TextBlock | ImageBlock
DocumentContent = str | list[DocumentPart]


@attrs.frozen(kw_only=True)
class ContentSource:
    """A document of blocks."""

    content: DocumentContent
    type: str = "content"


DocumentSource = TextSource | ContentSource


@attrs.frozen(kw_only=True)
class DocumentBlock:
    """A document, converted to text."""

    source: DocumentSource
    title: str | None = None
    context: str | None = None
    type: str = "document"


@attrs.frozen(kw_only=True)
class SearchResultBlock:
    """A search result of the client, converted to text."""

    content: list[TextBlock]
    source: str
    title: str
    type: str = "search_result"


@attrs.frozen(kw_only=True)
class ThinkingBlock:
    """Reasoning of the assistant, for the chat template."""

    thinking: str
    signature: str | None = None
    """Not checked."""
    type: str = "thinking"


@attrs.frozen(kw_only=True)
class CompactionBlock:
    """A summary in place of earlier turns."""

    content: str | None = None
    type: str = "compaction"


@attrs.frozen(kw_only=True)
class ToolUseBlock:
    """A call of the assistant."""

    id: str
    name: Annotated[str, Range(1, 256)]
    input: Any = None
    """Arguments: an object, or any other value that a client sends for a broken call."""
    type: str = "tool_use"


@attrs.frozen(kw_only=True)
class ToolReferenceBlock:
    """The name of a tool found by a search of the client."""

    tool_name: str
    type: str = "tool_reference"


@attrs.frozen(kw_only=True)
class SkippedBlock:
    """A block that is left out: run by a server, or readable only by its maker."""

    type: str
    id: Any = None
    """Declared, like the other fields, so that the block is reported as ignored as a whole."""
    name: Any = None
    input: Any = None
    data: Any = None
    content: Any = None
    tool_use_id: Any = None
    caller: Any = None
    tool: Any = None


ResultPart = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock | SkippedBlock
ResultContent = str | list[ResultPart] | None


@attrs.frozen(kw_only=True)
class ToolResultBlock:
    """The result of a call."""

    tool_use_id: str
    content: ResultContent = None
    is_error: bool | None = None
    type: str = "tool_result"


Block = (
    TextBlock
    | ImageBlock
    | chat.AudioPart
    | chat.FilePart
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | CompactionBlock
    | ToolUseBlock
    | ToolResultBlock
    | VideoBlock
    | SkippedBlock
)
Content = str | list[Block] | None
SystemContent = str | list[TextBlock] | None

BLOCKS: dict[str, type[Any]] = {
    "text": TextBlock,
    "image": ImageBlock,
    "video": VideoBlock,
    "document": DocumentBlock,
    "search_result": SearchResultBlock,
    "thinking": ThinkingBlock,
    "compaction": CompactionBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}
"""Supported blocks by ``type``."""

_FOREIGN_BLOCKS: dict[str, type[Any]] = {
    "input_text": TextBlock,
    **dict.fromkeys(chat.IMAGE_TYPES, ImageBlock),
    **dict.fromkeys(chat.AUDIO_TYPES, chat.AudioPart),
    **dict.fromkeys(chat.VIDEO_TYPES, VideoBlock),
    **dict.fromkeys(chat.FILE_TYPES, chat.FilePart),
}
"""Blocks of other APIs by ``type``."""

_RESULT_PARTS: dict[str, type[Any]] = {
    **{name: BLOCKS[name] for name in ("text", "image", "document", "search_result")},
    "tool_reference": ToolReferenceBlock,
}

SKIPPED = frozenset(
    {
        "browser_state",
        "fallback",
        "mcp_tool_listing",
        "mcp_tool_use",
        "redacted_thinking",
        "server_tool_use",
        "tool_addition",
        "tool_removal",
    }
)
"""Types of blocks that are left out, in addition to those that end in ``SERVER_RESULT``."""

SERVER_RESULT = "_tool_result"
"""Ends the types of results of server tools."""


def register_blocks(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(Block, _block_kind)
    chat.register_references(converter)
    converter.union(ResultPart, _result_kind)
    converter.union(DocumentPart, lambda value: _kind_of(value, {"text": TextBlock, "image": ImageBlock}))
    converter.union(DocumentSource, _document_source)
    converter.union(Content, lambda value: _text_or(list[Block], value))
    converter.union(SystemContent, lambda value: _text_or(list[TextBlock], value))
    converter.union(ResultContent, lambda value: _text_or(list[ResultPart], value))
    converter.union(DocumentContent, lambda value: _text_or(list[DocumentPart], value))


def _text_or(kind: object, value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return kind
    raise TypeError("must be a string or an array of blocks")


def _type_of(value: object) -> str:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    return kind if isinstance(kind, str) else ""


def _kind_of(value: object, kinds: dict[str, type[Any]]) -> object:
    kind = _type_of(value)
    if kind not in kinds:
        raise ValueError(f"must have a type of {', '.join(kinds)}")
    return kinds[kind]


def _block_kind(value: object) -> object:
    kind = _type_of(value)
    if kind in SKIPPED or kind.endswith(SERVER_RESULT):
        return SkippedBlock
    if kind == "container_upload":
        raise ValueError("files of a container are not supported: there is none; send the content itself")
    return _FOREIGN_BLOCKS[kind] if kind in _FOREIGN_BLOCKS else _kind_of(value, BLOCKS)


def _result_kind(value: object) -> object:
    return SkippedBlock if _type_of(value) in SKIPPED else _kind_of(value, _RESULT_PARTS)


def _document_source(value: object) -> object:
    kind = _type_of(value)
    if kind == "file":
        raise ValueError(chat.BY_ID)
    if kind in {"base64", "url"}:
        raise ValueError("PDF and addresses are not supported; send the text, or the pages as images")
    return _kind_of(value, {"text": TextSource, "content": ContentSource})
