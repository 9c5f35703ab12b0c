"""Ask the advisory sources about everything in some locks, and say which of them answered.

pip-audit calls an environment clean when a source knows nothing about any of its packages, as a mirror of the index
without advisories does. Here that is a source that was not reached.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

SOURCES = ("pypi", "osv")
"""Advisory sources by pip-audit's names, the first to be asked first."""
VULNERABLE = 1
FAILED = 2
UNREACHED = 75
"""Exit status when no source answered: EX_TEMPFAIL of sysexits.h."""
NETWORK = ("ConnectionError", "Could not connect", "Timeout", "ServiceError", "HTTPError", "ProxyError", "SSLError")
"""Words in pip-audit's last line that say that a source was not reached; any other failure is one of ours."""


class SourceNotReachedError(Exception):
    """An advisory source did not answer; the text says why."""


class AuditFailedError(Exception):
    """pip-audit ended with an error that is not the network's; the text is its last line."""


def main() -> int:
    """Ask, and print what was found.

    Returns:
        The exit status: 0 nothing known, 1 vulnerabilities, 2 pip-audit failed, 75 no source reached.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("locks", nargs="+", help="requirements files with hashes")
    parser.add_argument("--where-reachable", action="store_true", help="succeed when no source can be reached")
    parser.add_argument("--program", default=f"{sys.prefix}/bin/pip-audit", help="pip-audit")
    options = parser.parse_args()
    for source in SOURCES:
        try:
            return reported(source, known(options.program, source, options.locks))
        except SourceNotReachedError as error:
            print(f"{source}: not reached: {error}")
        except AuditFailedError as error:
            print(f"{source}: {error}", file=sys.stderr)
            return FAILED
    print("Not audited: no advisory source could be reached. Run `make audit` where PyPI or OSV can be.")
    return 0 if options.where_reachable else UNREACHED


def known(program: str, source: str, locks: list[str]) -> list[dict[str, Any]]:
    """Return what pip-audit says of each package in the locks, by name.

    Raises:
        SourceNotReachedError: The source did not answer, or knows none of the packages.
        AuditFailedError: pip-audit failed for another reason.
    """
    answers = [package for lock in locks for package in asked(program, source, lock)]
    packages = {(package["name"], package.get("version")): package for package in answers}
    if not any("vulns" in package for package in packages.values()):
        raise SourceNotReachedError(f"it knows none of {len(packages)} packages")
    return [packages[key] for key in sorted(packages, key=str)]


def asked(program: str, source: str, lock: str) -> list[dict[str, Any]]:
    """Ask a source about one lock; pip-audit takes no two versions of a package at once."""
    # Locks are complete: nothing has to be resolved, so neither pip nor an index is asked.
    command = [program, "--disable-pip", "--require-hashes", "--progress-spinner", "off", "-f", "json", "-s", source]
    ran = subprocess.run([*command, "-r", lock], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ran.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        raise (SourceNotReachedError if any(word in last for word in NETWORK) else AuditFailedError)(last) from None
    return packages


def reported(source: str, packages: list[dict[str, Any]]) -> int:
    """Print what a source knows, and return the exit status."""
    skipped = sorted(package["name"] for package in packages if "vulns" not in package)
    found = [(package, advisory) for package in packages for advisory in package.get("vulns", ())]
    for package, advisory in found:
        fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    print(f"{source}: {len(packages) - len(skipped)} packages, {len(found)} known vulnerabilities")
    if skipped:
        print(f"{source} does not know: {', '.join(skipped)}")
    return VULNERABLE if found else 0


if __name__ == "__main__":
    sys.exit(main())
