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
"""Augmentation for visual grounding: what changes a picture must leave its box and its words true."""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from PIL import ImageEnhance


AUGMENTATIONS = ("flip", "crop", "color", "aspect", "veil")

SWAPS = {"left": "right", "right": "left", "lefthand": "righthand", "righthand": "lefthand"}
SWAPS |= {"leftmost": "rightmost", "rightmost": "leftmost", "leftward": "rightward", "rightward": "leftward"}
SIDE = re.compile(rf"\b({'|'.join(SWAPS)})\b", re.IGNORECASE)


def _words(*words: str) -> re.Pattern:
    return re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)


ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "last",
    "next",
    r"\d+(st|nd|rd|th)",
    "row",
    "order",
)
# A mirror changes the sense of these, and no swap of words mends it: sides that are not named left or right, "right" and
# "left" in other senses, abbreviations, an order that starts at an unnamed side, and what can be read.
NO_FLIP = _words(
    *(
        "east",
        "west",
        "clockwise",
        "counterclockwise",
        "anticlockwise",
        r"o'?clock",
        "diagonal",
        r"l",
        r"r",
        "lft",
        "lt",
    ),
    *(
        "rgt",
        "rt",
        r"right (next|behind|beside|under|above|below|there|here|after|before|now|by|near|over|up|down|at)",
    ),
    *(r"right (in|on) (the )?(middle|center|centre|front|top)", r"(is|are|was|were|all|turn\w*) (left|right)"),
    *("left (over|alone|behind|out)", "says", "saying", "reads", "reading", "text", "letters?", "words?", "written"),
    *("numbers?", "numbered", r"\d+", "sign", "logo", "label"),
)
ORDER = _words(*ORDINALS)
# A crop moves the frame that these are measured by, or may cut off what they compare with.
NO_CROP = _words(
    *(*SWAPS, *ORDINALS, "l", "r", "lft", "lt", "rgt", "rt", "top", "bottom", "middle", "center", "centre", "central"),
    *("corner", "edge", "side", "far", "near", "close", "away", "foreground", "background", "front", "back", "behind"),
    *("beside", "between", "above", "below", "under", "over", "upside", "north", "south", "east", "west", r"o'?clock"),
    *("only", "other", "both", "each", "all", "alone", "whole", "full", "half", "cut", "partial", "partially", "end"),
    *("most", "least", "than", "two", "three", "four", "five", r"\d+", r"\w+most"),
    *(
        "upper",
        "lower",
        "outer",
        "inner",
        "(big|small|larg|tall|short|clos|near|farth|furth|high|old|young|great|long|wid|thin|thinn|thick|dark|light|bright|slimm|narrow|fatt)g?er",
    ),
    r"(?!(chest|vest|guest|forest|breast|nest|rest)\b)\w+est",
)
COLORS = _words(
    *("red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black", "white", "gr[ae]y"),
    *("golden", "gold", "silver", "beige", "tan", "cyan", "magenta", "turquoise", "teal", "navy", "maroon", "cream"),
    *("blonde?", "brunette", "colou?r\\w*", "dark\\w*", "light\\w*", "bright\\w*", "pale", "gold", "shad(e|ow)\\w*"),
    *("olive", "lime", "crimson", "scarlet", "ivory", "khaki", "lilac", "lavender", "indigo", "amber", "bronze"),
    *(r"(red|yellow|green|blu|purpl|pink|brown|black|whit|gray|grey|orang)\w*",),
)
TONES = _words("black", "white", "gr[ae]y", "pale", r"(dark|light|bright|shin[iy]|sun|fog)\w*", r"shad(e|ow)\w*")
SHAPES = _words(
    *(
        "square\\w*",
        "circ\\w*",
        "round\\w*",
        "oval\\w*",
        "ellip\\w*",
        "rectang\\w*",
        "dis[ck]s?",
        "cub(e|es|ic)",
        "balls?",
    ),
    *("tall\\w*", "wide\\w*", "narrow\\w*", "thin\\w*", "thick\\w*", "fat\\w*", "skinny", "slim\\w*", "long\\w*"),
    *("short\\w*", "flat\\w*", "high\\w*", "low\\w*", "broad\\w*", "diamonds?", "steep\\w*"),
)


class GroundingAugmentation:
    """
    Random changes of a picture that leave its box and its (English) expression true.

    A change that the words do not allow is left out for that sample. Words decide by a list, on the safe side: too many
    changes left out cost variety, one too many teaches something false. So
      - a mirror image swaps "left" and "right" in the expression, and is left out where that is not enough;
      - a crop keeps the whole target, and is left out where the expression speaks of a place, an order, a comparison or
        another thing: the frame it is measured by moves, and what it is compared with may be cut off;
      - colours stay where the expression names one;
      - proportions stay where the expression names a shape;
      - a veil of one gray, dark like a night or light like a fog, hides up to three quarters of the contrast, and is left
        out where the expression speaks of tones. Hues stay, so it may name a colour.

    What is drawn for a sample follows from the seed, the epoch and its picture alone, which is known by its "image_id" or,
    without one, by the sample's row. So it does not depend on processes, and a resumed run repeats it. Samples about one
    picture have the same changes, where their words allow them, and a batch holds that picture once, unless it is cropped,
    for which the target's box counts.

    Args:
        names (`Sequence[str]`):
            Of `"flip"`, `"crop"`, `"color"`, `"aspect"` and `"veil"`.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives other changes.
        probability (`float`, *optional*, defaults to 0.5):
            Of each change, where it is allowed.
    """

    def __init__(self, names: Sequence[str], seed: int = 0, probability: float = 0.5):
        unknown = sorted(set(names) - set(AUGMENTATIONS))
        if unknown:
            raise ValueError(f"There is no augmentation {unknown}; known are {list(AUGMENTATIONS)}.")
        self.names = tuple(names)
        self.seed = seed
        self.probability = probability

    def __call__(self, picture: PIL.Image.Image, sample: dict) -> tuple[PIL.Image.Image, dict]:
        """
        Args:
            picture (`PIL.Image.Image`):
                RGB, upright.
            sample (`dict`):
                With "expression", "bbox" (xyxy in pixels, or `None`), "row" and "epoch", and maybe "image_id".

        Returns:
            The picture and the sample, changed.
        """
        image_id = sample.get("image_id")
        number = sample["row"] if image_id is None else zlib.crc32(str(image_id).encode())
        expression, box = sample["expression"], sample["bbox"]
        if box is not None:  # one that is rounded may overhang by half a pixel, which stretching would make more
            (x0, y0, x1, y1), (width, height) = box, picture.size
            box = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
        for place, name in enumerate(AUGMENTATIONS):
            # each draws from a stream of its own: a change that one sample does not allow leaves the others' as they are
            rng = np.random.default_rng([self.seed, sample["epoch"], number, place])
            chosen = rng.random() < self.probability
            if chosen and name in self.names and allows(expression, name):
                picture, expression, box = CHANGES[name](picture, expression, box, rng)
        return picture, {**sample, "expression": expression, "bbox": box}


def allows(expression: str, name: str) -> bool:
    """Whether an expression stays true, its words for sides swapped, when its picture is changed like this."""
    if name == "flip":
        return not NO_FLIP.search(expression) and (bool(SIDE.search(expression)) or not ORDER.search(expression))
    return not {"crop": NO_CROP, "color": COLORS, "aspect": SHAPES, "veil": TONES}[name].search(expression)


def swap_sides(expression: str) -> str:
    """An expression for the mirror image: "Left" becomes "Right"."""

    def swap(match: re.Match) -> str:
        word = match[0]
        other = SWAPS[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return SIDE.sub(swap, expression)


def flip(picture, expression, box, rng):
    if box is not None:
        x0, y0, x1, y1 = box
        box = [picture.width - x1, y0, picture.width - x0, y1]
    return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), swap_sides(expression), box


def crop(picture, expression, box, rng):
    """Cut off up to a third of the picture at every side, but nothing of the target."""
    width, height = picture.size
    x0, y0, x1, y1 = [width / 2, height / 2] * 2 if box is None else box
    left = math.floor(rng.uniform(0, min(max(x0, 0), width / 3)))
    top = math.floor(rng.uniform(0, min(max(y0, 0), height / 3)))
    right = math.ceil(rng.uniform(max(min(x1, width), width * 2 / 3), width))
    bottom = math.ceil(rng.uniform(max(min(y1, height), height * 2 / 3), height))
    box = None if box is None else [x0 - left, y0 - top, x1 - left, y1 - top]
    return picture.crop((left, top, right, bottom)), expression, box


def color(picture, expression, box, rng):
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(rng.uniform(0.7, 1.3))
    return picture, expression, box


def aspect(picture, expression, box, rng):
    """Stretch by up to a quarter, in one direction: pictures bend as much when their sides are rounded."""
    factor = math.exp(rng.uniform(-1, 1) * math.log(1.25))
    width = max(1, round(picture.width * math.sqrt(factor)))
    height = max(1, round(picture.height / math.sqrt(factor)))
    if box is not None:
        horizontal, vertical = width / picture.width, height / picture.height
        x0, y0, x1, y1 = box
        box = [x0 * horizontal, y0 * vertical, x1 * horizontal, y1 * vertical]
    return picture.resize((width, height), PIL.Image.Resampling.BICUBIC), expression, box


def veil(picture, expression, box, rng):
    """Blend with one gray: dark like a night, or light like a fog."""
    gray = PIL.Image.new("RGB", picture.size, (int(rng.integers(256)),) * 3)
    return PIL.Image.blend(picture, gray, rng.uniform(0, 0.75)), expression, box


CHANGES = {"flip": flip, "crop": crop, "color": color, "aspect": aspect, "veil": veil}
