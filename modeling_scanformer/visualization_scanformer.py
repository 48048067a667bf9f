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
"""The picture that explains a scan."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .image_processing_scanformer import read_image


if TYPE_CHECKING:
    from .processing_scanformer import ScanFormerProcessor


# One per scale, coarse first; further scales start over.
SCALE_COLORS = ("red", "lime", "blue", "magenta", "orange")
_GAP = 8


def rebuild_seen_image(image: Image.Image, selection: list[np.ndarray], patch_size: int) -> Image.Image:
    """
    The picture as the model saw it: every spot in the detail of the finest patch that was read there.

    Args:
        image (`PIL.Image.Image`):
            The upright picture.
        selection (`list[np.ndarray]`):
            Boolean grids (rows, columns) of the patches read, scale by scale, coarse first.
        patch_size (`int`):
            Side of a patch in pixels.

    Returns:
        `PIL.Image.Image`: of the original size.
    """
    rows, columns = selection[-1].shape
    seen = None
    for grid in selection:
        # what this scale shows of the picture, its selected patches laid over the coarser scales
        level = image.resize((grid.shape[1] * patch_size, grid.shape[0] * patch_size), Image.Resampling.BOX)
        level = level.resize((columns * patch_size, rows * patch_size), Image.Resampling.NEAREST)
        mask = Image.fromarray(grid.astype(np.uint8) * 255).resize(level.size, Image.Resampling.NEAREST)
        seen = level if seen is None else Image.composite(level, seen, mask)
    return seen.resize(image.size, Image.Resampling.NEAREST)


def draw_scan(image: "str | Image.Image", answer: dict[str, Any], processor: "ScanFormerProcessor") -> Image.Image:
    """
    Draw a scan: left the picture with every scale's box in its own colour (red, green, blue from coarse to fine), right
    the picture as the model saw it.

    Args:
        image (`str` or `PIL.Image.Image`):
            The picture that was scanned.
        answer (`dict`):
            What `pipeline("visual-grounding")` gave for it, with `return_scan=True`.
        processor ([`ScanFormerProcessor`]):
            The processor of the pipeline.

    Returns:
        `PIL.Image.Image`: the drawing.

    Raises:
        ValueError: if the answer holds no scan.
    """
    if answer is None or "scan" not in answer:
        raise ValueError(
            "There is no scan to draw: call the pipeline with `return_scan=True` and without `threshold`."
        )
    image = read_image(image)
    scan = answer["scan"]
    seen = rebuild_seen_image(image, scan["selection"], processor.image_processor.patch_size)
    font = ImageFont.load_default(size=max(12, image.width // 40))
    line_height = round(font.size * 1.4)
    width = 2 * image.width + 3 * _GAP
    # what a line of the drawing's width holds of a long expression, by the width of a letter
    letters = max(40, int((width - 2 * _GAP) / font.getlength("n")))
    lines = [(line, "black") for line in textwrap.wrap(answer["label"], letters)]
    for scale, (score, grid) in enumerate(zip(scan["scores"], scan["selection"])):
        color = SCALE_COLORS[scale % len(SCALE_COLORS)]
        lines.append((f"scale {scale}: score {score:.2f}, {grid.mean():.0%} of {grid.size} patches read", color))

    width = max(width, 2 * _GAP + math.ceil(max(font.getlength(line) for line, _ in lines)))
    canvas = Image.new("RGB", (width, image.height + 2 * _GAP + line_height * len(lines) + _GAP), "white")
    canvas.paste(image, (_GAP, _GAP))
    canvas.paste(seen, (image.width + 2 * _GAP, _GAP))
    draw = ImageDraw.Draw(canvas)
    thickness = max(2, image.width // 200)
    for scale, box in enumerate(scan["boxes"]):
        corners = [(box["xmin"] + _GAP, box["ymin"] + _GAP), (box["xmax"] + _GAP, box["ymax"] + _GAP)]
        draw.rectangle(corners, outline=SCALE_COLORS[scale % len(SCALE_COLORS)], width=thickness)
    for number, (line, color) in enumerate(lines):
        draw.text((_GAP, image.height + 2 * _GAP + number * line_height), line, fill=color, font=font)
    return canvas


def stack_drawings(drawings: list[Image.Image]) -> Image.Image:
    """Put drawings below each other."""
    canvas = Image.new("RGB", (max(d.width for d in drawings), sum(d.height for d in drawings)), "white")
    top = 0
    for drawing in drawings:
        canvas.paste(drawing, (0, top))
        top += drawing.height
    return canvas


__all__ = ["draw_scan", "rebuild_seen_image", "stack_drawings"]
