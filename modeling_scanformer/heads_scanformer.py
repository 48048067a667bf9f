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
"""What reads the states: the selection of the next scale, boxes and scores."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_scanformer import ScanFormerConfig
from .layer_scanformer import ScanFormerZeroLinear


# A new selection head gives every patch this logit, so that everything is read until training has learned what not to.
INITIAL_SELECTION_LOGIT = 2.0


class ScanFormerSelectionClassifier(nn.Linear):
    """A class of its own, because Transformers lets `_init_weights` see only modules that hold parameters themselves."""


class ScanFormerSelectionHead(nn.Module):
    """Informativeness of the 2 x 2 children of a patch, as 4 logits, from Encoder1's output."""

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.classifier = ScanFormerSelectionClassifier(config.hidden_size, 4)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.activation_fn(self.dense(self.layernorm(hidden_states))))


class ScanFormerPredictionHead(nn.Module):
    """Three-layer perceptron on a state, as DETR's box head."""

    def __init__(self, config: ScanFormerConfig, num_outputs: int):
        super().__init__()
        self.dense1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, num_outputs)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation_fn(self.dense1(hidden_states))
        return self.out_proj(self.activation_fn(self.dense2(hidden_states)))


# In patches: a box is refined by a patch no further than this from its center, and moved no further along either axis.
FARTHEST = 2.0


class ScanFormerBoxRefinement(nn.Module):
    """
    Moves and resizes a box by what the patch that is read nearest to its center shows. Where in the picture a patch lies, [REG]
    knows only as well as the embeddings of positions tell; where in a patch something lies, its own state knows much better. As in
    Deformable DETR (arXiv 2010.04159, "iterative bounding box refinement") the box that is refined gets no gradient. Where two
    patches are equally near, rounding decides which of them it is.
    """

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.box_projection = nn.Linear(4, config.hidden_size)
        self.dense1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = ScanFormerZeroLinear(config.hidden_size, 4)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(
        self, boxes: torch.Tensor, patch_states: torch.Tensor, patch_indices: torch.Tensor, grid: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            boxes (`torch.Tensor` of shape `(batch_size, 4)`):
                Relative (center_x, center_y, width, height) from [REG].
            patch_states (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`):
                Encoder2's output of the patches that were read.
            patch_indices (`torch.LongTensor` of shape `(batch_size, num_patches)`):
                Their row-major indices in the scale's grid; -1 for padding.
            grid (`torch.LongTensor` of shape `(batch_size, 2)`):
                Rows and columns of the scale.

        Returns:
            `torch.Tensor` of shape `(batch_size, 4)`: boxes in the same form, on their device. Where no patch was read near enough,
            they are as they were.
        """
        boxes = boxes.detach()
        if patch_indices.shape[1] == 0:
            patch_states = patch_states.new_zeros(len(boxes), 1, patch_states.shape[-1])
            patch_indices = patch_indices.new_full((len(boxes), 1), -1)
        centers, sizes = boxes.split(2, dim=-1)
        rows, columns = grid[:, :1], grid[:, 1:]
        patch_sizes = 1 / torch.cat([columns, rows], dim=1).to(boxes.dtype)  # (batch_size, 2)
        cells = torch.stack([patch_indices % columns, patch_indices // columns], dim=-1)
        # from the centers of the patches to the box's, in patches
        offsets = centers[:, None] / patch_sizes[:, None] - (cells + 0.5)  # (batch_size, num_patches, 2)
        distances = offsets.square().sum(-1).masked_fill(patch_indices < 0, torch.inf)
        distance, nearest = distances.min(1, keepdim=True)  # (batch_size, 1)
        state = patch_states.gather(1, nearest[..., None].expand(-1, -1, patch_states.shape[-1]))[:, 0]
        offset = offsets.gather(1, nearest[..., None].expand(-1, -1, 2))[:, 0]

        box = torch.cat([offset, (sizes / patch_sizes).clamp(min=1e-3).log()], dim=-1).to(state.dtype)
        hidden_states = self.activation_fn(self.dense1(state + self.box_projection(box).to(state.device)))
        changes = self.out_proj(self.activation_fn(self.dense2(hidden_states)))
        moves, growth = changes.to(boxes.device, boxes.dtype).split(2, dim=-1)
        moves = FARTHEST * (moves / FARTHEST).tanh()
        refined = torch.cat([centers + moves * patch_sizes, sizes * growth.tanh().exp()], dim=-1).clamp(0, 1)
        return refined.where(distance <= FARTHEST**2, boxes)


__all__ = ["ScanFormerBoxRefinement", "ScanFormerPredictionHead", "ScanFormerSelectionHead"]
