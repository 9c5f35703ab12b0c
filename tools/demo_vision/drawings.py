"""Draws what the model learns to name: one coloured shape on a plain background.

Sizes, places, proportions, tints and backgrounds vary, so that the model cannot learn any one of them by heart.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross")

# Ranges of hue (degrees), saturation and value.
COLOURS = {
    "red": ((-8, 8), (0.78, 1.0), (0.75, 1.0)),
    "orange": ((25, 39), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 62), (0.72, 1.0), (0.88, 1.0)),
    "green": ((95, 145), (0.6, 1.0), (0.4, 1.0)),
    "blue": ((212, 246), (0.65, 1.0), (0.6, 1.0)),
    "purple": ((272, 302), (0.55, 1.0), (0.42, 0.75)),
    "black": ((0, 360), (0.0, 0.2), (0.0, 0.1)),
    "white": ((0, 360), (0.0, 0.03), (0.96, 1.0)),
}
SIDE = (40, 170)
"""Shortest and longest side of a drawing, pixels."""

_CONTRAST = 95
"""Least distance between figure and background, in RGB."""

_SMOOTHING = 2
"""Drawings are made this much larger and then reduced."""

_CORNERS = 64
"""Of the polygon that passes for a circle."""

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A drawing, and where in it the figure is."""

    image: Image.Image
    silhouette: Image.Image
    """The same figure in white on black."""


def draw(rng: random.Random, colour: str, shape: str, size: tuple[int, int] | None = None) -> Drawing:
    """Return a drawing.

    Args:
        rng: Decides everything that is not given.
        colour: One of ``COLOURS``.
        shape: One of ``SHAPES``.
        size: Width and height in pixels.
    """
    width, height = size or _size(rng)
    large = (width * _SMOOTHING, height * _SMOOTHING)
    figure = _tint(rng, colour)
    ground = _background(rng, figure)
    radius = min(large) * rng.uniform(0.24, 0.44)
    place = tuple(side / 2 + rng.uniform(-1, 1) * max(0.0, side / 2 - radius - 3) for side in large)
    outlines = [[(place[0] + radius * x, place[1] + radius * y) for x, y in part] for part in _outlines(rng, shape)]

    def painted(ground: Colour, figure: Colour) -> Image.Image:
        image = Image.new("RGB", large, ground)
        pen = ImageDraw.Draw(image)
        for outline in outlines:
            pen.polygon(outline, fill=figure)
        return image.resize((width, height), Image.Resampling.BOX)

    return Drawing(painted(ground, figure), painted((0, 0, 0), (255, 255, 255)))


def _size(rng: random.Random) -> tuple[int, int]:
    side = rng.randint(*SIDE)
    other = rng.randint(max(SIDE[0], int(side * 0.7)), side) if rng.random() < 0.4 else side
    return (side, other) if rng.random() < 0.5 else (other, side)


def _outlines(rng: random.Random, shape: str) -> list[Points]:
    """Return the corners of the parts of a shape, in units of its radius."""
    if shape == "circle":
        flat = rng.uniform(0.92, 1.0)
        corners = (2 * math.pi * step / _CORNERS for step in range(_CORNERS))
        return [[(math.cos(angle), flat * math.sin(angle)) for angle in corners]]
    if shape == "square":
        parts: list[Points] = [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]]
    elif shape == "triangle":
        foot = rng.uniform(0.72, 1.0)
        parts = [[(0, -1), (foot, 0.85), (-foot, 0.85)]]
    else:
        arm = rng.uniform(0.24, 0.4)
        upright: Points = [(-arm, -1), (arm, -1), (arm, 1), (-arm, 1)]
        parts = [upright, [(y, x) for x, y in upright]]
    angle = math.radians(rng.uniform(-9, 9))
    return [[_turned(point, angle) for point in part] for part in parts]


def _turned(point: tuple[float, float], angle: float) -> tuple[float, float]:
    x, y = point
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)


def _tint(rng: random.Random, colour: str) -> Colour:
    hue, saturation, value = (rng.uniform(*limits) for limits in COLOURS[colour])
    return _rgb(hue, saturation, value)


def _background(rng: random.Random, figure: Colour) -> Colour:
    """Return white, black, a grey or a pale tint that the figure stands out from."""
    while True:
        kind = rng.random()
        if kind < 0.3:
            ground = _rgb(0, 0, rng.uniform(0.95, 1.0))
        elif kind < 0.4:
            ground = _rgb(0, 0, rng.uniform(0.0, 0.08))
        elif kind < 0.75:
            ground = _rgb(0, 0, rng.uniform(0.2, 0.93))
        else:
            ground = _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.28), rng.uniform(0.3, 0.98))
        if math.dist(ground, figure) >= _CONTRAST:
            return ground


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
