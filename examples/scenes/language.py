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
"""From programs to words."""

import re

import numpy as np

from .scene import pick, pick_weighted


NOUNS = {
    "circle": ("circle", "circle", "disc", "disk"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "pentagon": ("pentagon",),
    "hexagon": ("hexagon",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "donut"),
    "crescent": ("crescent", "crescent", "moon"),
    "arrow": ("arrow",),
    "semicircle": ("semicircle", "semicircle", "half circle"),
    "teardrop": ("teardrop", "teardrop", "drop"),
}
ANY_NOUN = ("thing", "object", "shape", "item")

ADJECTIVES = {
    "size": {
        "small": ("small", "small", "little", "tiny"),
        "medium": ("medium", "medium sized", "mid sized"),
        "large": ("large", "large", "big"),
    },
    "color": {
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "cyan": ("cyan", "cyan", "turquoise"),
        "blue": ("blue",),
        "purple": ("purple", "purple", "violet"),
        "pink": ("pink",),
        "brown": ("brown",),
        "gray": ("gray", "grey"),
    },
    "texture": {
        "solid": ("solid", "plain"),
        "striped": ("striped", "stripy"),
        "horizontal": ("horizontally striped",),
        "vertical": ("vertically striped",),
        "diagonal": ("diagonally striped",),
        "dotted": ("dotted", "spotted"),
        "checkered": ("checkered", "checked", "chequered"),
    },
}
TEXTURES_AFTER_NOUN = {
    "solid": ("without a pattern", "in one color"),
    "striped": ("with stripes",),
    "horizontal": ("with horizontal stripes",),
    "vertical": ("with vertical stripes",),
    "diagonal": ("with diagonal stripes",),
    "dotted": ("with dots", "with spots"),
    "checkered": ("with a checkered pattern", "with checks"),
}
COLOR_AFTER_NOUN = ("that is", "in", "colored", "coloured")

NEGATIONS = ("that is not", "which is not", "not")
WITHOUT = {
    "striped": ("without stripes",),
    "horizontal": ("without horizontal stripes",),
    "vertical": ("without vertical stripes",),
    "diagonal": ("without diagonal stripes",),
    "dotted": ("without dots", "without spots"),
}
BUT_NOT = ("that is not", "which is not", "other than")

EXTREMES = {
    "left": ("leftmost", "leftmost", "furthest left"),
    "right": ("rightmost", "rightmost", "furthest right"),
    "top": ("topmost", "highest", "top"),
    "bottom": ("lowest", "bottommost", "bottom"),
    "large": ("largest", "biggest"),
    "small": ("smallest", "tiniest"),
}
EXTREMES_AFTER_NOUN = {
    "left": ("on the far left", "furthest to the left", "closest to the left edge"),
    "right": ("on the far right", "furthest to the right", "closest to the right edge"),
    "top": ("at the very top", "closest to the top", "highest up"),
    "bottom": ("at the very bottom", "closest to the bottom", "lowest down"),
}
RANKS = {2: ("second", "second", "2nd"), 3: ("third", "third", "3rd"), 4: ("fourth", "fourth", "4th")}
COUNTED_FROM = {
    "left": ("from the left", "from the left", "counting from the left"),
    "right": ("from the right", "from the right", "counting from the right"),
    "top": ("from the top", "from the top", "counting from above"),
    "bottom": ("from the bottom", "from the bottom", "counting from below"),
}

RELATIONS = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "above", "over", "higher up than"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
NEAREST = ("nearest to", "closest to", "nearest")
BETWEEN = ("between", "in between")
FUNCTION_WORDS = ("the", "a", "an", "and", "that is", "which is")


def realize(program: list[dict], rng: np.random.Generator) -> str:
    """
    Put a program into words.

    Args:
        program (`list[dict]`): Its steps.
        rng (`np.random.Generator`): Chooses among wordings that mean the same.

    Returns:
        `str`: The expression, in lower case.
    """
    words = _Realizer(program, rng).noun_phrase(len(program) - 1)
    # As short notes do, leave out the article now and then.
    return words.removeprefix("the ") if rng.random() < 0.25 else words


class _Realizer:
    def __init__(self, program: list[dict], rng: np.random.Generator):
        self.program = program
        self.rng = rng

    def noun_phrase(self, number: int, nested: bool = False) -> str:
        """
        The words for the one object that the step `number`, a "unique", gives; `nested` where another object's
        relation to it is being told.
        """
        described = {"filters": {}, "exclude": None, "selection": None}
        step = self.program[self.program[number]["inputs"][0]]
        while step["function"] in ("filter", "exclude", "extreme", "ordinal", "nearest"):
            if step["function"] == "filter":
                described["filters"][step["attribute"]] = step["value"]
            else:
                described["exclude" if step["function"] == "exclude" else "selection"] = step
            step = self.program[step["inputs"][0]]
        tail = self._relations(step, nested)
        filters = described["filters"]
        before, after = [], []
        self._say_selection(described["selection"], before, after, crowded=bool(tail))
        self._say_attributes(filters, before, after, crowded=bool(tail) or described["exclude"] is not None)
        noun = pick(self.rng, NOUNS[filters["shape"]]) if "shape" in filters else pick(self.rng, ANY_NOUN)
        before.append(noun)
        # What narrows the candidates comes before what picks one of them.
        exclude = [self._negation(described["exclude"])] if described["exclude"] else []
        return " ".join(["the", *before, *exclude, *after, *([tail] if tail else [])])

    def _say_selection(self, step: dict | None, before: list, after: list, crowded: bool) -> None:
        if step is None:
            return
        if step["function"] == "nearest":
            after.append(f"{pick(self.rng, NEAREST)} {self.noun_phrase(step['inputs'][1])}")
        elif step["function"] == "ordinal":
            before.append(pick(self.rng, RANKS[step["rank"]]))
            if step["key"] in COUNTED_FROM:
                after.append(pick(self.rng, COUNTED_FROM[step["key"]]))
            else:
                before.append(pick(self.rng, EXTREMES[step["key"]]))
        elif step["key"] in EXTREMES_AFTER_NOUN and not crowded and self.rng.random() < 0.4:
            after.append(pick(self.rng, EXTREMES_AFTER_NOUN[step["key"]]))
        else:
            before.append(pick(self.rng, EXTREMES[step["key"]]))

    def _say_attributes(self, filters: dict, before: list, after: list, crowded: bool) -> None:
        behind = None
        if not crowded:
            behind = pick_weighted(self.rng, {None: 0.7, "texture": 0.2, "color": 0.1})
        for attribute, adjectives in ADJECTIVES.items():
            if attribute not in filters or attribute == behind:
                continue
            before.append(pick(self.rng, adjectives[filters[attribute]]))
        if behind in filters:
            value = filters[behind]
            if behind == "texture":
                words = pick(self.rng, TEXTURES_AFTER_NOUN[value])
            else:
                words = f"{pick(self.rng, COLOR_AFTER_NOUN)} {pick(self.rng, ADJECTIVES['color'][value])}"
            # Next to the noun, before "on the far left" and the like.
            after.insert(0, words)

    def _negation(self, step: dict) -> str:
        attribute, value = step["attribute"], step["value"]
        if attribute == "shape":
            noun = pick(self.rng, NOUNS[value])
            article = "an" if noun[0] in "aeiou" else "a"
            return f"{pick(self.rng, BUT_NOT)} {article} {noun}"
        if attribute == "texture" and value in WITHOUT and self.rng.random() < 0.4:
            return pick(self.rng, WITHOUT[value])
        return f"{pick(self.rng, NEGATIONS)} {pick(self.rng, ADJECTIVES[attribute][value])}"

    def _relations(self, step: dict, nested: bool) -> str:
        """The words for a set of objects that relations give; none for the whole scene."""
        if step["function"] == "relate":
            words = f"{pick(self.rng, RELATIONS[step['relation']])} {self.noun_phrase(step['inputs'][0], nested=True)}"
            # A clause of its own clings to the last object named, so the chain is harder to misread.
            clause = self.rng.random() < (0.75 if nested else 0.25)
            return f"{pick(self.rng, ('that is', 'which is'))} {words}" if clause else words
        if step["function"] == "between":
            first, second = (self.noun_phrase(number) for number in step["inputs"])
            return f"{pick(self.rng, BETWEEN)} {first} and {second}"
        if step["function"] == "intersect":
            first, second = (self.program[number] for number in step["inputs"])
            one, two = (
                f"{pick(self.rng, RELATIONS[one['relation']])} {self.noun_phrase(one['inputs'][0])}"
                for one in (first, second)
            )
            return f"that is {one} and {two}"
        return ""


def vocabulary() -> list[str]:
    """All words that `realize` can use, sorted."""

    def strings(value):
        if isinstance(value, str):
            yield value
        else:
            for member in value.values() if isinstance(value, dict) else value:
                yield from strings(member)

    tables = (
        NOUNS, ANY_NOUN, ADJECTIVES, TEXTURES_AFTER_NOUN, COLOR_AFTER_NOUN, NEGATIONS, WITHOUT, BUT_NOT, EXTREMES,
        EXTREMES_AFTER_NOUN, RANKS, COUNTED_FROM, RELATIONS, NEAREST, BETWEEN, FUNCTION_WORDS,
    )  # fmt: skip
    return sorted({word for words in strings(tables) for word in re.findall(r"\S+", words)})
