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
"""examples/run_visual_grounding.py: runs that are killed, and disks that are full, change nothing about the result."""

import json
import multiprocessing
import os
import random
import sys
import time
from unittest.mock import Mock

import pytest
import run_visual_grounding
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from filelock import FileLock
from grounding.optimization import selection_threshold
from safetensors.torch import load_file
from scenes.create_model import create_model
from scenes.supervision import HEADS_NAME, HEADS_RATE
from tiny import picture


# All that learning from scene graphs brings, in low precision and in parts of a batch.
SUPERVISED = {
    "scene_supervision": 1.0,
    "optimizer": "muon",
    "augment": ["veil"],
    "mixed_precision": "bf16",
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    model, processor = create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=32,num_hidden_layers=4,selection_layer=3", 64
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_command(model, output_dir, **options) -> list[str]:
    """Four steps, unless options say otherwise."""
    options = {
        "model_name_or_path": model,
        "output_dir": output_dir,
        "dataset_level": "easy",
        "max_train_steps": 4,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "checkpointing_steps": 2,
        "max_eval_samples": 4,
        "dataloader_num_workers": 0,
        "num_warmup_steps": 1,
        **options,
    }
    command = ["run_visual_grounding.py"]
    for name, value in options.items():
        if value is None:
            continue
        command += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return command


def train(monkeypatch, model, output_dir, **options):
    """Losses by step, and all lines of the log."""
    monkeypatch.setattr(sys, "argv", make_command(model, output_dir, **options))
    reset_accelerator()
    run_visual_grounding.main()
    return read_log(output_dir)


def reset_accelerator():
    """Every run begins as a process of its own would."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def read_log(output_dir):
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}, lines


def assert_same_files(folder, expected, name="model.safetensors"):
    weights, expected = load_file(folder / name), load_file(expected / name)
    assert set(weights) == set(expected)
    assert [key for key in expected if not torch.equal(weights[key], expected[key])] == []


@pytest.mark.parametrize(
    "compiled, more",
    [(False, {}), (True, {}), (False, SUPERVISED)],
    ids=["plain", "compiled", "supervised"],
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(monkeypatch, untrained, tmp_path, compiled, more):
    compilations = Mock(wraps=torch.compile)
    monkeypatch.setattr(torch, "compile", compilations)
    if compiled:  # as `accelerate launch` says it; without code generation, which takes minutes
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
        monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
        monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")
    options = {"selection_warmup_steps": 1, "selection_anneal_steps": 2, **more}
    losses, lines = train(monkeypatch, untrained, tmp_path / "whole", **options)
    assert sorted(losses) == [1, 2, 3, 4]
    assert any(line.get("loss_words", 0) > 0 for line in lines) == ("scene_supervision" in more)
    assert [line["eval_num_samples"] for line in lines if "eval_num_samples" in line] == [4]
    assert compilations.called == compiled

    # as if killed after the second step: its checkpoint is there, a later one was half written
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    (whole / "checkpoint-2").rename(resumed / "checkpoint-2")
    (resumed / "partial-4").mkdir()
    again, _ = train(monkeypatch, untrained, resumed, resume_from_checkpoint="latest", **options)
    assert again == {step: losses[step] for step in (3, 4)}
    assert_same_files(resumed, whole)
    config = json.loads((whole / "config.json").read_text())
    assert config["selection_threshold"] == 0.5, "the model is saved with its final threshold"


def test_heads_of_the_supervision_learn_faster(monkeypatch, untrained, tmp_path):
    options = {"scene_supervision": 1.0, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    _, lines = train(monkeypatch, untrained, tmp_path / "run", **options)
    assert {line["learning_rate"] for line in lines if "learning_rate" in line} == {1e-3}, "the model's is logged"
    groups = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.bin", weights_only=True)["param_groups"]
    assert {group["lr"] for group in groups[:-1]} == {1e-3}
    assert groups[-1]["lr"] == HEADS_RATE * 1e-3


def test_another_run_goes_on_with_the_heads_of_the_supervision(monkeypatch, untrained, tmp_path):
    first = tmp_path / "first"
    train(monkeypatch, untrained, first, scene_supervision=1.0)
    heads = load_file(first / HEADS_NAME)
    kept = load_file(first / "checkpoint-4" / "model_1.safetensors")
    assert heads.keys() == kept.keys() and all(torch.equal(heads[name], kept[name]) for name in kept)
    # at a rate of 0 they stay what they are
    train(monkeypatch, first, tmp_path / "second", scene_supervision=1.0, learning_rate=0.0)
    again = load_file(tmp_path / "second" / HEADS_NAME)
    assert all(torch.equal(heads[name], again[name]) for name in heads)
    # a deeper Encoder1 has more of them
    deeper = {"config_overrides": "num_hidden_layers=5,selection_layer=4", "learning_rate": 0.0}
    train(monkeypatch, first, tmp_path / "deeper", scene_supervision=1.0, **deeper)
    assert load_file(tmp_path / "deeper" / HEADS_NAME).keys() > heads.keys()
    (first / HEADS_NAME).write_bytes(b"torn")
    with pytest.raises(SystemExit, match="Delete it to begin with new heads"):
        train(monkeypatch, first, tmp_path / "third", scene_supervision=1.0)


def test_runs_do_not_mix_in_one_folder(monkeypatch, untrained, tmp_path):
    train(monkeypatch, untrained, tmp_path / "first", max_train_steps=2, eval_steps=1)
    with pytest.raises(SystemExit, match="the folder of an earlier run"):
        train(monkeypatch, untrained, tmp_path / "first", lora_r=2)
    # in a folder without the best model that the checkpoint knows of, the next evaluation gives one
    checkpoint = {"resume_from_checkpoint": tmp_path / "first" / "checkpoint-2"}
    train(monkeypatch, untrained, tmp_path / "second", max_train_steps=3, eval_steps=1, **checkpoint)
    assert (tmp_path / "second" / "best" / "config.json").is_file()


def test_a_run_does_not_go_on_before_its_later_checkpoints(monkeypatch, untrained, tmp_path):
    train(monkeypatch, untrained, tmp_path / "first", max_train_steps=4)
    (tmp_path / "first" / "checkpoint-best").mkdir()
    checkpoint = {"resume_from_checkpoint": tmp_path / "first" / "checkpoint-2"}
    with pytest.raises(SystemExit, match="later checkpoints than checkpoint-2, up to checkpoint-4"):
        train(monkeypatch, untrained, tmp_path / "first", **checkpoint)
    train(monkeypatch, untrained, tmp_path / "branch", **checkpoint)
    assert (tmp_path / "branch" / "checkpoint-4").is_dir()
    with pytest.raises(SystemExit, match="the folder of an earlier run"):
        train(monkeypatch, untrained, tmp_path / "branch", **checkpoint)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(monkeypatch, untrained, tmp_path):
    options = {"max_train_steps": 2, "eval_steps": 1, "checkpointing_steps": 10}
    losses, _ = train(monkeypatch, untrained, tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("best", "log.jsonl"):
        (tmp_path / "whole" / name).rename(killed / name)
    with pytest.raises(SystemExit, match="latest"):
        train(monkeypatch, untrained, killed, **options)
    again, _ = train(monkeypatch, untrained, killed, resume_from_checkpoint="latest", **options)
    assert again == losses and (killed / "best" / "config.json").is_file()


def test_changed_settings_of_a_resumed_run_are_named(monkeypatch, untrained, tmp_path, caplog):
    options = {"max_train_steps": 2, "logging_steps": 5}
    train(monkeypatch, untrained, tmp_path, **options)
    options |= {"resume_from_checkpoint": "latest", "max_train_steps": 4}
    with pytest.raises(SystemExit, match="goes on with its own --learning_rate 0.0005, --weight_decay 0.01"):
        train(monkeypatch, untrained, tmp_path, **options, learning_rate=1e-6, weight_decay=0.0)
    losses, _ = train(monkeypatch, untrained, tmp_path, **{**options, "logging_steps": 3})
    assert "Resumed with another --max_train_steps: 4, and before 2." in caplog.text
    assert "logging_steps" not in caplog.text
    whole, _ = train(monkeypatch, untrained, tmp_path / "whole", max_train_steps=4, lr_scheduler_type="constant")
    assert losses[3] == pytest.approx(sum(whole[step] for step in (1, 2, 3)) / 3, rel=0.1), "a mean of three steps"


def run_in_child(command):
    sys.argv = command
    # a process forked from one that has run OpenMP threads may not use them
    torch.set_num_threads(1)
    run_visual_grounding.main()


def steps_logged(output_dir) -> int:
    log = output_dir / "log.jsonl"
    return log.read_text().count('"loss"') if log.is_file() else 0


def test_a_run_that_is_killed_again_and_again_gives_the_same_adapter(monkeypatch, tmp_path):
    """Order of the data, dropout, augmentation, accumulation over epochs, average, schedule and adapter go on."""
    model, processor = create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=32,num_hidden_layers=2,selection_layer=1,"
        "hidden_dropout_prob=0.1",
        64,
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_pictures(tmp_path / "pictures", 10)
    options = {"dataset": tmp_path / "pictures", "train_val_split": 0.2, "max_train_steps": 12, "eval_steps": 4}
    options |= {"lora_r": 2, "dora": True, "ema_decay": 0.9, "augment": ["flip", "crop", "color", "aspect"]}
    options |= {"gradient_accumulation_steps": 3, "layerwise_lr_decay": 0.8, "selection_anneal_steps": 6}
    # forks of a process that has only imported things: they start at once and can be killed at any point
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_training"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def start(output_dir):
        resume = {"resume_from_checkpoint": "latest"} if any(output_dir.glob("checkpoint-*")) else {}
        command = make_command(tmp_path / "model", output_dir, **options, **resume)
        process = context.Process(target=run_in_child, args=(command,))
        process.start()
        return process

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    generator = random.Random(0)
    kills = 0
    for _ in range(3):
        process, until = start(killed), steps_logged(killed) + generator.randint(1, 4)
        while process.is_alive() and steps_logged(killed) < until:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.1))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills > 0
    process = start(killed)
    process.join()
    assert process.exitcode == 0
    for folder in ("", "best"):
        assert_same_files(killed / folder, whole / folder, "adapter_model.safetensors")
    assert not list(killed.glob("partial-*"))
    assert len(list(killed.glob("checkpoint-*"))) == 2


def write_pictures(folder, num_pictures: int):
    """A folder of pictures of several sizes, each with two expressions."""
    folder.mkdir()
    lines = []
    for index in range(num_pictures):
        width, height = 40 + 7 * (index % 3), 30 + 5 * (index % 2)
        picture(width, height, index).save(folder / f"{index}.png")
        for expression in ("the red cup on the left", f"object {index}"):
            box = [index, 2, index + 20, 25]
            lines.append({"file_name": f"{index}.png", "expression": expression, "bbox": box})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_full_disk_is_said_and_the_last_good_checkpoint_stays(monkeypatch, untrained, tmp_path):
    save_state = Accelerator.save_state

    def fail_later(self, folder):
        if folder.endswith("-2"):
            return save_state(self, folder)
        os.makedirs(folder)
        (tmp_path / "partial-4" / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", fail_later)
        with pytest.raises(SystemExit, match="(?s)No space left.*last good checkpoint is .*checkpoint-2.*full"):
            train(patch, untrained, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "partial-4").exists() and not (tmp_path / "config.json").exists()
    losses, _ = train(monkeypatch, untrained, tmp_path, resume_from_checkpoint="latest")
    assert sorted(losses) == [1, 2, 3, 4] and (tmp_path / "model.safetensors").is_file()


def test_every_schedule_trains_and_so_do_gradients_that_are_not_clipped(monkeypatch, untrained, tmp_path):
    for name in run_visual_grounding.SCHEDULES:
        options = {"lr_scheduler_type": name, "max_train_steps": 2, "max_grad_norm": 0.0, "validation_split": ""}
        train(monkeypatch, untrained, tmp_path / name, **options)
        weights, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / name, untrained))
        assert any(not torch.equal(weights[key], before[key]) for key in before)


def test_two_runs_do_not_work_in_one_folder(monkeypatch, untrained, tmp_path):
    (tmp_path / "partial-2").mkdir()
    with FileLock(tmp_path / "lock"), pytest.raises(SystemExit, match="Another run is at work"):
        train(monkeypatch, untrained, tmp_path, max_train_steps=1)
    assert (tmp_path / "partial-2").is_dir(), "what the other run is writing"
    train(monkeypatch, untrained, tmp_path, max_train_steps=1)


def test_the_threshold_rises_after_a_start_that_reads_everything():
    assert [selection_threshold(step, 10, 20, 0.5) for step in (0, 10, 20, 30, 40)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    assert selection_threshold(0, 0, 0, 0.5) == 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resume_from_checkpoint": "latest"}, "no checkpoint"),
        ({"resume_from_checkpoint": "nowhere"}, "nowhere"),
        ({"dataset_level": "absurd"}, "absurd"),
        ({"max_train_samples": 1}, "do not fill"),
        ({"max_eval_samples": 0}, "--max_eval_samples is at least 1"),
        ({"logging_steps": 0}, "--logging_steps is at least 1"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is at least 1"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm is at least 0"),
        ({"learning_rate": -1.0}, "--learning_rate is at least 0"),
        ({"selection_warmup_steps": -1}, "--selection_warmup_steps is at least 0"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience is at least 1"),
        ({"scene_supervision": -1.0}, "--scene_supervision is at least 0"),
        ({"scene_supervision": 1.0, "dataset": "nowhere"}, "needs scene graphs"),
        ({"scene_supervision": 1.0, "lora_r": 2}, "trains the whole model"),
        ({"scene_supervision": 1.0, "augment": ["flip"]}, "only veil goes with it"),
        ({"scene_supervision": 1.0, "config_overrides": "merge_constant_tokens=false"}, "merge_constant_tokens"),
        ({"optimizer": "muon", "train": "heads"}, "--optimizer muon is for the whole model"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows evaluations"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs settings of its own"),
        ({"report_to": "paper"}, "--report_to knows"),
        ({"report_to": "aim"}, "--report_to aim needs a package that is not installed"),
    ],
    ids=str,
)
def test_errors_come_before_training(monkeypatch, untrained, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        train(monkeypatch, untrained, tmp_path, **options)
    assert not list(tmp_path.glob("checkpoint-*"))
