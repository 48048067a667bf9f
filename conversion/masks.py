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
"""Masks from COCO's segmentations, without pycocotools."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw


def encode_mask(segmentation: list | dict, width: int, height: int) -> bytes:
    """
    Draw a segmentation as a PNG, 255 inside and 0 outside.

    Args:
        segmentation (`list` or `dict`):
            Polygons as lists (x0, y0, x1, y1, ...), or one or several run length encodings as COCO defines them.
        width (`int`):
            Width of the picture.
        height (`int`):
            Height of the picture.

    Raises:
        ValueError: if it is neither, or a run length encoding doesn't fill the picture.
    """
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for part in [segmentation] if isinstance(segmentation, dict) else segmentation:
        if isinstance(part, dict):
            mask.paste(255, mask=Image.fromarray(decode_rle(part, width, height)))
        elif isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0:
            draw.polygon([float(value) for value in part], fill=255)
        else:
            raise ValueError("A segmentation is a list of polygons with at least 3 points, or a run length encoding.")
    buffer = BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_rle(rle: dict, width: int, height: int) -> np.ndarray:
    """The mask of a run length encoding, (height, width) with 255 inside: runs of 0 and 1 in turn, column by column."""
    counts = rle["counts"] if isinstance(rle["counts"], list) else _decompress(rle["counts"])
    if list(rle["size"]) != [height, width] or sum(counts) != width * height or min(counts, default=0) < 0:
        raise ValueError(f"The run length encoding of size {rle['size']} does not fill a picture of {width}x{height}.")
    values = np.arange(len(counts)) % 2 * 255
    return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T


def _decompress(text: str | bytes) -> list[int]:
    """COCO's string form: 5 bits a character from "0" on, bit 5 goes on; from the third run on, differences."""
    characters = text.encode("latin-1") if isinstance(text, str) else text
    counts, value, shift = [], 0, 0
    for character in characters:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # negative
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    return counts
