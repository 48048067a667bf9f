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
"""Image processor class for ScanFormer."""

import base64
import math
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags
from PIL.Image import Transpose
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .loss_scanformer import center_to_corners
from .portability_scanformer import processor_code_entries, renew_code_entries
from .pyramid_scanformer import image_pyramid, pad_pyramids


logger = logging.get_logger(__name__)

# What brings a picture with an EXIF orientation upright.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class ScanFormerImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int`, *optional*, defaults to `self.patch_size`):
        Side of a patch in pixels, at every scale.
    num_scales (`int`, *optional*, defaults to `self.num_scales`):
        Number of scales of the pyramid.
    """

    patch_size: int
    num_scales: int


def read_image(image: "str | os.PathLike | PIL.Image.Image", timeout: float | None = None) -> "PIL.Image.Image":
    """
    Decode a picture and bring it into the form that ScanFormer sees: upright (the EXIF orientation is applied), RGB, with
    transparency on white and samples of more than 8 bits scaled to 8. Boxes are relative to this picture.

    Args:
        image (`str`, `os.PathLike` or `PIL.Image.Image`):
            Path, http(s) URL, base64 string, or an opened picture.
        timeout (`float`, *optional*):
            Seconds to wait for a URL.

    Returns:
        `PIL.Image.Image`: an RGB picture. One that is upright RGB already is returned as it is.

    Raises:
        ValueError: if it cannot be found or decoded, is truncated or empty, or is so large that decoding it is unsafe
            (more than twice `PIL.Image.MAX_IMAGE_PIXELS`; Pillow warns of more than once).
    """
    if not isinstance(image, (str, os.PathLike, PIL.Image.Image)):
        raise ValueError(f"Expected a picture as path, URL, base64 string or PIL image, got {type(image).__name__}.")
    opened = isinstance(image, PIL.Image.Image)
    name = "the picture" if opened or len(os.fspath(image)) > 255 else f"the picture {os.fspath(image)!r}"
    # everything is read at once, so no file stays open
    source = image if opened else BytesIO(_read_bytes(image, name, timeout))
    try:
        picture = image if opened else PIL.Image.open(source)
        picture.load()
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"Refused to decode {name}: {error} Scale it down first, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
        ) from error
    except Exception as error:  # damaged files make Pillow's decoders fail in many ways
        reason = "no known picture format" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise ValueError(
            f"Cannot decode {name}: {reason}. Check that it is a complete picture file in a format that Pillow reads."
        ) from error
    if 0 in picture.size:
        raise ValueError(f"Cannot ground an expression in {name}: its size is {picture.width} x {picture.height}.")
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
        # without the orientation, so that nobody applies it again
        picture.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    return _to_rgb(picture)


def _read_bytes(image: str | os.PathLike, name: str, timeout: float | None) -> bytes:
    # not by `load_image`: its conversion to RGB clips 16-bit samples and drops transparency
    try:
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            return httpx.get(image, timeout=timeout, follow_redirects=True).raise_for_status().content
        if isinstance(image, str) and not os.path.exists(image):
            content = base64.b64decode("".join(image.rpartition(",")[2].split()), validate=True)
            if len(content) < 32:  # no picture is that small: a file name that happens to be base64
                raise FileNotFoundError
            return content
        return Path(image).read_bytes()
    except (ValueError, FileNotFoundError) as error:  # the former where it is no base64 either
        raise ValueError(f"Cannot find {name}: there is no such file.") from error
    except IsADirectoryError as error:
        raise ValueError(f"Expected a picture file, but {name} is a folder. Give the files in it.") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(f"Cannot read {name}: {error}.") from error


def _to_rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image, 65535)
    elif image.mode in ("I", "F"):
        # these modes do not say what white is: the smallest usual range that holds the samples
        brightest = image.getextrema()[1]
        ranges = [255, 65535, 2**32 - 1] if image.mode == "I" else [1, 255, 65535]
        image = _to_8_bits(image, next((white for white in ranges if brightest <= white), ranges[-1]))
    if image.mode == "La":  # which Pillow converts to no other mode
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: "PIL.Image.Image", white: int) -> "PIL.Image.Image":
    samples = np.asarray(image, dtype=np.float32)
    _check_finite(samples)
    return PIL.Image.fromarray((samples * (255 / white)).round().clip(0, 255).astype(np.uint8))


def _check_finite(samples: np.ndarray):
    if not np.isfinite(samples).all():
        raise ValueError("The picture contains NaN or infinite samples.")


def flatten_images(images: ImageInput) -> list:
    """
    Make a flat list of one picture, a batch (an array of four dimensions), or nested lists of either; a column of a data
    set is a list, too.
    """
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [image for group in images for image in flatten_images(group)]
    if is_valid_image(images) and not isinstance(images, PIL.Image.Image) and images.ndim == 4:
        return list(images)
    return [images]


def get_channel_dimension(shape: tuple[int, ...], input_data_format: str | ChannelDimension | None = None) -> int:
    """
    Find the channels of an array.

    Args:
        shape (`tuple[int, ...]`):
            Shape of an array of three dimensions.
        input_data_format (`str` or `ChannelDimension`, *optional*):
            `"channels_first"` or `"channels_last"`. Without, RGB is looked for before RGBA, and RGBA before gray; and
            each first in front, then at the end.

    Returns:
        `int`: 0 or 2.
    """
    if input_data_format is not None:
        return 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    for channels in (3, 4, 1):
        for dimension in (0, 2):
            if shape[dimension] == channels:
                return dimension
    raise ValueError(
        f"Cannot tell the channels of a picture of shape {tuple(shape)}. Expected (height, width), or 1, 3 or 4 channels in "
        "front or at the end."
    )


def get_picture_size(image: ImageInput, input_data_format: str | ChannelDimension | None = None) -> tuple[int, int]:
    """(height, width) of a PIL image, array or tensor in pixels."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    sides = list(image.shape)
    if len(sides) == 3:
        sides.pop(get_channel_dimension(image.shape, input_data_format))
    if len(sides) != 2 or 0 in sides:
        raise ValueError(f"Expected a picture with pixels, got an array of shape {tuple(image.shape)}.")
    return tuple(sides)


def get_pyramid_size(height: int, width: int, longest_edge: int, unit: int) -> tuple[int, int]:
    """
    Size of the finest scale of the pyramid of an image: the longer side becomes `longest_edge`, the shorter the multiple
    of `unit` that distorts the aspect ratio least.

    Args:
        height, width (`int`):
            Size of the image in pixels.
        longest_edge (`int`):
            Longer side of the finest scale in pixels, a multiple of `unit`.
        unit (`int`):
            `patch_size * 2 ** (num_scales - 1)`, the side of a patch of the coarsest scale in pixels of the finest.

    Returns:
        `tuple[int, int]`: height and width in pixels.
    """
    shorter = longest_edge * min(height, width) / max(height, width)
    below = max(int(shorter // unit), 1) * unit
    # distortion is a ratio, so the nearest multiple is nearest in logarithm
    shorter = min((below, min(below + unit, longest_edge)), key=lambda side: abs(math.log(side / shorter)))
    return (shorter, longest_edge) if height < width else (longest_edge, shorter)


class ScanFormerImageProcessor(PilBackend):
    r"""
    Builds the image pyramid that ScanFormer scans. Pictures are scaled (up or down) to a longer side of
    `size["longest_edge"]` pixels.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"longest_edge": 640}`):
            Longer side of the finest scale, a multiple of `patch_size * 2 ** (num_scales - 1)`.
        patch_size (`int`, *optional*, defaults to 32):
            Side of a patch in pixels, at every scale.
        num_scales (`int`, *optional*, defaults to 3):
            Number of scales.
        do_resize, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std, do_convert_rgb:
            As in every image processor. Without `do_resize` both sides of the pictures must be multiples of
            `patch_size * 2 ** (num_scales - 1)`.
    """

    valid_kwargs = ScanFormerImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"longest_edge": 640}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    patch_size = 32
    num_scales = 3
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

    def __init__(self, **kwargs: Unpack[ScanFormerImageProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(self, images: ImageInput, **kwargs: Unpack[ScanFormerImageProcessorKwargs]) -> BatchFeature:
        """
        Preprocess one picture or a list of them.

        Args:
            images (`ImageInput`):
                Pictures: PIL images, paths, URLs, numpy arrays or torch tensors.
            **kwargs:
                Any argument of the constructor, and `return_tensors`.

        Returns:
            [`BatchFeature`]: `pixel_values` of shape `(batch_size, num_patches, 3 * patch_size**2)`,
            `pixel_attention_mask` of shape `(batch_size, num_patches)` and `spatial_shapes` of shape
            `(batch_size, num_scales, 2)`.

        Raises:
            ValueError: for a picture that cannot be decoded, is empty or holds NaN; and for sizes (without `do_resize`, of
                pictures) that are no multiples of `patch_size * 2 ** (num_scales - 1)`.
        """
        return super().preprocess(images, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return renew_code_entries(super().to_dict(), processor_code_entries)

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (np.ndarray, torch.Tensor)):
            return image_url_or_urls
        return read_image(image_url_or_urls)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        images = flatten_images(images)
        if not images:
            raise ValueError("There are no pictures to process.")
        return self.fetch_images(images)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs,
    ) -> "PIL.Image.Image | np.ndarray":
        """
        Bring a picture into the form that is resized: a PIL image where samples have 8 bits, otherwise a float32 array
        (height, width, 3), which keeps their precision.
        """
        if isinstance(image, PIL.Image.Image):
            return image
        get_picture_size(image, input_data_format)
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        if image.dtype.kind not in "uifb":
            raise ValueError(f"Expected a picture of numbers, got an array of {image.dtype}.")
        image = image[:, :, None] if image.ndim == 2 else image
        image = np.moveaxis(image, get_channel_dimension(image.shape, input_data_format), -1)
        channels = image.shape[-1]
        if channels not in ((1, 3, 4) if do_convert_rgb else (3,)):
            raise ValueError(
                f"Expected a picture of 3 channels, or with `do_convert_rgb` of 1 or 4, got {channels}. If the channels "
                "were mistaken, name them by `input_data_format`."
            )
        if image.dtype == bool:
            image = image.astype(np.uint8) * 255
        if image.dtype == np.uint8:
            return read_image(PIL.Image.fromarray(image[..., 0] if channels == 1 else image))

        image = image.astype(np.float32)
        _check_finite(image)
        white = 1 / rescale_factor if do_rescale else 1.0
        if do_rescale and not -white <= image.min() <= image.max() <= 2 * white:
            raise ValueError(
                f"The picture has samples from {image.min():g} to {image.max():g}, but white is {white:g}. Set "
                "`rescale_factor` to 1 / white, or `do_rescale=False` where white is 1."
            )
        if do_rescale and white > 1 and 0 < image.max() <= 1:
            logger.warning_once(
                f"A picture has no sample above 1, but white is {white:g}. If it is scaled already, set `do_rescale=False`."
            )
        if channels == 4:
            alpha = image[..., 3:] / white
            image = alpha * image[..., :3] + (1 - alpha) * white
        return np.repeat(image, 3, axis=-1) if channels == 1 else image

    def resize(
        self,
        image: "PIL.Image.Image | np.ndarray",
        size: SizeDict,
        resample: "PILImageResampling | None" = None,
        **kwargs,
    ) -> "PIL.Image.Image | np.ndarray":
        """Resize what `process_image` returned to `size.height` x `size.width`."""
        if isinstance(image, PIL.Image.Image):
            return image.resize((size.width, size.height), resample)
        channels = [PIL.Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0)]
        return np.stack([channel.resize((size.width, size.height), resample) for channel in channels], axis=-1)

    def _validate_preprocess_kwargs(self, size: SizeDict, patch_size: int, num_scales: int, **kwargs):
        super()._validate_preprocess_kwargs(size=size, **kwargs)
        if patch_size < 1 or num_scales < 1:
            raise ValueError(f"`patch_size` and `num_scales` must be at least 1, got {patch_size} and {num_scales}.")
        unit = patch_size * 2 ** (num_scales - 1)
        sized = set(dict(size)) == {"longest_edge"} and size.longest_edge > 0 and size.longest_edge % unit == 0
        if kwargs["do_resize"] and not sized:
            raise ValueError(
                "`size` must be {'longest_edge': pixels}, where pixels is a multiple of patch_size * 2 ** (num_scales - 1) "
                f"= {unit}, got {dict(size)}."
            )

    def _preprocess(
        self,
        images: "list[PIL.Image.Image | np.ndarray]",
        do_resize: bool,
        size: SizeDict,
        resample: "PILImageResampling | None",
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        patch_size: int,
        num_scales: int,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        # rescaling and normalisation in one step: samples * scale + shift
        std = np.broadcast_to(image_std if do_normalize else 1.0, 3)
        mean = np.broadcast_to(image_mean if do_normalize else 0.0, 3)
        scale = ((rescale_factor if do_rescale else 1.0) / std).astype(np.float32)
        shift = (-mean / std).astype(np.float32)
        pyramids = []
        for image in images:
            height, width = get_picture_size(image, ChannelDimension.LAST)
            if do_resize:
                unit = patch_size * 2 ** (num_scales - 1)
                height, width = get_pyramid_size(height, width, size.longest_edge, unit)
                image = self.resize(image, SizeDict(height=height, width=width), resample=resample)
            # a row of pixels at once: numpy is slow over a last dimension of 3
            pixels = np.asarray(image).reshape(height, -1) * np.tile(scale, width)
            pixels += np.tile(shift, width)
            pixels = torch.from_numpy(pixels).view(1, height, width, 3).permute(0, 3, 1, 2)
            pyramids.append(image_pyramid(pixels, patch_size, num_scales))
        batch = {name: features.numpy() for name, features in pad_pyramids(pyramids).items()}
        return BatchFeature(data=batch, tensor_type=return_tensors)

    def post_process_visual_grounding(
        self,
        outputs,
        target_sizes: "torch.Tensor | list[tuple[int, int]] | None" = None,
        threshold: float | None = None,
        text: list[str] | None = None,
    ) -> list[dict]:
        """
        Turn the model's boxes into corners, in pixels of the original pictures.

        Args:
            outputs ([`ScanFormerVisualGroundingOutput`]):
                Outputs of the model.
            target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or `list[tuple[int, int]]`, *optional*):
                (height, width) of every upright picture, in pixels. Without, boxes stay relative.
            threshold (`float`, *optional*):
                Leave out boxes whose score is lower.
            text (`list[str]`, *optional*):
                The expressions, to be returned with the boxes.

        Returns:
            `list[dict]`: per pair `"boxes"` of shape `(1, 4)`, or `(0, 4)` below the threshold, as (x0, y0, x1, y1),
            clamped to the picture; `"scores"` of shape `(1,)` or `(0,)`; and `"text"`, the expression or `None`.

        Raises:
            ValueError: if the numbers of boxes, sizes and expressions differ.
        """
        batch_size = len(outputs.pred_boxes)
        if target_sizes is None:
            target_sizes = [(1, 1)] * batch_size
        text = [text] if isinstance(text, str) else text
        if len(target_sizes) != batch_size or (text is not None and len(text) != batch_size):
            raise ValueError(
                f"Got {batch_size} boxes, {len(target_sizes)} target sizes and "
                f"{'no' if text is None else len(text)} expressions; there must be one of each per pair."
            )
        sizes = torch.stack([torch.as_tensor(size, dtype=torch.float32) for size in target_sizes])
        if sizes.shape != (batch_size, 2):
            raise ValueError(f"`target_sizes` must hold (height, width) of every picture, got {target_sizes}.")
        limits = sizes.to(outputs.pred_boxes.device)[:, [1, 0, 1, 0]]  # width, height, width, height
        boxes = center_to_corners(outputs.pred_boxes.float()) * limits
        boxes = boxes.clamp(min=0).minimum(limits)
        results = []
        for box, score, expression in zip(boxes, outputs.scores, text or [None] * batch_size):
            keep = int(threshold is None or bool(score >= threshold))
            results.append({"boxes": box[None, :][:keep], "scores": score[None][:keep], "text": expression})
        return results

    def post_process_object_detection(
        self, outputs, threshold: float = 0.0, target_sizes: "torch.Tensor | list[tuple[int, int]] | None" = None
    ) -> list[dict]:
        """
        As [`~ScanFormerImageProcessor.post_process_visual_grounding`], in the form of object detectors, so that
        `pipeline("zero-shot-object-detection")` runs a ScanFormer: one box per candidate label.

        Args:
            outputs ([`ScanFormerVisualGroundingOutput`]):
                Outputs of the model.
            threshold (`float`, *optional*, defaults to 0.0):
                Leave out boxes whose score is lower.
            target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or `list[tuple[int, int]]`, *optional*):
                (height, width) of every picture in pixels. Without, boxes stay relative.

        Returns:
            `list[dict]`: per pair `"boxes"`, `"scores"` and `"labels"`, the latter always 0.
        """
        results = self.post_process_visual_grounding(outputs, target_sizes, threshold)
        return [
            {"boxes": r["boxes"], "scores": r["scores"], "labels": torch.zeros_like(r["scores"], dtype=torch.long)}
            for r in results
        ]


__all__ = ["ScanFormerImageProcessor", "get_pyramid_size", "read_image"]
