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
"""How a scan looks on the page."""

import base64
from html import escape
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from streaming import ScanState
from transformers import Pipeline


# One per expression. Okabe and Ito's palette without its black and yellow, which colour-blind people too tell apart.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A4FBF", "#8C6D31")
# What was not read at a scale fades towards this gray.
UNREAD = Image.new("RGB", (1, 1), "#808080")
# Longest edges in pixels.
ANSWER_SIZE, TILE_SIZE = 768, 384

STYLE = """
.answer h3 { margin: 0 0 .4em; }
.answer + .answer { margin-top: 1.6em; }
.answer .badge { color: white; border-radius: 4px; padding: 0 .45em; margin-right: .5em; }
.answer .bar { display: grid; grid-template-columns: 3.2em 1fr 5.2em; align-items: center; gap: .6em; }
.answer .bar div { height: .6em; border-radius: .3em; background: var(--border-color-primary); overflow: hidden; }
.answer .bar i { display: block; height: 100%; }
.answer p { margin: .3em 0 .8em; }
.answer .scales { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(11em, 1fr); gap: .8em; overflow-x: auto; }
.answer figure { margin: 0; }
.answer figure img { width: 100%; border-radius: 6px; margin: 0; }
.answer figcaption { font-size: .85em; margin-top: .3em; opacity: .75; }
#examples td { white-space: pre-line; text-align: left; }
"""


class ScanView:
    """
    Shows the states of a scan.

    Args:
        pipe (`Pipeline`):
            The pipeline whose model scans.
    """

    def __init__(self, pipe: Pipeline):
        # beside the pipeline's class: in the package, or among the files of the model's repository
        package = type(pipe).__module__.rpartition(".")[0]
        self._rebuild_seen_image = import_module(f"{package}.visualization_scanformer").rebuild_seen_image
        self._processor = pipe.processor.image_processor

    def draw_answers(self, state: ScanState) -> Image.Image:
        """The picture with the newest box of each expression, numbered where there are several."""
        drawing = _resize(state.image, ANSWER_SIZE)
        for number, answer in enumerate(state.answers):
            label = str(number + 1) if len(state.answers) > 1 else ""
            _draw_box(drawing, answer["box"], state.image.width, COLORS[number], label)
        return drawing

    def draw_scales(self, image: Image.Image, answer: dict[str, Any], color: str) -> list[Image.Image]:
        """
        For each scale what the model had seen of the picture by then, and its box. Patches that it did not read at that
        scale are faded.
        """
        scan = answer["scan"]
        # smaller than the model's picture it would hide what was seen
        original = _resize(image, max(TILE_SIZE, self._processor.size["longest_edge"]))
        drawings = []
        for scale, (box, grid) in enumerate(zip(scan["boxes"], scan["selection"])):
            seen = self._rebuild_seen_image(original, scan["selection"][: scale + 1], self._processor.patch_size)
            read = Image.fromarray(grid.astype(np.uint8) * 255).resize(seen.size, Image.Resampling.NEAREST)
            faded = Image.blend(seen, UNREAD.resize(seen.size), 0.65)
            drawings.append(_resize(Image.composite(seen, faded, read), TILE_SIZE))
            _draw_box(drawings[-1], box, image.width, color)
        return drawings

    def describe(self, state: ScanState) -> str:
        """HTML: for each expression its score, how much was read for it, and the scales."""
        return "".join(self._describe(number, answer, state) for number, answer in enumerate(state.answers))

    def _describe(self, number: int, answer: dict[str, Any], state: ScanState) -> str:
        color, scan = COLORS[number], answer["scan"]
        several = len(state.answers) > 1
        badge = f'<b class="badge" style="background: {color}">{number + 1}</b>' if several else ""
        read = sum(int(grid.sum()) for grid in scan["selection"])
        share = read / state.num_patches
        scales = "".join(
            f'<figure><img src="{_to_data_url(drawing)}" alt="What scale {scale} read">'
            f"<figcaption>Scale {scale}: {grid.sum()} of {grid.size} patches, score {score:.2f}</figcaption></figure>"
            for scale, (drawing, score, grid) in enumerate(
                zip(self.draw_scales(state.image, answer, color), scan["scores"], scan["selection"])
            )
        )
        return f"""
            <section class="answer">
                <h3>{badge}{escape(answer["label"])}</h3>
                {_bar("Score", answer["score"], f"{answer['score']:.2f}", color)}
                {_bar("Read", share, f"{read} / {state.num_patches}", color)}
                <p>{1 - share:.0%} of all patches left unread.</p>
                <div class="scales">{scales}</div>
            </section>"""


def _bar(name: str, share: float, text: str, color: str) -> str:
    filled = f'<i style="width: {share:.1%}; background: {color}"></i>'
    return f'<div class="bar"><span>{name}</span><div>{filled}</div><span>{text}</span></div>'


def _resize(image: Image.Image, longest_edge: int) -> Image.Image:
    """A copy of that size."""
    scale = longest_edge / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size])


def _draw_box(drawing: Image.Image, box: dict[str, int], original_width: int, color: str, label: str = ""):
    scale = drawing.width / original_width
    left, top, right, bottom = (box[side] * scale for side in ("xmin", "ymin", "xmax", "ymax"))
    draw = ImageDraw.Draw(drawing)
    # a white rim keeps the box visible on a ground of its own colour
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), outline="white", width=8)
    draw.rectangle((left, top, right, bottom), outline=color, width=4)
    if label:
        draw.rectangle((left, top, left + 24, top + 30), fill=color)
        font = ImageFont.load_default(size=22)
        draw.text((left + 12, top + 15), label, fill="white", font=font, anchor="mm")


def _to_data_url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
