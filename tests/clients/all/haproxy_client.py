"""HAProxy with the configuration of docs/cluster.md before two servers, of which one is ended and one is killed."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import replicas
from coding_agents import NOT_RUN

CONFIGURATION = Path(__file__).parents[3] / "docs" / "examples" / "haproxy.cfg"
FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where systems have it, which is not always among a user's own folders of programs."""

if __name__ == "__main__":
    program = shutil.which("haproxy") or shutil.which("haproxy", path=FOLDERS)
    if program is None:
        sys.stdout.write("haproxy is not installed\n")
        sys.exit(NOT_RUN)
    with tempfile.TemporaryDirectory() as folder, replicas.two_replicas() as servers:
        port, control = replicas.free_port(), Path(folder) / "control"
        text = CONFIGURATION.read_text(encoding="utf-8")
        for written, meant in ((8080, port), (8001, servers[0].port), (8002, servers[1].port)):
            assert f"127.0.0.1:{written}" in text
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{meant}")
        configuration = Path(folder) / "haproxy.cfg"
        configuration.write_text(text.replace("global\n", f"global\n    stats socket {control}\n"), encoding="utf-8")

        def both_taken() -> bool:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(control))
                connection.sendall(b"show stat\n")
                stated = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            return len(re.findall(r"^mlxk,(?:one|two),.*,UP,", stated, re.MULTILINE)) == 2

        with subprocess.Popen([program, "-db", "-f", configuration], stderr=subprocess.DEVNULL) as proxy:
            try:
                replicas.eventually(control.exists, "haproxy starts")
                replicas.eventually(both_taken, "haproxy takes both servers")
                url = f"http://127.0.0.1:{port}"
                replicas.try_ends(url, "demo", servers, taken_again=both_taken)
            finally:
                proxy.terminate()
