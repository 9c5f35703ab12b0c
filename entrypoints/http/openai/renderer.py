"""The base of the renderers of chat completions and completions.

A streamed response sends chunks, each with entries of ``choices``. A whole response merges the same entries, so that
both have the same content by construction.
"""

import json
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent, TextDelta, Usage, predictions
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
