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
import pytest
import torch
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from modeling_scanformer.pyramid_scanformer import image_pyramid, pad_pyramids, patchify, scale_offsets


PATCH_SIZE = 4
SHAPES = [(16, 16), (16, 32), (48, 16)]  # multiples of 4 * 2 ** (3 - 1)


def random_pyramid(height, width, batch_size=1, num_scales=3, seed=0):
    torch.manual_seed(seed)
    return image_pyramid(torch.randn(batch_size, 3, height, width), PATCH_SIZE, num_scales)


def scale_images(pyramid):
    """The image of every scale, put together again from its patches."""
    num_scales = pyramid["spatial_shapes"].shape[1]
    offsets = scale_offsets(pyramid["pixel_values"].shape[1], num_scales)
    images = []
    for scale, (rows, columns) in enumerate(pyramid["spatial_shapes"][0].tolist()):
        patches = pyramid["pixel_values"][:, offsets[scale] : offsets[scale] + rows * columns]
        patches = patches.reshape(-1, rows, columns, PATCH_SIZE, PATCH_SIZE, 3).permute(0, 5, 1, 3, 2, 4)
        images.append(patches.reshape(-1, 3, rows * PATCH_SIZE, columns * PATCH_SIZE))
    return images


def test_scale_offsets():
    for num_scales in range(1, 5):
        for coarsest in range(1, 6):
            counts = [coarsest * 4**scale for scale in range(num_scales)]
            offsets = scale_offsets(sum(counts), num_scales)
            assert offsets[0] == 0
            assert [end - start for start, end in zip(offsets, offsets[1:])] == counts


@pytest.mark.parametrize("num_patches", [0, 1, 20, 22])
def test_scale_offsets_of_no_pyramid(num_patches):
    with pytest.raises(ValueError, match="num_scales"):
        scale_offsets(num_patches, 3)


@pytest.mark.parametrize("height, width", SHAPES)
def test_patches_lie_as_siglip2s(height, width):
    image = torch.randn(3, height, width)
    expected = convert_image_to_patches(image.numpy(), PATCH_SIZE)
    torch.testing.assert_close(patchify(image[None], PATCH_SIZE)[0], torch.from_numpy(expected), rtol=0, atol=0)


@pytest.mark.parametrize("num_scales", [1, 2, 3])
@pytest.mark.parametrize("height, width", SHAPES)
def test_every_scale_is_the_mean_of_the_next(height, width, num_scales):
    pixels = torch.randn(2, 3, height, width)
    pyramid = image_pyramid(pixels, PATCH_SIZE, num_scales)
    images = scale_images(pyramid)
    torch.testing.assert_close(images[-1], pixels, rtol=0, atol=0)
    for coarse, fine in zip(images, images[1:]):
        rows, columns = coarse.shape[2:]
        mean = fine.reshape(2, 3, rows, 2, columns, 2).mean((3, 5))
        torch.testing.assert_close(coarse, mean, rtol=0, atol=1e-6)
    assert pyramid["pixel_attention_mask"].eq(1).all()
    assert pyramid["pixel_attention_mask"].dtype == pyramid["spatial_shapes"].dtype == torch.int64


@pytest.mark.parametrize("height, width", SHAPES)
def test_a_patch_covers_its_four_children(height, width):
    pyramid = random_pyramid(height, width)
    offsets = scale_offsets(pyramid["pixel_values"].shape[1], 3)
    patches = [pyramid["pixel_values"][0, start:end] for start, end in zip(offsets, offsets[1:])]
    for scale in range(2):
        columns = pyramid["spatial_shapes"][0, scale, 1].item()
        for index, parent in enumerate(patches[scale]):
            row, column = divmod(index, columns)
            corner = 2 * row * 2 * columns + 2 * column
            children = [corner, corner + 1, corner + 2 * columns, corner + 2 * columns + 1]
            children = patches[scale + 1][children].view(2, 2, PATCH_SIZE, PATCH_SIZE, 3)
            area = children.permute(0, 2, 1, 3, 4).reshape(PATCH_SIZE, 2, PATCH_SIZE, 2, 3)
            torch.testing.assert_close(parent.view(PATCH_SIZE, PATCH_SIZE, 3), area.mean((1, 3)), rtol=0, atol=1e-6)


def test_pyramid_does_not_depend_on_the_memory_layout():
    pixels = torch.randn(2, 3, 16, 32)
    expected = image_pyramid(pixels, PATCH_SIZE, 3)
    actual = image_pyramid(pixels.contiguous(memory_format=torch.channels_last), PATCH_SIZE, 3)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pyramid_keeps_the_dtype(dtype):
    assert image_pyramid(torch.randn(1, 3, 16, 16, dtype=dtype), PATCH_SIZE, 3)["pixel_values"].dtype == dtype


def test_pyramid_is_differentiable():
    pixels = torch.randn(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pixels: image_pyramid(pixels, 2, 2)["pixel_values"], pixels)
    # all scales together: every pixel counts once itself, and by a quarter in the mean
    image_pyramid(pixels, 2, 2)["pixel_values"].sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 1.25))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 24), (1, 3, 8, 16), (1, 3, 0, 16)])
def test_pyramid_of_wrong_shape(shape):
    with pytest.raises(ValueError, match="shape|multiples of"):
        image_pyramid(torch.zeros(shape), PATCH_SIZE, 3)


def test_padding_keeps_every_row():
    singles = [random_pyramid(*shape, batch_size=2, seed=seed) for seed, shape in enumerate(SHAPES)]
    batch = pad_pyramids(singles)
    most = max(single["pixel_values"].shape[1] for single in singles)
    assert batch["pixel_values"].shape == (6, most, 3 * PATCH_SIZE**2)
    assert not batch["pixel_values"][batch["pixel_attention_mask"] == 0].any()
    assert torch.equal(batch["spatial_shapes"], torch.cat([single["spatial_shapes"] for single in singles]))
    offsets = scale_offsets(most, 3)
    for row in range(6):
        values, mask = batch["pixel_values"][row], batch["pixel_attention_mask"][row]
        assert torch.equal(values[mask == 1], singles[row // 2]["pixel_values"][row % 2])
        for scale, (rows, columns) in enumerate(batch["spatial_shapes"][row].tolist()):
            # the real patches of a scale come first in its part of the row
            real = mask[offsets[scale] : offsets[scale + 1]]
            assert torch.equal(real, (torch.arange(len(real)) < rows * columns).long())


def test_slices_of_a_batch_are_batches():
    singles = [random_pyramid(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    batch = pad_pyramids(singles)
    joined = pad_pyramids([{name: features[rows] for name, features in batch.items()} for rows in ([0], [1, 2])])
    assert all(torch.equal(joined[name], batch[name]) for name in batch)


def test_padding_is_differentiable():
    pixels = [torch.randn(1, 3, *shape, requires_grad=True) for shape in SHAPES]
    pad_pyramids([image_pyramid(image, PATCH_SIZE, 2) for image in pixels])["pixel_values"].sum().backward()
    for image in pixels:
        torch.testing.assert_close(image.grad, torch.full_like(image, 1.25))


def test_padding_of_different_numbers_of_scales():
    with pytest.raises(ValueError, match=r"numbers of scales: \[2, 3\]"):
        pad_pyramids([random_pyramid(16, 16, num_scales=num_scales) for num_scales in (2, 3)])


def test_integers_are_refused():
    with pytest.raises(ValueError, match="normalised.*uint8"):
        image_pyramid(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), PATCH_SIZE, 2)
