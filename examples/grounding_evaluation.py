"""Evaluation of a ScanFormer over a data loader; used in training and by itself."""

from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_scanformer import ScanFormerForVisualGrounding
from modeling_scanformer.loss_scanformer import center_to_corners
from modeling_scanformer.pyramid_scanformer import scale_offsets


METRIC = str(Path(__file__).parent / "metrics" / "visual_grounding")


@torch.no_grad()
def evaluate_grounding(model: ScanFormerForVisualGrounding, dataloader: DataLoader, accelerator: Accelerator) -> dict:
    """
    Accuracy by scale and share of patches read.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model, unwrapped, on its device.
        dataloader (`DataLoader`):
            Prepared by the accelerator; batches as [`GroundingCollator`] makes them.
        accelerator (`Accelerator`):
            Gathers the results of all processes.

    Returns:
        `dict`: `num_samples`; `acc@0.5`, `acc@0.5:0.95` and `mean_iou` of the last scale; `scale_acc@0.5`, a list, coarse
        first; `patches_read`, the share of patches read at every scale.
    """
    model.eval()
    boxes, labels, read, present = [], [], [], []
    for batch in tqdm(dataloader, desc="Evaluating", disable=not accelerator.is_local_main_process, leave=False):
        targets = batch.pop("labels")
        with accelerator.autocast():
            outputs = model.generate(**batch)
        offsets = scale_offsets(batch["pixel_values"].shape[1], model.config.num_scales)
        counts = [
            batch["pixel_attention_mask"][:, start:stop].sum(1) for start, stop in zip(offsets[:-1], offsets[1:])
        ]
        gathered = accelerator.gather_for_metrics(
            (
                outputs.scale_boxes,
                targets,
                torch.stack([mask.sum(1) for mask in outputs.selection_masks], dim=1),
                torch.stack(counts[: len(outputs.selection_masks)], dim=1),
            )
        )
        for kept, values in zip((boxes, labels, read, present), gathered):
            kept.append(values.cpu())
    boxes, labels = center_to_corners(torch.cat(boxes)), center_to_corners(torch.cat(labels))
    has_target = ~labels.isnan().any(-1)

    # IoU does not change when both boxes are scaled alike, so relative boxes serve
    metric = evaluate.load(METRIC)
    by_scale = [
        metric.compute(predictions=boxes[has_target, scale].tolist(), references=labels[has_target].tolist())
        for scale in range(boxes.shape[1])
    ]
    return {
        "num_samples": len(labels),
        **by_scale[-1],
        "scale_acc@0.5": [result["acc@0.5"] for result in by_scale],
        "patches_read": (torch.cat(read).sum(0) / torch.cat(present).sum(0)).tolist(),
    }
