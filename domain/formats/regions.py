"""Points, boxes and polygons in the answers of vision models: reads the notation of each model family.

Each notation has its own units, from the upper left corner of the image; here coordinates are fractions of its width
and height. Incomplete markup stays text. Absolute pixels (JSON of Qwen2.5-VL) are not read, since they refer to the
resized image that only the model has seen.
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
"""Control tokens by which users ask for points and boxes; they begin and end no turn."""

_TASK_MARK = re.compile(r"<loc_\d{1,3}>|<(?:predict|output)_[a-z_]+>")
"""Location tokens of Florence-2, and task tokens of Nemotron Parse."""

Point = tuple[float, float]
"""Distance from the left and from the top, as fractions of the width and the height."""


@attrs.frozen
class Region:
    """A point, box or polygon in an image."""

    label: str
    """What the model sees there; empty without a label."""
    points: tuple[Point, ...]
    """A point; the upper left and the lower right corner of a box; or the corners of a polygon."""

    @property
    def kind(self) -> str:
        """``point``, ``box`` or ``polygon``."""
        return {1: "point", 2: "box"}.get(len(self.points), "polygon")


def is_task_mark(token: str) -> bool:
    """Whether a control token is an instruction by the user, which keeps its meaning in a message."""
    return token in _TASK_MARKS or _TASK_MARK.fullmatch(token) is not None


def regions_in(text: str) -> tuple[Region, ...]:
    """Return the regions of an answer, in order of appearance."""
    regions: list[tuple[int, Region]] = []
    for pattern, read in _READERS:
        for match in re.finditer(pattern, text):
            regions += [(match.start(), region) for region in read(match)]
    return tuple(region for _, region in sorted(regions, key=lambda positioned: positioned[0]))


def _region(label: str, values: list[float], units: float) -> Iterator[Region]:
    """Yield the region of alternating left and top coordinates; nothing when they are invalid or outside the image.

    Args:
        label: The label.
        values: Coordinates.
        units: Width, and height, of the image in the notation's units.
    """
    points = tuple(
        (round(left / units, 4), round(top / units, 4)) for left, top in zip(values[::2], values[1::2], strict=False)
    )
    inside = bool(points) and len(values) % 2 == 0 and all(0 <= side <= 1 for point in points for side in point)
    ordered = len(points) != _BOX or (points[0][0] <= points[1][0] and points[0][1] <= points[1][1])
    if inside and ordered:
        yield Region(label.strip(), points)


_BOX = 2
"""Number of points of a box."""

_LONGEST_LABEL = 200
"""Most characters of a label before coordinates."""


def _json_boxes(label: str, text: str, units: float) -> Iterator[Region]:
    """Yield the boxes of a JSON list."""
    try:
        boxes = json.loads(text)
    except (ValueError, RecursionError):
        return
    for box in boxes if isinstance(boxes, list) else ():
        if isinstance(box, list) and all(type(side) in (int, float) for side in box):
            yield from _region(label, [float(side) for side in box], units)


def _deepseek(match: re.Match[str]) -> Iterator[Region]:
    yield from _json_boxes(match["label"] or "", match["boxes"], 999)


def _boxes(match: re.Match[str]) -> Iterator[Region]:
    for text in re.findall(r"<box>(.*?)</box>", match["boxes"]):
        if text.startswith("["):
            yield from _json_boxes(match["label"] or "", text, 1000)
        elif _CORNERS.fullmatch(text):
            yield from _region(match["label"] or "", [float(side) for side in re.findall(r"\d+", text)], 1000)


def _qwen(match: re.Match[str]) -> Iterator[Region]:
    yield from _region(match["label"] or "", [float(side) for side in re.findall(r"\d+", match["box"])], 1000)


def _label_before(match: re.Match[str]) -> str:
    before = match.string[max(match.start() - _LONGEST_LABEL, 0) : match.start()]
    return re.split(r"[<>\n]", before)[-1]


def _paddle(match: re.Match[str]) -> Iterator[Region]:
    yield from _region(_label_before(match), [float(side) for side in re.findall(r"\d+", match["box"])], 1000)


def _florence(match: re.Match[str]) -> Iterator[Region]:
    """Yield the boxes or polygons of a label; coordinates are cells of a 1000 by 1000 grid, read as their centres."""
    for part in re.split(r"<sep>|</?poly>", match["places"]):
        sides = [float(side) + 0.5 for side in re.findall(r"\d+", part)]
        fours = [sides[start : start + 4] for start in range(0, len(sides), 4)]
        are_boxes = "<poly>" not in match["places"] and all(map(_is_box, fours))
        for coordinates in fours if are_boxes else [sides]:
            yield from _region(_label_before(match), coordinates, 1000)


def _is_box(sides: list[float]) -> bool:
    """Whether four numbers can be opposite corners of a box; two successive corners of a polygon need not be."""
    return len(sides) == _BOX * 2 and sides[0] <= sides[2] and sides[1] <= sides[3]


def _paligemma(match: re.Match[str]) -> Iterator[Region]:
    top, left, bottom, right = (float(side) for side in re.findall(r"\d+", match["box"]))
    yield from _region(match["label"], [left, top, right, bottom], 1024)


def _molmo(match: re.Match[str]) -> Iterator[Region]:
    attributes = dict(re.findall(r'([xy]\d*|alt)="([^"]*)"', match["attributes"]))
    for name, left in attributes.items():
        top = attributes.get(f"y{name[1:]}", "")
        if name.startswith("x") and _NUMBER.fullmatch(left) and _NUMBER.fullmatch(top):
            yield from _region(match["label"] or attributes.get("alt", ""), [float(left), float(top)], 100)


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
    (r"(?P<box>(?:<\|LOC_\d{1,4}\|>){2,64})", _paddle),
    (r"(?P<places>(?:</?poly>|<sep>|<loc_\d{1,3}>){2,4096})", _florence),
    (r"(?P<box>(?:<loc\d{4}>){4})(?P<label>[^<>;\n]*)", _paligemma),
    (r"<points?\s(?P<attributes>[^<>]{1,4096})>(?P<label>[^<>]*)</points?>", _molmo),
)
"""Pattern and reader of each notation: DeepSeek-OCR; Qwen2-VL; LocateAnything, InternVL and Qwen-VL; PaddleOCR-VL;
Florence; PaliGemma; Molmo."""
