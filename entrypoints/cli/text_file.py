"""Reads text files that the command line names, and has the user edit some."""

import os
import shlex
import shutil
import stat
import subprocess
from typing import TextIO

from mlxk.domain.errors import StorageError, ValidationError


def read_text(path: str, flag: str, most_bytes: int, hint: str = "Save it as UTF-8 text.") -> str:
    """Return the text of a file or of a pipe, such as a shell's ``<(command)``.

    Args:
        path: As typed; ``~`` is the home directory.
        flag: The flag that it was given to, for error messages.
        most_bytes: The largest size that is read.
        hint: What to do about a file that is not UTF-8 text.

    Raises:
        StorageError: It cannot be read.
        ValidationError: It is no file, too large, or no UTF-8 text.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
                raise ValidationError(f"{flag}: '{path}' is no regular file")
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise StorageError(f"{flag}: '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL among the characters
        raise ValidationError(f"{flag}: '{path}' cannot be the name of a file") from error
    if len(content) > most_bytes:
        raise ValidationError(f"{flag}: '{path}' is larger than {most_bytes // 1024**2} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValidationError(f"{flag}: '{path}' is not UTF-8 text", hint=hint) from error


EDITORS = ("nano", "vi")
"""Editors to try where the user's variable names none."""


def edited(path: str, editor: str | None, otherwise: str, stdout: TextIO | None = None) -> bytes:
    """Run the user's editor on a file, and return what it holds afterwards.

    Args:
        path: The file.
        editor: The command, as a shell would read it; None tries ``EDITORS``.
        otherwise: What holds when the editor fails, for the error message.
        stdout: Where the editor writes; standard output when None.

    Raises:
        ValidationError: There is no editor, its command cannot be read, or it reports a failure.
        StorageError: It cannot be started, or the file cannot be read.
    """
    command = editor or next(filter(None, map(shutil.which, EDITORS)), None)
    if command is None:
        raise ValidationError("there is no editor", hint="Name one in the variable EDITOR.")
    try:
        done = subprocess.run([*shlex.split(command), path], check=False, stdout=stdout)
    except ValueError as error:
        raise ValidationError(f"VISUAL or EDITOR is no command: {error}") from error
    except OSError as error:
        raise StorageError(
            f"the editor '{command}' cannot be used: {error.strerror}", hint="Name another in the variable EDITOR."
        ) from error
    if done.returncode != 0:
        how = f"with status {done.returncode}" if done.returncode > 0 else f"by signal {-done.returncode}"
        raise ValidationError(f"the editor ended {how}; {otherwise}")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ValidationError(f"the editor has left no file; {otherwise}") from None
    except OSError as error:
        raise StorageError(f"what the editor wrote cannot be read: {error.strerror}") from error
