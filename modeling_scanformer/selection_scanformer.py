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
"""Which patches of the next scale are read, and what stands for those that are not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Selection:
    """
    The patches of one scale that are read, and in training also the children that were offered but not selected.

    Attributes:
        indices (`torch.Tensor` of shape `(batch_size, num_selected)`):
            Row-major index of every selected patch in its image's grid. Rows with fewer patches are padded by 0.
        mask (`torch.Tensor` of shape `(batch_size, num_selected)`):
            True where an entry of `indices` is a patch.
        num_unselected (`torch.Tensor` of shape `(batch_size,)`):
            Number of real patches of the scale that are not selected, those under unselected parents included.
        gates (`torch.Tensor` of shape `(batch_size, num_selected)`, *optional*):
            `s - stop_gradient(s)` of the selected patches: 0 with the gradient of s. Only in training.
        rejected (`Selection`, *optional*):
            The unselected children of selected parents, with their gates. Only in training.
    """

    indices: torch.Tensor
    mask: torch.Tensor
    num_unselected: torch.Tensor
    gates: torch.Tensor | None = None
    rejected: "Selection | None" = None

    @property
    def marked_indices(self) -> torch.Tensor:
        """The indices, with -1 for padding."""
        return self.indices.where(self.mask, -1)

    def take_rows(self, rows: torch.Tensor) -> "Selection":
        """The same of the given batch rows."""
        return Selection(
            self.indices[rows],
            self.mask[rows],
            self.num_unselected[rows],
            None if self.gates is None else self.gates.index_select(0, rows),
            None if self.rejected is None else self.rejected.take_rows(rows),
        )

    def trim(self) -> "Selection":
        """Without the padding that no row needs; patches come before it."""
        most = int(self.mask.sum(1).max()) if len(self.mask) else 0
        return Selection(
            self.indices[:, :most],
            self.mask[:, :most],
            self.num_unselected,
            None if self.gates is None else self.gates[:, :most],
            None if self.rejected is None else self.rejected.trim(),
        )

    @classmethod
    def join(cls, parts: list["Selection"], order: torch.Tensor) -> "Selection":
        """What was read in several parts, by [`join_rows`]; without gates, which nothing needs once it is read."""
        return cls(
            *(join_rows(values, order) for values in zip(*((p.indices, p.mask, p.num_unselected) for p in parts)))
        )


def join_rows(parts: list[torch.Tensor], order: torch.Tensor) -> torch.Tensor:
    """
    Join batches, and give every row its place.

    Args:
        parts (`list[torch.Tensor]` of shape `(num_rows, ...)`):
            The batches. Where they differ in their second dimension, the shorter ones are padded by 0.
        order (`torch.Tensor` of shape `(batch_size,)`):
            For every row of the result, its number in the parts one after another.
    """
    if parts[0].ndim > 1:
        most = max(part.shape[1] for part in parts)
        parts = [nn.functional.pad(part, (*[0, 0] * (part.ndim - 2), 0, most - part.shape[1])) for part in parts]
    return torch.cat(parts).index_select(0, order.to(parts[0].device))


def select_all(patch_mask: torch.Tensor) -> Selection:
    """Select every real patch of a scale; `patch_mask` has shape `(batch_size, num_patches)`."""
    batch_size, num_patches = patch_mask.shape
    indices = torch.arange(num_patches, device=patch_mask.device).expand(batch_size, -1)
    return Selection(indices, patch_mask.bool(), torch.zeros(batch_size, dtype=torch.long, device=patch_mask.device))


def child_indices(indices: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """
    Indices of the 2 x 2 children of patches.

    Args:
        indices (`torch.Tensor` of shape `(batch_size, num_patches)`):
            Row-major indices in grids of `columns` columns.
        columns (`torch.Tensor` of shape `(batch_size,)`):
            Number of columns of every image's grid.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, 4)`: row-major indices in grids of twice as many columns: upper
        left, upper right, lower left, lower right.
    """
    columns = columns[:, None]
    upper_left = (indices // columns) * 4 * columns + (indices % columns) * 2  # (batch_size, num_patches)
    steps = torch.stack([columns * 0, columns * 0 + 1, columns * 2, columns * 2 + 1], dim=-1)  # (batch_size, 1, 4)
    return upper_left[..., None] + steps


def find_neighbors(
    indices: torch.Tensor, read: torch.Tensor, grid: torch.Tensor, num_patches: int
) -> torch.LongTensor:
    """
    Where among patches those around each stand, as far as they are read.

    Args:
        indices (`torch.Tensor` of shape `(batch_size, length)`):
            Row-major indices of the patches, and of padding.
        read (`torch.Tensor` of shape `(batch_size, length)`):
            True where an entry of `indices` is a patch that is read. Others see those that are, but are not seen themselves.
        grid (`torch.Tensor` of shape `(batch_size, 2)`):
            Rows and columns of every image's grid.
        num_patches (`int`):
            At least the number of patches of the largest grid.

    Returns:
        `torch.LongTensor` of shape `(batch_size, length, 9)`: of the 3 x 3 patches around each, row by row, the places in
        `indices`; `length` for those that are not read or lie outside of the grid. In the middle is each patch itself.
    """
    batch_size, length = indices.shape
    places = torch.arange(length, device=indices.device).expand(batch_size, -1)
    # behind the last patch one that takes what is not read, and is never read itself
    place_of = places.new_full((batch_size, num_patches + 1), length)
    place_of.scatter_(1, indices.where(read, num_patches), places)
    place_of[:, num_patches] = length

    rows, columns = grid[:, :1, None], grid[:, 1:, None]
    steps = torch.arange(-1, 2, device=indices.device)
    row = indices[..., None] // columns + steps.repeat_interleave(3)
    column = indices[..., None] % columns + steps.repeat(3)
    is_inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    around = (row * columns + column).where(is_inside, num_patches)
    neighbors = place_of.gather(1, around.flatten(1)).view_as(around)
    return torch.cat([neighbors[..., :4], places[..., None], neighbors[..., 5:]], dim=-1)


def select_children(
    parents: Selection,
    logits: torch.Tensor,
    columns: torch.Tensor,
    patch_mask: torch.Tensor,
    threshold: float,
    gated: bool,
    limit: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Selection:
    """
    Select the children whose informativeness exceeds the threshold.

    Args:
        parents (`Selection`):
            The patches that were read, with logits for the children of each.
        logits (`torch.Tensor` of shape `(batch_size, num_parents, 4)`):
            Informativeness of the children of every parent.
        columns (`torch.Tensor` of shape `(batch_size,)`):
            Columns of the parents' grids.
        patch_mask (`torch.Tensor` of shape `(batch_size, num_patches)`):
            Nonzero at the real patches of the children's scale.
        threshold (`float`):
            A child is selected where `sigmoid(logit) > threshold`.
        gated (`bool`):
            Whether gradients have to reach the logits, as in training.
        limit (`Callable`, *optional*):
            Gets what is selected, the children's indices and their informativeness, each of shape
            `(batch_size, 4 * num_parents)`, and gives what of the selection remains.

    Returns:
        `Selection`: of the children's scale.
    """
    informativeness = logits.float().sigmoid() if logits.dtype != torch.float64 else logits.sigmoid()
    # sigmoid saturates to exactly 0 in float: with threshold 0 such a child must be read all the same
    wanted = informativeness > threshold if threshold > 0 else torch.ones_like(informativeness, dtype=torch.bool)
    offered = parents.mask[..., None].expand_as(wanted).flatten(1)  # (batch_size, 4 * num_parents)
    selected = wanted.flatten(1) & offered
    children = child_indices(parents.indices, columns).flatten(1)
    if limit is not None:
        selected = limit(selected, children, informativeness.flatten(1))
    gates = (informativeness - informativeness.detach()).flatten(1) if gated else None
    num_unselected = patch_mask.long().sum(1) - selected.sum(1)

    def gather(chosen: torch.Tensor, **extra) -> Selection:
        most = int(chosen.sum(1).max())
        order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        mask = chosen.gather(1, order)
        return Selection(
            indices=children.gather(1, order).where(mask, 0),
            mask=mask,
            num_unselected=num_unselected,
            gates=gates.gather(1, order) if gated else None,
            **extra,
        )

    return gather(selected, rejected=gather(offered & ~selected) if gated else None)


__all__ = ["Selection", "child_indices", "find_neighbors", "select_all", "select_children"]
