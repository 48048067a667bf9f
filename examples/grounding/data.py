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
"""Data for visual grounding: anything with the columns image, expression and bbox (xyxy, pixels)."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
import yaml
from huggingface_hub import metadata_load
from scenes import ScenesDataset
from transformers.utils import logging

from modeling_scanformer import ScanFormerProcessor
from modeling_scanformer.image_processing_scanformer import read_image

from .checks import (
    BBOX_FORMATS,
    SIZE_COLUMNS,
    DataError,
    Problem,
    check_boxes_are_pixels,
    check_picture_column,
    confirm_problem,
    describe_problems,
    find_box_problem,
    find_problems,
    read_picture_size,
    suggest_bbox_format,
    to_corners,
)


logger = logging.get_logger(__name__)

COLUMNS = ("image", "expression", "bbox")
# Kept where a data set has them: a file of predictions names its sentences by the first, a report groups by the others.
ID_COLUMNS = ("image_id", "ref_id", "sentence_id")
GROUP_COLUMNS = ("expression_type", "category")

# Where the picture of every sample is in a batch that shares pictures, and what such a batch holds once a picture.
PICTURE_INDEX = "picture_index"
PICTURE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

# testA-00000-of-00002, also with a hash behind it, as `datasets` once wrote
SHARD = re.compile(r"(.+)-\d+-of-(\d+)(?:-[0-9a-f]+)?")


class GroundingDataset(torch.utils.data.Dataset):
    """
    The usable rows of a data set. Every sample carries its number there as "row", and the current epoch as "epoch".

    Args:
        rows:
            Gives samples by number.
        indices (`Sequence[int]`):
            The numbers of the usable rows.
        problems (`list[Problem]`, *optional*):
            The rows that were left out.
        bbox_format (`str`, *optional*, defaults to `"xyxy"`):
            Form of the rows' boxes. Samples have (x0, y0, x1, y1).
    """

    def __init__(
        self,
        rows,
        indices: Sequence[int],
        problems: list[Problem] | None = None,
        bbox_format: str = "xyxy",
    ):
        self.rows = rows
        self.indices = indices
        self.problems = problems or []
        self.bbox_format = bbox_format
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        row = self.indices[index]
        sample = self.rows[row]
        return {**sample, "bbox": to_corners(sample["bbox"], self.bbox_format), "row": row, "epoch": self.epoch}


def load_grounding_dataset(
    name: str,
    split: str,
    *,
    config: str | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    level: str = "standard",
    expressions_per_scene: int = 1,
    on_error: str = "stop",
    columns: dict[str, str] | None = None,
    bbox_format: str = "xyxy",
) -> GroundingDataset:
    """
    Load a data set of visual grounding and check its boxes and expressions. Pictures are decoded, and looked at, by
    [`GroundingCollator`].

    Args:
        name (`str`):
            `"scenes"` for the rendered benchmark; a folder of parquet files, whose splits are told by the README's
            `configs`, file names (`test-00000-of-00001.parquet`, `test.parquet`) or folders (`test/`); a folder of
            pictures with metadata.jsonl (file_name, expression, bbox); or the id of a data set on the Hub.
        split (`str`):
            Name of the split.
        config (`str`, *optional*):
            Configuration of a data set that has several: on the Hub, in a README, or as subfolders.
        seed (`int`, *optional*, defaults to 0):
            Seed of Scenes.
        num_samples (`int`, *optional*):
            Number of rows to take from the start. Needed for Scenes, which has no end.
        level (`str`, *optional*, defaults to `"standard"`):
            Level of Scenes.
        expressions_per_scene (`int`, *optional*, defaults to 1):
            Consecutive samples of Scenes about one picture.
        on_error (`str`, *optional*, defaults to `"stop"`):
            `"skip"` leaves out rows with senseless boxes or expressions, and says how many; `"stop"` raises an error that
            names them.
        columns (`dict[str, str]`, *optional*):
            What the data set calls the columns image, expression and bbox, where it has other names for them.
        bbox_format (`str`, *optional*, defaults to `"xyxy"`):
            `"xyxy"` for (x0, y0, x1, y1) or `"xywh"` for (x0, y0, width, height), in pixels.

    Raises:
        DataError: if there is no such data set or split, if columns are missing, for senseless rows, or if the boxes
            are in another form than given.
    """
    _check_options(on_error, bbox_format)
    if name == "scenes":
        return _load_scenes(split, seed, num_samples, level, expressions_per_scene)
    rows = load_rows(name, split, config, columns)
    if num_samples is not None:
        rows = rows.select(range(min(num_samples, len(rows))))
    problems, suggestion = find_problems(rows, bbox_format), None
    if problems:
        sized = rows.select_columns([name for name in rows.column_names if name in ("bbox", *SIZE_COLUMNS)])
        suggestion = suggest_bbox_format(sized, sum(p.column == "bbox" for p in problems), bbox_format)
    if suggestion is None:
        problems = [confirm_problem(problem, rows[problem.row], bbox_format) for problem in problems]
        problems = [problem for problem in problems if problem is not None]
    if problems:
        # boxes in another form are no stray mistakes that could be left out
        if on_error == "stop" or suggestion:
            raise DataError(describe_problems(problems, len(rows), suggestion))
        logger.warning(f"Left out {len({p.row for p in problems})} of {len(rows)} rows; the first: {problems[0]}")
    bad = {problem.row for problem in problems}
    indices = [row for row in range(len(rows)) if row not in bad]
    if not indices:
        raise DataError(f"Split {split!r} of the data set {name} has no usable row of {len(rows)}.")
    return GroundingDataset(rows, indices, problems, bbox_format)


def check_boxes_in_pictures(dataset: GroundingDataset, on_error: str = "stop", num_samples: int = 200):
    """
    Hold some boxes of a data set, evenly spread, against the sizes of their pictures, of which only headers are read.

    Raises:
        DataError: if a box lies outside its picture; with `on_error="skip"` only if all would fit in another form than
            given. And if all are relative.
    """
    step = max(1, len(dataset) // num_samples)
    rows = (dataset.indices[index] for index in range(0, len(dataset), step))
    check_boxes(((row, dataset.rows[row]) for row in rows), dataset.bbox_format, on_error)


def check_boxes(numbered_samples: Iterable[tuple[int, dict]], bbox_format: str, on_error: str):
    """[`check_boxes_in_pictures`] for samples with the numbers of their rows."""
    samples, problems = [], []
    for row, sample in numbered_samples:
        size = read_picture_size(sample["image"])
        samples.append({"bbox": sample["bbox"], **size})
        reason = find_box_problem(to_corners(sample["bbox"], bbox_format), size.get("width"), size.get("height"))
        if reason:
            problems.append(Problem(row, "bbox", reason))
    check_boxes_are_pixels((sample["bbox"] for sample in samples), bbox_format)
    if problems:
        suggestion = suggest_bbox_format(samples, len(problems), bbox_format)
        if on_error == "stop" or suggestion:
            raise DataError(describe_problems(problems, len(samples), suggestion))


def split_by_picture(
    dataset: GroundingDataset, fraction: float, seed: int = 0
) -> tuple[GroundingDataset, GroundingDataset]:
    """
    Hold out a share of the pictures, with all their expressions: a model must not be judged by pictures it has seen.

    Args:
        dataset ([`GroundingDataset`]):
            With the column image_id, or else pictures are told apart by their files.
        fraction (`float`):
            Share of the pictures to hold out; at least one is.
        seed (`int`, *optional*, defaults to 0):
            Another seed holds out others.

    Returns:
        What remains, and what is held out.

    Raises:
        DataError: if there are fewer than two pictures.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"The share to hold out must lie between 0 and 1, got {fraction}.")
    names = _names_of_pictures(dataset)
    pictures = sorted(set(names), key=str)
    if len(pictures) < 2:
        raise DataError("To hold out pictures, the data set needs at least two.")
    count = min(max(1, round(fraction * len(pictures))), len(pictures) - 1)
    held_out = {pictures[index] for index in np.random.default_rng(seed).permutation(len(pictures))[:count]}
    halves = []
    for wanted in (False, True):
        indices = [row for row, name in zip(dataset.indices, names) if (name in held_out) == wanted]
        halves.append(GroundingDataset(dataset.rows, indices, [], dataset.bbox_format))
    return tuple(halves)


def one_sample_per_picture(dataset: GroundingDataset, seed: int = 0) -> GroundingDataset:
    """A random one of every picture's samples that have a box. Pictures are told apart as by [`split_by_picture`]."""
    boxes = dataset.rows.select_columns(["bbox"])
    placed = [row for row in dataset.indices if boxes[row]["bbox"] is not None]
    placed = GroundingDataset(dataset.rows, placed, dataset.problems, dataset.bbox_format)
    names = _names_of_pictures(placed)
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = sorted({names[index]: index for index in order}.values())
    placed.indices = [placed.indices[index] for index in chosen]
    return placed


def _names_of_pictures(dataset: GroundingDataset) -> list:
    """What tells the picture of every sample from others."""
    # each alone: rows may hold pictures, which take long to read
    pictures = dataset.rows.select_columns(["image"])
    names = [None] * len(dataset.indices)
    if "image_id" in dataset.rows.column_names:
        ids = dataset.rows.select_columns(["image_id"])
        names = [ids[row]["image_id"] for row in dataset.indices]
    return [_name_of(pictures[row]["image"]) if name is None else name for row, name in zip(dataset.indices, names)]


def _name_of(picture):
    if not isinstance(picture, dict):
        return picture
    # the paths of pictures in parquet files need not differ
    return picture["path"] if picture["bytes"] is None else hashlib.sha256(picture["bytes"]).hexdigest()


def _check_options(on_error: str, bbox_format: str):
    if on_error not in ("stop", "skip"):
        raise DataError(f"`on_error` must be 'stop' or 'skip', got {on_error!r}.")
    if bbox_format not in BBOX_FORMATS:
        raise DataError(f"`bbox_format` must be one of {BBOX_FORMATS}, got {bbox_format!r}.")


def _load_scenes(
    split: str, seed: int, num_samples: int | None, level: str, expressions_per_scene: int
) -> GroundingDataset:
    if num_samples is None:
        raise DataError("Scenes has no end: say how many samples to take of it.")
    try:
        rows = ScenesDataset(split, seed, num_samples, level, expressions_per_scene=expressions_per_scene)
    except ValueError as error:
        raise DataError(f"Cannot make Scenes: {error}.") from error
    return GroundingDataset(rows, range(num_samples))


def load_rows(
    name: str, split: str, config: str | None = None, columns: dict[str, str] | None = None, streaming: bool = False
):
    """The rows of a data set, unchecked, its columns named as ours. Arguments of [`load_grounding_dataset`]."""
    try:
        load = _load_folder if Path(name).is_dir() else _load_native
        rows = load(name, split, config, streaming)
    except DataError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        hint = "" if Path(name).is_dir() else ", and there is no such folder"
        raise DataError(f"Cannot load split {split!r} of the data set {name!r}: {error}{hint}") from error
    present = rows.column_names or list(next(iter(rows), {}))  # a stream may not know its columns
    columns = {column: (columns or {}).get(column, column) for column in COLUMNS}
    missing = [column for column in columns.values() if column not in present]
    if missing:
        raise DataError(
            f"The data set {name} lacks the columns {missing}; it has {present}. Say what its pictures, expressions and "
            "boxes are called: --image_column, --expression_column, --bbox_column."
        )
    _check_columns(rows, columns)
    kept = [*columns.values(), *SIZE_COLUMNS, *ID_COLUMNS, *GROUP_COLUMNS]
    rows = rows.select_columns([column for column in present if column in kept])
    rows = rows.rename_columns({theirs: ours for ours, theirs in columns.items() if theirs != ours})
    # not decoded yet: a picture that cannot be is to be named by its row, and not to end the work
    return rows.cast_column("image", datasets.Image(decode=False))


def _check_columns(rows, columns: dict[str, str]):
    """That the columns, by our names, are three, with one text per row and a picture."""
    if len(set(columns.values())) < len(columns):
        raise DataError(f"Pictures, expressions and boxes are three columns, got {list(columns.values())}.")
    features = rows.features or {}
    if isinstance(features.get(columns["expression"]), (datasets.List, datasets.LargeList)):
        raise DataError(
            f"The column {columns['expression']!r} holds lists. Make a row of every expression, with its picture and box: one "
            "text and one box per row."
        )
    check_picture_column(features, columns["image"])


def _load_native(name: str, split: str, config: str | None, streaming: bool):
    return datasets.load_dataset(name, config, split=split, streaming=streaming)


def _load_folder(name: str, split: str, config: str | None, streaming: bool):
    files = find_local_files(name, config)
    if files is None:
        return _load_native(name, split, config, streaming)
    if isinstance(files, Path):
        return datasets.load_dataset(
            "imagefolder", data_dir=str(files), data_files=picture_patterns(files), split=split, streaming=streaming
        )
    shards = pick_shards(name, files, split)
    return datasets.load_dataset("parquet", data_files=list(map(str, shards)), split="train", streaming=streaming)


def picture_patterns(folder: Path) -> dict[str, str] | None:
    """
    What to take of a folder of pictures, by split. One metadata.jsonl at its top makes it a single split, whatever splits
    `datasets` would read out of names such as COCO_train2014_1.jpg.
    """
    return {"train": "**"} if (folder / "metadata.jsonl").is_file() else None


def pick_shards(name: str, files: dict[str, list[Path]], split: str) -> list[Path]:
    """
    The files of a split, of those that [`find_local_files`] has found.

    Raises:
        DataError: if it is not there, or not whole.
    """
    # `datasets` wants a split's name to be an identifier, so test-fine may be stored as test_fine
    shards = files.get(split) or files.get(split.replace("-", "_"))
    if shards is None:
        raise DataError(f"The data set {name} has no split {split!r}; it has {sorted(files)}.")
    _check_shards(Path(name), split, shards)
    return shards


def find_local_files(name: str, config: str | None = None) -> Path | dict[str, list[Path]] | None:
    """
    What to read of a folder: the folder of its pictures with metadata.jsonl, its parquet files by split, or `None` where its
    README says it, which `datasets` itself understands.

    Raises:
        DataError: if there is nothing.
    """
    readme = Path(name, "README.md")
    try:
        if readme.is_file() and "configs" in (metadata_load(readme) or {}):
            return None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"Cannot read the metadata at the top of {readme}: {error}") from error
    folder = Path(name) if config is None else Path(name, config)
    if any(folder.rglob("metadata.jsonl")):
        return folder
    splits = find_parquet_splits(folder)
    if not splits:
        raise DataError(f"The folder {folder} holds neither parquet files nor pictures with a metadata.jsonl.")
    return splits


def find_parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """
    Parquet files of a folder by split. `datasets` itself knows the split of testA-00000-of-00001.parquet only in a
    folder named data, and takes it for train elsewhere.
    """
    splits: dict[str, list[Path]] = {}
    root = folder / "data" if (folder / "data").is_dir() else folder
    for file in sorted(root.rglob("*.parquet")):
        folders = file.relative_to(root).parts[:-1]
        if any(part.startswith(".") for part in folders):
            continue
        shard = SHARD.fullmatch(file.stem)
        if shard:
            split = shard[1]
        else:
            split = folders[-1] if folders else re.sub(r"[-_.]?\d+$", "", file.stem)
        splits.setdefault(split or "train", []).append(file)
    return splits


def _check_shards(folder: Path, split: str, files: list[Path]):
    parents = sorted({str(file.parent.relative_to(folder)) for file in files})
    if len(parents) > 1:
        raise DataError(
            f"Split {split!r} of the data set {folder} lies in several folders, {parents}: name one of them as the "
            "data set's configuration."
        )
    shards = [SHARD.fullmatch(file.stem) for file in files]
    if all(shards) and any(int(shard[2]) != len(shards) for shard in shards):
        raise DataError(
            f"Split {split!r} of the data set {folder} is not whole: it has {len(files)} files, "
            f"but {files[0].name} says another number."
        )


def decode_picture(image) -> PIL.Image.Image:
    """The picture of a sample, upright and RGB; a `ValueError` if it cannot be read."""
    if image is None:
        raise ValueError("there is no picture")
    if isinstance(image, dict):  # as `datasets.Image(decode=False)` gives it
        try:
            image = datasets.Image().decode_example(image)
        except Exception as error:  # damaged files make Pillow's decoders fail in many ways
            raise ValueError(f"cannot decode the picture: {error}") from error
    return read_image(image)


@dataclass
class GroundingCollator:
    """
    Turns samples into model inputs with labels. Expressions longer than the model reads are cut.

    Args:
        processor ([`ScanFormerProcessor`]):
            Of the model.
        on_error (`str`, *optional*, defaults to `"stop"`):
            `"skip"` leaves out samples whose picture cannot be read or does not hold the box; `"stop"` raises a
            [`DataError`].
        augmentation (`Callable`, *optional*):
            Changes picture, expression and box of every sample, see [`GroundingAugmentation`].
        keep_samples (`bool`, *optional*, defaults to `False`):
            Adds "samples", the batch's samples without pictures but with "width", "height" and "truncated"; and
            "problems", those left out. A batch of which nothing is left has only these.
        label_samples (`Callable`, *optional*):
            Gives further entries of a batch for its samples, the spatial shapes of their pictures' pyramids and the length of
            these.
        share_pictures (`bool`, *optional*, defaults to `False`):
            Holds a picture that several samples are about once, so that a batch stays small on its way to the device, where
            [`spread_pictures`] repeats it for the model. A batch that shares pictures cannot be sliced.
    """

    processor: ScanFormerProcessor
    on_error: str = "stop"
    keep_samples: bool = False
    augmentation: Callable | None = None
    label_samples: Callable[[list[dict], torch.Tensor, int], dict[str, torch.Tensor]] | None = None
    share_pictures: bool = False

    def __call__(self, samples: list[dict]) -> dict:
        pictures, kept, problems = [], [], []
        for sample in samples:
            picture, problem = self._read(sample)
            if problem is None:
                if self.augmentation is not None:
                    picture, sample = self.augmentation(picture, sample)
                pictures.append(picture)
                kept.append(sample)
            elif self.on_error == "stop":
                raise DataError(f"A sample cannot be used (leave such out by on_error 'skip'): {problem}")
            else:
                logger.warning(f"Left out {problem}")
                problems.append(problem)
        if not kept and not self.keep_samples:
            raise DataError(f"No sample of a batch can be used; the first: {problems[0]}")
        batch = self._encode(pictures, kept) if kept else {}
        if self.keep_samples:
            batch["samples"] = [self._describe(*pair) for pair in zip(pictures, kept)]
            batch["problems"] = problems
        return batch

    def _read(self, sample: dict) -> tuple[PIL.Image.Image | None, Problem | None]:
        try:
            picture = decode_picture(sample["image"])
        except ValueError as error:
            return None, Problem(sample["row"], "image", str(error))
        reason = find_box_problem(sample["bbox"], *picture.size)
        return picture, None if reason is None else Problem(sample["row"], "bbox", reason)

    def _encode(self, pictures: list[PIL.Image.Image], samples: list[dict]) -> dict[str, torch.Tensor]:
        contents = [(picture.mode, picture.size, picture.tobytes()) for picture in pictures]
        distinct = dict(zip(contents, pictures))
        places = {content: place for place, content in enumerate(distinct)}
        boxes = [sample["bbox"] for sample in samples]
        batch = {
            **self.processor(text=[sample["expression"] for sample in samples], truncation=True, return_tensors="pt"),
            **self.processor.image_processor(list(distinct.values()), return_tensors="pt"),
            "labels": self.processor.boxes_to_labels(boxes, [(picture.height, picture.width) for picture in pictures]),
            PICTURE_INDEX: torch.tensor([places[content] for content in contents]),
        }
        if self.label_samples is not None:
            shapes = batch["spatial_shapes"][batch[PICTURE_INDEX]]
            batch.update(self.label_samples(samples, shapes, batch["pixel_values"].shape[1]))
        return batch if self.share_pictures else spread_pictures(batch)

    def _describe(self, picture: PIL.Image.Image, sample: dict) -> dict:
        tokenizer = self.processor.tokenizer
        length = len(tokenizer(sample["expression"], verbose=False)["input_ids"])
        kept = ("row", "expression", "bbox", *ID_COLUMNS, *GROUP_COLUMNS)
        return {
            **{name: sample[name] for name in kept if name in sample},
            "width": picture.width,
            "height": picture.height,
            "truncated": length > tokenizer.model_max_length,
        }


def spread_pictures(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs of the model for a batch of [`GroundingCollator`] that may share pictures: one picture a sample."""
    index = batch.get(PICTURE_INDEX)
    if index is None:
        return batch
    inputs = {name: value for name, value in batch.items() if name != PICTURE_INDEX}
    if len(inputs["pixel_values"]) < len(index):
        inputs.update({name: inputs[name][index] for name in PICTURE_INPUTS})
    return inputs
