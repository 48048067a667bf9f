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
"""OFA's tsv: id, id of the picture, text, "x0,y0,x1,y1", and the picture itself in URL-safe base64."""

import base64
from collections.abc import Iterator
from pathlib import Path

from .records import FormatError, Problem, ReadOptions, Record, attempt, demand, expand_folder, split_of_file


FORM = "ofa: tab-separated id, image id, text, x0,y0,x1,y1, picture"


def find_files(path: str, options: ReadOptions) -> list[str]:
    return expand_folder(path, ("*.tsv",))


def read_records(path: str, options: ReadOptions) -> Iterator[Record | Problem]:
    split = split_of_file(path, options)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                columns = line.rstrip(b"\r\n").split(b"\t")
                # the first line tells the form; a later one with fewer columns is damaged
                demand(number > 1 or (len(columns) == 5 and columns[3].count(b",") == 3), path, FORM)
                where = f"{path}, line {number}"
                yield attempt(split, where, _record, columns, where, split, path, options)
    except OSError as error:
        raise FormatError(f"{path}: {error}") from error


def _record(columns: list[bytes], where: str, split: str, path: str, options: ReadOptions) -> Record:
    sentence_id, image_id, text, box, picture = columns
    x0, y0, x1, y1 = (float(value) for value in box.split(b","))
    return Record(
        where=f"{where}, id {sentence_id.decode()}",
        split=split,
        expression=text.decode(),
        box=(x0, y0, x1, y1),
        picture=base64.b64decode(picture, altchars=b"-_", validate=True),
        source=options.source or Path(path).stem,
        image_id=image_id.decode(),
        sentence_id=sentence_id.decode(),
    )
