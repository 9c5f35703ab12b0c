"""The supervisor as the program it is, with workers that are none, and how it hands over to the one that tells why."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlxk.entrypoints.http import supervisor
from mlxk.entrypoints.http.handover import SUPERVISOR

OWN_MODULES = {"_collections_abc", "_stat", "genericpath", "os", "os.path", "posixpath", "select", "stat", "supervisor"}
"""What the supervisor adds to what the interpreter itself imports."""

END = "import json, signal, sys; print(json.dumps([sys.argv[-1], [*map(int, signal.pthread_sigmask(0, ()))]]))"
"""Tells what it was given, and which signals are held back from it."""


def supervise(worker: Sequence[str], limit: Callable[[], None] | None = None) -> tuple[Any, list[int], str]:
    """Run the supervisor; return the failure it reports, the signals it held back, and its standard error."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    words = ("1", str(nothing), str(nothing), "ready\n", "", *worker, supervisor.SEPARATOR, sys.executable, "-c", END)
    ended = subprocess.run(
        [*SUPERVISOR, *words],
        capture_output=True,
        text=True,
        pass_fds=(nothing,),
        preexec_fn=limit,
        timeout=60,
        check=False,
    )
    os.close(nothing)
    failure, held = json.loads(ended.stdout)
    return json.loads(failure), held, ended.stderr


def test_it_holds_nothing_but_a_little_of_the_standard_library() -> None:
    *interpreter, _, folder = SUPERVISOR
    look = (
        "import sys; sys.path.append(sys.argv[1]); had = {*sys.modules}; import supervisor; "
        "print(*sorted({*sys.modules} - had))"
    )
    seen = subprocess.run([*interpreter, look, folder], capture_output=True, text=True, timeout=60, check=True)
    assert seen.stdout.split() == sorted(OWN_MODULES)


def test_a_worker_that_cannot_be_run_is_named() -> None:
    failure, held, said = supervise(["/nowhere/python"])
    assert failure["failure"] == "execution_error"
    assert "died 6 times" in failure["message"]
    assert said == "/nowhere/python cannot be run: No such file or directory\n" * 6
    # Another Ctrl-C would show a traceback of the imports of the program that tells why.
    assert set(supervisor.stopping_signals()) <= set(held)


def test_a_system_that_has_nothing_left_for_a_worker_is_no_fault_of_the_program() -> None:
    failure, _, said = supervise([sys.executable], lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)))
    assert failure["message"] == "no worker can be started: Too many open files"
    assert said == ""
