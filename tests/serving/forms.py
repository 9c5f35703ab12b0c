"""Forms with files, as clients send them, and what they leave on the disk."""

import glob
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from serving.running import RunningServer

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

FormPart = tuple[str, str | tuple[str, bytes]]
"""The name of a field, and its text, or the name of a file and its content."""


def encoded_form(parts: Sequence[FormPart]) -> bytes:
    """Return the body of a form."""
    lines = b""
    for name, value in parts:
        filename, data = value if isinstance(value, tuple) else (None, value.encode())
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        lines += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


def post_form(server: RunningServer, path: str, parts: Sequence[FormPart]) -> tuple[int, Any]:
    """Send a form and return status and body."""
    status, _, body = server.request("POST", path, encoded_form(parts), {"Content-Type": FORM})
    return status, body


def uploads_left_behind() -> list[str]:
    """Return the files of uploads that are still on the disk."""
    return glob.glob(os.path.join(tempfile.gettempdir(), "mlxk-upload-*"))
