"""How a version is built, checked and published: workflows, the same bytes each time, what is beside the packages."""

import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import mlxk

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module", params=WORKFLOWS, ids=lambda path: path.stem)
def text(request: pytest.FixtureRequest) -> str:
    return str(request.param.read_text(encoding="utf-8"))


def jobs(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return found


def test_every_action_is_one_commit_with_its_version_beside_it(text: str) -> None:
    used = re.findall(r"uses: (.+)$", text, re.MULTILINE)
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []


def test_a_job_may_read_and_only_the_one_that_publishes_may_identify_itself(text: str) -> None:
    assert yaml.safe_load(text)["permissions"] in ({}, {"contents": "read"})
    written = {name: job["permissions"] for name, job in jobs(text).items() if "permissions" in job}
    allowed = {"publish": {"id-token": "write"}}
    assert {name: allowed.get(name, {"contents": "read"}) for name in written} == written
    assert "secrets." not in text
    assert all("timeout-minutes" in job for job in jobs(text).values())


def test_what_a_workflow_runs_exists(text: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    steps = [step["run"] for job in jobs(text).values() for step in job["steps"] if "run" in step]
    assert set(re.findall(r"^make ([a-z-]+)", "\n".join(steps), re.MULTILINE)) <= targets
    assert all((ROOT / script).exists() for script in re.findall(r"^(tools/\S+)", "\n".join(steps), re.MULTILINE))


def test_the_checks_run_on_every_system_and_python_that_is_promised() -> None:
    matrix = jobs((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))["suite"]["strategy"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert matrix["matrix"]["python"] == promised
    assert [each.partition("-")[0] for each in matrix["matrix"]["os"]] == ["macos", "ubuntu", "ubuntu"]


def test_the_changelog_has_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(mlxk.__version__)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The program that builds a release."""
    specification = importlib.util.spec_from_file_location("release_build", ROOT / "packaging" / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def archive(path: Path, members: list[tuple[str, int, int, bytes]], owner: str) -> Path:
    """Write an archive of files: name, mode, time and content of each."""
    with tarfile.open(path, "w:gz") as files:
        for name, mode, modified, content in members:
            member = tarfile.TarInfo(name)
            member.mode, member.mtime, member.size = mode, modified, len(content)
            member.uname, member.uid = owner, modified
            files.addfile(member, io.BytesIO(content))
    return path


def test_archives_differ_in_nothing_but_names_contents_and_who_may_run_them(build: ModuleType, tmp_path: Path) -> None:
    one = archive(tmp_path / "one", [("m/b", 0o664, 5, b"2"), ("m/a", 0o775, 6, b"1")], "anna")
    two = archive(tmp_path / "two", [("m/a", 0o700, 7, b"1"), ("m/b", 0o600, 8, b"2")], "otto")
    other = archive(tmp_path / "other", [("m/a", 0o644, 6, b"1"), ("m/b", 0o664, 5, b"2")], "anna")
    for path in (one, two, other):
        build._normalise(path, path.with_suffix(".tar.gz"), 1_700_000_000)
    sums = [hashlib.sha256((tmp_path / f"{name}.tar.gz").read_bytes()).hexdigest() for name in ("one", "two", "other")]
    assert sums[0] == sums[1] != sums[2]
    with tarfile.open(tmp_path / "one.tar.gz") as files:
        found = [(each.name, each.mode, each.mtime, each.uname) for each in files.getmembers()]
    assert found == [("m/a", 0o755, 1_700_000_000, ""), ("m/b", 0o644, 1_700_000_000, "")]


def test_the_formula_names_the_archive_and_its_hash(build: ModuleType, tmp_path: Path) -> None:
    build._render_formula(tmp_path, ("mlxk-1.2.3.tar.gz", "0" * 64))
    formula = (tmp_path / "mlxk.rb").read_text(encoding="utf-8")
    assert "/mlxk-1.2.3.tar.gz" in formula
    assert f'sha256 "{"0" * 64}"' in formula
    assert "@VERSION@" not in formula.replace("`", "")


def test_a_commit_that_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "packaging" / "build.py")]
    words = ["--commit", "none", "--into", str(tmp_path / "dist")]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("git log failed: ")
    assert not (tmp_path / "dist").exists()


def test_the_container_runs_as_no_root_and_tells_its_health() -> None:
    recipe = (ROOT / "packaging" / "Containerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", recipe, re.MULTILINE)
    assert "HEALTHCHECK" in recipe
    assert "--require-hashes" in recipe


def test_a_python_that_is_too_old_is_named_before_anything_is_made(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    pretending = "import sys; sys.version_info = (3, 9, 6); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretending}' \"$@\"\n")
    old.chmod(0o755)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "setup.lock").touch()
    command = ["make", "-f", str(ROOT / "Makefile"), f"PYTHON={old}", ".venv/.uv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "mlxk needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
