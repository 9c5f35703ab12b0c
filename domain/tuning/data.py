"""Files of training data: checked line by line as they are read, split for validation, and divided into batches.

A fault, with its file and line, makes training impossible or wrong; a remark reports what may be intended.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from mlxk.domain.tuning.example_lines import MAX_LINE_BYTES, ExampleFault, read_example
from mlxk.domain.tuning.examples import Example, ExampleKind

TRAIN, VALID, TEST = "train", "valid", "test"
SPLITS = (TRAIN, VALID, TEST)

HELD_OUT_SHARE = 0.1
"""Share of the examples that is held out for validation by default."""
FEWEST_TO_DIVIDE = 20
"""Fewest examples of which some are held out by default."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"PAR1": "Parquet"}
_MAX_NAMED = 5
"""Most shared examples to name in remarks."""


@attrs.frozen
class DataFault:
    """A fault of a file, or of one of its lines."""

    file: str
    line: int | None
    """From 1; None for the entire file."""
    message: str
    """The end of a sentence that begins with file and line."""

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


@attrs.define
class FileCheck:
    """The check of one file: its examples, faults and remarks."""

    file: str
    """Name of the file in messages."""
    examples: list[Example] = attrs.field(factory=list)
    faults: list[DataFault] = attrs.field(factory=list)
    remarks: list[str] = attrs.field(factory=list)
    _content_lines: dict[object, int] = attrs.field(factory=dict)
    """Content of each example to its first line."""
    _question_lines: dict[object, int] = attrs.field(factory=dict)
    """Question of each example to its first line."""
    _unknown: set[str] = attrs.field(factory=set)

    def read(self, lines: Iterable[bytes]) -> "FileCheck":
        """Check every line.

        Args:
            lines: The lines of the file; the caller may cut each at one byte more than ``MAX_LINE_BYTES``.

        Returns:
            This check.
        """
        number = 0
        for number, line in enumerate(lines, 1):
            if number == 1:
                if not self._is_text(line):
                    return self
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                self._check_line(line, number)
        if not self.examples and not self.faults:
            self.faults.append(DataFault(self.file, None, "is empty" if number == 0 else "has blank lines only"))
        return self

    def _is_text(self, first: bytes) -> bool:
        """Whether a file may be lines of JSON, by its first line; adds a fault if not."""
        kind = next((kind for mark, kind in _OTHER_ENCODINGS.items() if first.startswith(mark)), None)
        if kind is not None:
            self.faults.append(DataFault(self.file, None, f"is {kind}; write it as UTF-8 text, one JSON object a line"))
        elif first.lstrip().startswith(b"["):
            self.faults.append(DataFault(self.file, 1, "is a JSON list; write one object a line, without the list"))
        else:
            return True
        return False

    def _check_line(self, line: bytes, number: int) -> None:
        if len(line) > MAX_LINE_BYTES:
            self.faults.append(DataFault(self.file, number, f"is longer than {MAX_LINE_BYTES // 2**20} MiB"))
            return
        try:
            example = read_example(line, number)
            first = self.examples[0] if self.examples else example
            if example.kind is not first.kind:
                raise ExampleFault(
                    f"has {example.kind.value}, line {first.line} has {first.kind.value}: a file is of one kind"
                )
        except ExampleFault as fault:
            self.faults.append(DataFault(self.file, number, str(fault)))
            return
        self.examples.append(example)
        self._remark(example)

    def _remark(self, example: Example) -> None:
        same = self._content_lines.setdefault(example.content, example.line)
        if same != example.line:
            self.remarks.append(f"{self.file}:{example.line}: is the same as line {same}")
        elif example.kind is not ExampleKind.TEXT:
            other = self._question_lines.setdefault(example.question, example.line)
            if other != example.line:
                self.remarks.append(f"{self.file}:{example.line}: answers the question of line {other} differently")
        new = set(example.unknown) - self._unknown
        if new:
            self._unknown |= new
            self.remarks.append(f"{self.file}:{example.line}: {', '.join(sorted(new))} means nothing here")


@attrs.frozen
class TrainingData:
    """Checked examples."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    digest: str = ""
    """``sha256:`` and 64 hexadecimal digits over the content of the files."""
    divided: bool = False
    """Whether the examples for validation were taken from those for training."""

    @property
    def has_images(self) -> bool:
        """Whether any example has images."""
        return any(example.parts for example in (*self.train, *self.valid, *self.test))

    @property
    def kind(self) -> ExampleKind:
        """The kind of all examples."""
        return (self.train or self.test or self.valid)[0].kind


def across_files(checks: Mapping[str, FileCheck]) -> tuple[list[DataFault], list[str]]:
    """Return the faults and remarks about files in comparison with one another.

    Args:
        checks: Split to the check of its file.
    """
    faults: list[DataFault] = []
    remarks: list[str] = []
    train = checks.get(TRAIN)
    for split in (VALID, TEST):
        other = checks.get(split)
        if train is None or other is None or not (train.examples and other.examples):
            continue
        first, trained_first = other.examples[0], train.examples[0]
        if first.kind is not trained_first.kind:
            message = f"has {first.kind.value}, {train.file} has {trained_first.kind.value}: the files are of one kind"
            faults.append(DataFault(other.file, first.line, message))
            continue
        trained = {example.content: example.line for example in reversed(train.examples)}
        shared = [example for example in other.examples if example.content in trained]
        remarks += [
            f"{other.file}:{example.line}: is trained as well ({train.file}:{trained[example.content]})"
            for example in shared[:_MAX_NAMED]
        ]
        if len(shared) > _MAX_NAMED:
            remarks.append(f"{other.file}: {len(shared) - _MAX_NAMED} more examples are trained as well")
    return faults, remarks


def divided(data: TrainingData, share: float | None, seed: int) -> TrainingData:
    """Return the data with some training examples held out for validation, unless it has validation examples.

    Args:
        data: The examples.
        share: The share to hold out; None means ``HELD_OUT_SHARE``, or nothing of fewer than ``FEWEST_TO_DIVIDE``.
        seed: Seed of the random choice.
    """
    if data.valid:
        return data
    usual = HELD_OUT_SHARE if len(data.train) >= FEWEST_TO_DIVIDE else 0.0
    share = usual if share is None else share
    count = min(round(share * len(data.train)) or (1 if share > 0 else 0), len(data.train) - 1)
    if count <= 0:
        return data
    chosen = set(random.Random(f"valid:{seed}").sample(range(len(data.train)), count))
    train = tuple(example for index, example in enumerate(data.train) if index not in chosen)
    valid = tuple(example for index, example in enumerate(data.train) if index in chosen)
    return attrs.evolve(data, train=train, valid=valid, divided=True)


def batches(count: int, size: int, seed: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield epoch, from 0, and example indices of one batch after the other, without end.

    Each epoch has every example once, in a new random order; its last batch may be smaller.

    Args:
        count: Number of examples.
        size: Examples of a batch.
        seed: Determines the order together with the epoch number, so that a resumed run needs no state.
    """
    epoch = 0
    while True:
        order = list(range(count))
        random.Random(f"epoch:{seed}:{epoch}").shuffle(order)
        for start in range(0, count, size):
            yield epoch, tuple(order[start : start + size])
        epoch += 1


def first_faults(faults: Sequence[DataFault], most: int) -> tuple[str, ...]:
    """Return the first faults as lines, and a line with the number of the others."""
    more = len(faults) - most
    return (*map(str, faults[:most]), *((f"… and {more} more",) if more > 0 else ()))
