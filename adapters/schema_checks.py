"""Validation against JSON Schemas by the jsonschema package; references to other documents are not fetched."""

from collections.abc import Callable, Mapping

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from mlxk.domain.errors import ValidationError


def schema_check(schema: Mapping[str, object]) -> Callable[[object], bool]:
    """Return a predicate that validates a value; it raises ``ValidationError`` for a reference outside the schema.

    Raises:
        ValidationError: The schema is no JSON Schema; the message quotes the fault.
    """
    validator_type = validator_for(schema, Draft202012Validator)
    try:
        validator_type.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise ValidationError(f"schema: {place or 'the whole'} is no JSON Schema: {error.message[:200]}") from error
    validator = validator_type(schema, registry=Registry())

    def fits(value: object) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable as error:
            raise ValidationError(f"schema: it refers to '{error.ref}', which it does not have") from error

    return fits
