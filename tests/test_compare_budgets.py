"""The comparison of budgets, on a tiny model."""

import json
import shutil
import sys

import compare_budgets
import pytest
from tiny import save_tiny_checkpoint

from modeling_scanformer import ScanFormerGenerationConfig


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_budgets.py", *map(str, arguments)])
    compare_budgets.main()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder


def test_every_way_spends_what_it_may_and_all_meet_where_everything_is_read(checkpoint, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out" / "budgets.json"
    arguments = ["--model", checkpoint, "--dataset_level", "primer", "--max_samples", 4, "--batch_size", 3]
    arguments += ["--dataloader_num_workers", 0, "--budgets", 0.3, 1.0, "--output", output]
    run(monkeypatch, *arguments)
    results = json.loads(output.read_text())
    assert list(results["curves"]) == list(compare_budgets.WAYS)
    for small, whole in results["curves"].values():
        assert 0.2 < small["patches_read"] <= 0.3 and whole["patches_read"] == 1.0
        assert whole["acc@0.5"] == results["curves"]["random"][1]["acc@0.5"]
    assert 0 < results["learned_selection"]["patches_read"] < 1
    page = output.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out and "| 30 % | 100 % |" in page
    assert output.with_suffix(".png").stat().st_size > 0

    # a stop that is saved with the model would save patches that are not the budget's
    stopping = shutil.copytree(checkpoint, tmp_path / "stopping")
    ScanFormerGenerationConfig(stopping_score=0.0).save_pretrained(stopping)
    run(monkeypatch, "--model", stopping, *arguments[2:])
    again = json.loads(output.read_text())
    assert again["curves"] == results["curves"] and again["learned_selection"] == results["learned_selection"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", 0.01], "coarsest"),
        (["--token_budget", 0.5], "--budgets"),
        (["--output", "budgets.md"], "JSON"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_senseless_arguments_are_refused(checkpoint, tmp_path, monkeypatch, arguments, message):
    output = [] if "--output" in arguments else ["--output", tmp_path / "budgets.json"]
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--model", checkpoint, "--max_samples", 2, *output, *arguments)
