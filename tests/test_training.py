"""examples/run_visual_grounding.py on a few samples of Scenes."""

import json
import sys

import pytest
import run_visual_grounding
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from scenes.create_model import create_model


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    model, processor = create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=32,num_hidden_layers=2,selection_layer=1", 64
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def train(monkeypatch, untrained, output_dir, **options):
    options = {
        "model_name_or_path": untrained,
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
    monkeypatch.setattr(sys, "argv", ["run_visual_grounding.py"] + [f"--{k}={v}" for k, v in options.items()])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    run_visual_grounding.main()
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}, lines


def test_a_resumed_run_equals_one_that_was_not_interrupted(monkeypatch, untrained, tmp_path):
    options = {"selection_warmup_steps": 1, "selection_anneal_steps": 2}
    losses, lines = train(monkeypatch, untrained, tmp_path / "whole", **options)
    assert sorted(losses) == [1, 2, 3, 4]
    assert [line["eval_num_samples"] for line in lines if "eval_num_samples" in line] == [4]

    # as if killed after the second step: its checkpoint is there, a later one was half written
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    (whole / "checkpoint-2").rename(resumed / "checkpoint-2")
    (resumed / "partial-4").mkdir()
    again, _ = train(monkeypatch, untrained, resumed, resume_from_checkpoint="latest", **options)
    assert again == {step: losses[step] for step in (3, 4)}
    weights, expected = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    config = json.loads((whole / "config.json").read_text())
    assert config["selection_threshold"] == 0.5, "the model is saved with its final threshold"


def test_the_threshold_rises_after_a_start_that_reads_everything():
    args = run_visual_grounding.Arguments("model", "out", selection_warmup_steps=10, selection_anneal_steps=20)
    thresholds = [run_visual_grounding.selection_threshold(step, args, 0.5) for step in (0, 10, 20, 30, 40)]
    assert thresholds == [0.0, 0.0, 0.25, 0.5, 0.5]
    args = run_visual_grounding.Arguments("model", "out")
    assert run_visual_grounding.selection_threshold(0, args, 0.5) == 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resume_from_checkpoint": "latest"}, "no checkpoint"),
        ({"resume_from_checkpoint": "nowhere"}, "nowhere"),
        ({"dataset_level": "absurd"}, "absurd"),
        ({"max_train_samples": 1}, "does not fill"),
    ],
    ids=str,
)
def test_errors_come_before_training(monkeypatch, untrained, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(monkeypatch, untrained, tmp_path, **options)
    assert not list(tmp_path.glob("checkpoint-*"))
