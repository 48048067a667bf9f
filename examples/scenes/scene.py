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
"""A scene: how its objects are drawn from a random generator, and the graph that describes them."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .levels import Level
from .objects import (
    ATTRIBUTES,
    COLORS,
    ROTATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    draw_alpha,
    held_out,
    object_extent,
)


MINIMUM_VISIBLE = 0.65
# Clear space around an object that occludes nothing and is not occluded, in pixels.
CLEARANCE = 3
PLACEMENT_TRIES = 24


@dataclass
class SceneObject:
    """
    One object. `bbox` is the tight extent of its visible pixels, xyxy in pixels; `side` is the longer side of its
    whole box in pixels, `visible` the share of its pixels that nothing hides. `left`, `top` and `alpha` are the tile
    that the renderer draws.
    """

    size: str
    color: str
    texture: str
    shape: str
    side: float
    rotation: float
    left: int
    top: int
    alpha: Image.Image
    pixels: int
    bbox: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    visible: float = 1.0


@dataclass
class Scene:
    """
    A picture's content before any light falls on it.

    `owner` is an int8 array `(height, width)` with the number of the object seen at each pixel, -1 where there is
    none. `targets` are the objects that an expression may name, `required` the attributes that it then has to name.
    """

    width: int
    height: int
    objects: list[SceneObject] = field(default_factory=list)
    owner: np.ndarray | None = None
    targets: tuple[int, ...] = ()
    required: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def graph(self) -> dict:
        """The scene graph, made of lists, strings and numbers only."""
        objects = [
            {
                "id": number,
                **{attribute: getattr(item, attribute) for attribute in ATTRIBUTES},
                "side": round(item.side, 2),
                "rotation": round(item.rotation, 1),
                "bbox": list(item.bbox),
                "visible": round(item.visible, 3),
            }
            for number, item in enumerate(self.objects)
        ]
        return {"width": self.width, "height": self.height, "objects": objects}

    def mask(self, number: int) -> np.ndarray:
        """The visible pixels of an object, a boolean array `(height, width)`."""
        return self.owner == number


def pick(rng: np.random.Generator, options):
    """One of a sequence's members, all equally likely."""
    return options[int(rng.random() * len(options))]


def pick_weighted(rng: np.random.Generator, weights: dict):
    """One of a dictionary's keys, as likely as its value says."""
    remaining = rng.random() * sum(weights.values())
    for option, weight in weights.items():
        remaining -= weight
        if remaining < 0:
            return option
    # Rounding can leave a trace of the last one's weight.
    return option


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def subset(rng: np.random.Generator, options, low: int, high: int) -> list:
    """Between `low` and `high` of a sequence's members."""
    options = list(options)
    return [options.pop(int(rng.random() * len(options))) for _ in range(low + int(rng.random() * (high - low + 1)))]


def sample_scene(rng: np.random.Generator, level: Level, kind: str = "standard") -> Scene:
    """
    Draw a scene.

    Args:
        rng (`np.random.Generator`): The scene's own generator.
        level (`Level`): What to draw.
        kind (`str`, *optional*, defaults to `"standard"`): The kind of split, see `Split`.

    Returns:
        `Scene`: With at least `level.objects[0]` objects, each visible to `MINIMUM_VISIBLE` at least.
    """
    while True:
        scene = _draw_canvas(rng, level)
        fewest, most = level.objects
        count = fewest + int(rng.random() * (most - fewest + 1))
        if kind == "fine":
            descriptions = _describe_group(rng, level, count)
        else:
            descriptions = _describe_objects(rng, level, count, compositional=kind == "compositional")
        longest = max(scene.width, scene.height)
        sides = [_side(rng, description["size"], longest, level) for description in descriptions]
        # The larger ones first: they lie behind, and find room more easily.
        for number in sorted(range(len(sides)), key=lambda number: -sides[number]):
            _place(rng, scene, descriptions[number], sides[number], level)
        _measure(scene)
        _choose_targets(scene, kind)
        if len(scene.objects) >= fewest and len(scene.targets) >= (3 if kind == "fine" else 1):
            return scene


def _draw_canvas(rng: np.random.Generator, level: Level) -> Scene:
    low, high = level.longest_side
    longest = low + int(rng.random() * (high - low + 1))
    shortest = round(longest * level.elongation ** -rng.random())
    width, height = (longest, shortest) if rng.random() < 0.6 else (shortest, longest)
    return Scene(width, height, owner=np.full((height, width), -1, dtype=np.int8))


def _describe_objects(rng: np.random.Generator, level: Level, count: int, compositional: bool) -> list[dict]:
    # A scene keeps to a few values of each attribute, so that its objects have to be told apart by several.
    values = {
        "size": list(level.sizes),
        "color": subset(rng, COLORS, 2, 5),
        "texture": subset(rng, TEXTURES, 2, 4),
        "shape": subset(rng, SHAPES, 2, 5),
    }
    for attribute in level.distinct:
        values[attribute] = list({"color": COLORS, "texture": TEXTURES, "shape": SHAPES}[attribute])
    descriptions = []
    while len(descriptions) < count:
        if descriptions and rng.random() < level.copies:
            description = dict(pick(rng, descriptions))
            attribute = pick(rng, ATTRIBUTES)
            description[attribute] = pick(rng, values[attribute])
        else:
            description = {attribute: pick(rng, values[attribute]) for attribute in ATTRIBUTES}
            description["size"] = pick_weighted(rng, level.sizes)
        taken = any(description[name] == other[name] for name in level.distinct for other in descriptions)
        if not taken and not _is_held_out(description):
            descriptions.append(description)
    if compositional:
        for description in descriptions[:: max(1, count // 2)]:
            _give_held_out_pair(rng, description)
    return descriptions


def _is_held_out(description: dict) -> bool:
    return held_out(description["color"], description["texture"], description["shape"]) is not None


def _give_held_out_pair(rng: np.random.Generator, description: dict) -> None:
    attribute, options = pick(rng, (("color", tuple(COLORS)), ("texture", TEXTURES[1:])))
    description["size"] = "medium" if description["size"] == "small" else description["size"]
    while not _is_held_out(description):
        description[attribute] = pick(rng, options)


def _describe_group(rng: np.random.Generator, level: Level, count: int) -> list[dict]:
    """The target and its distractors differ in texture or in shape alone; no other object has their colour."""
    colors = subset(rng, COLORS, 4, 6)
    attribute, options = pick(rng, (("texture", TEXTURES), ("shape", SHAPES)))
    size = "small" if "small" in level.sizes else "medium"
    members = min(3 + int(rng.random() * 3), max(3, count - 1))
    while True:
        common = {"size": size, "color": colors[0], "texture": pick(rng, TEXTURES), "shape": pick(rng, SHAPES)}
        group = [{**common, attribute: value} for value in subset(rng, options, members, members)]
        shapes = {description["shape"] for description in group}
        if not any(map(_is_held_out, group)) and not {"circle", "ring"} <= shapes:
            break
    others = _describe_objects(rng, level, count - members, compositional=False)
    for description in others:
        description["color"] = pick(rng, colors[1:])
        while _is_held_out(description):
            description["shape"] = pick(rng, SHAPES)
    return [{**description, "fine": attribute} for description in group] + others


def _side(rng: np.random.Generator, size: str, longest: int, level: Level) -> float:
    low, high = SIZES[size]
    # Even over the logarithm, as sizes in photographs roughly are.
    return max(level.minimum_side, longest * low * (high / low) ** rng.random())


def _place(rng: np.random.Generator, scene: Scene, description: dict, side: float, level: Level) -> None:
    """Add an object where it fits, or leave it out."""
    if "fine" in description:
        side = max(side, 20.0)
    turn = ROTATIONS[description["shape"]]
    rotation = uniform(rng, -turn, turn)
    polygons, extent = object_extent(description["shape"], rotation)
    width, height = side * extent
    if width + 4 > scene.width or height + 4 > scene.height:
        return
    occluding = bool(scene.objects) and "fine" not in description and rng.random() < level.occlusion
    for _ in range(PLACEMENT_TRIES):
        if occluding:
            x, y = _beside(rng, pick(rng, scene.objects), side)
        else:
            x, y = uniform(rng, 0, scene.width), uniform(rng, 0, scene.height)
        if not (
            width / 2 + 1 < x < scene.width - width / 2 - 1 and height / 2 + 1 < y < scene.height - height / 2 - 1
        ):
            continue
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        touched = [number for number, item in enumerate(scene.objects) if _near(item, box)]
        if not occluding and touched:
            continue
        # Equal colours would melt into one outline; the group of a fine scene stays unhidden.
        if any(scene.objects[n].color == description["color"] or n in scene.required for n in touched):
            continue
        attributes = {attribute: description[attribute] for attribute in ATTRIBUTES}
        left, top, alpha = draw_alpha(polygons, extent, side, x, y)
        seen = np.asarray(alpha) >= 128
        item = SceneObject(**attributes, side=side, rotation=rotation, left=left, top=top, alpha=alpha, pixels=0)
        if _lay(scene, item, seen, exact=bool(touched)):
            if "fine" in description:
                scene.required[len(scene.objects) - 1] = (description["fine"],)
            return


def _beside(rng: np.random.Generator, item: SceneObject, side: float) -> tuple[float, float]:
    width, height = item.alpha.size
    reach = uniform(rng, 0.3, 0.6)
    angle = uniform(rng, 0, 2 * np.pi)
    x = item.left + width / 2 + (width + side) * reach * np.cos(angle)
    y = item.top + height / 2 + (height + side) * reach * np.sin(angle)
    return x, y


def _near(item: SceneObject, box: tuple[float, float, float, float]) -> bool:
    width, height = item.alpha.size
    return (
        item.left - CLEARANCE < box[2]
        and box[0] < item.left + width + CLEARANCE
        and item.top - CLEARANCE < box[3]
        and box[1] < item.top + height + CLEARANCE
    )


def _lay(scene: Scene, item: SceneObject, seen: np.ndarray, exact: bool) -> bool:
    """Put an object in front of the others, unless it would hide too much of one of them."""
    height, width = seen.shape
    region = scene.owner[item.top : item.top + height, item.left : item.left + width]
    item.pixels = int(np.count_nonzero(seen))
    if item.pixels == 0:
        return False
    if exact:
        hidden = np.bincount(region[seen] + 1, minlength=len(scene.objects) + 1)[1:]
        for other, count in zip(scene.objects, hidden):
            if count and (other.visible - count / other.pixels < MINIMUM_VISIBLE):
                return False
        for other, count in zip(scene.objects, hidden):
            other.visible -= float(count) / other.pixels
    region[seen] = len(scene.objects)
    scene.objects.append(item)
    return True


def _measure(scene: Scene) -> None:
    for number, item in enumerate(scene.objects):
        width, height = item.alpha.size
        seen = scene.owner[item.top : item.top + height, item.left : item.left + width] == number
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        item.bbox = (
            float(item.left + columns[0]),
            float(item.top + rows[0]),
            float(item.left + columns[-1] + 1),
            float(item.top + rows[-1] + 1),
        )


def _choose_targets(scene: Scene, kind: str) -> None:
    if kind == "compositional":
        for number, item in enumerate(scene.objects):
            pair = held_out(item.color, item.texture, item.shape)
            if pair is not None:
                scene.required[number] = pair
    scene.targets = tuple(scene.required) if kind in ("compositional", "fine") else tuple(range(len(scene.objects)))
