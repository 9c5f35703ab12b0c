"""What is wrong with a request gets the field it is about, also when it was found where fields are not known."""

import falcon
import pytest

from mlxk.domain.errors import (
    CapabilityError,
    InternalError,
    MethodNotAllowedError,
    MlxkError,
    NotFoundError,
    ParameterNotSupportedError,
    ValidationError,
)
from mlxk.entrypoints.http.errors import error_from_falcon
from mlxk.entrypoints.http.requests.validation import FieldError, StrictConverter, located, raise_for

FIELD = "messages[0].content[0].input_audio.data"


def test_a_failure_that_names_no_field_gets_one() -> None:
    error = located(ValidationError("no sound", hint="Send a WAV."), FIELD)
    assert (type(error), error.message, error.hint) == (ValidationError, f"{FIELD}: no sound", "Send a WAV.")
    assert error.detail == {"problems": [{"param": FIELD, "message": "no sound"}]}


def test_a_failure_that_names_its_field_keeps_it() -> None:
    error = CapabilityError.in_field("language", "is not known")
    assert located(error, FIELD) is error


def test_a_failure_gets_the_name_that_its_field_has_in_the_request() -> None:
    error = located(
        CapabilityError.in_field("prompt", "takes no hint"), FIELD, {"prompt": "messages[0].content[1].text"}
    )
    assert error.message == "messages[0].content[1].text: takes no hint"
    assert error.detail == {"problems": [{"param": "messages[0].content[1].text", "message": "takes no hint"}]}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (falcon.HTTPServiceUnavailable(description="secret"), InternalError, "The server met an unexpected condition"),
        (falcon.HTTPBadRequest(description="secret"), ValidationError, "The request is malformed."),
        (falcon.HTTPMethodNotAllowed(["GET", "PUT"]), MethodNotAllowedError, "This address takes GET, PUT."),
        (falcon.HTTPRouteNotFound(), NotFoundError, "There is nothing at this address."),
    ],
)
def test_an_error_of_the_framework_is_translated_without_its_text(
    error: falcon.HTTPError, kind: type[MlxkError], message: str
) -> None:
    found = error_from_falcon(error)
    assert (type(found), found.message.startswith(message)) == (kind, True)
    assert "secret" not in f"{found.message}{found.hint}"


def test_a_union_has_one_rule_in_whatever_order_its_members_are_written() -> None:
    converter = StrictConverter()
    converter.union(str | dict[str, int] | None, lambda _: str)
    with pytest.raises(ValueError, match="has a rule already"):
        converter.union(dict[str, int] | str | None, lambda _: str)


def test_what_is_not_supported_is_raised_as_the_caller_says_unless_something_is_wrong_besides() -> None:
    unsupported = FieldError("n", "is not supported", unsupported=True)
    with pytest.raises(ParameterNotSupportedError):
        raise_for([unsupported])
    with pytest.raises(CapabilityError):
        raise_for([unsupported], unsupported=CapabilityError)
    with pytest.raises(ValidationError):
        raise_for([unsupported, FieldError("seed", "must be a number")], unsupported=CapabilityError)
