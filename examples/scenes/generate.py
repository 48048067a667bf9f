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
Write a split of Scenes as parquet.

    python -m examples.scenes.generate --split train --num_samples 1000 --output DIR

`datasets.load_dataset("parquet", data_dir=DIR)` reads DIR, with a split for every one written to it (dashes in their
names become underscores there).
"""

import io
import multiprocessing
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .dataset import FEATURES, ScenesDataset, to_row
from .levels import LEVELS, SPLITS


ROWS_PER_GROUP = 50


@dataclass
class GenerateArguments:
    output: str = field(metadata={"help": "Folder to write to; the shards go to its subfolder data."})
    num_samples: int = field(metadata={"help": "Number of samples."})
    split: str = field(default="train", metadata={"help": f"One of {', '.join(SPLITS)}."})
    seed: int = field(default=0, metadata={"help": "Another seed gives other samples."})
    level: str = field(default="standard", metadata={"help": f"One of {', '.join(LEVELS)}."})
    no_target: float = field(default=0.0, metadata={"help": "Share of expressions that nothing fits."})
    expressions_per_scene: int = field(default=1, metadata={"help": "Consecutive samples about one picture."})
    num_proc: int = field(default=1, metadata={"help": "Processes that make samples."})
    samples_per_shard: int = field(default=1000, metadata={"help": "Samples in one parquet file."})


def generate(arguments: GenerateArguments) -> list[Path]:
    """
    Write a split.

    Args:
        arguments (`GenerateArguments`): What to write, and where.

    Returns:
        `list[Path]`: The shards. Each gets its name only when it is whole.
    """
    if arguments.num_proc < 1:
        raise ValueError(f"num_proc must be positive, got {arguments.num_proc}")
    if arguments.samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be positive, got {arguments.samples_per_shard}")
    dataset = ScenesDataset(
        arguments.split,
        arguments.seed,
        arguments.num_samples,
        arguments.level,
        arguments.no_target,
        arguments.expressions_per_scene,
    )
    folder = Path(arguments.output) / "data"
    # The `datasets` library wants a split's name to be an identifier.
    stem = arguments.split.replace("-", "_")
    if present := sorted(folder.glob(f"{stem}-*.parquet")):
        raise ValueError(f"{folder} holds this split already, starting with {present[0].name}")
    folder.mkdir(parents=True, exist_ok=True)

    size = arguments.samples_per_shard
    num_shards = -(-arguments.num_samples // size)
    shards = [folder / f"{stem}-{number:05d}-of-{num_shards:05d}.parquet" for number in range(num_shards)]
    shard_ranges = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    with (
        tqdm(total=len(dataset), unit="sample", desc=arguments.split) as progress,
        multiprocessing.Pool(arguments.num_proc) if arguments.num_proc > 1 else nullcontext() as pool,
    ):
        for shard, indices in zip(shards, shard_ranges):
            groups = [indices[start : start + ROWS_PER_GROUP] for start in range(0, len(indices), ROWS_PER_GROUP)]
            make_group = partial(_make_group, dataset)
            _write_shard(shard, pool.imap(make_group, groups) if pool else map(make_group, groups), progress)
    return shards


def _make_group(dataset: ScenesDataset, indices: range) -> pa.Table:
    rows = []
    for index in indices:
        row = to_row(dataset[index])
        rows.append({**row, "image": _encode(row["image"]), "mask": _encode(row["mask"])})
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


def _encode(image: Image.Image) -> dict:
    # Lossless, so that the data set as written equals the one that is streamed.
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _write_shard(path: Path, tables: Iterator[pa.Table], progress: tqdm) -> None:
    incomplete = path.with_name(f".{path.name}.incomplete")
    try:
        with pq.ParquetWriter(incomplete, FEATURES.arrow_schema) as writer:
            for table in tables:
                writer.write_table(table)
                progress.update(table.num_rows)
        incomplete.rename(path)
    finally:
        incomplete.unlink(missing_ok=True)


def main() -> None:
    parser = HfArgumentParser(GenerateArguments, description="Write a split of Scenes as parquet.")
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        generate(arguments)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
