"""Parses requests, framed by RFC 9112, and translates the errors of requests that the application never sees."""

import re

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import BadRequest, Error

from mlxk.domain.errors import (
    InternalError,
    MlxkError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerShutdownError,
    StorageError,
    ValidationError,
)


def error_from_waitress(fault: Error) -> MlxkError:
    """Return our error for a request that waitress refused."""
    if fault.code == 408:
        return RequestTimeoutError("The request was not sent completely in time.")
    if fault.code == 413:
        return PayloadTooLargeError("The request body is larger than the server takes.")
    if fault.code == 431:
        return PayloadTooLargeError("The request headers are larger than the server takes.")
    if fault.code == 503:
        return ServerShutdownError("The server is shutting down.", hint="Send the request again in a moment.")
    if fault.code == 505:
        return ValidationError("The version of HTTP is not supported.", hint="Send the request with HTTP/1.1.")
    if fault.code == 507:
        return StorageError(
            f"The request cannot be stored: {fault.body or 'no folder for temporary files can be written'}.",
            hint="The server needs space in its folder for temporary files; see TMPDIR.",
        )
    if fault.code == 501:
        return ValidationError(
            "The transfer coding of the request is not supported.", hint="Send it with Transfer-Encoding: chunked only."
        )
    if fault.code >= 500:
        return InternalError("The server met an unexpected condition; its log says more.")
    return ValidationError("The request is not well-formed HTTP.")


class RequestExpiredError(Error):  # type: ignore[misc]  # waitress has no types
    """A request that did not arrive completely in time."""

    code = 408
    reason = "Request Timeout"


class ServerStoppingError(Error):  # type: ignore[misc]  # waitress has no types
    """A request that is still arriving when the server stops."""

    code = 503
    reason = "Service Unavailable"


class VersionNotSupportedError(Error):  # type: ignore[misc]  # waitress has no types
    """A request in another major version of HTTP."""

    code = 505
    reason = "HTTP Version Not Supported"


class CannotBeStoredError(Error):  # type: ignore[misc]  # waitress has no types
    """A request whose body cannot be written to the folder for temporary files."""

    code = 507
    reason = "Insufficient Storage"


_VERSION = re.compile(rb" HTTP/(\d)\.(\d)\s*(?=\r\n)")
_FOLDED = re.compile(rb"\r\n[ \t]+")
_TRANSFER_ENCODING = re.compile(rb"^transfer-encoding:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """Parses a request while it is received, framed by RFC 9112."""

    path = ""
    """Default for requests without a path, which waitress logs."""

    def received(self, data: bytes) -> int:
        """Parse bytes of the request; return how many were consumed."""
        try:
            taken: int = super().received(data)
        except ValueError:  # a Content-Length of thousands of digits, or a malformed address
            self.error = BadRequest("malformed")
        except OSError as error:
            self.error = CannotBeStoredError(error.strerror or "")
        else:
            # ``parse_header`` has set the error for an unknown version.
            if not isinstance(self.error, VersionNotSupportedError):
                return taken
        self.completed = self.headers_finished = True
        return len(data)

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the headers; refuse requests whose body another server could delimit differently.

        Raises:
            ParsingError: The headers are malformed or ambiguous.
        """
        version = _VERSION.search(header_plus.split(b"\n", 1)[0] + b"\n")
        if version is not None and version[1] != b"1":
            super().parse_header(b"GET / HTTP/1.0\r\n")
            self.error = VersionNotSupportedError("")
            return
        if version is not None and version[2] not in b"01":  # a later minor version
            header_plus = header_plus[: version.start()] + b" HTTP/1.1" + header_plus[version.end() :]
        transfer_encodings = _TRANSFER_ENCODING.findall(_FOLDED.sub(b" ", header_plus))
        codings = [each.strip(b" \t").lower() for each in b",".join(transfer_encodings).split(b",")]
        if transfer_encodings and (version is None or version[2] == b"0"):
            raise ParsingError("Transfer-Encoding belongs to HTTP/1.1")
        if transfer_encodings and (b"" in codings or b"chunked" in codings[:-1]):
            raise ParsingError("chunked must be the last transfer coding, once")
        super().parse_header(header_plus)
        if not self.version:
            raise ParsingError("the version is missing")
        connection = {each.strip().lower() for each in self.headers.get("CONNECTION", "").split(",")}
        # Content-Length and Transfer-Encoding may disagree, so what follows may not be a request.
        both = transfer_encodings and self.headers.pop("CONTENT_LENGTH", None) is not None
        if both or "close" in connection:
            self.headers["CONNECTION"] = "close"
        elif "keep-alive" in connection:
            self.headers["CONNECTION"] = "keep-alive"
