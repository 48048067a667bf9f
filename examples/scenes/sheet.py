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
Draw a sheet of examples, each with its expression and the box it refers to.

    python -m examples.scenes.sheet --output examples/scenes/sheet.jpg
"""

import textwrap
from dataclasses import dataclass, field

from PIL import Image, ImageDraw
from transformers import HfArgumentParser

from .dataset import ScenesDataset
from .levels import LEVELS, SPLITS, level_of


CELL = 300
CAPTION = 54
FRAME = (255, 0, 200)


@dataclass
class SheetArguments:
    output: str = field(metadata={"help": "Picture to write; its ending gives the format."})
    split: str | None = field(default=None, metadata={"help": f"One of {', '.join(SPLITS)}; else some of each."})
    level: str = field(default="standard", metadata={"help": f"One of {', '.join(LEVELS)}."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    rows: int = field(default=3, metadata={"help": "Rows of pictures."})
    columns: int = field(default=4, metadata={"help": "Pictures in a row."})


def draw_sheet(arguments: SheetArguments) -> Image.Image:
    """A picture with `rows` x `columns` samples."""
    # Without a split, half the sheet shows what training sees, and the rest what the special test splits ask.
    splits = [arguments.split] if arguments.split else ["train", *_special_splits(arguments.level)]
    count = arguments.rows * arguments.columns
    special = splits[1:]
    names = [splits[0]] * (count - len(special)) + special if count > len(special) else splits[:count]
    sheet = Image.new("RGB", (arguments.columns * CELL, arguments.rows * (CELL + CAPTION)), "white")
    for number, name in enumerate(names):
        sample = ScenesDataset(name, arguments.seed, level=arguments.level)[number]
        title = sample["expression"] if name == splits[0] else f"[{name}] {sample['expression']}"
        column, row = number % arguments.columns, number // arguments.columns
        _draw_sample(sheet, column * CELL, row * (CELL + CAPTION), sample, title)
    return sheet


def _special_splits(level: str) -> list[str]:
    """The special test splits that a level has."""
    special = []
    for name, split in SPLITS.items():
        try:
            level_of(level, split.kind)
        except ValueError:
            continue
        special += [name] if name.startswith("test-") else []
    return special


def _draw_sample(sheet: Image.Image, left: int, top: int, sample: dict, title: str) -> None:
    image = sample["image"]
    scale = (CELL - 8) / max(image.size)
    image = image.resize([round(scale * length) for length in image.size], Image.Resampling.LANCZOS)
    left, top = left + (CELL - image.width) // 2, top + CELL - 4 - image.height
    sheet.paste(image, (left, top))
    draw = ImageDraw.Draw(sheet)
    x0, y0, x1, y1 = (scale * side for side in sample["bbox"])
    draw.rectangle((left + x0 - 3, top + y0 - 3, left + x1 + 2, top + y1 + 2), outline=FRAME, width=2)
    caption = "\n".join(textwrap.wrap(title, 44)[:3])
    center = left + image.width / 2
    draw.multiline_text((center, top + image.height + 3), caption, fill="black", font_size=12, anchor="ma")


def main() -> None:
    parser = HfArgumentParser(SheetArguments)
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        draw_sheet(arguments).save(arguments.output, quality=88, optimize=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
