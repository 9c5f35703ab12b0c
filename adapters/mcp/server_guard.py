"""Runs a server of tools and ends it, with its children, when the program that started it has gone: even when killed.

Run as a script, with the server's command as arguments and as the leader of a process group, on standard input and
output of the server. It imports nothing of mlxk, so that it starts at once.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time

LOOK_SECONDS = 0.5
"""How often standard input is looked at."""

END_SECONDS = 2.5
"""How long a server may go on after the end of its input: longer than those who close it orderly wait."""

KILL_SECONDS = 2.0
"""How long it may go on after SIGTERM."""


def end_with_input() -> None:
    """Wait for the end of standard input, of which nothing is read, then end the process group with this process."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not any(events & select.POLLHUP for _, events in poll.poll(0)):
        time.sleep(LOOK_SECONDS)
    time.sleep(END_SECONDS)
    os.killpg(os.getpid(), signal.SIGTERM)
    time.sleep(KILL_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run a server; its children end with it."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # ignored here, but not in the server, as SIG_IGN would be
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
