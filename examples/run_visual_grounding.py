"""
Train or fine-tune a ScanFormer on any data set with the columns image, expression and bbox (xyxy, pixels).

    accelerate launch examples/run_visual_grounding.py --model_name_or_path outputs/untrained --dataset scenes \
        --dataset_level easy --output_dir outputs/easy --max_train_steps 2000

Arguments can also come from a YAML file: `python examples/run_visual_grounding.py settings.yaml`.
"""

import json
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import ProjectConfiguration, set_seed
from grounding_data import GroundingCollator, load_grounding_dataset
from grounding_evaluation import evaluate_grounding
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser, SchedulerType, get_scheduler

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor


logger = get_logger(__name__, log_level="INFO")


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Model to start from: a folder or an id on the Hub."})
    output_dir: str = field(metadata={"help": "Folder for the trained model, its checkpoints and its log."})
    dataset: str = field(
        default="scenes", metadata={"help": "'scenes', a folder of parquet files or of pictures, or a Hub id."}
    )
    dataset_level: str = field(
        default="standard", metadata={"help": "Level of Scenes: primer, basic, easy, standard or hard."}
    )
    expressions_per_scene: int = field(
        default=1, metadata={"help": "Samples of Scenes in a row that are about one picture: they tell words apart."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on; empty for none."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many samples only."})
    on_error: str = field(
        default="stop", metadata={"help": "What to do with unusable samples: 'stop', or 'skip' and warn."}
    )
    max_eval_samples: int = field(default=1000, metadata={"help": "Evaluate on so many samples."})
    longest_edge: int | None = field(default=None, metadata={"help": "Resolution in pixels, if not the processor's."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Batch size of every process."})
    per_device_eval_batch_size: int = field(default=50, metadata={"help": "Batch size of every process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches that make one step."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    max_train_steps: int = field(default=10000, metadata={"help": "Number of optimizer steps in all."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of matrices."})
    lr_scheduler_type: SchedulerType = field(default="linear", metadata={"help": "Schedule of the learning rate."})
    num_warmup_steps: int = field(default=200, metadata={"help": "Steps over which the learning rate rises."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    selection_warmup_steps: int = field(default=0, metadata={"help": "Steps at the start that read every patch."})
    selection_anneal_steps: int = field(
        default=0, metadata={"help": "Steps after that over which the selection threshold rises to the model's."}
    )
    selection_threshold: float | None = field(default=None, metadata={"help": "Threshold, if not the model's."})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or a flash kernel."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that prepare batches."})
    seed: int = field(default=0, metadata={"help": "Seed of the data order and of Scenes."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between lines of the log."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    checkpointing_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint to go on from, or 'latest'."}
    )
    report_to: str | None = field(default=None, metadata={"help": "A tracker of Accelerate, besides log.jsonl."})


class JsonlTracker(GeneralTracker):
    """Appends what is logged to `log.jsonl` in the output folder, a line per call."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: str):
        super().__init__()
        self.path = Path(folder) / "log.jsonl"

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


def parse_arguments() -> Arguments:
    parser = HfArgumentParser(Arguments)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(sys.argv[1])[0]
    return parser.parse_args_into_dataclasses()[0]


def selection_threshold(step: int, args: Arguments, final: float) -> float:
    """Everything is read at first, then the threshold rises linearly to its final value."""
    progress = (step - args.selection_warmup_steps) / max(args.selection_anneal_steps, 1)
    return final * min(max(progress, 0.0), 1.0) if step < _annealed(args) else final


def _annealed(args: Arguments) -> int:
    return args.selection_warmup_steps + args.selection_anneal_steps


def create_optimizer(model: torch.nn.Module, args: Arguments) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) and embeddings do not decay."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed, plain = [], []
    for parameter in model.parameters():
        (plain if parameter.ndim < 2 or id(parameter) in embeddings else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate)


def find_checkpoint(args: Arguments) -> Path | None:
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != "latest":
        path = Path(args.resume_from_checkpoint)
        if not path.is_dir():
            raise ValueError(f"There is no checkpoint {path}.")
        return path
    checkpoints = list_checkpoints(args.output_dir)
    if not checkpoints:
        raise ValueError(f"There is no checkpoint to resume from in {args.output_dir}.")
    return checkpoints[-1]


def list_checkpoints(output_dir: str) -> list[Path]:
    """Checkpoints in the order of their steps."""
    return sorted(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(accelerator: Accelerator, args: Arguments, step: int):
    """Write a checkpoint under another name first, so that a half-written one is never taken for whole."""
    path = Path(args.output_dir) / f"checkpoint-{step}"
    partial = path.with_name(f"partial-{step}")
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        for old in list_checkpoints(args.output_dir)[: -args.checkpoints_total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_model(
    accelerator: Accelerator, model: ScanFormerForVisualGrounding, processor, folder: Path, threshold: float
):
    """Save the model with its final selection threshold, whatever the current one."""
    if accelerator.is_main_process:
        current, model.config.selection_threshold = model.config.selection_threshold, threshold
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model.config.selection_threshold = current


def main():
    args = parse_arguments()
    os.makedirs(args.output_dir, exist_ok=True)
    tracker = JsonlTracker(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=[tracker] if args.report_to is None else [tracker, args.report_to],
        project_config=ProjectConfiguration(project_dir=args.output_dir),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )
    accelerator.init_trackers(Path(args.output_dir).name, config=asdict(args))
    set_seed(args.seed)

    processor = ScanFormerProcessor.from_pretrained(args.model_name_or_path)
    if args.longest_edge is not None:
        processor.image_processor.size = {"longest_edge": args.longest_edge}
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    model = ScanFormerForVisualGrounding.from_pretrained(args.model_name_or_path, **options)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.selection_threshold is not None:
        model.config.selection_threshold = args.selection_threshold
    final_threshold = model.config.selection_threshold

    batch_size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    train_dataset = load_grounding_dataset(
        args.dataset,
        args.train_split,
        seed=args.seed,
        num_samples=args.max_train_samples
        or (args.max_train_steps * batch_size if args.dataset == "scenes" else None),
        level=args.dataset_level,
        expressions_per_scene=args.expressions_per_scene,
        on_error=args.on_error,
    )
    workers = {"num_workers": args.dataloader_num_workers}
    train_loader = DataLoader(
        # the samples of Scenes are in random order already, and made one after another
        train_dataset,
        shuffle=args.dataset != "scenes",
        batch_size=args.per_device_train_batch_size,
        drop_last=True,
        collate_fn=GroundingCollator(processor, on_error=args.on_error),
        **workers,
    )
    eval_loader = None
    if args.validation_split:
        eval_dataset = load_grounding_dataset(
            args.dataset,
            args.validation_split,
            seed=args.seed,
            num_samples=args.max_eval_samples,
            level=args.dataset_level,
            on_error=args.on_error,
        )
        eval_loader = DataLoader(
            eval_dataset,
            batch_size=args.per_device_eval_batch_size,
            collate_fn=GroundingCollator(processor, on_error=args.on_error, keep_samples=True),
            **workers,
        )

    optimizer = create_optimizer(model, args)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.num_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )
    unwrapped = accelerator.unwrap_model(model)

    step = 0
    checkpoint = find_checkpoint(args)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        step = int(checkpoint.name.split("-")[1])
        logger.info(f"Resumed from {checkpoint}")
    steps_per_epoch = len(train_loader) // args.gradient_accumulation_steps
    if steps_per_epoch == 0:
        raise ValueError(f"The training data does not fill one step of {batch_size} samples.")

    logger.info(f"Training {unwrapped.num_parameters():,} parameters for {args.max_train_steps} steps of {batch_size}")
    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process)
    sums: dict[str, float] = {}
    best = -math.inf
    while step < args.max_train_steps:
        epoch, done = divmod(step, steps_per_epoch)
        train_loader.set_epoch(epoch)
        loader = skip_first_batches(train_loader, done * args.gradient_accumulation_steps)
        for batch in loader:
            unwrapped.config.selection_threshold = selection_threshold(step, args, final_threshold)
            model.train()
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    outputs = model(**batch)
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            for name, value in {"loss": outputs.loss, **outputs.loss_dict}.items():
                sums[name] = sums.get(name, 0.0) + value.item() / args.gradient_accumulation_steps
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            step += 1
            progress.update()
            progress.set_postfix(loss=f"{outputs.loss.item():.3f}")
            if step % args.logging_steps == 0:
                means = {name: round(value / args.logging_steps, 5) for name, value in sums.items()}
                accelerator.log({**means, "learning_rate": scheduler.get_last_lr()[0]}, step=step)
                sums = {}
            if eval_loader is not None and (step % args.eval_steps == 0 or step == args.max_train_steps):
                results = evaluate_grounding(unwrapped, eval_loader, accelerator)
                accelerator.log({f"eval_{name}": value for name, value in results.items()}, step=step)
                if results["acc@0.5"] > best:
                    best = results["acc@0.5"]
                    save_model(accelerator, unwrapped, processor, Path(args.output_dir) / "best", final_threshold)
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, args, step)
            if step == args.max_train_steps:
                break
    save_model(accelerator, unwrapped, processor, Path(args.output_dir), final_threshold)
    accelerator.end_training()


if __name__ == "__main__":
    main()
