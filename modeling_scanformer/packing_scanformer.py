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
"""Weights packed for inference on CPUs."""

import torch
from torch import nn


# Layers with fewer outputs stay as they are: nothing is gained.
FEWEST_OUTPUTS = 16


def sample_number(parameter: torch.Tensor) -> torch.Tensor:
    """One number of a parameter: not the first, as the first row of word embeddings is that of padding and stays 0."""
    return parameter.detach().flatten()[parameter.numel() // 2]


class PackedLinear(nn.Module):
    """
    A linear layer whose weight lies in the order in which oneDNN's kernels read it.

    A scan multiplies few tokens at a time by large matrices. An ordinary layer brings its matrix into that order on every
    call, which then costs about as much as the product itself. No gradient runs through a packed layer.

    Args:
        linear (`nn.Linear`):
            The layer to take the place of.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        # a rule of early exit knows its model by them
        self.sampled_numbers = [sample_number(parameter).clone() for parameter in linear.parameters()]
        # zeros where there is none: the kernel takes either, and the bias tells where the layer is
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        self.bias = bias.detach()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # which autocast may have rounded
        hidden_states = hidden_states.to(self.bias.dtype)
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self.packed_weight, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _apply(self, function, recurse=True):
        here = self.bias.new_empty(0)
        there = function(here)
        if (there.device, there.dtype) != (here.device, here.dtype):
            raise RuntimeError(
                "Packed weights stay where they are, in the precision they have: load the model again, whose other parts may "
                "have changed by now, and move or convert it before `pack_weights`."
            )
        return self

    def _save_to_state_dict(self, *args, **kwargs):
        raise RuntimeError(
            "A model with packed weights cannot be saved: it is for inference only. Save it before `pack_weights`."
        )

    def __reduce_ex__(self, protocol):
        raise RuntimeError("A model with packed weights cannot be copied or pickled: do so before `pack_weights`.")


def pack_weights(model: nn.Module) -> nn.Module:
    """
    Pack the weights of the linear layers for inference on the CPU, in place. Answers stay the same up to rounding. The
    model cannot be trained, saved, copied, moved or converted any more.

    Args:
        model (`nn.Module`):
            On the CPU, in float32 or, on processors that know it, bfloat16; of any class.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: if its weights cannot be packed on this machine, or it carries an adapter.

    Example:

    ```python
    >>> model = ScanFormerForVisualGrounding.from_pretrained("hub_cards/scanformer-tiny-scenes")
    >>> model = pack_weights(model)
    ```"""
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features >= FEWEST_OUTPUTS
    }
    _check_can_be_packed(linears)
    model.requires_grad_(False)
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(linear))
    return model.eval()


def _check_can_be_packed(linears: dict[str, nn.Linear]):
    if not torch.backends.mkldnn.is_available():
        raise ValueError("To pack weights, PyTorch needs oneDNN (`torch.backends.mkldnn.is_available()`).")
    dtypes = [torch.float32]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    for name, linear in linears.items():
        if "base_layer" in name.split("."):
            raise ValueError("The model carries an adapter: merge it first (`merge_and_unload`).")
        if linear.weight.device.type != "cpu":
            raise ValueError(f"Weights are packed for the CPU, but `{name}` is on {linear.weight.device}.")
        if linear.weight.dtype not in dtypes:
            raise ValueError(f"`{name}` is in {linear.weight.dtype}, but this machine packs {dtypes} only.")


__all__ = ["PackedLinear", "pack_weights"]
