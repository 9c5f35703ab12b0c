"""The one table of what OpenAI documents and we do not do.

Such a field is refused by name, unless its value asks for nothing (``neutral``). To support one, delete its line and
give the request class an attribute of its name. A field in neither place is unknown: tolerated, and reported in the
``X-Mlxk-Ignored-Fields`` header.
"""

from collections.abc import Mapping

import attrs

from mlxk.entrypoints.http.requests.faults import Fault


@attrs.frozen
class Unsupported:
    """A documented field that is not supported."""

    reason: str
    """What to tell the client, without the field's name."""
    neutral: tuple[object, ...] = ()
    """Values beside null that ask for nothing special, and are accepted."""

    def refuses(self, value: object) -> bool:
        """Whether the value asks for what is not supported."""
        return value is not None and not any(value == each and type(value) is type(each) for each in self.neutral)


CHAT_UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported("answers are text only"),
    "function_call": Unsupported("is deprecated; use tool_choice", ("none",)),
    "functions": Unsupported("is deprecated; use tools", ([],)),
    "modalities": Unsupported("answers are text only", (["text"],)),
    "moderation": Unsupported("there is no moderation"),
    "prediction": Unsupported("predicted output is not supported"),
    "prompt_cache_options": Unsupported("the prompt cache works by itself", ({},)),
    "prompt_cache_retention": Unsupported("prompts are kept in memory only", ("in_memory",)),
    "reasoning_effort": Unsupported("effort has no degrees here; use none or medium", ("none", "medium")),
    "service_tier": Unsupported("there is one tier", ("auto", "default")),
    "store": Unsupported("nothing is stored", (False,)),
    "verbosity": Unsupported("cannot be controlled; ask for it in the prompt", ("medium",)),
    "web_search_options": Unsupported("there is no web search"),
}
"""Of ``POST /v1/chat/completions``."""

COMPLETION_UNSUPPORTED: Mapping[str, Unsupported] = {
    "best_of": Unsupported("answers are not ranked; use n", (1,)),
    "suffix": Unsupported("text cannot be inserted before a suffix", ("",)),
}
"""Of ``POST /v1/completions``."""


def unsupported_faults(body: Mapping[str, object], table: Mapping[str, Unsupported]) -> tuple[Fault, ...]:
    """Return a fault for every field of a body that asks for what is not supported."""
    return tuple(
        Fault(name, f"is not supported: {table[name].reason}", unsupported=True)
        for name, value in body.items()
        if name in table and table[name].refuses(value)
    )
