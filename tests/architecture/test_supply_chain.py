"""What is installed is what was locked: versions, hashes and licences; and an audit says when it reached nobody."""

import hashlib
import importlib.metadata
import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "ZPL-2.1",
    "Zlib",
}
"""Licences that mlxk may depend on; one that is missing here needs a decision, not an entry."""
BSD = "BSD License"
"""What some authors say without saying which; each of its forms is allowed."""
LOCKS = ("runtime", "dev", "cuda", "model", "setup", "audit", "docs", "dist")


@pytest.fixture(scope="module")
def constraints(root: Path) -> dict[str, str]:
    """Return the exact versions this release was tested with, by name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def locked(root: Path, name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirements of a lock with their hashes, by canonical name."""
    text = (root / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^(?!#)(\S.*?) \\\n((?:    --hash=.*\n)+)", text, re.MULTILINE)
    # An entry without hashes would be missed by the pattern.
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    found = [(Requirement(line), re.findall(r"--hash=(\S+)", hashes)) for line, hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in found}


def version(requirement: Requirement) -> str:
    """Return the one version that a locked requirement allows."""
    (only,) = requirement.specifier
    assert only.operator == "=="
    return only.version


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_one_version_and_sha256_hashes(root: Path, lock: str) -> None:
    for requirement, hashes in locked(root, lock).values():
        assert version(requirement)
        assert hashes
        assert [each for each in hashes if not re.fullmatch("sha256:[0-9a-f]{64}", each)] == []


def test_the_locks_hold_the_versions_of_the_constraints_and_the_constraints_nothing_else(
    root: Path, constraints: dict[str, str]
) -> None:
    locks = [locked(root, name) for name in ("runtime", "dev", "cuda")]
    held = {name: version(entry) for lock in locks for name, (entry, _) in lock.items()}
    assert held == constraints, "after a change of constraints.txt or pyproject.toml: make lock"


@pytest.mark.parametrize(("lock", "extras"), [("runtime", ()), ("dev", ("dev", "heic")), ("cuda", ("cuda",))])
def test_the_locks_satisfy_the_declared_ranges(root: Path, lock: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    entries = locked(root, lock)
    for declared in map(Requirement, lines):
        assert declared.specifier.contains(version(entries[canonicalize_name(declared.name)][0])), declared


def test_everything_that_mlxk_and_its_tools_need_here_is_locked_and_installed_as_locked(root: Path) -> None:
    entries = {**locked(root, "runtime"), **locked(root, "dev")}
    needed: Any = subprocess.run(
        [sys.executable, "-c", "import bill_of_materials as b; print(*b.needed('mlxk', frozenset({'dev'})))"],
        cwd=root / "tools",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(needed) > len(locked(root, "runtime")) // 2
    unlocked = {name for name in needed if name != "mlxk" and name not in entries}
    assert unlocked == set()
    installed = {name: importlib.metadata.version(name) for name in needed if name != "mlxk"}
    assert installed == {name: version(entries[name][0]) for name in installed}


def test_no_command_of_the_makefile_installs_an_unlocked_package_into_the_product_s_environment(root: Path) -> None:
    text = (root / "Makefile").read_text(encoding="utf-8")
    commands = [part.strip() for line in text.splitlines() for part in line.split("||") if "pip install" in part]
    # Programs of others that tests compare with live in environments of their own.
    others = ("$(CLIENTS)", "$(CLIENTS_ALL)", "$(SPEECH)")
    installs = [command for command in commands if not any(each in command for each in others)]
    assert installs
    for command in installs:
        # Nothing is resolved, so nothing but what the locks or the project's folder hold can be installed.
        assert "--no-deps" in command
        assert "--require-hashes" in command or command.endswith(("--no-build-isolation -e .", "dist/mlxk-*.whl"))


def bill(root: Path) -> dict[str, Any]:
    """Return the bill of materials as the command writes it."""
    command = [sys.executable, str(root / "tools" / "bill_of_materials.py"), "sbom"]
    document: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return document


def test_the_bill_of_materials_is_complete_and_the_same_each_time(root: Path) -> None:
    document = bill(root)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "mlxk"
    entries = locked(root, "runtime")
    of_the_page = {part["name"] for part in document["components"] if part["purl"].startswith("pkg:npm/")}
    assert of_the_page == {"marked", "dompurify", "@highlightjs/cdn-assets"}
    for part in document["components"]:
        if part["name"] in of_the_page:
            continue
        requirement, hashes = entries[part["name"]]
        assert part["version"] == version(requirement)
        listed = [each["content"] for each in part["externalReferences"][0]["hashes"]]
        assert listed == [each.removeprefix("sha256:") for each in hashes]
    names = {part["name"] for part in document["components"]}
    assert names >= {"mlx", "mlx-lm", "mlx-vlm", "mlx-audio", "transformers", "falcon", "waitress"}
    assert names.isdisjoint({"pytest", "ruff", "mypy"})
    refs = {part["bom-ref"] for part in [document["metadata"]["component"], *document["components"]]}
    assert {each["ref"] for each in document["dependencies"]} == refs
    assert {to for each in document["dependencies"] for to in each["dependsOn"]} <= refs
    assert bill(root) == document


def test_every_licence_is_one_that_mlxk_may_depend_on(root: Path) -> None:
    refused = {}
    for part in bill(root)["components"]:
        (entry,) = part["licenses"]
        stated = entry.get("expression") or entry["license"]["name"]
        if stated != BSD and not set(re.findall(r"[\w.+-]+", stated)) - {"AND", "OR", "WITH"} <= ALLOWED:
            refused[part["name"]] = stated
    assert refused == {}


ABSENT = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}
CLEAN = {"name": "b", "version": "1", "vulns": []}
BAD = {"name": "c", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}


def audited(root: Path, tmp_path: Path, *options: str, answer: object, error: str = "") -> tuple[int, str]:
    """Run the audit with a program that answers as pip-audit does; return the exit status and what was printed."""
    program = tmp_path / "pip-audit"
    (tmp_path / "answer").write_text(answer if isinstance(answer, str) else json.dumps({"dependencies": answer}))
    program.write_text(f"#!/bin/sh\ncat '{tmp_path}/answer'\necho '{error}' >&2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    command = [
        sys.executable,
        str(root / "tools" / "audit.py"),
        "--program",
        str(program),
        *options,
        "a.lock",
        "b.lock",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("answer", "error"),
    [([ABSENT], ""), ("", "requests.exceptions.ConnectionError: failed to resolve"), ("", "ConnectTimeout: 15 s")],
    ids=["a mirror without advisories", "no name", "no answer"],
)
def test_an_audit_that_reached_nobody_says_so_and_does_not_pass(
    root: Path, tmp_path: Path, answer: object, error: str
) -> None:
    status, text = audited(root, tmp_path, answer=answer, error=error)
    assert (status, "Not audited: no advisory source could be reached" in text) == (75, True)
    status, text = audited(root, tmp_path, "--where-reachable", answer=answer, error=error)
    assert (status, "Not audited: no advisory source could be reached" in text) == (0, True)


def test_an_audit_names_vulnerabilities_and_what_the_source_does_not_know(root: Path, tmp_path: Path) -> None:
    status, text = audited(root, tmp_path, "--where-reachable", answer=[ABSENT, CLEAN, BAD])
    assert status == 1
    assert "c 1: PYSEC-1, fixed in 2\n" in text
    assert "pypi: 2 packages, 1 known vulnerabilities\npypi does not know: a\n" in text
    assert audited(root, tmp_path, answer=[CLEAN]) == (0, "pypi: 1 packages, 0 known vulnerabilities\n")


def test_an_audit_that_fails_for_another_reason_never_passes(root: Path, tmp_path: Path) -> None:
    status, text = audited(root, tmp_path, "--where-reachable", answer="", error="ERROR: a.lock has duplicates")
    assert (status, text) == (2, "pypi: ERROR: a.lock has duplicates\n")


def test_the_vendored_libraries_of_the_page_are_as_they_were_published_and_their_licences_are_told(root: Path) -> None:
    known = json.loads((root / "requirements" / "page.json").read_text(encoding="utf-8"))
    folder = root / "entrypoints" / "http" / "page_files" / "vendored"
    assert {path.name for path in folder.iterdir()} == set(known)
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    for name, entry in known.items():
        data = (folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        assert entry["version"] in data[:600].decode(), "the file is not of the version that is stated"
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", entry["integrity"])
        assert entry["licence"] in ALLOWED
        assert f"vendored/{name}" in notice
