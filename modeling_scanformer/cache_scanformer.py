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
"""The key-value cache of a scan."""

import copy

import torch
from transformers.cache_utils import DynamicCache


class ScanCache(DynamicCache):
    """
    A [`~transformers.DynamicCache`] of the text and the scales read so far, together with the bias that each cached key
    adds to the attention logits: the logarithm of the number of patches that a merged constant token stands for, a large
    negative number for padding, 0 for everything else. The bias is the same in every layer and follows the keys through
    reordering, repeating and selecting batch rows.

    Attributes:
        key_bias (`torch.Tensor` of shape `(batch_size, num_keys)`, *optional*):
            The bias of every key, in float32 or float64.
        text_length (`int`):
            Number of leading keys that belong to the text.
        num_scales (`int`):
            Number of scales in the cache.
    """

    def __init__(self):
        super().__init__()
        self.key_bias: torch.Tensor | None = None
        self.text_length = 0
        self.num_scales = 0

    @property
    def batch_size(self) -> int:
        """Number of batch rows; 0 while the cache is empty."""
        return 0 if self.key_bias is None else self.key_bias.shape[0]

    def states(self, layer_idx: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Keys and values of a layer, each of shape `(batch_size, num_heads, num_keys, head_dim)`; `None` if empty."""
        if layer_idx >= len(self.layers) or not self.layers[layer_idx].is_initialized:
            return None, None
        return self.layers[layer_idx].keys, self.layers[layer_idx].values

    def extend_bias(self, key_bias: torch.Tensor):
        """Announce keys that the layers are about to compute, by their bias of shape `(batch_size, num_new_keys)`."""
        self.key_bias = key_bias if self.key_bias is None else torch.cat([self.key_bias, key_bias], dim=1)

    def copy(self) -> "ScanCache":
        """A cache that can grow without changing this one. The tensors are shared: updates never write in place."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        return other

    def text_prefix(self) -> "ScanCache":
        """The part of the cache that belongs to the text, to be reused for other images."""
        prefix = self.copy()
        prefix.crop(self.text_length - self.get_seq_length())
        return prefix

    def reset(self):
        super().reset()
        self.key_bias, self.text_length, self.num_scales = None, 0, 0

    def crop(self, tokens_to_remove: int):
        """Cut the cache back to its text. Scales are read whole, so there is nothing between."""
        length = self.get_seq_length() - abs(tokens_to_remove)
        if tokens_to_remove == 0:
            return
        if length != self.text_length:
            raise ValueError(
                f"A scan cache can only be cut back to its {self.text_length} text tokens, not to {length}."
            )
        super().crop(-abs(tokens_to_remove))
        self.key_bias, self.num_scales = self.key_bias[:, :length], 0

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        if self.key_bias is not None:
            self.key_bias = self.key_bias.index_select(0, beam_idx.to(self.key_bias.device))

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        if self.key_bias is not None:
            self.key_bias = self.key_bias.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor):
        # by `index_select`, whose gradient is cheaper than that of an index
        for layer in self.layers:
            if layer.is_initialized:
                rows = indices.to(layer.keys.device)  # with a device map, they lie on several devices
                layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
        if self.key_bias is not None:
            self.key_bias = self.key_bias.index_select(0, indices.to(self.key_bias.device))


__all__ = ["ScanCache"]
