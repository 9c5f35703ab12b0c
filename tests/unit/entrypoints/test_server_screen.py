"""The screen of ``top``: what it shows of servers, and what does not fit."""

import attrs
import pytest

from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.monitoring import (
    CpuShares,
    GpuReading,
    MachineReading,
    MachineSample,
    MemoryKind,
    ProcessTree,
    ServerHistory,
    ServerReading,
    WatchedModel,
    WatchSummary,
)
from mlxk.entrypoints.cli.render.monitoring import Moment, lines, screen, server_json, sparkline, summary_text

ENGINE = EngineFigures(2, 1, 1000, 250, 50, 900 * 10**6, 100 * 10**6)
MACHINE = MachineReading(16 * 10**9, 4 * 10**9, pressure=2, swap_used_bytes=10**6, cpu=CpuShares(20, 10, 70))
SERVER = ServerReading(
    "http://a",
    7,
    (WatchedModel("org/b", 700 * 10**6, True, 61.55), WatchedModel("demo", 2 * 10**6)),
    ENGINE,
    ProcessTree(2, 10**9, MemoryKind.RESIDENT),
)


def sample(elapsed: float, *servers: ServerReading, faults: tuple[str, ...] = ()) -> MachineSample:
    return MachineSample(1e9 + elapsed, elapsed, MACHINE, None, servers, faults)


def moments(*samples: MachineSample) -> list[Moment]:
    history = ServerHistory()
    return [Moment(each, history.add(each), history.gone) for each in samples]


def later(**changes: int) -> ServerReading:
    return attrs.evolve(SERVER, engine=attrs.evolve(ENGINE, **changes))


def test_a_screen_has_the_machine_and_every_part_of_a_server() -> None:
    moment = moments(sample(0, SERVER), sample(2, later(generated_tokens=150, prompt_tokens=1400)))[-1]
    text = [line for line, _ in screen(moment, 200, 50)]
    assert text[0].startswith("mlxk top  ")
    assert text[0].endswith("  1 server  (q ends)")
    assert text[1:] == [
        "memory 12.0GB of 16.0GB used, swap 1.0MB, pressure warning, processor 30 %",
        "",
        "http://a (process 7)",
        "  2 running, 1 waiting, 50.0 tokens/s generated, 200.0 tokens/s of prompts, "
        "18 % of prompts kept from earlier ones",
        "  █ at most 50.0 tokens/s",
        "  memory 1.0GB, arrays 900.0MB (weights 702.0MB, kept prompts 100.0MB, answers and others 98.0MB)",
        "  Model | Size    | Tokens/s |",
        "  ------+---------+----------+-------",
        "  org/b | 700.0MB | 61.5     | in use",
        "  demo  | 2.0MB   | -        | idle",
    ]
    assert [line for line, heading in screen(moment, 200, 50) if heading] == [text[0], text[3]]


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (20, 3), (40, 8), (80, 24)])
def test_what_does_not_fit_is_left_out(columns: int, rows: int) -> None:
    moment = moments(sample(0, SERVER))[-1]
    shown = screen(moment, columns, rows)
    assert len(shown) <= rows
    assert max(len(line) for line, _ in shown) <= columns


def test_a_server_that_has_gone_is_shown_until_it_is_back() -> None:
    shown = moments(sample(0, SERVER), sample(1), sample(4), sample(5, SERVER))
    assert [list(each.absences()) for each in shown] == [
        [],
        ["http://a is gone since 0s; waiting for it"],
        ["http://a is gone since 3s; waiting for it"],
        [],
    ]


def test_why_there_is_no_server_is_said() -> None:
    none, fault = moments(sample(0))[0], moments(sample(0, faults=("the server cannot be asked: refused",)))[0]
    assert lines(none)[0].endswith(
        "no server of yours is running; waiting for one (mlxk serve --background starts one)"
    )
    assert lines(fault)[0].endswith("the server cannot be asked: refused; waiting for it")


def test_an_engine_that_is_busy_or_says_nothing_is_said() -> None:
    busy, silent = attrs.evolve(ENGINE, responding=False), None
    texts = [lines(moments(sample(0, attrs.evolve(SERVER, engine=each)))[0])[0] for each in (busy, silent)]
    assert "its engine is busy and has not answered, memory 1.0GB" in texts[0]
    assert "it does not say what it does, memory 1.0GB" in texts[1]


def test_rates_leave_out_readings_without_an_answer_of_the_engine_and_new_processes() -> None:
    busy = attrs.evolve(SERVER, engine=attrs.evolve(ENGINE, responding=False))
    shown = moments(
        sample(0, SERVER),
        sample(1, busy),
        sample(2, later(generated_tokens=90)),
        sample(3, later(generated_tokens=0, prompt_tokens=0, cached_tokens=0)),
        sample(4, later(generated_tokens=5, prompt_tokens=0, cached_tokens=0)),
    )
    rates = [each.servers[0].rates for each in shown]
    assert [rate and rate.generated_tokens for rate in rates] == [None, None, 20.0, None, 5.0]
    assert shown[-1].servers[0].speeds == (20.0, 5.0)


def test_names_that_act_on_a_terminal_are_escaped() -> None:
    hostile = attrs.evolve(SERVER, models=(WatchedModel("a\x1b[2J\nb", 1),))
    moment = moments(sample(0, hostile))[0]
    assert all("\x1b" not in line and "\n" not in line for line, _ in screen(moment, 200, 50))
    assert all("\x1b" not in line and "\n" not in line for line in lines(moment))


def test_bars_are_those_of_the_last_values_by_the_greatest_of_them() -> None:
    assert sparkline([9.0, 0.0, 3.5, 7.0], 3) == "▁▅█ at most 7.0 tokens/s"
    assert sparkline([0.0, 0.0], 10) == "▁▁ at most 0.0 tokens/s"
    assert sparkline([0.0, 7.0], 10, plain=True) == "_# at most 7.0 tokens/s"


def test_a_gpu_is_shown_where_the_system_reports_it() -> None:
    moment = moments(attrs.evolve(sample(0), machine=attrs.evolve(MACHINE, gpu=GpuReading(88.0))))[0]
    assert screen(moment, 200, 5)[1][0].endswith("GPU 88 %")


def test_what_was_watched_is_summed_up_a_line_for_each_thing_that_is_known() -> None:
    there = attrs.evolve(sample(1, SERVER), command=ProcessTree(3, 2 * 10**9, MemoryKind.PROPORTIONAL))
    full = attrs.evolve(
        sample(2.5),
        machine=MachineReading(
            16 * 10**9, 10**9, swap_used_bytes=3 * 10**6, pressure=4, cpu=CpuShares(15, 6, 79), gpu=GpuReading(50.0)
        ),
    )
    summary = WatchSummary.of([sample(0), there, full])
    assert summary_text(summary, 0.5, 7).splitlines() == [
        "Time       2.5s, 3 samples, one every 0.5s",
        "Command    exit status 7; at most 2.0GB in 3 processes (pss)",
        "Memory     12.0GB to 15.0GB of 16.0GB used",
        "Swap       at most 3.0MB",
        "Pressure   critical",
        "Processor  27 % on average, at most 30 %",
        "GPU        50 % on average, at most 50 %",
        "Servers    at most 1.0GB",
        "Arrays     at most 900.0MB in the servers' engines",
        "Model      demo in memory from 1.0s to 2.5s",
        "Model      org/b in memory from 1.0s to 2.5s",
    ]


def test_a_summary_of_little_is_short() -> None:
    machine = MachineReading(free_bytes=10**9)
    one = attrs.evolve(sample(0), machine=machine, command=ProcessTree(1, 10**6, MemoryKind.RESIDENT))
    first, *others = summary_text(WatchSummary.of([one]), 2, 0).splitlines()
    assert first == "Time       0.0s, 1 sample, one every 2s"
    assert others == [
        "Command    exit status 0; at most 1.0MB in 1 process (rss)",
        "Memory     1.0GB to 1.0GB free",
    ]
    bare = WatchSummary.of([attrs.evolve(one, machine=MachineReading(), command=None)])
    assert summary_text(bare, 2, 0).splitlines() == [first, "Command    exit status 0"]
    assert summary_text(bare, 2, None) == first


def test_a_server_in_json_has_null_for_what_it_does_not_say() -> None:
    assert server_json(ServerReading("http://a", None, (WatchedModel("demo", 5),), None, None)) == {
        "url": "http://a",
        "pid": None,
        "models": [{"name": "demo", "weight_bytes": 5, "in_use": False, "tokens_per_second": None}],
        "engine": None,
        "memory": None,
    }
    full = server_json(SERVER)
    assert full["engine"] == attrs.asdict(ENGINE)
    assert full["memory"] == {"processes": 2, "memory_bytes": 10**9, "memory_kind": "rss", "cpu_percent": None}


def test_a_server_without_a_model_in_memory_says_so() -> None:
    shown = screen(moments(sample(0, attrs.evolve(SERVER, models=())))[0], 200, 50)
    assert shown[-1] == ("  no model in memory", False)


def test_a_plain_screen_has_no_letters_beyond_ascii_and_marks_what_is_cut() -> None:
    odd = attrs.evolve(SERVER, models=(WatchedModel("größe", 1),))
    text = [line for line, _ in screen(moments(sample(0, odd))[0], 30, 50, plain=True)]
    assert "  gr??e" in {line.partition(" |")[0] for line in text}
    assert all(line.isascii() for line in text)
    assert any(len(line) == 30 and line.endswith(">") for line in text)
