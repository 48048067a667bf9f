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
"""How a ScanFormer is optimized: rates of its layers, the threshold of its selection, the average of its weights."""

import torch
from torch.optim.swa_utils import AveragedModel


# The modules whose matrices give the outputs: boxes, scores and selection logits.
OUTPUTS = ("out_proj", "classifier")


def create_parameter_groups(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    layerwise_lr_decay: float = 1.0,
    with_muon: bool = False,
) -> list[dict]:
    """
    Groups of parameters for an optimizer: vectors (biases, norms) and embeddings do not decay, and lower layers learn
    more slowly.

    Args:
        model (`torch.nn.Module`):
            Parameters that require no gradient are left out.
        learning_rate (`float`):
            Rate of the heads.
        weight_decay (`float`):
            Of matrices.
        layerwise_lr_decay (`float`, *optional*, defaults to 1.0):
            The last layer learns at this multiple of the heads' rate, the layer below at its square, and so on; the
            embeddings, convolutions among them, are below all layers.
        with_muon (`bool`, *optional*, defaults to `False`):
            Whether groups are those of [`Muon`], which orthogonalizes matrices: all but the embeddings and what gives the
            outputs. The projection of the patches is one of them, and so are convolutions.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        height = _height_below_heads(name, model.config.num_hidden_layers) if layerwise_lr_decay < 1.0 else 0
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        group = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": learning_rate * layerwise_lr_decay**height,
        }
        by_muon = decays and with_muon and not any(part in OUTPUTS for part in name.split("."))
        if by_muon:
            group["orthogonalize"] = True
        groups.setdefault((height, not decays, by_muon), group)["params"].append(parameter)
    return [group for _, group in sorted(groups.items(), key=lambda item: item[0])]


def _height_below_heads(name: str, num_layers: int) -> int:
    parts = name.split(".")
    if "layers" in parts:
        return num_layers - int(parts[parts.index("layers") + 1])
    is_embedding = any("embeddings" in part or part in ("reg_tokens", "constant_token") for part in parts)
    return num_layers + 1 if is_embedding else 0


def selection_threshold(step: int, warmup_steps: int, anneal_steps: int, final: float) -> float:
    """Everything is read at first, then the threshold rises linearly to its final value."""
    if step >= warmup_steps + anneal_steps:
        return final
    return final * min(max((step - warmup_steps) / max(anneal_steps, 1), 0.0), 1.0)


def average_weights(model: torch.nn.Module, decay: float) -> AveragedModel:
    """
    An exponential moving average of a model's weights. It looks back at most as far as training has come, so that
    the first weights are soon forgotten.

    Args:
        model (`torch.nn.Module`):
            The model; the average is a copy of it, as `.module`.
        decay (`float`):
            Share of the average that every update keeps.
    """

    def update(average: torch.Tensor, current: torch.Tensor, num_updates: torch.Tensor) -> torch.Tensor:
        keep = min(decay, (1 + int(num_updates)) / (10 + int(num_updates)))
        return average.lerp(current, 1 - keep)

    return AveragedModel(model, avg_fn=update)
