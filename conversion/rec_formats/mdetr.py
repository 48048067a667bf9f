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
"""MDETR's `finetune_*.json`: COCO's form with one entry of `images` for each sentence, its caption."""

from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter

from .records import (
    SEVERAL_TARGETS,
    Problem,
    ReadOptions,
    Record,
    attempt,
    by_id,
    corners,
    demand,
    expand_folder,
    load_json,
    split_of_file,
)


FORM = "mdetr: a dict of images with captions, and annotations"


def find_files(path: str, options: ReadOptions) -> list[str]:
    return expand_folder(path, ("finetune_*.json",))


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    content = load_json(path)
    demand(isinstance(content, dict) and all(content.get(key) for key in ("images", "annotations")), path, FORM)
    demand(isinstance(content["images"], list) and "caption" in content["images"][0], path, FORM)
    split = split_of_file(path, options)
    categories = by_id(content.get("categories", ()))
    annotations = defaultdict(list)
    for number, annotation in enumerate(content["annotations"]):
        image_id = attempt(split, f"{path}, annotation {number}", itemgetter("image_id"), annotation)
        if isinstance(image_id, Problem):
            yield image_id
        else:
            annotations[image_id].append(annotation)

    def record_of(image: dict, where: str) -> Record:
        annotation = annotations[image["id"]][0]
        return Record(
            where=where,
            split=split,
            expression=image["caption"],
            # gRefCOCO in this form says "empty" of what has no target
            box=None if annotation.get("empty") else corners(annotation["bbox"]),
            picture=image["file_name"],
            source=options.source or image["dataset_name"],
            size=(image["width"], image["height"]),
            image_id=str(image["original_id"]),
            sentence_id=str(image["id"]),
            category=categories.get(annotation["category_id"], {}).get("name"),
            segmentation=annotation.get("segmentation"),
        )

    for number, image in enumerate(content["images"]):
        where = f"{path}, image entry {number}"
        image_id = attempt(split, where, itemgetter("id"), image)
        if isinstance(image_id, Problem):
            yield image_id
            continue
        where, found = f"{path}, image entry {image_id}", annotations.get(image_id, [])
        if not found:
            yield Problem("no annotation", split, f"{where}: it has no annotation")
        elif len(found) > 1:
            yield Problem(SEVERAL_TARGETS, split, f"{where}: {len(found)} objects, where one box is asked for")
        else:
            yield attempt(split, where, record_of, image, where)
