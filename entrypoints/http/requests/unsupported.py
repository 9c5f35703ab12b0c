"""Fields that an API documents and this server does not support.

A table of them belongs to each request class. Such a field is refused by name, unless its value has no effect
(``neutral``). To support one, delete its entry and add an attribute to the class. Unknown fields, and fields without
effect, are accepted and listed in the ``X-Mlxk-Ignored-Fields`` header.
"""

from collections.abc import Iterator, Mapping

import attrs

from mlxk.entrypoints.http.requests.field_errors import FieldError


@attrs.frozen
class Unsupported:
    """A documented field that is not supported."""

    reason: str
    """For the error message, without the field's name."""
    neutral: tuple[object, ...] = ()
    """Values beside null that are accepted, since they change nothing."""

    def refuses(self, value: object) -> bool:
        """Whether a value is refused."""
        return value is not None and not any(value == each and type(value) is type(each) for each in self.neutral)


def unsupported_faults(body: Mapping[str, object], table: Mapping[str, Unsupported]) -> tuple[FieldError, ...]:
    """Return a fault for every field of a body whose value is not supported."""
    return tuple(
        FieldError(name, f"is not supported: {table[name].reason}", unsupported=True)
        for name, value in body.items()
        if name in table and table[name].refuses(value)
    )


def ignored_fields(
    body: object, request: object, unsupported: Mapping[str, Unsupported], without_effect: Mapping[str, Unsupported]
) -> tuple[str, ...]:
    """Return the accepted fields of a body that have no effect, each once.

    Args:
        body: The JSON.
        request: The structured body.
        unsupported: Fields that were checked already.
        without_effect: Fields of the class that have no effect, by their paths.

    Returns:
        Paths without indices, such as ``messages[].name``.
    """
    found = dict.fromkeys(_ignored(body, request, "", without_effect))
    return tuple(name for name in found if name not in unsupported)


def _ignored(value: object, structured: object, path: str, without_effect: Mapping[str, Unsupported]) -> Iterator[str]:
    if isinstance(value, list) and isinstance(structured, list):
        for each, made in zip(value, structured, strict=True):
            if isinstance(each, dict):
                yield from _ignored(each, made, f"{path}[].", without_effect)
    kind = type(structured)
    if isinstance(value, dict) and attrs.has(kind):
        known = {field.name for field in attrs.fields(kind)}
        for name, each in value.items():
            place = path + name
            if each is None:
                continue
            if name not in known or (place in without_effect and without_effect[place].refuses(each)):
                yield place
            elif isinstance(each, (list, dict)):
                inner = f"{place}{'.' if isinstance(each, dict) else ''}"
                yield from _ignored(each, getattr(structured, name), inner, without_effect)
