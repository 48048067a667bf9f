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
"""Losses of visual grounding: boxes and scores of every scale, and what drives the selection."""

import torch
from torch import nn

from .configuration_scanformer import ScanFormerConfig
from .outputs_scanformer import ScanFormerModelOutput
from .pyramid_scanformer import scale_offsets
from .selection_scanformer import child_indices


def box_iou(boxes: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Intersection over union, and its generalization GIoU (Rezatofighi et al., arXiv 1902.09630), of pairs of boxes.

    Args:
        boxes, targets (`torch.Tensor` of shape `(..., 4)`):
            Boxes as (x0, y0, x1, y1), in the same unit; shapes broadcast.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], of shape `(...)`. A pair without any area has an IoU of 0.
    """

    def area(corners: torch.Tensor) -> torch.Tensor:
        return (corners[..., 2] - corners[..., 0]).clamp(min=0) * (corners[..., 3] - corners[..., 1]).clamp(min=0)

    overlap = torch.cat(
        [torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])], dim=-1
    )
    hull = torch.cat(
        [torch.minimum(boxes[..., :2], targets[..., :2]), torch.maximum(boxes[..., 2:], targets[..., 2:])], dim=-1
    )
    intersection = area(overlap)
    union = area(boxes) + area(targets) - intersection
    smallest = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=smallest)
    hull_area = area(hull)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=smallest)


def center_to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """(center_x, center_y, width, height) to (x0, y0, x1, y1); shape `(..., 4)`."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Mean over a batch to which only the true entries of a mask add. So the loss of a batch is the mean of its samples'
    losses, however they are shared out over processes and accumulation steps.
    """
    return values.where(mask, 0).mean()


def relevance(indices: torch.Tensor, grid: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Whether patches overlap a box.

    Args:
        indices (`torch.Tensor` of shape `(batch_size, num_patches)`):
            Row-major indices of patches.
        grid (`torch.Tensor` of shape `(batch_size, 2)`):
            Rows and columns of every image's patch grid.
        targets (`torch.Tensor` of shape `(batch_size, 4)`):
            Relative boxes (x0, y0, x1, y1).

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_patches)`.
    """
    rows, columns = grid[:, :1], grid[:, 1:]
    x, y = indices % columns, indices // columns
    left, top, right, bottom = (targets[:, i : i + 1] for i in range(4))
    return (x < right * columns) & (x + 1 > left * columns) & (y < bottom * rows) & (y + 1 > top * rows)


def balanced_relevance_loss(logits: torch.Tensor, relevant: torch.Tensor, offered: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy that weighs relevant and irrelevant children of a sample alike, so that a logit above 0 means
    "more likely to show the target than a patch taken at random", and uncertain patches are read.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_children)`):
            Selection logits.
        relevant (`torch.Tensor` of shape `(batch_size, num_children)`):
            Whether each child overlaps the target.
        offered (`torch.Tensor` of shape `(batch_size, num_children)`):
            False at padding.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(logits, relevant.to(logits.dtype), reduction="none")
    loss = losses.new_zeros(len(losses))
    for group in (offered & relevant, offered & ~relevant):
        loss = loss + losses.where(group, 0).sum(1) / group.sum(1).clamp(min=1) / 2
    return loss


def visual_grounding_loss(
    config: ScanFormerConfig,
    boxes: torch.Tensor,
    score_logits: torch.Tensor,
    reg_boxes: torch.Tensor | None,
    patch_boxes: list[torch.Tensor],
    labels: torch.Tensor,
    outputs: ScanFormerModelOutput,
    pixel_attention_mask: torch.Tensor,
    spatial_shapes: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    All losses of a scan.

    Args:
        config ([`ScanFormerConfig`]):
            Holds the coefficients.
        boxes (`torch.Tensor` of shape `(batch_size, num_scales, 4)`):
            Predicted relative boxes (center_x, center_y, width, height).
        score_logits (`torch.Tensor` of shape `(batch_size, num_scales)`):
            Logits of the scores.
        reg_boxes (`torch.Tensor` of shape `(batch_size, num_scales, 4)`, *optional*):
            What `boxes` are refined from, in the same form; `None` where they are not.
        patch_boxes (`list[torch.Tensor]` of shape `(batch_size, num_selected, 4)`):
            Boxes that the patches read predict, by scale, in the same form; empty where nothing is asked of patches.
        labels (`torch.Tensor` of shape `(batch_size, 4)`):
            True boxes in the same form; a row of NaN where nothing fits.
        outputs ([`ScanFormerModelOutput`]):
            Of the scan.
        pixel_attention_mask, spatial_shapes (`torch.Tensor`):
            As given to the model.

    Returns:
        The weighted sum, and a dictionary of the unweighted losses: `loss_bbox_s`, `loss_giou_s`, `loss_score_s` of every
        scale s, with `reg_boxes` also `loss_reg_bbox_s` and `loss_reg_giou_s`, with more than one scale `loss_relevance` and
        `loss_selection_rate`, and with `patch_boxes` `loss_patch_box`, which has the coefficients of L1 and GIoU in it.
    """
    has_target = ~labels.isnan().any(-1)
    labels = labels.to(boxes.dtype).nan_to_num()
    targets = center_to_corners(labels)
    iou, _, _ = _compare(boxes, labels)  # (batch_size, num_scales)
    score_targets = (iou.detach() * has_target[:, None]).to(score_logits.dtype)
    score_losses = nn.functional.binary_cross_entropy_with_logits(score_logits, score_targets, reduction="none")

    losses, loss = {}, boxes.new_zeros(())
    for name, predicted in (("loss", boxes), ("loss_reg", reg_boxes)):
        if predicted is None:
            continue
        _, giou, distance = _compare(predicted, labels)
        for scale in range(boxes.shape[1]):
            losses[f"{name}_bbox_{scale}"] = _mean(distance[:, scale], has_target)
            losses[f"{name}_giou_{scale}"] = _mean(1 - giou[:, scale], has_target)
            loss = loss + config.bbox_loss_coefficient * losses[f"{name}_bbox_{scale}"]
            loss = loss + config.giou_loss_coefficient * losses[f"{name}_giou_{scale}"]
    for scale in range(boxes.shape[1]):
        losses[f"loss_score_{scale}"] = score_losses[:, scale].mean()
        loss = loss + config.score_loss_coefficient * losses[f"loss_score_{scale}"]

    if outputs.selection_logits:
        losses.update(_selection_losses(config, targets, has_target, outputs, pixel_attention_mask, spatial_shapes))
        loss = loss + config.relevance_loss_coefficient * losses["loss_relevance"]
        loss = loss + config.selection_rate_loss_coefficient * losses["loss_selection_rate"]
    if patch_boxes:
        losses["loss_patch_box"] = _patch_box_loss(config, patch_boxes, labels, has_target, outputs, spatial_shapes)
        loss = loss + config.patch_box_loss_coefficient * losses["loss_patch_box"]
    return loss, losses


def _compare(boxes: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """IoU, GIoU and L1 distance of boxes of shape `(batch_size, n, 4)` and the true ones of shape `(batch_size, 4)`."""
    iou, giou = box_iou(center_to_corners(boxes), center_to_corners(labels)[:, None])
    return iou, giou, (boxes - labels[:, None]).abs().sum(-1)


def _patch_box_loss(config, patch_boxes, labels, has_target, outputs, spatial_shapes):
    """
    The loss of the boxes that the patches on the target predict, averaged over them, samples and scales: what FCOS (Tian et
    al., arXiv 1904.01355) asks of the places inside a box.
    """
    targets = center_to_corners(labels)
    losses = []
    for scale, boxes in enumerate(patch_boxes):
        indices = outputs.patch_indices[scale]
        on_target = (indices >= 0) & relevance(indices, spatial_shapes[:, scale], targets)
        _, giou, distance = _compare(boxes, labels)
        values = config.bbox_loss_coefficient * distance + config.giou_loss_coefficient * (1 - giou)
        values = values.where(on_target, 0).sum(1) / on_target.sum(1).clamp(min=1)
        losses.append(_mean(values, has_target))
    return torch.stack(losses).mean()


def _selection_losses(config, targets, has_target, outputs, pixel_attention_mask, spatial_shapes):
    """
    Relevance and rate, averaged over samples and scales. The last scale's logits select nothing, but learn relevance all
    the same: nowhere else is language tied to so fine a place.
    """
    offsets = scale_offsets(pixel_attention_mask.shape[1], config.num_scales)
    relevance_losses, rate_losses = [], []
    for scale, logits in enumerate(outputs.selection_logits):
        parents = outputs.patch_indices[scale]
        logits = logits.to(targets.dtype).flatten(1)  # (batch_size, 4 * num_parents)
        offered = (parents >= 0).repeat_interleave(4, dim=1)
        children = child_indices(parents.clamp(min=0), spatial_shapes[:, scale, 1]).flatten(1)

        relevant = relevance(children, spatial_shapes[:, scale] * 2, targets)
        relevance_losses.append(_mean(balanced_relevance_loss(logits, relevant, offered), has_target))
        if scale + 1 == config.num_scales:
            continue

        # The share is counted, its gradient is that of the sum of the sigmoids (straight-through).
        informativeness = logits.sigmoid()
        selected = (informativeness > config.selection_threshold).to(logits.dtype)
        selected = (selected + informativeness - informativeness.detach()).where(offered, 0)
        num_patches = pixel_attention_mask[:, offsets[scale + 1] : offsets[scale + 2]].sum(1)
        rate = selected.sum(1) / num_patches.clamp(min=1)
        rate_losses.append((rate - config.selection_target_rate).square().mean())
    rate_loss = torch.stack(rate_losses).mean()
    if config.selection_threshold == 0:
        rate_loss = rate_loss * 0
    return {"loss_relevance": torch.stack(relevance_losses).mean(), "loss_selection_rate": rate_loss}


__all__ = ["box_iou", "center_to_corners", "visual_grounding_loss"]
