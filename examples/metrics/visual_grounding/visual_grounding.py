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
"""Accuracy of visual grounding, as a metric of the `evaluate` library."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Accuracy of referring expression comprehension: the share of expressions whose predicted box has an intersection over
union (IoU) of at least a threshold with the true box, counted per expression.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): predicted boxes as (x0, y0, x1, y1), in the unit of the references.
    references (`list[list[float]]`): true boxes in the same form.
Returns:
    acc@0.5 (`float`): share of pairs with an IoU of at least 0.5.
    acc@0.5:0.95 (`float`): the same, averaged over the thresholds 0.5, 0.55, ... 0.95.
    mean_iou (`float`): mean IoU.
Examples:
    >>> metric = evaluate.load("examples/metrics/visual_grounding")
    >>> metric.compute(predictions=[[0, 0, 10, 10]], references=[[0, 0, 10, 8]])
    {'acc@0.5': 1.0, 'acc@0.5:0.95': 0.7, 'mean_iou': 0.8}
"""

# 0.8 must count at the threshold 0.8, whatever the rounding of the boxes
_TOLERANCE = 1e-6
_THRESHOLDS = np.arange(50, 100, 5) / 100


def pairwise_iou(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """IoU of every pair of boxes; both of shape `(num_pairs, 4)`, as (x0, y0, x1, y1)."""
    predictions, references = (
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (predictions, references)
    )

    def area(boxes):
        return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)

    overlap = np.concatenate(
        [np.maximum(predictions[:, :2], references[:, :2]), np.minimum(predictions[:, 2:], references[:, 2:])], axis=1
    )
    union = area(predictions) + area(references) - area(overlap)
    return np.divide(area(overlap), union, out=np.zeros(len(union)), where=union > 0)


def accuracy(iou: np.ndarray) -> dict[str, float | None]:
    """The metric of IoUs of shape `(num_pairs,)`; `None` where there is no pair."""
    if len(iou) == 0:
        return {"acc@0.5": None, "acc@0.5:0.95": None, "mean_iou": None}
    reached = iou[:, None] >= _THRESHOLDS - _TOLERANCE
    return {
        "acc@0.5": float(reached[:, 0].mean()),
        "acc@0.5:0.95": float(reached.mean()),
        "mean_iou": float(iou.mean()),
    }


def no_target_accuracy(iou: np.ndarray, scores: np.ndarray, has_target: np.ndarray, threshold: float) -> dict:
    """
    How well a model tells that nothing fits, which it says by a score below a threshold: the measures of gRefCOCO
    (GREC, arXiv 2308.16182) for at most one target and one box.

    Args:
        iou, scores (`np.ndarray` of shape `(num_samples,)`):
            IoU of the predicted box with the true one, any number where there is none; score of the predicted box.
        has_target (`np.ndarray` of shape `(num_samples,)`):
            Whether anything fits.
        threshold (`float`):
            A box counts as given from this score on.

    Returns:
        `dict`: `n_acc`, the share of samples without target for which no box is given; `t_acc`, the share of samples
        with target for which one is; `f1` of all boxes given, right with an IoU of at least 0.5; `pr@(f1=1)`, the share of
        samples answered without fault. `None` where there are no such samples.
    """
    given = scores >= threshold
    right = given & has_target & (iou >= _THRESHOLDS[0] - _TOLERANCE)

    def share(values):
        return float(values.mean()) if len(values) else None

    return {
        "n_acc": share(~given[~has_target]),
        "t_acc": share(given[has_target]),
        "f1": float(2 * right.sum() / max(given.sum() + has_target.sum(), 1)),
        "pr@(f1=1)": share(np.where(has_target, right, ~given)),
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VisualGrounding(evaluate.Metric):
    def _info(self):
        box = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": box, "references": box}),
        )

    def _compute(self, predictions, references):
        return accuracy(pairwise_iou(predictions, references))
