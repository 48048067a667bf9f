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
"""Which expression to ask for: proposes programs of every type until one names exactly one object."""

import numpy as np

from .levels import Level
from .objects import ATTRIBUTES, COLORS, SHAPES, TEXTURE_FAMILIES, TEXTURES
from .programs import KEYS, RELATIONS, Facts, ObjectSet, UnclearError, execute, members
from .scene import Scene, pick, pick_weighted


TRIES = 12
Filters = list[tuple[str, str]]


class Proposer:
    """
    Proposes programs about one scene.

    Args:
        scene (`Scene`): Gives the possible targets, and the attributes that have to be named.
        facts (`Facts`): Of the scene's graph.
        level (`Level`): Gives the expression types and how much is said beyond need.
        rng (`np.random.Generator`): The expression's own generator.
    """

    def __init__(self, scene: Scene, facts: Facts, level: Level, rng: np.random.Generator):
        self.scene = scene
        self.facts = facts
        self.level = level
        self.rng = rng
        self._described: dict[int, list[tuple[Filters, ObjectSet]]] = {}

    def propose(self) -> tuple[str, list[dict], int]:
        """
        A program that names exactly one object.

        Returns:
            `tuple[str, list[dict], int]`: The type of the expression, the program, the number of the object.
        """
        weights = dict(self.level.expressions)
        while weights:
            kind = pick_weighted(self.rng, weights)
            for _ in range(TRIES):
                target = pick(self.rng, self.scene.targets)
                program = getattr(self, f"_{kind}")(target)
                if program is not None and self._names(program, target):
                    return kind, program, target
            del weights[kind]
        # A texture's family may have been drawn where only its exact name tells the target: draw anew until one does.
        while not (targets := [number for number in self.scene.targets if self._unique_filters(number)]):
            self._described.clear()
        target = pick(self.rng, targets)
        return "attribute", self._attribute(target), target

    def propose_absent(self) -> list[dict]:
        """A program that clearly nothing fits, by a wrong attribute in one that something fits."""
        values = {attribute: sorted({item[attribute] for item in self.facts.objects}) for attribute in ATTRIBUTES}
        while True:
            _, program, _ = self.propose()
            filters = [number for number, step in enumerate(program) if step["function"] == "filter"]
            for _ in range(TRIES if filters else 0):
                number = pick(self.rng, filters)
                attribute = program[number]["attribute"]
                # Mostly a value that is in the picture, on other objects.
                options = values[attribute] if self.rng.random() < 0.8 else VALUES[attribute]
                wrong = [dict(step) for step in program]
                wrong[number]["value"] = pick(self.rng, options)
                try:
                    if execute(wrong, self.facts) is None:
                        return wrong
                except UnclearError:
                    continue

    def _names(self, program: list[dict], target: int) -> bool:
        try:
            return execute(program, self.facts) == target
        except UnclearError:
            return False

    def _attribute(self, target: int) -> list[dict] | None:
        filters = self._pick_unique_filters(target)
        return None if filters is None else _finish(_objects([], filters))

    def _superlative(self, target: int) -> list[dict] | None:
        filters = self._pick_filters(target, fewest=2)
        if filters is None:
            return None
        return self._extreme_of(_objects([], filters), filters)

    def _ordinal(self, target: int) -> list[dict] | None:
        filters = self._pick_filters(target, fewest=3)
        if filters is None:
            return None
        candidates = members(self._selected(filters)[1])
        # The last of a row is more naturally called the extreme of the other side.
        rank = 2 + int(self.rng.random() * min(3, len(candidates) - 2))
        steps = _objects([], filters)
        keys = [key for key in _keys(filters) if key != "small"]
        for key in self._shuffled(keys):
            program = _finish(_add(list(steps), "ordinal", len(steps) - 1, key=key, rank=rank))
            if self._names(program, target):
                return program
        return None

    def _relation(self, target: int) -> list[dict] | None:
        form = pick_weighted(self.rng, {"side": 0.6, "nearest": 0.25, "between": 0.15})
        if form == "nearest":
            return self._nearest_to(target)
        if form == "between":
            return self._in_between(target)
        for relation, anchor, related in self._relations_of(target):
            filters = self._pick_needed_filters(target, related)
            steps = filters and self._name_anchor(anchor)
            if steps:
                return _finish(_objects(_add(steps, "relate", len(steps) - 1, relation=relation), filters))
        return None

    def _nearest_to(self, target: int) -> list[dict] | None:
        anchor = self._other(target)
        filters = self._pick_filters(target, fewest=2)
        if filters is None or (self._selected(filters)[0] & ~(1 << anchor)).bit_count() < 2:
            return None
        steps = self._name_anchor(anchor)
        if not steps:
            return None
        last = len(steps) - 1
        steps = _objects(_add(steps, "scene"), filters)
        return _finish(_add(steps, "nearest", len(steps) - 1, last))

    def _in_between(self, target: int) -> list[dict] | None:
        numbers = range(len(self.facts.objects))
        pairs = [(one, two) for one in numbers for two in numbers if target not in (one, two) and one != two]
        for first, second in self._shuffled(pairs)[: 2 * TRIES]:
            related = self.facts.between(first, second)
            filters = self._pick_needed_filters(target, related) if related[0] >> target & 1 else None
            steps = filters and self._name_anchor(first)
            others = steps and self._name_anchor(second)
            if others:
                both = steps + _shifted(others, len(steps))
                both = _add(both, "between", len(steps) - 1, len(both) - 1)
                return _finish(_objects(both, filters))
        return None

    def _two_hop(self, target: int) -> list[dict] | None:
        return self._both(target) if self.rng.random() < 0.25 else self._chain(target)

    def _chain(self, target: int) -> list[dict] | None:
        """The target's relation to something that needs a relation of its own to be told."""
        for outer, middle, outer_related in self._relations_of(target)[:TRIES]:
            outer_filters = self._pick_needed_filters(target, outer_related)
            if not outer_filters:
                continue
            for inner, last, inner_related in self._relations_of(middle)[:TRIES]:
                # Without the inner relation, it would be a shorter expression, or could be read in another way.
                inner_filters = self._pick_needed_filters(middle, inner_related) if last != target else None
                steps = inner_filters and self._name_anchor(last)
                if steps:
                    steps = _add(steps, "relate", len(steps) - 1, relation=inner)
                    steps = _finish(_objects(steps, inner_filters))
                    steps = _add(steps, "relate", len(steps) - 1, relation=outer)
                    return _finish(_objects(steps, outer_filters))
        return None

    def _both(self, target: int) -> list[dict] | None:
        """The target's relations to two objects, of which neither is enough."""
        holding = self._relations_of(target)
        for (one, first, one_related), (two, second, two_related) in zip(holding, self._shuffled(holding)):
            if first == second or one == two:
                continue
            related = (one_related[0] & two_related[0], one_related[1] & two_related[1])
            filters = self._pick_needed_filters(target, related)
            if not filters or self._is_unique(filters, one_related) or self._is_unique(filters, two_related):
                continue
            steps = self._name_anchor(first)
            others = steps and self._name_anchor(second)
            if others:
                steps = _add(steps, "relate", len(steps) - 1, relation=one)
                last = len(steps) - 1
                steps = steps + _shifted(others, len(steps))
                steps = _add(steps, "relate", len(steps) - 1, relation=two)
                return _finish(_objects(_add(steps, "intersect", last, len(steps) - 1), filters))
        return None

    def _negation(self, target: int) -> list[dict] | None:
        filters = self._pick_filters(target, fewest=2)
        if filters is None:
            return None
        named = {attribute for attribute, _ in filters}
        candidates = self._selected(filters)
        options = []
        for (attribute, value), (certain, possible) in self.facts.described.items():
            if attribute not in named and attribute != "size" and certain & candidates[0]:
                left = candidates[0] & ~possible, candidates[1] & ~certain
                if left[0] >> target & 1:
                    options.append((attribute, value, left))
        if not options:
            return None
        attribute, value, left = pick(self.rng, options)
        steps = _objects([], filters)
        steps = _add(steps, "exclude", len(steps) - 1, attribute=attribute, value=value)
        return _finish(steps) if left == (1 << target, 1 << target) else self._extreme_of(steps, filters)

    def _extreme_of(self, steps: list[dict], filters: Filters) -> list[dict]:
        return _finish(_add(steps, "extreme", len(steps) - 1, key=pick(self.rng, _keys(filters))))

    def _other(self, target: int) -> int:
        number = int(self.rng.random() * (len(self.facts.objects) - 1))
        return number + (number >= target)

    def _shuffled(self, options) -> list:
        return sorted(options, key=lambda _: self.rng.random())

    def _relations_of(self, target: int) -> list[tuple[str, int, ObjectSet]]:
        """The relations that clearly hold, in any order: each with its anchor, and with all that stands in it."""
        holding = []
        for anchor in range(len(self.facts.objects)):
            for relation in RELATIONS:
                related = self.facts.related(relation, anchor)
                if related[0] >> target & 1:
                    holding.append((relation, anchor, related))
        return self._shuffled(holding)

    def _name_anchor(self, anchor: int) -> list[dict] | None:
        """The steps that name an object by its attributes alone, or by a superlative."""
        if self.rng.random() < 0.15:
            filters = self._pick_filters(anchor, fewest=2, required=())
            if filters is not None:
                steps = self._extreme_of(_objects([], filters), filters)
                if self._names(steps, anchor):
                    return steps
        filters = self._pick_unique_filters(anchor, required=())
        return None if filters is None else _finish(_objects([], filters))

    def _selected(self, filters: Filters) -> ObjectSet:
        certain, possible = self.facts.everything, self.facts.everything
        for attribute, value in filters:
            having = self.facts.having(attribute, value)
            certain, possible = certain & having[0], possible & having[1]
        return certain, possible

    def _is_unique(self, filters: Filters, source: ObjectSet) -> bool:
        certain, possible = self._selected(filters)
        certain, possible = certain & source[0], possible & source[1]
        return certain == possible and certain & (certain - 1) == 0

    def _descriptions(self, target: int) -> list[tuple[Filters, ObjectSet]]:
        """What can be said of an object, the shortest first, and what else it fits."""
        if target not in self._described:
            descriptions = [([], (self.facts.everything, self.facts.everything))]
            for attribute in ATTRIBUTES:
                value = self.facts.objects[target][attribute]
                if attribute == "texture" and self.rng.random() < 0.5:
                    if attribute not in self.scene.required.get(target, ()):
                        value = TEXTURE_FAMILIES.get(value, value)
                certain, possible = self.facts.having(attribute, value)
                if certain >> target & 1:
                    descriptions += [
                        ([*filters, (attribute, value)], (fits[0] & certain, fits[1] & possible))
                        for filters, fits in descriptions
                    ]
            self._described[target] = sorted(descriptions, key=lambda description: len(description[0]))
        return self._described[target]

    def _allowed_descriptions(self, target: int, required) -> list[tuple[Filters, ObjectSet]]:
        required = self.scene.required.get(target, ()) if required is None else required
        required = {*required, *self.level.named}
        descriptions = self._descriptions(target)
        if not required:
            return descriptions
        return [each for each in descriptions if required <= {attribute for attribute, _ in each[0]}]

    def _unique_filters(self, target: int, required=None, source: ObjectSet | None = None) -> list[Filters]:
        certain, possible = source or (self.facts.everything, self.facts.everything)
        alone = 1 << target
        return [
            filters
            for filters, fits in self._allowed_descriptions(target, required)
            if fits[0] & certain == alone and fits[1] & possible == alone
        ]

    def _pick_unique_filters(self, target: int, required=None) -> Filters | None:
        """Attributes that tell an object from all others: as few as will do, or more than that."""
        return self._pick_concise(self._unique_filters(target, required))

    def _pick_needed_filters(self, target: int, source: ObjectSet) -> Filters | None:
        """Attributes that tell the target from all others of `source`, and would not do without it."""
        return self._pick_concise(
            [
                filters
                for filters in self._unique_filters(target, source=source)
                if filters and self._selected(filters)[1] != 1 << target
            ]
        )

    def _pick_filters(self, target: int, fewest: int, required=None) -> Filters | None:
        """Attributes of the target that fit `fewest` objects at least."""
        descriptions = self._allowed_descriptions(target, required)
        options = [filters for filters, fits in descriptions if fits[0].bit_count() >= fewest]
        return self._prefer_nouns(options) if options else None

    def _pick_concise(self, options: list[Filters]) -> Filters | None:
        if not options:
            return None
        if self.rng.random() >= self.level.redundancy:
            # A noun comes free: English wants one anyway.
            options = [option for option in options if len(option) - _has_noun(option) <= len(options[0])]
        return self._prefer_nouns(options)

    def _prefer_nouns(self, options: list[Filters]) -> Filters:
        """People name what a thing is before how it looks; "the leftmost thing" is rare where a noun would do."""
        weights = [0.3 if not option else 3.0 if _has_noun(option) else 1.0 for option in options]
        return options[pick_weighted(self.rng, dict(enumerate(weights)))]


VALUES = {
    "size": ("small", "medium", "large"),
    "color": tuple(COLORS),
    "texture": TEXTURES + ("striped",),
    "shape": SHAPES,
}


def is_describable(scene: Scene, facts: Facts, level: Level) -> bool:
    """Whether one of the scene's targets at least can be told by its attributes alone."""
    proposer = Proposer(scene, facts, level, np.random.default_rng(0))
    return any(proposer._unique_filters(target) for target in scene.targets)


def _has_noun(filters: Filters) -> bool:
    return any(attribute == "shape" for attribute, _ in filters)


def _keys(filters: Filters) -> list[str]:
    """The extremes that make sense: nobody says "the largest small star"."""
    sized = any(attribute == "size" for attribute, _ in filters)
    return [key for key in KEYS if not (sized and key in ("large", "small"))]


def _add(steps: list[dict], function: str, *inputs: int, **arguments) -> list[dict]:
    return steps + [{"function": function, "inputs": list(inputs), **arguments}]


def _objects(steps: list[dict], filters: Filters) -> list[dict]:
    """Adds the filters to the last step, or to the whole scene where there is none."""
    steps = steps or _add(steps, "scene")
    for attribute, value in filters:
        steps = _add(steps, "filter", len(steps) - 1, attribute=attribute, value=value)
    return steps


def _finish(steps: list[dict]) -> list[dict]:
    return _add(steps, "unique", len(steps) - 1)


def _shifted(steps: list[dict], offset: int) -> list[dict]:
    return [{**step, "inputs": [number + offset for number in step["inputs"]]} for step in steps]
