"""examples/compare_scanning.py: selection against reading everything and one scale alone, in a table."""

import json
import sys

import compare_scanning
import pytest
import torch
from grounding import scripts
from safetensors.torch import load_file

from modeling_scanformer import ScanFormerConfig


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_scanning.py", *map(str, arguments)])
    compare_scanning.main()


def test_arms_share_their_start_and_are_not_run_again(tmp_path, monkeypatch, capsys):
    arms = ["unselected patches dropped", "selection end to end"]
    arguments = ["--output_dir", tmp_path, "--arms", *arms, "--splits", "test", "--num_test_samples", 2]
    arguments += ["--start_steps", 2, "--finish_steps", 2, "--per_device_train_batch_size", 4]
    run(monkeypatch, *arguments)
    starts = {path.name for path in tmp_path.glob("start-*")}
    assert starts == {"start-num_scales=3-0", "start-num_scales=3-0-untrained"}
    shared = load_file(tmp_path / "start-num_scales=3-0" / "model.safetensors")
    changed = {arm: load_file(tmp_path / f"{arm.replace(' ', '-')}-0" / "start" / "model.safetensors") for arm in arms}
    dropped, fresh = changed.values()
    assert shared.keys() - dropped.keys() == {"model.constant_token.weight"}
    differing = {name for name, tensor in fresh.items() if not torch.equal(tensor, shared[name])}
    assert {"model.selection_head.dense.weight", "model.selection_head.classifier.weight"} <= differing
    assert all(name.startswith("model.selection_head.") for name in differing)
    config = ScanFormerConfig.from_pretrained(tmp_path / "selection-end-to-end-0")
    assert config.relevance_loss_coefficient == config.selection_rate_loss_coefficient == 0.0
    assert config.selection_threshold == 0.1
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {arm}" for arm in arms]
    assert json.loads((tmp_path / "table.json").read_text())["arms"].keys() == set(arms)

    monkeypatch.setattr(scripts.subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    run(monkeypatch, *arguments)


def test_one_arm_alone_has_the_loss_of_the_boxes_of_patches(tmp_path, monkeypatch):
    arguments = ["--output_dir", tmp_path, "--arms", "boxes of patches", "--seeds", 0, "--splits", "test"]
    arguments += ["--num_test_samples", 2, "--start_steps", 1, "--finish_steps", 1, "--per_device_train_batch_size", 2]
    run(monkeypatch, *arguments)
    assert ScanFormerConfig.from_pretrained(tmp_path / "boxes-of-patches-0").patch_box_loss_coefficient > 0
    others = [arm for name, arm in compare_scanning.ARMS.items() if name != "boxes of patches"]
    assert not [arm for arm in others if "patch_box" in arm.shape + arm.changes]
    assert "patch_box_loss_coefficient=0.0" in compare_scanning.MODEL


def test_rows_are_means_over_seeds():
    def results(accuracy: float) -> dict:
        costs = {"patches_read_total": 0.25, "flops_per_sample": 2e6, "latency_ms": 3.0}
        return {
            "test": {"acc@0.5": accuracy, "scale_acc@0.5": [accuracy - 0.2, accuracy], **costs},
            "test-fog": {"acc@0.5": accuracy - 0.1},
        }

    one, two = compare_scanning.to_rows({"one": [results(0.5)], "two": [results(0.5), results(0.7)]})
    assert one == ["one", "1", "50.0", "30.0 / 50.0", "40.0", "25.0", "2.0", "3.0"]
    assert two == ["two", "2", "60.0 ± 14.1", "40.0 / 60.0", "50.0 ± 14.1", "25.0", "2.0", "3.0"]


def test_nothing_to_train_is_said(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="seed"):
        run(monkeypatch, "--output_dir", tmp_path, "--arms", "coarsest scale alone", "--seeds", 7)


def test_unknown_arms_are_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no arm"):
        run(monkeypatch, "--output_dir", tmp_path, "--arms", "glimpses")
