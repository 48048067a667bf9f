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
Copies of the RefCOCO family on the Hub, or their parquet files in a folder, by a map of their columns.

lmms-lab's copies hold the pictures, but only validation and test splits, and `val` of RefCOCO and RefCOCOg has as many
rows as unc's (umd's) and google's together (8,811 = 3,811 + 5,000; 7,573 = 2,573 + 5,000): good for trying a model, not
for a number beside the literature's. jxu124's copies have all splits and sentences, and name the pictures only.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets

from .records import FormatError, Problem, ReadOptions, Record, attempt, coco_id, corners


FORM = "hub: the columns of lmms-lab/RefCOCO or jxu124/refcoco"


def find_files(path: str, options: ReadOptions) -> list[str]:
    return [path]


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    local = Path(path).is_dir()
    try:
        loaded = datasets.load_dataset("parquet" if local else path, data_dir=path if local else None, streaming=True)
    # there is no common class of what a Hub, a network and a parquet file can raise
    except Exception as error:
        raise FormatError(f"{path}: {error}") from error
    for name, rows in loaded.items():
        columns = set(rows.column_names or ())
        to_records = next((make for needed, make in COLUMN_MAPS if needed <= columns), None)
        if to_records is None:
            raise FormatError(f"{path}: not of the form {FORM}; its columns are {sorted(columns)}.")
        if "image" in columns:
            rows = rows.cast_column("image", datasets.Image(decode=False))
        source = options.source or Path(path).name
        for number, row in enumerate(rows):
            where = f"{path}, {name} {number}"
            split = options.split or row.get("split") or name
            records = attempt(split, where, to_records, row, where, split, source)
            if isinstance(records, list) and not records:
                records = Problem("no sentence", split, f"{where}: it has no sentence")
            yield from [records] if isinstance(records, Problem) else records


def _from_lmms_lab(row: dict, where: str, split: str, source: str) -> list[Record]:
    """`bbox` is (x, y, width, height); `answer` holds the sentences; the picture is there."""
    return [
        Record(
            where=f"{where}, sentence {number}",
            split=split,
            expression=sentence,
            box=corners(row["bbox"]),
            picture=row["image"]["bytes"],
            source=source,
            image_id=coco_id(row["file_name"]),
            ref_id=str(row["question_id"]),
            file_name=row["file_name"],
            segmentation=[row["segmentation"]] if row.get("segmentation") else None,
        )
        for number, sentence in enumerate(row["answer"])
    ]


def _from_jxu124(row: dict, where: str, split: str, source: str) -> list[Record]:
    """`bbox` is (x0, y0, x1, y1) already; the picture is named; the annotation is a string of JSON."""
    annotation, image = json.loads(row["raw_anns"]), json.loads(row["raw_image_info"])
    return [
        Record(
            where=f"{where}, sentence {sentence['sent_id']}",
            split=split,
            expression=sentence["sent"],
            box=tuple(float(value) for value in row["bbox"]),
            picture=row["image_path"],
            source=source,
            size=(image["width"], image["height"]),
            image_id=str(row["image_id"]),
            ref_id=str(row["ref_id"]),
            sentence_id=str(sentence["sent_id"]),
            segmentation=annotation.get("segmentation"),
        )
        for sentence in row["sentences"]
    ]


COLUMN_MAPS = (
    ({"question_id", "image", "answer", "bbox", "file_name"}, _from_lmms_lab),
    ({"sentences", "bbox", "image_path", "ref_id", "raw_anns", "raw_image_info"}, _from_jxu124),
)
