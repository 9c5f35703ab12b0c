"""Files of training data: checked line by line while they are read, and divided into what is trained and what is not.

What makes training impossible or wrong is a fault, with its file and line; what may be meant so is a remark.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from mlxk.domain.tuning.example_lines import MAX_LINE_BYTES, ExampleFault, read_example
from mlxk.domain.tuning.examples import Example, ExampleKind

TRAIN, VALID, TEST = "train", "valid", "test"
SPLITS = (TRAIN, VALID, TEST)

HELD_OUT_SHARE = 0.1
FEWEST_TO_DIVIDE = 20
"""Examples; of fewer, none is held out for validation unless that is asked for."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"PAR1": "Parquet"}
_NAMED_AT_MOST = 5


@attrs.frozen
class DataFault:
    """What is wrong with a file, or with one of its lines."""

    file: str
    line: int | None
    """From 1; None for the file as a whole."""
    message: str
    """The end of a sentence that begins with the place."""

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


@attrs.define
class FileCheck:
    """The examples and the faults of one file, while its lines are read."""

    file: str
    """Its name in messages."""
    examples: list[Example] = attrs.field(factory=list)
    faults: list[DataFault] = attrs.field(factory=list)
    remarks: list[str] = attrs.field(factory=list)
    _seen: dict[object, int] = attrs.field(factory=dict)
    _answers: dict[object, int] = attrs.field(factory=dict)
    _unknown: set[str] = attrs.field(factory=set)

    def read(self, lines: Iterable[bytes]) -> "FileCheck":
        """Check every line; each is cut at one byte more than the limit.

        Returns:
            Itself.
        """
        number = 0
        for number, line in enumerate(lines, 1):
            if number == 1:
                if not self._can_be_text(line):
                    return self
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                self._line(line, number)
        if not self.examples and not self.faults:
            self.faults.append(DataFault(self.file, None, "is empty" if number == 0 else "has blank lines only"))
        return self

    def _can_be_text(self, first: bytes) -> bool:
        kind = next((kind for mark, kind in _OTHER_ENCODINGS.items() if first.startswith(mark)), None)
        if kind is not None:
            self.faults.append(DataFault(self.file, None, f"is {kind}; write it as UTF-8 text, one JSON object a line"))
        elif first.lstrip().startswith(b"["):
            self.faults.append(DataFault(self.file, 1, "is a JSON list; write one object a line, without the list"))
        else:
            return True
        return False

    def _line(self, line: bytes, number: int) -> None:
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
        before = self._seen.setdefault(example.content, example.line)
        if before != example.line:
            self.remarks.append(f"{self.file}:{example.line}: is the same as line {before}")
        elif example.kind is not ExampleKind.TEXT:
            other = self._answers.setdefault(example.question, example.line)
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
        """Whether any example shows images."""
        return any(each.parts for each in (*self.train, *self.valid, *self.test))

    @property
    def kind(self) -> ExampleKind:
        """What the lines hold."""
        return (self.train or self.test or self.valid)[0].kind


def across_files(checks: Mapping[str, FileCheck]) -> tuple[list[DataFault], list[str]]:
    """Return what is wrong, and what is remarkable, between files that are fine by themselves, by split."""
    faults: list[DataFault] = []
    remarks: list[str] = []
    train = checks.get(TRAIN)
    for split in (VALID, TEST):
        other = checks.get(split)
        if train is None or other is None or not (train.examples and other.examples):
            continue
        one, two = other.examples[0], train.examples[0]
        if one.kind is not two.kind:
            message = f"has {one.kind.value}, {train.file} has {two.kind.value}: the files are of one kind"
            faults.append(DataFault(other.file, one.line, message))
            continue
        trained = {each.content: each.line for each in reversed(train.examples)}
        shared = [each for each in other.examples if each.content in trained]
        remarks += [
            f"{other.file}:{each.line}: is trained as well ({train.file}:{trained[each.content]})"
            for each in shared[:_NAMED_AT_MOST]
        ]
        if len(shared) > _NAMED_AT_MOST:
            remarks.append(f"{other.file}: {len(shared) - _NAMED_AT_MOST} more examples are trained as well")
    return faults, remarks


def divided(data: TrainingData, share: float | None, seed: int) -> TrainingData:
    """Return data of which some examples are held out for validation, where there are none yet.

    Args:
        data: The examples.
        share: The part to hold out; None means a tenth of many, and none of few.
        seed: Chooses which.
    """
    if data.valid:
        return data
    usual = HELD_OUT_SHARE if len(data.train) >= FEWEST_TO_DIVIDE else 0.0
    share = usual if share is None else share
    count = min(round(share * len(data.train)) or (1 if share > 0 else 0), len(data.train) - 1)
    if count <= 0:
        return data
    chosen = set(random.Random(f"valid:{seed}").sample(range(len(data.train)), count))
    train = tuple(each for index, each in enumerate(data.train) if index not in chosen)
    valid = tuple(each for index, each in enumerate(data.train) if index in chosen)
    return attrs.evolve(data, train=train, valid=valid, divided=True)


def batches(count: int, size: int, seed: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the indices of one batch after the other without end, each with the number of its epoch, from 0.

    Each epoch has every example once, in an order of its own; its last batch may be smaller.

    Args:
        count: Examples.
        size: Of a batch.
        seed: Decides the orders, together with the epoch alone, so that no state need be kept.
    """
    epoch = 0
    while True:
        order = list(range(count))
        random.Random(f"epoch:{seed}:{epoch}").shuffle(order)
        for start in range(0, count, size):
            yield epoch, tuple(order[start : start + size])
        epoch += 1


def first_faults(faults: Sequence[DataFault], most: int) -> tuple[str, ...]:
    """Return the first faults as lines, and how many more there are."""
    more = len(faults) - most
    return (*map(str, faults[:most]), *((f"… and {more} more",) if more > 0 else ()))
