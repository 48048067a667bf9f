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
"""Words that name what an object looks like: where they are in an expression, and which looks they fit."""

import re

import torch

from modeling_scanformer import ScanFormerProcessor

from .language import ADJECTIVES, NOUNS, TEXTURES_AFTER_NOUN
from .objects import COLORS, OTHER_NAMES, SHAPES, TEXTURE_FAMILIES, TEXTURES


NAMES = {"color": tuple(COLORS), "texture": TEXTURES, "shape": SHAPES}
UNKNOWN = -1

# What words can mean: a name, or a family of them.
MEANINGS = tuple(
    (attribute, value)
    for attribute, values in NAMES.items()
    for value in (*values, *(sorted(set(TEXTURE_FAMILIES.values())) if attribute == "texture" else ()))
)


def _find_phrases() -> dict[str, int]:
    """Every phrase that has a meaning, with the number of that."""
    phrases = {}
    for attribute, table in (
        ("color", ADJECTIVES["color"]),
        ("texture", ADJECTIVES["texture"]),
        ("texture", TEXTURES_AFTER_NOUN),
        ("shape", NOUNS),
    ):
        for value, wordings in table.items():
            for words in wordings:
                phrases[words.removeprefix("with ")] = MEANINGS.index((attribute, value))
    return phrases


PHRASES = _find_phrases()
_PATTERN = re.compile(rf"\b({'|'.join(sorted(PHRASES, key=len, reverse=True))})\b")


def table_of_fitting() -> torch.Tensor:
    """
    Which meanings fit which looks.

    Returns:
        `torch.LongTensor` of shape `(num_meanings, most_names)`: for each of `MEANINGS` and each name of the same attribute 1
        or 0, or `UNKNOWN` where people would not agree, and where there are fewer names.
    """
    table = torch.full((len(MEANINGS), max(map(len, NAMES.values()))), UNKNOWN)
    for row, (attribute, value) in zip(table, MEANINGS):
        for number, name in enumerate(NAMES[attribute]):
            if value not in OTHER_NAMES.get(name, ()):
                row[number] = value in (name, TEXTURE_FAMILIES.get(name))
    return table


def label_words(expressions: list[str], processor: ScanFormerProcessor) -> torch.Tensor:
    """
    What the tokens of expressions mean.

    Args:
        expressions (`list[str]`):
            Of a batch.
        processor (`ScanFormerProcessor`):
            Of the model; with a fast tokenizer.

    Returns:
        `torch.LongTensor` of shape `(batch_size, text_length)`: numbers in `MEANINGS`, `UNKNOWN` for tokens that name no
        looks.
    """
    encoded = processor(text=expressions, truncation=True, return_offsets_mapping=True, return_tensors="pt")
    meanings = torch.full_like(encoded["input_ids"], UNKNOWN)
    first, last = encoded["offset_mapping"].unbind(-1)
    for row, expression in enumerate(expressions):
        for phrase in _PATTERN.finditer(expression):
            inside = (first[row] >= phrase.start()) & (last[row] <= phrase.end()) & (last[row] > first[row])
            meanings[row, inside] = PHRASES[phrase[0]]
    return meanings
