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
"""What can be wrong with the samples of a data set, and how it is said."""

import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import PIL.ExifTags
import PIL.Image

from modeling_scanformer.processing_scanformer import ROUNDING, is_visible


BBOX_FORMATS = ("xyxy", "xywh")
SIZE_COLUMNS = ("width", "height")

# So many faults are shown at once.
SHOWN_PROBLEMS = 5
# A few senseless boxes are mistakes; with more, the form of all of them is in doubt.
SUSPICIOUS_SHARE = 0.05


class DataError(ValueError):
    """Something that the user of a data set or model has to mend; its message says what and where."""


def make_folder(path: str | Path):
    """
    Make the folder that results go to, before the work that leads to them.

    Raises:
        DataError: if that cannot be, or nothing can be written there.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write to the folder {path}: {error}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"Cannot write to the folder {path}: permission denied.")


@dataclass(frozen=True)
class Problem:
    """A sample that cannot be used."""

    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column!r}: {self.reason}"


def to_corners(box, bbox_format: str):
    """A box as (x0, y0, x1, y1). What is no box stays as it is, to be told by [`find_box_problem`]."""
    if box is None:
        return None
    try:
        x, y, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError):
        return box
    return [x, y, right, bottom] if bbox_format == "xyxy" else [x, y, x + right, y + bottom]


def find_problems(rows: datasets.Dataset, bbox_format: str = "xyxy") -> list[Problem]:
    """Senseless boxes and expressions. No picture is decoded: boxes are held against the columns width and height."""
    wanted = [column for column in ("expression", "bbox", *SIZE_COLUMNS) if column in rows.column_names]
    found = (find_problem(row, sample, bbox_format) for row, sample in enumerate(rows.select_columns(wanted)))
    return [problem for problem in found if problem is not None]


def find_problem(row: int, sample: dict, bbox_format: str = "xyxy") -> Problem | None:
    """What is wrong with a sample, as far as it can be told without its picture."""
    reason = find_expression_problem(sample["expression"])
    if reason:
        return Problem(row, "expression", reason)
    box = to_corners(sample["bbox"], bbox_format)
    reason = find_box_problem(box, sample.get("width"), sample.get("height"))
    return Problem(row, "bbox", reason) if reason else None


def confirm_problem(problem: Problem, sample: dict, bbox_format: str) -> Problem | None:
    """
    What is wrong with a sample by its picture's header. The columns width and height may tell of something else: the file as
    it is stored, while the picture is shown turned, or the object.
    """
    size = read_picture_size(sample["image"]) if problem.column == "bbox" else {}
    if not size:
        return problem
    reason = find_box_problem(to_corners(sample["bbox"], bbox_format), **size)
    return Problem(problem.row, "bbox", reason) if reason else None


def find_expression_problem(expression) -> str | None:
    if not isinstance(expression, str):
        return f"{expression!r} is not a text"
    return None if is_visible(expression) else "the expression is empty"


def find_box_problem(box, width: int | None, height: int | None) -> str | None:
    """
    What is wrong with a box, as far as it can be told without or with the size of its picture. A size that is no number, as a
    column of somebody's may hold, is none.
    """
    if box is None:
        return None
    width, height = (side if isinstance(side, (int, float)) else None for side in (width, height))
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        return f"{box!r} is not four numbers (x0, y0, x1, y1), nor null where nothing fits"
    shown = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return f"{shown} holds NaN or infinity"
    right, bottom = (math.inf if side is None else side for side in (width, height))
    if min(x0, y0) < -ROUNDING or x1 > right + ROUNDING or y1 > bottom + ROUNDING:
        size = "" if width is None or height is None else f" of {width} x {height} pixels"
        return f"{shown} is not (x0, y0, x1, y1) within its picture{size}"
    has_area = max(x0, 0.0) < min(x1, right) and max(y0, 0.0) < min(y1, bottom)
    return None if has_area else f"{shown} has no area as (x0, y0, x1, y1)"


def suggest_bbox_format(samples: Iterable[dict], num_problems: int, bbox_format: str) -> str | None:
    """
    The other form of boxes, where it makes sense of all of them and the given form does not.

    Args:
        samples (`Iterable[dict]`):
            With "bbox" and, where known, "width" and "height".
        num_problems (`int`):
            How many of them make no sense in the given form.
        bbox_format (`str`):
            The given form.
    """
    samples = [sample for sample in samples if sample["bbox"] is not None]
    if num_problems < max(1, SUSPICIOUS_SHARE * len(samples)):
        return None
    other = BBOX_FORMATS[1 - BBOX_FORMATS.index(bbox_format)]
    for sample in samples:
        if find_box_problem(to_corners(sample["bbox"], other), sample.get("width"), sample.get("height")):
            return None
    return other


def check_boxes_are_pixels(boxes: Iterable, bbox_format: str):
    """
    Raises:
        DataError: if all boxes lie within 0 and 1, as relative ones do. In pixels, they would show next to nothing.
    """
    example = None
    for box in boxes:
        corners = to_corners(box, bbox_format)
        if corners is not None and (find_box_problem(corners, None, None) or max(corners) > 1):
            return
        example = example or corners
    if example is not None:
        shown = ", ".join(f"{value:g}" for value in example)
        raise DataError(
            f"All boxes lie between 0 and 1, such as ({shown}): they seem to be relative to their pictures. Give them in "
            "pixels: multiply them by the picture's width and height."
        )


def check_picture_column(features: dict, column: str):
    """
    Raises:
        DataError: if what is known of a column, by `datasets`, is not that of pictures: their files or their names.
    """
    feature = features.get(column)
    # "null" where no row has one
    files = ("string", "large_string", "binary", "large_binary", "null")
    is_file = isinstance(feature, datasets.Value) and feature.dtype in files
    if feature is not None and not is_file and not isinstance(feature, (datasets.Image, dict)):
        raise DataError(
            f"The column {column!r} holds no pictures but {feature}. Say what they are called: --image_column."
        )


def describe_problems(problems: list[Problem], num_rows: int, bbox_format: str | None = None) -> str:
    """The text of an error; `bbox_format` is what [`suggest_bbox_format`] suggests."""
    lines = [f"{len(problems)} of {num_rows} rows cannot be used (leave them out by on_error 'skip'):"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    if bbox_format is not None:
        lines.append(f"All boxes make sense as {bbox_format}: is that their form (--bbox_format {bbox_format})?")
    return "\n".join(lines)


def read_picture_size(image: dict) -> dict[str, int]:
    """
    Width and height of an undecoded picture, upright, from its file's header; nothing where that cannot be read.
    """
    try:
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        with PIL.Image.open(source) as picture:
            turned = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            width, height = picture.size[::-1] if turned else picture.size
    except (
        Exception
    ):  # there may be none, and damaged files make Pillow fail in many ways, and are told when they are decoded
        return {}
    return {"width": width, "height": height}
