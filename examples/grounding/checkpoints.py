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
"""Where a training run stands, and how that is kept: whole, or not at all."""

import math
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME, SAFE_WEIGHTS_NAME
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .checks import DataError


logger = get_logger(__name__, log_level="INFO")

LOG_NAME = "log.jsonl"
LOCK_NAME = "lock"
# A folder with one of these is a model or an adapter.
LAST_FILES = ("config.json", "adapter_config.json")
# How files fail; the last is of sharded checkpoints.
FAILURES = (OSError, RuntimeError, ValueError, KeyError, SafetensorError, CheckpointException)
# What FSDP writes in the place of files of weights and of the optimizer.
SHARDED_FOLDERS = (f"{FSDP_MODEL_NAME}_0", f"{OPTIMIZER_NAME}_0")


@dataclass
class TrainingState:
    """What a resumed run has to know besides weights, optimizer, schedule and random numbers."""

    step: int = 0
    epoch: int = 0
    batches: int = 0  # read in this epoch
    best: float = -math.inf
    best_results: dict = field(default_factory=dict)
    evaluations_without_gain: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of losses since the last line of the log
    summed_steps: int = 0
    settings: dict = field(default_factory=dict)  # of the run that wrote it

    def forget_best(self):
        self.best, self.best_results, self.evaluations_without_gain = -math.inf, {}, 0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict):
        self.__dict__.update(state)


def find_checkpoint(output_dir: str, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint to go on from, if any. A run that was killed before its first has begun without one.

    Raises:
        DataError: if there is no such checkpoint, or it is not the last of the output folder.
    """
    if resume_from_checkpoint is None:
        return None
    checkpoints = list_checkpoints(output_dir)
    if resume_from_checkpoint != "latest":
        path = Path(resume_from_checkpoint)
        if not path.is_dir():
            raise DataError(f"There is no checkpoint {path}.")
        if is_within(path, output_dir) and checkpoints and path.resolve() != checkpoints[-1].resolve():
            raise DataError(
                f"{output_dir} holds later checkpoints than {path.name}, up to {checkpoints[-1].name}, which a run from there "
                "would mix with its own: give it another --output_dir."
            )
        return path
    if checkpoints:
        return checkpoints[-1]
    if not Path(output_dir, LOG_NAME).is_file() or holds_model(Path(output_dir)):
        raise DataError(f"There is no checkpoint to resume from in {output_dir}.")
    logger.warning(f"The run in {output_dir} was stopped before its first checkpoint, and begins anew.")
    return None


def is_within(path: Path, folder: str) -> bool:
    return path.resolve().parent == Path(folder).resolve()


def holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LAST_FILES)


def check_unused(output_dir: str):
    """
    Raises:
        DataError: if the folder holds what another run has made, which would be mixed up with what is new.
    """
    folder = Path(output_dir)
    found = [path for path in (folder, folder / "best") if holds_model(path)]
    found += list_checkpoints(output_dir)
    if found:
        raise DataError(
            f"{output_dir} is the folder of an earlier run, which has left {found[0]}: choose another --output_dir, empty it, "
            "or go on with that run by --resume_from_checkpoint latest."
        )


@contextmanager
def sole_run(output_dir: str, accelerator: Accelerator):
    """
    Keep other runs out of an output folder for the time of a `with` statement. The main process answers for all.

    Raises:
        DataError: if another run is at work there.
    """
    lock = FileLock(Path(output_dir, LOCK_NAME))
    try:
        if accelerator.is_main_process:
            lock.acquire(blocking=False)
    except Timeout as error:
        raise DataError(
            f"Another run is at work in {output_dir}: wait for it, stop it, or choose another --output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def list_checkpoints(output_dir: str) -> list[Path]:
    """Checkpoints in the order of their steps."""
    numbers = {path: path.name.removeprefix("checkpoint-") for path in Path(output_dir).glob("checkpoint-*")}
    return sorted(
        (path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path])
    )


def remove_partial(output_dir: str):
    """Remove what a killed run had not written, or removed, to the end."""
    for path in Path(output_dir).glob("partial-*"):
        shutil.rmtree(path)


def keep_trained_weights(accelerator: Accelerator, model: torch.nn.Module):
    """
    Let checkpoints hold the weights that are trained, and no others: an adapter's base stays as it is, and one in 4 bits
    could not be loaded again. Sharded models (FSDP) keep all.

    Args:
        accelerator (`Accelerator`):
            Of which [`load_checkpoint`] and [`save_checkpoint`] are to be called.
        model (`torch.nn.Module`):
            The model that it has prepared, unwrapped.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def save(models: list, weights: list, folder: str):
        weights[:] = [{name: parameter.detach() for name, parameter in trained.items()} for _ in weights]

    def load(models: list, folder: str):
        while models:
            models.pop()
            stored = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
            # one that was sharded holds the others as well
            missing = sorted(trained.keys() - stored.keys())
            if missing:
                raise ValueError(f"It lacks weights, as {missing[0]}.")
            model.load_state_dict({name: stored[name] for name in trained}, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def load_checkpoint(accelerator: Accelerator, path: Path):
    """
    Restore everything that the accelerator knows of. What sharded processes (FSDP) wrote is put together for one that is not.

    Raises:
        DataError: if the checkpoint is of another model, or was written with other settings.
    """
    try:
        with TemporaryDirectory() as folder:
            is_sharded = (path / SHARDED_FOLDERS[0]).is_dir()
            accelerator.load_state(
                str(path if accelerator.is_fsdp2 or not is_sharded else unshard(path, Path(folder)))
            )
    except FAILURES as error:
        raise DataError(
            f"The checkpoint {path} is not of this model and these settings: resume with those that it was written with. "
            f"{error}"
        ) from error
    logger.info(f"Resumed from {path}")


# What a checkpoint holds itself, whatever the command says, or has trained by; and what may change at will.
KEPT_SETTINGS = ("learning_rate", "weight_decay", "layerwise_lr_decay", "train_val_split")
# What evaluations depend on besides the model: with others, accuracies before and after are not comparable.
EVALUATION_SETTINGS = (
    *("dataset", "dataset_config", "dataset_level", "validation_split", "train_val_split", "max_eval_samples", "seed"),
    *(
        "longest_edge",
        "selection_threshold",
        "on_error",
        "image_column",
        "expression_column",
        "bbox_column",
        "bbox_format",
    ),
)
FREE_SETTINGS = (
    *("output_dir", "resume_from_checkpoint", "logging_steps", "checkpointing_steps", "checkpoints_total_limit"),
    *("per_device_eval_batch_size", "dataloader_num_workers", "report_to", "push_to_hub", "hub_model_id"),
    *("hub_private_repo", "early_stopping_patience"),
)


def check_settings(before: dict, now: dict) -> set[str]:
    """
    Hold the settings of a resumed run against those of the run that wrote its checkpoint, and name what has changed.

    Args:
        before, now (`dict`):
            Settings by name; `"base"` is what the base of an adapter is recognized by.

    Returns:
        `set[str]`: the names of those that have changed.

    Raises:
        DataError: if the change would have no effect, the adapter were put on another model, or pictures that have been
            trained on were held out.
    """
    if not before:  # a checkpoint of an earlier version
        return set()
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if "base" in changed and "load_in_4bit" not in changed:
        raise DataError(
            "The checkpoint's adapter was trained on another model than this: resume with the one that it began on."
        )
    names = KEPT_SETTINGS
    if now.get("train_val_split") is not None:  # of other samples, other pictures would be held out
        names = (*names, "max_train_samples")
    kept = [f"--{name} {before.get(name)}" for name in names if name in changed]
    if kept:
        raise DataError(
            f"The checkpoint goes on with its own {', '.join(kept)}: say so, or start a new run from its model with others."
        )
    for name in sorted(changed.difference(FREE_SETTINGS, ["base"])):
        logger.warning(f"Resumed with another --{name}: {now.get(name)}, and before {before.get(name)}.")
    return changed


def unshard(checkpoint: Path, folder: Path) -> Path:
    """
    Write a checkpoint of sharded processes (FSDP) in `folder` as unsharded ones would have: weights in one file, and the
    optimizer's states by number instead of by name.
    """
    for file in checkpoint.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    weights, optimizer = (_read_shards(checkpoint / name, folder / "shards") for name in SHARDED_FOLDERS)
    weights, optimizer = weights["model"], optimizer["optimizer"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    states = {numbers[name]: state for name, state in optimizer["state"].items()}
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    torch.save({"state": states, "param_groups": groups}, folder / f"{OPTIMIZER_NAME}.bin")
    return folder


def _read_shards(folder: Path, file: Path) -> dict:
    dcp_to_torch_save(folder, file)
    return torch.load(file)


def save_checkpoint(accelerator: Accelerator, output_dir: str, step: int, total_limit: int):
    """
    Write a checkpoint under another name first, so that a half-written one is never taken for whole, and only then
    remove old ones.

    Raises:
        DataError: if it cannot be written. Those before it stay.
    """
    path = Path(output_dir) / f"checkpoint-{step}"
    partial = path.with_name(f"partial-{step}")
    with _naming_the_last_good_checkpoint(partial, output_dir):
        accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if path.exists():
            _remove(path)
        os.replace(partial, path)
        for old in list_checkpoints(output_dir)[:-total_limit]:
            _remove(old)
    accelerator.wait_for_everyone()


def _remove(checkpoint: Path):
    """What has the name of a checkpoint is a whole one, also while it is being removed."""
    doomed = checkpoint.with_name(f"partial-{checkpoint.name}")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


@contextmanager
def _naming_the_last_good_checkpoint(partial: Path, output_dir: str):
    try:
        yield
    except FAILURES as error:
        shutil.rmtree(partial, ignore_errors=True)
        checkpoints = list_checkpoints(output_dir)
        kept = (
            f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint before it."
        )
        raise DataError(
            f"Cannot write to {output_dir}: {error}. {kept} Is the disk full? Make space, and go on with "
            "--resume_from_checkpoint latest."
        ) from error


def save_model(
    accelerator: Accelerator,
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
    output_dir: str,
    threshold: float,
    folder: str = "",
):
    """
    Save the model, or the adapter that it carries, in the output folder or a folder there, with its final selection
    threshold, whatever the current one. The configuration comes last: with it, a folder is whole. All processes call this,
    as each may hold a share of the weights.

    Raises:
        DataError: if it cannot be written.
    """
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return
    partial, folder = Path(output_dir) / "partial-model", Path(output_dir) / folder
    current, model.config.selection_threshold = model.config.selection_threshold, threshold
    with _naming_the_last_good_checkpoint(partial, output_dir):
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
    model.config.selection_threshold = current
    folder.mkdir(exist_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name in LAST_FILES):
        os.replace(file, folder / file.name)
    partial.rmdir()
