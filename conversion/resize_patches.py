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
Change the patch size of a ScanFormer: it then sees its patches as it saw those of the old size, made smaller or larger.

    python -m conversion.resize_patches outputs/model outputs/finer --patch_size 8

A finer grid on pictures of the same size has more patches, each with one thing on it rather than several. The boxes have
to be learned again, as things cover other numbers of patches; what words look like has not. (FlexiViT, arXiv 2212.08013,
resizes patches in the same sense, to any size.)
"""

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor


def resize_patch_projection(weight: torch.Tensor, patch_size: int, new_patch_size: int) -> torch.Tensor:
    """
    Weights that give for a patch what the old ones give for the same patch scaled to the old size.

    Args:
        weight (`torch.Tensor` of shape `(hidden_size, 3 * patch_size**2)`):
            Weights for patches flattened from (rows, columns, 3).
        patch_size (`int`):
            Side of a patch in pixels.
        new_patch_size (`int`):
            The side that it is to be. Smaller patches are scaled up by repeating their pixels, larger ones down by the
            mean of their blocks.

    Returns:
        `torch.Tensor` of shape `(hidden_size, 3 * new_patch_size**2)`.

    Raises:
        ValueError: if neither size is a multiple of the other.
    """
    small, large = sorted((patch_size, new_patch_size))
    if small < 1 or large % small:
        raise ValueError(f"The new patch size must be a multiple or a divisor of {patch_size}, got {new_patch_size}.")
    ratio = large // small
    if new_patch_size < patch_size:
        blocks = weight.view(-1, small, ratio, small, ratio, 3)
        return blocks.sum((2, 4)).flatten(1)
    pixels = weight.view(-1, small, small, 3) / ratio**2
    return pixels.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2).flatten(1)


def resize_patches(
    model: ScanFormerForVisualGrounding, processor: ScanFormerProcessor, patch_size: int, longest_edge: int | None
) -> tuple[ScanFormerForVisualGrounding, ScanFormerProcessor]:
    """
    A model and a processor of another patch size; see [`resize_patch_projection`].

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model.
        processor ([`ScanFormerProcessor`]):
            Its processor, which is changed.
        patch_size (`int`):
            New side of a patch in pixels.
        longest_edge (`int`, *optional*):
            New longer side of the pictures in pixels.

    Raises:
        ValueError: if the patch size does not fit the old one, or the pictures do not fit the patches.
    """
    weights = model.state_dict()
    name = "model.patch_embeddings.projection.weight"
    weights[name] = resize_patch_projection(weights[name], model.config.patch_size, patch_size)
    config = type(model.config).from_dict({**model.config.to_dict(), "patch_size": patch_size})
    resized = ScanFormerForVisualGrounding(config).to(model.dtype)
    resized.load_state_dict(weights)
    # but for the rule: it was calibrated on another model
    resized.generation_config = copy.deepcopy(model.generation_config)
    resized.generation_config.early_exit_rule = None
    image_processor = processor.image_processor
    edge = image_processor.size["longest_edge"] if longest_edge is None else longest_edge
    unit = patch_size * 2 ** (config.num_scales - 1)
    if edge < unit or edge % unit:
        raise ValueError(
            f"Pictures of {edge} pixels do not fit {config.num_scales} scales of patches of {patch_size} pixels: give a "
            f"longest_edge that is a multiple of {unit}."
        )
    image_processor.patch_size, image_processor.size = patch_size, {"longest_edge": edge}
    return resized, processor


def main(
    source: Annotated[str, typer.Argument(help="ScanFormer to change: a folder or an id on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Folder for the changed model and its processor.")],
    patch_size: Annotated[
        int, typer.Option("--patch_size", help="New side of a patch in pixels: a multiple or divisor of the old one.")
    ],
    longest_edge: Annotated[
        int | None, typer.Option("--longest_edge", help="New longer side of the pictures, if it is to change.")
    ] = None,
):
    """Change the patch size of a ScanFormer."""
    try:
        model = ScanFormerForVisualGrounding.from_pretrained(source)
        processor = ScanFormerProcessor.from_pretrained(source)
        model, processor = resize_patches(model, processor, patch_size, longest_edge)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    model.save_pretrained(out)
    processor.save_pretrained(out)
    print(f"{out}: patches of {patch_size} pixels, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    typer.run(main)
