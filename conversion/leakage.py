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
Which pictures of the evaluation splits occur in a training set?

    python -m conversion.leakage --train data/refcocog --evaluation data/refcoco --output leakage.json

RefCOCO, RefCOCO+ and RefCOCOg cut COCO's train2014 in different ways, so what trains one may test the other, and
pre-training on COCO has seen all of them. Pictures are compared by COCO's id and, for copies under other names, by a
perceptual hash.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .pictures import PictureSource
from .rec_formats.records import RecordError, coco_id


# What is read of a converted data set.
COLUMNS = ["image", "image_id", "split"]


@dataclass
class Arguments:
    train: list[str] = field(metadata={"help": "Converted data sets, or folders or zip files of pictures."})
    evaluation: list[str] = field(metadata={"help": "Converted data sets; all splits but train are looked at."})
    train_split: str = field(default="train", metadata={"help": "The split of a converted set that trains."})
    distance: int = field(
        default=6, metadata={"help": "Bits of 128 by which hashes of a picture's copies may differ."}
    )
    output: str | None = field(default=None, metadata={"help": "File for the whole report, the pictures' names too."})


def perceptual_hash(content: bytes) -> np.ndarray:
    """
    Whether brightness rises from each cell of a picture to the next, across and down: 2 x 64 bits, (2,) uint64.

    Of 60 photographs of rooms, copies that were scaled, squeezed or darkened and compressed hard differed in 4 bits at
    most, and the two most similar ones in 15. Cropping changes more than that. Pictures of one colour all look alike.
    """
    with Image.open(BytesIO(content)) as image:
        gray = ImageOps.exif_transpose(image).convert("L")
    across = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    down = np.asarray(gray.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.stack([np.diff(across, axis=1) > 0, np.diff(down, axis=0) > 0])  # (2, 8, 8)
    return np.packbits(bits.reshape(2, 64), axis=1).view(np.uint64)[:, 0]


def picture_id(file_name: str | None, image_id: str | None) -> str:
    """COCO's id, whatever the file is called; other data sets' numbers mean other pictures, so their names are taken."""
    if file_name is None:
        return str(image_id)
    return coco_id(file_name) or PurePosixPath(file_name).name


def try_to_hash(name: str, content: bytes) -> np.ndarray | None:
    """The hash of a picture, or a line that says that there is none."""
    try:
        return perceptual_hash(content)
    # Pillow's decoders raise what they like
    except Exception as error:
        tqdm.write(f"{name} is compared by its id only, as it can't be decoded: {error}", file=sys.stderr)
        return None


def data_files(folder: str) -> list[Path]:
    return sorted((Path(folder) / "data").glob("*.parquet"))


def is_converted(path: str) -> bool:
    return bool(data_files(path))


def check_converted(folder: str):
    """
    Raises:
        ValueError: if a folder is no converted data set.
    """
    if not is_converted(folder):
        raise ValueError(f"{folder} is no converted data set: no parquet file in its folder data.")
    for file in data_files(folder):
        missing = set(COLUMNS) - set(pq.read_schema(file).names)
        if missing:
            raise ValueError(f"{folder} is no converted data set: {file.name} lacks the columns {sorted(missing)}.")


def iterate_rows(folder: str) -> Iterator[tuple[str, str, bytes]]:
    """Split, id and contents of each picture of a converted data set."""
    seen = set()
    for file in tqdm(data_files(folder), desc=folder, disable=None):
        for batch in pq.ParquetFile(file).iter_batches(64, columns=COLUMNS):
            for row in batch.to_pylist():
                name = picture_id(row["image"]["path"], row["image_id"])
                if (row["split"], name) not in seen:
                    seen.add((row["split"], name))
                    yield row["split"], name, row["image"]["bytes"]


def iterate_pictures(path: str) -> Iterator[tuple[str, bytes]]:
    """Id and contents of the pictures below a folder or in a zip file; other files are passed over."""
    source, endings = PictureSource(path), Image.registered_extensions()
    names = [name for name in source.names() if PurePosixPath(name).suffix.lower() in endings]
    return ((picture_id(name, None), source.read(name)) for name in tqdm(names, desc=path, disable=None))


def iterate_training(path: str, split: str) -> Iterator[tuple[str, bytes]]:
    if is_converted(path):
        return ((name, content) for found, name, content in iterate_rows(path) if found == split)
    return iterate_pictures(path)


def find_leaks(train: list[str], evaluation: list[str], train_split: str, distance: int) -> dict[str, dict]:
    """
    Compare every split but `train_split` of the evaluation sets with the training sets.

    Args:
        train (`list[str]`):
            Converted data sets, or folders or zip files of pictures.
        evaluation (`list[str]`):
            Converted data sets.
        train_split (`str`):
            Which split of a converted training set counts.
        distance (`int`):
            Bits by which two hashes of one picture may differ.

    Raises:
        ValueError: if one of them is no set of pictures; before any picture is read.

    Returns:
        `dict[str, dict]`: for each set and split the number of `pictures`, and the ids of those that occur in the
        training set with the `same_id`, and of those that have the `same_look` (with the training picture's id).
    """
    for folder in evaluation + [path for path in train if is_converted(path)]:
        check_converted(folder)
    known, ids, hashes = set(), [], []
    for pictures in [iterate_training(path, train_split) for path in train]:
        for name, content in pictures:
            known.add(name)
            look = try_to_hash(name, content)
            if look is not None:
                ids.append(name)
                hashes.append(look)
    if not ids:
        raise ValueError(f"No picture to train on in {train}.")
    hashes = np.stack(hashes)  # (number, 2)
    report = {}
    for folder in evaluation:
        for split, name, content in iterate_rows(folder):
            if split == train_split:
                continue
            entry = report.setdefault(f"{folder} {split}", {"pictures": 0, "same_id": [], "same_look": {}})
            entry["pictures"] += 1
            if name in known:
                entry["same_id"].append(name)
            look = try_to_hash(name, content)
            if look is None:
                continue
            differences = np.bitwise_count(hashes ^ look).sum(axis=1, dtype=np.int64)
            nearest = int(differences.argmin())
            if differences[nearest] <= distance:
                entry["same_look"][name] = ids[nearest]
    return report


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.output is not None and not Path(args.output).absolute().parent.is_dir():
        sys.exit(f"There is no folder for --output {args.output}.")
    try:
        report = find_leaks(args.train, args.evaluation, args.train_split, args.distance)
    except (OSError, RecordError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for split, entry in report.items():
        either = set(entry["same_id"]) | set(entry["same_look"])
        print(
            f"{split}: {len(either)} of {entry['pictures']} pictures are in the training set "
            f"({len(entry['same_id'])} by id, {len(entry['same_look'])} by look)"
        )
    if args.output is not None:
        Path(args.output).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
