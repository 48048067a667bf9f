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
"""State of a scan: what has been read, and what comes next."""

from dataclasses import dataclass, field, replace

import torch

from .budget_scanformer import BUDGET_SCORES, BUDGET_SPLITS, TokenBudget, plan_budget
from .cache_scanformer import ScanCache
from .configuration_scanformer import ScanFormerConfig
from .pyramid_scanformer import scale_offsets
from .selection_scanformer import Selection, find_neighbors, join_rows


# On the CPU every token costs time, those that pad as well; a pass of its own costs about as much as so many tokens. On
# accelerators, which read tokens side by side, a batch stays whole.
TOKENS_PER_PASS = {"cpu": 256}


@dataclass
class ScaleReading:
    """
    What the scan knows of one scale.

    Attributes:
        selection (`Selection`):
            The patches that were read.
        logits (`torch.Tensor` of shape `(batch_size, num_selected, 4)`, *optional*):
            Informativeness of the children of every patch read. At the last scale only if the scan wants it.
        reg_state (`torch.Tensor` of shape `(batch_size, hidden_size)`, *optional*):
            Encoder2's output of [REG]; `None` until Encoder2 has read the scale.
        patch_states (`torch.Tensor` of shape `(batch_size, num_selected, hidden_size)`, *optional*):
            Encoder2's output of the patches.
        reg_attention (`dict[int, torch.Tensor]`):
            By layer, how much [REG] looks at every patch read, of shape `(batch_size, num_selected)`. Only of the layers
            that a token budget watches.
        hidden_states (`list[torch.Tensor]` of shape `(batch_size, block_length, hidden_size)`):
            What went into every layer so far, and came out of the last: [REG], the patches, what stands for the others. Only
            if the scan keeps it.
    """

    selection: Selection
    logits: torch.Tensor | None = None
    reg_state: torch.Tensor | None = None
    patch_states: torch.Tensor | None = None
    reg_attention: dict[int, torch.Tensor] = field(default_factory=dict)
    hidden_states: list[torch.Tensor] = field(default_factory=list)

    def take_rows(self, rows: torch.Tensor) -> "ScaleReading":
        """The same of the given batch rows."""

        def take(states: torch.Tensor | None) -> torch.Tensor | None:
            # with a device map, states of layers lie on several devices
            return None if states is None else states.index_select(0, rows.to(states.device))

        return ScaleReading(
            self.selection.take_rows(rows),
            take(self.logits),
            take(self.reg_state),
            take(self.patch_states),
            {layer: take(attention) for layer, attention in self.reg_attention.items()},
            [take(states) for states in self.hidden_states],
        )

    @classmethod
    def join(cls, parts: list["ScaleReading"], order: torch.Tensor) -> "ScaleReading":
        """What several parts of a batch read of one scale, by [`join_rows`], as far as it can still be looked at."""
        reading = cls(Selection.join([part.selection for part in parts], order))
        for name in ("logits", "reg_state", "patch_states"):
            values = [getattr(part, name) for part in parts]
            setattr(reading, name, None if values[0] is None else join_rows(values, order))
        # patches and what stands for the others are padded each to their number
        lengths = [part.selection.indices.shape[1] for part in parts]
        for same_layer in zip(*(part.hidden_states for part in parts)):
            kinds = zip(*(s.tensor_split((1, 1 + length), dim=1) for s, length in zip(same_layer, lengths)))
            reading.hidden_states.append(torch.cat([join_rows(list(kind), order) for kind in kinds], dim=1))
        return reading


@dataclass
class Scan:
    """
    A batch of images and expressions on its way through the scales. Made by `ScanFormerModel.start_scan`; each
    `read_scale` runs Encoder1 over the next scale, each `encode_pending` runs Encoder2 over what Encoder1 has read since.
    Calling the latter after every scale is the streamed schedule, calling it once at the end the fused one.

    Attributes:
        pixel_values, pixel_attention_mask, spatial_shapes (`torch.Tensor`):
            The whole batch, as the processor gives it.
        offsets (`list[int]`):
            Start of every scale in `pixel_values`, and the end.
        num_scales (`int`):
            Number of scales to read.
        threshold (`float`):
            Selection threshold.
        use_cache (`bool`):
            Whether the cache is wanted when the scan is over.
        wants_last_logits (`bool`):
            Whether selection logits are wanted of the last scale too, where they select nothing.
        rows (`torch.Tensor` of shape `(num_active,)`):
            Rows of the batch that this scan is of. All state below is of these rows.
        cache (`ScanCache`):
            Keys and values of what was read.
        budget (`TokenBudget`, *optional*):
            Limits what is read.
        text_states (`torch.Tensor` of shape `(num_active, text_length, hidden_size)`, *optional*):
            The embedded text, until it goes through Encoder1 together with scale 0. `None` if it came cached.
        selection (`Selection`, *optional*):
            What to read next.
        pending (`list[torch.Tensor]`):
            Blocks that Encoder1 has read and Encoder2 has not.
        text_is_pending (`bool`):
            Whether the first of them is the text.
        readings (`list[ScaleReading]`):
            What was read, scale by scale.
        reg_inputs (`dict[int, torch.Tensor]`):
            [REG] of the last scale at the input of the layers that the budget watches.
        keeps_hidden_states (`bool`):
            Whether the caller asked for what the layers gave.
        text_hidden_states (`list[torch.Tensor]` of shape `(num_active, text_length, hidden_size)`):
            That of the text, as `hidden_states` of the readings; empty if it came cached.
        attentions (`dict[int, list]`, *optional*):
            The attention weights of the layers, if the caller asked for them.
    """

    pixel_values: torch.Tensor
    pixel_attention_mask: torch.Tensor
    spatial_shapes: torch.Tensor
    offsets: list[int]
    num_scales: int
    threshold: float
    use_cache: bool
    wants_last_logits: bool
    rows: torch.Tensor
    cache: ScanCache
    text_states: torch.Tensor | None
    selection: Selection | None
    budget: TokenBudget | None = None
    pending: list[torch.Tensor] = field(default_factory=list)
    text_is_pending: bool = False
    readings: list[ScaleReading] = field(default_factory=list)
    reg_inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    keeps_hidden_states: bool = False
    text_hidden_states: list[torch.Tensor] = field(default_factory=list)
    attentions: dict[int, list[torch.Tensor]] | None = None

    @property
    def scale(self) -> int:
        """The scale that is read next."""
        return len(self.readings)

    @property
    def finished(self) -> bool:
        return self.scale == self.num_scales

    @property
    def keeps_keys(self) -> bool:
        """Whether anything will look at the keys and values that the current pass computes."""
        return self.use_cache or not self.finished

    def patches(self, indices: torch.Tensor, scale: int) -> torch.Tensor:
        """Gather flattened patches of a scale by their index: `(num_active, num_patches, 3 * patch_size**2)`."""
        return self.pixel_values[self.rows[:, None], self.offsets[scale] + indices]

    def neighbors(self, indices: torch.Tensor, read: torch.Tensor, scale: int) -> torch.LongTensor:
        """Where among patches of a scale those around each stand, see [`find_neighbors`]; `(num_active, length, 9)`."""
        return find_neighbors(indices, read, self.grid(scale), self.offsets[scale + 1] - self.offsets[scale])

    def patch_mask(self, scale: int) -> torch.Tensor:
        """Nonzero at the real patches of a scale, of shape `(num_active, num_patches)`."""
        return self.pixel_attention_mask[self.rows, self.offsets[scale] : self.offsets[scale + 1]]

    def limit(
        self,
        token_budget: float | int | list,
        config: ScanFormerConfig,
        split: str | None = None,
        score: str | None = None,
    ):
        """Give a scan that has not begun a budget; see [`ScanFormerGenerationConfig`]."""
        num_patches = torch.stack([self.patch_mask(scale).sum(1) for scale in range(config.num_scales)], dim=1)
        self.budget = plan_budget(
            token_budget,
            split or BUDGET_SPLITS[0],
            score or BUDGET_SCORES[0],
            num_patches,
            self.num_scales,
            score_layer=config.selection_layer - 1,
        )

    def grid(self, scale: int) -> torch.Tensor:
        """Rows and columns of every image's patch grid at a scale, of shape `(num_active, 2)`."""
        return self.spatial_shapes[self.rows, scale]

    def share_wanted(self) -> torch.Tensor:
        """Share of the patches of the next scale that will be read, of shape `(num_active,)`; 0 after the last one."""
        if self.finished:
            return torch.zeros(len(self.rows), device=self.rows.device)
        return self.selection.mask.sum(1) / self.patch_mask(self.scale).sum(1)

    def selection_mask(self, scale: int) -> torch.Tensor:
        """True at the patches of a scale that were read, if it was, of shape `(num_active, num_patches)`."""
        # counted and not reduced by "amax", which CUDA does not know for booleans
        counts = torch.zeros_like(self.patch_mask(scale), dtype=torch.long)
        if scale < self.scale:
            selection = self.readings[scale].selection
            counts.scatter_add_(1, selection.indices, selection.mask.long())
        return counts > 0

    def take_rows(self, kept: torch.Tensor) -> "Scan":
        """A scan of some of the samples, from here on; `kept` are their positions within `rows`."""
        cache = self.cache.copy()
        cache.batch_select_indices(kept)
        return replace(
            self,
            rows=self.rows[kept],
            cache=cache,
            selection=None if self.selection is None else self.selection.take_rows(kept).trim(),
            pending=[block.index_select(0, kept) for block in self.pending],
            readings=[reading.take_rows(kept) for reading in self.readings],
            text_hidden_states=[s.index_select(0, kept.to(s.device)) for s in self.text_hidden_states],
        )

    def early_reg_state(self) -> torch.Tensor:
        """Encoder1's output of [REG] of the scale read last, before Encoder2 reads it; `(num_active, hidden_size)`."""
        return self.pending[-1][:, 0]

    def stop(self, stopping: torch.Tensor) -> list["Scan"]:
        """
        Scans of the samples that go on and of those that stop, of which no further scale is read; `stopping`, of shape
        `(num_active,)`, is true at the latter.
        """
        if not stopping.any():
            return [self]
        if stopping.all():
            return [replace(self, num_scales=self.scale)]
        going, stopped = (self.take_rows(mask.nonzero()[:, 0]) for mask in (~stopping, stopping))
        return [going, replace(stopped, num_scales=self.scale)]

    def split(self) -> list["Scan"]:
        """
        Scans of samples that read about as much of the next scale, where that saves more than a further pass costs: within
        a scan all are padded to the one that reads most. Where the keys or the attention weights are wanted in the end, the
        batch stays whole.
        """
        price = TOKENS_PER_PASS.get(self.rows.device.type)
        stays_whole = self.use_cache or self.attentions is not None
        if self.finished or price is None or stays_whole:
            return [self]
        lengths, order = self.selection.mask.sum(1).sort()
        sizes = split_sizes(lengths.tolist(), price)
        return [self] if len(sizes) == 1 else [self.take_rows(rows) for rows in order.split(sizes)]


def join_scans(parts: list[Scan]) -> Scan:
    """
    A scan of all samples from the parts that [`Scan.split`] made of it, all of which are finished and have read the same scales.
    It can only be looked at, and has no cache.
    """
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    return replace(
        parts[0],
        rows=torch.arange(len(order), device=order.device),
        readings=[ScaleReading.join(list(same), order) for same in zip(*(part.readings for part in parts))],
        text_hidden_states=[join_rows(list(same), order) for same in zip(*(p.text_hidden_states for p in parts))],
        cache=ScanCache(),
    )


def check_pyramid(
    config: ScanFormerConfig,
    pixel_values: torch.Tensor | None,
    pixel_attention_mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
) -> list[int]:
    """
    Where every scale starts within `pixel_values`, and behind them the number of patches. Arguments as in
    [`~ScanFormerModel.forward`].

    Raises:
        ValueError: if inputs are missing, or do not fit together or to the model.
    """
    if pixel_values is None or pixel_attention_mask is None or spatial_shapes is None:
        raise ValueError(
            "`pixel_values`, `pixel_attention_mask` and `spatial_shapes` are all needed; `ScanFormerProcessor` makes them."
        )
    if pixel_values.ndim != 3:
        raise ValueError(
            "Expected `pixel_values` of shape (batch_size, num_patches, 3 * patch_size**2), got "
            f"{tuple(pixel_values.shape)}."
        )
    offsets = scale_offsets(pixel_values.shape[1], config.num_scales)
    if pixel_values.shape[2] != 3 * config.patch_size**2:
        raise ValueError(
            f"Expected flattened patches of 3 * {config.patch_size}**2 values, got {pixel_values.shape[2]}. Was the image "
            "processor made for another `patch_size`?"
        )
    expected = (pixel_values.shape[0], config.num_scales, 2)
    if spatial_shapes.shape != expected:
        raise ValueError(f"Expected `spatial_shapes` of shape {expected}, got {tuple(spatial_shapes.shape)}.")
    if pixel_attention_mask.shape != pixel_values.shape[:2]:
        raise ValueError(
            f"`pixel_attention_mask` of shape {tuple(pixel_attention_mask.shape)} does not fit `pixel_values` of shape "
            f"{tuple(pixel_values.shape)}."
        )
    return offsets


def split_sizes(lengths: list[int], price: int) -> list[int]:
    """
    How to cut a sorted list into groups, so that the groups cost least: each costs its size times its greatest length, and a
    price.

    Args:
        lengths (`list[int]`):
            In rising order.
        price (`int`):
            Of a group.

    Returns:
        `list[int]`: sizes of the groups.
    """
    ends = [i for i, length in enumerate(lengths, 1) if i == len(lengths) or length < lengths[i]]
    # the least cost of all up to an end, and where its last group begins
    best = {0: (0, 0)}
    for end in ends:
        best[end] = min((cost + price + (end - start) * lengths[end - 1], start) for start, (cost, _) in best.items())
    sizes, end = [], len(lengths)
    while end > 0:
        start = best[end][1]
        sizes.insert(0, end - start)
        end = start
    return sizes


__all__ = ["Scan", "ScaleReading", "check_pyramid", "join_scans"]
