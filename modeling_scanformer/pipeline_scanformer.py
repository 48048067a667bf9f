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
"""pipeline("visual-grounding")"""

import os
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch.utils.data import DataLoader, Subset
from transformers.pipelines.base import Pipeline, no_collate_fn
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .generation_scanformer import OPTIONS
from .image_processing_scanformer import read_image
from .loss_scanformer import center_to_corners
from .pyramid_scanformer import pad_pyramids
from .visualization_scanformer import draw_scan


# In a wheel the checkpoint lies inside the package, in a clone of the repository beside it.
_PACKAGE = Path(__file__).parent
_IN_WHEEL, _IN_CLONE = (folder / "scanformer-tiny-scenes" for folder in (_PACKAGE, _PACKAGE.parent / "hub_cards"))
DEFAULT_CHECKPOINT = str(_IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CLONE)


# The model reads so many pairs of a picture and an expression at once, or a batch of pictures if that is more.
PAIRS_PER_PASS = 32


class VisualGroundingPipeline(Pipeline):
    """
    Finds what expressions refer to in pictures.

    ```python
    >>> import modeling_scanformer
    >>> from transformers import pipeline

    >>> pipe = pipeline("visual-grounding", model="hub_cards/scanformer-tiny-scenes")
    >>> pipe("examples/demo.png", text="the violet disc")
    {'score': 0.92, 'label': 'the violet disc', 'box': {'xmin': 79, 'ymin': 171, 'xmax': 134, 'ymax': 227}}
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, image, text: str | list[str] | None = None, **kwargs):
        """
        Args:
            image:
                A picture (path, URL or PIL image), a dict with the keys `"image"` and `"text"`, or many of either: a
                list, a generator, or a Dataset of PyTorch or of the `datasets` library, or a column of the latter.
            text (`str` or `list[str]`, *optional*):
                One or several expressions to ground in every picture. Not needed where dicts bring their own.
            threshold (`float`, *optional*):
                Give `None` instead of a box whose score is lower.
            return_scan (`bool`, *optional*, defaults to `False`):
                Add under `"scan"` what every scale gave: `"boxes"`, `"scores"`, and `"selection"`, boolean grids (rows,
                columns) of the patches read.
            max_scales, selection_threshold, token_budget, budget_split, budget_score, stopping_score, early_exit:
                See [`ScanFormerGenerationConfig`].
            timeout (`float`, *optional*):
                Seconds to wait for a URL.
            truncation (`bool`, *optional*, defaults to `False`):
                Cut long expressions to what the model reads. Otherwise they raise an error.
            batch_size, num_workers:
                As in every pipeline.

        Returns:
            For one picture and one expression a dict with `"score"`, `"label"` (the expression) and `"box"`, a dict of
            `"xmin"`, `"ymin"`, `"xmax"` and `"ymax"` in pixels of the upright picture. A list of them for a list of
            expressions, and a list (or, for generators, Datasets and columns, an iterator) of either for several pictures.

        Raises:
            ValueError: for a picture that cannot be read, or a missing, empty or over-long expression.
        """
        image = list(image) if isinstance(image, tuple) else image
        if isinstance(image, list) and not image:
            return []
        if text is not None:
            kwargs["text"] = list(text) if isinstance(text, Iterator) else text  # it is read more than once
        # data sets and columns of the `datasets` library, which the parent takes for no data sets
        if type(image).__module__.partition(".")[0] == "datasets":
            image = Subset(image, range(len(image))) if isinstance(image, Sized) else (row for row in image)
        return super().__call__(image, **kwargs)

    def _sanitize_parameters(
        self, text=None, timeout=None, threshold=None, return_scan=None, truncation=None, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(set(kwargs) - set(OPTIONS))
        if unknown:
            raise ValueError(f'pipeline("visual-grounding") got unknown arguments {unknown}.')

        def given(**options):
            return {name: value for name, value in options.items() if value is not None}

        cut = given(truncation=truncation)
        reading = {**given(text=text, timeout=timeout), **cut}
        return reading, {**kwargs, **cut}, given(threshold=threshold, return_scan=return_scan)

    def preprocess(
        self,
        inputs,
        text: str | list[str] | None = None,
        timeout: float | None = None,
        truncation: bool = False,
    ) -> dict[str, Any]:
        if isinstance(inputs, dict):
            if "image" not in inputs:
                raise ValueError(f"Expected a dict with the keys 'image' and 'text', got {sorted(inputs)}.")
            own = inputs.get("text")
            inputs, text = inputs["image"], text if own is None else own
            text = list(text) if isinstance(text, Iterator) else text
        if text is None:
            raise ValueError('There is no expression to ground. Say what is meant: pipe(image, text="the red cup").')
        # raises what is wrong with the text, before the picture is fetched
        self.processor(text=text, truncation=truncation)
        image = read_image(inputs, timeout=timeout)
        return {
            "pyramid": dict(self.processor.image_processor(image, return_tensors="pt")),
            "text": text,
            "size": (image.height, image.width),
        }

    def _forward(
        self, items: dict[str, Any] | list[dict[str, Any]], truncation: bool = False, **options
    ) -> dict[str, list]:
        # A batch of pictures, each with one or several expressions: every pair is a row of the model's batch.
        items = items if isinstance(items, list) else [items]
        texts = [[item["text"]] if isinstance(item["text"], str) else list(item["text"]) for item in items]
        rows = torch.repeat_interleave(torch.tensor([len(group) for group in texts])).to(self.device)
        pyramid = pad_pyramids([item["pyramid"] for item in items])
        expressions = [expression for group in texts for expression in group]
        pairs, size = [], max(len(items), PAIRS_PER_PASS)
        for start in range(0, len(rows), size):
            images = {name: features[rows[start : start + size]] for name, features in pyramid.items()}
            text = expressions[start : start + size]
            tokens = self.processor(text=text, truncation=truncation, return_tensors="pt").to(self.device)
            outputs = self.model.generate(**tokens, **images, **options)
            pairs.extend(_take_apart(outputs, text, images["spatial_shapes"]))
        pairs = iter(pairs)
        results = [
            {"size": item["size"], "text": item["text"], "pairs": [next(pairs) for _ in group]}
            for item, group in zip(items, texts)
        ]
        return {"results": results}

    def postprocess(self, model_outputs, threshold: float | None = None, return_scan: bool = False):
        result = model_outputs["results"]
        # a batch has been taken apart by now; without batching it is still a list of one
        result = result[0] if isinstance(result, list) else result
        height, width = result["size"]
        answers = []
        for pair in result["pairs"]:
            boxes = center_to_corners(pair["boxes"].double()) * torch.tensor([width, height, width, height])
            boxes = [_to_dict(box, width, height) for box in boxes.tolist()]
            scores = pair["scores"].tolist()
            answer = {"score": scores[-1], "label": pair["label"], "box": boxes[-1]}
            if return_scan:
                read = len(pair["selection"])
                answer["scan"] = {"boxes": boxes[:read], "scores": scores[:read], "selection": pair["selection"]}
            answers.append(answer if threshold is None or answer["score"] >= threshold else None)
        return answers[0] if isinstance(result["text"], str) else answers

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        # As the parent's, but for the collation: pyramids are padded scale by scale, in `_forward`.
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            num_workers = min(num_workers, 1)
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
        collate_fn = no_collate_fn if batch_size == 1 else list
        dataloader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=collate_fn)
        model_iterator = PipelineIterator(dataloader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(model_iterator, self.postprocess, postprocess_params)

    def draw(self, image: str | PIL.Image.Image, answer: dict[str, Any]) -> PIL.Image.Image:
        """The picture that explains an answer given with `return_scan=True`: see [`draw_scan`]."""
        return draw_scan(image, answer, self.processor)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save the model and the processor; arguments as in [`~PreTrainedModel.save_pretrained`]."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _take_apart(outputs, expressions: list[str], spatial_shapes: torch.Tensor) -> list[dict[str, Any]]:
    """What a scan gave for every pair of its batch."""
    pairs = []
    for row, (expression, grids) in enumerate(zip(expressions, spatial_shapes.tolist())):
        selection = [
            mask[row, : num_rows * columns].view(num_rows, columns).numpy(force=True)
            for mask, (num_rows, columns) in zip(outputs.selection_masks, grids)
        ]
        pairs.append(
            {
                "label": expression,
                "boxes": outputs.scale_boxes[row],
                "scores": outputs.scale_scores[row],
                "selection": selection[: int(outputs.scales_read[row])],
            }
        )
    return pairs


def _to_dict(box: list[float], width: int, height: int) -> dict[str, int]:
    """Corners as whole pixels, as object detection pipelines give them."""
    xmin, ymin, xmax, ymax = box
    return {
        "xmin": max(0, min(round(xmin), width)),
        "ymin": max(0, min(round(ymin), height)),
        "xmax": max(0, min(round(xmax), width)),
        "ymax": max(0, min(round(ymax), height)),
    }


__all__ = ["DEFAULT_CHECKPOINT", "VisualGroundingPipeline"]
