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
"""Outputs of the ScanFormer models."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput

from .cache_scanformer import ScanCache


@dataclass
class ScanFormerModelOutput(ModelOutput):
    """
    Output of [`ScanFormerModel`]. Tuples have one entry per scale, coarse first; S scales were read.

    Args:
        reg_states (`torch.FloatTensor` of shape `(batch_size, S, hidden_size)`):
            Encoder2's output of the [REG] token of every scale.
        patch_states (`tuple(torch.FloatTensor)` of shape `(batch_size, num_selected, hidden_size)`):
            Encoder2's output of the patches read.
        patch_indices (`tuple(torch.LongTensor)` of shape `(batch_size, num_selected)`):
            Row-major index of these patches in their image's grid; -1 pads images with fewer patches.
        selection_masks (`tuple(torch.BoolTensor)` of shape `(batch_size, num_patches)`):
            True at the patches read, in the layout of `pixel_values`.
        selection_logits (`tuple(torch.FloatTensor)` of shape `(batch_size, num_selected, 4)`):
            Informativeness of the 2 x 2 children of the patches read. The last scale's say what a further scale would
            read. Empty if the model has a single scale.
        past_key_values (`ScanCache`, *optional*, returned when `use_cache=True`):
            Keys and values of the text and of every scale.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            One entry for the embeddings and one per layer, of shape `(batch_size, length, hidden_size)`: the text
            (unless it came cached), then per scale [REG], the patches read, and the constant token.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            One entry per layer, of shape `(batch_size, num_heads, length, num_keys)`, zero where a token does not see a
            key. A cached text counts among the keys.
    """

    reg_states: torch.FloatTensor | None = None
    patch_states: tuple[torch.FloatTensor, ...] | None = None
    patch_indices: tuple[torch.LongTensor, ...] | None = None
    selection_masks: tuple[torch.BoolTensor, ...] | None = None
    selection_logits: tuple[torch.FloatTensor, ...] | None = None
    past_key_values: ScanCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ScanFormerVisualGroundingOutput(ModelOutput):
    """
    Output of [`ScanFormerForVisualGrounding`]. Boxes are (center_x, center_y, width, height) relative to the image.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Weighted sum of `loss_dict`.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*):
            The losses, those of the boxes and scores per scale; see [`visual_grounding_loss`] for what weights are in them.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, 4)`):
            The answer: the box of the last scale read.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Expected IoU of the answer with the truth.
        scale_boxes (`torch.FloatTensor` of shape `(batch_size, S, 4)`):
            The box of every scale. `generate` repeats the answer of a sample that has left the batch.
        scale_scores (`torch.FloatTensor` of shape `(batch_size, S)`):
            Their scores.
        scales_read (`torch.LongTensor` of shape `(batch_size,)`, *optional*, returned by `generate`):
            Number of scales read.
        selection_masks:
            See [`ScanFormerModelOutput`].
        patch_indices, selection_logits, past_key_values, hidden_states, attentions:
            See [`ScanFormerModelOutput`]; `generate` returns none of them.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    pred_boxes: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    scale_boxes: torch.FloatTensor | None = None
    scale_scores: torch.FloatTensor | None = None
    scales_read: torch.LongTensor | None = None
    patch_indices: tuple[torch.LongTensor, ...] | None = None
    selection_masks: tuple[torch.BoolTensor, ...] | None = None
    selection_logits: tuple[torch.FloatTensor, ...] | None = None
    past_key_values: ScanCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["ScanFormerModelOutput", "ScanFormerVisualGroundingOutput"]
