"""The tables of what OpenAI documents and we do not do.

Such a field is refused by name, unless its value asks for nothing (``neutral``). To support one, delete its line and
give the request class an attribute of its name. Where doing without it harms nobody, it is tolerated instead, as is a
field that is in no class, and reported in the ``X-Mlxk-Ignored-Fields`` header.
"""

from collections.abc import Iterator, Mapping

import attrs

from mlxk.entrypoints.http.requests.field_errors import FieldError


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

MESSAGE_UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported("answers are text only, so there is none to refer to"),
    "function_call": Unsupported("is deprecated; use tool_calls"),
}
"""Of a message."""

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "messages[].content[].image_url.detail": Unsupported("the model looks at an image in its own size", ("auto",)),
    "messages[].content[].prompt_cache_breakpoint": Unsupported("the prompt cache works by itself"),
    "messages[].name": Unsupported("chat templates know roles, not names"),
    "response_format.json_schema.description": Unsupported("the schema is enforced; put what it is for in a message"),
}
"""Documented fields that are tolerated and reported, each by its path."""


def unsupported_faults(body: Mapping[str, object], table: Mapping[str, Unsupported]) -> tuple[FieldError, ...]:
    """Return a fault for every field of a body that asks for what is not supported."""
    return tuple(
        FieldError(name, f"is not supported: {table[name].reason}", unsupported=True)
        for name, value in body.items()
        if name in table and table[name].refuses(value)
    )


def ignored_fields(body: object, request: object, table: Mapping[str, Unsupported]) -> tuple[str, ...]:
    """Return the fields of a body that are tolerated but change nothing, each once.

    Args:
        body: The JSON.
        request: What was made of it.
        table: What was judged already.

    Returns:
        Paths without numbers, such as ``messages[].name``.
    """
    return tuple(name for name in dict.fromkeys(_ignored(body, request, "")) if name not in table)


def _ignored(value: object, structured: object, path: str) -> Iterator[str]:
    if isinstance(value, list) and isinstance(structured, list):
        for each, made in zip(value, structured, strict=True):
            if isinstance(each, dict):
                yield from _ignored(each, made, f"{path}[].")
    kind = type(structured)
    if isinstance(value, dict) and attrs.has(kind):
        known = {field.name for field in attrs.fields(kind)}
        for name, each in value.items():
            place = path + name
            if each is None:
                continue
            if name not in known or _changes_nothing(place, each):
                yield place
            elif isinstance(each, (list, dict)):
                yield from _ignored(each, getattr(structured, name), f"{place}{'.' if isinstance(each, dict) else ''}")


def _changes_nothing(place: str, value: object) -> bool:
    return place in WITHOUT_EFFECT and WITHOUT_EFFECT[place].refuses(value)
