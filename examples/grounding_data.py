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

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import PIL.Image
import torch
from huggingface_hub import metadata_load
from scenes import ScenesDataset
from transformers.utils import logging

from modeling_scanformer import ScanFormerProcessor
from modeling_scanformer.image_processing_scanformer import read_image
from modeling_scanformer.processing_scanformer import ROUNDING


logger = logging.get_logger(__name__)

COLUMNS = ("image", "expression", "bbox")
SIZE_COLUMNS = ("width", "height")
# Kept where a data set has them: a file of predictions names its sentences by the first, a report groups by the others.
ID_COLUMNS = ("image_id", "ref_id", "sentence_id")
GROUP_COLUMNS = ("expression_type", "category")

# testA-00000-of-00002
SHARD = re.compile(r"(.+)-\d+-of-(\d+)")

# So many faults are shown at once.
SHOWN_PROBLEMS = 5


class DataError(ValueError):
    """Something that the user of a data set or model has to mend; its message says what and where."""


@dataclass(frozen=True)
class Problem:
    """A sample that cannot be used."""

    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column!r}: {self.reason}"


class GroundingDataset(torch.utils.data.Dataset):
    """
    The usable rows of a data set. Every sample carries its number there as "row".

    Args:
        rows:
            Gives samples by number.
        indices (`Sequence[int]`):
            The numbers of the usable rows.
        problems (`list[Problem]`, *optional*):
            The rows that were left out.
    """

    def __init__(self, rows, indices: Sequence[int], problems: list[Problem] | None = None):
        self.rows = rows
        self.indices = indices
        self.problems = problems or []

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        row = self.indices[index]
        return {**self.rows[row], "row": row}


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
            `"skip"` leaves out rows with senseless boxes or expressions; `"stop"` raises an error that names them.

    Raises:
        DataError: if there is no such data set or split, if columns are missing, or for senseless rows.
    """
    if on_error not in ("stop", "skip"):
        raise DataError(f"`on_error` must be 'stop' or 'skip', got {on_error!r}.")
    if name == "scenes":
        return _load_scenes(split, seed, num_samples, level, expressions_per_scene)
    rows = _load_rows(name, split, config)
    if num_samples is not None:
        rows = rows.select(range(min(num_samples, len(rows))))
    problems = find_problems(rows)
    if problems and on_error == "stop":
        raise DataError(describe_problems(problems, len(rows)))
    bad = {problem.row for problem in problems}
    indices = [row for row in range(len(rows)) if row not in bad]
    if not indices:
        raise DataError(f"Split {split!r} of the data set {name} has no usable row of {len(rows)}.")
    return GroundingDataset(rows, indices, problems)


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


def _load_rows(name: str, split: str, config: str | None) -> datasets.Dataset:
    try:
        rows = _load_folder(Path(name), split, config) if Path(name).is_dir() else _load_native(name, split, config)
    except DataError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        hint = "" if Path(name).is_dir() else ", and there is no such folder"
        raise DataError(f"Cannot load split {split!r} of the data set {name!r}: {error}{hint}") from error
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise DataError(
            f"The data set {name} lacks the columns {missing}; it has {rows.column_names}. Rename its columns to "
            f"{list(COLUMNS)}, with boxes as (x0, y0, x1, y1) in pixels."
        )
    kept = [*COLUMNS, *SIZE_COLUMNS, *ID_COLUMNS, *GROUP_COLUMNS]
    rows = rows.select_columns([column for column in rows.column_names if column in kept])
    # not decoded yet: a picture that cannot be is to be named by its row, and not to end the work
    return rows.cast_column("image", datasets.Image(decode=False))


def _load_native(name: str, split: str, config: str | None) -> datasets.Dataset:
    return datasets.load_dataset(name, config, split=split)


def _load_folder(folder: Path, split: str, config: str | None) -> datasets.Dataset:
    readme = folder / "README.md"
    if readme.is_file() and "configs" in (metadata_load(readme) or {}):
        return _load_native(str(folder), split, config)
    folder = folder if config is None else folder / config
    if any(folder.rglob("metadata.jsonl")):
        return datasets.load_dataset("imagefolder", data_dir=str(folder), split=split)
    splits = find_parquet_splits(folder)
    if not splits:
        raise DataError(f"The folder {folder} holds neither parquet files nor pictures with a metadata.jsonl.")
    # `datasets` wants a split's name to be an identifier, so test-fine may be stored as test_fine
    files = splits.get(split) or splits.get(split.replace("-", "_"))
    if files is None:
        raise DataError(f"The data set {folder} has no split {split!r}; it has {sorted(splits)}.")
    _check_shards(folder, split, files)
    return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")


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


def find_problems(rows: datasets.Dataset) -> list[Problem]:
    """Senseless boxes and expressions. No picture is decoded: boxes are held against the columns width and height."""
    wanted = [column for column in ("expression", "bbox", *SIZE_COLUMNS) if column in rows.column_names]
    problems = []
    for row, sample in enumerate(rows.select_columns(wanted)):
        expression = find_expression_problem(sample["expression"])
        box = find_box_problem(sample["bbox"], sample.get("width"), sample.get("height"))
        if expression:
            problems.append(Problem(row, "expression", expression))
        elif box:
            problems.append(Problem(row, "bbox", box))
    return problems


def find_expression_problem(expression) -> str | None:
    if not isinstance(expression, str):
        return f"{expression!r} is not a text"
    visible = any(character.isprintable() and not character.isspace() for character in expression)
    return None if visible else "the expression is empty"


def find_box_problem(box, width: int | None, height: int | None) -> str | None:
    """What is wrong with a box, as far as it can be told without or with the size of its picture."""
    if box is None:
        return None
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


def describe_problems(problems: list[Problem], num_rows: int) -> str:
    lines = [f"{len(problems)} of {num_rows} rows cannot be used (leave them out by on_error 'skip'):"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


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
        keep_samples (`bool`, *optional*, defaults to `False`):
            Adds "samples", the batch's samples without pictures but with "width", "height" and "truncated"; and
            "problems", those left out. A batch of which nothing is left has only these.
    """

    processor: ScanFormerProcessor
    on_error: str = "stop"
    keep_samples: bool = False

    def __call__(self, samples: list[dict]) -> dict:
        pictures, kept, problems = [], [], []
        for sample in samples:
            picture, problem = self._read(sample)
            if problem is None:
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
        return dict(
            self.processor(
                images=pictures,
                text=[sample["expression"] for sample in samples],
                boxes=[sample["bbox"] for sample in samples],
                truncation=True,
                return_tensors="pt",
            )
        )

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
