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
"""The evaluation script on a tiny model, and its numbers against counting by hand."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import PIL.Image
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from grounding.cost import count_flops
from grounding.data import DataError, GroundingCollator, load_grounding_dataset
from grounding.evaluation import aspect_ratio, count_patches, evaluate_grounding, summarize, target_size
from metrics.visual_grounding.visual_grounding import accuracy, no_target_accuracy, pairwise_iou
from scenes.create_model import create_tokenizer
from tiny import tiny_model
from torch.utils.data import DataLoader, Subset

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerImageProcessor, ScanFormerProcessor


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = create_tokenizer(64)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "patch_size": 4}
    tiny_model(dtype=None, **options).save_pretrained(folder)
    image_processor = ScanFormerImageProcessor(size={"longest_edge": 64}, patch_size=4)
    ScanFormerProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, model_folder):
    """Runs the script as from the command line, and reads what it wrote."""

    def run(output, *arguments, model=model_folder):
        arguments = ["--output", output, "--dataloader_num_workers", 0, "--batch_size", 4, *arguments]
        arguments = arguments if model is None else ["--model", model, *arguments]
        # every run chooses its precision anew, as separate processes do
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", ["evaluate_visual_grounding.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / "evaluate_visual_grounding.py"), run_name="__main__")
        return json.loads(output.read_text())

    return run


def make_data(folder) -> datasets.Dataset:
    """Two pictures of several sentences, one without target, and a picture that cannot be decoded."""
    for name, size in (("a", (40, 20)), ("b", (20, 40))):
        PIL.Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [
        ("a", "the cup", [2.0, 3.0, 12.0, 19.0], "cup", "1", "10"),
        ("a", "the large cup", [2.0, 3.0, 12.0, 19.0], "cup", "1", "11"),
        ("broken", "the red cup", [2.0, 3.0, 12.0, 19.0], "cup", "2", "12"),
        ("b", "the blue plate", None, None, "3", "13"),
        ("b", "the plate", [0.0, 0.0, 20.0, 40.0], "plate", "4", "14"),
    ]
    columns = ("image", "expression", "bbox", "category", "ref_id", "sentence_id")
    rows = [dict(zip(columns, row)) for row in rows]
    rows = [{**row, "image_id": row["image"], "image": str(folder / f"{row['image']}.png")} for row in rows]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(folder / "testA-00000-of-00001.parquet")


def test_scenes_from_the_command_line(run, tmp_path):
    output = tmp_path / "results" / "results.json"
    arguments = ["--dataset", "scenes", "--split", "test", "--max_samples", 6, "--num_cost_samples", 2]
    results = run(output, *arguments, "--seed", 123)
    assert results["num_samples"] == 6 and results["num_images"] == 6
    for name in ("acc@0.5", "acc@0.5:0.95", "mean_iou", "patches_read_total"):
        assert 0 <= results[name] <= 1
    assert len(results["scale_acc@0.5"]) == len(results["patches_read"]) == 3
    assert results["scale_acc@0.5"][-1] == results["acc@0.5"] and results["patches_read"][0] == 1
    assert "matrix products" in results["flops_counted"]
    assert 0 < results["flops_per_sample"] < results["dense_flops_per_sample"]
    assert min(results[name] for name in ("latency_ms", "dense_latency_ms", "preprocessing_ms")) > 0
    for grouping in ("by_expression_type", "by_target_size", "by_aspect_ratio"):
        assert sum(group["num_samples"] for group in results[grouping].values()) == 6
    assert results["settings"]["seed"] == 123 and "--seed 123" in results["command"] and "torch" in results["versions"]
    assert output.with_suffix(".png").stat().st_size > 0
    assert "| Acc@0.5, % |" in output.with_suffix(".md").read_text()

    # the same numbers from the predictions alone, and other pictures from another seed
    predictions = output.with_suffix(".predictions.jsonl")
    again = run(tmp_path / "again.json", "--predictions", predictions, model=None)
    assert all(results[name] == value for name, value in again.items() if name not in ("title", "command", "settings"))
    other = run(tmp_path / "other.json", *arguments[:-1], 0, "--seed", 124)
    assert other["mean_iou"] != results["mean_iou"] and "flops_per_sample" not in other


def test_columns_and_boxes_may_have_other_names_and_forms(run, tmp_path):
    make_data(tmp_path)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "testA-00000-of-00001.parquet")).select([0, 1, 3, 4])
    form = [None if box is None else [*box[:2], box[2] - box[0], box[3] - box[1]] for box in rows["bbox"]]
    rows = rows.remove_columns("bbox").add_column("region", form).rename_column("expression", "caption")
    rows.to_parquet(tmp_path / "theirs" / "test.parquet")
    options = ["--split", "test", "--num_cost_samples", 0]
    theirs = ["--dataset", tmp_path / "theirs", "--expression_column", "caption", "--bbox_column", "region", *options]
    results = run(tmp_path / "theirs.json", *theirs, "--bbox_format", "xywh")
    rows = [json.loads(line) for line in (tmp_path / "theirs.predictions.jsonl").read_text().splitlines()]
    assert results["num_samples"] == 4 and rows[0]["true_box"] == [2.0, 3.0, 12.0, 19.0]
    ours = ["--dataset", tmp_path, *options[2:], "--split", "testA", "--on_error", "skip"]
    with pytest.raises(SystemExit, match="All boxes make sense as xyxy"):
        run(tmp_path / "corners.json", *ours, "--bbox_format", "xywh")


def test_real_data_is_counted_per_sentence_and_per_picture(run, tmp_path):
    make_data(tmp_path)
    output = tmp_path / "results.json"
    arguments = ["--dataset", tmp_path, "--split", "testA", "--num_cost_samples", 1, "--score_threshold", 0.2]
    with pytest.raises(SystemExit, match="^error: A sample .* row 2, column 'image': cannot decode"):
        run(output, *arguments)
    results = run(output, *arguments, "--on_error", "skip", "--batch_size", 1)
    assert results["num_samples"] == 4 and results["num_images"] == 2
    assert len(results["skipped"]) == 1 and "row 2" in results["skipped"][0]
    assert "left out" in output.with_suffix(".md").read_text()
    assert {name: group["num_samples"] for name, group in results["by_category"].items()} == {"cup": 2, "plate": 1}
    assert results["no_target"]["num_samples"] == 1 and results["no_target"]["score_threshold"] == 0.2

    lines = output.with_suffix(".predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [prediction["sentence_id"] for prediction in predictions] == ["10", "11", "13", "14"]
    for prediction in predictions:
        x0, y0, x1, y1 = prediction["box"]
        assert 0 <= x0 <= x1 <= prediction["width"] and 0 <= y0 <= y1 <= prediction["height"]
        assert prediction["box"] == prediction["scale_boxes"][-1]
    assert predictions[2]["true_box"] is None and predictions[2]["iou"] is None


def test_options_reach_the_scan(run, tmp_path):
    arguments = ["--max_samples", 2, "--num_cost_samples", 1]
    coarse = run(tmp_path / "coarse.json", *arguments, "--max_scales", 1)
    assert len(coarse["patches_read"]) == 1 and coarse["patches_read_total"] < 0.1
    dense = run(tmp_path / "dense.json", *arguments, "--selection_threshold", 0.0, "--mixed_precision", "bf16")
    assert dense["patches_read"] == [1, 1, 1] and dense["patches_read_total"] == 1
    assert dense["flops_per_sample"] == dense["dense_flops_per_sample"]
    limited = run(tmp_path / "limited.json", *arguments, "--selection_threshold", 0.0, "--token_budget", 0.2)
    assert limited["patches_read_total"] <= 0.2 and limited["scales_read"] == 3
    assert limited["flops_per_sample"] < limited["dense_flops_per_sample"] == dense["flops_per_sample"]
    small = run(tmp_path / "small.json", *arguments, "--longest_edge", 32, "--attn_implementation", "eager")
    assert small["dense_flops_per_sample"] < dense["flops_per_sample"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "testZ", "--max_samples", 1], "known are train"),
        (["--max_samples", 1, "--max_scales", 4], "the model has 3 scales"),
        (["--max_samples", 1, "--longest_edge", 50], "multiple of"),
        (["--predictions", "nowhere.jsonl"], "either --model or --predictions"),
        (["--max_samples", 1, "--output", "results.txt"], "names a JSON file"),
    ],
)
def test_senseless_arguments_are_told(run, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "results.json", *arguments)


def test_a_missing_model_is_told_with_those_that_exist(run, tmp_path, model_folder):
    with pytest.raises(SystemExit, match=f"no model .*missing.*there are: .*{model_folder.name}"):
        run(tmp_path / "results.json", model=model_folder.parent / "missing")


def test_a_file_without_predictions_is_told(run, tmp_path):
    path = tmp_path / "predictions.jsonl"
    for text, message in (
        ("", "no predictions"),
        ("{", "line 1 is not JSON"),
        ("5", "it lacks"),
        ('{"row": 1}', "it lacks .*'box'"),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit, match=message):
            run(tmp_path / "results.json", "--predictions", path, model=None)


def test_training_gets_the_headline_numbers(tmp_path, model_folder):
    make_data(tmp_path)
    model = ScanFormerForVisualGrounding.from_pretrained(model_folder)
    collator = GroundingCollator(ScanFormerProcessor.from_pretrained(model_folder), "skip", keep_samples=True)
    dataset = load_grounding_dataset(str(tmp_path), "testA")
    results = evaluate_grounding(model, DataLoader(dataset, batch_size=4, collate_fn=collator), Accelerator())
    names = {"num_samples", "acc@0.5", "acc@0.5:0.95", "mean_iou", "scale_acc@0.5", "patches_read"}
    assert set(results) == names and results["num_samples"] == 4

    broken = DataLoader(Subset(dataset, [2]), collate_fn=collator)
    with pytest.raises(DataError, match="No sample can be used.*row 2"):
        evaluate_grounding(model, broken, Accelerator())


def test_metric_against_counting_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (300, 2, 2, 2))
    # both boxes of a pair alike now and then, empty ones too
    corners[::10, 1] = corners[::10, 0]
    boxes = np.concatenate([corners.min(2), corners.max(2)], axis=-1)  # (num_pairs, 2, 4)
    expected = []
    for pair in boxes:
        first, second = (np.zeros((12, 12), dtype=bool) for _ in pair)
        for grid, (x0, y0, x1, y1) in zip((first, second), pair):
            grid[y0:y1, x0:x1] = True
        expected.append((first & second).sum() / max((first | second).sum(), 1))
    expected = np.array(expected)
    np.testing.assert_allclose(pairwise_iou(boxes[:, 0], boxes[:, 1]), expected, atol=1e-12)

    metric = evaluate.load(str(EXAMPLES / "metrics" / "visual_grounding"))
    results = metric.compute(predictions=boxes[:, 0].tolist(), references=boxes[:, 1].tolist())
    thresholds = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert results["acc@0.5"] == pytest.approx(np.mean(expected >= 0.5))
    assert results["acc@0.5:0.95"] == pytest.approx(np.mean([(expected >= t - 1e-9).mean() for t in thresholds]))
    assert results["mean_iou"] == pytest.approx(expected.mean())
    assert accuracy(np.zeros(0))["acc@0.5"] is None


def make_prediction(box, true_box, image_id="a", score=0.9, width=20, height=10) -> dict:
    return {
        **{"row": 0, "expression": "x", "width": width, "height": height, "truncated": False},
        **{"image_id": image_id, "box": box, "true_box": true_box, "score": score},
        **{"scale_boxes": [[0, 0, 20, 10], box], "patches_read": [1, 2], "num_patches": [1, 4, 16]},
    }


def test_summary_by_hand():
    right, wrong = [0, 0, 10, 10], [15, 5, 20, 10]
    predictions = [
        make_prediction(right, right),
        make_prediction(wrong, right),
        make_prediction(right, [0, 0, 10, 5], "b"),
        make_prediction(wrong, None, "c", score=0.1),
    ]
    results = summarize(predictions)
    assert results["num_samples"] == 4
    assert results["acc@0.5"] == pytest.approx(2 / 3) and results["mean_iou"] == pytest.approx(1.5 / 3)
    # the whole picture of scale 0 has an IoU of 1/2, 1/2 and 1/4
    assert results["scale_acc@0.5"] == pytest.approx([2 / 3, 2 / 3])
    assert results["image_acc@0.5"] == pytest.approx((0.5 + 1) / 2) and results["num_images"] == 2
    assert results["patches_read"] == [1, 0.5] and results["patches_read_total"] == pytest.approx(3 / 21)
    assert {name: group["num_samples"] for name, group in results["by_target_size"].items()} == {"from 0.4": 3}
    assert list(results["by_aspect_ratio"]) == ["from 1.7"]
    assert results["no_target"]["n_acc"] == results["no_target"]["t_acc"] == 1
    # no expression has a target
    assert summarize(predictions[3:])["acc@0.5"] is None


def test_samples_that_left_early_repeat_their_answer():
    right, wrong = [0, 0, 10, 10], [15, 5, 20, 10]
    stayed, left = make_prediction(right, right), make_prediction(wrong, right)
    stayed["scales_read"] = 2
    # its whole batch left, so nothing is noted of the second scale
    left.update(scale_boxes=[wrong], patches_read=[1], scales_read=1)
    results = summarize([left, stayed])
    assert results["scale_acc@0.5"] == [0.5, 0.5] and results["scales_read"] == 1.5
    assert results["patches_read"] == [1, 0.25] and results["patches_read_total"] == pytest.approx(4 / 42)
    # predictions of earlier versions do not say
    del stayed["scales_read"]
    assert "scales_read" not in summarize([left, stayed])


def test_groups_by_size_and_aspect():
    assert target_size(make_prediction([], [0, 0, 4, 2])) == "0.2 to 0.4"
    assert target_size(make_prediction([], [0, 0, 1, 0.4])) == "under 0.05"
    assert aspect_ratio(make_prediction([], None, width=10)) == "0.9 to 1.1"
    assert aspect_ratio(make_prediction([], None, width=4)) == "under 0.6"


def test_no_target_accuracy_by_hand():
    has_target = np.array([True, True, True, False, False])
    scores = np.array([0.9, 0.8, 0.3, 0.9, 0.1])
    iou = np.array([0.7, 0.2, 0.9, 0.0, 0.0])
    results = no_target_accuracy(iou, scores, has_target, 0.5)
    # three boxes given of which one is right, three wanted; the first and the last sample are answered without fault
    assert results == pytest.approx({"n_acc": 1 / 2, "t_acc": 2 / 3, "f1": 2 / 6, "pr@(f1=1)": 2 / 5})


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_flops_against_a_count_by_hand(model_folder, threshold):
    model = ScanFormerForVisualGrounding.from_pretrained(model_folder)
    processor = ScanFormerProcessor.from_pretrained(model_folder)
    image = PIL.Image.effect_noise((60, 40), 60).convert("RGB")
    inputs = processor(images=image, text="the large red circle", return_tensors="pt")
    outputs = model.generate(**inputs, selection_threshold=threshold)
    read = [int(mask.sum()) for mask in outputs.selection_masks]
    present = count_patches(inputs["pixel_attention_mask"], 3)[0].tolist()
    assert (read == present) == (threshold == 0)

    config = model.config
    width, num_scales = config.hidden_size, config.num_scales
    # every scale has a [REG], and beyond the first a constant token
    blocks = [inputs["input_ids"].shape[1], *(count + 1 + (scale > 0) for scale, count in enumerate(read))]
    layer = sum(blocks) * (4 * width**2 + 2 * width * config.intermediate_size)
    layer += sum(2 * block * sum(blocks[: index + 1]) * width for index, block in enumerate(blocks))
    embeddings = sum(read) * width * 3 * config.patch_size**2
    selection = sum(read[:-1]) * (width**2 + 4 * width)
    heads = num_scales * (4 * width**2 + 5 * width)
    expected = 2 * (config.num_hidden_layers * layer + embeddings + selection + heads)
    assert count_flops(model, inputs, selection_threshold=threshold) == expected
    assert model.config._attn_implementation == "sdpa"
