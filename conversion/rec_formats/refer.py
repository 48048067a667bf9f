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
The refer API's form: `refs(unc).p`, a pickle of Python 2, beside `instances.json`, for RefCOCO, RefCOCO+, RefCOCOg and
ReferItGame (refclef); and gRefCOCO's, where `grefs(unc).json` may name no object or several.
"""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

from ..restricted_pickle import load_plain_pickle
from .records import (
    SEVERAL_TARGETS,
    FormatError,
    Problem,
    ReadOptions,
    Record,
    attempt,
    by_id,
    corners,
    demand,
    load_json,
)


FORM = "refer: a list of refs with sentences, beside an instances.json"


def find_files(path: str, options: ReadOptions) -> list[str]:
    """The file of refs; `instances.json` lies beside it."""
    folder = Path(path)
    if not (folder if folder.is_dir() else folder.parent).joinpath("instances.json").is_file():
        raise FormatError(f"{path}: there is no instances.json {'in' if folder.is_dir() else 'beside'} it.")
    if not folder.is_dir():
        named = re.search(r"\((\w+)\)", folder.name)
        if named and options.split_by not in (None, named[1]):
            raise FormatError(f"{path}: these refs are split by {named[1]}, not by {options.split_by}.")
        return [path]
    if options.split_by is None:
        kinds = sorted(file.name for file in folder.iterdir() if re.search(r"refs\(\w+\)", file.name))
        raise FormatError(f"{path}: say which of {kinds or 'its refs'} with --split-by.")
    for name in (f"refs({options.split_by}).p", f"grefs({options.split_by}).json"):
        if (folder / name).is_file():
            return [str(folder / name)]
    raise FormatError(f"{path}: neither refs({options.split_by}).p nor grefs({options.split_by}).json is in it.")


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    refs = _load_refs(path)
    instances_file = str(Path(path).parent / "instances.json")
    instances = load_json(instances_file)
    keys = ("images", "annotations", "categories")
    demand(isinstance(instances, dict) and all(key in instances for key in keys), instances_file, FORM)
    images, annotations, categories = (by_id(instances[key]) for key in keys)
    split_by = re.search(r"\((\w+)\)", Path(path).name)
    source = options.source or "_".join([Path(path).resolve().parent.name, *(split_by.groups() if split_by else ())])

    # sentences of one picture side by side: a shard then stores the picture once
    for ref in sorted(refs, key=lambda ref: str(ref.get("image_id"))):
        where = f"{path}, ref {ref.get('ref_id')}"
        split = options.split or str(ref.get("split", "train"))
        targets = attempt(split, where, _targets, ref, annotations, categories)
        if isinstance(targets, Problem):
            yield targets
            continue
        if len(targets) > 1:
            yield Problem(SEVERAL_TARGETS, split, f"{where}: {len(targets)} objects, where one box is asked for")
            continue
        if not ref.get("sentences"):
            yield Problem("no sentence", split, f"{where}: it has no sentence")
            continue
        picture = attempt(split, where, _picture, ref, images)
        if isinstance(picture, Problem):
            yield picture
            continue
        shared = {**picture, **(targets[0] if targets else {"box": None}), "split": split, "source": source}
        for sentence in ref["sentences"]:
            yield attempt(split, where, _record, ref, sentence, where, shared)


def _load_refs(path: str) -> list[dict]:
    if path.endswith(".json"):
        refs = load_json(path)
    else:
        try:
            refs = load_plain_pickle(path)
        except (OSError, pickle.UnpicklingError) as error:
            raise FormatError(f"{path}: not a pickle of plain data: {error}.") from error
    demand(
        isinstance(refs, list) and all(isinstance(ref, dict) and "ref_id" in ref for ref in refs),
        path,
        FORM,
    )
    return refs


def _record(ref: dict, sentence: dict, where: str, shared: dict) -> Record:
    return Record(
        where=f"{where}, sentence {sentence['sent_id']}",
        expression=sentence["sent"],
        image_id=str(ref["image_id"]),
        ref_id=str(ref["ref_id"]),
        sentence_id=str(sentence["sent_id"]),
        **shared,
    )


def _targets(ref: dict, annotations: dict, categories: dict) -> list[dict]:
    """The objects that a ref means: one; none where gRefCOCO says -1; several."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    if ids == [-1]:
        return []
    unknown = [annotation_id for annotation_id in ids if annotation_id not in annotations]
    if unknown:
        raise ValueError(f"instances.json has no annotation {unknown[0]}")
    return [
        {
            "box": corners(annotations[annotation_id]["bbox"]),
            "category": categories.get(annotations[annotation_id]["category_id"], {}).get("name"),
            "segmentation": annotations[annotation_id].get("segmentation"),
        }
        for annotation_id in ids
    ]


def _picture(ref: dict, images: dict) -> dict:
    image = images.get(ref["image_id"])
    if image is None:
        # refs name the picture too, with the annotation's id before the dot
        return {"picture": re.sub(r"_\d+(?=\.\w+$)", "", ref["file_name"])}
    return {"picture": image["file_name"], "size": (image["width"], image["height"])}
