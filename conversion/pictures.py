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
"""Pictures by name, in a folder or in a zip file."""

import os
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from .rec_formats.records import RecordError


class PictureSource:
    """
    The pictures below a folder or in a zip file, found by any end of their path: `val2017/1.jpg` or `1.jpg`.

    Args:
        path (`str`):
            The folder or zip file.

    Raises:
        ValueError: if it is neither, or the zip file is cut off.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.archive = None
        if self.path.is_dir():
            names = self._walk()
        elif self.path.is_file():
            try:
                self.archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path} is not a whole zip file: {error}.") from error
            names = (entry.filename for entry in self.archive.infolist() if not entry.is_dir())
        else:
            raise ValueError(f"There is no folder or zip file of pictures {path}.")
        self.paths = defaultdict(list)
        for name in names:
            self.paths[PurePosixPath(name).name].append(name)

    def _walk(self):
        seen = {os.path.realpath(self.path)}

        def is_new(folder: str) -> bool:
            place = os.path.realpath(folder)
            return place not in seen and not seen.add(place)

        for folder, subfolders, names in os.walk(self.path, followlinks=True):
            # a link back up would be followed for ever
            subfolders[:] = [name for name in subfolders if is_new(os.path.join(folder, name))]
            for name in names:
                yield (Path(folder) / name).relative_to(self.path).as_posix()

    def names(self) -> list[str]:
        return [name for paths in self.paths.values() for name in paths]

    def find(self, name: str) -> str:
        """The path of a picture below the folder, given its name with as much of its path as is known."""
        paths = self.paths.get(PurePosixPath(name).name, [])
        # a source may know more folders than were unpacked, so an end that fits comes first but isn't demanded
        found = [path for path in paths if f"/{path}".endswith(f"/{name}")] or paths
        if not found:
            raise RecordError("missing picture", f"{self.path} has no picture {name}")
        if len(found) > 1:
            raise RecordError("two pictures with one name", f"{self.path} has {' and '.join(found)} for {name}")
        return found[0]

    def read(self, path: str) -> bytes:
        """The contents of a picture, given its whole path below the folder: one of `names`, or what `find` gives."""
        try:
            return (self.path / path).read_bytes() if self.archive is None else self.archive.read(path)
        # zlib.error and struct.error come through as they are
        except Exception as error:
            raise RecordError("broken picture", f"{self.path} does not give up {path}: {error}") from error
