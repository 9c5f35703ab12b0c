"""Content parts with a file of text, which becomes text of the message."""

import functools
from collections.abc import Iterator

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import SIGNATURE_BYTES, ImageFormat
from mlxk.entrypoints.http.requests.media import read_base64, safe_file_name
from mlxk.entrypoints.http.requests.validation import FieldError


@attrs.frozen(kw_only=True)
class FileSource:
    """A file in a request."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


@attrs.frozen(kw_only=True)
class FilePart:
    """A content part with a file: in an object ``file``, or in the part itself."""

    type: str
    file: FileSource | None = None
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    detail: str | None = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields, and of the file."""
        source, below = self._source
        if source.file_id is not None:
            reason = "is not supported: no files are stored here; send the file itself in file_data"
            yield FieldError(f"{path}.{below}file_id", reason, unsupported=True)
        elif self.file_url is not None:
            reason = "is not supported: files at addresses are not read; send the file itself in file_data"
            yield FieldError(f"{path}.file_url", reason, unsupported=True)
        elif source.file_data is None:
            yield FieldError(f"{path}.{below}file_data", "is required")
        else:
            try:
                self.text  # noqa: B018 - decoded here once, and kept for the message
            except ValidationError as error:
                yield FieldError(f"{path}.{below}file_data", error.message.removeprefix("file_data: "))

    @functools.cached_property
    def text(self) -> str:
        """The text of the file, after a line with its name.

        Raises:
            ValidationError: It is not base64, empty, or no text.
        """
        source, _ = self._source
        name = safe_file_name(source.filename) if source.filename else ""
        return f"[File{f': {name}' if name else ''}]\n{_text_of(source.file_data or '', 'file_data')}"

    @property
    def _source(self) -> tuple[FileSource, str]:
        """The file, and what stands before its fields."""
        if self.file is not None:
            return self.file, "file."
        return FileSource(file_data=self.file_data, filename=self.filename, file_id=self.file_id), ""


def _text_of(file_data: str, field: str) -> str:
    """Return the text of a file.

    Raises:
        ValidationError: It is not base64, empty, or no text.
    """
    data = read_base64(file_data, field)
    if data.startswith(b"%PDF"):
        raise ValidationError.in_field(field, "is a PDF, which is not read; send its text, or its pages as images")
    if ImageFormat.of(data[:SIGNATURE_BYTES]) is not None:
        raise ValidationError.in_field(field, "is an image; send it in a part of the type image_url")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValidationError.in_field(field, "is no text in UTF-8, and other files are not read; send its text")
    return text
