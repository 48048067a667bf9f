"""
Train or fine-tune a ScanFormer, or a LoRA adapter of one, on any data set with pictures, expressions and boxes.

    python examples/run_visual_grounding.py --model_name_or_path outputs/untrained --dataset scenes \
        --dataset_level easy --output_dir outputs/easy --max_train_steps 2000

    accelerate launch examples/run_visual_grounding.py --model_name_or_path hub_cards/scanformer-tiny-scenes \
        --dataset my-pictures --train_val_split 0.2 --lora_r 8 --output_dir outputs/adapter

Arguments can also come from a YAML file, and others after it: `python examples/run_visual_grounding.py settings.yaml`.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.logging import get_logger
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers, on_main_process
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration, gather_object, set_seed
from grounding.arguments import GroundingArguments
from grounding.checkpoints import (
    EVALUATION_SETTINGS,
    LOG_NAME,
    TrainingState,
    check_settings,
    check_unused,
    find_checkpoint,
    holds_model,
    is_within,
    keep_trained_weights,
    load_checkpoint,
    remove_partial,
    save_checkpoint,
    save_model,
    sole_run,
)
from grounding.checks import DataError, make_folder
from grounding.data import spread_pictures
from grounding.evaluation import evaluate_grounding
from grounding.hub import open_repository, push, write_card
from grounding.muon import Muon
from grounding.optimization import average_weights, create_parameter_groups, selection_threshold
from grounding.processes import check_processes, start_processes
from grounding.setup import check_base_is_public, load_datasets, load_model, make_collators
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scenes.supervision import HEADS_NAME, HEADS_RATE, LABELS, SceneSupervision, label_samples
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_scheduler

from modeling_scanformer import ScanFormerConfig
from modeling_scanformer.early_exit_scanformer import fingerprint


logger = get_logger(__name__, log_level="INFO")


# Those of Transformers that follow steps and need no settings of their own.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt"),
)

POSITIVE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_train_steps"),
    *("logging_steps", "eval_steps", "checkpointing_steps", "checkpoints_total_limit"),
)
NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "num_warmup_steps", "max_grad_norm", "dataloader_num_workers", "seed"),
    "scene_supervision",
)


@dataclass(kw_only=True)
class Arguments(GroundingArguments):
    output_dir: str = field(metadata={"help": "Folder for the trained model, its checkpoints and its log."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Batch size of every process."})
    per_device_eval_batch_size: int = field(default=50, metadata={"help": "Batch size of every process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches that make one step."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    max_train_steps: int = field(default=10000, metadata={"help": "Number of optimizer steps in all."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw",
        metadata={"help": "Muon is for the whole model: it orthogonalizes the steps of hidden matrices."},
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of matrices."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": f"One of {', '.join(SCHEDULES)}."})
    num_warmup_steps: int = field(default=200, metadata={"help": "Steps over which the learning rate rises."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm; 0 leaves them."})
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save a moving average of the weights that keeps this share a step."},
    )
    scene_supervision: float = field(
        default=0.0,
        metadata={
            "help": "Scenes only: weight of the losses that scene graph and program allow, on patches, words and selection."
        },
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(default="no", metadata={"help": "Precision of products."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that prepare batches."})
    seed: int = field(default=0, metadata={"help": "Seed of the data order, of augmentation and of Scenes."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between lines of the log."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without a better acc@0.5."}
    )
    checkpointing_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint to go on from, or 'latest'."}
    )
    report_to: str | None = field(default=None, metadata={"help": "A tracker of Accelerate, besides log.jsonl."})
    push_to_hub: bool = field(
        default=False, metadata={"help": "At the end, push the best model, or without evaluations the last one."}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository to push to: name or owner/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make that private, if it is new."})

    def __post_init__(self):
        super().__post_init__()
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise DataError(f"--{name} is at least 1, got {getattr(self, name)}.")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise DataError(f"--{name} is at least 0, got {getattr(self, name)}.")
        if self.lr_scheduler_type not in SCHEDULES:
            raise DataError(
                f"--lr_scheduler_type {self.lr_scheduler_type} is unknown, follows evaluations or needs settings of its own: "
                f"take one of {', '.join(SCHEDULES)}."
            )
        if self.report_to is not None and self.report_to not in LOGGER_TYPE_TO_CLASS:
            raise DataError(f"--report_to knows {', '.join(LOGGER_TYPE_TO_CLASS)}, not {self.report_to}.")
        if self.report_to is not None and self.report_to not in map(str, get_available_trackers()):
            raise DataError(f"--report_to {self.report_to} needs a package that is not installed: {self.report_to}.")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise DataError(f"--ema_decay lies between 0 and 1, got {self.ema_decay}.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise DataError(f"--early_stopping_patience is at least 1, got {self.early_stopping_patience}.")
        if self.early_stopping_patience is not None and not self.evaluates:
            raise DataError("--early_stopping_patience needs --validation_split or --train_val_split.")
        if self.ema_decay is not None and self.load_in_4bit:
            raise DataError("--ema_decay does not go with --load_in_4bit: weights of 4 bits cannot be averaged.")
        if self.optimizer == "muon" and self.train not in (None, "full"):
            raise DataError(f"--optimizer muon is for the whole model, and does not go with --train {self.train}.")
        if self.scene_supervision > 0 and self.dataset != "scenes":
            raise DataError("--scene_supervision needs scene graphs, which --dataset scenes alone has.")
        if self.scene_supervision > 0 and self.train not in (None, "full"):
            raise DataError(f"--scene_supervision trains the whole model, and does not go with --train {self.train}.")
        if self.scene_supervision > 0 and set(self.augment) - {"veil"}:
            raise DataError(
                "--scene_supervision knows where things are, and in which colours, in pictures as they were drawn: of the "
                "augmentations only veil goes with it."
            )
        if self.push_to_hub and self.hub_model_id is None:
            raise DataError("--push_to_hub needs to know where: --hub_model_id NAME.")


class JsonlTracker(GeneralTracker):
    """Appends what is logged to `log.jsonl` in the output folder, a line per call."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: str):
        super().__init__()
        self.path = Path(folder, LOG_NAME)

    @property
    def tracker(self):
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict):
        self._append({"config": values})

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs):
        self._append({"step": step, **values})

    def _append(self, values: dict):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_yaml(path: str) -> list[str]:
    """The settings of a YAML file as words of a command line, which are checked and converted."""
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"Cannot read the settings in {path}: {error}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds no settings: a line of `name: value` for each.")
    switches = {field.name for field in fields(Arguments) if field.type is bool}
    words = []
    for name, value in settings.items():
        if value is False and name not in switches:
            value = "no"  # which YAML takes for False
        if value == []:
            continue
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def parse_arguments() -> Arguments:
    """Of the command line, which may begin with a YAML file and go on with what is to be otherwise."""
    words = sys.argv[1:]
    if words and words[0].endswith((".yaml", ".yml")):
        words = read_yaml(words[0]) + words[1:]
    return HfArgumentParser(Arguments).parse_args_into_dataclasses(words)[0]


def describe(args: Arguments) -> dict:
    """The settings, in what all trackers take."""
    settings = {name: value for name, value in asdict(args).items() if value is not None}
    return {**settings, "augment": " ".join(args.augment)}


def make_dataloader(dataset, batch_size: int, collator, args: Arguments, **options) -> DataLoader:
    is_stream = isinstance(dataset, torch.utils.data.IterableDataset)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=min(args.dataloader_num_workers, 1) if is_stream else args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        # of its own: a resumed run makes one loader more, and must not draw other numbers for dropout because of it
        generator=torch.Generator().manual_seed(args.seed),
        **options,
    )


def endless_batches(loader: DataLoader, dataset, state: TrainingState) -> Iterator[dict]:
    """Batches from where the state stands, epoch after epoch; the state counts them."""
    while True:
        dataset.set_epoch(state.epoch)
        loader.set_epoch(state.epoch)
        for batch in skip_first_batches(loader, state.batches):
            state.batches += 1
            yield batch
        if state.batches == 0:
            raise DataError("The training data do not fill one batch.")
        state.epoch, state.batches = state.epoch + 1, 0


def log(accelerator: Accelerator, values: dict, step: int):
    """To every tracker, in names that all take: MLflow knows no @ and no colon."""
    plain = {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}
    for tracker in accelerator.trackers:
        tracker.log(values if tracker.name == JsonlTracker.name else plain, step=step)


def mean_over_processes(sums: dict[str, float]) -> dict[str, float]:
    """Each process has its share of every batch."""
    everyone = gather_object([sums])
    return {name: sum(own[name] for own in everyone) / len(everyone) for name in sums}


def check_sharding(args: Arguments, accelerator: Accelerator):
    """
    Refuse what a model that FSDP or DeepSpeed shards cannot do.

    Raises:
        DataError: if it was asked for.
    """
    if accelerator.is_fsdp2 or accelerator.distributed_type == DistributedType.DEEPSPEED:
        if args.optimizer == "muon":
            raise DataError("--optimizer muon needs whole matrices, which FSDP and DeepSpeed shard: use DDP.")
        if args.scene_supervision > 0:
            raise DataError(
                "--scene_supervision brings a module of its own, which FSDP and DeepSpeed leave out: use DDP."
            )
    if not accelerator.is_fsdp2:
        return
    if args.ema_decay is not None:
        raise DataError(
            "--ema_decay does not go with FSDP: the average would be whole in every process. Leave it out."
        )
    if args.load_in_4bit:
        raise DataError("--load_in_4bit does not go with FSDP, which cannot shard weights of 4 bits: use DDP.")
    if args.on_error == "skip":
        # a process whose batch has nothing usable would leave the others waiting for its share of the weights
        raise DataError("--on_error skip does not go with FSDP: mend the data set, or use DDP.")


def make_supervision(config: ScanFormerConfig, start: str) -> SceneSupervision:
    """With the heads that an earlier run has left beside the model it starts from, where they still fit."""
    try:
        supervision = SceneSupervision(config)
    except ValueError as error:
        raise DataError(f"--scene_supervision does not go with this model: {error}") from error
    kept = Path(start, HEADS_NAME)
    if not kept.is_file():
        return supervision
    try:
        heads = load_file(kept)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{kept} cannot be read: {error}. Delete it to begin with new heads.") from error
    shapes = [{name: tensor.shape for name, tensor in of.items()} for of in (heads, supervision.state_dict())]
    if shapes[0] == shapes[1]:
        supervision.load_state_dict(heads)
    else:
        logger.info(
            f"The heads in {kept} are for another model or other attributes: the supervision begins with new ones."
        )
    return supervision


def compute_losses(
    model: torch.nn.Module, unwrapped: torch.nn.Module, batch: dict, supervision: torch.nn.Module | None, weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss to be lowered, and what it is made of by name."""
    if supervision is None:
        outputs = model(**batch)
        return outputs.loss, outputs.loss_dict
    labels = {name: batch.pop(name) for name in LABELS}
    outputs = model(**batch, output_hidden_states=True)
    loss, losses = supervision(
        unwrapped.model.layers,
        outputs.hidden_states,
        outputs.patch_indices,
        outputs.selection_logits,
        batch["spatial_shapes"],
        **labels,
    )
    return outputs.loss + weight * loss, {**outputs.loss_dict, **losses}


def train(args: Arguments):
    make_folder(args.output_dir)
    tracker = JsonlTracker(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # a step may take its batches from two epochs: so all steps are equal
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=[tracker] if args.report_to is None else [tracker, args.report_to],
        project_config=ProjectConfiguration(project_dir=args.output_dir),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, dispatch_batches=False),
        step_scheduler_with_optimizer=False,
    )
    check_processes(accelerator)
    check_sharding(args, accelerator)
    with sole_run(args.output_dir, accelerator):
        train_model(args, accelerator)
    accelerator.end_training()


def train_model(args: Arguments, accelerator: Accelerator):
    """From the start, or from a checkpoint, to the last step."""
    set_seed(args.seed)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    begins_anew = checkpoint is None and args.resume_from_checkpoint is not None
    if not begins_anew and (checkpoint is None or not is_within(checkpoint, args.output_dir)):
        check_unused(args.output_dir)
    if accelerator.is_main_process:
        remove_partial(args.output_dir)
    model, processor = load_model(args)
    if isinstance(model, PeftModel) and (args.optimizer == "muon" or args.scene_supervision > 0):
        raise DataError(
            "--optimizer muon and --scene_supervision train whole models: merge the adapter into its model first."
        )
    repo_id = None
    if args.push_to_hub:
        check_base_is_public(model)
        if accelerator.is_main_process:
            repo_id = open_repository(args.hub_model_id, args.hub_private_repo)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    final_threshold = model.config.selection_threshold
    # as plain values, which checkpoints hold
    settings = json.loads(json.dumps(describe(args)))
    if isinstance(model, PeftModel):
        settings["base"] = fingerprint(model.get_base_model(), with_adapters=False)

    batch_size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    train_dataset, eval_dataset = load_datasets(args, args.seed, num_scenes=args.max_train_steps * batch_size)
    supervision, labeller = None, None
    if args.scene_supervision > 0:
        supervision = make_supervision(model.config, args.model_name_or_path)
        labeller = partial(label_samples, patch_size=model.config.patch_size, processor=processor)
    train_collator, eval_collator = make_collators(
        args, processor, args.seed, share_pictures=not args.streaming, label_samples=labeller
    )
    # the samples of Scenes are in random order already, and made one after another; a stream shuffles itself
    shuffle = {} if args.streaming or args.dataset == "scenes" else {"shuffle": True}
    train_loader = make_dataloader(
        train_dataset, args.per_device_train_batch_size, train_collator, args, drop_last=True, **shuffle
    )
    eval_loader = None
    if eval_dataset is not None:
        eval_loader = make_dataloader(eval_dataset, args.per_device_eval_batch_size, eval_collator, args)

    with_muon = args.optimizer == "muon"
    groups = create_parameter_groups(
        model, args.learning_rate, args.weight_decay, args.layerwise_lr_decay, with_muon=with_muon
    )
    if supervision is not None:
        rate = HEADS_RATE * args.learning_rate
        groups.append({"params": list(supervision.parameters()), "weight_decay": 0.0, "lr": rate})
    optimizer = (Muon if with_muon else torch.optim.AdamW)(groups, lr=args.learning_rate, fused=True)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.num_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )
    if supervision is not None:
        supervision = accelerator.prepare(supervision)
    modules = [model] if supervision is None else [model, supervision]
    if not args.streaming and len(train_loader) == 0:
        raise DataError(
            f"The training data, {len(train_dataset)} samples, do not fill one batch of {args.per_device_train_batch_size} "
            "for every process: lower --per_device_train_batch_size."
        )
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    if isinstance(unwrapped, PeftModel):
        keep_trained_weights(accelerator, unwrapped)
    # where FSDP shards the model, weights come together for it as they do for `forward`; otherwise nothing happens
    register_fsdp_forward_method(unwrapped, "generate")
    state = TrainingState()
    accelerator.register_for_checkpointing(state)
    average = None if args.ema_decay is None else average_weights(unwrapped, args.ema_decay)
    if average is not None:
        accelerator.register_for_checkpointing(average)
    # what is evaluated and saved
    answering = unwrapped if average is None else average.module
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint)
        changed = check_settings(state.settings, settings)
        if state.best_results and changed.intersection(EVALUATION_SETTINGS):
            logger.info("Evaluations are of other samples than before: the best model is chosen anew.")
            state.forget_best()
        if state.best_results and not holds_model(Path(args.output_dir, "best")):
            logger.info(f"The best model is not in {args.output_dir}: the next evaluation starts anew.")
            state.forget_best()
    state.settings = settings
    if begins_anew and accelerator.is_main_process:
        # everything is loaded by now: the best of the run that was stopped makes room
        shutil.rmtree(Path(args.output_dir, "best"), ignore_errors=True)
    accelerator.init_trackers(Path(args.output_dir).name, config=describe(args))

    trained = sum(parameter.numel() for parameter in unwrapped.parameters() if parameter.requires_grad)
    present = sum(parameter.numel() for parameter in unwrapped.parameters())
    logger.info(f"Training {trained:,} of {present:,} parameters for {args.max_train_steps} steps of {batch_size}")
    if checkpoint is None:
        log(accelerator, {"trainable_parameters": trained, "all_parameters": present}, step=0)
    progress = tqdm(total=args.max_train_steps, initial=state.step, disable=not accelerator.is_local_main_process)
    patience = args.early_stopping_patience or float("inf")
    batches = endless_batches(train_loader, train_dataset, state)
    while state.step < args.max_train_steps and state.evaluations_without_gain < patience:
        batch = next(batches)
        unwrapped.config.selection_threshold = selection_threshold(
            state.step, args.selection_warmup_steps, args.selection_anneal_steps, final_threshold
        )
        model.train()
        with accelerator.accumulate(*modules):
            with accelerator.autocast():
                loss, losses = compute_losses(
                    model, unwrapped, spread_pictures(batch), supervision, args.scene_supervision
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients and args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(chain(*(m.parameters() for m in modules)), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in {"loss": loss, **losses}.items():
            state.sums[name] = state.sums.get(name, 0.0) + value.item() / args.gradient_accumulation_steps
        if not accelerator.sync_gradients:
            continue
        scheduler.step()
        if average is not None:
            average.update_parameters(unwrapped)
        state.step += 1
        state.summed_steps += 1
        progress.update()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if state.step % args.logging_steps == 0:
            sums = mean_over_processes(state.sums)
            means = {name: round(total / state.summed_steps, 5) for name, total in sums.items()}
            log(accelerator, {**means, "learning_rate": scheduler.get_last_lr()[0]}, step=state.step)
            state.sums, state.summed_steps = {}, 0
        if eval_loader is not None and (state.step % args.eval_steps == 0 or state.step == args.max_train_steps):
            # as it would be saved: what is best while everything is read need not be best later
            answering.config.selection_threshold = final_threshold
            results = evaluate_grounding(answering, eval_loader, accelerator)
            log(accelerator, {f"eval_{name}": value for name, value in results.items()}, step=state.step)
            state.evaluations_without_gain += 1
            if results["acc@0.5"] > state.best:
                state.best, state.best_results, state.evaluations_without_gain = results["acc@0.5"], results, 0
                save_model(accelerator, answering, processor, args.output_dir, final_threshold, folder="best")
        if state.step % args.checkpointing_steps == 0:
            # the main process alone writes the state
            state.sums = mean_over_processes(state.sums)
            save_checkpoint(accelerator, args.output_dir, state.step, args.checkpoints_total_limit)
    if supervision is not None and accelerator.is_main_process:
        save_file(accelerator.unwrap_model(supervision).state_dict(), Path(args.output_dir, HEADS_NAME))
    save_model(accelerator, answering, processor, args.output_dir, final_threshold)
    if repo_id is not None:
        folder = Path(args.output_dir) / ("best" if state.best_results else "")
        write_card(folder, repo_id, args, state.best_results, accelerator.num_processes)
        logger.info(f"Pushed to {push(folder, repo_id)}")


def main():
    try:
        start_processes()
        train(parse_arguments())
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
