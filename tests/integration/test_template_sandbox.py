"""Chat templates that are endless, greedy or broken: the process that renders them is ended, and replaced."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxk.adapters.mlx.prompting import template_sandbox
from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, TemplateFault, TemplateSandbox
from mlxk.domain.errors import InterruptedRunError
from mlxk.domain.generation.request import nobody_left

pytestmark = pytest.mark.mlx

_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_DOUBLES = "{% set n = namespace(x='abcdefgh') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


def _fault(template: str, seconds: float = 0.5) -> TemplateFault:
    """Return how a template fails; afterwards an ordinary one must still be rendered."""
    sandbox = TemplateSandbox(seconds, 256 * 1024**2)
    with pytest.raises(TemplateFault) as caught:
        sandbox.render(template, {})
    assert sandbox.render("{{ a }}", {"a": "ü"}) == "ü"
    return caught.value


@pytest.mark.parametrize(
    "template",
    [
        _LOOPS,
        _DOUBLES,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}text{% endfor %}{% endfor %}",
        "{% set l = [1] %}{% for a in range(99999) %}{{ '' if l.extend(l) }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_ended(template: str) -> None:
    fault = _fault(template)
    assert fault.kind in {FaultKind.LIMIT, FaultKind.FAILED}
    assert fault.kind is FaultKind.LIMIT or fault.message == "MemoryError"


@pytest.mark.parametrize("template", ["{{ 'a' * 10 ** 12 }}", "{{ 7 ** 1000000000 }}", "{{ [1] * 10 ** 12 }}"])
def test_a_value_that_is_too_large_is_not_computed(template: str) -> None:
    fault = _fault(template)
    assert (fault.kind, fault.message) == (FaultKind.FAILED, "OverflowError")


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        ("{{ raise_exception('no system') }}", FaultKind.REFUSED, "no system"),
        ("{% nonsense %}", FaultKind.INVALID, "Encountered unknown tag 'nonsense'."),
        ("{{ 1 / 0 }}", FaultKind.FAILED, "ZeroDivisionError"),
        ("{{ x.y.z }}", FaultKind.FAILED, "UndefinedError: 'x' is undefined"),
        (
            "{{ ''.__class__.__mro__ }}",
            FaultKind.FAILED,
            "SecurityError: access to attribute '__class__' of 'str' object is unsafe.",
        ),
    ],
)
def test_a_failure_is_told_in_the_template_s_words(template: str, kind: FaultKind, message: str) -> None:
    fault = _fault(template)
    assert (fault.kind, fault.message) == (kind, message)


def test_nobody_waits_for_a_rendering_that_nobody_wants_any_more() -> None:
    sandbox = TemplateSandbox(seconds=600)
    gone = threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            sandbox.render(_LOOPS, {}, gone.is_set)
        except InterruptedRunError as error:
            ended.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    gone.set()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 3
    assert sandbox.render("{{ a }}", {"a": 1}) == "1"


def test_who_waits_for_the_rendering_of_another_gets_a_text_and_who_has_gone_waits_no_longer() -> None:
    sandbox, said = TemplateSandbox(seconds=600), list[str]()
    going, gone, rendering = threading.Event(), threading.Event(), threading.Event()

    def render(template: str, name: str, is_abandoned: Callable[[], bool]) -> None:
        try:
            said.append(sandbox.render(template, {"name": name}, is_abandoned))
        except InterruptedRunError:
            said.append(f"{name} has gone")

    def renders() -> bool:
        rendering.set()
        return gone.is_set()

    first = threading.Thread(target=render, args=(_LOOPS, "first", renders), daemon=True)
    first.start()
    assert rendering.wait(60)
    waiting = [
        threading.Thread(target=render, args=("{{ name }}", "second", nobody_left), daemon=True),
        threading.Thread(target=render, args=("{{ name }}", "third", going.is_set), daemon=True),
    ]
    for thread in waiting:
        thread.start()
    time.sleep(3 * template_sandbox._POLL_SECONDS)
    assert said == []
    going.set()
    waiting[1].join(60)
    assert said == ["third has gone"]
    gone.set()
    for thread in (first, waiting[0]):
        thread.join(60)
    assert sorted(said) == ["first has gone", "second", "third has gone"]


def test_the_size_of_the_process_that_serves_does_not_count() -> None:
    """A process with a model is large, and the system may count that for the processes it starts."""
    memory = bytearray(200 * 1024**2)
    memory[::4096] = b"x" * len(memory[::4096])
    template = "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}done"
    assert TemplateSandbox(60, 100 * 1024**2).render(template, {}) == "done"


def test_templates_get_what_transformers_gives_them() -> None:
    template = (
        "{%- generation %}{{ messages | tojson }}{% endgeneration %}\n"
        "    {%- for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}\n"
        "{{ strftime_now('%Y') | length }}{{ dict(a=1).a }}{{ [1, 2] | map('string') | tojson }}"
    )
    text = TemplateSandbox().render(template, {"messages": [{"ü": "<😀"}]})
    assert text == '[{"ü": "<😀"}]1341["1", "2"]'


def _children() -> set[int]:
    """Return the processes that this one has started."""
    return {
        int(child) for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    }


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


@needs_proc
def test_a_process_that_was_started_ahead_is_the_next_one_s_and_there_is_one_only() -> None:
    TemplateSandbox().render("", {})  # takes one that an earlier test left
    before = _children()
    template_sandbox.start_ahead()
    template_sandbox.start_ahead()
    (ahead,) = _children() - before
    sandbox = TemplateSandbox()
    assert sandbox.render("{{ a }}", {"a": 1}) == "1"
    assert _children() - before == {ahead}


@needs_proc
def test_a_process_that_somebody_ends_is_replaced() -> None:
    sandbox = TemplateSandbox(seconds=600)
    before = _children()
    sandbox.render("", {})
    (process,) = _children() - before
    os.kill(process, signal.SIGKILL)
    assert sandbox.render("{{ a }}", {"a": 1}) == "1"


_HOLDER = """
import sys, threading
from mlxk.adapters.mlx.prompting.template_sandbox import TemplateSandbox
sandbox = TemplateSandbox()
sandbox.render("", {})
print(sandbox._process._child.pid, flush=True)
if len(sys.argv) > 1:
    sandbox.render(sys.argv[1], {})
threading.Event().wait()
"""


@needs_proc
@pytest.mark.parametrize("template", [(), (_LOOPS,)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_process_ends_with_the_one_that_started_it(template: tuple[str, ...], number: signal.Signals) -> None:
    command = [sys.executable, "-c", _HOLDER, *template]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        process = int(holder.stdout.readline())
        assert os.getpgid(process) == process, "Ctrl-C on the terminal would reach it"
        holder.send_signal(number)
    until = time.monotonic() + 120
    while Path(f"/proc/{process}").exists() and "Z" not in _state(process):
        assert time.monotonic() < until
        time.sleep(0.05)


def _state(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"
