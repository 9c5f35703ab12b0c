"""Reads text files that the command line names."""

import os
import stat

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
