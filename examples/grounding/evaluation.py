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
"""Evaluation of a ScanFormer: predictions over a data loader, and the numbers that follow from them."""

import math
from collections import defaultdict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from metrics.visual_grounding.visual_grounding import accuracy, no_target_accuracy, pairwise_iou
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_scanformer import ScanFormerForVisualGrounding
from modeling_scanformer.loss_scanformer import center_to_corners
from modeling_scanformer.pyramid_scanformer import scale_offsets

from .data import GROUP_COLUMNS, ID_COLUMNS, DataError, Problem


# Upper bounds of groups: of a target's side, sqrt(area of the box / area of the picture), and of width / height. The
# usual formats (3:2, 4:3, 1:1, 3:4, 2:3) lie within a group, not on a border.
TARGET_SIZES = {"under 0.05": 0.05, "0.05 to 0.1": 0.1, "0.1 to 0.2": 0.2, "0.2 to 0.4": 0.4, "from 0.4": math.inf}
ASPECT_RATIOS = {"under 0.6": 0.6, "0.6 to 0.9": 0.9, "0.9 to 1.1": 1.1, "1.1 to 1.7": 1.7, "from 1.7": math.inf}

# Of pixels and scores in predictions. All numbers are computed from the rounded values, so that a file of predictions
# gives exactly the same ones again.
DECIMALS = 4


@torch.no_grad()
def predict(
    model: ScanFormerForVisualGrounding, dataloader: DataLoader, accelerator: Accelerator, **options
) -> tuple[list[dict], list[Problem]]:
    """
    Ground every expression of a data set.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model, unwrapped, on its device.
        dataloader (`DataLoader`):
            Prepared by the accelerator; batches as [`GroundingCollator`] makes them with `keep_samples=True`.
        accelerator (`Accelerator`):
            Gathers the results of all processes.
        **options:
            Of [`~ScanFormerForVisualGrounding.generate`].

    Returns:
        A prediction for every sentence, in the order of the data set, and the samples that could not be used. A
        prediction has "row", "expression", "width" and "height" of the picture, "box" and "true_box" (xyxy in pixels,
        the latter `None` where nothing fits), "score", "iou", "truncated"; "scales_read", their number; lists with an
        entry for every scale that its batch read, "scale_boxes", "scale_scores" and "patches_read"; "num_patches" of
        every scale of the pyramid; and what the data set has of the columns image_id, ref_id, sentence_id,
        expression_type and category. A sample that left its batch early repeats its answer, and read 0 patches from
        there on.

    Raises:
        DataError: if no sample can be used.
    """
    model.eval()
    predictions, problems = [], []
    for batch in tqdm(dataloader, desc="Evaluating", disable=not accelerator.is_local_main_process, leave=False):
        samples = batch.pop("samples")
        problems.extend(batch.pop("problems"))
        if not samples:
            continue
        del batch["labels"]
        with accelerator.autocast():
            outputs = model.generate(**batch, **options)
        num_patches = count_patches(batch["pixel_attention_mask"], model.config.num_scales)
        predictions.extend(make_predictions(samples, outputs, num_patches))
    # the last batches of several processes repeat the first samples
    predictions = {prediction["row"]: prediction for prediction in gather_object(predictions)}
    problems = {problem.row: problem for problem in gather_object(problems)}
    if not predictions:
        raise DataError(f"No sample can be used; the first: {problems[min(problems)]}")
    return [predictions[row] for row in sorted(predictions)], [problems[row] for row in sorted(problems)]


def count_patches(pixel_attention_mask: torch.Tensor, num_scales: int) -> torch.Tensor:
    """Number of real patches of every picture and scale, of shape `(batch_size, num_scales)`."""
    offsets = scale_offsets(pixel_attention_mask.shape[1], num_scales)
    scales = [pixel_attention_mask[:, start:stop] for start, stop in zip(offsets[:-1], offsets[1:])]
    return torch.stack([mask.sum(1) for mask in scales], dim=1)


def make_predictions(samples: list[dict], outputs, num_patches: torch.Tensor) -> list[dict]:
    """The predictions of a batch; see [`predict`]."""
    limits = torch.tensor([(sample["width"], sample["height"]) * 2 for sample in samples], dtype=torch.float64)
    boxes = center_to_corners(outputs.scale_boxes.double().cpu()) * limits[:, None]
    boxes = boxes.clamp(min=0).minimum(limits[:, None]).numpy().round(DECIMALS).tolist()
    scores = outputs.scale_scores.double().cpu().numpy().round(DECIMALS).tolist()
    read = torch.stack([mask.sum(1) for mask in outputs.selection_masks], dim=1).tolist()
    predictions = []
    for index, sample in enumerate(samples):
        true_box = sample["bbox"] if sample["bbox"] is None else [float(value) for value in sample["bbox"]]
        box = boxes[index][-1]
        kept = ("row", *ID_COLUMNS, "expression", *GROUP_COLUMNS, "width", "height", "truncated")
        predictions.append(
            {
                **{name: sample[name] for name in kept if name in sample},
                "box": box,
                "score": scores[index][-1],
                "true_box": true_box,
                "iou": None if true_box is None else round(float(pairwise_iou([box], [true_box])[0]), DECIMALS),
                "scales_read": int(outputs.scales_read[index]),
                "scale_boxes": boxes[index],
                "scale_scores": scores[index],
                "patches_read": read[index],
                "num_patches": num_patches[index].tolist(),
            }
        )
    return predictions


def summarize(predictions: list[dict], score_threshold: float = 0.5) -> dict:
    """
    All numbers that follow from predictions, counted per sentence.

    Args:
        predictions (`list[dict]`):
            As [`predict`] makes them. "iou" is not used, but computed anew.
        score_threshold (`float`, *optional*, defaults to 0.5):
            A box with a lower score says that nothing fits. Only the numbers under "no_target" depend on it.

    Returns:
        `dict`: the headline numbers of [`evaluate_grounding`]; `patches_read_total`, the share read of all patches of the
        pyramid; `scales_read`, their mean number; `scale_mean_iou`; `score_calibration`, see [`score_calibration`];
        accuracies `by_target_size`, `by_aspect_ratio`, and `by_` every column of `GROUP_COLUMNS` that says anything;
        `image_acc@0.5`, the mean over pictures of each picture's accuracy, where pictures have ids; and `no_target` where
        any expression fits nothing.
    """
    placed = [prediction for prediction in predictions if prediction["true_box"] is not None]
    true_boxes = [prediction["true_box"] for prediction in placed]
    iou = pairwise_iou([prediction["box"] for prediction in placed], true_boxes)
    # where a whole batch left early, its lists are shorter than those of the others
    num_scales = max(len(prediction["scale_boxes"]) for prediction in predictions)
    scale_boxes = [_fill(prediction["scale_boxes"], num_scales, prediction["box"]) for prediction in placed]
    by_scale = [
        accuracy(pairwise_iou([boxes[scale] for boxes in scale_boxes], true_boxes)) for scale in range(num_scales)
    ]
    read = np.array([_fill(prediction["patches_read"], num_scales, 0) for prediction in predictions]).sum(0)
    present = np.array([prediction["num_patches"] for prediction in predictions]).sum(0)
    results = {
        "num_samples": len(predictions),
        **accuracy(iou),
        "scale_acc@0.5": [scores["acc@0.5"] for scores in by_scale],
        "scale_mean_iou": [scores["mean_iou"] for scores in by_scale],
        "patches_read": (read / present[:num_scales]).tolist(),
        "patches_read_total": float(read.sum() / present.sum()),
        **_scales_read(predictions),
        "score_calibration": score_calibration(predictions),
        "num_truncated": sum(prediction["truncated"] for prediction in predictions),
        "by_target_size": _by_group(map(target_size, placed), iou, TARGET_SIZES),
        "by_aspect_ratio": _by_group(map(aspect_ratio, placed), iou, ASPECT_RATIOS),
    }
    for column in GROUP_COLUMNS:
        if any(prediction.get(column) is not None for prediction in placed):
            results[f"by_{column}"] = _by_group((str(prediction[column]) for prediction in placed), iou)
    if any(prediction.get("image_id") is not None for prediction in placed):
        results.update(_per_image(placed, iou))
    if len(placed) < len(predictions):
        results["no_target"] = _no_target(predictions, iou, score_threshold)
    return results


def evaluate_grounding(model: ScanFormerForVisualGrounding, dataloader: DataLoader, accelerator: Accelerator) -> dict:
    """
    The headline numbers, as training logs them. Arguments as of [`predict`].

    Raises:
        DataError: if no sample that can be used has a box.

    Returns:
        `dict`: `num_samples`; `acc@0.5`, `acc@0.5:0.95` and `mean_iou` of the last scale; `scale_acc@0.5`, a list, coarse
        first; `patches_read`, the share of patches read at every scale.
    """
    results = summarize(predict(model, dataloader, accelerator)[0])
    if results["acc@0.5"] is None:
        raise DataError(
            "None of the samples to evaluate on that can be read has a box: mend them, or evaluate on others."
        )
    headline = ("num_samples", "acc@0.5", "acc@0.5:0.95", "mean_iou", "scale_acc@0.5", "patches_read")
    return {name: results[name] for name in headline}


def score_calibration(predictions: list[dict], num_bins: int = 15) -> dict:
    """
    Whether the score is the IoU that can be expected, which is 0 where nothing fits: the expected calibration error, with
    bins of equally many predictions (Nixon et al., "Measuring Calibration in Deep Learning", 2019).

    Args:
        predictions (`list[dict]`):
            As [`predict`] makes them.
        num_bins (`int`, *optional*, defaults to 15):
            Number of bins; at most one per prediction.

    Returns:
        `dict`: `ece`, the mean over predictions of the distance between the mean score and the mean IoU of their bin; and
        `bins`, by rising score, each with `num_samples`, mean `score` and mean `iou`.
    """
    scores = np.array([prediction["score"] for prediction in predictions])
    iou = np.zeros(len(predictions))
    placed = [index for index, prediction in enumerate(predictions) if prediction["true_box"] is not None]
    iou[placed] = pairwise_iou(
        [predictions[index]["box"] for index in placed], [predictions[index]["true_box"] for index in placed]
    )
    bins = [
        {"num_samples": len(rows), "score": float(scores[rows].mean()), "iou": float(iou[rows].mean())}
        for rows in np.array_split(scores.argsort(kind="stable"), min(num_bins, len(scores)))
    ]
    ece = sum(group["num_samples"] * abs(group["score"] - group["iou"]) for group in bins) / len(predictions)
    return {"ece": ece, "bins": bins}


def _fill(values: list, length: int, value) -> list:
    return values + [value] * (length - len(values))


def _scales_read(predictions: list[dict]) -> dict:
    """Nothing for predictions written by versions that did not note it."""
    if any("scales_read" not in prediction for prediction in predictions):
        return {}
    return {"scales_read": float(np.mean([prediction["scales_read"] for prediction in predictions]))}


def target_size(prediction: dict) -> str:
    x0, y0, x1, y1 = prediction["true_box"]
    side = math.sqrt((x1 - x0) * (y1 - y0) / (prediction["width"] * prediction["height"]))
    return _bucket(side, TARGET_SIZES)


def aspect_ratio(prediction: dict) -> str:
    return _bucket(prediction["width"] / prediction["height"], ASPECT_RATIOS)


def _bucket(value: float, bounds: dict[str, float]) -> str:
    return next(name for name, bound in bounds.items() if value < bound)


def _by_group(groups, iou: np.ndarray, order=None) -> dict[str, dict]:
    """Accuracy of every group, in a given order or by name."""
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    names = sorted(members) if order is None else [name for name in order if name in members]
    return {name: {"num_samples": len(members[name]), **accuracy(iou[members[name]])} for name in names}


def _per_image(placed: list[dict], iou: np.ndarray) -> dict:
    images = defaultdict(list)
    for prediction, value in zip(placed, iou):
        if prediction.get("image_id") is not None:
            images[prediction["image_id"]].append(value)
    accuracies = [accuracy(np.array(values))["acc@0.5"] for values in images.values()]
    return {"num_images": len(images), "image_acc@0.5": float(np.mean(accuracies))}


def _no_target(predictions: list[dict], iou: np.ndarray, score_threshold: float) -> dict:
    has_target = np.array([prediction["true_box"] is not None for prediction in predictions])
    all_iou = np.zeros(len(predictions))
    all_iou[has_target] = iou
    scores = np.array([prediction["score"] for prediction in predictions])
    return {
        "num_samples": int((~has_target).sum()),
        "score_threshold": score_threshold,
        **no_target_accuracy(all_iou, scores, has_target, score_threshold),
    }
