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
"""Image/Text processor class for ScanFormer."""

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin

from .image_processing_scanformer import ScanFormerImageProcessor, flatten_images, get_picture_size
from .portability_scanformer import processor_code_entries, renew_code_entries


# What decoders leave where bytes are no text.
REPLACEMENT = "\ufffd"
# Letters and symbols that are drawn as nothing: the fillers of Hangul, and Braille without a dot.
BLANKS = "\u115f\u1160\u3164\uffa0\u2800"

# Rounding puts many annotated boxes, COCO's for one, a fraction of a pixel outside of their picture.
ROUNDING = 0.5


def is_visible(expression: str) -> bool:
    """Whether an expression has a character that a reader, and BERT's tokenizer, does not pass over."""
    return any(
        character.isprintable()
        and not character.isspace()
        and character not in (REPLACEMENT, *BLANKS)
        and unicodedata.category(character) != "Mn"
        for character in expression
    )


class ScanFormerProcessor(ProcessorMixin):
    r"""
    Wraps a [`ScanFormerImageProcessor`] and a tokenizer.

    Args:
        image_processor ([`ScanFormerImageProcessor`]):
            Builds the image pyramid.
        tokenizer (`PreTrainedTokenizerBase`):
            A BERT word-piece tokenizer.
    """

    text_kwargs = {"padding": True, "return_token_type_ids": False}

    def __init__(self, image_processor: ScanFormerImageProcessor, tokenizer):
        super().__init__(image_processor, tokenizer)
        # a save with code marks the tokenizer too, although it has none
        tokenizer.init_kwargs.pop("auto_map", None)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        boxes=None,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepare pairs of a picture and an expression.

        Args:
            images (`ImageInput`, *optional*):
                One picture or a list of them.
            text (`str` or `list[str]`, *optional*):
                One expression per picture.
            boxes (`list[list[float] | None]`, *optional*):
                The true box of every pair as (x0, y0, x1, y1) in pixels of the upright picture, or `None` where nothing
                fits the expression; a single pair may come without the outer list. Adds `labels`.
            **kwargs:
                Passed to the image processor and the tokenizer. With `truncation=True` long expressions are cut to what
                the model reads; otherwise they raise an error.

        Returns:
            [`BatchFeature`]: `input_ids` and `attention_mask` of shape `(batch_size, text_length)`; `pixel_values` of
            shape `(batch_size, num_patches, 3 * patch_size**2)`, `pixel_attention_mask` of shape
            `(batch_size, num_patches)`, `spatial_shapes` of shape `(batch_size, num_scales, 2)`; and with boxes `labels`
            of shape `(batch_size, 4)`.

        Raises:
            ValueError: for an empty or over-long expression, unequal numbers of pictures, expressions and boxes, a box
                without area or outside its picture, or a picture that cannot be read.
        """
        # what is cheap to check comes before what takes time
        if images is None and text is None:
            raise ValueError("There is nothing to process: give `images`, `text`, or both.")
        if boxes is not None and images is None:
            raise ValueError("`boxes` need the pictures they belong to.")
        unbatched = isinstance(text, str) and images is None
        images = None if images is None else flatten_images(images)
        text = None if text is None else self.check_text(text)
        boxes = None if boxes is None else _as_list(boxes)
        for name, pairs in {"expressions": text, "boxes": boxes}.items():
            if images is not None and pairs is not None and len(images) != len(pairs):
                raise ValueError(
                    f"Got {len(images)} pictures but {len(pairs)} {name}. They are read in pairs: repeat a picture for every "
                    "expression, or an expression for every picture; the box is `None` where nothing fits."
                )

        kwargs = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        features = {}
        if text is not None:
            unbatched = unbatched and kwargs["text_kwargs"].get("return_tensors") is None
            features.update(self.tokenizer(text[0] if unbatched else text, **kwargs["text_kwargs"]))
            self._check_length([features["input_ids"]] if unbatched else features["input_ids"])
        if images is not None:
            images = self.image_processor.fetch_images(images)
            if boxes is not None:
                channels = kwargs["images_kwargs"].get("input_data_format")
                labels = self.boxes_to_labels(boxes, [get_picture_size(image, channels) for image in images])
            features.update(self.image_processor(images, **kwargs["images_kwargs"]))
            if boxes is not None:
                features["labels"] = labels.numpy()
        return BatchFeature(features, tensor_type=kwargs["text_kwargs"].get("return_tensors"))

    @staticmethod
    def check_text(text: str | list[str]) -> list[str]:
        try:
            text = [text] if isinstance(text, str) else list(text)
        except TypeError as error:
            raise ValueError(f"Expected an expression or a list of them, got a {type(text).__name__}.") from error
        if not text:
            raise ValueError("There are no expressions to process.")
        for index, expression in enumerate(text):
            if not isinstance(expression, str):
                raise ValueError(f"Expression {index} is a {type(expression).__name__}, not a string.")
            if any("\ud800" <= character <= "\udfff" for character in expression):
                raise ValueError(f"Expression {index} is not valid Unicode: it has half of a surrogate pair.")
            if not is_visible(expression):
                raise ValueError(f"Expression {index} is empty. Say which object is meant.")
        return text

    def _check_length(self, input_ids):
        longest, limit = max(len(ids) for ids in input_ids), self.tokenizer.model_max_length
        if longest > limit:
            raise ValueError(
                f"An expression has {longest} tokens, but the model reads at most {limit}. Shorten it, or cut it with "
                f"`truncation=True` and no `max_length` beyond {limit}."
            )

    def boxes_to_labels(self, boxes: list, target_sizes: list[tuple[int, int]]) -> torch.Tensor:
        """
        Turn pixel boxes into the labels that the model learns from.

        Args:
            boxes (`list[list[float] | None]`):
                Boxes as (x0, y0, x1, y1) in pixels; `None` where nothing fits.
            target_sizes (`list[tuple[int, int]]`):
                (height, width) of every picture in pixels.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 4)`: (center_x, center_y, width, height) relative to the picture; a
            row of NaN where nothing fits.

        Raises:
            ValueError: if the numbers differ, or a box has no area, is not finite, or lies outside its picture by more
                than half a pixel.
        """
        if len(boxes) != len(target_sizes):
            raise ValueError(f"Got {len(boxes)} boxes but {len(target_sizes)} pictures.")
        labels = []
        for index, (box, (height, width)) in enumerate(zip(boxes, target_sizes)):
            if box is None:
                labels.append([float("nan")] * 4)
                continue
            try:
                x0, y0, x1, y1 = (float(value) for value in box)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Box {index}, {box}, is not four numbers (x0, y0, x1, y1).") from error
            inside = min(x0, y0) >= -ROUNDING and x1 <= width + ROUNDING and y1 <= height + ROUNDING
            x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
            if not (inside and x0 < x1 and y0 < y1):
                raise ValueError(
                    f"Box {index}, {box}, is not a box (x0, y0, x1, y1) within its picture of {width} x {height} pixels. "
                    "If it is (x, y, width, height), as in COCO, give (x, y, x + width, y + height)."
                )
            labels.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
        return torch.tensor(labels, dtype=torch.float32)

    def post_process_visual_grounding(self, outputs, target_sizes=None, threshold=None, text=None) -> list[dict]:
        """See [`ScanFormerImageProcessor.post_process_visual_grounding`]."""
        return self.image_processor.post_process_visual_grounding(outputs, target_sizes, threshold, text)

    def to_dict(self) -> dict[str, Any]:
        return renew_code_entries(super().to_dict(), processor_code_entries)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"] + self.image_processor.model_input_names


def _as_list(boxes) -> list:
    """A list of boxes, also of a single one."""
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    if not isinstance(boxes, Iterable) or isinstance(boxes, (str, bytes)):
        raise ValueError(f"`boxes` is a list of boxes (x0, y0, x1, y1), one for every picture, not {boxes!r}.")
    boxes = list(boxes)
    is_box = len(boxes) == 4 and all(np.ndim(value) == 0 and value is not None for value in boxes)
    return [boxes] if is_box else boxes


__all__ = ["ScanFormerProcessor"]
