"""Build the source archive and the wheel of a commit, so that everybody who builds them gets the same bytes.

python packaging/build.py [--commit HEAD] [--into dist]

Nothing but the commit counts: its files are exported, times are SOURCE_DATE_EPOCH or that of the commit, and owners,
modes, order and time zone are fixed. The wheel is built from the source archive. All is done twice, in other folders;
where the bytes differ, nothing is left and the exit status is 1. setuptools is the locked one of the environment;
another zlib may compress to other bytes. Homebrew's formula is written beside them, with the archive's hash.
"""

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def main(arguments: list[str] | None = None) -> int:
    """Build, compare, and write the files, their sizes and their hashes."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(description="Build the source archive and the wheel, twice, and compare them.")
    parser.add_argument("--commit", default="HEAD", help="what is built (HEAD)")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder for the files (dist)")
    given = parser.parse_args(arguments)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct", given.commit))
    if _git("status", "--porcelain").strip():
        sys.stderr.write(f"Note: uncommitted changes are not part of what is built, which is {given.commit}\n")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, second = (_built(Path(folder), given.commit, epoch) for folder in (one, two))
        sums = [{path.name: _sum(path) for path in files} for files in (first, second)]
        if sums[0] != sums[1]:
            differing = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
            sys.stderr.write(f"Two builds of the same commit differ: {', '.join(differing)}\n")
            return 1
        given.into.mkdir(parents=True, exist_ok=True)
        for former in given.into.glob("mlxk-*"):
            former.unlink()
        for path in first:
            shutil.copyfile(path, given.into / path.name)
    _render_formula(given.into, next((name, digest) for name, digest in sums[0].items() if name.endswith(".tar.gz")))
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums[0].items())]
    (given.into / "SHA256SUMS").write_text("".join(lines), encoding="ascii")
    for line in lines:
        name = line.split()[1]
        print(f"{(given.into / name).stat().st_size:>9} bytes  {line}", end="")
    return 0


def _built(folder: Path, commit: str, epoch: int) -> tuple[Path, Path]:
    """Return a source archive and a wheel that were built in a folder."""
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(source, filter="tar")
    _build("build_sdist", source, folder / "sdist", epoch)
    (raw,) = (folder / "sdist").iterdir()
    sdist = folder / raw.name
    _normalise(raw, sdist, epoch)
    with tarfile.open(sdist) as files:
        files.extractall(folder / "unpacked", filter="tar")
    (unpacked,) = (folder / "unpacked").iterdir()
    _build("build_wheel", unpacked, folder / "wheel", epoch)
    (wheel,) = (folder / "wheel").glob("*.whl")
    return sdist, wheel


def _build(hook: str, source: Path, into: Path, epoch: int) -> None:
    into.mkdir()
    fixed = {"SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BUILD, hook, str(into)],
        cwd=source,
        env={**os.environ, **fixed},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{hook} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _normalise(raw: Path, target: Path, epoch: int) -> None:
    """Write an archive again: sorted, of nobody, of one time, and with one of two modes."""
    with (
        tarfile.open(raw) as files,
        open(target, "wb") as file,
        gzip.GzipFile("", "wb", 9, file, epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as written,
    ):
        for member in sorted(files.getmembers(), key=lambda each: each.name):
            fixed = tarfile.TarInfo(member.name)
            fixed.type, fixed.size, fixed.mtime = member.type, member.size, epoch
            fixed.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            written.addfile(fixed, files.extractfile(member) if member.isfile() else None)


def _render_formula(into: Path, archive: tuple[str, str]) -> None:
    """Write Homebrew's formula for a source archive."""
    name, digest = archive
    text = (ROOT / "packaging" / "mlxk.rb").read_text(encoding="utf-8")
    version = name.removeprefix("mlxk-").removesuffix(".tar.gz")
    (into / "mlxk.rb").write_text(text.replace("@VERSION@", version).replace("@SHA256@", digest), encoding="utf-8")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
