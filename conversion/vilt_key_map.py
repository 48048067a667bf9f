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
"""Which tensor of ViLT becomes which tensor of ScanFormer, and back. Knows names and shapes only, and reads no file."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from modeling_scanformer import ScanFormerConfig


# Names of ViLT are those of Transformers' `ViltModel`, names of ScanFormer those of `ScanFormerModel`.
SEGMENTS = "embeddings.text_embeddings.token_type_embeddings.weight"
TEXT_POSITIONS = "embeddings.text_embeddings.position_embeddings.weight"
CLS_TOKEN = "embeddings.cls_token"
PATCH_PROJECTION = "embeddings.patch_embeddings.projection.weight"
PATCH_POSITIONS = "embeddings.position_embeddings"
MODALITIES = "embeddings.token_type_embeddings.weight"

# What only changes its name: ScanFormer's on the left, ViLT's on the right.
SAME_TENSORS = {
    "text_embeddings.word_embeddings.weight": "embeddings.text_embeddings.word_embeddings.weight",
    "text_embeddings.layernorm.weight": "embeddings.text_embeddings.LayerNorm.weight",
    "text_embeddings.layernorm.bias": "embeddings.text_embeddings.LayerNorm.bias",
    "patch_embeddings.projection.bias": "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight": "layernorm.weight",
    "layernorm.bias": "layernorm.bias",
}
SAME_LAYER_MODULES = {
    "layernorm_before": "layernorm_before",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "layernorm_after": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}

# Tensors of which only the first rows are carried over, and what the others are.
LEADING_ROWS = {
    SEGMENTS: (1, "segments that an expression never has"),
    MODALITIES: (2, "the type of a second image"),
    "reg_tokens.weight": (1, "the finer scales' [REG]"),
    "patch_embeddings.scale_embeddings.weight": (1, "the finer scales"),
}

# The repository of ViLT's authors, in terms of Transformers' names. What is not listed has the same name in both, or no
# counterpart; `attn.qkv` is three tensors there.
ORIGINAL_NAMES = {
    r"^text_embeddings\.": "embeddings.text_embeddings.",
    r"^token_type_embeddings\.": "embeddings.token_type_embeddings.",
    r"^transformer\.cls_token$": CLS_TOKEN,
    r"^transformer\.pos_embed$": PATCH_POSITIONS,
    r"^transformer\.patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^transformer\.norm\.": "layernorm.",
    r"^transformer\.blocks\.(\d+)\.norm1\.": r"encoder.layer.\1.layernorm_before.",
    r"^transformer\.blocks\.(\d+)\.attn\.proj\.": r"encoder.layer.\1.attention.output.dense.",
    r"^transformer\.blocks\.(\d+)\.norm2\.": r"encoder.layer.\1.layernorm_after.",
    r"^transformer\.blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layer.\1.intermediate.dense.",
    r"^transformer\.blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layer.\1.output.dense.",
}
ORIGINAL_QKV = re.compile(r"^transformer\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")


class Rule(NamedTuple):
    """
    How one tensor is made.

    Attributes:
        target (`str`):
            Its name.
        sources (`tuple[str, ...]`):
            The tensors it is made of, in the order of `make`'s arguments.
        make (`Callable`):
            Makes it.
        how (`str`):
            What `make` does, for the report; empty where the tensor is carried over as it is.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor] = lambda tensor: tensor
    how: str = ""


def rules_to_scanformer(config: ScanFormerConfig, has_modalities: bool = True) -> list[Rule]:
    """
    How the encoder of a ScanFormer is made of a ViLT's.

    Args:
        config ([`ScanFormerConfig`]):
            Configuration of the ScanFormer.
        has_modalities (`bool`, *optional*, defaults to `True`):
            Whether the source has modality types: a text encoder and a ViT that never met have none.
    """
    rules = [Rule(ours, (theirs,)) for ours, theirs in _same_names(config).items()]
    rules += [
        Rule(
            "text_embeddings.position_embeddings.weight",
            (TEXT_POSITIONS, SEGMENTS),
            lambda positions, segments: positions + segments[0],
            "segment 0 is added to every position",
        ),
        Rule(
            "patch_embeddings.projection.weight",
            (PATCH_PROJECTION,),
            lambda kernel: kernel.permute(0, 2, 3, 1).flatten(1),
            "(channels, rows, columns) of a patch become (rows, columns, channels)",
        ),
        Rule(
            "patch_embeddings.position_embeddings.weight",
            (PATCH_POSITIONS,),
            lambda positions: positions[0, 1:],
            "all but [CLS]; the model interpolates them to the grid of each scale",
        ),
        Rule(
            "reg_tokens.weight",
            (CLS_TOKEN, PATCH_POSITIONS),
            lambda token, positions: (token[0, 0] + positions[0, 0]).repeat(config.num_scales, 1),
            "[CLS] with its position, for every scale",
        ),
    ]
    if has_modalities:
        rules.append(Rule("modality_embeddings.weight", (MODALITIES,), lambda types: types[:2]))
    return rules


def rules_to_vilt(config: ScanFormerConfig) -> list[Rule]:
    """
    How a ViLT is made of a ScanFormer's encoder reading its coarsest scale, the only one that has no scale before it.

    Args:
        config ([`ScanFormerConfig`]):
            Configuration of the ScanFormer.
    """
    patch = (config.patch_size, config.patch_size, 3)
    rules = [Rule(theirs, (ours,)) for ours, theirs in _same_names(config).items()]
    return rules + [
        Rule(TEXT_POSITIONS, ("text_embeddings.position_embeddings.weight",)),
        Rule(
            PATCH_PROJECTION,
            ("patch_embeddings.projection.weight",),
            lambda weight: weight.unflatten(1, patch).permute(0, 3, 1, 2).contiguous(),
            "(rows, columns, channels) of a patch become (channels, rows, columns)",
        ),
        Rule(
            PATCH_POSITIONS,
            ("patch_embeddings.position_embeddings.weight", "patch_embeddings.scale_embeddings.weight"),
            # weights of an interpolation sum up to 1, so what is added to the grid is added to every patch
            lambda grid, scales: torch.nn.functional.pad(grid + scales[0], (0, 0, 1, 0))[None],
            "scale 0 is added to every position; [CLS] gets none of its own",
        ),
        Rule(CLS_TOKEN, ("reg_tokens.weight",), lambda tokens: tokens[:1, None], "[REG] of scale 0"),
        Rule(MODALITIES, ("modality_embeddings.weight",)),
    ]


def _same_names(config: ScanFormerConfig) -> dict[str, str]:
    """Tensors that only change their name: ScanFormer's name to ViLT's."""
    names = dict(SAME_TENSORS)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in SAME_LAYER_MODULES.items():
            has_bias = config.qkv_bias or ours.removeprefix("attention.") not in ("q_proj", "k_proj", "v_proj")
            for parameter in ("weight", "bias") if has_bias else ("weight",):
                names[f"layers.{layer}.{ours}.{parameter}"] = f"encoder.layer.{layer}.{theirs}.{parameter}"
    return names


def rename_original(name: str) -> tuple[str, ...]:
    """
    Transformers' name of a tensor in the original repository's checkpoints. Three names for the fused query, key and
    value, in the order of its rows.
    """
    fused = ORIGINAL_QKV.match(name)
    if fused:
        layer, parameter = fused.groups()
        return tuple(
            f"encoder.layer.{layer}.attention.attention.{part}.{parameter}" for part in ("query", "key", "value")
        )
    for pattern, replacement in ORIGINAL_NAMES.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return (renamed,)
    return (name,)


def rename_bert(name: str) -> str:
    """ViLT's name of a tensor of BERT's embeddings; other names are returned as they are."""
    # BERT's oldest checkpoints call the weights of layer norms as TensorFlow did
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return re.sub(r"^embeddings\.", "embeddings.text_embeddings.", name)
