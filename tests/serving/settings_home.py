"""A home with a settings file, and the program in it, in this process."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import ServerSettings, read_settings


@attrs.frozen
class Done:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The data of its JSON document."""
        return json.loads(self.out)["data"]


@attrs.define
class Machine:
    """A home with a settings file, and the program in it."""

    home: Path
    capsys: pytest.CaptureFixture[str]
    served: list[ServerSettings] = attrs.field(factory=list)

    @property
    def file(self) -> Path:
        """The settings file."""
        return self.home / ".config" / "mlxk" / "config.toml"

    def write(self, text: str) -> None:
        """Write the file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text)

    def __call__(self, *arguments: str, **variables: str) -> Done:
        """Run a command; keyword arguments are variables."""

        def serve(_: Any, server: ServerSettings, __: Any) -> int:
            self.served.append(server)
            return 0

        with open(os.devnull) as null:
            settings = read_settings({"HOME": str(self.home), **variables})
            status = run(arguments, CommandContext(settings, build, serve, null.fileno()))
        printed = self.capsys.readouterr()
        return Done(status, printed.out, printed.err)

    def serve(self, *flags: str, **variables: str) -> RunningServer:
        """Return a server with these flags, on the real engine."""
        done = self("serve", *flags, **variables)
        assert done.status == 0, done.err
        program: Any = WholeProgram(self.home, self.served[-1], **variables)
        return RunningServer(program)
