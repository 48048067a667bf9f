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
"""
Calibrate the score of a ScanFormer: what it says is then the IoU that can be expected.

    python examples/calibrate_score.py --model DIR --dataset scenes --dataset_level colors --output OUT

A slope and an offset of the score's logit are fitted to the IoU of the boxes of all scales (Platt scaling), and folded into
the last layer of the score's head. OUT is the same checkpoint with this head. A rule of early exit is dropped, as it was
made for the weights as they were: calibrate that afterwards.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from grounding.calibration import fit_logistic
from grounding.checks import make_folder
from grounding.data import DataError, GroundingCollator
from grounding.evaluation import predict, score_calibration
from grounding.run import MeasurementArguments, load_dataset, load_model, try_out
from metrics.visual_grounding.visual_grounding import pairwise_iou
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from modeling_scanformer import ScanFormerForVisualGrounding


# Predictions hold rounded scores, whose logits are to be finite.
SMALLEST_SCORE = 1e-4


@dataclass(kw_only=True)
class Arguments(MeasurementArguments):
    output: str = field(metadata={"help": "Folder for the calibrated checkpoint; not that of the model."})
    split: str = field(default="validation", metadata={"help": "Split to calibrate on; not one that was trained on."})
    max_samples: int | None = field(default=2000, metadata={"help": "Rows to take from the start."})


def fit_scores(predictions: list[dict]) -> tuple[float, float]:
    """Slope and offset of the logits, by cross-entropy against the IoU, which is 0 where nothing fits."""
    scores = np.array([prediction["scale_scores"] for prediction in predictions])
    scores = scores.clip(SMALLEST_SCORE, 1 - SMALLEST_SCORE)
    iou = np.zeros_like(scores)
    for row, prediction in enumerate(predictions):
        if prediction["true_box"] is not None:
            boxes = prediction["scale_boxes"]
            iou[row] = pairwise_iou(boxes, [prediction["true_box"]] * len(boxes))
    (slope,), offset = fit_logistic(np.log(scores / (1 - scores)).reshape(-1, 1), iou.ravel(), ridge=0.0)
    if slope <= 0:
        raise DataError("The score rises where the IoU falls: it says nothing that could be calibrated.")
    return float(slope), offset


@torch.no_grad()
def fold(model: ScanFormerForVisualGrounding, slope: float, offset: float):
    """Let the score's logit become `slope * logit + offset`."""
    layer = model.score_head.out_proj
    layer.weight.mul_(slope)
    layer.bias.mul_(slope).add_(offset)


def run(args: Arguments):
    if args.early_exit:
        raise DataError("The score is calibrated at every scale: leave out --early_exit.")
    if args.model is not None and Path(args.output).resolve() == Path(args.model).resolve():
        raise DataError("--output is the model's own folder. Give another one.")
    make_folder(args.output)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise DataError("Calibration runs in one process: start it without a launcher.")
    model, processor = load_model(args)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise DataError("An adapter keeps its head apart from the model's: merge it into the model first.")
    model.to(accelerator.device).eval()
    options = {"stopping_score": None, "early_exit": None, **args.generation_options}
    try_out(model, processor, options)
    dataset = load_dataset(args, args.split)
    collator = GroundingCollator(processor, args.on_error, keep_samples=True)
    workers = {"num_workers": args.dataloader_num_workers, "collate_fn": collator}
    dataloader = accelerator.prepare(DataLoader(dataset, batch_size=args.batch_size, **workers))
    predictions, _ = predict(model, dataloader, accelerator, **options)
    slope, offset = fit_scores(predictions)
    fold(model, slope, offset)
    # it was made for the weights as they were
    has_rule = model.generation_config.early_exit_rule is not None
    model.generation_config.update(early_exit_rule=None, early_exit=None)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(
        f"Wrote {args.output}: the score's logit times {slope:.4f} plus {offset:.4f}. On the calibration data, the expected "
        f"calibration error was {score_calibration(predictions)['ece']:.4f}."
    )
    if has_rule:
        print("The rule of early exit is left out: calibrate it again (examples/calibrate_early_exit.py).")


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        run(args)
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
