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

import math

import numpy as np
import PIL
import torch
from PIL import ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict, load_image
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .loss_scanformer import center_to_corners
from .pyramid_scanformer import image_pyramid, pad_pyramids


class ScanFormerImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int`, *optional*, defaults to `self.patch_size`):
        Side of a patch in pixels, at every scale.
    num_scales (`int`, *optional*, defaults to `self.num_scales`):
        Number of scales of the pyramid.
    """

    patch_size: int
    num_scales: int


def read_image(image: "str | PIL.Image.Image", timeout: float | None = None) -> "PIL.Image.Image":
    """
    Decode a picture and bring it into the form that ScanFormer sees: upright (the EXIF orientation is applied), RGB, with
    transparency on white and 16-bit samples scaled to 8 bits. Boxes are relative to this picture.

    Args:
        image (`str` or `PIL.Image.Image`):
            Path, http(s) URL, base64 string, or an opened picture.
        timeout (`float`, *optional*):
            Seconds to wait for a URL.

    Returns:
        `PIL.Image.Image`: an RGB picture. One that is upright RGB already is returned as it is.

    Raises:
        ValueError: if it cannot be decoded, is truncated or empty, or is so large that decoding it is unsafe.
    """
    name = f"the picture {image!r}" if isinstance(image, str) and len(image) < 500 else "the picture"
    try:
        if isinstance(image, str):
            opened = _open(image, timeout)
        else:
            opened = image
        if 0 in opened.size:
            raise ValueError(f"Cannot ground an expression in {name}: its size is {opened.width} x {opened.height}.")
        return _to_rgb(ImageOps.exif_transpose(opened))
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(
            f"Refused to decode {name}: {error} Scale it down first, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
        ) from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"Cannot decode {name}: {error}. Check that it is a complete picture file in a format that Pillow reads."
        ) from error


def _open(image: str, timeout: float | None) -> "PIL.Image.Image":
    # `load_image` converts to RGB by clipping 16-bit samples and dropping transparency, so files are opened here
    if image.startswith(("http://", "https://", "data:image/")):
        return load_image(image, timeout=timeout)
    try:
        return PIL.Image.open(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"There is no picture file {image!r}.") from error


def _to_rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        samples = np.asarray(image).astype(np.float64)
        if not np.isfinite(samples).all():
            raise ValueError("The picture contains NaN or infinite samples.")
        if samples.max() > 255:
            samples = samples / 257
        image = PIL.Image.fromarray(samples.clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
            ValueError: for a picture that cannot be decoded, is empty or holds NaN.
        """
        return super().preprocess(images, **kwargs)

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, PIL.Image.Image)):
            return read_image(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: ImageInput, **kwargs) -> np.ndarray:
        if not isinstance(image, PIL.Image.Image):
            if 0 in image.shape:
                raise ValueError(f"Cannot ground an expression in a picture of shape {tuple(image.shape)}.")
            if image.dtype.kind == "f" if isinstance(image, np.ndarray) else image.is_floating_point():
                if not np.isfinite(np.asarray(image)).all():
                    raise ValueError("The picture contains NaN or infinite samples.")
        return super().process_image(image, **kwargs)

    def _validate_preprocess_kwargs(self, size: SizeDict, patch_size: int, num_scales: int, **kwargs):
        super()._validate_preprocess_kwargs(size=size, **kwargs)
        unit = patch_size * 2 ** (num_scales - 1)
        if kwargs["do_resize"] and (not size.longest_edge or size.longest_edge % unit):
            raise ValueError(
                f"`size['longest_edge']` must be a multiple of patch_size * 2 ** (num_scales - 1) = {unit}, got "
                f"{dict(size)}."
            )

    def _preprocess(
        self,
        images: list[np.ndarray],
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
        pyramids = []
        for image in images:
            if do_resize:
                unit = patch_size * 2 ** (num_scales - 1)
                height, width = get_pyramid_size(*image.shape[-2:], size.longest_edge, unit)
                image = self.resize(image, SizeDict(height=height, width=width), resample=resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
            pyramids.append(image_pyramid(pixels[None], patch_size, num_scales))
        batch = {name: features.numpy() for name, features in pad_pyramids(pyramids).items()}
        return BatchFeature(data=batch, tensor_type=return_tensors)

    def post_process_visual_grounding(
        self,
        outputs,
        target_sizes: "torch.Tensor | list[tuple[int, int]]",
        threshold: float | None = None,
        text: list[str] | None = None,
    ) -> list[dict]:
        """
        Turn relative boxes into pixel boxes of the original pictures.

        Args:
            outputs ([`ScanFormerVisualGroundingOutput`]):
                Outputs of the model.
            target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or `list[tuple[int, int]]`):
                (height, width) of every upright picture, in pixels.
            threshold (`float`, *optional*):
                Leave out boxes whose score is lower.
            text (`list[str]`, *optional*):
                The expressions, to be returned with the boxes.

        Returns:
            `list[dict]`: per pair `"boxes"` of shape `(1, 4)`, or `(0, 4)` below the threshold, as (x0, y0, x1, y1) in
            pixels, clamped to the picture; `"scores"` of shape `(1,)` or `(0,)`; and `"text"`, the expression or `None`.

        Raises:
            ValueError: if the numbers of boxes, sizes and expressions differ.
        """
        batch_size = len(outputs.pred_boxes)
        if len(target_sizes) != batch_size or (text is not None and len(text) != batch_size):
            raise ValueError(
                f"Got {batch_size} boxes, {len(target_sizes)} target sizes and "
                f"{'no' if text is None else len(text)} expressions; there must be one of each per pair."
            )
        sizes = torch.as_tensor(target_sizes, dtype=torch.float64).to(outputs.pred_boxes.device)
        height, width = sizes.unbind(1)
        limits = torch.stack([width, height, width, height], dim=1)
        boxes = center_to_corners(outputs.pred_boxes.to(limits.dtype)) * limits
        boxes = boxes.clamp(min=0).minimum(limits).to(torch.float32)
        kept = outputs.scores >= (-math.inf if threshold is None else threshold)
        return [
            {"boxes": box[keep], "scores": score[keep], "text": expression}
            for box, score, keep, expression in zip(
                boxes[:, None], outputs.scores[:, None], kept[:, None], text or [None] * batch_size
            )
        ]

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
        if target_sizes is None:
            target_sizes = [(1, 1)] * len(outputs.pred_boxes)
        results = self.post_process_visual_grounding(outputs, target_sizes, threshold)
        return [
            {"boxes": r["boxes"], "scores": r["scores"], "labels": torch.zeros(len(r["scores"]), dtype=torch.long)}
            for r in results
        ]


__all__ = ["ScanFormerImageProcessor", "get_pyramid_size", "read_image"]
