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
"""Samples for the calibration of early exit: what each scale showed, whether it was right, and what it cost."""

import numpy as np
import torch
from accelerate import Accelerator
from metrics.visual_grounding.visual_grounding import pairwise_iou
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers.generation.streamers import BaseStreamer

from modeling_scanformer import ScaleResult, ScanFormerForVisualGrounding
from modeling_scanformer.loss_scanformer import box_iou, center_to_corners

from .calibration import ScanSamples
from .cost import count_flops_by_scale
from .data import DataError, GroundingCollator
from .evaluation import count_patches, make_predictions


class Collector(BaseStreamer):
    """A streamer of `generate` that keeps the results of every scale, where no sample leaves."""

    def __init__(self):
        self.results: list[ScaleResult] = []

    def put(self, value: ScaleResult):
        self.results.append(value)

    def end(self):
        pass

    def early_reg_states(self) -> np.ndarray:
        """Of shape `(batch_size, num_scales, hidden_size)`."""
        return torch.stack([result.early_reg_state for result in self.results], dim=1).cpu().double().numpy()

    def alternatives(self) -> dict[str, np.ndarray]:
        """
        Numbers that could tell, too, whether a finer scale would change the answer, each of shape `(batch_size,
        num_scales)`: the logit of a box's `score`; its `agreement` with the scale before, their IoU; the share of the next
        scale's patches that the selection has `wanted`; and the `change` of [REG] since the scale before, as 1 - cosine.
        Agreement and change are 0 at the coarsest scale.
        """
        columns = {"score": [], "agreement": [], "wanted": [], "change": []}
        for previous, result in zip([None, *self.results], self.results):
            columns["score"].append(result.scores.float().logit(eps=1e-6))
            columns["wanted"].append(result.wanted)
            agreement = change = torch.zeros_like(result.wanted)
            if previous is not None:
                agreement, _ = box_iou(*map(center_to_corners, (result.boxes, previous.boxes)))
                change = 1 - torch.cosine_similarity(result.early_reg_state, previous.early_reg_state)
            columns["agreement"].append(agreement)
            columns["change"].append(change)
        return {name: torch.stack(values, dim=1).cpu().double().numpy() for name, values in columns.items()}


def read_samples(
    model: ScanFormerForVisualGrounding,
    dataset: Dataset,
    collator: GroundingCollator,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    num_cost_samples: int,
    **options,
) -> ScanSamples:
    """
    Read every scale of the samples that have a box.

    Args:
        model, dataset, collator, accelerator:
            As of [`~grounding.cost.measure_cost`].
        batch_size, num_workers (`int`):
            Of the data loader.
        num_cost_samples (`int`):
            Number of samples whose operations are counted; see [`fit_flops`].
        **options:
            Of [`~ScanFormerForVisualGrounding.generate`].

    Raises:
        DataError: if no sample has a box.
    """
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collator)
    signals, alternatives, iou, lengths = [], [], [], []
    for batch in tqdm(loader, desc="Reading every scale", leave=False):
        if not batch["samples"]:  # all were left out
            continue
        samples, inputs = _split(batch, accelerator)
        collector = Collector()
        with accelerator.autocast():
            outputs = model.generate(**inputs, **options, streamer=collector)
        num_patches = count_patches(inputs["pixel_attention_mask"], model.config.num_scales)
        predictions = make_predictions(samples, outputs, num_patches)
        placed = [row for row, sample in enumerate(samples) if sample["bbox"] is not None]
        signals.append(collector.early_reg_states()[placed])
        alternatives.append({name: values[placed] for name, values in collector.alternatives().items()})
        num_words = inputs["attention_mask"].sum(1).tolist()
        for row in placed:
            boxes = predictions[row]["scale_boxes"]
            iou.append(pairwise_iou(boxes, [predictions[row]["true_box"]] * len(boxes)))
            lengths.append([num_words[row], *predictions[row]["patches_read"]])
    if not iou:
        raise DataError("No sample has a box: there is nothing to calibrate on.")

    counted_lengths, counted_flops = [], []
    counted = DataLoader(Subset(dataset, range(min(num_cost_samples, len(dataset)))), collate_fn=collator)
    for batch in tqdm(counted, desc="Counting operations", leave=False):
        if not batch["samples"]:
            continue
        _, inputs = _split(batch, accelerator)
        with accelerator.autocast():
            flops, patches = count_flops_by_scale(model, inputs, **options)
        counted_flops.append(flops)
        counted_lengths.append([int(inputs["attention_mask"].sum()), *patches])
    flops = fit_flops(np.array(counted_lengths), np.array(counted_flops), np.array(lengths))
    joined = {name: np.concatenate([part[name] for part in alternatives]) for name in alternatives[0]}
    return ScanSamples(np.concatenate(signals), np.array(iou), flops, joined)


def _split(batch: dict, accelerator: Accelerator) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The samples of a batch, and the model's inputs."""
    inputs = {name: value.to(accelerator.device) for name, value in batch.items() if torch.is_tensor(value)}
    del inputs["labels"]
    return batch["samples"], inputs


def fit_flops(counted_lengths: np.ndarray, counted_flops: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    Operations of many samples from those counted of a few. They are a polynomial of the second degree in the numbers of
    tokens, as every matrix product is linear in them or, in attention, bilinear.

    Args:
        counted_lengths (`np.ndarray` of shape `(num_counted, 1 + num_scales)`):
            Words, and patches read of every scale.
        counted_flops (`np.ndarray` of shape `(num_counted, num_scales)`):
            Operations up to and including each scale.
        lengths (`np.ndarray` of shape `(num_samples, 1 + num_scales)`):
            Of the samples that are asked for.

    Returns:
        `np.ndarray` of shape `(num_samples, num_scales)`.
    """

    def terms(values: np.ndarray) -> np.ndarray:
        values = np.column_stack([np.ones(len(values)), values / 100.0])
        pairs = np.triu_indices(values.shape[1])
        return values[:, pairs[0]] * values[:, pairs[1]]

    flops = []
    for scale in range(counted_flops.shape[1]):
        known = slice(0, scale + 2)  # what a later scale reads does not matter to this one
        solution = np.linalg.lstsq(terms(counted_lengths[:, known]), counted_flops[:, scale])[0]
        flops.append(terms(lengths[:, known]) @ solution)
    return np.stack(flops, axis=1)
