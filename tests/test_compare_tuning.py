"""examples/compare_tuning.py: ways of fine-tuning on a shifted domain, in a table."""

import json
import sys

import compare_tuning
import pytest
from grounding import scripts


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_tuning.py", *map(str, arguments)])
    compare_tuning.main()


def test_an_arm_is_trained_evaluated_and_not_run_again(checkpoint, tmp_path, monkeypatch, capsys):
    arguments = ["--model", checkpoint, "--output_dir", tmp_path, "--arms", "LoRA r=4", "--dataset_level", "primer"]
    arguments += ["--max_train_steps", 1, "--per_device_train_batch_size", 2, "--num_test_samples", 2]
    # what was stopped before it was timed is trained anew
    stopped = tmp_path / "LoRA-r4" / "checkpoint-1"
    stopped.mkdir(parents=True)
    (stopped.parent / "log.jsonl").write_text('{"trainable_parameters": 3, "all_parameters": 2}\n')
    run(monkeypatch, *arguments)
    assert not stopped.exists()
    (figures,) = json.loads((tmp_path / "table.json").read_text())["arms"].values()
    assert 0 < figures["trained"] < 1 and figures["megabytes"] > 0 and figures["seconds"] > 0
    assert {figures["new"], figures["old"]} <= {0.0, 0.5, 1.0}
    for split in ("test-night", "test"):
        settings = json.loads((tmp_path / "LoRA-r4" / f"{split}.json").read_text())["settings"]
        assert settings["split"] == split and settings["model"] == str(tmp_path / "LoRA-r4")
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and table.splitlines()[2].startswith("| LoRA r=4 |")

    monkeypatch.setattr(scripts.subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    run(monkeypatch, *arguments)
    (tmp_path / "LoRA-r4" / "test.json").write_text('{"acc@0.5": ')
    with pytest.raises(SystemExit, match="test.json is damaged, .*: delete it"):
        run(monkeypatch, *arguments)


def test_gain_is_relative_to_that_of_full_tuning():
    none = {"trained": None, "megabytes": None, "seconds": None}
    some = {"trained": 0.02, "megabytes": 0.2, "seconds": 3.0}
    figures = {
        "no tuning": {"new": 0.2, "old": 0.8, **none},
        "full": {"new": 0.6, "old": 0.5, **some},
        "LoRA r=8": {"new": 0.5, "old": 0.7, **some},
    }
    rows = compare_tuning.to_rows(figures)
    assert rows[0] == ["no tuning", "20.0", "80.0", "0", "-", "-", "-"]
    assert rows[2] == ["LoRA r=8", "50.0", "70.0", "75", "2.00", "0.20", "3"]
    assert compare_tuning.to_rows({"full": figures["full"]})[0][3] == "-"


def test_unknown_arms_are_named(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no arm"):
        run(monkeypatch, "--model", checkpoint, "--output_dir", tmp_path, "--arms", "prompt")
