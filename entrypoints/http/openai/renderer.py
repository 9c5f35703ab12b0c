"""The renderer of chat completions (messages with content, reasoning and tool calls), and its base for both APIs.

A stream sends chunks, each with entries of ``choices``. A whole response merges the same entries, so that both have
the same content by construction.
"""

import json
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.regions import regions_in
from mlxk.domain.generation.request import (
    Finished,
    FinishReason,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    predictions,
)
from mlxk.entrypoints.http.generation.blocks import BlockReader
from mlxk.entrypoints.http.generation.renderer import (
    KEEP_ALIVE_COMMENT,
    OPENING_COMMENT,
    SSE_HEADERS,
    ResponseContext,
    ResponseRenderer,
    progress_comment,
    sse_frame,
)
from mlxk.entrypoints.http.openai.errors import error_document

Entry = Mapping[str, Any]
"""One entry of ``choices``, as JSON."""

DONE = b"data: [DONE]\n\n"


class ChoiceRenderer(Protocol):
    """Renders one choice of a response."""

    @abstractmethod
    def opening(self) -> Entry | None:
        """Return the entry before any event, if any."""

    @abstractmethod
    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the entries of an event, usually one."""

    @abstractmethod
    def text_template(self) -> tuple[Entry, str] | None:
        """Return an entry for text without log probabilities, and its text.

        The frame is built from it once; each token then replaces only the text. None if text may need other entries.
        """

    @abstractmethod
    def merged(self, entries: Sequence[Entry]) -> Entry:
        """Merge all entries of the choice into that of a whole response."""


class OpenAiRenderer(ResponseRenderer):
    """Renders chunks as server-sent events, and whole responses as JSON.

    Args:
        context: Metadata of the response.
        choices: One renderer for each choice.
        include_usage: Whether a stream ends with a usage chunk.
        extra: Additional fields of a whole response.
    """

    media_type = "application/json"
    stream_headers = SSE_HEADERS
    id_prefix: ClassVar[str]
    chunk_object: ClassVar[str]
    """``object`` of a chunk."""
    whole_object: ClassVar[str]
    """``object`` of a whole response."""

    def __init__(
        self,
        context: ResponseContext,
        choices: Sequence[ChoiceRenderer],
        include_usage: bool,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self._context = context
        self._choices = choices
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._chunk_fields: dict[str, object] = {"usage": None} if include_usage else {}
        self._extra = extra or {}
        self._text_frames = [self._text_frame(choice) for choice in choices]

    def opening(self) -> bytes:
        """Return a comment and the opening entry of each choice."""
        entries = [entry for choice in self._choices if (entry := choice.opening()) is not None]
        return OPENING_COMMENT + b"".join(map(self._chunk, entries))

    def keep_alive(self) -> bytes:
        """Return a comment."""
        return KEEP_ALIVE_COMMENT

    def progress(self, done: int, total: int) -> bytes:
        """Return a comment."""
        return progress_comment(done, total)

    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the chunks of an event."""
        frame = self._text_frames[index]
        if frame is not None and isinstance(event, TextDelta) and not event.logprobs:
            return frame[0] + json.dumps(event.text, ensure_ascii=False).encode() + frame[1]
        return b"".join(map(self._chunk, self._choices[index].entries(event)))

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the usage chunk, if requested, and the end marker."""
        usage = b""
        if self._chunk_fields:
            usage = sse_frame(self._document(self.chunk_object, (), usage=self._usage(finished)))
        return usage + DONE

    def error(self, error: MlxkError) -> bytes:
        """Return an error event."""
        return sse_frame(error_document(error, self._context.request_id))

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the response as one JSON document."""
        merged = []
        for choice, events in zip(self._choices, choices, strict=True):
            opening = choice.opening()
            entries = [] if opening is None else [opening]
            for event in events:
                entries.extend(choice.entries(event))
            merged.append(choice.merged(entries))
        document = {**self._document(self.whole_object, merged, usage=self._usage(finished)), **self._extra}
        return json.dumps(document, ensure_ascii=False).encode()

    def _chunk(self, entry: Entry) -> bytes:
        return sse_frame(self._document(self.chunk_object, (entry,), **self._chunk_fields))

    def _document(self, kind: str, choices: Sequence[Entry], **more: object) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": int(self._context.created.timestamp()),
            "model": self._context.model,
            "system_fingerprint": self._context.fingerprint,
            "choices": list(choices),
            **more,
        }

    def _usage(self, finished: Sequence[Finished]) -> dict[str, object]:
        return usage_document([last.usage for last in finished], self._context.alternatives)

    def _text_frame(self, choice: ChoiceRenderer) -> tuple[bytes, bytes] | None:
        """Return the bytes of a text chunk before and after its text; None without a template."""
        template = choice.text_template()
        if template is None:
            return None
        entry, text = template
        before, _, after = self._chunk(entry).rpartition(json.dumps(text).encode())
        return before, after


def finish_reason(finished: Finished, called: bool, *, truncated: bool = False) -> str:
    """Return the ``finish_reason`` of a choice.

    Args:
        finished: Its last event.
        called: Whether the choice has a tool call.
        truncated: Whether a stop string truncated JSON; reported as ``length``, from which clients expect incomplete
            values.
    """
    if truncated or finished.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


def usage_document(usages: Sequence[Usage], alternatives: int) -> dict[str, object]:
    """Return the usage of a response.

    Args:
        usages: One for each choice, grouped by prompt.
        alternatives: Number of choices of each prompt; its tokens count once.
    """
    prompts = usages[::alternatives]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages),
            **predictions(usages),
        },
    }


@attrs.frozen
class MessageOptions:
    """What the request says about the rendering of messages."""

    one_call: bool = False
    """Whether calls after the first are omitted."""
    stops: bool = False
    """Whether the request has stop strings."""
    json_text: bool = False
    """Whether the text must be JSON."""
    has_images: bool = False
    """Whether the conversation has an image, so that the text may name regions of it."""


class ChatRenderer(OpenAiRenderer):
    """Renders a response of ``POST /v1/chat/completions``.

    Args:
        context: Metadata of the response.
        options: How to render messages.
        include_usage: Whether a stream ends with a usage chunk.
        extra: Additional fields of a whole response.
    """

    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self,
        context: ResponseContext,
        options: MessageOptions = MessageOptions(),
        *,
        include_usage: bool = False,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        choices = [MessageRenderer(index, options) for index in range(context.choices)]
        super().__init__(context, choices, include_usage, extra)


class MessageRenderer(ChoiceRenderer):
    """Renders one message."""

    def __init__(self, index: int, options: MessageOptions) -> None:
        self._index = index
        self._options = options
        self._blocks = BlockReader() if options.stops else None
        """Collects the JSON that a stop string may truncate; None without stop strings."""
        self._called = False
        self._content: list[str] | None = [] if options.has_images else None
        """Chunks of the text so far, in which regions are found at the end; None without images."""

    def opening(self) -> Entry | None:
        """Return the role."""
        return self._entry({"role": "assistant", "content": ""})

    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the deltas of an event."""
        if self._omitted(event):
            return []
        if self._blocks is not None:
            self._blocks.collect([event])
        return [self._delta_of(event)]

    def text_template(self) -> tuple[Entry, str] | None:
        """Return a content delta, unless text has to be collected."""
        collects = self._content is not None or (self._options.stops and self._options.json_text)
        return None if collects else (self._entry({"content": "text"}), "text")

    def _delta_of(self, event: GenerationEvent) -> Entry:
        if isinstance(event, TextDelta):
            if self._content is not None:
                self._content.append(event.text)
            return self._entry({"content": event.text}, _logprobs(event.logprobs) if event.logprobs else None)
        if isinstance(event, ReasoningDelta):
            return self._entry({"reasoning_content": event.text})
        if isinstance(event, ToolCallDelta):
            self._called = True
            return self._entry({"tool_calls": [_call(event)]})
        truncated = self._blocks is not None and self._blocks.is_truncated(json_text=self._options.json_text)
        regions = _regions("".join(self._content or ()))
        reason = finish_reason(event, self._called, truncated=truncated)
        return self._entry({"regions": regions} if regions else {}, reason=reason)

    def _omitted(self, event: GenerationEvent) -> bool:
        return self._options.one_call and isinstance(event, ToolCallDelta) and event.index > 0

    def merged(self, entries: Sequence[Entry]) -> Entry:
        """Return the complete message."""
        deltas = [entry["delta"] for entry in entries]
        content = "".join(delta.get("content") or "" for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        calls = _joined_calls([call for delta in deltas for call in delta.get("tool_calls", ())])
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        regions = deltas[-1].get("regions") if deltas else None
        if regions:
            message["regions"] = regions
        tokens = [token for entry in entries for token in (entry["logprobs"] or {"content": ()})["content"]]
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": tokens, "refusal": None} if tokens else None,
            "finish_reason": next((entry["finish_reason"] for entry in entries if entry["finish_reason"]), "stop"),
        }

    def _entry(self, delta: Entry, logprobs: Entry | None = None, reason: str | None = None) -> Entry:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _regions(text: str) -> list[Entry]:
    """Return the points and boxes that a text names, in order."""
    return [{"label": region.label, "kind": region.kind, "points": region.points} for region in regions_in(text)]


def _call(event: ToolCallDelta) -> Entry:
    """Return a delta of a call: with its name if it is the first, and its id if it has one."""
    name = {"name": event.call.name} if event.begins else {}
    identity = {"id": event.call.id, "type": "function"} if event.call.id else {}
    return {"index": event.index, **identity, "function": {**name, "arguments": event.call.arguments}}


def _joined_calls(deltas: Sequence[Entry]) -> list[Entry]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        call = calls.setdefault(
            delta["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = call["id"] or delta.get("id", "")
        call["function"]["name"] += delta["function"].get("name", "")
        call["function"]["arguments"] += delta["function"].get("arguments", "")
    return [calls[index] for index in sorted(calls)]


def _logprobs(tokens: Sequence[TokenLogprob]) -> Entry:
    return {"content": token_logprobs(tokens), "refusal": None}


def token_logprobs(tokens: Sequence[TokenLogprob]) -> list[Entry]:
    """Return the log probabilities of tokens and of their alternatives."""
    return [
        {**token_document(scored.token), "top_logprobs": list(map(token_document, scored.alternatives))}
        for scored in tokens
    ]


def token_document(token: TokenAlternative) -> dict[str, object]:
    """Return the log probability of one token."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.utf8)}
