"""``mlxk doctor --hosts``: hosts that are well, and each fault of one, through a script in the place of ssh.

Its command is that of docs/cluster.md. Where a network can be made, the second host has a network stack of its own:
root and Linux only.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from models import tiny_models
from models.cached_models import put
from serving.networks import HERE, THERE, limited, link, may_make_networks
from serving.running import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]
on_a_network = pytest.mark.skipif(not may_make_networks(), reason="it needs root, ip, and network namespaces")
__all__ = ["link"]

Document = dict[str, Any]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

NAME = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done\nname=$1\nshift\n'
"""Has ``$name`` be what ssh is given, and ``$*`` what is run there."""


@attrs.frozen
class Hosts:
    """A file of hosts, and a script in the place of ssh."""

    folder: Path
    environment: dict[str, str]
    breaches: Callable[[str, Any], list[str]]
    """Returns what a document breaks of a contract."""

    def are(self, hosts: dict[str, str], cases: str, **fields: object) -> None:
        """Write the file, with an address for each name, and the script: what it does by name."""
        (self.folder / "bin").mkdir(exist_ok=True)
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(f"{NAME}case $name in\n{cases}\nesac\n")
        ssh.chmod(0o755)
        entries = [{"ssh": name, "ips": [address]} for name, address in hosts.items()]
        (self.folder / "hosts.json").write_text(json.dumps({"hosts": entries, **fields}))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start ``mlxk doctor``."""
        command = [sys.executable, "-m", "mlxk", "doctor", "--hosts", "hosts.json", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=self.environment, cwd=self.folder, **pipes)

    def checked(self, *arguments: str) -> tuple[int, Document]:
        """Return the exit status and the data of ``mlxk doctor``, which keeps to its contract."""
        with self.start("--json", *arguments) as process:
            printed, said = process.communicate(timeout=100)
        assert said == ""
        document = json.loads(printed)
        assert self.breaches("doctor", document) == []
        return process.returncode, document["data"]


def faults(data: Document, host: str | None) -> list[str]:
    """Return the faults of a host; None: of all else."""
    return [each["fault"] for each in data["checks"] if each.get("host") == host and each["fault"]]


def evidence(data: Document, host: str | None, check: str) -> str:
    """Return what was seen of a host."""
    return next(each["evidence"] for each in data["checks"] if (each.get("host"), each["check"]) == (host, check))


@pytest.fixture
def hosts(tmp_path: Path, program_environment: dict[str, str], request: pytest.FixtureRequest) -> Hosts:
    """Return a folder with no hosts yet."""
    program_environment["PATH"] = f"{tmp_path / 'bin'}:{program_environment['PATH']}"
    return Hosts(tmp_path, program_environment, request.getfixturevalue("faults"))


def model_at(folder: Path, seed: int) -> None:
    """Put a model of random numbers into a cache."""
    handle = tiny_models.build(folder / "built", "llama", seed)
    put(folder, "org/spread", {file.name: file.read_bytes() for file in Path(handle.directory).iterdir()})


@on_a_network
def test_two_hosts_that_are_well_are_measured_over_their_own_addresses(link: str, hosts: Hosts) -> None:
    model_at(hosts.folder / "home", 0)
    hosts.are({"one": HERE, "two": THERE}, f'two) echo Welcome; exec ip netns exec {link} sh -c "$*" ;;')
    fastest = limited(link)
    status, data = hosts.checked("--model", "org/spread")
    assert [each for each in data["checks"] if each["fault"]] == []
    assert (status, data["warning_count"], data["failure_count"]) == (0, 0, 0)
    assert [(each["from"], each["to"], each["address"]) for each in data["links"]] == [
        ("one", "two", THERE),
        ("two", "one", HERE),
    ]
    for each in data["links"]:
        assert 0 < each["round_trip_seconds"] < 1
        assert each["problem"] is None
    assert 1e6 < data["links"][0]["bytes_per_second"] < fastest
    assert data["links"][1]["bytes_per_second"] > 1e6
    for each in data["hosts"]:
        assert (each["answers"], each["files"], each["fit"], "ring" in each["backends"]) == (True, "same", "fits", True)
    assert len({each["content_digest"] for each in data["hosts"]}) == 1
    assert "neither encrypted nor signed" in evidence(data, None, "network")
    assert evidence(data, "two", "reached").startswith("ssh reaches it without a question; it answers after ")


@on_a_network
def test_addresses_of_other_hosts_and_ports_that_are_taken_are_named(link: str, hosts: Hosts) -> None:
    within = ("ip", "netns", "exec", link)
    span = "/proc/sys/net/ipv4/ip_local_port_range"
    subprocess.run([*within, "sh", "-c", f"echo 40000 40001 > {span}"], check=True)
    hold = "import socket, sys\nall = [socket.create_server(('198.18.78.2', 40000 + each)) for each in (0, 1)]\ninput()"
    taker = subprocess.Popen([*within, sys.executable, "-c", hold], stdin=subprocess.PIPE)
    try:
        eventually(
            lambda: (
                ":9C41 "
                in subprocess.run([*within, "cat", "/proc/net/tcp"], capture_output=True, text=True, check=True).stdout
            )
        )
        inside = f'exec ip netns exec {link} sh -c "$*" ;;'
        hosts.are({"one": HERE, "two": THERE, "far": "198.18.78.9"}, f"*) {inside}")
        status, data = hosts.checked()
    finally:
        taker.communicate(b"")
    assert status == 1
    assert (faults(data, "two"), faults(data, "far")) == (["ports_taken"], ["address_elsewhere"])
    seen = evidence(data, "far", "address")
    assert seen == f"198.18.78.9 is no address of this host; by {THERE} it reaches the first host"


def test_other_versions_and_other_files_are_named(hosts: Hosts) -> None:
    model_at(hosts.folder / "home", 0)
    model_at(hosts.folder / "other", 1)
    older = """sed -u 's/"mlx-lm": "[^"]*"/"mlx-lm": "0.1"/'"""
    hosts.are(
        {"one": "127.0.0.1", "two": "127.0.0.1"},
        f'two) HF_HOME={hosts.folder}/other/hf sh -c "$*" | {older} ;;',
        backend="jaccl",
    )
    status, data = hosts.checked("--model", "org/spread")
    assert (status, faults(data, "one")) == (1, [])
    assert faults(data, "two") == ["version_differs", "model_differs"]
    assert "mlx-lm 0.1, Python 3." in evidence(data, "two", "versions")
    assert [each["files"] for each in data["hosts"]] == ["same", "other"]
    assert faults(data, None) == ["backend_not_used"]
    assert len(data["links"]) == 2


UNANSWERED = {
    "away": ("echo 'ssh: connect to host away port 22: No route to host' >&2; exit 255", "host_unreachable"),
    "locked": ("echo 'ada@locked: Permission denied (publickey,password).' >&2; exit 255", "host_refused"),
    "new": ("echo 'No ED25519 host key is known for new and you have requested strict checking.' >&2\n"
            "echo 'Host key verification failed.' >&2; exit 255", "host_key_unknown"),
    "changed": ("echo '@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @' >&2\n"
                "echo 'Host key verification failed.' >&2; exit 255", "host_key_changed"),
    "bare": ("echo Welcome; exec /nowhere/bin/python -m x", "no_interpreter"),
    "empty": (f"exec {sys.executable} -I -S -m mlxk.entrypoints.rank", "no_program"),
    "broken": ("echo 'Something is wrong' >&2; exit 3", "host_failed"),
}  # fmt: skip
"""What is in the place of ssh for a host, and the fault."""


def test_hosts_that_do_not_answer_are_named_with_the_reason_and_the_others_are_checked(hosts: Hosts) -> None:
    names = {"one": "127.0.0.1", **dict.fromkeys(UNANSWERED, "127.0.0.1")}
    hosts.are(names, "\n".join(f"{name}) {script} ;;" for name, (script, _) in UNANSWERED.items()))
    status, data = hosts.checked()
    assert (status, faults(data, "one")) == (1, [])
    assert {name: faults(data, name) for name in UNANSWERED} == {
        name: [fault] for name, (_, fault) in UNANSWERED.items()
    }
    assert evidence(data, "locked", "reached") == "ada@locked: Permission denied (publickey,password)."
    assert (data["links"], faults(data, None)) == ([], ["links_not_measured"])


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def started(folder: Path) -> int:
    """Return the number of the process that is in the place of ssh, once it runs."""
    eventually(lambda: (folder / "pid").exists() and (folder / "pid").read_text().endswith("\n"))
    return int((folder / "pid").read_text())


SLOW = "slow) echo $$ > pid; sleep 60 & wait ;;"


def test_a_silent_host_is_given_up_and_its_ssh_ended(hosts: Hosts) -> None:
    hosts.are({"one": "127.0.0.1", "slow": "127.0.0.1"}, SLOW)
    began = time.monotonic()
    with hosts.start("--timeout", "1") as process:
        printed, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert (process.returncode, said) == (1, "")
    assert "\n\nHost slow\n[x]  no answer within 1 seconds\n     Ranks there would not start in time.\n" in printed
    assert not runs(started(hosts.folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "termination"])
def test_a_signal_ends_what_was_started(number: int, hosts: Hosts) -> None:
    hosts.are({"one": "127.0.0.1", "slow": "127.0.0.1"}, SLOW)
    with hosts.start() as process:
        pid = started(hosts.folder)
        process.send_signal(number)
        printed, said = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in said
    assert not runs(pid)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "demo"), "--model needs --hosts"),
        (("--timeout", "3"), "--timeout needs --hosts"),
        (("--hosts", "hosts.json", "--online"), "--hosts and --online exclude each other"),
        (("--hosts", "absent.json"), "--hosts: 'absent.json' cannot be read: No such file or directory"),
    ],
)
def test_flags_that_need_or_exclude_each_other_say_so(
    words: tuple[str, ...], message: str, command: Callable[..., Document]
) -> None:
    assert command("doctor", *words)["error"]["message"] == message


def test_an_adapter_is_refused_as_by_every_command_before_any_host_is_asked(
    hosts: Hosts, command: Callable[..., Document]
) -> None:
    tiny_models.write_adapter(hosts.folder / "poet", tiny_models.build(hosts.folder / "model"))
    hosts.are({"one": "127.0.0.1", "two": "127.0.0.1"}, SLOW)
    lines = (
        ("doctor", "--hosts", "hosts.json", "--model", "./poet"),
        ("show", "./poet", "--hosts", "hosts.json"),
        ("run", "./poet", "Hello", "--hostfile", "hosts.json"),
    )
    errors = [command(*words)["error"] for words in lines]
    assert {(each["type"], each["message"].partition(" is ")[2]) for each in errors} == {
        ("capability_not_supported", "an adapter, and a model is spread over several processes without one.")
    }
    assert all("mlxk fuse " in each["hint"] for each in errors)
    assert not (hosts.folder / "pid").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", " is not valid JSON"),
        ("[" * 50_000, " is nested too deeply"),
        ("[]", "hosts: there must be a list of two hosts or more"),
        ('[{"ssh": "a", "ips": ["192.0.2.1"]}, {"ssh": "b", "ips": ["::1"]}]', "host 2 (b): ips: ::1 is not"),
        ('[{"ssh": "a", "ips": ["192.0.2.1"], "ssh": "b"}]', ' has the key "ssh" twice in one object'),
        ('{"hosts": [], "backend": "ring", "hosts": []}', ' has the key "hosts" twice in one object'),
        ('[{"ssh": "a", "ips": ["192.0.2.1"], "port": 1}, 2]', "host 1 (a): 'port' is no field of a host"),
        (None, " is no regular file"),
    ],
)
def test_a_file_that_is_wrong_is_refused_alike_by_every_command(
    content: str | None, fault: str, tmp_path: Path, command: Callable[..., Document]
) -> None:
    (tmp_path / "hosts.json").write_text(content or "")
    file = "/dev/zero" if content is None else "hosts.json"
    said = [
        command(*words, file)["error"]
        for words in (
            ("doctor", "--hosts"),
            ("show", "demo", "--hosts"),
            ("run", "demo", "Hello", "--hostfile"),
            ("serve", "--model", "demo", "--hostfile"),
        )
    ]
    assert {each["type"] for each in said} == {"validation_error"}
    messages = {each["message"].partition(": ")[2] for each in said}
    assert len(messages) == 1
    assert fault in messages.pop()


@pytest.mark.parametrize(
    "words",
    [("run", "demo", "Hello", "--temperature", "-1"), ("serve", "--model", "absent", "--pull")],
    ids=["run", "serve"],
)
def test_a_layer_of_mlx_that_is_not_used_is_said_by_what_computes(
    words: tuple[str, ...], hosts: Hosts, mlxk_here: Program
) -> None:
    hosts.are({"one": "127.0.0.1", "two": "127.0.0.1"}, "", backend="jaccl")
    done = mlxk_here(*words, "--hostfile", "hosts.json", HF_HUB_OFFLINE="1")
    said = done.stderr.splitlines()
    assert said[0] == "[hosts.json asks for jaccl; ranks exchange by MLX's ring over TCP]"
    assert (done.returncode, len(said) > 1) == (1, True)
