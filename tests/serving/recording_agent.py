"""Stands in for an agent: writes what it was given, and what the server answers, to the file that ``RECORD`` names.

``DOES`` says what it does then: ``exit`` with the status of ``STATUS``, ``wait`` for a signal, ``stop`` itself like an
editor at Ctrl-Z, ``kill`` its server, or ``read`` a line of the terminal. At SIGINT and SIGTERM it ends with 40 and 41;
the first SIGINT it only reports.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import FrameType

interrupts: list[int] = []


def answer(address: str, key: str) -> object:
    """Return the models of a server, or the status of its refusal."""
    request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return [each["id"] for each in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        return error.code


def on_signal(number: int, frame: FrameType | None) -> None:
    """Report the first SIGINT; end at any other signal."""
    if number == signal.SIGINT and not interrupts:
        interrupts.append(number)
        os.write(1, b"agent: interrupted\n")
        return
    os._exit({signal.SIGINT: 40, signal.SIGTERM: 41}[number])  # type: ignore[index]


def main() -> int:
    """Write the record, then do as told."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    told = " ".join([*sys.argv, *os.environ.values()])
    found = re.search(r"http://127\.0\.0\.1:\d+", told)
    assert found, told
    key = os.environ.get("ANTHROPIC_AUTH_TOKEN") or os.environ["MLXK_API_KEY"]
    record = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "process": os.getpid(),
        "address": found[0],
        "key": key,
        "models": answer(found[0], key),
        "without_key": answer(found[0], "other"),
        "command_lines": subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout,
    }
    path = os.environ["RECORD"]
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.rename(f"{path}.new", path)
    match os.environ.get("DOES"):
        case "wait":
            time.sleep(60)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            os.write(1, b"agent: continued\n")
        case "kill":
            [server] = subprocess.run(
                ["pgrep", "-P", str(os.getppid()), "-f", "mlxk serve"], capture_output=True, text=True, check=True
            ).stdout.split()
            os.kill(int(server), signal.SIGKILL)
        case "read":
            sys.stdout.write(f"agent: read {input()}\n")
    return int(os.environ.get("STATUS", "0"))


if __name__ == "__main__":
    sys.exit(main())
