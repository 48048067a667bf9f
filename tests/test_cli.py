"""The command `scanformer`."""

import json
import shutil

import pytest
from PIL import Image
from tiny import picture
from transformers import pipeline
from typer.testing import CliRunner

from modeling_scanformer.cli_scanformer import app


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "picture.png"
    picture(60, 40).save(path)
    return str(path)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_ground_prints_boxes_and_writes_the_scan(checkpoint, image_file, tmp_path):
    out = tmp_path / "scan.png"
    result = run("ground", image_file, "red", "the big circle", "--model", checkpoint, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    answers = pipeline("visual-grounding", model=str(checkpoint))(image_file, text=["red", "the big circle"])
    for line, answer in zip(lines, answers):
        assert line.startswith(f"{answer['label']}: ")
        assert ", ".join(f"{side} {value}" for side, value in answer["box"].items()) in line
    with Image.open(out) as drawing:
        assert drawing.height > 80


def test_json_is_the_only_output(checkpoint, image_file):
    result = run("ground", image_file, "red", "--model", checkpoint, "--json")
    (answer,) = json.loads(result.stdout)
    assert answer["label"] == "red" and len(answer["scale_boxes"]) == len(answer["patches_read"]) == 3


def test_damaged_weights_are_named_in_a_line(checkpoint, image_file, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    result = run("ground", image_file, "red", "--model", model)
    assert result.exit_code == 1
    assert str(model) in result.stderr and "safetensors" in result.stderr and "Traceback" not in result.output


def test_a_senseless_configuration_is_named_in_a_line(checkpoint, image_file, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "selection_threshold": 2.0}))
    result = run("ground", image_file, "red", "--model", model)
    assert result.exit_code == 1 and "selection_threshold" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize(
    "image, expression, model, message",
    [
        ("missing.png", "red", None, "missing.png"),
        (None, "", None, "empty"),
        (None, "red", "nowhere/to/be/found", "nowhere/to/be/found"),
    ],
)
def test_errors_are_one_line_and_the_exit_code_says_so(checkpoint, image_file, image, expression, model, message):
    result = run("ground", image or image_file, expression, "--model", model or checkpoint)
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output
