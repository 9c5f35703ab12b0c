"""What mlxk needs, as a list of licences or as a bill of materials in CycloneDX 1.6.

It reads the environment it runs in: the distributions that mlxk requires there, directly and not, without its
development tools. Licences are what their authors state; hashes are those of ``requirements/runtime.lock``. What the
chat page contains of npm is in ``requirements/page.json``.
"""

import argparse
import base64
import json
import re
import uuid
from collections import deque
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PRODUCT = "mlxk"

STATED = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ZPL 2.1": "ZPL-2.1",
    "Zope Public License": "ZPL-2.1",
}
"""Licences by the names that authors give them, and the SPDX identifiers of the same."""


def licence(found: Distribution) -> str:
    """Return the licence that a distribution states.

    Returns:
        An SPDX expression, or the author's own words where they name none; "unknown" where nothing is stated.
    """
    metadata = found.metadata
    for expression in metadata.get_all("License-Expression") or ():
        return str(expression)
    classifiers = (
        line.rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier") or () if "OSI Approved" in line
    )
    # Some authors put the whole text of the licence into the field.
    stated = (*(metadata.get_all("License") or ()), *classifiers)
    named = [name for name in stated if name.strip() and "\n" not in name]
    expressions = (STATED.get(name, name) for name in named)
    return next(filter(spdx, expressions), None) or next((name for name in named if name != "UNKNOWN"), "unknown")


def spdx(stated: str) -> bool:
    """Whether a licence is an SPDX expression."""
    try:
        canonicalize_license_expression(stated)
    except InvalidLicenseExpression:
        return False
    return True


def needed(name: str, extras: frozenset[str] = frozenset()) -> dict[str, tuple[Distribution, list[str]]]:
    """Return what a distribution needs in this environment, itself included.

    Args:
        name: The distribution to begin with.
        extras: Its extras.

    Returns:
        Each distribution with the names that it requires itself, by its own canonical name, sorted.
    """
    found: dict[str, tuple[Distribution, list[str]]] = {}
    asked: dict[str, set[str]] = {}
    waiting = deque([(canonicalize_name(name), extras)])
    while waiting:
        each, wanted = waiting.popleft()
        if each in found and wanted <= asked[each]:
            continue
        asked.setdefault(each, set()).update(wanted)
        requirements = list(required(distribution(each), asked[each]))
        found[each] = (distribution(each), sorted({canonicalize_name(to.name) for to in requirements}))
        waiting.extend((canonicalize_name(to.name), frozenset(to.extras)) for to in requirements)
    return dict(sorted(found.items()))


def required(found: Distribution, extras: set[str]) -> Iterator[Requirement]:
    """Yield the requirements of a distribution that apply to this environment."""
    for line in found.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def hashes(lock: Path) -> dict[tuple[str, str], list[str]]:
    """Return the SHA-256 hashes, in hexadecimal, of the files of each name and version in a lock."""
    entries: dict[tuple[str, str], list[str]] = {}
    entry: list[str] = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", line):
            entry = entries.setdefault((canonicalize_name(pin[1]), pin[2]), [])
        elif hashed := re.match(r"\s+--hash=sha256:([0-9a-f]{64})", line):
            entry.append(hashed[1])
    return entries


def bill(lock: Path) -> dict[str, Any]:
    """Return the bill of materials of this environment, the same for the same versions.

    Args:
        lock: The lock with the hashes of what was installed.
    """
    found = needed(PRODUCT)
    refs = {name: f"pkg:pypi/{name}@{each.version}" for name, (each, _) in found.items()}
    known = hashes(lock)
    root = component("application", PRODUCT, found[PRODUCT][0], [])
    contained = [contained_component(entry) for entry in contained_libraries()]
    parts = [
        component("library", name, each, known.get((name, each.version), []))
        for name, (each, _) in found.items()
        if name != PRODUCT
    ] + contained
    within = [part["bom-ref"] for part in contained]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([root, parts]))}",
        "version": 1,
        "metadata": {"component": root},
        "components": parts,
        "dependencies": [
            {"ref": refs[name], "dependsOn": [*(refs[to] for to in requires), *(within if name == PRODUCT else ())]}
            for name, (_, requires) in found.items()
        ]
        + [{"ref": each, "dependsOn": []} for each in within],
    }


def contained_libraries() -> list[dict[str, str]]:
    """Return the libraries that the chat page contains, as ``requirements/page.json`` has them."""
    return list(json.loads((ROOT / "requirements" / "page.json").read_text(encoding="utf-8")).values())


def contained_component(entry: dict[str, str]) -> dict[str, Any]:
    """Return the entry of the bill for a library that the chat page contains."""
    name, version = entry["package"], entry["version"]
    address = f"pkg:npm/{name.replace('@', '%40')}@{version}"
    digest = base64.b64decode(entry["integrity"].removeprefix("sha512-")).hex()
    return {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
        "licenses": [{"expression": entry["licence"]}],
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://registry.npmjs.org/{name}/-/{name.rpartition('/')[2]}-{version}.tgz",
                "hashes": [{"alg": "SHA-512", "content": digest}],
            }
        ],
    }


def component(kind: str, name: str, found: Distribution, files: list[str]) -> dict[str, Any]:
    """Return one entry of the bill.

    Args:
        kind: CycloneDX's type: "application" or "library".
        name: The canonical name.
        found: The distribution.
        files: The SHA-256 hashes of the files of that version.
    """
    stated = licence(found)
    entry: dict[str, Any] = {
        "type": kind,
        "bom-ref": f"pkg:pypi/{name}@{found.version}",
        "name": name,
        "version": found.version,
        "purl": f"pkg:pypi/{name}@{found.version}",
        "licenses": [{"expression": stated} if spdx(stated) else {"license": {"name": stated}}],
    }
    if files:
        entry["externalReferences"] = [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{name}/{found.version}/#files",
                "hashes": [{"alg": "SHA-256", "content": each} for each in files],
            }
        ]
    return entry


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("form", choices=("licences", "sbom"))
    if parser.parse_args().form == "sbom":
        print(json.dumps(bill(ROOT / "requirements" / "runtime.lock"), indent=2))
        return
    for name, (found, _) in needed(PRODUCT).items():
        print(f"{name:<24} {found.version:<14} {licence(found)}")
    for entry in contained_libraries():
        print(f"{entry['package']:<24} {entry['version']:<14} {entry['licence']}")


if __name__ == "__main__":
    main()
