"""Grammars that constrain the text of a completion, and how an enforced JSON Schema is read.

The checks here need no model. The text generator compiles a grammar for a tokenizer, and refuses what cannot be
compiled.
"""

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError

MAX_GRAMMAR_CHARACTERS = 256 * 1024
"""Longest text of a grammar."""

CONSTANT_KEYWORDS = frozenset({"const", "enum"})
"""JSON Schema keywords whose values are data that the instance must equal."""

_ANNOTATION_KEYWORDS = frozenset({"default", "examples"})
"""JSON Schema keywords whose values are data that is not enforced."""

_DATA_KEYWORDS = CONSTANT_KEYWORDS | _ANNOTATION_KEYWORDS
"""JSON Schema keywords whose values are data, not schemas."""

MAP_KEYWORDS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""JSON Schema keywords whose values are schemas by name."""

_COMPOSED = frozenset(
    {"$ref", "$dynamicRef", "additionalProperties", "allOf", "anyOf", "else", "if", "not", "oneOf", "patternProperties"}
    | {"propertyNames", "then", "dependentSchemas", "unevaluatedProperties", "minProperties"}
)
"""With one of these keywords, ``properties`` does not list all properties of an object, so the object stays open."""

_APPLICATORS = frozenset({"$ref", "allOf", "anyOf", "else", "if", "not", "oneOf", "then", "dependentSchemas"})
"""JSON Schema keywords whose subschemas apply to the same object as ``properties`` and ``required`` beside them."""

_DEFINITION_STEPS = 3
"""Number of steps in a reference such as ``#/$defs/City``."""


class GrammarKind(enum.Enum):
    """Kinds of grammars; values are their names in messages."""

    JSON_SCHEMA = "JSON schema"
    JSON_OBJECT = "JSON object"
    CHOICE = "choice"


@attrs.frozen
class Grammar:
    """A grammar that the complete text of a completion must match."""

    kind: GrammarKind
    text: str
    """By kind: the schema as JSON text, the choices as a JSON array of strings, or empty for any JSON object."""
    field: str | None = attrs.field(default=None, eq=False)
    """The request field it comes from, for error messages; None when there is none."""
    parts: tuple["Grammar", ...] = attrs.field(default=(), eq=False)
    """The grammars that it combines, so that an error can name the part at fault."""

    @classmethod
    def json_schema(
        cls, schema: str | Mapping[str, Any], field: str | None = None, parts: tuple["Grammar", ...] = ()
    ) -> "Grammar":
        """Return the grammar of JSON that is valid against a schema and has only the properties named in it.

        JSON Schema allows further properties by default, and a small model may generate them without end. Text that
        matches the closed schema is valid against the given schema, too.

        Args:
            schema: The schema, as JSON text or parsed.
            field: The request field it comes from.
            parts: The grammars that it combines.
        """
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return cls(GrammarKind.JSON_SCHEMA, _closed(text), field, parts)

    @classmethod
    def json_object(cls) -> "Grammar":
        """Return the grammar of any JSON object."""
        return cls(GrammarKind.JSON_OBJECT, "")

    def or_calls(self, tools: Sequence[str]) -> "Grammar":
        """Return a grammar that also allows a tool call as a JSON object; a grammar of another kind unchanged.

        Args:
            tools: Function definitions in OpenAI's form, each a JSON object as text.
        """
        if self.kind is not GrammarKind.JSON_SCHEMA:
            return self
        try:
            schema = json.loads(self.text)
            functions = [json.loads(tool)["function"] for tool in tools]
        except (ValueError, RecursionError, LookupError, TypeError):
            return self
        schemas = {str(index): function.get("parameters") or {} for index, function in enumerate(functions)}
        calls = [
            call_schema(function["name"], definition, key)
            for definition, function in zip(schemas, functions, strict=True)
            for key in ("arguments", "parameters")
        ]
        definitions = {name: moved(parameters, f"#/$defs/{name}") for name, parameters in schemas.items()}
        definitions["answer"] = moved(schema, "#/$defs/answer")
        combined = {"anyOf": [{"$ref": "#/$defs/answer"}, *calls], "$defs": definitions}
        return Grammar.json_schema(combined, self.field, (self,))

    @classmethod
    def choice(cls, options: tuple[str, ...]) -> "Grammar":
        """Return the grammar of one of several strings."""
        return cls(GrammarKind.CHOICE, json.dumps(options))

    def validate(self) -> None:
        """Check the text, without a model.

        Raises:
            ValidationError: The text is too long, or not valid for its kind.
        """
        if len(self.text) > MAX_GRAMMAR_CHARACTERS:
            raise self.refused(f"is too long: at most {MAX_GRAMMAR_CHARACTERS} characters (got {len(self.text)})")
        if self.kind is GrammarKind.JSON_SCHEMA:
            schema = self._parsed()
            if schema is not True and not isinstance(schema, dict):
                raise self.refused("must be a JSON object, or true to allow anything")
        elif self.kind is GrammarKind.CHOICE:
            options = self._parsed()
            if not isinstance(options, list) or not options or not all(o and isinstance(o, str) for o in options):
                raise self.refused("must be a list of at least one string, none of them empty")

    def refused(self, fault: str) -> ValidationError:
        """Return the error for a grammar that cannot be used.

        Args:
            fault: The fault, such as ``is too long``.
        """
        if self.field is None:
            return ValidationError(f"The {self.kind.value} {fault}")
        hint = "Correct what is named, or leave it out and check the answer instead."
        return ValidationError.in_field(self.field, f"the {self.kind.value} {fault}", hint=hint)

    def _parsed(self) -> object:
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise self.refused(f"is not valid JSON: {error}") from error
        except RecursionError as error:
            raise self.refused("is nested too deeply") from error


@attrs.frozen
class ForcedCall:
    """A tool call that a grammar enforces."""

    name: str | None
    """The function, when the text is its arguments alone; None when the text is an object with name and arguments."""
    grammar: Grammar
    """The grammar of the arguments, or of the object with name and arguments."""


def call_schema(name: str, definition: str, key: str = "arguments") -> dict[str, Any]:
    """Return the schema of a call: an object with the function's name and its arguments.

    Args:
        name: The function.
        definition: Name of the parameters' schema in ``$defs``.
        key: Property that holds the arguments.
    """
    return {
        "type": "object",
        "properties": {"name": {"const": name}, key: {"$ref": f"#/$defs/{definition}"}},
        "required": ["name", key],
        "additionalProperties": False,
    }


def moved(value: Any, root: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a schema with its internal references rewritten for its new path, such as ``#/$defs/answer``.

    The values of data keywords such as ``const`` stay as they are.
    """
    if isinstance(value, list):
        return [moved(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    changed: dict[str, Any] = {}
    for keyword, item in value.items():
        if keyword in MAP_KEYWORDS and isinstance(item, dict):
            changed[keyword] = {name: moved(schema, root) for name, schema in item.items()}
        else:
            changed[keyword] = item if keyword in _DATA_KEYWORDS else moved(item, root)
    target = changed.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        changed["$ref"] = root + target[1:]
    return changed


def subschemas(schema: object) -> Iterator[dict[str, Any]]:
    """Yield every schema object in a schema, itself included, but not the values of data keywords such as ``enum``."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            yield node
            for keyword, value in node.items():
                if keyword in MAP_KEYWORDS and isinstance(value, dict):
                    pending += value.values()
                elif keyword not in _DATA_KEYWORDS:
                    pending.append(value)


def _closed(text: str) -> str:
    """Return a schema with ``additionalProperties: false`` wherever that excludes no property that the schema names.

    Text that is not JSON is returned unchanged: ``Grammar.validate`` reports it.
    """
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        return text
    try:
        schema = json.loads(text)
        parts = _parts_of_objects(schema)
        changed = False
        for node in list(subschemas(schema)):
            if id(node) not in parts and _names_its_properties(node):
                node["additionalProperties"], changed = False, True
        return json.dumps(schema) if changed else text
    except (ValueError, RecursionError):
        return text


def _names_its_properties(schema: Mapping[str, Any]) -> bool:
    """Whether ``properties`` names every property that an object may or must have."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or _COMPOSED & schema.keys():
        return False
    return not isinstance(required, list) or all(name in properties for name in required if isinstance(name, str))


def _parts_of_objects(schema: object) -> frozenset[int]:
    """Return the ``id()`` of each schema that applies to an object together with another schema.

    These stay open, since a closed one would exclude the properties of the other.
    """
    pending: list[object] = []
    for node in subschemas(schema):
        applicators = _APPLICATORS if node.keys() & {"properties", "required"} else {"allOf", "not"}
        pending += [node[keyword] for keyword in applicators & node.keys() if keyword != "$ref"]
        if "$ref" in applicators & node.keys():
            pending.append(_definition(schema, node["$ref"]))
    found: set[int] = set()
    while pending:
        for node in subschemas(pending.pop()):
            if id(node) not in found:
                found.add(id(node))
                pending.append(_definition(schema, node.get("$ref")))
    return frozenset(found)


def _definition(schema: object, reference: object) -> object:
    """Return the target of a reference to a definition at the root of a schema; None for any other reference."""
    path = reference.split("/") if isinstance(reference, str) else []
    for step in path[1:] if len(path) == _DEFINITION_STEPS and path[0] == "#" else (None,):
        schema = schema.get(step) if isinstance(schema, dict) else None
    return schema


def is_json(text: str) -> bool:
    """Whether a text is a complete JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
