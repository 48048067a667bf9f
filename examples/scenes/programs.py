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
"""
Programs: what an expression means, and what it refers to in a scene graph.

A program is a list of steps, each a dictionary with the name of its "function", the numbers of the steps it takes as
"inputs", and its arguments. It can be kept as JSON. The last step is always "unique".

| function | inputs | arguments | gives |
| --- | --- | --- | --- |
| scene | | | all objects |
| filter | objects | attribute, value | those that have it |
| exclude | objects | attribute, value | those that don't |
| relate | one object | relation | the objects in that relation to it |
| between | two objects | | the objects between them |
| intersect | objects, objects | | those in both |
| extreme | objects | key | the one furthest in that direction, or the largest, or the smallest |
| ordinal | objects | key, rank | the one with that rank, 2 or more, counted from that extreme |
| nearest | objects, one object | | the one nearest to it |
| unique | objects | | the only one |

A fact is clearly true, clearly false or unclear: people don't agree on whether something a little to the left of, but
mostly above, an object is "left of" it. A set of objects is therefore a pair of bit masks, those that are certainly in
it and those that are possibly in it; a program whose answer hangs on an unclear fact raises `UnclearError`.
"""

from math import hypot

from .objects import OTHER_NAMES, TEXTURE_FAMILIES, TEXTURE_PIXELS, sides_to_tell


RELATIONS = ("left", "right", "above", "below")
KEYS = ("left", "right", "top", "bottom", "large", "small")

# All relative to the picture's longer side.
OFFSET_MARGIN = 0.04
ORDER_MARGIN = 0.03
# Relative to the smaller of the two.
SIZE_RATIO = 1.25
DISTANCE_RATIO = 1.25

ObjectSet = tuple[int, int]


class UnclearError(ValueError):
    """The answer hangs on a fact that people would not agree on, or there is more than one."""


class Facts:
    """
    What is certainly and what is possibly true of the objects of a scene graph.

    Args:
        graph (`dict`): A scene graph, as `Scene.graph` returns it.
    """

    def __init__(self, graph: dict):
        self.objects = graph["objects"]
        self.longest = max(graph["width"], graph["height"])
        self.boxes = [tuple(item["bbox"]) for item in self.objects]
        self.centers = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in self.boxes]
        self.everything = (1 << len(self.objects)) - 1
        self.described: dict[tuple[str, str], ObjectSet] = {}
        self._related: dict[tuple[str, int], ObjectSet] = {}
        self._tell_attributes()

    def _tell_attributes(self) -> None:
        certain: dict[tuple[str, str], int] = {}
        possible: dict[tuple[str, str], int] = {}
        self._doubtful = {"color": 0, "shape": 0, "texture": 0}
        for number, item in enumerate(self.objects):
            bit = 1 << number
            facts = []
            for attribute, limit in sides_to_tell(item["shape"]).items():
                if item["side"] >= limit:
                    facts.append((attribute, item[attribute]))
                else:
                    self._doubtful[attribute] |= bit
            if item["side"] >= TEXTURE_PIXELS and item["texture"] in TEXTURE_FAMILIES:
                facts.append(("texture", TEXTURE_FAMILIES[item["texture"]]))
            for name in OTHER_NAMES.get(item["shape"], ()):
                possible["shape", name] = possible.get(("shape", name), 0) | bit
            for fact in facts:
                certain[fact] = certain.get(fact, 0) | bit
                possible[fact] = possible.get(fact, 0) | bit
        for fact, mask in possible.items():
            self.described[fact] = (certain.get(fact, 0), mask | self._doubtful.get(fact[0], 0))

    def having(self, attribute: str, value: str) -> ObjectSet:
        """The objects whose `attribute` is `value`."""
        return self.described.get((attribute, value)) or (0, self._doubtful.get(attribute, 0))

    def related(self, relation: str, anchor: int) -> ObjectSet:
        """The objects in `relation` to the object `anchor`."""
        key = (relation, anchor)
        if key not in self._related:
            self._related[key] = self._relate(relation, anchor)
        return self._related[key]

    def _relate(self, relation: str, anchor: int) -> ObjectSet:
        axis = 0 if relation in ("left", "right") else 1
        sign = -1 if relation in ("left", "above") else 1
        box, center = self.boxes[anchor], self.centers[anchor]
        extent = box[2 + axis] - box[axis]
        certain = possible = 0
        for number, (other, other_center) in enumerate(zip(self.boxes, self.centers)):
            if number == anchor:
                continue
            along = sign * (other_center[axis] - center[axis])
            across = abs(other_center[1 - axis] - center[1 - axis])
            apart = max(OFFSET_MARGIN * self.longest, 0.4 * (extent + other[2 + axis] - other[axis]))
            if along >= apart and across <= 1.2 * along:
                certain |= 1 << number
                possible |= 1 << number
            elif along > 0.25 * across and along > 0:
                possible |= 1 << number
        return certain, possible

    def between(self, first: int, second: int) -> ObjectSet:
        """The objects between two others."""
        (x0, y0), (x1, y1) = self.centers[first], self.centers[second]
        length = max(hypot(x1 - x0, y1 - y0), 1e-6)
        across_x, across_y = (x1 - x0) / length, (y1 - y0) / length
        certain = possible = 0
        for number, (x, y) in enumerate(self.centers):
            if number in (first, second):
                continue
            along = ((x - x0) * across_x + (y - y0) * across_y) / length
            across = abs((x - x0) * across_y - (y - y0) * across_x)
            if 0.2 <= along <= 0.8 and across <= 0.12 * length:
                certain |= 1 << number
                possible |= 1 << number
            elif 0.03 < along < 0.97 and across < 0.35 * length + 0.5 * self.objects[number]["side"]:
                possible |= 1 << number
        return certain, possible

    def precedes(self, key: str, first: int, second: int) -> bool | None:
        """Whether `first` is further towards the extreme `key` than `second`; `None` where that is unclear."""
        if key in ("large", "small"):
            if key == "small":
                first, second = second, first
            ratio = self.objects[first]["side"] / self.objects[second]["side"]
            return True if ratio >= SIZE_RATIO else False if ratio <= 1 / SIZE_RATIO else None
        axis = 0 if key in ("left", "right") else 1
        edge, sign = (axis, 1) if key in ("left", "top") else (axis + 2, -1)
        centers = sign * (self.centers[second][axis] - self.centers[first][axis])
        edges = sign * (self.boxes[second][edge] - self.boxes[first][edge])
        margin = ORDER_MARGIN * self.longest
        if centers >= margin and edges >= 0:
            return True
        return False if centers <= -margin and edges <= 0 else None

    def closer(self, anchor: int, first: int, second: int) -> bool | None:
        """Whether `first` is nearer to `anchor` than `second`; `None` where that is unclear."""
        centers = [self._distance(anchor, other) for other in (first, second)]
        gaps = [self._gap(anchor, other) for other in (first, second)]
        if centers[0] * DISTANCE_RATIO <= centers[1] and gaps[0] <= gaps[1]:
            return True
        return False if centers[1] * DISTANCE_RATIO <= centers[0] and gaps[1] <= gaps[0] else None

    def _distance(self, first: int, second: int) -> float:
        (x0, y0), (x1, y1) = self.centers[first], self.centers[second]
        return hypot(x1 - x0, y1 - y0)

    def _gap(self, first: int, second: int) -> float:
        a, b = self.boxes[first], self.boxes[second]
        return hypot(max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0))


def members(mask: int) -> list[int]:
    """The numbers of the objects in a bit mask."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def execute(program: list[dict], facts: Facts) -> int | None:
    """
    Run a program.

    Args:
        program (`list[dict]`): Its steps.
        facts (`Facts`): Of the scene graph that it is run on.

    Returns:
        `int | None`: The number of the one object that fits; `None` if clearly none does.

    Raises:
        UnclearError: If more than one object fits, or if the answer hangs on an unclear fact.
    """
    results: list[ObjectSet] = []
    for step in program:
        inputs = [results[number] for number in step["inputs"]]
        results.append(FUNCTIONS[step["function"]](facts, inputs, step))
    certain, _ = results[-1]
    return certain.bit_length() - 1 if certain else None


def _scene(facts, inputs, step):
    return facts.everything, facts.everything


def _filter(facts, inputs, step):
    certain, possible = facts.having(step["attribute"], step["value"])
    return inputs[0][0] & certain, inputs[0][1] & possible


def _exclude(facts, inputs, step):
    certain, possible = facts.having(step["attribute"], step["value"])
    return inputs[0][0] & ~possible, inputs[0][1] & ~certain


def _relate(facts, inputs, step):
    # Nothing is left of an object that isn't there.
    if not inputs[0][0]:
        return 0, 0
    return facts.related(step["relation"], inputs[0][0].bit_length() - 1)


def _between(facts, inputs, step):
    (first, _), (second, _) = inputs
    if not first or not second:
        return 0, 0
    return facts.between(first.bit_length() - 1, second.bit_length() - 1)


def _intersect(facts, inputs, step):
    return inputs[0][0] & inputs[1][0], inputs[0][1] & inputs[1][1]


def _only(candidates: ObjectSet, first) -> ObjectSet:
    """The certain candidate for which `first(it, other)` clearly holds against all possible others."""
    if not candidates[1]:
        return candidates
    others = members(candidates[1])
    for number in members(candidates[0]):
        if all(other == number or first(number, other) for other in others):
            return 1 << number, 1 << number
    raise UnclearError("no object is clearly ahead of all others")


def _extreme(facts, inputs, step):
    return _only(inputs[0], lambda number, other: facts.precedes(step["key"], number, other))


def _ordinal(facts, inputs, step):
    certain, possible = inputs[0]
    if certain != possible:
        raise UnclearError("an order needs to know what is in it")
    numbers = members(certain)
    if len(numbers) < step["rank"]:
        return 0, 0
    for number in numbers:
        ahead = [facts.precedes(step["key"], other, number) for other in numbers if other != number]
        if None not in ahead and sum(ahead) == step["rank"] - 1:
            return 1 << number, 1 << number
    raise UnclearError("the order of the objects is unclear")


def _nearest(facts, inputs, step):
    if not inputs[1][0]:
        return 0, 0
    anchor = inputs[1][0].bit_length() - 1
    others = ~(1 << anchor)
    return _only(
        (inputs[0][0] & others, inputs[0][1] & others), lambda number, other: facts.closer(anchor, number, other)
    )


def _unique(facts, inputs, step):
    certain, possible = inputs[0]
    if certain != possible or certain & (certain - 1):
        raise UnclearError("not exactly one object fits")
    return certain, possible


FUNCTIONS = {
    "scene": _scene,
    "filter": _filter,
    "exclude": _exclude,
    "relate": _relate,
    "between": _between,
    "intersect": _intersect,
    "extreme": _extreme,
    "ordinal": _ordinal,
    "nearest": _nearest,
    "unique": _unique,
}
