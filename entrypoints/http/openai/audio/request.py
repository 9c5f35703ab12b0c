"""Multipart forms, and the bodies of ``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``.

The file is written to disk while it is received: it may be large, and is decoded from there.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs
import falcon
from falcon.media.multipart import MultipartForm, MultipartFormHandler, MultipartParseError

from mlxk.domain.errors import MlxkError, PayloadTooLargeError, UnsupportedMediaTypeError, ValidationError
from mlxk.domain.transcription import SpeechTask, TranscriptionSettings
from mlxk.entrypoints.http.request_scope import trace_of
from mlxk.entrypoints.http.requests.media import Upload, safe_file_name
from mlxk.entrypoints.http.requests.validation import FieldError, Unsupported, located, raise_for, unsupported_faults

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = ("segment", "word")

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 32
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

_NOTHING = frozenset({"", "null", "undefined", "none", "[]", "{}"})
"""Values that clients write into forms for absent fields."""

_TEXTS = frozenset({"file", "input", "instructions", "model", "prompt", "ref_text"})
"""Fields of free text, whose values are always kept."""

_LISTS = frozenset({"include", "timestamp_granularities"})
"""Fields with several values, which clients repeat, number, separate with commas, or write as JSON."""

_INDEX = re.compile(r"\[\d*\]$")

UNSUPPORTED: Mapping[str, Unsupported] = {
    "chunking_strategy": Unsupported("the model divides recordings by itself", ("auto", '{"type": "auto"}')),
    "include": Unsupported("there are no log probabilities of tokens", ("",)),
    "keywords": Unsupported("likely words go into prompt", ("",)),
    "known_speaker_names": Unsupported("speakers cannot be named in advance", ("",)),
    "known_speaker_references": Unsupported("speakers cannot be given in advance", ("",)),
    "languages": Unsupported("name one in language, or none to let the model find out", ("",)),
}
"""Documented fields that are not supported."""

KNOWN = frozenset(
    {"file", "model", "language", "prompt", "response_format", "stream", "temperature", "timestamp_granularities"}
)
"""Supported fields."""


@attrs.frozen
class AudioRequest:
    """The fields of a request; the file is in an ``Upload``."""

    model: str
    settings: TranscriptionSettings
    response_format: str
    stream: bool
    granularities: tuple[str, ...]
    """Requested kinds of timestamps; empty for the default, segments."""
    ignored: tuple[str, ...]
    """Names of unknown fields."""

    @property
    def words(self) -> bool:
        """Whether to list words."""
        return "word" in self.granularities

    @property
    def segments(self) -> bool:
        """Whether to list segments."""
        return not self.granularities or "segment" in self.granularities


def read_audio(
    request: falcon.Request, upload: Upload, task: SpeechTask, default_model: str | None = None
) -> AudioRequest:
    """Read a form: write its file into the upload, and return its fields.

    Raises:
        UnsupportedMediaTypeError: The body is not a form.
        PayloadTooLargeError: The file or a field is too large, or there are too many fields.
        ValidationError, ParameterNotSupportedError: Names every field at fault.
    """
    fields = read_form(request, upload)
    faults = _unsupported(fields)
    if not upload.arrived:
        faults.append(FieldError("file", "is required: a part with a file of sound"))
    model = _one(fields, "model", faults) or default_model
    if model is None:
        faults.append(FieldError("model", "is required"))
    response_format = _choice(fields, "response_format", FORMATS, faults) or "json"
    granularities = _granularities(fields, response_format, faults)
    stream = _boolean(fields, faults)
    if stream and response_format not in STREAMED_FORMATS:
        faults.append(FieldError("response_format", f"must be one of {', '.join(STREAMED_FORMATS)} for a stream"))
    settings = TranscriptionSettings(
        task=task,
        language=_language(fields, faults),
        hint=_one(fields, "prompt", faults) or None,
        temperature=_number(fields, faults),
        words="word" in granularities,
    )
    faults += [FieldError(name, message) for name, message in settings.faults().items()]
    sampling = {"temperature": settings.temperature} if "temperature" in fields else {}
    trace_of(request).asks({"model": model, **sampling})
    raise_for(faults)
    ignored = tuple(name for name in fields if name not in KNOWN and name not in UNSUPPORTED)
    return AudioRequest(model or "", settings, response_format, stream, granularities, ignored)


def read_form(request: falcon.Request, upload: Upload, file: str = "file") -> dict[str, list[str]]:
    """Return the values of every field except the file, by name; ``name[]`` and ``name[0]`` count as ``name``.

    Args:
        request: The request.
        upload: Receives the file.
        file: Name of the file's field.

    Raises:
        UnsupportedMediaTypeError, PayloadTooLargeError, ValidationError: As in ``read_audio``.
    """
    fields: dict[str, list[str]] = {}
    try:
        for number, part in enumerate(_form(request)):
            if number >= MAX_FIELDS:
                raise PayloadTooLargeError(f"The form has more than {MAX_FIELDS} fields.")
            name = _INDEX.sub("", part.name or "")
            if name == file:
                _receive(upload, part, file)
            else:
                fields.setdefault(name, []).extend(_values(name, _text(part, name)))
    except (MultipartParseError, ValueError) as error:
        raise ValidationError("The form is malformed.") from error
    return fields


def _values(name: str, text: str) -> list[str]:
    """Return the values of a field in one part of a form; none if it means "not set"."""
    if name in _TEXTS:
        return [text]
    if name not in _LISTS:
        return [] if text.strip().lower() in _NOTHING else [text]
    try:
        parsed = json.loads(text)
        entries = parsed if isinstance(parsed, list) else [] if parsed is None else [parsed]
        values = [str(entry).strip() for entry in entries]
    except (ValueError, RecursionError):
        values = [value.strip() for value in text.split(",")]
    return [value for value in values if value.lower() not in _NOTHING]


def _form(request: falcon.Request) -> MultipartForm:
    # request.get_media() accepts the media type in lower case only.
    content_type = request.content_type or ""
    if content_type.partition(";")[0].strip().lower() != falcon.MEDIA_MULTIPART:
        raise UnsupportedMediaTypeError(
            "The body must be a form with a file.", hint="Send the header Content-Type: multipart/form-data"
        )
    try:
        return MultipartFormHandler().deserialize(request.bounded_stream, content_type, request.content_length)
    except falcon.HTTPInvalidHeader as error:
        raise ValidationError(
            "The form is malformed: its Content-Type names no boundary of 1 to 70 characters.",
            hint="Let the HTTP library write the header; it makes the boundary, too.",
        ) from error


def _receive(upload: Upload, part: Any, field: str) -> None:  # noqa: ANN401 - Falcon's part of a form
    if upload.arrived:
        raise ValidationError.in_field(field, "only one file at a time")
    try:
        upload.receive(part.stream, part.filename)
    except MlxkError as error:
        raise located(error, field) from error


def _text(part: Any, name: str) -> str:  # noqa: ANN401 - Falcon's part of a form
    data = part.stream.read(MAX_FIELD_BYTES + 1)
    if len(data) > MAX_FIELD_BYTES:
        raise PayloadTooLargeError.in_field(
            safe_file_name(name), f"this field is larger than {MAX_FIELD_BYTES // 1024} KiB"
        )
    try:
        return str(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValidationError.in_field(safe_file_name(name), "is not UTF-8 text") from error


def _unsupported(fields: Mapping[str, list[str]]) -> list[FieldError]:
    """Return a fault for every field with an unsupported value."""
    faults = [
        fault
        for name, values in fields.items()
        for value in values
        for fault in unsupported_faults({name: value}, UNSUPPORTED)
    ]
    return list(dict.fromkeys(faults))


def _one(fields: Mapping[str, list[str]], name: str, faults: list[FieldError]) -> str | None:
    values = fields.get(name, [])
    if len(values) > 1:
        faults.append(FieldError(name, "is given more than once"))
    return values[0].strip() or None if values else None


def _language(fields: Mapping[str, list[str]], faults: list[FieldError]) -> str | None:
    value = _one(fields, "language", faults)
    return None if value is None or value.lower() == "auto" else value


def _choice(
    fields: Mapping[str, list[str]], name: str, allowed: tuple[str, ...], faults: list[FieldError]
) -> str | None:
    value = (_one(fields, name, faults) or "").lower()
    if value and value not in allowed:
        faults.append(FieldError(name, f"must be one of {', '.join(allowed)}"))
    return value or None


def _granularities(fields: Mapping[str, list[str]], response_format: str, faults: list[FieldError]) -> tuple[str, ...]:
    values = tuple(value.lower() for value in fields.get("timestamp_granularities", ()))
    if any(value not in GRANULARITIES for value in values):
        faults.append(FieldError("timestamp_granularities", f"must be of {', '.join(GRANULARITIES)}"))
    elif values and response_format != "verbose_json":
        faults.append(FieldError("timestamp_granularities", "needs the response_format verbose_json"))
    return values


def _boolean(fields: Mapping[str, list[str]], faults: list[FieldError]) -> bool:
    value = _one(fields, "stream", faults)
    if value is None or value.lower() in _BOOLEANS:
        return _BOOLEANS[(value or "false").lower()]
    faults.append(FieldError("stream", "must be true or false"))
    return False


def _number(fields: Mapping[str, list[str]], faults: list[FieldError]) -> float:
    value = _one(fields, "temperature", faults)
    try:
        return float(value or 0)
    except ValueError:
        faults.append(FieldError("temperature", "must be a number"))
        return 0.0
