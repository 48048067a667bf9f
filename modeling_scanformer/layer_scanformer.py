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
"""The transformer layer of ScanFormer: a pure function over blocks of tokens."""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_scanformer import ScanFormerConfig


# Added to the attention logits of keys that must not be seen. Finite, so that no row of logits is all -inf, and within
# the range of float16.
MASKED_BIAS = -1e4

# These take an additive bias. All others (flash kernels, flex) get it as extra dimensions of queries and keys.
ATTENTIONS_WITH_BIAS = ("eager", "sdpa")


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention; shapes and arguments as in Transformers' attention interface."""
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    softmax_dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = nn.functional.softmax(logits, dim=-1, dtype=softmax_dtype).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def append_bias_dimensions(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_bias: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Move a bias of the attention logits into extra dimensions, for kernels that take none:
    `scaling * <[query, c, c], [key, high, low]> = scaling * <query, key> + key_bias`.

    `c` is a power of two, and the bias is split into a high and a low part, so that half precision keeps it exact to
    about 16 bits. The head dimension grows to the next multiple of 8, as flash kernels want it; `value` is padded alike.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, length, head_dim)`):
            The attention's inputs.
        key_bias (`torch.Tensor` of shape `(batch_size, key_length)`):
            Bias of every key.
        scaling (`float`):
            Factor of the attention logits, as handed to the kernel.
    """
    constant = 2.0 ** round(-math.log2(scaling))
    bias = key_bias / (scaling * constant)
    high = bias.to(key.dtype)
    low = (bias - high).to(key.dtype)
    padding = -(query.shape[-1] + 2) % 8
    columns = torch.stack([high, low], dim=-1)[:, None].expand(-1, key.shape[1], -1, -1)
    key = nn.functional.pad(torch.cat([key, columns], dim=-1), (0, padding))
    query = nn.functional.pad(nn.functional.pad(query, (0, 2), value=constant), (0, padding))
    return query, key, nn.functional.pad(value, (0, 2 + padding))


class ScanFormerAttention(nn.Module):
    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_keys: torch.Tensor | None,
        past_values: torch.Tensor | None,
        key_bias: torch.Tensor,
        block_lengths: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (batch_size, num_heads, length, head_dim)
        new_keys = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        new_values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        keys = new_keys if past_keys is None else torch.cat([past_keys, new_keys], dim=2)
        values = new_values if past_values is None else torch.cat([past_values, new_values], dim=2)

        # Blocks come in scan order and a block sees all before it and itself: a prefix of the keys.
        outputs, weights = [], []
        visible = keys.shape[2] - query.shape[2]
        for block in query.split(block_lengths, dim=2):
            visible += block.shape[2]
            output, block_weights = self._attend(
                block, keys[:, :, :visible], values[:, :, :visible], key_bias[:, :visible]
            )
            outputs.append(output)
            weights.append(block_weights)
        output = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        return self.o_proj(output.flatten(2)), new_keys, new_values, weights

    def _attend(self, query, key, value, key_bias):
        implementation = self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if implementation in ATTENTIONS_WITH_BIAS:
            mask = key_bias[:, None, None, :]
            if implementation == "sdpa" and mask.device.type != "cpu":
                mask = mask.to(query.dtype)
        else:
            mask = None
            query, key, value = append_bias_dimensions(query, key, value, key_bias, self.scaling)
        output, weights = attention(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )  # (batch_size, length, num_heads, head_dim)
        return output[..., : self.head_dim], weights


class ScanFormerMLP(nn.Module):
    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class ScanFormerZeroLinear(nn.Linear):
    """Begins at 0: what it is the last layer of changes nothing yet, also where it is added to a model that has been trained."""


class ScanFormerLayer(GradientCheckpointingLayer):
    """
    A pre-norm transformer layer over one or more blocks of tokens.

    It is a function of its arguments and never writes a cache: only the scan does. So gradient checkpointing may replay
    it, and one pass can carry the text and several scales: projections and MLP run once over all blocks, attention once
    per block on the keys that the block may see.
    """

    def __init__(self, config: ScanFormerConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ScanFormerAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ScanFormerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_keys: torch.Tensor | None,
        past_values: torch.Tensor | None,
        key_bias: torch.Tensor,
        block_lengths: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`):
                The blocks, in scan order.
            past_keys, past_values (`torch.Tensor` of shape `(batch_size, num_heads, past_length, head_dim)`, *optional*):
                What was read before.
            key_bias (`torch.Tensor` of shape `(batch_size, past_length + length)`):
                Added to the attention logits of every key.
            block_lengths (`list[int]`):
                Lengths of the blocks; their sum is `length`.

        Returns:
            The hidden states, the new keys and values of shape `(batch_size, num_heads, length, head_dim)`, and the
            attention weights of every block (`None` where the attention function gives none).
        """
        attended, new_keys, new_values, weights = self.attention(
            self.layernorm_before(hidden_states), past_keys, past_values, key_bias, block_lengths
        )
        hidden_states = hidden_states + self.dropout(attended)
        hidden_states = hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states, new_keys, new_values, weights


__all__ = ["ScanFormerLayer", "ScanFormerZeroLinear"]
