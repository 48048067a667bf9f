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
"""Augmentation leaves boxes and words true."""

import numpy as np
import PIL.Image
import pytest
from grounding.augmentation import AUGMENTATIONS, CHANGES, GroundingAugmentation, allows, swap_sides


BOX = [30, 12, 50, 40]


def make_picture() -> PIL.Image.Image:
    """Gray, with a brighter patch where the box is."""
    pixels = np.full((60, 90, 3), 60, dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 160
    return PIL.Image.fromarray(pixels)


def find_patch(picture: PIL.Image.Image) -> list[int]:
    gray = np.asarray(picture.convert("L")).astype(int)
    rows, columns = np.nonzero(gray > (gray.min() + gray.max()) / 2)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_box_stays_on_its_object(name):
    results = set()
    for seed in range(4):
        picture, expression, box = CHANGES[name](make_picture(), "the cup", BOX, np.random.default_rng(seed))
        # interpolation may move an edge by a pixel
        np.testing.assert_allclose(box, find_patch(picture), atol=1 if name == "aspect" else 0)
        assert expression == "the cup"
        assert CHANGES[name](make_picture(), "the cup", None, np.random.default_rng(seed))[2] is None
        results.add((picture.size, picture.tobytes()))
    assert results != {((90, 60), make_picture().tobytes())}, "something changes"


def test_a_mirror_image_swaps_sides_and_twice_gives_the_same():
    for expression, mirrored in (
        ("the cup on the left", "the cup on the right"),
        ("Left cup, right of the LEFT dish", "Right cup, left of the RIGHT dish"),
        ("leftmost of the copyright signs", "rightmost of the copyright signs"),
        ("right-hand man", "left-hand man"),
    ):
        assert swap_sides(expression) == mirrored
        assert swap_sides(mirrored) == expression
    rng = np.random.default_rng(0)
    twice = CHANGES["flip"](*CHANGES["flip"](make_picture(), "left cup", BOX, rng), rng)
    assert twice[1:] == ("left cup", BOX) and twice[0].tobytes() == make_picture().tobytes()


@pytest.mark.parametrize(
    "expression, allowed",
    [
        ("the small dog", {"flip", "crop", "color", "aspect", "veil"}),
        ("man in blue shirt", {"flip", "crop", "aspect", "veil"}),
        ("the dark horse", {"flip", "crop", "aspect"}),
        ("man in gray", {"flip", "crop", "aspect"}),
        ("woman on the left", {"flip", "color", "aspect", "veil"}),
        ("second woman from left", {"flip", "color", "aspect", "veil"}),
        ("the second woman", {"color", "aspect", "veil"}),
        ("the dog right behind her", {"color", "aspect", "veil"}),
        ("bottle at 3 o'clock", {"color", "aspect", "veil"}),
        ("sign that says stop", {"crop", "color", "aspect", "veil"}),
        ("biggest elephant", {"flip", "color", "aspect", "veil"}),
        ("the dog closer to us", {"flip", "color", "aspect", "veil"}),
        ("the lady wearing a vest", {"flip", "crop", "color", "aspect", "veil"}),
        ("the round table", {"flip", "crop", "color", "veil"}),
        ("tall man in the middle", {"flip", "color", "veil"}),
    ],
)
def test_words_decide_what_is_allowed(expression, allowed):
    assert {name for name in AUGMENTATIONS if allows(expression, name)} == allowed


def test_changes_follow_from_seed_epoch_and_picture_alone():
    def augment(seed=0, epoch=0, row=0):
        sample = {"expression": "left cup", "bbox": BOX, "row": row, "epoch": epoch}
        picture, sample = GroundingAugmentation(AUGMENTATIONS, seed)(make_picture(), sample)
        return picture.tobytes(), sample["expression"], tuple(sample["bbox"])

    assert augment() == augment()
    assert len({augment(row=row) for row in range(8)}) > 4
    assert len({augment(epoch=epoch) for epoch in range(8)}) > 4
    assert augment(seed=1) != augment(seed=2)


def test_samples_about_one_picture_share_it():
    def augment(image_id, row, expression):
        sample = {"expression": expression, "bbox": BOX, "row": row, "epoch": 0, "image_id": image_id}
        return GroundingAugmentation(["color", "veil"])(make_picture(), sample)[0].tobytes()

    for image_id in range(8):
        assert augment(image_id, 0, "left cup") == augment(image_id, 1, "the cup")
    assert len({augment(image_id, 0, "left cup") for image_id in range(8)}) > 4
    # a red cup keeps its colours, and is veiled as the others are
    veiled = GroundingAugmentation(["veil"])
    for row in range(8):
        sample = {"expression": "red cup", "bbox": BOX, "row": row, "epoch": 0, "image_id": str(row)}
        assert augment(str(row), row, "red cup") == veiled(make_picture(), sample)[0].tobytes()


def test_what_rounding_lets_overhang_is_cut_off_before_it_grows():
    for row in range(40):
        sample = {"expression": "the cup", "bbox": [30, 20, 90.49, 60.49], "row": row, "epoch": 0}
        picture, sample = GroundingAugmentation(["aspect"])(make_picture(), sample)
        assert sample["bbox"][2:] == pytest.approx(picture.size)


def test_only_what_is_asked_for_is_done():
    samples = [{"expression": "cup on the left", "bbox": BOX, "row": row, "epoch": 0} for row in range(20)]
    flipped = [GroundingAugmentation(["flip"])(make_picture(), sample)[1] for sample in samples]
    assert {sample["expression"] for sample in flipped} == {"cup on the left", "cup on the right"}
    with pytest.raises(ValueError, match="no augmentation .'blur'.; known are"):
        GroundingAugmentation(["blur"])
