"""The body of ``POST /v1/chat/completions``."""

from collections.abc import Mapping
from typing import Annotated

import attrs

from mlxk.domain.generation import MAX_LOGPROB_ALTERNATIVES, GenerationSettings
from mlxk.entrypoints.http.requests.converter import Choice, Range
from mlxk.entrypoints.http.requests.faults import Fault
from mlxk.entrypoints.http.requests.messages import MessageParam, to_conversation
from mlxk.entrypoints.http.requests.sampling import Count, Metadata, SamplingFields
from mlxk.entrypoints.http.requests.tools import MAX_TOOL_BYTES, Tools

if False:  # pragma: no cover
    pass

MAX_MESSAGES = 4096
"""Messages a conversation may have."""

MAX_CHUNK = 5
"""Images that may be described together."""


@attrs.frozen(kw_only=True)
class ChatRequest(SamplingFields):
    """What a chat request asks. Documented fields that are missing here stand in ``support``."""

    messages: Annotated[list[MessageParam], Range(1, MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    metadata: Metadata | None = None
    tools: Tools | None = None
    tool_choice: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    chunk: Annotated[int, Range(1, MAX_CHUNK)] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Annotated[str, Choice(("none", "minimal", "low", "medium", "high", "xhigh"))] | None = None
