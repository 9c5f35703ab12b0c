"""Renders chat completions: messages with content, reasoning and tool calls; and what completions share with them.

A streamed response sends chunks, each with entries of ``choices``. A whole response merges the same entries, so that
both have the same content by construction.
"""

import json
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.regions import regions_in
from mlxk.domain.generation.grammar import is_json
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
        """Return the entry before any event, if there is one."""

    @abstractmethod
    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the entries of an event, usually one."""

    @abstractmethod
    def text_template(self) -> tuple[Entry, str] | None:
        """Return an entry for text without log probabilities, and the text in it.

        Its frame is built once; each token then replaces only the text. None when text can make other entries.
        """

    @abstractmethod
    def merged(self, entries: Sequence[Entry]) -> Entry:
        """Return the entry of a whole response for all entries of the choice."""


class OpenAiRenderer(ResponseRenderer):
    """Renders chunks as server-sent events, and whole responses as JSON.

    Args:
        context: Facts about the response.
        choices: One renderer for each choice.
        include_usage: Whether a stream ends with a chunk of usage.
        extra: Further fields of a whole response.
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
        """Return the usage, if it was requested, and the end marker."""
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
        return usage_document([each.usage for each in finished], self._context.alternatives)

    def _text_frame(self, choice: ChoiceRenderer) -> tuple[bytes, bytes] | None:
        """Return the bytes before and after the text in a chunk."""
        template = choice.text_template()
        if template is None:
            return None
        entry, text = template
        before, _, after = self._chunk(entry).rpartition(json.dumps(text).encode())
        return before, after


def finish_reason(finished: Finished, called: bool, *, truncated: bool = False) -> str:
    """Return ``finish_reason`` of a choice.

    Args:
        finished: The last event.
        called: Whether the choice has a tool call.
        truncated: Whether a stop string truncated JSON; clients take ``length`` for an incomplete value.
    """
    if truncated or finished.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


def usage_document(usages: Sequence[Usage], alternatives: int) -> dict[str, object]:
    """Return the usage of a response.

    Args:
        usages: One for each choice, those of the same prompt side by side.
        alternatives: Choices of each prompt, whose prompt tokens count once.
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
    """How a request changes the rendering of its messages."""

    one_call: bool = False
    """Whether calls after the first are omitted."""
    stops: bool = False
    """Whether the request has stop strings."""
    json_text: bool = False
    """Whether the text must be JSON."""
    shows: bool = False
    """Whether the conversation shows an image, in which an answer may name places."""


class ChatRenderer(OpenAiRenderer):
    """Renders a response of ``POST /v1/chat/completions``.

    Args:
        context: Facts about the response.
        options: How to render messages.
        include_usage: Whether a stream ends with the usage.
        extra: Further fields of a whole response.
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


class TruncationDetector:
    """Detects JSON that a stop string truncated: arguments of tool calls, and text with an enforced format.

    Args:
        json_text: Whether the text must be JSON.
    """

    def __init__(self, *, json_text: bool) -> None:
        self.json_text = json_text
        self._text: list[str] = []
        self._arguments: dict[int, list[str]] = {}

    def add(self, event: GenerationEvent) -> None:
        """Add the next event, as the engine emitted it."""
        if isinstance(event, TextDelta) and self.json_text:
            self._text.append(event.text)
        elif isinstance(event, ToolCallDelta):
            self._arguments.setdefault(event.index, []).append(event.call.arguments)

    @property
    def truncated(self) -> bool:
        """Whether any of the collected texts is not valid JSON."""
        text = [self._text] if self.json_text and (self._text or not self._arguments) else []
        values = [*self._arguments.values(), *text]
        return not all(is_json("".join(value)) for value in values)


class MessageRenderer(ChoiceRenderer):
    """Renders one message."""

    def __init__(self, index: int, options: MessageOptions) -> None:
        self._index = index
        self._detector = TruncationDetector(json_text=options.json_text) if options.stops else None
        self._one_call = options.one_call
        self._called = False
        self._answer: list[str] | None = [] if options.shows else None
        """The text so far; None where no places are looked for in it."""

    def opening(self) -> Entry | None:
        """Return the role."""
        return self._entry({"role": "assistant", "content": ""})

    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the deltas of an event."""
        if self._omitted(event):
            return []
        if self._detector is not None:
            self._detector.add(event)
        return [self._delta_of(event)]

    def text_template(self) -> tuple[Entry, str] | None:
        """Return a content delta, unless text is collected."""
        plain = self._answer is None and (self._detector is None or not self._detector.json_text)
        return (self._entry({"content": "text"}), "text") if plain else None

    def _delta_of(self, event: GenerationEvent) -> Entry:
        if isinstance(event, TextDelta):
            if self._answer is not None:
                self._answer.append(event.text)
            return self._entry({"content": event.text}, _logprobs(event.logprobs) if event.logprobs else None)
        if isinstance(event, ReasoningDelta):
            return self._entry({"reasoning_content": event.text})
        if isinstance(event, ToolCallDelta):
            self._called = True
            return self._entry({"tool_calls": [_call(event)]})
        truncated = self._detector is not None and self._detector.truncated
        regions = _regions("".join(self._answer or ()))
        reason = finish_reason(event, self._called, truncated=truncated)
        return self._entry({"regions": regions} if regions else {}, reason=reason)

    def _omitted(self, event: GenerationEvent) -> bool:
        return self._one_call and isinstance(event, ToolCallDelta) and event.index > 0

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
    """Return the points and boxes that an answer names, in its order."""
    return [{"label": each.label, "kind": each.kind, "points": each.points} for each in regions_in(text)]


def _call(event: ToolCallDelta) -> Entry:
    """Return a delta of a call: name and id with its first, arguments with any."""
    function = {"name": event.call.name} if event.begins else {}
    opening = {"id": event.call.id, "type": "function"} if event.call.id else {}
    return {"index": event.index, **opening, "function": {**function, "arguments": event.call.arguments}}


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
        {**token_document(each.token), "top_logprobs": [token_document(other) for other in each.alternatives]}
        for each in tokens
    ]


def token_document(token: TokenAlternative) -> dict[str, object]:
    """Return the log probability of one token."""
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.utf8)}
