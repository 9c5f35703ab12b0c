"""Points and boxes that vision models write into their answers: the notations of families, read into one shape.

Every notation counts in units of its own, from the upper left corner of the image; here coordinates are fractions of
its width and height. What is not whole is text. Models that name absolute pixels (Qwen2.5-VL's JSON) are not read,
since the pixels are those of an image that only the model has seen.
"""

import json
import re
from collections.abc import Callable, Iterator

import attrs

_TASK_MARKS = frozenset(
    {
        "<|grounding|>",
        "<|ref|>",
        "<|/ref|>",
        "<|det|>",
        "<|/det|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<ref>",
        "</ref>",
        "<box>",
        "</box>",
    }
)
"""Control tokens with which users ask for points and boxes; they begin and end no turn."""

_TASK_MARK = re.compile(r"<loc_\d{1,3}>|<(?:predict|output)_[a-z_]+>")
"""Those of Florence-2 for a place in the image, and of Nemotron Parse for what to write of a page."""

Point = tuple[float, float]
"""From the left and from the top, as fractions of the width and the height."""


@attrs.frozen
class Region:
    """A place in an image."""

    label: str
    """What is there; empty when the model does not say."""
    points: tuple[Point, ...]
    """One; two opposite corners of a box, the upper left one first; or the corners of a polygon."""

    @property
    def kind(self) -> str:
        """``point``, ``box`` or ``polygon``."""
        return {1: "point", 2: "box"}.get(len(self.points), "polygon")


def is_task_mark(token: str) -> bool:
    """Whether a control token is one with which users say what to do: it keeps its meaning in a message."""
    return token in _TASK_MARKS or _TASK_MARK.fullmatch(token) is not None


def regions_in(text: str) -> tuple[Region, ...]:
    """Return the points and boxes of an answer, in its order; none when it has none."""
    found: list[tuple[int, Region]] = []
    for pattern, read in _READERS:
        for match in re.finditer(pattern, text):
            found += [(match.start(), region) for region in read(match)]
    return tuple(region for _, region in sorted(found, key=lambda each: each[0]))


def _of(label: str, values: list[float], units: float) -> Iterator[Region]:
    """Yield a region of numbers that alternate between left and top; none when they are no fractions of the units."""
    points = tuple(
        (round(left / units, 4), round(top / units, 4)) for left, top in zip(values[::2], values[1::2], strict=False)
    )
    whole = bool(points) and len(values) % 2 == 0 and all(0 <= side <= 1 for point in points for side in point)
    ordered = len(points) != _BOX or (points[0][0] <= points[1][0] and points[0][1] <= points[1][1])
    if whole and ordered:
        yield Region(label.strip(), points)


_BOX = 2

_LONGEST_LABEL = 200
"""Characters before coordinates that can be their label."""


def _lists(label: str, text: str, units: float) -> Iterator[Region]:
    """Yield the boxes of a JSON list of them."""
    try:
        boxes = json.loads(text)
    except (ValueError, RecursionError):
        return
    for box in boxes if isinstance(boxes, list) else ():
        if isinstance(box, list) and all(type(side) in (int, float) for side in box):
            yield from _of(label, [float(side) for side in box], units)


def _deepseek(match: re.Match[str]) -> Iterator[Region]:
    yield from _lists(match["label"] or "", match["boxes"], 999)


def _boxes(match: re.Match[str]) -> Iterator[Region]:
    for text in re.findall(r"<box>(.*?)</box>", match["boxes"]):
        if text.startswith("["):
            yield from _lists(match["label"] or "", text, 1000)
        elif _CORNERS.fullmatch(text):
            yield from _of(match["label"] or "", [float(side) for side in re.findall(r"\d+", text)], 1000)


def _qwen(match: re.Match[str]) -> Iterator[Region]:
    yield from _of(match["label"] or "", [float(side) for side in re.findall(r"\d+", match["box"])], 1000)


def _label_before(match: re.Match[str]) -> str:
    before = match.string[max(match.start() - _LONGEST_LABEL, 0) : match.start()]
    return re.split(r"[<>\n]", before)[-1]


def _tokens(units: float) -> Callable[[re.Match[str]], Iterator[Region]]:
    def read(match: re.Match[str]) -> Iterator[Region]:
        yield from _of(_label_before(match), [float(side) for side in re.findall(r"\d+", match["box"])], units)

    return read


def _florence(match: re.Match[str]) -> Iterator[Region]:
    """Yield the boxes or polygons of a label; a corner of one is the middle of a cell, of a thousand by a thousand."""
    for part in re.split(r"<sep>|</?poly>", match["places"]):
        sides = [float(side) + 0.5 for side in re.findall(r"\d+", part)]
        fours = [sides[start : start + 4] for start in range(0, len(sides), 4)]
        several = "<poly>" not in match["places"] and all(map(_is_box, fours))
        for each in fours if several else [sides]:
            yield from _of(_label_before(match), each, 1000)


def _is_box(sides: list[float]) -> bool:
    """Whether numbers are the corners of a box, and not two neighbouring corners of a polygon, which goes around."""
    return len(sides) == _BOX * 2 and sides[0] <= sides[2] and sides[1] <= sides[3]


def _paligemma(match: re.Match[str]) -> Iterator[Region]:
    top, left, bottom, right = (float(side) for side in re.findall(r"\d+", match["box"]))
    yield from _of(match["label"], [left, top, right, bottom], 1024)


def _molmo(match: re.Match[str]) -> Iterator[Region]:
    attributes = dict(re.findall(r'([xy]\d*|alt)="([^"]*)"', match["attributes"]))
    for name, left in attributes.items():
        top = attributes.get(f"y{name[1:]}", "")
        if name.startswith("x") and _NUMBER.fullmatch(left) and _NUMBER.fullmatch(top):
            yield from _of(match["label"] or attributes.get("alt", ""), [float(left), float(top)], 100)


_CORNERS = re.compile(r"(<\d{1,4}>){2}|(<\d{1,4}>){4}|\(\d{1,4},\d{1,4}\)(,\(\d{1,4},\d{1,4}\))?")
_NUMBER = re.compile(r"\d{1,3}(\.\d{1,6})?")

_READERS: tuple[tuple[str, Callable[[re.Match[str]], Iterator[Region]]], ...] = (
    (
        r"(?:<\|ref\|>(?P<label>[^<]{0,200})<\|/ref\|>)?<\|det\|>(?P<boxes>[\[\]\d\s.,]+)<\|/det\|>",
        _deepseek,
    ),
    (
        r"(?:<\|object_ref_start\|>(?P<label>[^<]{0,200})<\|object_ref_end\|>)?"
        r"<\|box_start\|>(?P<box>\(\d{1,4},\s?\d{1,4}\)(?:,\s?\(\d{1,4},\s?\d{1,4}\))?)<\|box_end\|>",
        _qwen,
    ),
    (
        r"(?:<ref>(?P<label>[^<]{0,200})</ref>)?(?P<boxes>(?:<box>[<>\[\]()\d\s.,]{3,2000}</box>){1,64})",
        _boxes,
    ),
    (r"(?P<box>(?:<\|LOC_\d{1,4}\|>){2,64})", _tokens(1000)),
    (r"(?P<places>(?:</?poly>|<sep>|<loc_\d{1,3}>){2,4096})", _florence),
    (r"(?P<box>(?:<loc\d{4}>){4})(?P<label>[^<>;\n]*)", _paligemma),
    (r"<points?\s(?P<attributes>[^<>]{1,4096})>(?P<label>[^<>]*)</points?>", _molmo),
)
"""DeepSeek-OCR; Qwen2-VL; LocateAnything, InternVL and Qwen-VL; PaddleOCR-VL, Florence, PaliGemma and Molmo."""
