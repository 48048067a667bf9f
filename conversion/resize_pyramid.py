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
Change the pyramid that a ScanFormer reads: the size of its patches, the number of its scales, or both.

    python -m conversion.resize_pyramid outputs/model outputs/finer --patch_size 8
    python -m conversion.resize_pyramid outputs/model outputs/deeper --num_scales 4

Patches of another size are seen as those of the old size were, made smaller or larger. A finer grid on pictures of the
same size has more patches, each with one thing on it rather than several. The boxes have to be learned again, as things
cover other numbers of patches; what words look like has not. (FlexiViT, arXiv 2212.08013, resizes patches in the same
sense, to any size.)

A scale more is read as the finest was. The scales before it stay what they were, as nothing earlier attends to a finer
scale: their boxes are the same, and the new scale has only to learn to improve on them.
"""

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig, ScanFormerProcessor

from .sources import load_source


PATCHES = "model.patch_embeddings"


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


def resize_pyramid(
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
    patch_size: int | None = None,
    num_scales: int | None = None,
    longest_edge: int | None = None,
) -> tuple[ScanFormerForVisualGrounding, ScanFormerProcessor]:
    """
    A model and a processor of another pyramid.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model.
        processor ([`ScanFormerProcessor`]):
            Its processor, which is changed.
        patch_size (`int`, *optional*):
            New side of a patch in pixels, a multiple or divisor of the old one; see [`resize_patch_projection`].
        num_scales (`int`, *optional*):
            New number of scales. Those that are added start as copies of the finest; those too many are cut off at the
            fine end.
        longest_edge (`int`, *optional*):
            New longer side of the pictures in pixels. By default it doubles with every scale that is added and halves
            with every one that is cut off, so that the others see what they saw.

    Raises:
        ValueError: if the patch size does not fit the old one, the pictures do not fit the patches, or scales are to be
            added to a model that has only one and so never learned to select.
    """
    config, image_processor = model.config, processor.image_processor
    patch_size = config.patch_size if patch_size is None else patch_size
    num_scales = config.num_scales if num_scales is None else num_scales
    if num_scales < 1:
        raise ValueError(f"A model has at least one scale, got num_scales {num_scales}.")
    if config.num_scales == 1 < num_scales:
        raise ValueError(
            "A model of one scale has not learned to select patches: train one of several scales instead."
        )
    weights = model.state_dict()
    projection = f"{PATCHES}.projection.weight"
    weights[projection] = resize_patch_projection(weights[projection], config.patch_size, patch_size)
    kept_scales = torch.arange(num_scales).clamp(max=config.num_scales - 1)
    for name in ("model.reg_tokens.weight", f"{PATCHES}.scale_embeddings.weight"):
        weights[name] = weights[name][kept_scales.to(weights[name].device)]
    edge = longest_edge
    if edge is None:
        edge = image_processor.size["longest_edge"] * 2**num_scales // 2**image_processor.num_scales
    unit = patch_size * 2 ** (num_scales - 1)
    if edge < unit or edge % unit:
        raise ValueError(
            f"Pictures of {edge} pixels do not fit {num_scales} scales of patches of {patch_size} pixels: give a "
            f"longest_edge that is a multiple of {unit}."
        )
    config = type(config).from_dict({**config.to_dict(), "patch_size": patch_size, "num_scales": num_scales})
    resized = ScanFormerForVisualGrounding(config).to(model.dtype)
    resized.load_state_dict({name: weights[name] for name in resized.state_dict()})
    resized.generation_config = adapt_generation_config(model.generation_config, num_scales)
    image_processor.patch_size, image_processor.num_scales = patch_size, num_scales
    image_processor.size = {"longest_edge": edge}
    return resized, processor


def adapt_generation_config(config: ScanFormerGenerationConfig, num_scales: int) -> ScanFormerGenerationConfig:
    """What of the options means something for another model, of so many scales."""
    config = copy.deepcopy(config)
    # the rule was calibrated on the model as it was
    config.early_exit = config.early_exit_rule = None
    if (config.max_scales or 0) > num_scales:
        config.max_scales = None
    if not _is_share_of(config.token_budget, num_scales):
        config.token_budget = config.budget_split = config.budget_score = None
    return config


def _is_share_of(budget: float | int | list | None, num_scales: int) -> bool:
    """Whether a budget holds the coarsest scale of such a pyramid; numbers of patches were those of the pyramid before."""
    if isinstance(budget, list):
        return len(budget) == num_scales and all(isinstance(share, float) for share in budget)
    return isinstance(budget, float) and budget > 1 / sum(4**scale for scale in range(num_scales))


def main(
    source: Annotated[str, typer.Argument(help="ScanFormer to change: a folder or an id on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Folder for the changed model and its processor.")],
    patch_size: Annotated[
        int | None,
        typer.Option("--patch_size", help="New side of a patch in pixels: a multiple or divisor of the old one."),
    ] = None,
    num_scales: Annotated[
        int | None, typer.Option("--num_scales", help="New number of scales: more, or fewer, at the fine end.")
    ] = None,
    longest_edge: Annotated[
        int | None,
        typer.Option(
            "--longest_edge", help="New longer side of the pictures; it doubles by itself with each new scale."
        ),
    ] = None,
):
    """Change the patch size or the number of scales of a ScanFormer."""
    try:
        model = load_source(source, out)
        processor = ScanFormerProcessor.from_pretrained(source)
        model, processor = resize_pyramid(model, processor, patch_size, num_scales, longest_edge)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    image_processor = processor.image_processor
    print(
        f"{out}: {image_processor.num_scales} scales of patches of {image_processor.patch_size} pixels, pictures of "
        f"{image_processor.size['longest_edge']} pixels"
    )


if __name__ == "__main__":
    typer.run(main)
