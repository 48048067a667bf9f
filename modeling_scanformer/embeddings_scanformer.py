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
"""Embeddings of text and patches."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_scanformer import CONVOLUTION_REDUCTION, ScanFormerConfig
from .layer_scanformer import ScanFormerZeroLinear


def embedding_row(table: nn.Embedding, index: int, device: torch.device) -> torch.Tensor:
    """
    One row of a table, of shape `(embedding_dim,)`, by a call of the module: hooks that bring weights to where they are
    needed, such as Accelerate's of offloaded models, see calls only.
    """
    return table(torch.full((), index, dtype=torch.long, device=device)).to(device)


class ScanFormerTextEmbeddings(nn.Module):
    """BERT's embeddings of word pieces and positions."""

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.LongTensor, mask: torch.BoolTensor) -> torch.Tensor:
        # counted from the first token, on whichever side the padding is
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        embeddings = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.layernorm(embeddings))


class ScanFormerSparseConvolution(nn.Module):
    """
    A residual 3 x 3 convolution over the patches of a scale that are read: a submanifold sparse convolution (arXiv 1706.01307),
    which gives nothing where nothing is read, and takes a neighbour that is not read for 0.
    """

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        width = config.hidden_size // CONVOLUTION_REDUCTION
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(config.hidden_size, width)
        self.kernel = nn.Linear(9 * width, config.hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dense = ScanFormerZeroLinear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, embeddings: torch.Tensor, neighbors: torch.LongTensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`):
                Of the patches that are read.
            neighbors (`torch.LongTensor` of shape `(batch_size, num_patches, 9)`):
                See [`find_neighbors`].
        """
        reduced = self.reduction(self.layernorm(embeddings))
        # a last one that is 0, for neighbours that are not read
        reduced = nn.functional.pad(reduced, (0, 0, 0, 1))  # (batch_size, num_patches + 1, width)
        places = neighbors.flatten(1)[..., None].expand(-1, -1, reduced.shape[-1])
        around = reduced.gather(1, places).view(*neighbors.shape[:2], self.kernel.in_features)
        return embeddings + self.dropout(self.dense(self.activation_fn(self.kernel(around))))


class ScanFormerPatchEmbeddings(nn.Module):
    """Linear projection of patches, plus the position of each in its image and its scale; then sparse convolutions, if any."""

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.grid_size = config.position_grid_size
        self.projection = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.position_grid_size**2, config.hidden_size)
        self.scale_embeddings = nn.Embedding(config.num_scales, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.convolutions = nn.ModuleList(
            [ScanFormerSparseConvolution(config) for _ in range(config.num_convolution_layers)]
        )

    def interpolate_positions(self, indices: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """
        Learned positions, interpolated bilinearly to each image's grid (as `nn.functional.interpolate` with
        `align_corners=True` does), evaluated at the given patches only, from the four nodes around each.
        """
        rows, columns = grid[:, :1], grid[:, 1:]
        dtype = torch.promote_types(self.position_embeddings.weight.dtype, torch.float32)

        def around(position: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # products of integers are exact, and so is a quotient that is a node; padding may lie outside of its grid
            position = (position * (self.grid_size - 1)).to(dtype) / (length - 1).clamp(min=1)
            position = position.clamp(max=self.grid_size - 1)
            before = position.floor()
            share = position - before
            nodes = torch.stack([before, (before + 1).clamp(max=self.grid_size - 1)], dim=-1)
            return nodes.long(), torch.stack([1 - share, share], dim=-1)

        row_nodes, row_shares = around(indices // columns, rows)
        column_nodes, column_shares = around(indices % columns, columns)
        nodes = row_nodes[..., :, None] * self.grid_size + column_nodes[..., None, :]
        shares = row_shares[..., :, None] * column_shares[..., None, :]
        positions = self.position_embeddings(nodes.flatten(2))  # (batch_size, num_patches, 4, hidden_size)
        return (shares.flatten(2).to(positions.dtype)[..., None] * positions).sum(2)

    def forward(
        self,
        patches: torch.Tensor,
        indices: torch.Tensor,
        grid: torch.Tensor,
        scale: int,
        neighbors: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            patches (`torch.Tensor` of shape `(batch_size, num_patches, 3 * patch_size**2)`):
                The patches that are read, flattened.
            indices (`torch.LongTensor` of shape `(batch_size, num_patches)`):
                Their row-major indices in the scale's grid.
            grid (`torch.LongTensor` of shape `(batch_size, 2)`):
                Rows and columns of the scale.
            scale (`int`):
                The scale.
            neighbors (`torch.LongTensor` of shape `(batch_size, num_patches, 9)`, *optional*):
                See [`find_neighbors`]. Needed where there are convolutions.

        Raises:
            ValueError: if there are convolutions but no neighbours.
        """
        if neighbors is None and len(self.convolutions) > 0:
            raise ValueError(
                "The model has sparse convolutions (`num_convolution_layers` in its configuration), which need `neighbors`: "
                "where in the selection the patches around each stand, as `find_neighbors` gives it."
            )
        embeddings = self.projection(patches.to(self.position_embeddings.weight.dtype))
        embeddings = embeddings + self.interpolate_positions(indices, grid)
        embeddings = embeddings + embedding_row(self.scale_embeddings, scale, indices.device)
        embeddings = self.dropout(embeddings)
        for convolution in self.convolutions:
            embeddings = convolution(embeddings, neighbors)
        return embeddings


__all__ = ["ScanFormerPatchEmbeddings", "ScanFormerTextEmbeddings", "embedding_row"]
