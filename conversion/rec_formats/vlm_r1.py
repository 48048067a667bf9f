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
"""VLM-R1's json: a list of samples with a caption and its solution, a box or null where there is no such object."""

from collections.abc import Iterator
from pathlib import Path

from .records import (
    Problem,
    ReadOptions,
    Record,
    attempt,
    demand,
    expand_folder,
    load_json,
    name_id,
    split_of_name,
)


FORM = "vlm-r1: a list of samples with image, normal_caption and solution"


def find_files(path: str, options: ReadOptions) -> list[str]:
    return expand_folder(path, ("*.json",))


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    samples = load_json(path)
    demand(isinstance(samples, list) and samples and isinstance(samples[0], dict), path, FORM)
    demand(all(key in samples[0] for key in ("image", "normal_caption", "solution")), path, FORM)
    for number, sample in enumerate(samples):
        where = f"{path}, sample {number}"
        split = attempt("", where, _split, sample, path, options)
        yield (
            split
            if isinstance(split, Problem)
            else attempt(split, where, _record, sample, where, split, path, options)
        )


def _split(sample: dict, path: str, options: ReadOptions) -> str:
    # "dataset" is "refcoco_val" or the like, and more to be trusted than the file's name
    return split_of_name(f"{Path(path).stem}_{sample.get('dataset', '')}", path, options)


def _record(sample: dict, where: str, split: str, path: str, options: ReadOptions) -> Record:
    return Record(
        where=where,
        split=split,
        expression=sample["normal_caption"],
        box=None if sample["solution"] is None else tuple(float(value) for value in sample["solution"]),
        picture=sample["image"],
        source=options.source or str(sample.get("dataset") or Path(path).stem),
        size=(sample["width"], sample["height"]),
        image_id=name_id(sample["image"]),
    )
