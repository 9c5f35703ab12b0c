"""Server-sent events: frames and headers, for APIs that stream in this format."""

import json
from types import MappingProxyType

SSE_HEADERS = MappingProxyType(
    {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
)

OPENING_COMMENT = b": ok\n\n"
"""Sent at once, so that the headers leave before the first token."""

KEEP_ALIVE_COMMENT = b": ping\n\n"
"""Sent during silence, so that no proxy between server and client times out."""


def sse_frame(document: object) -> bytes:
    """Return an event whose data is a JSON document."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
