"""A log that cannot be written loses lines, never answers."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from serving.program import ServedProgram
from serving.running import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

FLAGS = (("--log-level", "debug"), ("--log-json", "--no-supervisor"))
"""Both kinds of log, with and without a supervisor."""


def assert_serves(server: ServedProgram) -> None:
    """Ask everything twice, whose log lines would be the first to fail and the ones after that."""
    for _ in range(2):
        assert server.chat() == 200
        assert server.chat(model="none of ours") == 404
        assert [server.ask("GET", path)[0] for path in ("/livez", "/readyz", "/v1/models", "/metrics")] == [200] * 4


@pytest.mark.parametrize("flags", FLAGS)
def test_a_server_whose_log_has_no_reader_any_more_answers(
    flags: tuple[str, ...], tmp_path: Path, program_environment: dict[str, str]
) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as pipe:
        server = ServedProgram(tmp_path, program_environment, "--model", "demo", *flags, stderr=pipe)
    with server:
        assert server.chat() == 200
        os.close(reader)
        assert_serves(server)
    assert server.process.returncode == 0


@pytest.mark.parametrize("flags", FLAGS)
def test_a_server_whose_log_is_not_read_answers(
    flags: tuple[str, ...], tmp_path: Path, program_environment: dict[str, str]
) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as pipe:
        os.set_blocking(writer, False)
        filler = 0
        while True:
            try:
                filler += os.write(writer, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        server = ServedProgram(tmp_path, program_environment, "--model", "demo", *flags, stderr=pipe)
    with server:
        assert_serves(server)
        with open(reader, "rb") as log:
            log.read(filler)
            assert b"serving" in log.readline() + log.readline() + log.readline()
            assert_serves(server)
    assert server.process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only")
@pytest.mark.parametrize("flags", FLAGS)
def test_a_server_whose_log_is_on_a_full_disk_answers(
    flags: tuple[str, ...], tmp_path: Path, program_environment: dict[str, str]
) -> None:
    with (
        open("/dev/full", "wb") as full,
        ServedProgram(tmp_path, program_environment, "--model", "demo", *flags, stderr=full) as server,
    ):
        assert_serves(server)
    assert server.process.returncode == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
def test_a_log_that_can_be_written_again_says_how_many_lines_were_lost(
    tmp_path: Path, program_environment: dict[str, str]
) -> None:
    log = tmp_path / "log"

    def allow(size: int) -> None:
        for line in subprocess.run(
            ["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True
        ).stdout.split():
            resource.prlimit(int(line), resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    with (
        log.open("wb") as stream,
        ServedProgram(tmp_path, program_environment, "--model", "demo", stderr=stream) as server,
    ):
        allow(log.stat().st_size + 20)
        assert_serves(server)
        allow(resource.RLIM_INFINITY)
        assert_serves(server)
        assert eventually(lambda: "lines of the log were lost" in log.read_text(), 30)
    lines = log.read_text().splitlines()
    assert [line for line in lines if line.startswith("[")][-1].startswith("[INFO] stopped")
    assert len([line for line in lines if not line.startswith("[")]) == 0
