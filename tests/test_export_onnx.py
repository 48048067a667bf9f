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
"""examples/export_onnx.py on a tiny model: ONNX Runtime against PyTorch."""

import json
import shutil
import sys

import export_onnx
import pytest
import torch
from grounding import onnx_steps
from grounding.checks import DataError
from tiny import picture, tiny_config

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor
from modeling_scanformer.static_scanformer import StaticShapes


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", *map(str, arguments)])
    export_onnx.main()


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Folder of the steps in both precisions, and what the script printed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX needs the extra: pip install -c constraints.txt -e '.[export]'")
    folder = tmp_path_factory.mktemp("onnx")
    arguments = ["--model", checkpoint, "--output", folder, "--int8", "--buckets", "9", "36", "144"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, *arguments, "--text_length", 8, "--evaluate_level", "colors", "--num_samples", 3)
    return folder


def test_steps_give_the_boxes_of_the_model(exported, checkpoint):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint).eval()
    # all that a user of the files needs lies with them
    processor = ScanFormerProcessor.from_pretrained(exported)
    scanner = onnx_steps.load_onnx_scanner(exported)
    images, texts = [picture(40, 30), picture(20, 60)], ["the red disc", "the big blue box on the left"]
    for count in (1, 2):
        inputs = processor(
            images=images[:count], text=texts[:count], padding=True, truncation=True, return_tensors="pt"
        )
        actual, expected = scanner.generate(**inputs), model.generate(**inputs)
        torch.testing.assert_close(actual.scale_boxes, expected.scale_boxes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(actual.scale_scores, expected.scale_scores, atol=1e-5, rtol=1e-5)
        assert all(map(torch.equal, actual.selection_masks, expected.selection_masks))


def test_precisions_are_evaluated_side_by_side(exported):
    report = json.loads((exported / "evaluation.json").read_text())
    names = ["PyTorch float32", "ONNX Runtime float32", "ONNX Runtime int8"]
    assert list(report["results"]) == names
    assert all(figures["num_samples"] == 3 and figures["median_ms"] > 0 for figures in report["results"].values())
    assert report["results"][names[0]]["mean_iou"] == pytest.approx(report["results"][names[1]]["mean_iou"], abs=1e-4)
    assert report["differences"][names[1]] < 1e-5 < report["differences"][names[2]] < 0.5
    (header, _, *rows) = export_onnx.to_table(
        export_onnx.HEADER, export_onnx.to_rows(report["results"], report["megabytes"])
    ).splitlines()
    assert header.count("|") == rows[0].count("|") and len(rows) == 3


def test_steps_share_their_weights(exported, checkpoint):
    float32, int8 = exported / onnx_steps.FLOAT32, exported / onnx_steps.INT8
    weights = (float32 / onnx_steps.WEIGHTS_NAME).stat().st_size
    # 4 bytes a parameter, and what starting at a page wastes
    num_parameters = ScanFormerForVisualGrounding.from_pretrained(checkpoint).num_parameters()
    assert weights < 4 * num_parameters + 200 * onnx_steps.PAGE_BYTES
    assert (int8 / onnx_steps.WEIGHTS_NAME).stat().st_size < weights


def test_weights_of_8_bits_are_unsigned(exported):
    """Products with signed ones are cut off by CPUs without VNNI, at a cost of 8 points of accuracy."""
    onnx = pytest.importorskip("onnx")
    for path in (exported / onnx_steps.INT8).glob("*.onnx"):
        graph = onnx.load(path).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMulInteger"]
        assert products and all(types[node.input[1]] == onnx.TensorProto.UINT8 for node in products)


def test_steps_of_an_earlier_export_are_removed(exported, checkpoint, monkeypatch, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "onnx")
    run(monkeypatch, "--model", checkpoint, "--output", folder, "--buckets", 9, 36, 100, "--text_length", 8)
    steps = {path.name for path in (folder / "float32").glob("*.onnx")}
    assert len(steps) == len(list((exported / "float32").glob("*.onnx")))
    assert not (folder / "int8").exists()


def test_missing_files_are_named(exported, tmp_path):
    with pytest.raises(DataError, match="holds no exported steps"):
        onnx_steps.load_onnx_scanner(tmp_path)
    with pytest.raises(DataError, match="export again"):
        onnx_steps.load_onnx_scanner(exported, "float16")


def test_missing_packages_are_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match=r"needs the package onnx: pip install 'modeling-scanformer\[export\]'"):
        run(monkeypatch, "--model", checkpoint, "--output", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": ["9", "36"]}, "2 scales, the model has 3"),
        ({"buckets": ["9", "36", "many"]}, "many"),
        ({"buckets": ["9", "36,18", "144"]}, "ascending"),
        ({"text_length": 13}, "between 1 and 12"),
        ({"text_length": 0}, "between 1 and 12"),
    ],
    ids=str,
)
def test_senseless_sizes_are_refused(options, message):
    args = export_onnx.Arguments(model="unused", output="unused", **options)
    with pytest.raises(DataError, match=message):
        export_onnx.read_shapes(args, tiny_config(), longest_edge=24)


def test_sizes_as_given_or_for_all_pictures():
    args = export_onnx.Arguments(model="unused", output="unused", buckets=["9", "18,36", "144"], text_length=5)
    shapes = export_onnx.read_shapes(args, tiny_config(), longest_edge=24)
    assert shapes == StaticShapes(5, ((9,), (18, 36), (144,)))
    args.buckets = None
    assert export_onnx.read_shapes(args, tiny_config(), longest_edge=24) == StaticShapes.for_pictures(
        tiny_config(), 24, 5
    )


def test_an_unreadable_picture_is_named(checkpoint, tmp_path):
    args = export_onnx.Arguments(model="unused", output="unused", image=str(tmp_path / "none.png"))
    with pytest.raises(DataError, match="none.png"):
        export_onnx.read_sample(args, ScanFormerProcessor.from_pretrained(checkpoint))
