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
Bring REC data of any form into one `datasets` schema, as parquet shards with the pictures in them.

    python -m conversion.convert_rec_dataset --format refer --annotations refcoco --split-by unc \
        --images train2014.zip --output data/refcoco --verify

Read it with `datasets.load_dataset("parquet", data_dir="data/refcoco", split="testA")`. A conversion that was stopped
goes on where it was if it is called again. A ref with several objects (gRefCOCO) is left out, since REC asks for one
box; expressions without a target have the box null.
"""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .masks import encode_mask
from .pictures import PictureSource
from .rec_formats import FORMATS
from .rec_formats.records import MALFORMED, SEVERAL_TARGETS, FormatError, Problem, ReadOptions, Record, RecordError
from .shards import ShardWriter
from .splits import compare_with_known


# Annotations were rounded in various ways; what crosses the border by no more is cut to the picture.
BORDER_TOLERANCE = 1.0

CONVERTED, CUT = "converted", "converted, box cut to the picture by up to a pixel"


@dataclass
class Arguments:
    annotations: list[str] = field(metadata={"help": "Files, or a folder that the form defines; for hub, an id."})
    output: str = field(metadata={"help": "Folder to write to. An unfinished conversion in it goes on."})
    format: Literal["refer", "mdetr", "ofa", "odvg", "vlm-r1", "hub"] = field(metadata={"help": "Form of the data."})
    images: str | None = field(default=None, metadata={"help": "Folder or zip file of pictures, if not in the data."})
    split_by: str | None = field(default=None, metadata={"help": "refer: unc, google, umd or berkeley."})
    split: str | None = field(default=None, metadata={"help": "Name of the split, if not what the data say."})
    source: str | None = field(default=None, metadata={"help": "Name of the data set, if not what the data say."})
    with_masks: bool = field(default=False, metadata={"help": "Add the column mask where there are segmentations."})
    on_error: Literal["skip", "stop"] = field(
        default="stop", metadata={"help": "Leave bad records out and count them, or stop at the first."}
    )
    rows_per_shard: int = field(default=500, metadata={"help": "Rows of a file; as many are held in memory."})
    verify: bool = field(default=False, metadata={"help": "Compare the counts with the genuine data set's."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Push to this repository, private at first."})


class ConversionError(Exception):
    """Bad input at which the user wants to stop."""


def make_features(with_masks: bool) -> datasets.Features:
    string = datasets.Value("string")
    features = {
        "image": datasets.Image(),
        "image_id": string,
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "expression": string,
        "bbox": datasets.List(datasets.Value("float64")),
        **dict.fromkeys(("ref_id", "sentence_id", "category", "split", "source"), string),
    }
    return datasets.Features({**features, "mask": datasets.Image()} if with_masks else features)


class RowMaker:
    """
    Makes rows of records, and checks them against their pictures.

    Args:
        pictures (`PictureSource`, *optional*):
            Where pictures are found that are not in the data.
        with_masks (`bool`):
            Whether rows have masks.
    """

    def __init__(self, pictures: PictureSource | None, with_masks: bool):
        self.pictures, self.with_masks = pictures, with_masks
        # sentences of one picture mostly follow each other
        self.last: tuple[str | bytes, bytes, tuple[int, int]] | None = None

    def __call__(self, record: Record) -> tuple[dict, str]:
        """
        Returns:
            `tuple(dict, str)`: the row, and the outcome that is counted.

        Raises:
            RecordError: if the record can't become a row.
        """
        expression = " ".join(record.expression.split())
        if not expression:
            raise RecordError("no sentence", "its expression is empty")
        content, (width, height) = self._picture(record.picture)
        if record.size is not None and tuple(record.size) != (width, height):
            stated = "x".join(map(str, record.size))
            raise RecordError("another picture", f"the picture is {width}x{height}, not {stated} as stated")
        box = None if record.box is None else self._cut(record.box, width, height)
        row = {
            "image": {"bytes": content, "path": record.file_name or self._name(record.picture)},
            "image_id": record.image_id,
            "width": width,
            "height": height,
            "expression": expression,
            "bbox": box,
            "ref_id": record.ref_id,
            "sentence_id": record.sentence_id,
            "category": record.category,
            "split": record.split,
            "source": record.source,
        }
        if self.with_masks:
            row["mask"] = None
            if record.segmentation:
                try:
                    row["mask"] = {"bytes": encode_mask(record.segmentation, width, height), "path": None}
                except (KeyError, TypeError, ValueError) as error:
                    raise RecordError("broken segmentation", str(error)) from error
        return row, CONVERTED if box is None or tuple(box) == tuple(record.box) else CUT

    @staticmethod
    def _name(picture: str | bytes) -> str | None:
        return Path(picture).name if isinstance(picture, str) else None

    def _picture(self, picture: str | bytes) -> tuple[bytes, tuple[int, int]]:
        if self.last is None or self.last[0] != picture:
            if isinstance(picture, str) and self.pictures is None:
                raise ConversionError(f"The data name their pictures ({picture}); say with --images where they are.")
            content = self.pictures.read(self.pictures.find(picture)) if isinstance(picture, str) else picture
            try:
                with Image.open(BytesIO(content)) as image:
                    image.load()
                    # as `datasets` will turn it
                    size = ImageOps.exif_transpose(image).size
            # Pillow's decoders raise what they like
            except Exception as error:
                raise RecordError("broken picture", f"it can't be decoded: {error}") from error
            self.last = (picture, content, size)
        return self.last[1:]

    @staticmethod
    def _cut(box: tuple[float, float, float, float], width: int, height: int) -> list[float]:
        """The box inside the picture, if it is a box and crosses the border by a rounding only."""
        if not all(math.isfinite(value) for value in box):
            raise RecordError("malformed record", f"box {box}")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise RecordError("box without area", f"box {box}")
        cut = [min(max(value, 0.0), float(limit)) for value, limit in zip(box, (width, height, width, height))]
        beyond = max(abs(before - after) for before, after in zip(box, cut))
        if beyond > BORDER_TOLERANCE or cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise RecordError("box outside its picture", f"box {box} in a picture of {width}x{height}")
        return cut


def read_all(form: str, files: list[str], options: ReadOptions) -> Iterator[Record | Problem]:
    for file in files:
        try:
            yield from FORMATS[form].read_records(file, options)
        except FormatError as error:
            yield Problem("unreadable file", "", str(error))
        except MALFORMED as error:
            yield Problem("unreadable file", "", f"{file}: not as its form has it: {type(error).__name__}: {error}")


def fingerprint(form: str, files: list[str]) -> list[dict]:
    """Name and SHA-256 of every file that records are read from."""
    paths = [Path(file) for file in files]
    if form == "refer":
        paths += [path.parent / "instances.json" for path in paths]
    if form == "hub":
        paths = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    prints = []
    for path in paths:
        if form == "hub" and not path.exists():
            prints.append({"file": str(path)})
            continue
        with path.open("rb") as file:
            prints.append({"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return prints


def convert(args: Arguments) -> ShardWriter:
    """
    Convert, or go on converting.

    Raises:
        ConversionError: at bad input that isn't to be skipped, or if nothing could be converted.
        FormatError: if no file of the form is found.
        ValueError: if the repository's name is none, or output or images are not what they should be.
    """
    if args.push_to_hub is not None:
        validate_repo_id(args.push_to_hub)
    options = ReadOptions(split=args.split, source=args.source, split_by=args.split_by)
    files = [file for path in args.annotations for file in FORMATS[args.format].find_files(path, options)]
    pictures = None if args.images is None else PictureSource(args.images)
    writer = ShardWriter(
        Path(args.output),
        make_features(args.with_masks),
        args.rows_per_shard,
        {
            "format": args.format,
            "files": fingerprint(args.format, files),
            # the name only: the folder may move, and this file may be published
            "images": None if args.images is None else Path(args.images).name,
            "split_by": args.split_by,
            "split": args.split,
            "source": args.source,
            "with_masks": args.with_masks,
            "rows_per_shard": args.rows_per_shard,
        },
    )
    if not writer.all_written:
        make_row = RowMaker(pictures, args.with_masks)
        for item in tqdm(read_all(args.format, files, options), unit=" records", disable=None):
            if writer.pass_over(item.split):
                continue
            row, problem = None, item
            if isinstance(item, Record):
                try:
                    row, outcome = make_row(item)
                except RecordError as error:
                    problem = Problem(error.kind, item.split, f"{item.where}: {error}")
            if row is None:
                outcome = problem.kind
                if outcome != SEVERAL_TARGETS:
                    report(problem, args.on_error)
            writer.add(item.split, row, outcome)
        if not any(counts[CONVERTED] + counts[CUT] for counts in writer.counts.values()):
            raise ConversionError(f"Nothing could be converted: {dict(sum(writer.counts.values(), Counter()))}.")
    writer.finish()
    return writer


def report(problem: Problem, on_error: str):
    message = f"{problem.kind}: {problem.message}"
    if on_error == "stop":
        raise ConversionError(
            f"{message}\nWith --on-error skip the conversion goes on, and counts what it leaves out."
        )
    tqdm.write(message, file=sys.stderr)


def write_card(folder: Path, counts: dict[str, Counter]):
    """A README.md that tells the Hub the splits, and a reader what was left out."""
    splits = [split for split in counts if counts[split][CONVERTED] + counts[split][CUT]]
    data_files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in splits)
    rows = "".join(
        f"| {split or '(none)'} | {outcome} | {number} |\n"
        for split, outcomes in counts.items()
        for outcome, number in sorted(outcomes.items())
    )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{data_files}---\n\n"
        "Boxes are (x0, y0, x1, y1) in pixels; null means that the picture shows no such object. What the files were "
        "read from, with their checksums: .conversion.json.\n\n"
        f"| split | records | number |\n| --- | --- | --- |\n{rows}"
    )


def push(folder: Path, repository: str):
    """The pictures' licences are the user's business: the repository is private until its owner says otherwise."""
    api = HfApi()
    api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    folder = Path(args.output)
    try:
        writer = convert(args)
        write_card(folder, writer.counts)
        for split, outcomes in writer.counts.items():
            for outcome, number in sorted(outcomes.items()):
                print(f"{split or '(no split)'}: {number} {outcome}")
        if args.verify:
            lines, agrees = compare_with_known(folder)
            print("\n".join(lines))
            if not agrees:
                raise ConversionError("The counts are not the genuine data set's.")
        if args.push_to_hub is not None:
            push(folder, args.push_to_hub)
    except (ConversionError, FormatError, HTTPError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
