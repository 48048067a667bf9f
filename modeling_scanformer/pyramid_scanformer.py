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
"""The image pyramid in the layout that ScanFormer reads: flattened patches, scale by scale, coarse first."""

import torch


def scale_offsets(num_patches: int, num_scales: int) -> list[int]:
    """
    Start of every scale in the patch dimension of `pixel_values`, and its end.

    Every scale is padded to `4**s` times the padded count of scale 0, so all offsets follow from the total.

    Args:
        num_patches (`int`):
            Size of the patch dimension of `pixel_values`, N.
        num_scales (`int`):
            Number of scales, S.

    Returns:
        `list[int]`: S + 1 offsets. Scale s lies at `offsets[s]:offsets[s + 1]`.

    Raises:
        ValueError: if no pyramid of that many scales has `num_patches` patches.
    """
    total = (4**num_scales - 1) // 3
    coarsest, remainder = divmod(num_patches, total)
    if remainder or coarsest == 0:
        raise ValueError(
            f"`pixel_values` holds {num_patches} patches, but a pyramid of {num_scales} scales holds a multiple of "
            f"{total}. Was it made by an image processor with another `num_scales` than the model's?"
        )
    return [coarsest * (4**scale - 1) // 3 for scale in range(num_scales + 1)]


def patchify(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Cut images into flattened patches.

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
            Images whose sides are multiples of `patch_size`.
        patch_size (`int`):
            Side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, rows * columns, patch_size * patch_size * 3)`: the patches, row-major, each
        a `(patch_size, patch_size, 3)` block flattened.
    """
    batch_size, channels, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    pixels = pixels.reshape(batch_size, channels, rows, patch_size, columns, patch_size)
    return pixels.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, rows * columns, -1)


def image_pyramid(pixels: torch.Tensor, patch_size: int, num_scales: int) -> dict[str, torch.Tensor]:
    """
    Turn a batch of equally sized images into ScanFormer's image inputs. Differentiable with respect to the pixels, and
    runs on their device; [`ScanFormerImageProcessor`] goes through it too.

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
            Normalised images. Both sides are multiples of `patch_size * 2 ** (num_scales - 1)`.
        patch_size (`int`):
            Side of a patch in pixels, at every scale.
        num_scales (`int`):
            Number of scales, S. The last one is the image itself, each earlier one the mean over 2 x 2 pixels of the
            next.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` of shape `(batch_size, num_patches, patch_size * patch_size * 3)`,
        `pixel_attention_mask` of shape `(batch_size, num_patches)` and `spatial_shapes` of shape
        `(batch_size, num_scales, 2)`, the rows and columns of every scale.

    Raises:
        ValueError: if the shape is another, the sides are not multiples of `patch_size * 2 ** (num_scales - 1)`, or the pixels
            are integers.
    """
    if not pixels.is_floating_point():
        raise ValueError(f"Expected normalised images, of floating-point numbers, got {pixels.dtype}.")
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"Expected images of shape (batch_size, 3, height, width), got {tuple(pixels.shape)}.")
    unit = patch_size * 2 ** (num_scales - 1)
    batch_size, _, height, width = pixels.shape
    if height % unit or width % unit or height == 0 or width == 0:
        raise ValueError(
            f"Height and width must be multiples of patch_size * 2 ** (num_scales - 1) = {unit}, got {height} x {width}. "
            "Resize the images first, as `ScanFormerImageProcessor` does."
        )
    scales, shapes = [], []
    for scale in reversed(range(num_scales)):
        scales.append(patchify(pixels, patch_size))
        shapes.append((pixels.shape[2] // patch_size, pixels.shape[3] // patch_size))
        if scale > 0:
            # avg_pool2d is several times slower
            pixels = pixels[:, :, ::2] + pixels[:, :, 1::2]
            pixels = (pixels[..., ::2] + pixels[..., 1::2]) / 4
    pixel_values = torch.cat(scales[::-1], dim=1)
    return {
        "pixel_values": pixel_values,
        "pixel_attention_mask": pixel_values.new_ones(pixel_values.shape[:2], dtype=torch.long),
        "spatial_shapes": torch.tensor(shapes[::-1], device=pixels.device).expand(batch_size, -1, -1),
    }


def pad_pyramids(pyramids: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Join image inputs of different shapes to one batch, padding every scale to the largest.

    Args:
        pyramids (`list[dict[str, torch.Tensor]]`):
            Outputs of [`image_pyramid`] or of an image processor, of any batch sizes and shapes but the same number of
            scales.

    Returns:
        `dict[str, torch.Tensor]`: as [`image_pyramid`]'s, with the batch sizes added up.

    Raises:
        ValueError: if the numbers of scales differ.
    """
    num_scales = {pyramid["spatial_shapes"].shape[1] for pyramid in pyramids}
    if len(num_scales) != 1:
        raise ValueError(f"Cannot batch pyramids of different numbers of scales: {sorted(num_scales)}.")
    if len(pyramids) == 1:
        return dict(pyramids[0])
    num_scales = num_scales.pop()
    longest = scale_offsets(max(pyramid["pixel_values"].shape[1] for pyramid in pyramids), num_scales)

    def join(features: list[torch.Tensor]) -> torch.Tensor:
        batch_size = sum(len(feature) for feature in features)
        batch = features[0].new_zeros(batch_size, longest[-1], *features[0].shape[2:])
        row = 0
        for feature in features:
            offsets = scale_offsets(feature.shape[1], num_scales)
            for scale, start in enumerate(offsets[:-1]):
                patches = feature[:, start : offsets[scale + 1]]
                batch[row : row + len(patches), longest[scale] : longest[scale] + patches.shape[1]] = patches
            row += len(feature)
        return batch

    batch = {name: join([pyramid[name] for pyramid in pyramids]) for name in ("pixel_values", "pixel_attention_mask")}
    return batch | {"spatial_shapes": torch.cat([pyramid["spatial_shapes"] for pyramid in pyramids])}


__all__ = ["image_pyramid", "pad_pyramids", "patchify", "scale_offsets"]
