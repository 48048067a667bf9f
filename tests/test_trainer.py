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
"""examples/run_visual_grounding_trainer.py: Trainer learns what the plain loop learns."""

import json
import sys

import numpy as np
import pytest
import run_visual_grounding_trainer
import torch
from run_visual_grounding_trainer import compute_metrics
from safetensors.torch import load_file
from test_training import assert_same_files, reset_accelerator, train, write_pictures
from transformers import EvalPrediction, pipeline


STEPS = 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 8)


@pytest.fixture
def train_by_trainer(monkeypatch, checkpoint, pictures):
    def run(output_dir, *flags, **options):
        options = {
            "model_name_or_path": checkpoint,
            "output_dir": output_dir,
            "dataset": pictures,
            "train_val_split": 0.25,
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 1,
            "logging_steps": 1,
            "save_steps": 3,
            "dataloader_drop_last": True,
            "seed": 0,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **options,
        }
        command = [f"--{name}={value}" for name, value in options.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["run_visual_grounding_trainer.py", *command, *flags])
        reset_accelerator()
        run_visual_grounding_trainer.main()
        history = json.loads((output_dir / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        return {line["step"]: line["loss"] for line in history if "loss" in line}

    return run


def test_both_scripts_have_the_same_losses(monkeypatch, checkpoint, pictures, train_by_trainer, tmp_path):
    """The order of the data, augmentation, warm-up, selection schedule and rates of layers are the same."""
    common = {"train_val_split": 0.25, "learning_rate": 1e-3, "layerwise_lr_decay": 0.9, "selection_anneal_steps": 4}
    flags = ["--augment", "flip", "crop", "color"]
    by_trainer = train_by_trainer(tmp_path / "trainer", *flags, **common)
    by_loop, lines = train(
        monkeypatch,
        checkpoint,
        tmp_path / "loop",
        dataset=pictures,
        max_train_steps=STEPS,
        augment=flags[1:],
        **common,
    )
    # Trainer logs 4 digits; the rest is rounding that grows from step to step
    assert by_trainer == pytest.approx(by_loop, rel=1e-3)
    assert len(set(by_loop.values())) == STEPS
    results = json.loads((tmp_path / "trainer" / "eval_results.json").read_text())
    assert results["eval_mean_iou"] == pytest.approx(lines[-1]["eval_mean_iou"], abs=1e-3)
    config = json.loads((tmp_path / "trainer" / "config.json").read_text())
    assert config["selection_threshold"] == 0.5, "the final one"
    config = json.loads((tmp_path / "trainer" / "checkpoint-3" / "config.json").read_text())
    assert config["selection_threshold"] == 0.5, "the final one, before the schedule has come to it"


def test_an_adapter_is_trained_saved_and_resumed(train_by_trainer, checkpoint, tmp_path):
    options = {"lora_r": 4, "train_val_split": None, "validation_split": "train", "eval_strategy": "steps"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_by_trainer(whole, eval_steps=3, **options)
    assert set(load_file(whole / "adapter_model.safetensors")) and not (whole / "model.safetensors").exists()
    assert pipeline("visual-grounding", model=str(whole)).model.active_adapters() == ["default"]
    resumed.mkdir()
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    train_by_trainer(resumed, eval_steps=3, resume_from_checkpoint="latest", **options)
    assert_same_files(resumed, whole, "adapter_model.safetensors")
    with pytest.raises(SystemExit, match="no checkpoint in .*none"):
        train_by_trainer(tmp_path / "none", resume_from_checkpoint="latest", **options)


def test_the_optimizer_is_the_one_that_was_asked_for(train_by_trainer, tmp_path):
    losses = {name: train_by_trainer(tmp_path / name, optim=name) for name in ("adamw_torch", "sgd")}
    first, last = 1, STEPS
    assert losses["sgd"][first] == losses["adamw_torch"][first]
    assert losses["sgd"][last] != losses["adamw_torch"][last]


def test_metrics_are_those_of_the_evaluation():
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]] * 2, [[0.5, 0.5, 0.2, 0.4]] * 2, [[0.5, 0.5, 0.4, 0.4]] * 2])
    boxes[1, 0] = torch.tensor([0.1, 0.1, 0.1, 0.1])
    labels = np.array([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [np.nan] * 4], dtype=np.float32)
    results = compute_metrics(EvalPrediction(predictions=boxes.numpy(), label_ids=labels))
    assert (results["acc@0.5"], results["acc@0.5_scale_0"], results["mean_iou"]) == (1.0, 0.5, pytest.approx(0.75))
    empty = compute_metrics(EvalPrediction(predictions=boxes[2:].numpy(), label_ids=labels[2:]))
    assert empty["acc@0.5"] is None


def test_a_used_folder_and_sharding_are_refused(train_by_trainer, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="the folder of an earlier run"):
        train_by_trainer(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match="Under FSDP"):
        train_by_trainer(tmp_path / "other")


def test_bad_input_is_refused(train_by_trainer, tmp_path):
    with pytest.raises(SystemExit, match="Scenes have no end"):
        train_by_trainer(tmp_path, dataset="scenes", train_val_split=None, max_steps=-1)
    with pytest.raises(SystemExit, match="do not go with --train heads"):
        train_by_trainer(tmp_path, lora_r=4, train="heads")
