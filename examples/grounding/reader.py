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
"""Rows of a data set as a stream, in parts, and within a part in batches of pictures of like shape."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pyarrow.parquet as pq
from scenes import ScenesDataset

from modeling_scanformer import ScanFormerImageProcessor
from modeling_scanformer.image_processing_scanformer import get_pyramid_size

from .checks import DataError, check_picture_column
from .data import find_local_files, pick_shards, picture_patterns


PICTURES = (datasets.Image, datasets.Video, datasets.Audio)
SCENES_FEATURES = datasets.Features(
    {
        "expression": datasets.Value("string"),
        "bbox": datasets.List(datasets.Value("float32")),
        "expression_type": datasets.Value("string"),
        "image_id": datasets.Value("string"),
    }
)


@dataclass
class Source:
    """
    A data set that is read from its start to its end.

    Attributes:
        references (`Iterable`):
            Something for every row, cheap to pass over.
        load (`Callable`):
            Turns it into the row, a dict with "image" (not decoded where it is a file), "expression" and other columns.
        features (`datasets.Features`):
            The columns, but for pictures: what is carried along into the predictions.
        num_rows (`int`, *optional*):
            Number of rows, where it is known beforehand.
    """

    references: Iterable
    load: Callable[[Any], dict]
    features: datasets.Features
    num_rows: int | None = None


def open_source(
    name: str,
    split: str | None = None,
    *,
    config: str | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    level: str = "standard",
    image_column: str = "image",
    expression_column: str = "expression",
) -> Source:
    """
    Open a data set without loading it.

    Args:
        name (`str`):
            `"scenes"`; a parquet file; a folder of parquet files; a folder of pictures with metadata.jsonl (file_name,
            expression); or the id of a data set on the Hub.
        split (`str`, *optional*):
            Name of the split. Not needed where there is one only.
        config (`str`, *optional*):
            Configuration of a data set that has several.
        seed (`int`, *optional*, defaults to 0), level (`str`, *optional*, defaults to `"standard"`):
            Of Scenes.
        num_samples (`int`, *optional*):
            Number of rows to take from the start. Needed for Scenes, which has no end.
        image_column (`str`, *optional*, defaults to `"image"`), expression_column (`str`, *optional*, defaults to `"expression"`):
            What the data set calls its pictures and expressions. Their rows call them "image" and "expression", and other
            columns of these names are left out.

    Raises:
        DataError: if there is no such data set or split, if columns are missing, or if there are no rows.
    """
    if num_samples is not None and num_samples < 1:
        raise DataError(f"The number of samples must be positive, got {num_samples}.")
    if name == "scenes":
        return _open_scenes(split or "test", seed, num_samples, level)
    try:
        stream, num_rows = _open_stream(name, split, config)
    except DataError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        hint = "" if Path(name).exists() else ", and there is no such folder or file"
        raise DataError(f"Cannot open the data set {name!r}: {error}{hint}") from error
    renamed = {image_column: "image", expression_column: "expression"}
    missing = [column for column in renamed if column not in (stream.column_names or [])]
    if missing:
        raise DataError(
            f"The data set {name} lacks the columns {missing}; it has {stream.column_names}. Say what its pictures and "
            "expressions are called: --image_column and --expression_column."
        )
    if image_column == expression_column:
        raise DataError(f"Pictures and expressions are two columns, got {image_column!r} for both.")
    check_picture_column(stream.features or {}, image_column)
    # not decoded yet: rows of other processes are passed over, and a picture that cannot be read is named by its row
    stream = stream.cast_column(image_column, datasets.Image(decode=False))
    kept = [column for column in stream.column_names if column in renamed or column not in renamed.values()]
    stream = stream.select_columns(kept)
    if kept != [renamed.get(column, column) for column in kept]:
        stream = stream.rename_columns({old: new for old, new in renamed.items() if old != new})
    features = {column: feature for column, feature in stream.features.items() if not isinstance(feature, PICTURES)}
    stream = stream.select_columns(["image", *features])
    if num_samples is not None:
        stream = stream.take(num_samples)
        num_rows = None if num_rows is None else min(num_rows, num_samples)
    if next(iter(stream), None) is None:
        raise DataError(f"The data set {name} has no rows.")
    return Source(stream, lambda row: row, datasets.Features(features), num_rows)


def _open_scenes(split: str, seed: int, num_samples: int | None, level: str) -> Source:
    if num_samples is None:
        raise DataError("Scenes has no end: say how many samples to take of it.")
    try:
        scenes = ScenesDataset(split, seed, num_samples, level)
    except ValueError as error:
        raise DataError(f"Cannot make Scenes: {error}.") from error
    return Source(range(num_samples), scenes.__getitem__, SCENES_FEATURES, num_samples)


def _open_stream(name: str, split: str | None, config: str | None) -> tuple[datasets.IterableDataset, int | None]:
    path = Path(name)
    if path.is_file():
        return _open_parquet([path])
    files = find_local_files(name, config) if path.is_dir() else None
    if isinstance(files, Path):
        pictures = datasets.load_dataset(
            "imagefolder", data_dir=str(files), data_files=picture_patterns(files), streaming=True
        )
        return _pick(name, pictures, split), _count_lines(files) if len(pictures) == 1 else None
    if files is not None:
        if split is None and len(files) == 1:
            (split,) = files
        return _open_parquet(_pick(name, files, split) if split is None else pick_shards(name, files, split))
    stream = _pick(name, datasets.load_dataset(name, config, streaming=True), split)
    return stream, (stream.info.splits or {stream.split: None})[stream.split] and stream.info.splits[
        stream.split
    ].num_examples


def _open_parquet(files: list[Path]) -> tuple[datasets.IterableDataset, int]:
    stream = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train", streaming=True)
    return stream, sum(pq.read_metadata(file).num_rows for file in files)


def _count_lines(folder: Path) -> int:
    return sum(bool(line.strip()) for path in folder.rglob("metadata.jsonl") for line in path.open())


def _pick(name: str, splits: dict, split: str | None):
    if split is None and len(splits) > 1:
        raise DataError(f"The data set {name} has several splits: name one of {sorted(splits)}.")
    if split is not None and split not in splits:
        raise DataError(f"The data set {name} has no split {split!r}; it has {sorted(splits)}.")
    return splits[next(iter(splits)) if split is None else split]


def picture_size(image) -> tuple[int, int]:
    """
    Width and height by the picture's header, the orientation aside. (1, 1) where they cannot be told: that it is damaged
    is said when it is decoded.
    """
    if isinstance(image, PIL.Image.Image):
        return image.size
    try:
        with PIL.Image.open(image["path"] if image["bytes"] is None else BytesIO(image["bytes"])) as picture:
            return picture.size
    except Exception:  # damaged files make Pillow's decoders fail in many ways
        return 1, 1


def num_coarse_patches(size: tuple[int, int], image_processor: ScanFormerImageProcessor) -> int:
    """Patches of the coarsest scale of a picture of (width, height) pixels; all scales grow with it."""
    unit = image_processor.patch_size * 2 ** (image_processor.num_scales - 1)
    height, width = get_pyramid_size(size[1], size[0], image_processor.size["longest_edge"], unit)
    return (height // unit) * (width // unit)


@dataclass
class PartReader:
    """
    Iterating gives batches: lists of samples with "image", "expression" and, as "row", the number in the data set. A batch
    holds pictures of like shape of one part, which is `rows_per_part` consecutive rows. Parts come in their order.

    Args:
        source ([`Source`]):
            The data set.
        image_processor ([`ScanFormerImageProcessor`]):
            Tells the pictures' shapes.
        rows_per_part, batch_size (`int`):
            Numbers of rows.
        finished (`set[int]`, *optional*):
            Parts that nobody has to read.
        process_index, num_processes (`int`, *optional*, defaults to 0 and 1):
            The processes take the other parts in turn.

    Attributes:
        parts (`dict[int, list[dict]]`):
            The rows, without pictures, of parts whose batches were given; to be taken out by who has grounded them.
        num_rows (`int`):
            Rows of the data set passed so far, those of all processes.
    """

    source: Source
    image_processor: ScanFormerImageProcessor
    rows_per_part: int
    batch_size: int
    finished: frozenset[int] | set[int] = frozenset()
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self):
        self.parts: dict[int, list[dict]] = {}
        self.num_rows = 0

    def __iter__(self) -> Iterator[list[dict]]:
        references = iter(self.source.references)
        turn = 0
        for part in count():
            block = islice(references, self.rows_per_part)
            mine = part not in self.finished and turn % self.num_processes == self.process_index
            turn += part not in self.finished
            first = self.num_rows
            if mine:
                rows = [{**self.source.load(reference), "row": row} for row, reference in enumerate(block, first)]
                self.num_rows += len(rows)
                if rows:
                    self.parts[part] = [{name: row[name] for name in self.source.features} for row in rows]
                    yield from self._batches(rows)
            else:
                self.num_rows += sum(1 for _ in block)
            if self.num_rows < first + self.rows_per_part:
                return

    def _batches(self, rows: list[dict]) -> Iterator[list[dict]]:
        def shape(sample: dict) -> tuple[int, int]:
            size = picture_size(sample["image"])
            return num_coarse_patches(size, self.image_processor), len(str(sample["expression"]))

        samples = [{name: row[name] for name in ("row", "image", "expression")} for row in rows]
        # the largest first: where memory does not suffice for them, that shows early
        samples.sort(key=shape, reverse=True)
        for start in range(0, len(samples), self.batch_size):
            yield samples[start : start + self.batch_size]
