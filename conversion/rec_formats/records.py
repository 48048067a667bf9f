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
"""What every form is read into."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass
class Record:
    """
    One expression with its picture and box, before the picture has been looked at.

    Args:
        where (`str`):
            File and record, for messages.
        split (`str`):
            Name of the split.
        expression (`str`):
            The expression.
        box (`tuple[float, float, float, float]`, *optional*):
            (x0, y0, x1, y1) in pixels; `None` if the picture shows no such object.
        picture (`str` or `bytes`):
            Name of the picture's file, or its contents.
        source (`str`):
            The data set it is from.
        size (`tuple[int, int]`, *optional*):
            Width and height that the source states.
        image_id, ref_id, sentence_id (`str`, *optional*):
            As the source has them.
        file_name (`str`, *optional*):
            Name of the picture's file, where `picture` is its contents.
        category (`str`, *optional*):
            Name of the object's category.
        segmentation (`list` or `dict`, *optional*):
            COCO's polygons or run length encoding.
    """

    where: str
    split: str
    expression: str
    box: tuple[float, float, float, float] | None
    picture: str | bytes
    source: str
    size: tuple[int, int] | None = None
    image_id: str | None = None
    ref_id: str | None = None
    sentence_id: str | None = None
    file_name: str | None = None
    category: str | None = None
    segmentation: list | dict | None = None

    def __post_init__(self):
        # the split becomes a file's name
        if not re.fullmatch(r"\w+", self.split):
            raise ValueError(f"{self.split!r} can't be the name of a split")
        if not isinstance(self.expression, str) or not isinstance(self.picture, str | bytes):
            raise TypeError("its expression or its picture is missing")
        if self.box is not None and len(self.box) != 4:
            raise ValueError(f"{self.box} is no box")


# What isn't an error of the source, but no single-box sample either: always left out, and counted.
SEVERAL_TARGETS = "several targets"


@dataclass
class Problem:
    """Something that gives no sample: what kind, which split (empty if unknown), and file, record and reason."""

    kind: str
    split: str
    message: str


class RecordError(Exception):
    """A record that can't become a row. `kind` is what is counted, the text says the rest."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class FormatError(Exception):
    """A file that can't be read, or not as the form that was stated."""


# What reading an entry raises that lacks what its form has.
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass
class ReadOptions:
    """
    Args:
        split (`str`, *optional*):
            Split of the records, where they don't say it and the file's name neither.
        source (`str`, *optional*):
            Name of the data set, if not what the files say.
        split_by (`str`, *optional*):
            Who made the splits: unc, google, umd, berkeley.
    """

    split: str | None = None
    source: str | None = None
    split_by: str | None = None


_SPLITS = re.compile(r"(?:^|[_\-.])(train|val|validation|test[ABC]?)(?=$|[_\-.])")
_COCO_NAME = re.compile(r"^(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?\.\w+$")


def split_of_file(path: str, options: ReadOptions) -> str:
    """The split that was asked for, or the last one in the file's name (`finetune_refcoco+_testA.json`)."""
    return split_of_name(Path(path).stem, path, options)


def split_of_name(name: str, path: str, options: ReadOptions) -> str:
    """As [`split_of_file`], by a name that a file gives."""
    names = _SPLITS.findall(name)
    if options.split is None and not names:
        raise FormatError(f"{path}: its name doesn't say which split it holds; say so with --split.")
    return options.split or names[-1]


def coco_id(file_name: str) -> str | None:
    """`COCO_train2014_000000581857.jpg` and `000000581857.jpg` are COCO's picture 581857; others have no such id."""
    match = _COCO_NAME.match(PurePosixPath(file_name).name)
    return str(int(match[1])) if match else None


def name_id(file_name: str) -> str:
    """An id for pictures that have none but their file's name."""
    return coco_id(file_name) or PurePosixPath(file_name).stem


def corners(box: list[float]) -> tuple[float, float, float, float]:
    """(x, y, width, height) as (x0, y0, x1, y1)."""
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def load_json(path: str):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not a whole JSON file: {error}") from error


def demand(condition: bool, path: str, form: str):
    """Raise a [`FormatError`] unless a file looks like the form that was stated."""
    if not condition:
        raise FormatError(f"{path}: not of the form {form}.")


def by_id(entries: list[dict]) -> dict:
    """Entries by their id. What has none can't be referred to, and whatever should have is reported where it does."""
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def expand_folder(path: str, patterns: tuple[str, ...]) -> list[str]:
    """A file, or the files of a folder that a form may be in."""
    if not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for pattern in patterns for file in Path(path).glob(pattern))
    if not files:
        raise FormatError(f"{path}: no {' or '.join(patterns)} in this folder.")
    return files


def attempt(split: str, where: str, function, *args):
    """What `function(*args)` returns; if the record lacks what its form has, a [`Problem`] instead."""
    try:
        return function(*args)
    except (FormatError, *MALFORMED) as error:
        return Problem("malformed record", split, f"{where}: {type(error).__name__}: {error}")
