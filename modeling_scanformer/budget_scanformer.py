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
A hard limit on the patches that a scan reads, and its distribution over the picture: the most informative patches are read,
wherever they are. Optionally, regions get shares first, by the content that early attention sees in them, after HiRED (Arif
et al., AAAI 2025, arXiv 2408.10945).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from .layer_scanformer import ScanFormerLayer
    from .scan_scanformer import Scan


# How a scale's budget is split over regions (what one patch of the coarsest scale covers): not at all, by content, evenly.
BUDGET_SPLITS = ("none", "content", "even")
# What decides inside a region, or in the whole picture. The last two look at nothing that the model knows: baselines.
BUDGET_SCORES = ("informativeness", "attention", "random", "center")

# Float64 misses whole numbers by less than this. Some accelerators (MPS) do not know it, so shares, which are few numbers, are
# computed on the CPU.
ROUNDING = 1e-6


def fill(weights: torch.Tensor, capacities: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """
    Split a total in proportion to weights; what exceeds the capacity of a part is split over the others in the same way.

    Args:
        weights (`torch.Tensor` of shape `(batch_size, num_parts)`):
            At least 0. Parts without weight get what all others cannot take.
        capacities (`torch.LongTensor` of shape `(batch_size, num_parts)`):
            The most that each part can take.
        total (`torch.LongTensor` of shape `(batch_size,)`):
            What is split; at most the sum of the capacities.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size, num_parts)` with the sum `total`.
    """
    capacities, weights = capacities.double(), weights.double()
    if weights.shape[1] == 0:
        return weights
    weights = (weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=1e-9)
    # Every part takes level * weight or is full. In the order in which the parts fill up, as the level rises, the level
    # is found at the first part that does not fill up with what those before it have left.
    order = (capacities / weights).argsort(dim=1)
    sorted_capacities, sorted_weights = capacities.gather(1, order), weights.gather(1, order)
    left = total[:, None] - (sorted_capacities.cumsum(1) - sorted_capacities)
    levels = left / sorted_weights.flip(1).cumsum(1).flip(1)
    has_room = levels * sorted_weights < sorted_capacities
    has_room[:, -1] = True  # all are full
    level = levels.gather(1, has_room.long().argmax(dim=1, keepdim=True))
    return torch.minimum(level * weights, capacities)


def apportion(weights: torch.Tensor, capacities: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """
    Like [`fill`], in whole numbers, by the largest remainder.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_parts)` with the sum `min(total, capacities.sum(1))`.
    """
    device = weights.device
    weights, capacities, total = weights.cpu(), capacities.cpu(), total.cpu()
    total = torch.minimum(total, capacities.sum(1))
    quotas = fill(weights, capacities, total)
    shares = (quotas + ROUNDING).floor().long()
    remainders = (quotas - shares).masked_fill(shares >= capacities, -1)
    ranks = remainders.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (shares + (ranks < (total - shares.sum(1))[:, None])).to(device)


def keep_best(regions: torch.Tensor, shares: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    Choose the candidates with the best scores in every region.

    Args:
        regions (`torch.LongTensor` of shape `(batch_size, num_candidates)`):
            The region of each candidate.
        shares (`torch.LongTensor` of shape `(batch_size, num_regions)`):
            How many each region may keep.
        scores (`torch.Tensor` of shape `(batch_size, num_candidates)`):
            Higher is better; of equal ones the first is kept.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_candidates)`.
    """
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    order = by_score.gather(1, regions.gather(1, by_score).argsort(dim=1, stable=True))
    sorted_regions = regions.gather(1, order)
    sizes = torch.zeros_like(shares).scatter_add(1, regions, torch.ones_like(regions))
    starts = sizes.cumsum(1) - sizes
    places = torch.arange(regions.shape[1], device=regions.device) - starts.gather(1, sorted_regions)
    kept = places < shares.gather(1, sorted_regions)
    return torch.zeros_like(kept).scatter(1, order, kept)


def reg_attention(
    layer: "ScanFormerLayer", reg_states: torch.Tensor, keys: torch.Tensor, key_bias: torch.Tensor
) -> torch.Tensor:
    """
    What [REG] looks at in a layer: its row of the attention weights, averaged over the heads. No other row is computed.

    Args:
        layer (`ScanFormerLayer`):
            The layer.
        reg_states (`torch.Tensor` of shape `(batch_size, hidden_size)`):
            [REG] at the layer's input.
        keys (`torch.Tensor` of shape `(batch_size, num_heads, num_keys, head_dim)`):
            All keys that [REG] sees there.
        key_bias (`torch.Tensor` of shape `(batch_size, num_keys)`):
            Their bias.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_keys)`.
    """
    attention = layer.attention
    query = attention.q_proj(layer.layernorm_before(reg_states))
    query = query.view(len(query), keys.shape[1], 1, attention.head_dim)
    logits = (query @ keys.transpose(2, 3))[:, :, 0] * attention.scaling  # (batch_size, num_heads, num_keys)
    return (logits + key_bias[:, None].to(logits.device)).softmax(dim=-1).mean(dim=1)


@dataclass
class TokenBudget:
    """
    How many patches each sample may read, and how they are chosen. Made by [`plan_budget`].

    Attributes:
        limits (`torch.LongTensor` of shape `(batch_size, num_scales)`):
            Patches of each scale.
        spent (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Patches read so far, if a scale may read what those before it have left.
        split (`str`):
            One of `BUDGET_SPLITS`.
        score (`str`):
            One of `BUDGET_SCORES`.
        score_layer (`int`):
            Encoder1's last layer.
    """

    limits: torch.Tensor
    spent: torch.Tensor | None
    split: str
    score: str
    score_layer: int

    @property
    def watched_layers(self) -> set[int]:
        """The layers in which it matters what [REG] looks at: the first for content, Encoder1's last for scores."""
        return ({0} if self.split == "content" else set()) | (
            {self.score_layer} if self.score == "attention" else set()
        )

    def __call__(
        self, scan: "Scan", selected: torch.Tensor, children: torch.Tensor, informativeness: torch.Tensor
    ) -> torch.Tensor:
        """
        Limit what a scan reads of its next scale.

        Args:
            scan (`Scan`):
                The scan, after Encoder1 has read the parents.
            selected, children, informativeness (`torch.Tensor` of shape `(batch_size, 4 * num_parents)`):
                Which children the threshold selects, their indices and their informativeness.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, 4 * num_parents)`: true at those that remain.
        """
        total = self.limits[scan.rows, scan.scale]
        if self.spent is not None:
            self.spent[scan.rows] += scan.readings[-1].selection.mask.sum(1)
            total = self.limits[scan.rows, : scan.scale + 1].sum(1) - self.spent[scan.rows]
        if (selected.sum(1) <= total).all():
            return selected
        regions, num_regions = self._regions(scan, children)
        # what is not selected goes into a region of its own, which gets nothing
        regions = regions.where(selected, num_regions)
        capacities = regions.new_zeros(len(regions), num_regions + 1).scatter_add(1, regions, selected.long())
        if self.split == "content":
            content = scan.readings[-1].reg_attention[0].repeat_interleave(4, dim=1).float()
            weights = content.new_zeros(capacities.shape).scatter_add(1, regions, content)
        else:
            weights = (capacities > 0).float()
        shares = apportion(weights, capacities, total)
        return keep_best(regions, shares, self._scores(scan, children, informativeness))

    def _regions(self, scan: "Scan", children: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The region of each child, and the number of regions of the picture that has most."""
        if self.split == "none":
            return torch.zeros_like(children), 1
        coarsest, columns = scan.grid(0), scan.grid(scan.scale)[:, 1:]
        side = 2**scan.scale  # of a region, in patches of this scale
        regions = (children // columns // side) * coarsest[:, 1:] + children % columns // side
        return regions, int(coarsest.prod(dim=1).max())

    def _scores(self, scan: "Scan", children: torch.Tensor, informativeness: torch.Tensor) -> torch.Tensor:
        if self.score == "informativeness":
            return informativeness
        if self.score == "attention":
            # the children of a patch share its attention: among them the more informative come first
            ranks = scan.readings[-1].reg_attention[self.score_layer].argsort(dim=1).argsort(dim=1)
            return 2 * ranks.repeat_interleave(4, dim=1) + informativeness
        if self.score == "random":
            return torch.rand(informativeness.shape, device=informativeness.device)
        rows, columns = scan.grid(scan.scale).split(1, dim=1)
        y = (children // columns + 0.5) / rows - 0.5
        x = (children % columns + 0.5) / columns - 0.5
        return -(y**2 + x**2)


def plan_budget(
    token_budget: float | int | list,
    split: str,
    score: str,
    num_patches: torch.Tensor,
    num_scales: int,
    score_layer: int,
) -> TokenBudget:
    """
    Distribute a budget over the scales.

    Args:
        token_budget (`float` or `int` or `list`):
            The most patches that a sample may read: a share (`float`) or a number (`int`) of those of all scales, or a list
            with a share or a number for every scale. Of a single one, the coarsest scale takes all its patches, and every
            other scale twice as many as the one before, as long as it has so many; a scale leaves what it does not need to
            the next.
        split, score (`str`):
            See `BUDGET_SPLITS` and `BUDGET_SCORES`.
        num_patches (`torch.LongTensor` of shape `(batch_size, num_scales_of_the_pyramid)`):
            Number of real patches of every scale.
        num_scales (`int`):
            Number of scales to read.
        score_layer (`int`):
            Encoder1's last layer.

    Raises:
        ValueError: if the budget does not even cover the coarsest scale, which is always read, or a list has not as many
            entries as the pyramid has scales.
    """

    def count(amount: float | int, patches: torch.Tensor) -> torch.Tensor:
        return (
            (amount * patches.double() + ROUNDING).floor().long()
            if isinstance(amount, float)
            else amount + 0 * patches
        )

    device, num_patches = num_patches.device, num_patches.cpu()
    coarsest = num_patches[:, 0]
    if isinstance(token_budget, list):
        if len(token_budget) != num_patches.shape[1]:
            raise ValueError(
                f"`token_budget` has {len(token_budget)} entries, but the pyramid has {num_patches.shape[1]} scales."
            )
        limits = torch.stack([count(amount, num_patches[:, s]) for s, amount in enumerate(token_budget)], dim=1)
        limits = torch.minimum(limits, num_patches)
        available = limits[:, 0]
    else:
        available = count(token_budget, num_patches.sum(1))
        finer = num_patches[:, 1:num_scales]
        doubling = (2.0 ** torch.arange(finer.shape[1], device=finer.device)).expand(finer.shape)
        quotas = fill(doubling, finer, torch.minimum((available - coarsest).clamp(min=0), finer.sum(1)))
        # rounded up from the coarse side, so that no scale may read more than the children of the one before
        limits = (quotas.cumsum(1) - ROUNDING).ceil().long().diff(dim=1, prepend=torch.zeros_like(coarsest)[:, None])
        limits = torch.cat([coarsest[:, None], limits], dim=1)
    if (available < coarsest).any():
        raise ValueError(
            f"`token_budget` {token_budget} allows {int(available.min())} patches, but the coarsest scale, which is always "
            f"read whole, has up to {int(coarsest.max())}, {100 * float((coarsest / num_patches.sum(1)).max()):.1f} % of "
            "all. Give a larger budget."
        )
    limits = limits.to(device)
    spent = None if isinstance(token_budget, list) else torch.zeros_like(limits[:, 0])
    return TokenBudget(limits, spent, split, score, score_layer)


__all__ = ["BUDGET_SCORES", "BUDGET_SPLITS", "TokenBudget", "apportion", "keep_best", "plan_budget", "reg_attention"]
