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
"""examples/scenes/supervision.py and examples/grounding/muon.py: what is asked of patches is true, and asked of the patches."""

import copy

import numpy as np
import pytest
import torch
from grounding.muon import Muon, orthogonalize
from grounding.optimization import create_parameter_groups
from scenes import Facts, ScenesDataset
from scenes.create_model import create_model
from scenes.programs import UnclearError
from scenes.supervision import (
    AFTER,
    LABELS,
    ROLES,
    SceneSupervision,
    attention_logits,
    count_before,
    find_described,
    find_roles,
    label_samples,
    role_loss,
    word_loss,
)
from scenes.words import MEANINGS, NAMES, UNKNOWN, label_words, table_of_fitting

from modeling_scanformer.loss_scanformer import relevance
from modeling_scanformer.pyramid_scanformer import scale_offsets


NUM_SAMPLES = 24


@pytest.fixture(scope="module")
def samples():
    dataset = ScenesDataset("train", seed=5, num_samples=NUM_SAMPLES, expressions_per_scene=4)
    return [dataset[index] for index in range(NUM_SAMPLES)]


@pytest.fixture(scope="module")
def model_and_processor():
    torch.manual_seed(0)
    return create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=32,num_hidden_layers=4,selection_layer=3", 128
    )


@pytest.fixture(scope="module")
def batch(samples, model_and_processor):
    """The model's inputs, and the labels of patches and words."""
    _, processor = model_and_processor
    images = [sample["image"] for sample in samples]
    inputs = processor(images=images, text=[sample["expression"] for sample in samples], return_tensors="pt")
    boxes = [sample["bbox"] for sample in samples]
    inputs["labels"] = processor.boxes_to_labels(boxes, [(image.height, image.width) for image in images])
    num_patches = inputs["pixel_values"].shape[1]
    return inputs, label_samples(samples, inputs["spatial_shapes"], num_patches, 16, processor)


def test_roles_follow_the_program(samples):
    kinds = set()
    for sample in samples:
        facts = Facts(sample["scene"])
        roles = dict(zip(ROLES, find_roles(sample["program"], facts)))
        target, described = roles["target"], roles["target_described"]
        anchor, anchor_described = roles["anchor"], roles["anchor_described"]
        assert np.flatnonzero(target == 1).tolist() == [sample["scene"]["target"]]
        assert (described[target == 1] == 1).all(), "the words for the target fit it"
        seen = find_described(find_roles(sample["program"], facts))
        assert (seen[(target == 1) | (anchor == 1)] == 1).all()
        if sample["expression_type"] == "attribute":
            assert np.array_equal(seen, target)
        assert (anchor_described[anchor == 1] == 1).all(), "and those for another thing fit that"
        asked = [roles[f"target_{name}"] for name in (*NAMES, "size") if (roles[f"target_{name}"] == 1).any()]
        fits_all = np.min([[1] * len(target), *(np.where(row == UNKNOWN, 1, row) for row in asked)], axis=0)
        assert np.array_equal(described != 0, fits_all == 1), "what has every attribute asked for is described"
        placed = roles["target_related"]
        assert (placed == UNKNOWN).all() or (placed[target == 1] == 1).all(), (
            "and the target is where it is asked to be"
        )
        related = {step["function"] for step in sample["program"]} & {"relate", "between"}
        assert bool(related) == any((roles[f"{whose}_related"] == 1).any() for whose in ("target", "anchor"))
        num_anchors = sum(step["function"] == "unique" for step in sample["program"]) - 1
        assert (anchor == 1).sum() <= num_anchors
        assert (anchor == 1).any() == (num_anchors > 0)
        if sample["expression_type"] == "attribute":
            assert (described == target).all(), "attributes alone tell the target"
        if sample["expression_type"] in ("superlative", "ordinal"):
            assert (described != 0).sum() > 1, "an order needs several"
        after = [int(roles[f"target_after_{count}"][target == 1].item()) for count in AFTER["target"]]
        last = sample["program"][-2]
        if last["function"] in ("extreme", "ordinal", "nearest"):
            rank = last.get("rank", 1)
            assert after == [int(rank > count) for count in AFTER["target"]], "all of higher rank come before it"
        else:
            assert after == [UNKNOWN] * 4
        kinds.add(sample["expression_type"])
    assert {"attribute", "superlative", "ordinal", "relation"} <= kinds


def a_step(function, *inputs, **arguments):
    return {"function": function, "inputs": list(inputs), **arguments}


THE_RED_THING_LEFT_OF_THE_RED_SQUARE = [
    a_step("scene"),
    a_step("filter", 0, attribute="color", value="red"),
    a_step("filter", 1, attribute="shape", value="square"),
    a_step("unique", 2),
    a_step("relate", 3, relation="left"),
    a_step("filter", 4, attribute="color", value="red"),
    a_step("unique", 5),
]
THE_THING_BETWEEN_THE_STAR_AND_THE_BLUE_SQUARE = [
    a_step("scene"),
    a_step("filter", 0, attribute="shape", value="star"),
    a_step("unique", 1),
    a_step("filter", 0, attribute="color", value="blue"),
    a_step("filter", 3, attribute="shape", value="square"),
    a_step("unique", 4),
    a_step("between", 2, 5),
    a_step("unique", 6),
]
THE_SQUARE_THAT_IS_NOT_RED = [
    a_step("scene"),
    a_step("filter", 0, attribute="shape", value="square"),
    a_step("exclude", 1, attribute="color", value="red"),
    a_step("unique", 2),
]
THE_SQUARE_NEAREST_TO_THE_STAR = [
    a_step("scene"),
    a_step("filter", 0, attribute="shape", value="star"),
    a_step("unique", 1),
    a_step("filter", 0, attribute="shape", value="square"),
    a_step("nearest", 3, 2),
    a_step("unique", 4),
]
THE_SECOND_THING_FROM_THE_RIGHT = [
    a_step("scene"),
    a_step("ordinal", 0, key="right", rank=2),
    a_step("unique", 1),
]
THE_LOWER_THING_RIGHT_OF_THE_LEFTMOST_RED_THING = [
    a_step("scene"),
    a_step("filter", 0, attribute="color", value="red"),
    a_step("extreme", 1, key="left"),
    a_step("unique", 2),
    a_step("relate", 3, relation="right"),
    a_step("extreme", 4, key="bottom"),
    a_step("unique", 5),
]


@pytest.mark.parametrize(
    "program,roles",
    [
        (
            THE_RED_THING_LEFT_OF_THE_RED_SQUARE,
            {
                "target": [1, 0, 0],
                "target_described": [1, 1, 0],
                "target_color": [1, 1, 0],
                "target_related": [1, 0, 0],
                "anchor": [0, 1, 0],
                "anchor_described": [0, 1, 0],
                "anchor_color": [1, 1, 0],
                "anchor_shape": [0, 1, 1],
            },
        ),
        (  # of two other things, what fits either counts
            THE_THING_BETWEEN_THE_STAR_AND_THE_BLUE_SQUARE,
            {
                "target": [0, 1, 0],
                "target_described": [1, 1, 1],
                "target_related": [0, 1, 0],
                "anchor": [1, 0, 1],
                "anchor_described": [1, 0, 1],
                "anchor_color": [0, 0, 1],
                "anchor_shape": [1, 1, 1],
            },
        ),
        (
            THE_SQUARE_THAT_IS_NOT_RED,
            {"target": [0, 0, 1], "target_described": [0, 0, 1], "target_color": [0, 0, 1], "target_shape": [0, 1, 1]},
        ),
        (  # what is nearest is an order, not a place
            THE_SQUARE_NEAREST_TO_THE_STAR,
            {
                "target": [0, 1, 0],
                "target_described": [0, 1, 1],
                "target_shape": [0, 1, 1],
                "anchor": [1, 0, 0],
                "anchor_described": [1, 0, 0],
                "anchor_shape": [1, 0, 0],
                "target_after_1": [UNKNOWN, 0, 1],
                **{f"target_after_{count}": [UNKNOWN, 0, 0] for count in (2, 3, 4)},
            },
        ),
        (
            THE_SECOND_THING_FROM_THE_RIGHT,
            {
                "target": [0, 1, 0],
                "target_described": [1, 1, 1],
                "target_after_1": [1, 1, 0],
                "target_after_2": [1, 0, 0],
                **{f"target_after_{count}": [0, 0, 0] for count in (3, 4)},
            },
        ),
        (  # of other things, only whether they are the first
            THE_LOWER_THING_RIGHT_OF_THE_LEFTMOST_RED_THING,
            {
                "target": [0, 0, 1],
                "target_described": [1, 1, 1],
                "target_related": [0, 1, 1],
                "target_after_1": [UNKNOWN, 1, 0],
                **{f"target_after_{count}": [UNKNOWN, 0, 0] for count in (2, 3, 4)},
                "anchor": [1, 0, 0],
                "anchor_described": [1, 1, 0],
                "anchor_color": [1, 1, 0],
                "anchor_after_1": [0, 1, UNKNOWN],
            },
        ),
    ],
)
def test_roles_of_a_program_written_by_hand(program, roles):
    def thing(color, shape, left):
        top = 40.0 + left / 10
        box = [left, top, left + 40.0, top + 40.0]
        return {"color": color, "texture": "solid", "shape": shape, "size": "medium", "side": 40.0, "bbox": box}

    objects = [thing("red", "star", 0.0), thing("red", "square", 100.0), thing("blue", "square", 200.0)]
    facts = Facts({"width": 320, "height": 120, "objects": objects})
    found = dict(zip(ROLES, find_roles(program, facts).tolist()))
    assert found == {name: roles.get(name, [UNKNOWN] * 3) for name in ROLES}


@pytest.mark.parametrize(
    "roles,described",
    [
        ({"target": [1, 0, 0], "target_described": [1, 1, 0]}, [1, 1, 0]),
        ({"target": [1, 0, 0], "target_described": [1, 1, 1]}, [1, 0, 0]),  # everything fits: nothing is asked for
        ({"target": [1, 0, 0], "target_described": [1, UNKNOWN, 0]}, [1, UNKNOWN, 0]),
        (
            {"target": [1, 0, 0], "target_described": [1, 0, 0], "anchor": [0, 1, 0], "anchor_described": [0, 1, 1]},
            [1, 1, 1],
        ),
        ({"target": [1, 0, 0], "target_described": [1, 1, UNKNOWN]}, [1, 1, UNKNOWN]),
        ({"target": [1, 0, 0], "target_color": [1, 1, 0]}, [1, 0, 0]),  # one attribute of several is not enough
        ({"target": [1, 1, 1], "target_described": [1, 1, 1]}, [1, 1, 1]),
    ],
)
def test_what_has_to_be_seen(roles, described):
    rows = np.array([roles.get(name, [UNKNOWN] * 3) for name in ROLES])
    assert find_described(rows).tolist() == described


def test_labels_say_what_has_to_be_seen(samples, batch):
    inputs, labels = batch
    offsets = scale_offsets(labels["patch_described"].shape[1], 3)
    more = 0
    for row, sample in enumerate(samples):
        graph = sample["scene"]
        size = torch.tensor([graph["width"], graph["height"]] * 2)
        seen = find_described(find_roles(sample["program"], Facts(graph)))
        certain, possible = np.flatnonzero(seen == 1), np.flatnonzero(seen != 0)
        assert graph["target"] in certain
        for scale in range(3):
            grid = inputs["spatial_shapes"][row : row + 1, scale]
            count = int(grid.prod())
            described = labels["patch_described"][row, offsets[scale] : offsets[scale] + count]
            each = [share_of_patches(sample["owner"] == number, grid[0].tolist()) for number in certain]
            assert torch.equal(described == 1, (torch.stack(each) > 0.05).any(0))
            boxes = [torch.tensor(graph["objects"][number]["bbox"])[None] / size for number in possible]
            near = torch.cat([relevance(torch.arange(count)[None], grid, box) for box in boxes]).any(0)
            assert torch.equal(described == 0, ~near & (described != 1))
            more += int((described == 1).sum() > (each[certain.tolist().index(graph["target"])] > 0.05).sum())
        assert (labels["patch_described"][row][~inputs["pixel_attention_mask"][row].bool()] == 0).all()
    assert more > 10, "more than the target"


@pytest.mark.parametrize("known", [True, False])
def test_the_selection_is_told_what_is_described(model_and_processor, batch, known):
    """Of the patches that are offered, and only of those of which something is known."""
    model, _ = model_and_processor
    inputs, labels = batch
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    described = labels["patch_described"] if known else torch.full_like(labels["patch_described"], UNKNOWN)
    logits = [values.clone().requires_grad_() for values in outputs.selection_logits]
    loss, losses = SceneSupervision(model.config)(
        model.model.layers,
        outputs.hidden_states,
        outputs.patch_indices,
        logits,
        inputs["spatial_shapes"],
        **{**labels, "patch_described": described},
    )
    loss.backward()
    assert logits[2].grad is None, "the last scale selects nothing"
    if not known:
        assert losses["loss_described"] == 0 and all((values.grad == 0).all() for values in logits[:2])
        return
    offsets = scale_offsets(described.shape[1], 3)
    padded, told = False, set()
    for scale in range(2):
        for row, (parents, columns) in enumerate(
            zip(outputs.patch_indices[scale].tolist(), inputs["spatial_shapes"][:, scale, 1].tolist())
        ):
            wanted = torch.zeros(len(parents), 4, dtype=torch.long)
            for place, parent in enumerate(parents):
                if parent >= 0:
                    y, x = divmod(parent, columns)
                    children = [(2 * y + down) * 2 * columns + 2 * x + right for down in (0, 1) for right in (0, 1)]
                    truth = described[row, offsets[scale + 1] + torch.tensor(children)]
                    # a step against the gradient makes what is described likelier to be read, and all else less so
                    wanted[place] = torch.where(truth == 1, -1, torch.where(truth == 0, 1, 0))
            if not ((wanted == 1).any() and (wanted == -1).any()):
                wanted = 0 * wanted  # there is nothing to choose
            assert torch.equal(logits[scale].grad[row].sign().long(), wanted)
            padded |= -1 in parents
            told |= set(wanted[: sum(parent >= 0 for parent in parents)].flatten().tolist())
    assert padded and told == {-1, 0, 1}


def test_a_single_scale_selects_nothing(samples):
    model, processor = create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=32,num_hidden_layers=2,selection_layer=1,num_scales=1",
        128,
    )
    images = [sample["image"] for sample in samples[:2]]
    inputs = processor(images=images, text=[sample["expression"] for sample in samples[:2]], return_tensors="pt")
    labels = label_samples(samples[:2], inputs["spatial_shapes"], inputs["pixel_values"].shape[1], 16, processor)
    outputs = model(**inputs, output_hidden_states=True)
    _, losses = SceneSupervision(model.config)(
        model.model.layers,
        outputs.hidden_states,
        outputs.patch_indices,
        outputs.selection_logits,
        inputs["spatial_shapes"],
        **labels,
    )
    assert "loss_described" not in losses and losses["loss_names"] > 0


def test_places_in_an_order_that_are_unclear():
    """The second lies a little right of the first; whether the last, too small to tell its colour, is red is not known."""

    def thing(left, side=40.0):
        box = [left, 40.0, left + side, 40.0 + side]
        return {"color": "red", "texture": "solid", "shape": "star", "size": "medium", "side": side, "bbox": box}

    facts = Facts(
        {"width": 320, "height": 120, "objects": [thing(0.0), thing(5.0), thing(150.0), thing(250.0, side=4.0)]}
    )
    program = [
        a_step("scene"),
        a_step("filter", 0, attribute="color", value="red"),
        a_step("ordinal", 1, key="left", rank=3),
        a_step("unique", 2),
    ]
    with pytest.raises(UnclearError):
        find_roles(program, facts)
    program[2] = a_step("extreme", 1, key="right")
    results = [(0b1111, 0b1111), (0b0111, 0b1111)]
    assert count_before(program[2], results, facts) == {0: (1, 3), 1: (1, 3), 2: (0, 1)}
    program[2] = a_step("extreme", 1, key="left")
    assert count_before(program[2], results, facts) == {0: (0, 1), 1: (0, 1), 2: (2, 2)}


def test_of_roles_that_all_have_nothing_is_learned():
    truth = torch.tensor([[[1, 1, 0], [1, 0, 0], [UNKNOWN, UNKNOWN, UNKNOWN]]])
    logits = torch.zeros(1, 3, 3, requires_grad=True)
    role_loss(logits, truth, torch.ones(1, 3, dtype=torch.bool)).backward()
    assert (logits.grad != 0).tolist() == [[[False, True, False], [False, True, False], [False, False, False]]]


def test_labels_say_what_is_in_the_picture(samples, batch):
    inputs, labels = batch
    num_patches = inputs["pixel_values"].shape[1]
    offsets = scale_offsets(num_patches, 3)
    target = ROLES.index("target")
    named = 0
    for row, sample in enumerate(samples):
        graph = sample["scene"]
        size = np.array([graph["width"], graph["height"]] * 2)
        truth = torch.from_numpy(sample["bbox"] / size)[None]
        for scale in range(3):
            grid = inputs["spatial_shapes"][row : row + 1, scale]
            count = int(grid.prod())
            places = slice(offsets[scale], offsets[scale] + count)
            on_target = relevance(torch.arange(count)[None], grid, truth)[0]
            marked = labels["patch_roles"][row, places, target]
            assert not ((marked == 1) & ~on_target).any(), "only patches on the target are marked as such"
            # and all that show more than a few pixels of it; those that show something else are not the target
            pixels = share_of_patches(sample["mask"], grid[0].tolist())
            others = share_of_patches((sample["owner"] >= 0) & ~sample["mask"], grid[0].tolist())
            assert torch.equal(marked == 1, pixels > 0.05)
            assert (marked[(pixels > 0) & (pixels <= 0.05)] == UNKNOWN).all()
            assert (marked[others == 0] != 0).all(), "what shows nothing is not asked about"
            assert ((others > 0.05) | (marked != 0)).all()
            assert ((others < 0.3) | (pixels > 0) | (marked == 0)).all()
            padding = slice(places.stop, offsets[scale + 1])
            assert (labels["patch_names"][row, padding] == UNKNOWN).all()
            assert labels["patch_outlines"][row, padding].isnan().all()

            # whatever has a name and an outline is the object with this outline
            outlines, names = labels["patch_outlines"][row, places], labels["patch_names"][row, places]
            shown = ~outlines.isnan().any(1) & (names != UNKNOWN).all(1)
            for outline, name in zip(outlines[shown].numpy(), names[shown].tolist()):
                item = min(graph["objects"], key=lambda item: np.abs(item["bbox"] / size - outline).sum())
                assert np.allclose(item["bbox"] / size, outline, atol=1e-5)
                assert [values[number] for values, number in zip(NAMES.values(), name)] == [item[n] for n in NAMES]
                named += 1
    assert named > 100


def share_of_patches(mask: np.ndarray, grid: list[int]) -> torch.Tensor:
    """Of every patch the share of its pixels that a mask covers."""
    (height, width), (rows, columns) = mask.shape, grid
    y, x = np.arange(height) * rows // height, np.arange(width) * columns // width
    covered, total = np.zeros(grid), np.zeros(grid)
    np.add.at(covered, (y[:, None], x[None]), mask)
    np.add.at(total, (y[:, None], x[None]), 1)
    return torch.from_numpy(covered / total).flatten()


def test_no_texture_is_asked_where_none_can_be_seen(samples, batch):
    """At the coarsest scale of 128 pixels, where most things are smaller than a stripe's period."""
    names = batch[1]["patch_names"]
    offsets = scale_offsets(names.shape[1], 3)
    color, texture = list(NAMES).index("color"), list(NAMES).index("texture")
    known = (names != UNKNOWN)[:, : offsets[1]].sum((0, 1))
    assert known[texture] < known[color]


@pytest.mark.parametrize("training", [True, False])
def test_the_states_of_patches_are_read_and_no_others(model_and_processor, batch, training):
    model, _ = model_and_processor
    inputs, labels = batch
    model.train(training)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    assert any((indices < 0).any() for indices in outputs.patch_indices), "some rows are padded"
    states = [state.clone().requires_grad_() for state in outputs.hidden_states]
    supervision = SceneSupervision(model.config)
    loss, losses = supervision(
        model.model.layers,
        states,
        outputs.patch_indices,
        outputs.selection_logits,
        inputs["spatial_shapes"],
        **labels,
    )
    loss.backward()
    assert sorted(losses) == ["loss_described", "loss_names", "loss_outlines", "loss_roles", "loss_words"]
    assert all(value > 0 for value in losses.values())

    expected, named = [], []
    offsets = scale_offsets(labels["patch_names"].shape[1], 3)
    one_more = torch.zeros(NUM_SAMPLES, 1, dtype=torch.bool)
    for scale, indices in enumerate(outputs.patch_indices):
        known = (labels["patch_names"] != UNKNOWN).any(-1).gather(1, indices.clamp(min=0) + offsets[scale])
        expected += [one_more, indices >= 0]
        named += [one_more, known & (indices >= 0)]
        if scale > 0:
            expected.append(one_more)
            named.append(one_more)
    expected, named = torch.cat(expected, dim=1), torch.cat(named, dim=1)
    meaningful = labels["word_meanings"] != UNKNOWN
    assert [index for index, state in enumerate(states) if state.grad is not None] == [2, 3]
    for number, state in enumerate(states[2:4], start=2):
        asked = state.grad.abs().sum(-1) > 0
        words, others = asked[:, : meaningful.shape[1]], asked[:, meaningful.shape[1] :]
        assert others.shape == expected.shape
        assert not (others & ~expected).any()
        assert others[named].all() and named.sum() > 100
        # what fits a word is asked of the last layer, whose inputs are the states before; not of one that fits all or none
        assert not (words & ~meaningful).any()
        assert words.sum() > 0.5 * meaningful.sum() if number == 2 else not words.any()


def test_words_are_told_by_what_they_mean(model_and_processor):
    _, processor = model_and_processor
    expressions = [
        "the violet half circle left of the big thing without a pattern",
        "the circle with horizontal stripes that is not grey",
        "stripy plus sign",
        "horizontally striped ring with a checkered pattern without spots",
    ]
    meanings = label_words(expressions, processor)
    encoded = processor.tokenizer(expressions, padding=True, return_tensors="pt")["input_ids"]
    assert meanings.shape == encoded.shape
    told = [
        [
            (token, MEANINGS[meaning])
            for token, meaning in zip(processor.tokenizer.convert_ids_to_tokens(row), numbers)
            if meaning != UNKNOWN
        ]
        for row, numbers in zip(encoded, meanings.tolist())
    ]
    assert told == [
        [
            ("violet", ("color", "purple")),
            ("half", ("shape", "semicircle")),
            ("circle", ("shape", "semicircle")),
            ("without", ("texture", "solid")),
            ("a", ("texture", "solid")),
            ("pattern", ("texture", "solid")),
        ],
        [
            ("circle", ("shape", "circle")),
            ("horizontal", ("texture", "horizontal")),
            ("stripes", ("texture", "horizontal")),
            ("grey", ("color", "gray")),
        ],
        [("stripy", ("texture", "striped")), ("plus", ("shape", "cross")), ("sign", ("shape", "cross"))],
        [
            ("horizontally", ("texture", "horizontal")),
            ("striped", ("texture", "horizontal")),
            ("ring", ("shape", "ring")),
            ("a", ("texture", "checkered")),
            ("checkered", ("texture", "checkered")),
            ("pattern", ("texture", "checkered")),
            ("spots", ("texture", "dotted")),
        ],
    ]


def test_what_a_word_fits():
    table = table_of_fitting()

    def fit(attribute, value, name):
        return table[MEANINGS.index((attribute, value)), NAMES[attribute].index(name)]

    assert fit("texture", "striped", "diagonal") == fit("texture", "diagonal", "diagonal") == 1
    for case in (("texture", "striped", "dotted"), ("texture", "diagonal", "vertical"), ("color", "red", "blue")):
        assert fit(*case) == 0
    assert fit("shape", "circle", "ring") == UNKNOWN, "some would call it so"
    assert fit("shape", "ring", "circle") == 0
    assert (table == 1).any(1).all()
    known = torch.tensor([len(NAMES[attribute]) for attribute, _ in MEANINGS])
    assert (table[torch.arange(table.shape[1]) >= known[:, None]] == UNKNOWN).all()


def test_words_are_compared_with_what_patches_show(model_and_processor):
    supervision = SceneSupervision(model_and_processor[0].config)
    looks = [("red", "dotted", "star"), ("red", "vertical", "ring"), ("blue", "solid", "square")]
    names = torch.tensor(
        [[[NAMES[key].index(name) for key, name in zip(NAMES, item)] for item in looks] + [[UNKNOWN] * 3]]
    )
    words = [("color", "red"), ("texture", "striped"), ("shape", "star"), ("shape", "circle")]
    meanings = torch.tensor([[UNKNOWN, *map(MEANINGS.index, words)]])
    assert supervision.compare(names, meanings).tolist() == [
        [
            # no word of looks, red, striped, star, circle
            [UNKNOWN, 1, 0, 1, 0],
            [UNKNOWN, 1, 1, 0, UNKNOWN],
            [UNKNOWN, 0, 0, 0, 0],
            [UNKNOWN] * 5,
        ]
    ]


def test_attention_to_words_that_fit_costs_least():
    fit = torch.tensor([[[1, UNKNOWN, 1], [0, UNKNOWN, 1], [UNKNOWN, UNKNOWN, 1]]])
    right = 10.0 * torch.tensor([[[1.0, 0.0, -1.0], [-1.0, 0.0, -1.0], [5.0, 0.0, -1.0]]])
    assert word_loss(right, fit) < 1e-3, "nothing is asked where nothing is known, or a word fits all patches"
    assert word_loss(-right, fit) > 9
    assert torch.isclose(word_loss(torch.zeros(1, 3, 3), fit), torch.tensor(2.0).log())


def test_words_are_asked_of_the_attention_that_the_model_pays(model_and_processor, batch):
    """The logits that the loss is of are those of the model, up to a constant for every patch."""
    model, _ = model_and_processor
    inputs, _ = batch
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        layer = model.model.layers[2]
        states = layer.layernorm_before(outputs.hidden_states[2])
    text_length = inputs["input_ids"].shape[1]
    first = text_length
    for scale, indices in enumerate(outputs.patch_indices):
        first += 1  # [REG]
        patches = slice(first, first + indices.shape[1])
        with torch.no_grad():
            logits = attention_logits(layer.attention, states[:, patches], states[:, :text_length])
        paid = outputs.attentions[2][:, 0, patches, :text_length].log()
        real = inputs["attention_mask"].bool()[:, None] & (indices >= 0)[..., None]
        difference = (logits - paid).where(real, torch.nan)
        assert real.any()
        assert (difference - difference.nanmean(2, keepdim=True)).abs()[real].max() < 1e-4
        first = patches.stop + (scale > 0)  # the constant token


def test_a_model_with_many_constant_tokens_is_refused(model_and_processor):
    config = type(model_and_processor[0].config)(merge_constant_tokens=False)
    with pytest.raises(ValueError, match="merge_constant_tokens"):
        SceneSupervision(config)


def test_patches_learn_to_say_what_they_show(samples, batch):
    """On a handful of samples, by their hidden states alone: boxes and selection are not asked for."""
    inputs, labels = batch
    torch.manual_seed(0)
    model, _ = create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=64,num_hidden_layers=4,selection_layer=3", 128
    )
    supervision = SceneSupervision(model.config)
    few = {name: value[:8] for name, value in inputs.items()}
    labels = {name: labels[name][:8] for name in LABELS}
    groups = create_parameter_groups(model, 5e-3, 0.0, with_muon=True)
    optimizer = Muon([*groups, {"params": list(supervision.parameters())}], lr=5e-3)
    values = []
    for _ in range(40):
        outputs = model(**few, output_hidden_states=True)
        loss, losses = supervision(
            model.model.layers,
            outputs.hidden_states,
            outputs.patch_indices,
            outputs.selection_logits,
            few["spatial_shapes"],
            **labels,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append({name: value.item() for name, value in losses.items()})
    assert values[-1]["loss_names"] < 0.6 * values[0]["loss_names"]
    assert values[-1]["loss_roles"] < 0.7 * values[0]["loss_roles"]
    assert values[-1]["loss_outlines"] < 0.8 * values[0]["loss_outlines"]
    assert values[-1]["loss_words"] < 0.8 * values[0]["loss_words"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_orthogonalized_matrices_have_alike_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = (
        torch.randn(shape, generator=generator) * torch.tensor([1.0, 100.0]).repeat(shape[0])[: shape[0], None, None]
    )
    nearly = orthogonalize(matrices)
    values = torch.linalg.svdvals(nearly)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.equal(orthogonalize(0 * matrices), 0 * matrices)
    assert orthogonalize(1e-30 * matrices).abs().max() < 1e-15, "what has no gradient has no update"
    cosine = torch.nn.functional.cosine_similarity(nearly.flatten(1), (left @ right).flatten(1))
    assert (cosine > 0.95).all(), "the same directions"


def test_muon_is_adamw_where_nothing_is_orthogonalized(model_and_processor):
    model, _ = model_and_processor
    hidden = {
        id(p)
        for g in create_parameter_groups(model, 1e-3, 0.1, with_muon=True)
        if g.get("orthogonalize")
        for p in g["params"]
    }
    names = {name for name, parameter in model.named_parameters() if id(parameter) in hidden}
    outputs = ("out_proj", "classifier")
    assert names == {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(outputs)
    }

    results = []
    for optimizer_class in (torch.optim.AdamW, Muon):
        copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        groups = [
            {"params": [p for name, p in copies.items() if name not in names]},
            {"params": [p for name, p in copies.items() if name in names], "orthogonalize": True},
        ]
        optimizer = optimizer_class(groups, lr=1e-2, weight_decay=0.1, fused=True)
        steps = []
        for _ in range(3):
            before = {name: parameter.detach().clone() for name, parameter in copies.items()}
            for parameter in copies.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            steps.append({name: copies[name].detach() - before[name] * (1 - 1e-3) for name in copies})
        results.append(copies)
    adamw, muon = results
    for name in adamw:
        assert torch.equal(adamw[name], muon[name]) == (name not in names), name
    for name in names:
        size = steps[0][name].square().mean().sqrt().item()
        assert size == pytest.approx(0.2 * 1e-2, rel=0.25), name


def test_muon_takes_a_closure():
    matrix = torch.nn.Parameter(torch.eye(4))
    optimizer = Muon([{"params": [matrix], "orthogonalize": True}], lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = matrix.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
