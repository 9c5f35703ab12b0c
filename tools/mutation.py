"""Mutation tester: draws faults over all layers, puts each into a copy of the tree, and reports those no test finds.

``python tools/mutation.py --seed 13`` draws 60 faults; the same seed and tree give the same faults. Layers are drawn
from in proportion to their code, a sixth of the faults at least from each; within a layer every line that can be faulty
has the same chance, then one of its possible faults is drawn. ``--list`` prints the faults and runs nothing,
``--only 7,12`` runs these alone. ``--record FILE`` keeps the verdicts as JSON, and what is in it is not run again.

The copy lies in a temporary folder with a virtual environment of its own, so that a test which starts the program in
another process starts the faulty one. The test files that reach the module by imports run, nearest first. The first
failing test ends it, once the same test has passed without the fault; a test that fails without it is left out.

Verdicts: ``killed`` and the test; ``killed (timeout)`` where a test hung; ``SURVIVED``; ``SURVIVED until the limit``
and the last test, where ``--limit`` ended the run. Whether a survivor is equivalent is for a person to decide.
"""

import argparse
import ast
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from math import log
from pathlib import Path
from shutil import copy2
from typing import Any, TypeGuard

from mutation_faults import LAYERS, Fault, drawn, faulty

ROOT = Path(__file__).parents[1]
KINDS = ("tests/unit", "tests/contract", "tests/integration", "tests/e2e")
FILES_IN_A_RUN = 3
TEST_SECONDS = 90


class TestGraph:
    """Which test files reach which modules, by the imports of the tests, of their fixtures, and of the product."""

    def __init__(self, root: Path) -> None:
        paths = [path for top in (*LAYERS, "tests") for path in (root / top).rglob("*.py")]
        self._trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(paths)}
        self._edges = {path: self._imported(tree, path) for path, tree in self._trees.items()}
        files = [path for path in self._trees if path.startswith(KINDS) and path.rpartition("/")[2].startswith("test_")]
        for path in files:
            self._edges[path] |= self._through_fixtures(path)
        self._distances = {path: self._reached(path) for path in files}
        self._words = {path: words_of(path + (root / path).read_text("utf-8")) for path in files}
        self._holding = Counter(itertools.chain.from_iterable(self._words.values()))

    def runs(self, fault: Fault) -> Iterator[list[str]]:
        """Yield the test files that reach a fault's module in runs of a few, the most specific and the fastest first.

        A test file is specific when it holds, or is named by, words of the module's path that few test files hold; or
        words of the fault itself, and of the names of the functions and the class around it.
        """
        module = fault.path
        distances = {path: reached[module] for path, reached in self._distances.items() if module in reached}
        of_path = self._weights(words_of(module))
        around = " ".join(node.name for node in ast.walk(self._trees[module]) if surrounds(node, fault.line))
        of_fault = self._weights(words_of(f"{around} {fault.before}") - of_path.keys())

        def specific(path: str, weights: dict[str, float]) -> float:
            named = words_of(path)
            return sum(weight * ((word in self._words[path]) + (word in named)) for word, weight in weights.items())

        def order(path: str) -> tuple[float, int]:
            words = specific(path, of_path) + 2 * specific(path, of_fault) / max(1, len(of_fault)) ** 0.5
            return distances[path] + kind(path) - 2 * words, len(self._edges[path])

        ordered = iter(sorted(distances, key=order))
        for number in itertools.count(1):  # later runs hold more files: few of them fail, and each run costs a start
            run = list(itertools.islice(ordered, FILES_IN_A_RUN * number))
            if not run:
                return
            yield run

    def _weights(self, words: set[str]) -> dict[str, float]:
        """Return how much each word says, by the number of test files that hold it; without those that none holds."""
        held = {word: self._holding[word] for word in sorted(words) if self._holding[word]}
        return {word: log(len(self._words) / (1 + count)) for word, count in held.items()}

    def _imported(self, tree: ast.AST, path: str) -> set[str]:
        """Return the files that a syntax tree imports, or starts as a program."""
        names: set[str] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Import(aliases):
                    names |= {alias.name for alias in aliases}
                case ast.ImportFrom(str(module), aliases):
                    names |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
                case ast.Name("import_module"):  # the modules beside it, by names that are computed
                    folder = path.rpartition("/")[0]
                    names |= {other.removesuffix(".py") for other in self._trees if other.startswith(f"{folder}/")}
                case ast.Constant(str(text)) if "mlxk." in text:
                    names |= set(re.findall(r"\bmlxk(?:\.\w+)+", text))
                case ast.Constant("mlxk") if path.startswith("tests/"):
                    names.add("mlxk.entrypoints.main")  # the test starts the program in another process
        stems = [name.removeprefix("mlxk.").replace(".", "/") for name in names]
        places = [
            f"{folder}{stem}{end}" for stem in stems for folder in ("", "tests/") for end in (".py", "/__init__.py")
        ]
        return {place for place in places if place in self._trees} - {path}

    def _through_fixtures(self, path: str) -> set[str]:
        """Return what the fixtures of a test file import, those that other fixtures ask for included."""
        folders = [parent.as_posix() for parent in Path(path).parents]
        shared = [self._trees[f"{folder}/conftest.py"] for folder in folders if f"{folder}/conftest.py" in self._trees]
        fixtures = {node.name: node for tree in shared for node in tree.body if isinstance(node, ast.FunctionDef)}
        edges: set[str] = set()
        asked = {node.arg for node in ast.walk(self._trees[path]) if isinstance(node, ast.arg)}
        while names := asked & fixtures.keys():
            found = [fixtures.pop(name) for name in names]
            edges |= {edge for node in found for edge in self._imported(node, path)}
            asked |= {node.arg for fixture in found for node in ast.walk(fixture) if isinstance(node, ast.arg)}
        return edges

    def _reached(self, start: str) -> dict[str, int]:
        """Return every file that one file reaches, and by how many imports."""
        distances = {start: 0}
        waiting = deque([start])
        while waiting:
            path = waiting.popleft()
            for other in self._edges[path] - distances.keys():
                distances[other] = distances[path] + 1
                waiting.append(other)
        return distances


def words_of(text: str) -> set[str]:
    """Return the words of a text or of its names, in the singular."""
    return {word.removesuffix("s") for word in re.findall("[a-z]+", text.lower())}


def surrounds(node: ast.AST, line: int) -> TypeGuard[ast.FunctionDef | ast.ClassDef]:
    """Tell whether a node is a function or a class with a line in it."""
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= (node.end_lineno or line)


def kind(path: str) -> int:
    """Return the position of a test file's kind; the fastest kind is first."""
    return next(position for position, folder in enumerate(KINDS) if path.startswith(folder))


class Copy:
    """A copy of the tree, with an environment of its own that has this one's packages and the copy's modules."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "tree"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if os.path.lexists(root / name):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                copy2(root / name, self.root / name, follow_symlinks=False)
        venv.create(folder / "venv", symlinks=True)
        self._python = folder / "venv" / "bin" / "python"
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        (packages / "copy.pth").write_text(f"{self.root / 'src'}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        self._failing: set[str] = set()  # tests that fail without any fault
        self._passing: set[str] = set()  # tests that failed with a fault, and pass without
        outcome, test = self._run(["--collect-only", "tests"], time.monotonic() + 300)
        if outcome:
            raise SystemExit(f"The tests cannot be collected in the copy: {outcome} {test}")

    def verdict(self, fault: Fault, runs: Iterable[list[str]], limit: float) -> str:
        """Put a fault into the copy, run test files until one fails, and return what happened."""
        deadline = time.monotonic() + limit
        for files in runs:
            outcome, test = "again", ""
            while outcome == "again":
                with self._with(fault):
                    outcome, test = self._run(files, deadline)
                if outcome.startswith("killed") and test and self._fails(test):
                    outcome = "again"
            if outcome:
                return f"{outcome}: {test}"
        return "SURVIVED"

    def _fails(self, test: str) -> bool:
        """Tell whether a test, or the collection of a test file, fails without any fault; if so leave it out."""
        if test in self._passing | self._failing:
            return False
        run = [test] if "::" in test else ["--collect-only", test]
        outcome, _ = self._run(run, time.monotonic() + 300)
        (self._failing if outcome else self._passing).add(test)
        return bool(outcome)

    @contextlib.contextmanager
    def _with(self, fault: Fault) -> Iterator[None]:
        """Keep a fault in its module for a while."""
        path = self.root / fault.path
        source = path.read_text(encoding="utf-8")
        self._write(path, faulty(source, fault))
        try:
            yield
        finally:
            self._write(path, source)

    @staticmethod
    def _write(path: Path, source: str) -> None:
        """Write a module, and remove what was compiled from it: within a second both look the same to Python."""
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        path.write_text(source, encoding="utf-8")

    def _run(self, tests: list[str], deadline: float) -> tuple[str, str]:
        """Run tests until one fails; return what happened, nothing if all passed, and at which test."""
        leave_out = [f"--deselect={test}" for test in sorted(self._failing)]
        command = [str(self._python), "-P", "-m", "pytest", "-vx", "--tb=no", "--snapshot-warn-unused", *leave_out]
        log, wide = self.root.parent / "log", {**os.environ, "COLUMNS": "999"}
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, f"--timeout={TEST_SECONDS}", *tests],
                cwd=self.root, env=wide, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        ended = ""
        while process.poll() is None and not ended:
            time.sleep(0.2)
            if time.monotonic() > deadline:
                ended = "SURVIVED until the limit"
            elif time.time() - log.stat().st_mtime > TEST_SECONDS + 15 and "::" in log.read_text("utf-8", "replace"):
                ended = "killed (timeout)"
        self._end_programs(process)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if ended:
            tests = [match[1] for line in lines if (match := re.match(r"(tests/\S+::.*?) (PASSED|SKIPPED|$)", line))]
            return ended, tests[-1] if tests else ""
        failed = [
            line.partition(" ")[2].partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))
        ]
        if failed:
            return "killed", failed[0]
        return ("", "") if process.returncode in {0, 5} else (f"killed (exit {process.returncode})", "")

    def _end_programs(self, process: "subprocess.Popen[bytes]") -> None:
        """End a run of tests, and every program that it left: they run by the interpreter of the copy."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        running = subprocess.run(["ps", "-Ao", "pid=,args="], check=True, capture_output=True, text=True).stdout
        for line in running.splitlines():
            if str(self._python) in line:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)


class Record:
    """The verdicts by fault, kept as JSON in a file if one is named."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else []
        self.verdicts: dict[str, dict[str, Any]] = {verdict["fault"]: verdict for verdict in known}

    def add(self, number: int, fault: Fault, verdict: str, seconds: float) -> None:
        """Add or replace the verdict of a fault."""
        self.verdicts[str(fault)] = {
            "number": number, "layer": fault.path.partition("/")[0], "fault": str(fault), "verdict": verdict,
            "seconds": round(seconds),
        }  # fmt: skip
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps([*self.verdicts.values()], indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Draw faults, run each, print a line about each and the share that was found, by layer."""
    parser = argparse.ArgumentParser(description="Draws faults, and finds those that no test finds.")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--number", type=int, default=60, help="faults to draw")
    parser.add_argument("--only", type=lambda text: {int(part) for part in text.split(",")}, help="faults to run")
    parser.add_argument("--limit", type=float, default=300, help="seconds a fault")
    parser.add_argument("--record", type=Path, help="file of verdicts; faults that it holds are run with --only alone")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    options = parser.parse_args(arguments)
    faults = list(enumerate(drawn(ROOT, options.seed, options.number), start=1))
    record = Record(options.record)
    if options.only:
        chosen = [(number, fault) for number, fault in faults if number in options.only]
    else:
        chosen = [(number, fault) for number, fault in faults if str(fault) not in record.verdicts]
    if options.list:
        print(*(f"{number:3} {fault}" for number, fault in chosen), sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as folder:
        copy_of_tree = Copy(ROOT, Path(folder).resolve())
        graph = TestGraph(copy_of_tree.root)
        for number, fault in chosen:
            started = time.monotonic()
            verdict = copy_of_tree.verdict(fault, graph.runs(fault), options.limit)
            record.add(number, fault, verdict, time.monotonic() - started)
            print(f"{number:3} {fault}\n    {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"seed {options.seed}: {summary(record.verdicts[str(f)] for _, f in faults if str(f) in record.verdicts)}")
    return 0


def summary(verdicts: Iterable[dict[str, Any]]) -> str:
    """Say how many faults were killed, of all and of each layer."""
    drawn_of, killed_of = Counter[str](), Counter[str]()
    for verdict in verdicts:
        for name in ("all layers", verdict["layer"]):
            drawn_of[name] += 1
            killed_of[name] += verdict["verdict"].startswith("killed")
    return ", ".join(f"{name} {killed_of[name]} of {number}" for name, number in drawn_of.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
