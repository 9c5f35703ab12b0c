"""The supervisor with workers that cannot be started, die, or report errors."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlxk.entrypoints.http.process.supervisor import Supervisor
from mlxk.entrypoints.settings import ServerSettings

PROGRAM = """
import json, os, resource, sys, time
from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.http.process.supervisor import Supervisor
from mlxk.entrypoints.settings import ServerSettings

descriptors, *command = json.loads(sys.argv[1])
if descriptors:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
try:
    print("status", Supervisor(ServerSettings(), [], lambda: print("ready"), None, command).run())
except MlxkError as error:
    print(error.code, error.message, error.hint, error.detail, sep="|")
"""


def supervise(*command: str, descriptors: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a supervisor of some worker in a process of its own."""
    words = json.dumps([descriptors, *command])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, words], capture_output=True, text=True, timeout=60, check=True
    )


def worker(*lines: str) -> Sequence[str]:
    """Return the command line of a worker that runs a program."""
    return (sys.executable, "-c", "; ".join(lines))


def test_a_worker_that_cannot_be_run_is_named() -> None:
    ended = supervise("/nowhere/python")
    assert ended.stdout.startswith("execution_error|The server's worker died 6 times")
    assert ended.stderr == "/nowhere/python cannot be run: No such file or directory\n" * 6


def test_a_system_without_descriptors_for_a_worker_is_reported() -> None:
    ended = supervise(sys.executable, descriptors=8)
    assert ended.stdout.startswith("execution_error|no worker can be started: Too many open files|See which limits")
    assert ended.stderr == ""


def test_an_error_of_a_worker_ends_the_server_and_keeps_its_detail() -> None:
    ended = supervise(
        *worker(
            "import sys",
            "from mlxk.domain.errors import StorageError",
            "from mlxk.entrypoints.http.process.supervisor import report_line",
            "sys.stdout.write(report_line(StorageError('m', detail={'a': 1})).decode())",
        )
    )
    assert ended.stdout == "storage_error|m|None|{'a': 1}\n"


@pytest.mark.parametrize("error", ["MemoryError", "SystemError"])
def test_a_worker_without_memory_for_its_libraries_says_so_and_is_not_started_again(error: str) -> None:
    ended = supervise(
        *worker(
            "from mlxk.entrypoints.http.process import worker",
            f"worker.main(lambda *_: (_ for _ in ()).throw({error}('error return without exception set')))",
        )
    )
    said = "This process may not have as much memory, or as many threads, as the server takes."
    assert (ended.stdout, ended.stderr) == (f"insufficient_memory|{said}|See its limits: ulimit -a|None\n", "")


def test_reports_that_arrive_together_are_read_one_by_one() -> None:
    ended = supervise(
        *worker(
            "import sys",
            "from mlxk.domain.errors import StorageError",
            "from mlxk.entrypoints.http.process.supervisor import report_line",
            "sys.stdout.write((report_line(None) + report_line(StorageError('m'))).decode())",
        )
    )
    assert ended.stdout == "ready\nstorage_error|m|None|None\n"


def test_a_worker_that_dies_before_it_reads_its_orders_is_restarted() -> None:
    ended = supervise(*worker("import sys", "sys.stdin.close()", "sys.exit(3)"))
    assert "died 6 times" in ended.stdout


def test_a_change_of_the_source_is_noticed_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    supervisor = Supervisor(ServerSettings(), [], lambda: None, str(tmp_path))
    assert not supervisor._source_changed(str(tmp_path))
    os.utime(tmp_path / "a.py", (2_000_000_000, 2_000_000_000))
    assert supervisor._source_changed(str(tmp_path))
    assert not supervisor._source_changed(str(tmp_path))
