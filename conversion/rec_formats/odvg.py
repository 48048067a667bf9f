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
ODVG, the form of Open-GroundingDino and MMDetection: a line of JSON for each caption, with regions and their phrases.

A caption with one region is one sample, and the caption its expression. With several regions each phrase is a sample;
one that means several boxes is left out.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from .records import (
    SEVERAL_TARGETS,
    FormatError,
    Problem,
    ReadOptions,
    Record,
    attempt,
    demand,
    expand_folder,
    name_id,
    split_of_file,
)


FORM = "odvg: lines of JSON with filename and grounding"


def find_files(path: str, options: ReadOptions) -> list[str]:
    return expand_folder(path, ("*.jsonl",))


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    split = split_of_file(path, options)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield from _read_line(line, number, path, split, options)
    except OSError as error:
        raise FormatError(f"{path}: {error}") from error


def _read_line(line: bytes, number: int, path: str, split: str, options: ReadOptions) -> Iterator[Record | Problem]:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        demand(number > 1, path, FORM)
        yield Problem("malformed record", split, f"{where}: not a whole line of JSON in UTF-8: {error}")
        return
    demand(number > 1 or (isinstance(entry, dict) and "filename" in entry and "grounding" in entry), path, FORM)
    source = options.source or Path(path).stem
    targets = attempt(split, where, _targets, entry)
    if isinstance(targets, Problem):
        yield targets
        return
    for expression, boxes in targets.items():
        if len(boxes) > 1:
            yield Problem(SEVERAL_TARGETS, split, f'{where}: {len(boxes)} boxes for "{expression}"')
            continue
        yield attempt(split, where, _record, entry, expression, boxes, where, split, source)


def _record(entry: dict, expression: str, boxes: list, where: str, split: str, source: str) -> Record:
    return Record(
        where=where,
        split=split,
        expression=expression,
        box=tuple(float(value) for value in boxes[0]) if boxes else None,
        picture=entry["filename"],
        source=source,
        size=(entry["width"], entry["height"]),
        image_id=name_id(entry["filename"]),
    )


def _targets(entry: dict) -> dict[str, list]:
    """Boxes of each expression."""
    grounding = entry["grounding"]
    regions = grounding["regions"]
    if len(regions) <= 1:
        return {grounding["caption"]: _boxes(regions[0]) if regions else []}
    boxes = defaultdict(list)
    for region in regions:
        phrase = region["phrase"]
        boxes[phrase if isinstance(phrase, str) else ", ".join(phrase)] += _boxes(region)
    return boxes


def _boxes(region: dict) -> list[list[float]]:
    """A region has one box, or a list of them."""
    return region["bbox"] if isinstance(region["bbox"][0], list) else [region["bbox"]]
