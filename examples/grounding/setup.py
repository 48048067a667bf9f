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
"""Model and data of a training run, and all that can be told to be wrong with them before it starts."""

from collections.abc import Callable
from pathlib import Path

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers.utils import logging

from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding, ScanFormerProcessor
from modeling_scanformer.adapters_scanformer import lora_config, quantization_config

from .arguments import GroundingArguments
from .augmentation import GroundingAugmentation
from .checks import DataError
from .data import (
    GroundingCollator,
    GroundingDataset,
    check_boxes_in_pictures,
    load_grounding_dataset,
    split_by_picture,
)
from .run import LOAD_FAILURES, find_base, load_processor, try_out
from .streaming import StreamedGroundingDataset, stream_grounding_dataset, take_samples


logger = logging.get_logger(__name__)

# What `--train heads` trains: everything after the encoder, and what selects patches.
HEADS = ("box_head", "box_refinement", "score_head", "selection_head")
DEFAULT_RANK = 8
# Of a configuration: what answers do not depend on. So do the coefficients of losses.
TRAINING_OPTIONS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "selection_target_rate", "initializer_range"),
    "merge_constant_tokens",
)


def load_model(args: GroundingArguments) -> tuple[ScanFormerForVisualGrounding | PeftModel, ScanFormerProcessor]:
    """
    The model, of which what is to be trained requires gradients, and its processor. With an adapter it is a `PeftModel`.

    Raises:
        DataError: if there is no such model, or an adapter, a processor or an option does not fit it.
    """
    base = args.model_name_or_path
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    try:
        if args.load_in_4bit:
            options["quantization_config"] = quantization_config()
        adapter_base = find_base(args.model_name_or_path)
        if adapter_base is not None:
            _check_adapter_options(args)
            base = adapter_base
        processor = load_processor(args.model_name_or_path, base)
        config = ScanFormerConfig.from_pretrained(base)
        if args.config_overrides:
            before = config.to_dict()
            config.update_from_string(args.config_overrides)
            config.validate()
            if adapter_base is not None or args.train == "lora":
                _check_overrides_of_adapter(before, config.to_dict())
        model = ScanFormerForVisualGrounding.from_pretrained(base, config=config, **options)
    except DataError:
        raise
    except LOAD_FAILURES as error:
        raise DataError(_describe_missing_model(args.model_name_or_path, base, error)) from error
    if model.generation_config.early_exit_rule is not None:
        logger.warning(
            "The rule of early exit is left out: it holds for the weights before training. Calibrate it again."
        )
        model.generation_config.update(early_exit=None, early_exit_rule=None)
    if args.longest_edge is not None:
        processor.image_processor.size = {"longest_edge": args.longest_edge}
    if args.selection_threshold is not None:
        model.config.selection_threshold = args.selection_threshold
        model.generation_config.selection_threshold = None  # one saved there would go before it
    try_out(model, processor, {"selection_threshold": model.config.selection_threshold})
    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if adapter_base is not None:
        model = _load_adapter(model, args.model_name_or_path)
    elif args.train == "lora":
        rank = args.lora_r or DEFAULT_RANK
        model = get_peft_model(model, lora_config(rank, use_dora=args.dora, use_rslora=args.rslora))
    elif args.train == "heads":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(head in name.split(".") for head in HEADS))
    if isinstance(model, PeftModel) and (args.longest_edge is not None or args.selection_threshold is not None):
        logger.warning(
            "An adapter carries weights, and not the changed resolution or threshold: whoever uses it has to say them, as "
            "its processor and as `selection_threshold`."
        )
    return model, processor


def check_base_is_public(model: ScanFormerForVisualGrounding | PeftModel):
    """
    Raises:
        DataError: if the model is an adapter of one in a folder of this machine, and so of no use to others.
    """
    if isinstance(model, PeftModel) and Path(model.active_peft_config.base_model_name_or_path).exists():
        raise DataError(
            "An adapter names its base, and nobody else has your folder: publish the base first, and give its id on the "
            "Hub as --model_name_or_path."
        )


def _check_adapter_options(args: GroundingArguments):
    if args.train not in (None, "lora"):
        raise DataError(
            f"{args.model_name_or_path} is an adapter. To train more than it, merge it into its model first: "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)."
        )
    if args.lora_r is not None or args.dora or args.rslora:
        raise DataError(
            f"{args.model_name_or_path} is an adapter, and it is what goes on training: leave out --lora_r, --dora and "
            "--rslora."
        )


def _check_overrides_of_adapter(before: dict, after: dict):
    changed = {name for name in after if after[name] != before[name] and not name.endswith("_loss_coefficient")}
    lost = sorted(changed.difference(TRAINING_OPTIONS))
    if lost:
        raise DataError(
            f"An adapter carries weights and no configuration: who loads it would not have the changed {', '.join(lost)}. "
            "Change the base first: load it with these options by `from_pretrained`, and save it; or train all of it by "
            "--train full."
        )


def _load_adapter(model: ScanFormerForVisualGrounding, path: str) -> PeftModel:
    problem = f"The adapter {path} was made for another model than {model.name_or_path}"
    config = PeftConfig.from_pretrained(path)
    config.inference_mode = False
    try:
        model = get_peft_model(model, config)
        report = set_peft_model_state_dict(model, load_peft_weights(path))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{problem}: {error}") from error
    own = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    strays = sorted({*report.unexpected_keys, *(name for name in own if name in report.missing_keys)})
    if strays:
        raise DataError(f"{problem}: {len(strays)} weights are in one of them only, as {strays[0]}.")
    return model


def _describe_missing_model(name: str, base: str, error: Exception) -> str:
    if Path(name, "random_states_0.pkl").is_file():
        return f"{name} is a checkpoint to resume from (--resume_from_checkpoint), not a model to start from."
    if base != name:
        return f"Cannot load {base!r}, the model that the adapter {name!r} was made for: {error}"
    return f"Cannot load the model {name!r}: {error}"


def load_datasets(
    args: GroundingArguments, seed: int, num_scenes: int
) -> tuple[GroundingDataset | StreamedGroundingDataset, GroundingDataset | None]:
    """
    The data to train and to evaluate on.

    Raises:
        DataError: if they cannot be read, or nothing can be evaluated on them.

    Args:
        args ([`GroundingArguments`]):
            What to load.
        seed (`int`):
            Of Scenes, and of a stream's order.
        num_scenes (`int`):
            Samples of Scenes to train on, unless `max_train_samples` says it.
    """
    train, evaluation = _load_both(args, seed, num_scenes)
    if evaluation is not None and all(evaluation[row]["bbox"] is None for row in range(len(evaluation))):
        raise DataError(
            f"None of the {len(evaluation)} samples to evaluate on has a box. Evaluate on others, or, by --validation_split '', "
            "not at all."
        )
    return train, evaluation


def _load_both(args: GroundingArguments, seed: int, num_scenes: int):
    options = {"config": args.dataset_config, "on_error": args.on_error}
    options |= {"columns": args.columns, "bbox_format": args.bbox_format}
    if args.streaming:
        train = stream_grounding_dataset(
            args.dataset, args.train_split, seed=seed, num_samples=args.max_train_samples, **options
        )
        if not args.evaluates:
            return train, None
        stream = stream_grounding_dataset(args.dataset, args.validation_split, **options)
        return train, take_samples(stream, args.max_eval_samples)

    def load(split: str, num_samples: int | None, **more) -> GroundingDataset:
        dataset = load_grounding_dataset(
            args.dataset, split, seed=seed, num_samples=num_samples, level=args.dataset_level, **more, **options
        )
        if args.dataset != "scenes":
            check_boxes_in_pictures(dataset, args.on_error)
        return dataset

    num_samples = args.max_train_samples or (num_scenes if args.dataset == "scenes" else None)
    train = load(args.train_split, num_samples, expressions_per_scene=args.expressions_per_scene)
    if args.train_val_split is not None:
        if args.dataset == "scenes":
            raise DataError("Scenes have a validation split: leave out --train_val_split.")
        # whatever the seed: a run resumed with another one must not be judged by pictures that it was trained on
        train, validation = split_by_picture(train, args.train_val_split)
        validation.indices = validation.indices[: args.max_eval_samples]
        return train, validation
    if not args.evaluates:
        return train, None
    try:
        return train, load(args.validation_split, args.max_eval_samples)
    except DataError as error:
        raise DataError(
            f"{error}\nTo evaluate on pictures that are held out from training, give --train_val_split 0.1; for no evaluation, "
            "--validation_split ''."
        ) from error


def make_collators(
    args: GroundingArguments,
    processor: ScanFormerProcessor,
    seed: int,
    share_pictures: bool = False,
    label_samples: Callable | None = None,
) -> tuple[GroundingCollator, GroundingCollator]:
    """What makes batches to train and to evaluate on; those to train on share their pictures, or say more, if asked for."""
    augmentation = GroundingAugmentation(args.augment, seed) if args.augment else None
    return (
        GroundingCollator(
            processor,
            args.on_error,
            augmentation=augmentation,
            label_samples=label_samples,
            share_pictures=share_pictures,
        ),
        GroundingCollator(processor, args.on_error, keep_samples=True),
    )
