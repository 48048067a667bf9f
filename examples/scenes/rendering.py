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
"""Pictures of scenes: background, light, textures, weather and sensor noise."""

import colorsys
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .levels import Level
from .objects import COLORS
from .scene import Scene, SceneObject, pick, uniform


# Every tone stays this far from 0 and 255, so that noise can be added without clipping.
HEADROOM = 26
NOISE_TILE = 832
# Periods of a texture are at least so long, in pixels, that they can be seen.
SHORTEST_PERIOD = 4.0


def render_scene(scene: Scene, rng: np.random.Generator, level: Level, effect: str | None = None) -> Image.Image:
    """
    Render a scene.

    Args:
        scene (`Scene`): What to draw.
        rng (`np.random.Generator`): The picture's own generator: light, background, tones, noise.
        level (`Level`): Gives the range of the noise.
        effect (`str`, *optional*): "night", "fog" or "rain".

    Returns:
        `Image.Image`: RGB, of the scene's width and height.
    """
    light = _sample_light(rng)
    bright = rng.random() < 0.65
    canvas = _background(rng, scene.width, scene.height, light, bright)
    for item in scene.objects:
        _draw_object(rng, canvas, item, light, bright)
    low, high = level.noise
    deviation = low + int(rng.random() * (high - low + 1))
    if effect is not None:
        # A stream of its own: weather changes nothing else about the picture.
        canvas, deviation = EFFECTS[effect](np.random.default_rng(int(rng.random() * 2**32)), canvas, deviation)
    return _add_noise(rng, canvas, deviation)


def _sample_light(rng: np.random.Generator) -> dict:
    angle = uniform(rng, 0, 2 * np.pi)
    strength = uniform(rng, 0.0, 0.16)
    return {
        "level": uniform(rng, 0.86, 1.1),
        "slope": (strength * np.cos(angle), strength * np.sin(angle)),
        "tint": np.array([uniform(rng, 0.96, 1.04) for _ in range(3)]),
    }


def _light_at(light: dict, x, y):
    """The light's strength at (x, y), both in [-1, 1] from one side of the picture to the other."""
    return light["level"] + light["slope"][0] * x + light["slope"][1] * y


def _clip(color) -> tuple[int, int, int]:
    return tuple(int(channel) for channel in np.clip(color, HEADROOM, 255 - HEADROOM))


def _background(rng: np.random.Generator, width: int, height: int, light: dict, bright: bool) -> Image.Image:
    """Plain, graded, blotchy or grainy, always far less saturated than the objects."""
    rows, columns = 6 + int(rng.random() * 14), 6 + int(rng.random() * 14)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    value = uniform(rng, 195, 235) if bright else uniform(rng, 30, 62)
    color = value * np.array(colorsys.hsv_to_rgb(rng.random(), uniform(rng, 0, 0.16), 1.0))
    grid = np.broadcast_to(color, (rows, columns, 3)) * _light_at(light, x, y)[..., None] * light["tint"]
    kind = pick(rng, ("plain", "gradient", "blotches", "clutter", "grain"))
    reach = 26 if bright else 20
    if kind == "gradient":
        angle = uniform(rng, 0, 2 * np.pi)
        grid = grid + reach * (x * np.cos(angle) + y * np.sin(angle))[..., None]
    elif kind in ("blotches", "clutter"):
        grid = grid + reach * (rng.random((rows, columns, 1)) - 0.5 + 0.3 * (rng.random((rows, columns, 3)) - 0.5))
    tones = np.clip(grid, HEADROOM, 255 - HEADROOM).astype(np.uint8)
    canvas = Image.fromarray(tones).resize((width, height), Image.Resampling.BILINEAR)
    if kind == "clutter":
        _draw_clutter(rng, canvas, reach)
    elif kind == "grain":
        canvas = _add_noise(rng, canvas, 7)
        # Grain lies under the noise, and must leave the noise its headroom.
        canvas = canvas.point(_table(lambda tone: np.clip(tone, HEADROOM, 255 - HEADROOM)))
    return canvas


def _draw_clutter(rng: np.random.Generator, canvas: Image.Image, reach: int) -> None:
    """Faint bars and blobs, with no outline or colour that an object could be taken for."""
    width, height = canvas.size
    draw = ImageDraw.Draw(canvas)
    for _ in range(3 + int(rng.random() * 6)):
        x, y = uniform(rng, 0, width), uniform(rng, 0, height)
        tone = np.array(canvas.getpixel((min(int(x), width - 1), min(int(y), height - 1)))) + uniform(
            rng, -reach, reach
        )
        radius = uniform(rng, 0.05, 0.25) * max(width, height)
        if rng.random() < 0.5:
            angle = uniform(rng, 0, np.pi)
            dx, dy = 4 * radius * np.cos(angle), 4 * radius * np.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=_clip(tone), width=1 + int(radius / 12))
        else:
            squeeze = uniform(rng, 0.4, 1.0)
            draw.ellipse((x - radius, y - squeeze * radius, x + radius, y + squeeze * radius), fill=_clip(tone))


def _draw_object(rng: np.random.Generator, canvas: Image.Image, item: SceneObject, light: dict, bright: bool) -> None:
    width, height = item.alpha.size
    x = 2 * (item.left + width / 2) / canvas.width - 1
    y = 2 * (item.top + height / 2) / canvas.height - 1
    color = np.array(COLORS[item.color]) * uniform(rng, 0.92, 1.06) + np.array([uniform(rng, -8, 8) for _ in range(3)])
    lit = _light_at(light, x, y) * light["tint"]
    place = (item.left, item.top)
    canvas.paste(_clip(color * lit), place, item.alpha)
    pattern = _pattern(rng, item, width, height)
    contrast = _contrast(rng, color, bright)
    if pattern is not None:
        coverage = ImageChops.multiply(item.alpha, Image.fromarray(pattern))
        canvas.paste(_clip(contrast * lit), place, coverage)


def _contrast(rng: np.random.Generator, color: np.ndarray, bright: bool) -> np.ndarray:
    """The second tone of a texture: well darker or well lighter than the first, and told from the background too."""
    luminance = color @ np.array([0.299, 0.587, 0.114])
    lighter, strength = not bright, uniform(rng, 0.6, 0.8)
    if (lighter and luminance > 160) or rng.random() < 0.25:
        # Towards the background, so only half way.
        lighter, strength = luminance < 100, 0.55
    return color + strength * (255 * lighter - color)


def _wave(length: int, period: float, phase: float) -> np.ndarray:
    """A square wave from 0 to 1 with edges one pixel wide, `(length,)`."""
    position = (np.arange(length) + 0.5) / period + phase
    return np.clip((0.25 - np.abs(position % 1 - 0.5)) * period + 0.5, 0, 1)


def _pattern(rng: np.random.Generator, item: SceneObject, width: int, height: int) -> np.ndarray | None:
    """Where a textured object has its second tone, uint8 `(height, width)`."""
    period = max(SHORTEST_PERIOD, item.side / uniform(rng, 3.2, 5.5))
    phase, other_phase = rng.random(), rng.random()
    if item.texture == "solid":
        return None
    if item.texture == "horizontal":
        pattern = np.broadcast_to(_wave(height, period, phase)[:, None], (height, width))
    elif item.texture == "vertical":
        pattern = np.broadcast_to(_wave(width, period, phase), (height, width))
    elif item.texture == "diagonal":
        lean = _wave(width + height, 1.3 * period, phase)
        reach = np.arange(width) + np.arange(height)[:, None]
        pattern = lean[reach if other_phase < 0.5 else reach[:, ::-1]]
    elif item.texture == "checkered":
        rows, columns = 2 * _wave(height, 1.2 * period, phase) - 1, 2 * _wave(width, 1.2 * period, other_phase) - 1
        pattern = 0.5 + 0.5 * rows[:, None] * columns
    else:
        rows, columns = (
            ((np.arange(length) + 0.5) / period + start) % 1 - 0.5
            for length, start in ((height, phase), (width, other_phase))
        )
        distance = np.sqrt(rows[:, None] ** 2 + columns**2)
        pattern = np.clip((0.32 - distance) * period + 0.5, 0, 1)
    return (255 * pattern).astype(np.uint8)


@cache
def _noise_tile(deviation: int) -> np.ndarray:
    tile = np.random.default_rng(deviation).normal(0, deviation, (NOISE_TILE, NOISE_TILE, 3))
    return np.clip(np.round(tile), 1 - HEADROOM, HEADROOM - 1).astype(np.int8).view(np.uint8)


def _add_noise(rng: np.random.Generator, canvas: Image.Image, deviation: int) -> Image.Image:
    """Adds a cut-out of a fixed tile of noise: drawing a million normal numbers would cost more than all the rest."""
    left, top = (int(rng.random() * (NOISE_TILE - length + 1)) for length in canvas.size)
    cut = _noise_tile(deviation)[top : top + canvas.height, left : left + canvas.width]
    # Adding in uint8 wraps around, and `HEADROOM` keeps the sum from doing so.
    return Image.fromarray(np.asarray(canvas) + cut)


def _table(function) -> list[int]:
    return list(np.clip(function(np.arange(256.0)), 0, 255).astype(int)) * 3


def _soft_map(rng: np.random.Generator, size: tuple[int, int], low: float, high: float) -> Image.Image:
    """A smooth random map over the picture, mode "L", between `low` and `high` of 255."""
    grid = 255 * (low + (high - low) * rng.random((3, 4)))
    return Image.fromarray(grid.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _night(rng: np.random.Generator, canvas: Image.Image, deviation: int) -> tuple[Image.Image, int]:
    """Dark and bluish, brighter around a lamp, noisier."""
    dark = Image.new("RGB", canvas.size, (HEADROOM, HEADROOM, HEADROOM + 8))
    shine = _soft_map(rng, canvas.size, 0.2, 0.55)
    return Image.composite(canvas, dark, shine), min(deviation + 3, 8)


def _fog(rng: np.random.Generator, canvas: Image.Image, deviation: int) -> tuple[Image.Image, int]:
    """Veiled in light gray, more in some places than in others."""
    veil = Image.new("RGB", canvas.size, _clip(np.full(3, uniform(rng, 180, 215))))
    return Image.composite(veil, canvas, _soft_map(rng, canvas.size, 0.45, 0.8)), deviation


def _rain(rng: np.random.Generator, canvas: Image.Image, deviation: int) -> tuple[Image.Image, int]:
    """Duller, and crossed by bright streaks."""
    width, height = canvas.size
    canvas = canvas.point(_table(lambda tone: HEADROOM + 0.62 * (tone - HEADROOM) + 14))
    streaks = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(streaks)
    slant = uniform(rng, -0.35, 0.35)
    for x, y, reach, strength in rng.random((int(width * height / 420), 4)):
        length = (0.015 + 0.03 * reach) * max(width, height)
        start = (x * width, y * height - length / 2)
        end = (start[0] + slant * length, start[1] + length)
        draw.line((*start, *end), fill=int(70 + 90 * strength), width=1)
    canvas.paste((215, 218, 224), (0, 0), streaks)
    return canvas, deviation


EFFECTS = {"night": _night, "fog": _fog, "rain": _rain}
