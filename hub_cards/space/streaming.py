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
"""A scan as it goes on: what the model has found and read after each scale."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import Pipeline, pipeline
from transformers.generation.streamers import BaseStreamer


MAX_EXPRESSIONS = 8


class ScanState(NamedTuple):
    """
    A scan after one of its scales.

    Args:
        image (`PIL.Image.Image`):
            The upright picture.
        num_patches (`int`):
            Patches of all scales together, read or not.
        answers (`list[dict]`):
            For each expression what the pipeline gives with `return_scan=True`, as far as the scales are read.
    """

    image: Image.Image
    num_patches: int
    answers: list[dict[str, Any]]


class QueueStreamer(BaseStreamer):
    """Hands the result of each scale to another thread."""

    def __init__(self, queue: SimpleQueue):
        self.put = queue.put

    def end(self):
        """The queue is closed when `generate` returns, also by an error."""


def load_pipeline(model: str | None = None) -> Pipeline:
    """
    `pipeline("visual-grounding")`: of the package where it is installed, otherwise of the code in the model's repository.

    Args:
        model (`str`, *optional*):
            A folder, or a repository on the Hub. The package's default checkpoint by default.

    Raises:
        ValueError: if neither a model is named nor the package is installed.
        OSError: if there is no such model.
    """
    try:
        from modeling_scanformer import DEFAULT_CHECKPOINT
    except ImportError:
        if model is not None:
            return pipeline("visual-grounding", model=model, trust_remote_code=True)
        raise ValueError(
            "There is no model to load: name a folder or a repository on the Hub by --model or by the environment "
            "variable MODEL_ID, or install the package, which has a checkpoint of its own."
        ) from None
    return pipeline("visual-grounding", model=model or DEFAULT_CHECKPOINT)


def parse_expressions(text: str) -> list[str]:
    """
    The expressions in a text, one per line.

    Raises:
        ValueError: if there is none, or more than `MAX_EXPRESSIONS`.
    """
    expressions = [line.strip() for line in text.splitlines() if line.strip()]
    if not expressions:
        raise ValueError("Say what to find, for example: the red cup on the left.")
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(f"These are {len(expressions)} expressions. Please give at most {MAX_EXPRESSIONS} at a time.")
    return expressions


def stream_scan(
    pipe: Pipeline, image: str | Image.Image, expressions: list[str], **options: float
) -> Iterator[ScanState]:
    """
    Ground expressions in a picture, scale by scale.

    Args:
        pipe (`Pipeline`):
            From [`load_pipeline`].
        image (`str` or `PIL.Image.Image`):
            The picture.
        expressions (`list[str]`):
            What to find.
        **options:
            Options of `generate`.

    Yields:
        [`ScanState`] after each scale; the last one holds the answers of the pipeline.

    Raises:
        ValueError: for a picture that cannot be read, an expression that is too long, or a senseless option.
    """
    processor = pipe.processor
    tokens = processor(text=expressions, return_tensors="pt")
    image = processor.image_processor.fetch_images(image)
    pyramid = processor.image_processor(image, return_tensors="pt")
    grids = pyramid["spatial_shapes"][0].tolist()
    inputs = {**tokens, **{name: _repeat(feature, len(expressions)) for name, feature in pyramid.items()}}
    state = ScanState(
        image,
        sum(rows * columns for rows, columns in grids),
        [{"label": label, "scan": {"boxes": [], "scores": [], "selection": []}} for label in expressions],
    )
    results = SimpleQueue()
    with ThreadPoolExecutor(max_workers=1) as executor:
        generation = executor.submit(
            pipe.model.generate,
            **{name: feature.to(pipe.device) for name, feature in inputs.items()},
            streamer=QueueStreamer(results),
            **options,
        )
        generation.add_done_callback(lambda _: results.put(None))
        for result in iter(results.get, None):
            _add_result(state, processor, result, grids[result.scale])
            yield state._replace(answers=deepcopy(state.answers))
        generation.result()


def _repeat(feature: torch.Tensor, times: int) -> torch.Tensor:
    return feature.expand(times, *feature.shape[1:])


def _add_result(state: ScanState, processor, result, grid: list[int]):
    found = processor.post_process_visual_grounding(
        SimpleNamespace(pred_boxes=result.boxes, scores=result.scores), [state.image.size[::-1]] * len(result.rows)
    )
    for row, pair, mask in zip(result.rows.tolist(), found, result.selection_mask):
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), pair["boxes"][0].round().int().tolist()))
        answer, score = state.answers[row], pair["scores"].item()
        answer.update(box=box, score=score)
        scan = answer["scan"]
        scan["boxes"].append(box)
        scan["scores"].append(score)
        scan["selection"].append(torch.unflatten(mask, 0, grid).numpy(force=True))
