"""A library that is not installed is named in one line, with the command that installs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys
sys.modules[sys.argv[1]] = None
from mlxk.entrypoints.main import main
sys.exit(main(sys.argv[2:]))
"""

CASES = {
    "images": ("mlx_vlm", ["run", "demo-vision", "What color?", "--image", "demo-vision/blue-square.jpg"]),
    "tools": ("mcp", ["run", "demo", "hi", "--mcp", "servers.json"]),
    "server": ("mlx_lm", ["serve", "--no-supervisor", "--port", "0"]),
}


@pytest.mark.parametrize(("module", "arguments"), CASES.values(), ids=CASES)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    module: str, arguments: list[str], program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, *arguments, "--json"],
        env=program_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    error = json.loads(done.stdout)["error"]
    package = module.replace("_", "-")
    assert done.returncode == 1
    assert error["type"] == "backend_not_installed"
    assert f"needs {package}" in error["message"]
    assert error["hint"] == f"Install it: pip install {package}"
    assert "Traceback" not in done.stderr


def test_why_a_library_cannot_be_imported_is_for_the_log_and_not_for_clients(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mlx_lm").mkdir()
    (tmp_path / "mlx_lm" / "__init__.py").write_text("raise ImportError('no symbol in /opt/secret.so')")
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", "serve", "--no-supervisor", "--port", "0", "--json", "--log-json"],
        env={**program_environment, "PYTHONPATH": f"{tmp_path}:{program_environment['PYTHONPATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    error, logged = json.loads(done.stdout)["error"], json.loads(done.stderr)
    assert (done.returncode, error["type"]) == (1, "execution_error")
    assert error["message"] == "Running text models needs a library that cannot be imported."
    assert (logged["level"], logged["msg"]) == ("ERROR", "a library cannot be imported")
    assert logged["reason"] == "no symbol in /opt/secret.so"
    assert "secret" not in done.stdout
