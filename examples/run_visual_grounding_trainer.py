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
The same as run_visual_grounding.py with Transformers' `Trainer`, for those who know its arguments.

    python examples/run_visual_grounding_trainer.py --model_name_or_path hub_cards/scanformer-tiny-scenes \
        --dataset my-pictures --train_val_split 0.2 --lora_r 8 --output_dir outputs/adapter --max_steps 200 \
        --learning_rate 5e-4 --eval_strategy steps --eval_steps 50
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from grounding.arguments import GroundingArguments
from grounding.checkpoints import check_unused
from grounding.checks import DataError, make_folder
from grounding.data import GroundingCollator
from grounding.optimization import create_parameter_groups, selection_threshold
from grounding.processes import start_processes
from grounding.setup import check_base_is_public, load_datasets, load_model, make_collators
from metrics.visual_grounding.visual_grounding import accuracy, pairwise_iou
from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_scanformer.loss_scanformer import center_to_corners
from modeling_scanformer.outputs_scanformer import ScanFormerVisualGroundingOutput


# What the metrics need; patches and what is known of them differ in number from batch to batch.
NEEDED = "scale_boxes"
IGNORED = [field.name for field in fields(ScanFormerVisualGroundingOutput) if field.name != NEEDED]


@dataclass
class GroundingTrainingArguments(TrainingArguments):
    # samples are pictures and texts until the collator makes the model's inputs of them
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave this as it is."})


class ScanSchedule(TrainerCallback):
    """Tells the data the epoch, which decides on augmentation, and the model its selection threshold."""

    def __init__(self, args: GroundingArguments, train_dataset, final_threshold: float):
        self.args = args
        self.train_dataset = train_dataset
        self.final_threshold = final_threshold

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.train_dataset.set_epoch(int(state.epoch))

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.config.selection_threshold = selection_threshold(
            state.global_step,
            self.args.selection_warmup_steps,
            self.args.selection_anneal_steps,
            self.final_threshold,
        )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # what is evaluated and saved between the steps is the model as it is to be used
        model.config.selection_threshold = self.final_threshold


class ProcessorSaving(TrainerCallback):
    """
    Saves the processor with every checkpoint. As Trainer's `processing_class` it would also have its tokenizer's special
    tokens written to the generation config, and a scan has no use for them.
    """

    def __init__(self, processor):
        self.processor = processor

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.processor.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class GroundingTrainer(Trainer):
    """Evaluates on pictures as they are, whatever is done to those that it trains on."""

    def __init__(self, *args, eval_collator, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset=None):
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """
    Accuracy of boxes, also by scale. Samples in which nothing fits do not count.

    Args:
        prediction (`EvalPrediction`):
            `predictions` are the boxes of all scales, of shape `(num_samples, num_scales, 4)`; `label_ids` of shape
            `(num_samples, 4)` are NaN where nothing fits. All are relative (center_x, center_y, width, height): no IoU
            changes with the size of a picture.
    """
    labels = torch.from_numpy(prediction.label_ids).double()
    placed = ~labels.isnan().any(1)
    truth = center_to_corners(labels[placed]).numpy()
    # an answer ends where the picture does
    boxes = center_to_corners(torch.from_numpy(prediction.predictions).double()[placed]).clamp(0, 1).numpy()
    by_scale = [accuracy(pairwise_iou(boxes[:, scale], truth)) for scale in range(boxes.shape[1])]
    return {**by_scale[-1], **{f"acc@0.5_scale_{scale}": scores["acc@0.5"] for scale, scores in enumerate(by_scale)}}


def train(args: GroundingArguments, training_args: TrainingArguments):
    set_seed(training_args.seed)
    # batches of several processes differ in shape: each makes its own
    training_args.accelerator_config.dispatch_batches = False
    if training_args.resume_from_checkpoint is None:
        check_unused(training_args.output_dir)
    elif training_args.resume_from_checkpoint == "latest":
        make_folder(training_args.output_dir)
        training_args.resume_from_checkpoint = get_last_checkpoint(training_args.output_dir)
        if training_args.resume_from_checkpoint is None:
            raise DataError(f"There is no checkpoint in {training_args.output_dir} to resume from.")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise DataError("Under FSDP, Trainer takes no optimizer of a script's own: use run_visual_grounding.py.")
    model, processor = load_model(args)
    if training_args.push_to_hub:
        check_base_is_public(model)
    if training_args.max_steps < 1:
        if args.streaming:
            raise DataError("Nobody knows how long a stream is: give --max_steps.")
        if args.dataset == "scenes" and args.max_train_samples is None:
            raise DataError("Scenes have no end: give --max_steps or --max_train_samples.")
    batch_size = training_args.train_batch_size * training_args.world_size * training_args.gradient_accumulation_steps
    train_dataset, eval_dataset = load_datasets(args, training_args.seed, training_args.max_steps * batch_size)
    train_collator, _ = make_collators(args, processor, training_args.seed)
    groups = create_parameter_groups(
        model, training_args.learning_rate, training_args.weight_decay, args.layerwise_lr_decay
    )
    optimizer, options = Trainer.get_optimizer_cls_and_kwargs(training_args, model)
    trainer = GroundingTrainer(
        model=model,
        args=training_args,
        data_collator=train_collator,
        eval_collator=GroundingCollator(processor, args.on_error),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        optimizers=(optimizer(groups, **options), None),
        callbacks=[ScanSchedule(args, train_dataset, model.config.selection_threshold), ProcessorSaving(processor)],
    )
    trainer.train(training_args.resume_from_checkpoint, ignore_keys_for_eval=IGNORED)
    trainer.save_model()
    processor.save_pretrained(training_args.output_dir)
    if eval_dataset is not None:
        metrics = trainer.evaluate(ignore_keys=IGNORED)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub(tags=["visual-grounding", "scanformer"])


def main():
    try:
        start_processes()
        train(*HfArgumentParser((GroundingArguments, GroundingTrainingArguments)).parse_args_into_dataclasses())
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
