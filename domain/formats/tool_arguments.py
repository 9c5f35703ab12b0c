"""Tool calls read from text, and the conversion of their arguments to the types of the function's schema."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.formats.values import JSON, PYTHON, MalformedValueError, UnfinishedValueError, read_value
from mlxk.domain.text import is_valid_unicode


class NoCallError(Exception):
    """The text is not a tool call."""


class Tools:
    """The functions on offer.

    Args:
        definitions: Function definitions in OpenAI's form, each a JSON object as text.
    """

    def __init__(self, definitions: Sequence[str]) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        self._types: dict[tuple[str, str], frozenset[str]] = {}
        for definition in definitions:
            function = mapping(mapping(json.loads(definition)).get("function"))
            if isinstance(name := function.get("name"), str):
                self._parameters[name] = mapping(function.get("parameters"))

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def takes_nothing(self, name: str) -> bool:
        """Whether a function is on offer and has no parameters."""
        return name in self and not mapping(self._parameters[name].get("properties"))

    def types(self, function: str, parameter: str) -> frozenset[str]:
        """Return the JSON types of a parameter; empty when the schema does not state them."""
        schema = self._parameters.get(function, {})
        stated = mapping(schema.get("properties"))
        if parameter not in stated:
            return frozenset()
        if (function, parameter) not in self._types:
            self._types[function, parameter] = allowed_types(stated[parameter], schema)
        return self._types[function, parameter]

    def arguments(self, function: str, given: object) -> Mapping[str, Any]:
        """Return arguments, an object or JSON text, converted to the types of the function's schema.

        Raises:
            NoCallError: The arguments are not an object.
        """
        if isinstance(given, str):
            given = whole_value(given or "{}")
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise NoCallError
        return {name: coerced(value, self.types(function, name)) for name, value in given.items()}


@attrs.frozen
class Call:
    """A tool call as the model wrote it."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    """The id that the model gave it; empty without one."""


@attrs.frozen
class Reading:
    """The result of a reader."""

    calls: tuple[Call, ...]
    end: int
    """Position in the text after the last call."""


Reader = Callable[[str, Tools, bool], Reading]
"""Reads the calls at the start of a text, which begins with the opening of the syntax. The last argument tells whether
the text is complete. Raises ``UnfinishedValueError`` when more text is needed, ``NoCallError`` or
``MalformedValueError`` when there is no call."""

LONGEST_OPENING = 1024
"""Most characters of an opening up to the end of the function's name."""


def named(name: object) -> str:
    """Return the name of a function, without white space around it.

    Raises:
        NoCallError: It is not a name.
    """
    if not isinstance(name, str) or not name.strip() or not is_valid_unicode(name):
        raise NoCallError
    return name.strip()


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object unchanged, and an empty one for any other value."""
    return value if isinstance(value, Mapping) else {}


def whole_value(text: str) -> Any:  # noqa: ANN401
    """Parse a text that is one value.

    Raises:
        NoCallError: The text is incomplete, or has more than the value.
        MalformedValueError: The text is not a value.
    """
    try:
        value, end = read_value(text, 0)
    except UnfinishedValueError as error:
        raise NoCallError from error
    if text[end:].strip():
        raise NoCallError
    return value


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,4000}")
"""A float cannot hold all digits of a long one."""

_MAX_STEPS = 32
"""Depth to which references and compositions are followed."""


def allowed_types(schema: object, root: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Return the JSON types that a schema allows; empty when it does not restrict them.

    Args:
        schema: A JSON Schema.
        root: The document in which its references are resolved.
    """
    return _allowed(schema, root, {}, _MAX_STEPS)


def _allowed(
    schema: object, root: Mapping[str, Any] | None, known: dict[int, frozenset[str]], steps: int
) -> frozenset[str]:
    """Return the types of a schema. Each part is read only once, since references may be circular."""
    if not isinstance(schema, Mapping) or steps == 0:
        return frozenset()
    if id(schema) not in known:
        known[id(schema)] = frozenset()
        known[id(schema)] = _stated(schema, root, known, steps)
    return known[id(schema)]


def _stated(
    schema: Mapping[str, Any], root: Mapping[str, Any] | None, known: dict[int, frozenset[str]], steps: int
) -> frozenset[str]:
    types = {name for name in _listed(schema.get("type")) if isinstance(name, str) and name in _TYPES}
    if types:
        return frozenset(types | ({"null"} if schema.get("nullable") is True else set()))
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in _listed(schema.get(keyword, [])):
            types |= _allowed(part, root, known, steps - 1)
    types |= {_type_of(value) for value in _listed(schema.get("enum", []))}
    types |= {_type_of(schema["const"])} if "const" in schema else set()
    types |= _allowed(_referenced(schema.get("$ref"), root), root, known, steps - 1)
    if not types and "properties" in schema:
        types.add("object")
    if not types and "items" in schema:
        types.add("array")
    return frozenset(types)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next((name for name, types in _TYPES.items() if isinstance(value, types)), "string")


def _referenced(reference: object, root: Mapping[str, Any] | None) -> object:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    node: object = root
    for step in reference[2:].split("/"):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def typed(text: str, types: Iterable[str]) -> Any:  # noqa: ANN401
    """Return the value of a text.

    The text stays a string if only strings are allowed, or if it fits no other allowed type. Without any types it is
    parsed as an object, list, number or constant where it is written as one.

    Args:
        text: As the model wrote it.
        types: The allowed JSON types; empty when unknown.
    """
    allowed = frozenset(types)
    if allowed == {"string"}:
        return text
    stripped = text.strip()
    try:
        value, end = read_value(stripped, 0, JSON)
        whole = end == len(stripped)
    except (UnfinishedValueError, MalformedValueError):
        value, whole = None, False
    if not whole and stripped[:1] in ("{", "[", "("):
        try:
            value, end = read_value(stripped, 0, PYTHON)
            whole = end == len(stripped)
        except (UnfinishedValueError, MalformedValueError):
            whole = False
    if whole and not isinstance(value, str) and (not allowed or fits(value, allowed)):
        return value
    fitted = _fitted(stripped, allowed)
    if fitted is not None:
        return fitted
    if whole and isinstance(value, str) and "string" not in allowed and not fits(value, allowed):
        return typed(value, allowed) if value != text else text
    return text


def _fitted(text: str, allowed: frozenset[str]) -> Any:  # noqa: ANN401
    """Return a number or boolean in an unusual spelling; None when it is neither."""
    if "boolean" in allowed and "string" not in allowed and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if allowed & {"integer", "number"} and "string" not in allowed:
        if "integer" in allowed and _WHOLE_NUMBER.fullmatch(text):
            return int(text)
        try:
            number = float(text)
        except ValueError:
            return None
        if number.is_integer() and "integer" in allowed:
            return int(number)
        return number if "number" in allowed and abs(number) != float("inf") and number == number else None
    return None


def fits(value: object, allowed: frozenset[str]) -> bool:
    """Whether a value has one of several JSON types."""
    if isinstance(value, bool):
        return "boolean" in allowed
    if isinstance(value, float) and value.is_integer() and "integer" in allowed:
        return True
    return any(isinstance(value, _TYPES[name]) for name in allowed)


def coerced(value: Any, types: frozenset[str]) -> Any:  # noqa: ANN401
    """Return a value converted to the allowed types, for a model that wrote text, or ``3.0`` for ``3``."""
    if not types or fits(value, types):
        return int(value) if isinstance(value, float) and "number" not in types and value.is_integer() else value
    if isinstance(value, str):
        result = typed(value, types)
        return result if fits(result, types) else value
    if isinstance(value, (int, float, bool)) and types == {"string"}:
        return json.dumps(value)
    return value
