"""The program in the process of the tests, for a tenth of the processor time of a process that runs a model.

It is for what is said, written and answered; a test about a process, its signals or its end needs one.
"""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock


def run(
    arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path, stdin: str | bytes = ""
) -> "subprocess.CompletedProcess[str]":
    """Do what ``mlxk`` does with these arguments, this environment, this working directory and this text in a pipe."""
    from mlxk.entrypoints.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        contextlib.chdir(folder),
        _piped(stdin),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # as in a process of its own
        status = main([*arguments])
    for stream in (out, err):
        stream.seek(0)
    return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


@contextlib.contextmanager
def _piped(text: str | bytes) -> Iterator[None]:
    """Make a pipe with a text the standard input of this process."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    os.write(writing, text.encode() if isinstance(text, str) else text)
    os.close(writing)
    try:
        with open(0, encoding="utf-8", closefd=False) as stream, mock.patch.object(sys, "stdin", stream):
            yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
