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
"""A table that is computed in parts: every finished part is a file, and in the end all become one."""

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from .checks import DataError


PART = re.compile(r"part-(\d+)\.parquet")
SETTINGS = b"settings"


class PartFiles:
    """
    The parts of a parquet file, in a folder beside it, and the settings that they were computed with. A part is written
    under another name first, so that a half-written one is never taken for whole. To be used in a `with` statement, which
    ends what [`~PartFiles.open`] begins.

    Args:
        output (`Path`):
            The file that the parts become.
        settings (`dict`):
            All that the table depends on. Parts that were computed with other settings are not mixed with these.
    """

    def __init__(self, output: Path, settings: dict):
        self.output = output
        self.folder = output.with_suffix(".parts")
        self.settings = settings
        self.lock = FileLock(self.folder / "lock")

    def __enter__(self) -> "PartFiles":
        return self

    def __exit__(self, *unused):
        self.lock.release()

    def open(self) -> set[int] | None:
        """
        Make ready for writing; no other run can from then on.

        Returns:
            `set[int]`: the parts that are finished already, or `None` if the whole file is.

        Raises:
            DataError: if the file or the parts there are of other settings, another run is at work on them, or nothing
                can be written there.
        """
        if self.output.exists():
            self._compare(self.output, self._settings_of_output())
            # left by a run that was killed at the very end
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        path = self.folder / "settings.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(blocking=False)
            if path.exists():
                self._compare(self.folder, json.loads(path.read_text()))
            else:
                replace_file(path, lambda partial: partial.write_text(json.dumps(self.settings, indent=2)))
            return {int(part[1]) for part in map(PART.fullmatch, os.listdir(self.folder)) if part}
        except Timeout as error:
            raise DataError(f"Another run is at work on {self.folder}. Wait for it, or stop it.") from error
        except OSError as error:
            raise DataError(f"Cannot write to {self.folder}: {error}.") from error

    def write(self, part: int, table: pa.Table):
        """
        Add a part.

        Raises:
            DataError: if it cannot be written, for instance because the disk is full.
        """
        try:
            replace_file(self._path(part), lambda partial: pq.write_table(table, partial))
        except OSError as error:
            raise DataError(
                f"Cannot write {self._path(part)}: {error}. The finished parts are kept: mend it and run the same command "
                "again to go on."
            ) from error

    def join(self, num_parts: int):
        """
        Make the file of the parts, in their order, and remove them.

        Raises:
            DataError: if it cannot be written.
        """
        schema = pq.read_schema(self._path(0)).with_metadata({SETTINGS: json.dumps(self.settings)})

        def write(partial: Path):
            with pq.ParquetWriter(partial, schema) as writer:
                for part in range(num_parts):
                    writer.write_table(pq.read_table(self._path(part)).replace_schema_metadata(schema.metadata))

        try:
            replace_file(self.output, write)
        except OSError as error:
            raise DataError(
                f"Cannot write {self.output}: {error}. All parts are kept in {self.folder}: mend it and run the same "
                "command again."
            ) from error
        shutil.rmtree(self.folder)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def _settings_of_output(self) -> dict:
        try:
            return json.loads(pq.read_schema(self.output).metadata[SETTINGS])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _compare(self, path: Path, settings: dict):
        if not settings:
            raise DataError(f"{path} exists and is not of this run. Name another output, or remove it.")
        differing = [
            f"{name} was {settings.get(name)!r} and is {self.settings.get(name)!r}"
            for name in sorted(settings.keys() | self.settings.keys())
            if settings.get(name) != self.settings.get(name)
        ]
        if differing:
            raise DataError(
                f"{path} is of a run with other settings: {'; '.join(differing)}. Name another output, or remove it."
            )


def replace_file(path: Path, write):
    """Let `write` fill a file under another name, then give it its own."""
    partial = path.with_suffix(".partial")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


__all__ = ["PartFiles", "replace_file"]
