"""Runs a tool server and ends it, with its children, when the program that started it has ended, even when killed.

Run as a script, with the server's command as arguments, as the leader of a process group, and with the server's
standard input and output. It imports nothing of mlxk, so that it starts fast.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time

POLL_SECONDS = 0.5
"""Interval of the checks whether standard input is closed."""

END_SECONDS = 2.5
"""How long a server may run after the end of its input; longer than an orderly client waits before it ends it."""

KILL_SECONDS = 2.0
"""How long it may run after SIGTERM."""


def end_with_input() -> None:
    """Wait until standard input is closed, without reading it, then end the process group, this process included."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not any(events & select.POLLHUP for _, events in poll.poll(0)):
        time.sleep(POLL_SECONDS)
    time.sleep(END_SECONDS)
    os.killpg(os.getpid(), signal.SIGTERM)
    time.sleep(KILL_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run a server; its children end with it."""
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # ignored here; unlike SIG_IGN, a handler is not inherited by the server
    try:
        server = subprocess.Popen(command)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and error.filename == command[0]
        reason = f"there is no program '{command[0]}'" if missing else f"{error.filename}: {error.strerror}"
        sys.stderr.write(f"{reason}\n")
        return 127
    threading.Thread(target=end_with_input, daemon=True).start()
    status = server.wait()
    os.killpg(os.getpid(), signal.SIGTERM)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
