# Copyright 2026 The ScanFormer authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the objects of a scene can be: outlines, colours, textures and sizes."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw


ATTRIBUTES = ("size", "color", "texture", "shape")

COLORS = {
    "red": (205, 42, 42),
    "orange": (242, 135, 32),
    "yellow": (232, 212, 48),
    "green": (50, 150, 62),
    "cyan": (70, 202, 212),
    "blue": (48, 86, 212),
    "purple": (132, 58, 180),
    "pink": (245, 150, 192),
    "brown": (128, 78, 42),
    "gray": (132, 132, 132),
}

TEXTURES = ("solid", "horizontal", "vertical", "diagonal", "dotted", "checkered")
# An expression may name the family, "striped", instead of the texture itself.
TEXTURE_FAMILIES = {"horizontal": "striped", "vertical": "striped", "diagonal": "striped"}

# Side of the object's box relative to the picture's longer side. The gaps keep every size word clear.
SIZES = {"small": (0.02, 0.055), "medium": (0.085, 0.12), "large": (0.19, 0.28)}

# Below these sides, in pixels, a person can't be sure of a colour, of a shape or of a texture.
COLOR_PIXELS = 8
SHAPE_PIXELS = {"pentagon": 20, "hexagon": 20}
SHAPE_PIXELS_OTHERWISE = 11
TEXTURE_PIXELS = 14


def sides_to_tell(shape: str) -> dict[str, int]:
    """By attribute, the side in pixels from which on a person can tell it of an object of this shape."""
    shape_pixels = SHAPE_PIXELS.get(shape, SHAPE_PIXELS_OTHERWISE)
    return {"size": 0, "color": COLOR_PIXELS, "shape": shape_pixels, "texture": TEXTURE_PIXELS}


# Rotation range in degrees to either side, so that no shape turns into another.
ROTATIONS = {
    "circle": 0,
    "square": 10,
    "triangle": 25,
    "diamond": 8,
    "pentagon": 180,
    "hexagon": 180,
    "star": 180,
    "heart": 25,
    "cross": 15,
    "ring": 0,
    "crescent": 180,
    "arrow": 180,
    "semicircle": 180,
    "teardrop": 180,
}
SHAPES = tuple(ROTATIONS)

# Names that a person may well give to a shape besides its own: whether they fit counts as unclear.
OTHER_NAMES = {"ring": ("circle",)}


def held_out(color: str, texture: str, shape: str) -> tuple[str, ...] | None:
    """
    The attributes of the held-out pair that an object has, or `None`. One colour and one texture of every shape are
    kept for the split `test-compositional` alone.
    """
    position = SHAPES.index(shape)
    if COLORS_HELD_OUT[position] == color:
        return ("color", "shape")
    if TEXTURES_HELD_OUT[position] == texture:
        return ("texture", "shape")
    return None


COLORS_HELD_OUT = tuple(tuple(COLORS)[(3 * position + 1) % len(COLORS)] for position in range(len(SHAPES)))
# Never "solid": held-out textures have to be seen to be told.
TEXTURES_HELD_OUT = tuple(TEXTURES[1 + position % (len(TEXTURES) - 1)] for position in range(len(SHAPES)))


def _arc(start: float, stop: float, points: int, radius: float = 1.0) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, points))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int) -> np.ndarray:
    return _arc(-90, 270, corners + 1)[:-1]


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """
    The polygons of a shape, `(num_points, 2)` each in (x, y), y pointing down. The first is filled, the others are
    holes in it.
    """
    circle = _arc(0, 360, 73)[:-1]
    turn = np.linspace(0, 2 * np.pi, 61)[:-1]
    if shape == "circle":
        return (circle,)
    if shape == "ring":
        return circle, 0.55 * circle
    if shape == "square":
        return (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float),)
    if shape == "diamond":
        return (np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], dtype=float),)
    if shape in ("triangle", "pentagon", "hexagon"):
        return (_regular({"triangle": 3, "pentagon": 5, "hexagon": 6}[shape]),)
    if shape == "star":
        return (_regular(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None],)
    if shape == "heart":
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return (np.stack([16 * np.sin(turn) ** 3, -y], axis=1),)
    if shape == "cross":
        quarter = np.array([(0.34, -1), (0.34, -0.34), (1, -0.34)], dtype=float)
        quarters = [quarter]
        for _ in range(3):
            quarters.append(np.stack([-quarters[-1][:, 1], quarters[-1][:, 0]], axis=1))
        return (np.concatenate(quarters),)
    if shape == "crescent":
        # Both arcs meet at the tips: (cos 50, sin 50) lies on the unit circle and on the inner one.
        inner = _arc(95, 265, 30, radius=0.769) + np.array([0.71, 0.0])
        return (np.concatenate([_arc(50, 310, 50), inner[::-1]]),)
    if shape == "arrow":
        return (
            np.array(
                [(-1, -0.28), (0.05, -0.28), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.28), (-1, 0.28)], dtype=float
            ),
        )
    if shape == "semicircle":
        return (_arc(0, 180, 40),)
    if shape == "teardrop":
        return (np.stack([0.95 * np.sin(turn) * np.sin(turn / 2) ** 1.6, -np.cos(turn)], axis=1),)
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def object_extent(shape: str, rotation: float) -> tuple[list[np.ndarray], np.ndarray]:
    """
    A shape's polygons turned by `rotation` degrees and scaled so that the longer side of their box is 1, the box
    centred on the origin; and the (width, height) of that box.
    """
    angle = np.radians(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    polygons = [polygon @ turn for polygon in outline(shape)]
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    longest = (high - low).max()
    return [(polygon - (low + high) / 2) / longest for polygon in polygons], (high - low) / longest


def draw_alpha(polygons: list[np.ndarray], extent: np.ndarray, side: float, x: float, y: float):
    """
    Rasterise an object with antialiasing.

    Args:
        polygons (`list[np.ndarray]`), extent (`np.ndarray`): As `object_extent` returns them.
        side (`float`): Longer side of the object's box in pixels.
        x (`float`), y (`float`): Centre of that box in pixels of the picture.

    Returns:
        `tuple[int, int, Image.Image]`: Left and top pixel of the tile, and its coverage (mode "L").
    """
    width, height = side * extent
    left, top = int(np.floor(x - width / 2)), int(np.floor(y - height / 2))
    tile = (int(np.ceil(x + width / 2)) - left, int(np.ceil(y + height / 2)) - top)
    supersampling = 4 if side < 96 else 2
    alpha = Image.new("L", (tile[0] * supersampling, tile[1] * supersampling))
    draw = ImageDraw.Draw(alpha)
    for number, polygon in enumerate(polygons):
        # Pillow fills the pixels on the border too: half a fine pixel is taken off again.
        points = (polygon * side + (x - left, y - top)) * supersampling - 0.5
        draw.polygon(points.ravel().tolist(), fill=0 if number else 255)
    return left, top, alpha.reduce(supersampling)
