"""JSON Schemas by the jsonschema package: whether a value keeps to one. Nothing is fetched that a schema refers to."""

from collections.abc import Callable, Mapping

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from mlxk.domain.errors import ValidationError


def schema_check(schema: Mapping[str, object]) -> Callable[[object], bool]:
    """Return what says whether a value keeps to a schema.

    Raises:
        ValidationError: It is no JSON Schema; quotes the fault.
    """
    kind = validator_for(schema, Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise ValidationError(f"schema: {place or 'the whole'} is no JSON Schema: {error.message[:200]}") from error
    validator = kind(schema, registry=Registry())

    def fits(value: object) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable as error:
            raise ValidationError(f"schema: it refers to '{error.ref}', which it does not have") from error

    return fits
