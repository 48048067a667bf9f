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
"""Parquet shards that are whole or not there, and a conversion that goes on where it stopped."""

import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout


# hidden: `datasets` would take it for data
MANIFEST = ".conversion.json"
INCOMPLETE = ".incomplete"
LOCK = ".lock"


class ShardWriter:
    """
    Writes rows, split by split, to parquet files of at most `rows_per_shard` rows.

    Shards are written under a temporary name to a hidden folder, where `datasets` doesn't look, renamed when whole, and
    moved to `data/` when all are there. The manifest remembers after each shard how many records of its split
    have been dealt with, so a later run passes over these.

    Args:
        folder (`Path`):
            Where to write.
        features (`datasets.Features`):
            Columns of the rows.
        rows_per_shard (`int`):
            Rows of a shard; as many are held in memory for each split.
        arguments (`dict`):
            What the rows depend on. A folder that was begun with other arguments is refused.

    Raises:
        ValueError: if the folder holds something else, or was begun with other arguments, or another conversion is
            writing to it, or shards would be empty.
    """

    def __init__(self, folder: Path, features: datasets.Features, rows_per_shard: int, arguments: dict):
        if rows_per_shard < 1:
            raise ValueError(f"A shard has at least 1 row, not {rows_per_shard}.")
        self.folder, self.features, self.rows_per_shard = folder, features, rows_per_shard
        self.rows = defaultdict(list)
        self.lock = self._acquire()
        self.manifest = self._open(arguments)
        self.records = Counter()  # by split
        self.counts = defaultdict(Counter)  # by split, what became of them
        for shard in self.manifest["shards"]:
            # the last shard of a split knows the most
            self.records[shard["split"]] = shard["records"]
            self.counts[shard["split"]] = Counter(shard["counts"])
        for split, counts in self.manifest.get("counts", {}).items():
            self.counts[split] = Counter(counts)
        self.done_before = Counter(self.records)

    @property
    def all_written(self) -> bool:
        """Whether nothing is left to read, if perhaps to move."""
        return "counts" in self.manifest

    def _acquire(self) -> FileLock:
        """Held until the conversion is finished, or its process ends."""
        manifest = self.folder / MANIFEST
        if self.folder.is_dir() and not manifest.is_file() and {path.name for path in self.folder.iterdir()} - {LOCK}:
            raise ValueError(f"{self.folder} is not empty, and holds no conversion that could go on.")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(
                f"Another conversion is writing to {self.folder}. Wait for it, or choose another folder."
            ) from error
        return lock

    def _open(self, arguments: dict) -> dict:
        path = self.folder / MANIFEST
        if not path.is_file():
            return {"arguments": arguments, "shards": []}
        try:
            manifest = json.loads(path.read_text())
            begun, shards = manifest["arguments"], manifest["shards"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged; delete {self.folder} and convert again.") from error
        changed = [key for key in arguments if begun.get(key) != arguments[key]]
        if changed:
            old, new = ({key: values.get(key) for key in changed} for values in (begun, arguments))
            raise ValueError(
                f"{self.folder} was begun with {old}, not with {new}; choose another folder or delete it."
            )
        for shard in shards:
            places = [self.folder / INCOMPLETE / shard["file"], self.folder / "data" / shard.get("final", "?")]
            if not any(place.is_file() for place in places):
                raise ValueError(f"{self.folder} has lost {shard['file']}; delete it and convert again.")
        return manifest

    def pass_over(self, split: str) -> bool:
        """Whether the next record of a split is in a shard of an earlier run."""
        if self.done_before[split] == 0:
            return False
        self.done_before[split] -= 1
        return True

    def add(self, split: str, row: dict | None, outcome: str):
        """Take in what became of a record: a row, or the reason why there is none."""
        self.records[split] += 1
        self.counts[split][outcome] += 1
        if row is not None:
            self.rows[split].append(row)
            if len(self.rows[split]) == self.rows_per_shard:
                self._write_shard(split)

    def _write_shard(self, split: str):
        number = sum(shard["split"] == split for shard in self.manifest["shards"])
        path = self.folder / INCOMPLETE / f"{split}-{number:05d}.parquet"
        rows = self.rows.pop(split)
        partial = path.with_suffix(".partial")
        if not self.manifest["shards"]:
            # the manifest comes first: without it the folder would be taken for somebody else's
            self._write_manifest()
            (self.folder / INCOMPLETE).mkdir(exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(rows, schema=self.features.arrow_schema),
            partial,
            # a picture that several rows share is stored once, whatever the size of the dictionary
            use_dictionary=True,
            dictionary_pagesize_limit=2**30,
        )
        os.replace(partial, path)
        self.manifest["shards"].append(
            {
                "file": path.name,
                "split": split,
                "rows": len(rows),
                "records": self.records[split],
                "counts": dict(self.counts[split]),
            }
        )
        self._write_manifest()

    def finish(self):
        """Write what is left and move all shards to their place. Can be repeated, and must be if it was cut off."""
        for split in list(self.rows):
            self._write_shard(split)
        totals = Counter(shard["split"] for shard in self.manifest["shards"])
        for shard in self.manifest["shards"]:
            stem = shard["file"].removesuffix(".parquet")
            shard["final"] = f"{stem}-of-{totals[shard['split']]:05d}.parquet"
        self.manifest["counts"] = {split: dict(counts) for split, counts in self.counts.items()}
        # from here on nothing is read any more, and a shard is found under either name
        self._write_manifest()
        (self.folder / "data").mkdir(exist_ok=True)
        for shard in self.manifest["shards"]:
            source = self.folder / INCOMPLETE / shard["file"]
            if source.exists():
                os.replace(source, self.folder / "data" / shard["final"])
        shutil.rmtree(self.folder / INCOMPLETE, ignore_errors=True)
        self.lock.release()
        (self.folder / LOCK).unlink(missing_ok=True)

    def _write_manifest(self):
        path = self.folder / MANIFEST
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.manifest, indent=1))
        os.replace(partial, path)
