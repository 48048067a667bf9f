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
"""Data for visual grounding that is read while it is used, for data sets too large to be copied first."""

from collections.abc import Iterator
from itertools import islice

import torch
from transformers.utils import logging

from .checks import DataError, confirm_problem, find_problem, to_corners
from .data import GroundingDataset, check_boxes, load_rows


logger = logging.get_logger(__name__)

# Rows among which the next one is drawn.
SHUFFLE_BUFFER = 1000
# Rows at the start whose boxes tell their form.
NUM_CHECKED = 200


class StreamedGroundingDataset(torch.utils.data.IterableDataset):
    """
    The usable rows of a stream, in an order that follows from the seed and the epoch. Samples are those of
    [`GroundingDataset`]. One process at most may read it: give the data loader `num_workers` 0 or 1.

    Args:
        rows (`datasets.IterableDataset`):
            The rows.
        seed (`int`, *optional*):
            Of the order. Without, it is the stream's own.
        on_error (`str`, *optional*, defaults to `"stop"`):
            `"skip"` leaves out rows with senseless boxes or expressions; `"stop"` raises a [`DataError`].
        bbox_format (`str`, *optional*, defaults to `"xyxy"`):
            Form of the rows' boxes.
    """

    def __init__(self, rows, seed: int | None = None, on_error: str = "stop", bbox_format: str = "xyxy"):
        rows = rows.map(lambda sample, row: {**sample, "row": row}, with_indices=True)
        self.rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.on_error = on_error
        self.bbox_format = bbox_format
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        for sample in self.rows:
            problem = find_problem(sample["row"], sample, self.bbox_format)
            if problem is not None:
                problem = confirm_problem(problem, sample, self.bbox_format)
            if problem is None:
                yield {**sample, "bbox": to_corners(sample["bbox"], self.bbox_format), "epoch": self.epoch}
            elif self.on_error == "stop":
                raise DataError(f"A row cannot be used (leave such out by on_error 'skip'): {problem}")
            else:
                logger.warning(f"Left out {problem}")


def stream_grounding_dataset(
    name: str,
    split: str,
    *,
    config: str | None = None,
    seed: int | None = None,
    num_samples: int | None = None,
    on_error: str = "stop",
    columns: dict[str, str] | None = None,
    bbox_format: str = "xyxy",
) -> StreamedGroundingDataset:
    """
    As [`load_grounding_dataset`], which describes the arguments, but only the first rows are read yet: their boxes are held
    against the sizes of their pictures.
    """
    rows = load_rows(name, split, config, columns, streaming=True)
    if num_samples is not None:
        rows = rows.take(num_samples)
    check_boxes(enumerate(rows.take(NUM_CHECKED)), bbox_format, on_error)
    return StreamedGroundingDataset(rows, seed, on_error, bbox_format)


def take_samples(dataset: StreamedGroundingDataset, num_samples: int) -> GroundingDataset:
    """
    The first samples of a stream, to be looked at more than once.

    Raises:
        DataError: if there are none.
    """
    samples = {sample["row"]: sample for sample in islice(dataset, num_samples)}
    if not samples:
        raise DataError("The stream has no usable row.")
    return GroundingDataset(samples, sorted(samples))
