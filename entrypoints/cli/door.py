"""What the program hands to the command line: settings, a way to build the container, and the other doors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container
    from mlxk.entrypoints.server_settings import ServerAddress, ServerSettings

Announcement = Callable[["ServerAddress"], str]
"""Returns the line to say on standard output when the server is ready."""

Serve = Callable[[Settings, "ServerSettings", Announcement], int]
"""Serves until a signal ends it, and returns the exit status.

It may go on as another program, so that it does not return; that one ends as this would.
"""


@attrs.frozen
class Door:
    """The world as a command sees it. Nothing here is built before it is asked for."""

    settings: Settings
    build: Callable[[Settings], "Container"]
    """Builds the container; called at most once a command."""
    read_pipe: Callable[[str, Callable[[str], None]], str]
    """Reads standard input and joins it with the words of the prompt."""
    serve: Serve
