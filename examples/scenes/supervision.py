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
What scene graph and program tell about every patch, as something to learn besides the target's box: what the object in it
looks like, where it ends, and which part it plays in the expression. Heads that read Encoder1's layers are asked for it in
training; the model is used without them. And which words name its looks: in the attention from patches to words, one head of
each layer from Encoder1's third on is told where to look. And what is worth a closer look: not the target alone, but all that
has to be seen to tell it from other things.
"""

import numpy as np
import torch
from torch import nn

from modeling_scanformer import ScanFormerConfig, ScanFormerProcessor
from modeling_scanformer.loss_scanformer import balanced_relevance_loss, box_iou, center_to_corners, relevance
from modeling_scanformer.pyramid_scanformer import scale_offsets
from modeling_scanformer.selection_scanformer import child_indices

from .objects import sides_to_tell
from .programs import FUNCTIONS, Facts, ObjectSet, members
from .words import MEANINGS, NAMES, UNKNOWN, label_words, table_of_fitting


# What an object can be in an expression: the target, or another thing that it names; one with all the attributes asked of
# either; one with the colour, texture, shape or size asked for, or not with the one excluded, whatever else is asked; one that
# is where it is asked to be (left, right, above, below, between: what is nearest is an order, not a place). Of several other
# things, what fits any of them counts. And one of those put in order (the leftmost, the second largest, the nearest to
# another) that comes after so many others; what is not put in order has no place in it.
AFTER = {"target": (1, 2, 3, 4), "anchor": (1,)}
ROLES = (
    *(
        whose + part
        for whose in ("target", "anchor")
        for part in ("", "_described", "_color", "_texture", "_shape", "_size", "_related")
    ),
    *(f"{whose}_after_{count}" for whose, counts in AFTER.items() for count in counts),
)
# What is learned of every patch: numbers in `NAMES`, relative boxes, the roles of what is in it, and whether that is described;
# and the meaning of every token.
LABELS = ("patch_names", "patch_outlines", "patch_roles", "patch_described", "word_meanings")

# Where the heads are kept beside the model, for a training that goes on from there.
HEADS_NAME = "scene_supervision.safetensors"

# Shares of a patch: with less of an object than the first, it is unclear whether the patch is one of the object's; with the
# second, it shows the object.
TOUCHED, SHOWN = 0.05, 0.12
# A patch shows one object if no other covers more of it than this share of what the one does: to be named, to be outlined.
ALONE_TO_NAME, ALONE_TO_OUTLINE = 0.1, 0.3

# Weights of the losses before they are summed. Optimizers divide by the size of the whole gradient, and that of the target's
# box is large: these are meant to give names, roles and words shares of the same order in Encoder1. What is described but is not
# the target counts as irrelevant in the model's own loss of relevance. Both losses are balanced: such a patch is one of very many
# there, and one of few here, so that this loss prevails.
LOSSES = {"loss_names": 16.0, "loss_roles": 540.0, "loss_outlines": 4.0, "loss_words": 40.0, "loss_described": 20.0}
# The heads start from nothing, and until they read what the states hold, they teach nothing: they learn at this multiple of
# the model's rate, for which Muon can have 4e-3.
HEADS_RATE = 4.0


def find_roles(program: list[dict], facts: Facts) -> np.ndarray:
    """
    The parts that the objects of a scene play in an expression.

    Args:
        program (`list[dict]`):
            Of the expression; something fits it.
        facts (`Facts`):
            Of the scene graph.

    Returns:
        `np.ndarray` of shape `(19, num_objects)`: for each of `ROLES` 1 where the object has it, 0 where it has
        not, and `UNKNOWN` where that is unclear, or the expression asks for nothing of the kind. Where no attribute is asked
        for, all objects have them all. What is not put in order has no place in it: there, too, it is `UNKNOWN`.
    """
    results: list[ObjectSet] = []
    for step in program:
        inputs = [results[number] for number in step["inputs"]]
        results.append(FUNCTIONS[step["function"]](facts, inputs, step))
    roles: dict[str, np.ndarray] = {}

    def add(role: str, objects: ObjectSet):
        row = roles.setdefault(role, np.zeros(len(facts.objects), np.int8))
        certain, possible = members(objects[0]), members(objects[1])
        row[[number for number in possible if row[number] == 0]] = UNKNOWN
        row[certain] = 1

    for number, step in enumerate(program):
        if step["function"] == "unique":
            whose = "target" if number == len(program) - 1 else "anchor"
            asked, start = _trace(program, number)
            add(whose, results[number])
            add(f"{whose}_described", _fitting(asked, facts))
            for attribute in {step["attribute"] for step in asked}:
                alike = [step for step in asked if step["attribute"] == attribute]
                add(f"{whose}_{attribute}", _fitting(alike, facts))
            if program[start]["function"] != "scene":
                add(f"{whose}_related", results[start])
            before = count_before(program[step["inputs"][0]], results, facts)
            for count in AFTER[whose]:
                row = roles.setdefault(f"{whose}_after_{count}", np.full(len(facts.objects), UNKNOWN, np.int8))
                for which, (fewest, most) in before.items():
                    place = 1 if fewest >= count else 0 if most < count else UNKNOWN
                    row[which] = 1 if row[which] == 1 else place
    unasked = np.full(len(facts.objects), UNKNOWN, np.int8)
    return np.stack([roles.get(role, unasked) for role in ROLES])


def find_described(roles: np.ndarray) -> np.ndarray:
    """
    What has to be seen to tell what an expression means: the target and other things that it names, and all that has the
    attributes asked of either. Where everything has them, as in "the second thing from the right", places are enough to find it.

    Args:
        roles (`np.ndarray` of shape `(19, num_objects)`):
            See [`find_roles`].

    Returns:
        `np.ndarray` of shape `(num_objects,)`: 1, 0 or `UNKNOWN`.
    """
    rows = np.stack(
        [roles[ROLES.index(whose + part)] for whose in ("target", "anchor") for part in ("", "_described")]
    )
    tells = (rows == 1).any(1) & (rows != 1).any(1)
    tells[0] = True
    rows = rows[tells]
    return np.where((rows == 1).any(0), 1, np.where((rows == UNKNOWN).any(0), UNKNOWN, 0))


def _trace(program: list[dict], number: int) -> tuple[list[dict], int]:
    """The steps that ask for attributes of the object of a step, and the number of the one with the objects to choose from."""
    asked = []
    while program[number]["function"] in ("unique", "filter", "exclude", "extreme", "ordinal", "nearest"):
        if program[number]["function"] in ("filter", "exclude"):
            asked.append(program[number])
        number = program[number]["inputs"][0]
    return asked, number


def count_before(step: dict, results: list[ObjectSet], facts: Facts) -> dict[int, tuple[int, int]]:
    """Of every object that a step certainly puts in order, how many others come before it, at least and at most."""
    if step["function"] not in ("extreme", "ordinal", "nearest"):
        return {}
    certain, possible = (members(mask) for mask in results[step["inputs"][0]])
    anchor = None
    if step["function"] == "nearest":
        (anchor,) = members(results[step["inputs"][1]][0])

    def precedes(first: int, second: int) -> bool | None:
        return facts.precedes(step["key"], first, second) if anchor is None else facts.closer(anchor, first, second)

    counts = {}
    for number in certain:
        if number != anchor:
            ahead = {other: precedes(other, number) for other in possible if other not in (number, anchor)}
            fewest = sum(ahead[other] is True for other in ahead if other in certain)
            counts[number] = fewest, sum(known is not False for known in ahead.values())
    return counts


def _fitting(asked: list[dict], facts: Facts) -> ObjectSet:
    """The objects that have all the attributes asked for."""
    objects = (facts.everything, facts.everything)
    for step in asked:
        objects = FUNCTIONS[step["function"]](facts, [objects], step)
    return objects


def cover_patches(owner: np.ndarray, num_objects: int, grids: list[tuple[int, int]]) -> list[np.ndarray]:
    """
    How much of every patch is covered by the visible pixels of every object.

    Args:
        owner (`np.ndarray` of shape `(height, width)`):
            Of every pixel the number of the object seen there, or -1.
        num_objects (`int`):
            Of the scene.
        grids (`list[tuple[int, int]]`):
            Rows and columns of each scale, every one twice those of the scale before.

    Returns:
        `list[np.ndarray]`: of each scale, shares of shape `(num_objects, rows * columns)`.
    """
    (height, width), (rows, columns) = owner.shape, grids[-1]
    patches = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
    slots = patches * (num_objects + 1) + owner + 1
    counts = np.bincount(slots.ravel(), minlength=rows * columns * (num_objects + 1)).reshape(rows, columns, -1)
    shares = []
    for rows, columns in reversed(grids):
        counts = counts.reshape(rows, counts.shape[0] // rows, columns, counts.shape[1] // columns, -1).sum((1, 3))
        covered = counts[..., 1:] / counts.sum(-1, keepdims=True).clip(1)
        shares.insert(0, covered.reshape(rows * columns, num_objects).T)
    return shares


def describe_patches(
    graph: dict, covered: np.ndarray, grid: tuple[int, int], patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    What the patches of one scale show.

    Args:
        graph (`dict`):
            A scene graph.
        covered (`np.ndarray` of shape `(num_objects, num_patches)`):
            See [`cover_patches`].
        grid (`tuple[int, int]`):
            Rows and columns of patches.
        patch_size (`int`):
            In pixels of this scale.

    Returns:
        Of every patch, row by row, the names, `(num_patches, 3)` numbers in `NAMES`, `UNKNOWN` where none or more than one
        object is shown or the scale is too coarse to tell; and the object's relative box (x0, y0, x1, y1), `(num_patches, 4)`,
        NaN where there is none.
    """
    rows, columns = grid
    objects = graph["objects"]
    boxes = np.array([item["bbox"] for item in objects]) / np.array([graph["width"], graph["height"]] * 2)
    shown = covered.argmax(0)
    ordered = np.sort(covered, axis=0)
    most = ordered[-1]
    others = ordered[-2] if len(objects) > 1 else np.zeros_like(most)

    names = np.full((len(objects), len(NAMES)), UNKNOWN, np.int64)
    for number, (item, (left, top, right, bottom)) in enumerate(zip(objects, boxes)):
        side = patch_size * max((right - left) * columns, (bottom - top) * rows)
        limits = sides_to_tell(item["shape"])
        for column, (name, values) in enumerate(NAMES.items()):
            if side >= limits[name]:
                names[number, column] = values.index(item[name])
    names = names[shown]
    names[(most < SHOWN) | (others > ALONE_TO_NAME * most)] = UNKNOWN
    outlines = boxes[shown].astype(np.float32)
    outlines[(most < SHOWN) | (others > ALONE_TO_OUTLINE * most)] = np.nan
    return names, outlines


def overlap_boxes(graph: dict, grid: torch.Tensor) -> np.ndarray:
    """Whether the patches of a grid, of shape `(2,)`, overlap the objects' boxes; of shape `(num_objects, num_patches)`."""
    boxes = torch.tensor([item["bbox"] for item in graph["objects"]], dtype=torch.float64)
    boxes = boxes / torch.tensor([graph["width"], graph["height"]] * 2)
    patches = torch.arange(int(grid.prod())).expand(len(boxes), -1)
    return relevance(patches, grid.expand(len(boxes), 2), boxes).numpy()


def label_samples(
    samples: list[dict],
    spatial_shapes: torch.Tensor,
    num_patches: int,
    patch_size: int,
    processor: ScanFormerProcessor,
) -> dict[str, torch.Tensor]:
    """
    What [`SceneSupervision`] asks of the patches and the words of a batch.

    Args:
        samples (`list[dict]`):
            Of [`ScenesDataset`], all with a target, whose pictures have not been cropped, mirrored or stretched.
        spatial_shapes (`torch.LongTensor` of shape `(batch_size, num_scales, 2)`):
            Rows and columns of each scale's patch grid.
        num_patches (`int`):
            Length of `pixel_values`.
        patch_size (`int`):
            In pixels.
        processor (`ScanFormerProcessor`):
            Of the model; see [`label_words`].

    Returns:
        `dict[str, torch.Tensor]`: "patch_names" of shape `(batch_size, num_patches, 3)`, "patch_outlines" of shape
        `(batch_size, num_patches, 4)`, "patch_roles" of shape `(batch_size, num_patches, 19)`, "patch_described" of shape
        `(batch_size, num_patches)`, and "word_meanings" of shape `(batch_size, text_length)`; see [`describe_patches`],
        [`find_roles`], [`find_described`] and [`label_words`]. Of padding, and of patches that show nothing, no role is known.
        Only what lies outside of the boxes of all that is described is certainly not, as relevance is a matter of boxes, too.
    """
    batch_size, num_scales = spatial_shapes.shape[:2]
    offsets = scale_offsets(num_patches, num_scales)
    names = np.full((batch_size, num_patches, len(NAMES)), UNKNOWN, np.int64)
    outlines = np.full((batch_size, num_patches, 4), np.nan, np.float32)
    roles = np.full((batch_size, num_patches, len(ROLES)), UNKNOWN, np.int8)
    described = np.zeros((batch_size, num_patches), np.int8)
    pictures = {}
    for row, sample in enumerate(samples):
        graph = sample["scene"]
        grids = [tuple(grid) for grid in spatial_shapes[row].tolist()]
        if sample["image_id"] not in pictures:
            shares = cover_patches(sample["owner"], len(graph["objects"]), grids)
            told = [describe_patches(graph, *pair, patch_size) for pair in zip(shares, grids)]
            pictures[sample["image_id"]] = shares, told
        played = find_roles(sample["program"], Facts(graph))[..., None]  # (num_roles, num_objects, 1)
        seen = find_described(played[..., 0])
        for scale, (offset, covered, shown) in enumerate(zip(offsets, *pictures[sample["image_id"]])):
            places = slice(offset, offset + covered.shape[1])
            names[row, places], outlines[row, places] = shown
            has = ((played == 1) & (covered > TOUCHED)).any(1)
            may_have = ((played != 0) & (covered > 0)).any(1)
            has_not = ((played == 0) & (covered > TOUCHED)).any(1)
            roles[row, places] = np.where(has, 1, np.where(has_not & ~may_have, 0, UNKNOWN)).T
            shows = (covered[seen == 1] > TOUCHED).any(0)
            near = overlap_boxes(graph, spatial_shapes[row, scale])[seen != 0].any(0)
            described[row, places] = np.where(shows, 1, np.where(near, UNKNOWN, 0))
    labels = {name: torch.from_numpy(values) for name, values in zip(LABELS, (names, outlines, roles, described))}
    labels["word_meanings"] = label_words([sample["expression"] for sample in samples], processor)
    return labels


class SceneSupervision(nn.Module):
    """
    Reads names, roles and outlines out of the patches' states after every layer of Encoder1 but the first (unless it has no
    other). Asked early, what an object is like is known early, and the layers after that can compare it with the words: their
    first heads are to attend from a patch to the words that fit what it shows, and not to those that don't. (In an Encoder1 of
    one or two layers, there are none after that.) The selection is asked for what is described.

    Args:
        config ([`ScanFormerConfig`]):
            Of the model.

    Raises:
        ValueError: if more than one constant token stands for the patches that are not selected.
    """

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        if config.num_scales > 1 and config.use_constant_token and not config.merge_constant_tokens:
            raise ValueError("Which states are of patches is only known with merge_constant_tokens=true.")
        self.config = config
        self.first_layer = min(1, config.selection_layer - 1)
        self.sizes = [*(len(values) for values in NAMES.values()), len(ROLES), 4]
        attributes = torch.tensor([list(NAMES).index(attribute) for attribute, _ in MEANINGS])
        self.register_buffer("attributes", attributes, persistent=False)
        self.register_buffer("fitting", table_of_fitting(), persistent=False)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, sum(self.sizes)))
            for _ in range(config.selection_layer - self.first_layer)
        )

    def forward(
        self,
        layers: nn.ModuleList,
        hidden_states: tuple[torch.Tensor, ...],
        patch_indices: tuple[torch.Tensor, ...],
        selection_logits: tuple[torch.Tensor, ...],
        spatial_shapes: torch.Tensor,
        patch_names: torch.Tensor,
        patch_outlines: torch.Tensor,
        patch_roles: torch.Tensor,
        patch_described: torch.Tensor,
        word_meanings: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            layers (`nn.ModuleList`):
                Of the model.
            hidden_states, patch_indices, selection_logits (`tuple[torch.Tensor]`):
                Of the model's output.
            spatial_shapes (`torch.LongTensor` of shape `(batch_size, num_scales, 2)`):
                Rows and columns of each scale's patch grid.
            patch_names, patch_outlines, patch_roles, patch_described, word_meanings (`torch.Tensor`):
                See [`label_samples`].

        Returns:
            The weighted sum, and the losses by name, each averaged over scales and layers; that of the selection over all
            scales but the last, and missing where there is no other.
        """
        offsets = scale_offsets(patch_names.shape[1], len(patch_indices))
        losses: dict[str, list[torch.Tensor]] = {name: [] for name in LOSSES}
        text_length = word_meanings.shape[1]
        comparing = range(self.first_layer + 1, self.config.selection_layer)
        inputs = [layers[number].layernorm_before(hidden_states[number]) for number in comparing]
        first = text_length
        for scale, indices in enumerate(patch_indices):
            first += 1  # [REG]
            patches = slice(first, first + indices.shape[1])
            read = indices >= 0
            places = indices.clamp(min=0) + offsets[scale]
            names = _at(patch_names, places).masked_fill(~read[..., None], UNKNOWN)
            roles, outlines = _at(patch_roles, places), _at(patch_outlines, places)
            for head, states in zip(self.heads, hidden_states[self.first_layer + 1 :]):
                told = head(states[:, patches]).float().split(self.sizes, dim=-1)
                losses["loss_names"].append(_name_loss(told[: len(NAMES)], names))
                losses["loss_roles"].append(role_loss(told[-2], roles, read))
                losses["loss_outlines"].append(_outline_loss(told[-1].sigmoid(), outlines, read, self.config))
            fit = self.compare(names, word_meanings)
            for number, states in zip(comparing, inputs):
                logits = attention_logits(layers[number].attention, states[:, patches], states[:, :text_length])
                losses["loss_words"].append(word_loss(logits, fit))
            if scale + 1 < len(patch_indices):
                children = child_indices(indices.clamp(min=0), spatial_shapes[:, scale, 1]).flatten(1)
                described = patch_described.gather(1, children + offsets[scale + 1])[..., None]
                logits = selection_logits[scale].float().flatten(1)[..., None]
                offered = read.repeat_interleave(4, dim=1)
                losses["loss_described"].append(role_loss(logits, described, offered))
            first += indices.shape[1]
            if scale > 0 and self.config.use_constant_token:
                first += 1
        means = {name: torch.stack(values).mean() for name, values in losses.items() if values}
        return sum(LOSSES[name] * value for name, value in means.items()), means

    def compare(self, names: torch.Tensor, meanings: torch.Tensor) -> torch.Tensor:
        """Whether words fit patches, of shape `(batch_size, num_read, text_length)`: 1, 0 or `UNKNOWN`."""
        known = meanings != UNKNOWN
        meanings = meanings.clamp(min=0)
        values = names.gather(2, self.attributes[meanings][:, None].expand(-1, names.shape[1], -1))
        fit = self.fitting[meanings[:, None], values.clamp(min=0)]
        return fit.masked_fill(~known[:, None] | (values == UNKNOWN), UNKNOWN)


def attention_logits(attention: nn.Module, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Of the first head, from patches to words, of shape `(batch_size, num_read, text_length)`."""

    def project(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        bias = None if linear.bias is None else linear.bias[: attention.head_dim]
        return nn.functional.linear(states, linear.weight[: attention.head_dim], bias)

    logits = project(attention.q_proj, patches) @ project(attention.k_proj, words).mT
    return attention.scaling * logits.float()


def _at(labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Labels of shape `(batch_size, num_patches, n)` of the patches at `places`, of shape `(batch_size, num_read)`."""
    return labels.gather(1, places[..., None].expand(-1, -1, labels.shape[-1]))


def _name_loss(logits: tuple[torch.Tensor, ...], names: torch.Tensor) -> torch.Tensor:
    """Cross-entropies of the attributes, summed."""
    losses = [
        nn.functional.cross_entropy(values.mT, numbers, ignore_index=UNKNOWN, reduction="none")
        for values, numbers in zip(logits, names.unbind(-1))
    ]
    return sum(_mean(loss, numbers != UNKNOWN) for loss, numbers in zip(losses, names.unbind(-1)))


def role_loss(logits: torch.Tensor, roles: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Balanced as relevance is; of a role that nothing read has, or all that is read, there is nothing to learn."""
    losses = []
    for values, truth in zip(logits.unbind(-1), roles.unbind(-1)):
        has, has_not = (truth == 1) & read, (truth == 0) & read
        loss = balanced_relevance_loss(values, has, has | has_not)
        losses.append(loss.where(has.any(1) & has_not.any(1), 0).mean())
    return torch.stack(losses).mean()


def word_loss(logits: torch.Tensor, fit: torch.Tensor) -> torch.Tensor:
    """Balanced as relevance is; of a word that fits all patches, or none, there is nothing to learn."""
    tells = (fit == 1).any(1) & (fit == 0).any(1)  # (batch_size, text_length)
    rows = [values.mT.flatten(0, 1) for values in (logits, fit == 1, fit != UNKNOWN)]
    return _mean(balanced_relevance_loss(*rows).view(tells.shape), tells)


def _outline_loss(
    boxes: torch.Tensor, outlines: torch.Tensor, read: torch.Tensor, config: ScanFormerConfig
) -> torch.Tensor:
    """The loss of boxes (center_x, center_y, width, height)."""
    known = read & ~outlines.isnan().any(-1)
    outlines = outlines.nan_to_num()
    _, giou = box_iou(center_to_corners(boxes), outlines)
    sizes = outlines[..., 2:] - outlines[..., :2]
    truth = torch.cat([outlines[..., :2] + sizes / 2, sizes], dim=-1)
    distance = (boxes - truth).abs().sum(-1)
    return _mean(config.bbox_loss_coefficient * distance + config.giou_loss_coefficient * (1 - giou), known)


def _mean(losses: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """
    Of `(batch_size, num_patches)` losses: the mean over samples of the means over their patches (or words) of which
    something is known. So the loss of a batch does not depend on how its samples are shared out over processes.
    """
    return (losses.where(known, 0).sum(1) / known.sum(1).clamp(min=1)).mean()
