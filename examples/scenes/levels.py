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
"""The levels of difficulty and the splits."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Level:
    """
    What is drawn and what is said at one level of difficulty.

    Args:
        objects (`tuple[int, int]`): Fewest and most objects of a scene.
        longest_side (`tuple[int, int]`): Range of the picture's longer side in pixels.
        elongation (`float`): The longer side is at most this many times the shorter one.
        sizes (`dict[str, float]`): Share of each size class.
        minimum_side (`float`): No object's box has a longer side below this, in pixels.
        occlusion (`float`): Share of the objects that are put in front of another one, where room allows.
        copies (`float`): Share of the objects that repeat an earlier object but for one attribute.
        expressions (`dict[str, float]`): Share of each expression type.
        redundancy (`float`): Probability that a description says more than it needs to.
        noise (`tuple[int, int]`): Range of the sensor noise's standard deviation, of 255.
        named (`tuple[str, ...]`, *optional*): Attributes that every description names.
        distinct (`tuple[str, ...]`, *optional*): Attributes in which all objects of a scene differ, except on the splits
            "test-compositional" and "test-fine", whose targets and distractors are made to share some.
    """

    objects: tuple[int, int]
    longest_side: tuple[int, int]
    elongation: float
    sizes: dict[str, float]
    minimum_side: float
    occlusion: float
    copies: float
    expressions: dict[str, float]
    redundancy: float
    noise: tuple[int, int]
    named: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()


_BASIC = Level(
    objects=(2, 4),
    longest_side=(256, 320),
    elongation=1.3,
    sizes={"large": 1.0},
    minimum_side=32.0,
    occlusion=0.0,
    copies=0.0,
    expressions={"attribute": 1.0},
    redundancy=0.5,
    noise=(1, 3),
)

_EASY = Level(
    objects=(3, 6),
    longest_side=(256, 384),
    elongation=1.5,
    sizes={"medium": 0.4, "large": 0.6},
    minimum_side=20.0,
    occlusion=0.0,
    copies=0.3,
    expressions={"attribute": 0.7, "superlative": 0.3},
    redundancy=0.5,
    noise=(1, 3),
)

LEVELS = {
    "colors": replace(_BASIC, named=("color",), distinct=("color",)),
    "primer": replace(_BASIC, named=("color",)),
    "basic": _BASIC,
    "shapes": replace(_BASIC, objects=(3, 6), minimum_side=20.0, named=("shape",), distinct=("shape",)),
    "easy": _EASY,
    "contrasts": replace(
        _EASY,
        copies=1.0,
        expressions={"attribute": 0.4, "ordinal": 0.3, "negation": 0.3},
        redundancy=0.1,
        noise=(1, 6),
    ),
    "standard": Level(
        objects=(3, 15),
        longest_side=(256, 640),
        elongation=2.0,
        sizes={"small": 0.45, "medium": 0.38, "large": 0.17},
        minimum_side=6.0,
        occlusion=0.25,
        copies=0.6,
        expressions={
            "attribute": 0.25,
            "superlative": 0.15,
            "ordinal": 0.12,
            "relation": 0.22,
            "two_hop": 0.12,
            "negation": 0.14,
        },
        redundancy=0.35,
        noise=(1, 6),
    ),
    "hard": Level(
        objects=(9, 18),
        longest_side=(384, 640),
        elongation=2.0,
        sizes={"small": 0.75, "medium": 0.2, "large": 0.05},
        minimum_side=6.0,
        occlusion=0.35,
        copies=0.75,
        expressions={
            "attribute": 0.12,
            "superlative": 0.1,
            "ordinal": 0.18,
            "relation": 0.2,
            "two_hop": 0.25,
            "negation": 0.15,
        },
        redundancy=0.2,
        noise=(2, 9),
    ),
}


@dataclass(frozen=True)
class Split:
    """
    Where a split's samples come from.

    Args:
        stream (`str`): Name of the seed stream. Splits with one stream have the same scenes and expressions.
        kind (`str`): "standard"; "compositional" (the target has a held-out pair of attributes); "fine" (only texture
            or small shape tells the target from its distractors); "dense" (more objects than any training scene).
        effect (`str`, *optional*): Weather that the pictures are rendered in.
    """

    stream: str
    kind: str = "standard"
    effect: str | None = None


SPLITS = {
    "train": Split("train"),
    "validation": Split("validation"),
    "test": Split("test"),
    "test-compositional": Split("test-compositional", kind="compositional"),
    "test-fine": Split("test-fine", kind="fine"),
    "test-dense": Split("test-dense", kind="dense"),
    "test-night": Split("test", effect="night"),
    "test-fog": Split("test", effect="fog"),
    "test-rain": Split("test", effect="rain"),
    "train-night": Split("train", effect="night"),
    "validation-night": Split("validation", effect="night"),
}


def level_of(name: str, kind: str = "standard") -> Level:
    """The level called `name`, adapted to the kind of split."""
    if name not in LEVELS:
        raise ValueError(f"unknown level {name!r}; known are {', '.join(LEVELS)}")
    level = LEVELS[name]
    if kind == "dense":
        if level.distinct:
            raise ValueError(f"level {name!r} has no dense split: there are too few values of {level.distinct}")
        sizes = {"small": 0.7, "medium": 0.28, "large": 0.02}
        return replace(level, objects=(level.objects[1] + 1, level.objects[1] + 9), sizes=sizes)
    if kind == "compositional":
        return replace(level, expressions={"attribute": 0.5, "superlative": 0.2, "relation": 0.3})
    if kind == "fine":
        return replace(level, expressions={"attribute": 1.0}, copies=0.0)
    return level


def split_of(name: str) -> Split:
    """The split called `name`."""
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; known are {', '.join(SPLITS)}")
    return SPLITS[name]
