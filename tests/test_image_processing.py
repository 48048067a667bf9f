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
import base64
import io
import json
import math
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageOps
from transformers import AutoImageProcessor

from modeling_scanformer import ScanFormerImageProcessor, image_pyramid, pad_pyramids, read_image
from modeling_scanformer.image_processing_scanformer import get_pyramid_size, httpx


SMALL = {"size": {"longest_edge": 32}, "patch_size": 4, "num_scales": 3}
SHAPES = [(20, 30), (30, 20), (24, 24), (1, 40), (40, 1), (300, 7)]


def picture(height=20, width=30, mode="RGB"):
    samples = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(samples).convert(mode)


def process(images, **kwargs):
    return ScanFormerImageProcessor(**SMALL)(images, **{"return_tensors": "pt", **kwargs})


def assert_same(actual, expected, atol=0.0):
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(torch.as_tensor(actual[name]), torch.as_tensor(expected[name]), rtol=0, atol=atol)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# The picture's size in the pyramid


def test_pyramid_size_distorts_the_aspect_least():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3000, (200, 2)).tolist() + [[1, 1], [1, 100_000], [100_000, 1], [640, 480], [3, 2]]
    for (height, width), unit in zip(sizes, [1, 16, 128, 640] * len(sizes)):
        new_height, new_width = get_pyramid_size(height, width, 640, unit)
        assert new_height % unit == new_width % unit == 0
        assert max(new_height, new_width) == 640
        assert (new_height - new_width) * (height - width) >= 0

        def distortion(shorter, height=height, width=width):
            return abs(math.log(shorter / 640 * max(height, width) / min(height, width)))

        least = min(distortion(shorter) for shorter in range(unit, 641, unit))
        assert distortion(min(new_height, new_width)) == pytest.approx(least)


# What the processor computes


@pytest.mark.parametrize("height, width", SHAPES)
def test_agrees_with_image_pyramid(height, width):
    image = picture(height, width)
    new_height, new_width = get_pyramid_size(height, width, 32, 16)
    pixels = np.asarray(image.resize((new_width, new_height), PIL.Image.Resampling.BILINEAR), dtype=np.float64)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    pixels = torch.from_numpy((pixels / 255 - mean) / std).permute(2, 0, 1)[None].float()
    actual = process(image, image_mean=mean.tolist(), image_std=std.tolist())
    assert_same(actual, image_pyramid(pixels, 4, 3), atol=1e-5)


def test_options_of_normalisation():
    image = picture(16, 16)
    samples = image_pyramid(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float(), 4, 3)["pixel_values"]

    def values(**kwargs):
        return process(image, size={"longest_edge": 16}, **kwargs)["pixel_values"]

    def assert_close(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    assert_close(values(do_rescale=False, do_normalize=False), samples)
    assert_close(values(do_normalize=False), samples / 255)
    assert_close(values(rescale_factor=0.5, image_mean=1.0, image_std=2.0), (samples / 2 - 1) / 2)
    assert_close(values(do_rescale=False), samples * 2 - 1)


def test_without_resizing():
    image = picture(16, 48)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    assert_same(process(image, do_resize=False), image_pyramid(pixels, 4, 3), atol=1e-6)
    with pytest.raises(ValueError, match="multiples of .* = 16, got 20 x 30"):
        process(picture(20, 30), do_resize=False)


def test_batch_is_its_members_padded():
    images = [picture(*shape) for shape in SHAPES]
    singles = [process(image) for image in images]
    batch = process(images)
    assert_same(batch, pad_pyramids(singles))
    assert batch["pixel_values"].shape[1] == 21 * 4
    assert not batch["pixel_values"][batch["pixel_attention_mask"] == 0].any()
    for row, single in enumerate(singles):
        real = batch["pixel_attention_mask"][row] == 1
        assert torch.equal(batch["pixel_values"][row, real], single["pixel_values"][0])
    assert_same(process(images[0]), singles[0])


def test_overrides_of_a_call():
    image = picture()
    options = {"size": {"longest_edge": 64}, "patch_size": 8, "num_scales": 2}
    assert_same(process(image, **options), ScanFormerImageProcessor(**options)(image, return_tensors="pt"))
    one_scale = process(image, num_scales=1)
    assert one_scale["spatial_shapes"].tolist() == [[[5, 8]]]


def test_return_tensors():
    image = picture()
    tensors, arrays, plain = (process(image, return_tensors=kind) for kind in ("pt", "np", None))
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert_same(arrays, tensors)
    assert_same(plain, tensors)


def test_saving(tmp_path):
    processor = ScanFormerImageProcessor(**SMALL, image_mean=[0.4, 0.5, 0.6], resample=3)
    processor.save_pretrained(tmp_path)
    image = picture()
    expected = processor(image, return_tensors="pt")
    for loader in (ScanFormerImageProcessor, AutoImageProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is ScanFormerImageProcessor
        assert_same(loaded(image, return_tensors="pt"), expected)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["patch_size"] == 4 and saved["num_scales"] == 3 and saved["size"] == {"longest_edge": 32}


# Pictures of every kind


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_exif_orientation(format, orientation, tmp_path):
    # blocks of one colour, so that JPEG keeps them apart
    stored = PIL.Image.fromarray(np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]], np.uint8)).resize((48, 16), 0)
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    path = tmp_path / "picture"
    path.write_bytes(encoded(stored, format, exif=exif))
    with PIL.Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert expected.shape == ((48, 16, 3) if orientation in (5, 6, 7, 8) else (16, 48, 3))
    upright = read_image(path)
    assert np.array_equal(np.asarray(upright), expected)
    assert np.array_equal(np.asarray(read_image(upright)), expected)  # not turned twice
    with PIL.Image.open(path) as opened:
        assert np.array_equal(np.asarray(read_image(opened)), expected)
        assert_same(process(opened), process(path))


def test_upright_rgb_is_returned_as_it_is():
    image = picture()
    assert read_image(image) is image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes(mode):
    image = picture(mode=mode)
    expected = image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(expected))
    assert_same(process(image), process(expected))


@pytest.mark.parametrize("mode, white", [("I;16", 65535), ("I;16B", 65535), ("I", 65535), ("I", 255), ("F", 255.0)])
def test_deep_gray(mode, white):
    samples = np.linspace(0, white, 256 * 3).reshape(3, 256)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    image = PIL.Image.fromarray(samples.astype(dtype))
    if mode == "I;16B":
        image = PIL.Image.frombytes(mode, (256, 3), samples.astype(dtype).tobytes())
    assert image.mode == mode
    expected = (samples.astype(dtype).astype(np.float64) * 255 / white).round()
    actual = np.asarray(read_image(image))
    assert actual.shape == (3, 256, 3)
    assert np.abs(actual - expected[..., None]).max() <= 1
    assert np.array_equal(np.unique(actual), np.arange(256))


def test_16_bit_files(tmp_path):
    samples = np.linspace(0, 65535, 256 * 3).reshape(3, 256).astype(np.uint16)
    for name in ("gray.png", "gray.tiff"):
        PIL.Image.fromarray(samples).save(tmp_path / name)
        assert np.abs(np.asarray(read_image(tmp_path / name))[..., 0] - samples / 257).max() <= 1


def test_premultiplied_gray():
    gray = PIL.Image.new("LA", (4, 2), (200, 255))
    gray.putpixel((1, 1), (200, 0))
    assert np.array_equal(np.asarray(read_image(gray.convert("La"))), np.asarray(read_image(gray)))


def test_float_pictures_up_to_one():
    samples = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert np.asarray(read_image(PIL.Image.fromarray(samples))).max() == 255


def test_transparency_becomes_white(tmp_path):
    red, clear = (250, 0, 0, 255), (0, 0, 0, 0)
    rgba = PIL.Image.new("RGBA", (4, 2), red)
    rgba.putpixel((1, 1), clear)
    half = PIL.Image.new("RGBA", (4, 2), (0, 0, 0, 51))
    gray = PIL.Image.new("LA", (4, 2), (9, 255))
    gray.putpixel((1, 1), (9, 0))
    palette = PIL.Image.new("P", (4, 2), 0)
    palette.putpalette([250, 0, 0, 0, 250, 0])
    palette.putpixel((1, 1), 1)
    for name, image, options in [
        ("rgba.png", rgba, {}),
        ("gray.png", gray, {}),
        ("index.png", palette, {"transparency": 1}),
        ("alpha_bytes.png", palette, {"transparency": bytes([255, 0])}),
        ("index.gif", palette, {"transparency": 1}),
        ("rgb.png", PIL.Image.merge("RGB", rgba.split()[:3]), {"transparency": (0, 0, 0)}),
    ]:
        image.save(tmp_path / name, **options)
        image = read_image(tmp_path / name)
        assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255), name
        assert image.getpixel((0, 0)) == ((9, 9, 9) if name == "gray.png" else (250, 0, 0)), name
    assert read_image(half).getpixel((0, 0)) == (204, 204, 204)


def test_first_frame_of_an_animation(tmp_path):
    frames = [PIL.Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


def test_arrays_and_tensors():
    image = picture()
    array = np.asarray(image)
    expected = process(image)
    for same in (array, array.transpose(2, 0, 1), torch.tensor(array), torch.tensor(array).permute(2, 0, 1)):
        assert_same(process(same), expected)
    assert_same(process(array[None].repeat(2, axis=0)), process([image, image]))
    assert_same(process([[image], [array, image]]), process([image] * 3))
    # without the rounding to 8 bits after resizing
    assert_same(process(array.astype(np.float32)), expected, atol=1.01 / 127.5)
    for dtype in (np.float16, np.float64, np.int64, np.uint16):
        assert_same(process(array.astype(dtype)), process(array.astype(np.float32)), atol=1e-6)
    scaled = torch.tensor(array, requires_grad=False).float().div(255).requires_grad_()
    assert_same(process(scaled, do_rescale=False), process(array.astype(np.float32)), atol=1e-5)
    assert_same(process(scaled.bfloat16(), do_rescale=False), expected, atol=0.03)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gray_and_transparent_arrays(dtype):
    image = picture(mode="RGBA")
    image.putalpha(picture(mode="L"))
    rgba, gray = np.asarray(image).astype(dtype), np.asarray(picture(mode="L")).astype(dtype)
    atol = 0 if dtype == np.uint8 else 2.01 / 127.5
    for same in (rgba, rgba.transpose(2, 0, 1)):
        assert_same(process(same), process(image), atol=atol)
    for same in (gray, gray[None], gray[:, :, None], torch.from_numpy(gray)):
        assert_same(process(same), process(picture(mode="L")), atol=atol)
    mask = gray > 100
    assert_same(process(mask), process(mask.astype(np.uint8) * 255))


def test_deep_arrays_by_rescale_factor():
    samples = np.asarray(picture()).astype(np.uint16) * 257
    actual = process(samples, rescale_factor=1 / 65535)
    assert_same(actual, process(np.asarray(picture()).astype(np.float32)), atol=1e-5)


def test_thin_arrays_are_rgb():
    for shape in [(1, 40), (4, 40), (40, 1), (40, 4)]:
        image = picture(*shape)
        assert_same(process(np.asarray(image)), process(image))
    ambiguous = np.asarray(picture(3, 40))
    assert_same(process(ambiguous, input_data_format="channels_last"), process(picture(3, 40)))


def test_mixed_list(tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    gray = np.asarray(picture(mode="L"))
    mixed = [gray, str(tmp_path / "a.png"), tmp_path / "a.png", image, torch.tensor(np.asarray(image)), gray[None]]
    expected = process([PIL.Image.fromarray(gray), image, image, image, image, PIL.Image.fromarray(gray)])
    assert_same(process(mixed), expected)


def test_urls_and_base64(monkeypatch):
    rgba = picture(mode="RGBA")
    rgba.putalpha(picture(mode="L"))
    content = encoded(rgba)
    expected = np.asarray(read_image(rgba))

    def get(url, timeout, follow_redirects):
        request = httpx.Request("GET", url)
        if timeout == 1.5:
            raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(404 if "missing" in url else 200, content=content, request=request)

    monkeypatch.setattr(httpx, "get", get)
    text = base64.encodebytes(content).decode()
    for source in ("https://example.org/a.png", text, "data:image/png;base64," + text.replace("\n", "")):
        assert np.array_equal(np.asarray(read_image(source)), expected)
    with pytest.raises(ValueError, match="Cannot read the picture 'https://example.org/missing': .*404"):
        read_image("https://example.org/missing")
    with pytest.raises(ValueError, match="timed out"):
        read_image("https://example.org/a.png", timeout=1.5)


def test_malformed_urls():
    with pytest.raises(ValueError, match="Cannot read the picture 'http://example.org:port/a.png': Invalid port"):
        read_image("http://example.org:port/a.png")


def test_very_large_picture():
    assert process(PIL.Image.new("L", (20_000, 40)))["spatial_shapes"].tolist() == [[[1, 2], [2, 4], [4, 8]]]


def test_no_file_stays_open(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(
        tmp_path / "a.gif", save_all=True, append_images=[PIL.Image.new("RGB", (8, 8), 9)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "a.gif")
    (tmp_path / "a.gif").unlink()


# What is refused


@pytest.mark.parametrize("as_string", [True, False])
def test_files_that_are_no_pictures(tmp_path, as_string):
    def refuse(path, message):
        with pytest.raises(ValueError, match=message) as error:
            process(str(path) if as_string else path)
        assert path.name in str(error.value)

    for name, content in {
        "empty.png": b"",
        "text.png": b"not a picture",
        "cut.png": encoded(picture())[:-200],
        "cut.jpg": encoded(picture(), "JPEG")[:-200],
        "cut.gif": encoded(picture(), "GIF")[:-200],
    }.items():
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, "Cannot decode")
    refuse(tmp_path / "missing.png", "no such file")
    refuse(tmp_path / "word", "no such file")
    refuse(tmp_path, "is a folder")


@pytest.mark.parametrize("source", ["", "missing", "aaaa", "a.png", "tür.png", "\0", "data:image/png;base64,####"])
def test_strings_that_are_no_pictures(source):
    with pytest.raises(ValueError, match="Cannot find the picture .*: there is no such file"):
        read_image(source)


def test_errors_do_not_repeat_long_strings():
    with pytest.raises(ValueError, match="Cannot decode the picture: no known picture format") as error:
        read_image("x" * 10_000)
    assert len(str(error.value)) < 200


def test_decompression_bombs(monkeypatch, tmp_path):
    path = tmp_path / "large.png"
    picture(20, 30).save(path)
    # Pillow's own border: above its limit it warns, which photographs of today's telephones reach
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.warns(PIL.Image.DecompressionBombWarning):
        assert read_image(path).size == (30, 20)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="Refused to decode .*large.png.*MAX_IMAGE_PIXELS"):
        warnings.simplefilter("error")
        read_image(path)
    # and above twice the limit it refuses
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match="Refused to decode .*large.png.*MAX_IMAGE_PIXELS"):
        process(path)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((0, 5, 3), np.uint8), "with pixels"),
        (np.zeros((3, 5, 0), np.uint8), "with pixels"),
        (np.zeros((0, 0), np.uint8), "with pixels"),
        (np.zeros(5, np.uint8), "with pixels"),
        (np.zeros((2, 2, 2, 5, 3), np.uint8), "with pixels"),
        (np.zeros((5, 6, 2), np.uint8), "channels"),
        (np.zeros((7, 5, 6), np.float32), "channels"),
        (np.zeros((5, 6, 3), np.complex64), "numbers"),
        (np.full((5, 6, 3), np.nan), "NaN"),
        (np.full((5, 6, 4), np.inf), "NaN or infinite"),
        (torch.full((3, 5, 6), torch.nan), "NaN"),
        (np.full((5, 6, 3), 65535, np.uint16), "rescale_factor"),
        (np.full((5, 6, 3), -300.0), "rescale_factor"),
        (PIL.Image.fromarray(np.full((5, 6), np.nan, np.float32)), "NaN"),
        (PIL.Image.new("RGB", (0, 5)), "0 x 5"),
        (None, "got NoneType"),
        (5, "got int"),
        (b"bytes", "got bytes"),
        ({"image": 1}, "got dict"),
        ([], "no pictures"),
        ([[], []], "no pictures"),
        ([[1.0, 2.0]], "got float"),
    ],
)
def test_arrays_that_are_no_pictures(image, message):
    with pytest.raises(ValueError, match=message):
        process(image)


def test_channels_without_conversion():
    for shape in [(8, 9, 4), (8, 9)]:
        with pytest.raises(ValueError, match="do_convert_rgb"):
            process(np.zeros(shape, np.uint8), do_convert_rgb=False)
    with pytest.raises(ValueError, match="got 8"):
        process(np.zeros((8, 9, 3), np.uint8), input_data_format="channels_first")


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"longest_edge": 40}},
        {"size": {"longest_edge": 0}},
        {"size": {"longest_edge": -32}},
        {"size": {"shortest_edge": 32}},
        {"size": {"shortest_edge": 16, "longest_edge": 32}},
        {"size": {"height": 32, "width": 32}},
        {"size": 32},
        {"patch_size": 5},
        {"patch_size": 0},
        {"num_scales": 5},
        {"num_scales": 0},
    ],
)
def test_sizes_that_make_no_pyramid(options):
    with pytest.raises(ValueError, match="longest_edge|at least 1"):
        process(picture(), **options)
    with pytest.raises(ValueError, match="longest_edge|at least 1"):
        ScanFormerImageProcessor(**{**SMALL, **options})(picture())
