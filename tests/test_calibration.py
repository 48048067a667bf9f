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
"""Calibration of early exit and of scores: the statistics on made-up data, and the scripts on a tiny model."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import calibrate_early_exit
import calibrate_score
import compare_budgets
import evaluate_visual_grounding
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState
from grounding import calibration
from grounding.calibration import (
    ScanSamples,
    calibrate,
    candidate_thresholds,
    check_guarantee,
    fit_logistic,
    fit_stopping_score,
    is_proven,
    last_scale_read,
    learn_then_test,
    num_samples_needed,
    sigmoid,
    stopping_scores,
)
from grounding.cost import count_flops, count_flops_by_scale
from grounding.evaluation import score_calibration
from grounding.exit_curves import RULE, compare_exits
from grounding.exit_samples import Collector, fit_flops
from safetensors.torch import load_file
from scipy.stats import norm
from test_early_exit import rule_for
from tiny import picture, tiny_inputs, tiny_model

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig, ScanFormerProcessor
from modeling_scanformer.loss_scanformer import box_iou, center_to_corners


def make_samples(num_samples: int, seed: int, gain: float = 0.0) -> ScanSamples:
    """
    Pictures of which the first signal tells how hard they are: the harder, the more a finer scale helps. So does one of two
    alternatives.
    """
    rng = np.random.default_rng(seed)
    hard = rng.random(num_samples)
    signals = rng.normal(size=(num_samples, 3, 20))
    signals[:, :, 0] = 4 - 8 * hard[:, None] + rng.normal(size=(num_samples, 3))
    chances = np.stack([0.95 - 0.5 * hard**4, 0.95 - 0.2 * hard**4, np.full(num_samples, 0.95 - gain)], axis=1)
    iou = np.where(rng.random((num_samples, 1)) < chances, 0.8, 0.2)
    alternatives = {"told": signals[:, :, 0].copy(), "untold": signals[:, :, 1].copy()}
    return ScanSamples(signals, iou, np.tile([1.0, 2.0, 4.0], (num_samples, 1)), alternatives)


@pytest.mark.parametrize("winner_rate", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
def test_what_is_false_is_proven_as_rarely_as_it_says(winner_rate, error):
    num_samples, alpha = 150, 0.05
    rates = [winner_rate + alpha, winner_rate, 1 - 2 * winner_rate - alpha]
    draws = np.random.default_rng(0).multinomial(num_samples, rates, size=2000)
    proofs = [is_proven(int(losers), int(winners), num_samples, alpha, 1 - error) for losers, winners, _ in draws]
    assert np.mean(proofs) <= error + 3 * (error * (1 - error) / len(proofs)) ** 0.5


def test_losers_speak_against_the_proof_and_winners_and_samples_for_it():
    of_losers = [is_proven(losers, 10, 2000, 0.005, 0.95) for losers in range(30)]
    of_winners = [is_proven(10, winners, 2000, 0.005, 0.95) for winners in range(30)]
    of_samples = [is_proven(4, 4, num_samples, 0.005, 0.95) for num_samples in range(1000, 4000, 100)]
    assert of_losers[0] and not of_losers[-1] and of_losers == sorted(of_losers, reverse=True)
    assert of_winners[-1] and not of_winners[0] and of_winners == sorted(of_winners)
    assert of_samples[-1] and not of_samples[0] and of_samples == sorted(of_samples)
    # where none changes, hardly more is asked than that this were unlikely if losers were as frequent as allowed
    assert is_proven(0, 0, 1000, 0.005, 0.97) and not is_proven(0, 0, 1000, 0.005, 1 - 0.995**1000)
    # winners count: the binomial test of losers alone gives 0.13
    assert is_proven(6, 8, 2000, 0.005, 0.95)
    # every answer changes, and all for the better, or all for the worse
    assert is_proven(0, 50, 50, 0.005, 0.95) and not is_proven(50, 0, 50, 0.005, 0.95)


def test_proof_needs_little_more_than_a_normal_approximation():
    num_samples, num_changes, alpha = 10_000, 1000, 0.01
    bound = num_samples * alpha - norm.isf(0.05) * num_changes**0.5  # of losers less winners, were their sum known
    losers = [
        number for number in range(num_changes) if is_proven(number, num_changes - number, num_samples, alpha, 0.95)
    ]
    surplus = 2 * max(losers) - num_changes
    assert 0.7 * bound < surplus <= bound


def test_number_of_samples_needed():
    needed = num_samples_needed(0.005, 0.95)
    held_out = needed - round(calibration.FIT_SHARE * needed)
    assert is_proven(0, 0, held_out, 0.005, 0.95) and not is_proven(0, 0, held_out - 2, 0.005, 0.95)


def test_guarantee_holds_on_made_up_data():
    population = make_samples(200_000, seed=0)
    alpha, confidence = 0.02, 0.8
    drops, saved = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        samples = population[rng.integers(len(population), size=1500)]
        last_read = calibrate(samples, alpha, confidence, rng).last_scale_read(population)
        drops.append(population.losses(last_read).mean())
        saved.append(population.saved(last_read))
    # 8 of 40 may exceed it, give or take
    assert np.mean(np.array(drops) > alpha) <= 0.2 + 3 * (0.2 * 0.8 / 40) ** 0.5
    # and it is no empty promise
    assert np.mean(saved) > 0.3 and np.mean(drops) > 0


def test_a_rule_that_ruins_the_answer_is_not_proven():
    samples = make_samples(1500, seed=1)
    samples.iou[:, :2] = 0.0
    samples.signals[:] = 1.0  # and nothing tells one sample from another
    assert calibrate(samples, 0.01, 0.95, np.random.default_rng(0)).threshold is None


def test_testing_stops_at_the_first_threshold_that_fails():
    samples = make_samples(3000, seed=2)
    scores = np.tile(np.linspace(0, 1, len(samples))[:, None], (1, 2))
    samples.iou[:] = 0.8
    samples.iou[1500:2000, 0] = 0.2  # these lose, and those below them would not
    thresholds = np.array([0.9, 0.8, 0.6, 0.1, 0.0])
    assert learn_then_test(thresholds, samples, scores, 0.05, 0.95) == 0.8


def test_samples_leave_at_the_first_scale_that_reaches_the_threshold():
    scores = np.array([[0.9, 0.1], [0.1, 0.5], [0.4, 0.4]])
    assert last_scale_read(scores, 0.5).tolist() == [0, 1, 2]
    samples = ScanSamples(
        np.zeros((3, 3, 4)), np.array([[0.2, 0.9, 0.9], [0.9, 0.9, 0.2], [0.9, 0.9, 0.9]]), np.ones((3, 3))
    )
    assert samples.losses(np.array([0, 1, 2])).tolist() == [1, -1, 0]


def test_stopping_score_finds_the_signal_that_tells():
    samples = make_samples(5000, seed=3)
    weights, biases = fit_stopping_score(samples)
    assert np.all(weights[:, 0] > 3 * np.abs(weights[:, 1:]).max(axis=1))
    alone, _ = fit_stopping_score(samples.shown_by("told"))
    assert alone.shape == (2, 1) and np.all(alone > 0)
    thresholds = candidate_thresholds(stopping_scores(samples.signals, weights, biases))
    assert np.all(np.diff(thresholds) < 0)


def test_stopping_score_finds_the_direction_that_tells():
    samples = make_samples(12_000, seed=3)
    direction = np.random.default_rng(8).normal(size=samples.signals.shape[2])
    told = samples.signals[:, :, :1].copy()
    samples.signals[:, :, 0] = 0.0
    untold = replace(samples, signals=samples.signals.copy())
    samples.signals[:] += told * direction
    fitted, held_out = np.arange(6000), np.arange(6000, 12_000)
    saved = []
    for kind in (samples, untold):
        scores = stopping_scores(kind[held_out].signals, *fit_stopping_score(kind[fitted]))
        leaving = [last_scale_read(scores, threshold) for threshold in candidate_thresholds(scores)]
        allowed = [last_read for last_read in leaving if kind[held_out].losses(last_read).mean() <= 0.02]
        saved.append(max(kind[held_out].saved(last_read) for last_read in allowed))
    assert saved[0] > saved[1] + 0.1
    weights, _ = fit_stopping_score(samples[fitted])
    for row in weights:
        assert np.corrcoef(row, direction)[0, 1] > 0.6


def test_of_samples_that_lose_alike_those_leave_first_that_save_most():
    samples = make_samples(5000, seed=5)
    costly = np.random.default_rng(6).random(len(samples)) < 0.5
    samples.signals[:, :, 1] = costly[:, None]
    samples.flops[costly, 2] += 9.0
    alike = replace(samples, flops=np.tile(samples.flops.mean(0), (len(samples), 1)))
    saved = []
    for kind in (samples, alike):
        scores = stopping_scores(samples.signals, *fit_stopping_score(kind))
        leaving = [last_scale_read(scores, threshold) for threshold in candidate_thresholds(scores)]
        allowed = [last_read for last_read in leaving if samples.losses(last_read).mean() <= 0.02]
        saved.append(max(samples.saved(last_read) for last_read in allowed))
    assert saved[0] > saved[1] + 0.03


def test_logistic_regression_finds_what_made_the_data():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(20_000, 2)) * [1, 100]
    targets = sigmoid(features @ [1.5, -0.02] + 0.7)
    weights, offset = fit_logistic(features, targets, ridge=0.0)
    assert weights == pytest.approx([1.5, -0.02], rel=1e-3) and offset == pytest.approx(0.7, rel=1e-3)
    # neither a constant feature nor targets that are all alike break it
    weights, offset = fit_logistic(np.ones((50, 1)), np.ones(50), ridge=1.0)
    assert weights == 0 and 3 < offset < 20


def test_what_a_scale_shows_besides_the_state():
    model = tiny_model()
    collector = Collector()
    outputs = model.generate(**tiny_inputs(model.config), streamer=collector)
    shown = {name: torch.from_numpy(values) for name, values in collector.alternatives().items()}
    assert list(shown) == ["score", "agreement", "wanted", "change"]
    torch.testing.assert_close(shown["score"].sigmoid(), outputs.scale_scores.double(), atol=1e-5, rtol=1e-5)
    corners, states = center_to_corners(outputs.scale_boxes), torch.from_numpy(collector.early_reg_states())
    for scale in range(3):
        if scale == 0:
            assert not shown["agreement"][:, 0].any() and not shown["change"][:, 0].any()
            continue
        iou, _ = box_iou(corners[:, scale], corners[:, scale - 1])
        torch.testing.assert_close(shown["agreement"][:, scale], iou.double())
        cosine = torch.cosine_similarity(states[:, scale], states[:, scale - 1])
        torch.testing.assert_close(shown["change"][:, scale], 1 - cosine, atol=1e-6, rtol=1e-5)
    assert shown["wanted"][:, :2].all() and not shown["wanted"][:, 2].any()


def test_comparison_of_ways_to_leave():
    results = compare_exits(make_samples(3000, seed=5), make_samples(3000, seed=6), 0.02, 0.9, seed=0)
    assert results["fixed_scale"][0]["saved"] == 0.75 and results["fixed_scale"][2] == results["all_scales"]
    rule, others = results["calibrated"][RULE]["saved"], results["calibrated"]
    assert results["oracle"]["drop"] <= 0 and results["oracle"]["saved"] > rule
    assert others["told"]["saved"] > others["untold"]["saved"] and rule > others["untold"]["saved"]
    assert set(results["curves"]) == {"random", *results["calibrated"]} == {"random", RULE, "told", "untold"}
    for curve in results["curves"].values():
        assert curve[0]["drop"] == 0 and np.all(np.diff([point["saved"] for point in curve]) >= 0)


def test_repeated_calibrations():
    checks = check_guarantee(make_samples(900, seed=7), 0.02, 0.9, 5, np.random.default_rng(0))
    for check in checks.values():
        assert len(check["drop"]) == len(check["saved"]) == 5 and 0 <= check["exceeded"] <= 1


def test_calibration_error_by_hand():
    def predict(score, true_box):
        return {"score": score, "box": [0, 0, 10, 10], "true_box": true_box}

    half, whole = [0, 0, 10, 5], [0, 0, 10, 10]
    # two bins: scores 0.1 and 0.3 with IoU 0 (nothing fits) and 0.5; scores 0.8 and 1 with IoU 0.5 and 1
    predictions = [predict(1.0, whole), predict(0.1, None), predict(0.8, half), predict(0.3, half)]
    results = score_calibration(predictions, num_bins=2)
    assert results["ece"] == pytest.approx((0.05 + 0.15) / 2)
    low, high = results["bins"]
    assert low == pytest.approx({"num_samples": 2, "score": 0.2, "iou": 0.25})
    assert high == pytest.approx({"num_samples": 2, "score": 0.9, "iou": 0.75})
    assert score_calibration([predict(1.0, whole), predict(0.5, half)])["ece"] == 0


def test_operations_of_samples_that_were_not_counted(checkpoint):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    processor = ScanFormerProcessor.from_pretrained(checkpoint)
    lengths, flops = [], []
    for index in range(30):
        image = PIL.Image.effect_noise((40 + 7 * (index % 5), 30 + 9 * (index % 4)), 60).convert("RGB")
        inputs = processor(images=image, text="the " + "red " * (index % 4) + "disc", return_tensors="pt")
        options = {"selection_threshold": 0.2 + 0.6 * index / 30}
        counted, patches = count_flops_by_scale(model, inputs, **options)
        lengths.append([inputs["input_ids"].shape[1], *patches])
        flops.append(counted)
    alone = [count_flops(model, inputs, **options, max_scales=scales) for scales in (1, 2, 3)]
    # before a sample leaves, it is decided what the next scale would read
    assert flops[-1][2] == alone[2] and all(counted >= least for counted, least in zip(flops[-1], alone))
    for scale in (0, 1):
        biases = [-10.0, -10.0]
        biases[scale] = 10.0
        rule = rule_for(model, biases=biases, weights=[[0.0] * model.config.hidden_size] * 2)
        rule.options.update(options)
        model.generation_config.early_exit_rule = rule.to_dict()
        assert count_flops(model, inputs, **options, early_exit=True) == flops[-1][scale]
    lengths, flops = np.array(lengths), np.array(flops)
    np.testing.assert_allclose(fit_flops(lengths[:24], flops[:24], lengths[24:]), flops[24:], rtol=1e-6)


@pytest.fixture
def run(monkeypatch):
    def run(script, *arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = [*arguments, "--dataloader_num_workers", 0]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()

    return run


@pytest.fixture
def model_folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def test_a_rule_is_made_and_used(model_folder, tmp_path, run):
    weights = (model_folder / "model.safetensors").read_bytes()
    data = ["--dataset_level", "primer", "--max_samples", 40, "--batch_size", 20]
    output = tmp_path / "exit.json"
    arguments = [*data, "--alpha", 0.3, "--output", output, "--num_trials", 3, "--num_cost_samples", 4]
    run(calibrate_early_exit, "--model", model_folder, *arguments, "--selection_threshold", 0.45)
    rule = json.loads((model_folder / "generation_config.json").read_text())["early_exit_rule"]
    assert (rule["alpha"], rule["confidence"], rule["num_samples"]) == (0.3, 0.95, 30)
    assert rule["options"] == {"selection_threshold": 0.45} and len(rule["weights"]) == 2
    assert (model_folder / "model.safetensors").read_bytes() == weights
    results = json.loads(output.read_text())
    assert results["rule"] == rule and len(results["guarantee"]["splits"]["drop"]) == 3
    assert "| oracle: first right scale |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 0

    evaluated = ["--model", model_folder, *data, "--split", "test", "--num_cost_samples", 1]
    for name in ("exit", "full"):
        options = ["--selection_threshold", 0.45, *(["--early_exit"] if name == "exit" else [])]
        run(evaluate_visual_grounding, *evaluated, *options, "--output", tmp_path / f"{name}.json")
    early, full = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("exit", "full"))
    # the comparison says of the same split what using the rule does
    point = results["calibrated"][RULE]
    assert early["acc@0.5"] == pytest.approx(point["accuracy"]) and full["scales_read"] == 3 > early["scales_read"]
    assert full["acc@0.5"] == pytest.approx(results["all_scales"]["accuracy"])
    assert early["patches_read_total"] < full["patches_read_total"]

    # a second calibration is not misled by the first, even where its rule is on
    config = json.loads((model_folder / "generation_config.json").read_text())
    (model_folder / "generation_config.json").write_text(json.dumps({**config, "early_exit": True}))
    run(calibrate_early_exit, "--model", model_folder, *arguments, "--selection_threshold", 0.45)
    config = json.loads((model_folder / "generation_config.json").read_text())
    assert config["early_exit_rule"] == rule and config["early_exit"] is True


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--alpha", 0.005, "--max_samples", 500], "500 samples can never prove .* at least [0-9]+"),
        (["--alpha", 0], "--alpha lies between"),
        (["--confidence", 1.0], "--confidence lies between"),
        (["--early_exit"], "leave it out"),
        (["--num_trials", 0], "--num_trials must be positive"),
        (["--output", "curves.txt"], "names a JSON file"),
        (["--max_scales", 1], "single scale"),
        (["--longest_edge", 64], "leave out --longest_edge"),
        (["--alpha", 0.3, "--max_samples", 40, "--output", "exit.json", "--comparison_split", "exam"], "exam"),
        (["--model", "org/model"], "must be a folder"),
        (["--alpha", 0.3, "--max_samples", 30, "--token_budget", 0.0], "cannot be run like this"),
    ],
)
def test_senseless_calibrations_are_refused(model_folder, run, arguments, message):
    before = (model_folder / "generation_config.json").read_text()
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(calibrate_early_exit, "--model", model_folder, *arguments)
    assert (model_folder / "generation_config.json").read_text() == before


def test_a_rule_that_cannot_be_written_leaves_the_options_whole(model_folder, run, monkeypatch):
    before = (model_folder / "generation_config.json").read_text()

    def save_half(self, folder, name, **kwargs):
        Path(folder, name).write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(ScanFormerGenerationConfig, "save_pretrained", save_half)
    with pytest.raises(OSError, match="No space left"):
        run(
            calibrate_early_exit,
            "--model",
            model_folder,
            "--dataset_level",
            "primer",
            "--max_samples",
            40,
            "--alpha",
            0.3,
        )
    assert (model_folder / "generation_config.json").read_text() == before
    assert not list(model_folder.glob("*.partial"))


def test_one_expression_of_every_picture_is_calibrated_on(model_folder, tmp_path, run, capsys):
    """In a data set of photographs' form: boxes of another form, several expressions about a picture, a bad one."""
    folder = tmp_path / "pictures" / "validation"
    folder.mkdir(parents=True)
    rows = []
    for index in range(12):
        picture(40, 30, index).save(folder / f"{index}.png")
        for expression in ("red", "left", "blue"):
            rows.append({"file_name": f"{index}.png", "expression": expression, "region": [index, 2, 20, 25]})
    (folder / "11.png").write_bytes(b"damaged")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--dataset", folder.parent, "--bbox_column", "region", "--bbox_format", "xywh", "--on_error", "skip"]
    data += ["--batch_size", 1]
    budgets = ["--split", "validation", "--budgets", 1.0]
    run(calibrate_early_exit, "--model", model_folder, *data, "--alpha", 0.5, "--confidence", 0.5)
    assert "Of the 36 expressions of 'validation', 12 are used" in capsys.readouterr().out
    rule = json.loads((model_folder / "generation_config.json").read_text())["early_exit_rule"]
    assert rule["num_samples"] == 8, "of 11 that can be read, a quarter fits the score, and the others prove the rule"
    run(compare_budgets, "--model", model_folder, *data, *budgets, "--output", tmp_path / "budgets.json")
    assert json.loads((tmp_path / "budgets.json").read_text())["curves"]


def test_evaluation_without_a_rule_is_refused(model_folder, tmp_path, run):
    arguments = ["--model", model_folder, "--max_samples", 2, "--output", tmp_path / "results.json", "--early_exit"]
    with pytest.raises(SystemExit, match="^error: .*needs a calibrated rule"):
        run(evaluate_visual_grounding, *arguments)


def test_a_calibrated_score_is_the_same_model_with_another_head(checkpoint, model_folder, tmp_path, run, capsys):
    output = tmp_path / "calibrated"
    arguments = ["--dataset_level", "primer", "--max_samples", 20, "--output", output]
    with pytest.raises(SystemExit, match="^error: .*nothing that could be calibrated"):
        run(calibrate_score, "--model", model_folder, *arguments)
    turned = ScanFormerForVisualGrounding.from_pretrained(model_folder)
    calibrate_score.fold(turned, slope=-1.0, offset=0.0)
    model_folder = tmp_path / "turned"
    turned.save_pretrained(model_folder)
    ScanFormerProcessor.from_pretrained(checkpoint).save_pretrained(model_folder)
    run(calibrate_score, "--model", model_folder, *arguments)
    before, after = load_file(model_folder / "model.safetensors"), load_file(output / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"score_head.out_proj.weight", "score_head.out_proj.bias"} and before.keys() == after.keys()
    assert (output / "config.json").read_text() == (model_folder / "config.json").read_text()
    for file in ("tokenizer.json", "processor_config.json"):
        assert (output / file).read_text() == (model_folder / file).read_text()

    old, new = (ScanFormerForVisualGrounding.from_pretrained(path) for path in (model_folder, output))
    slope = float(after["score_head.out_proj.weight"][0, 0] / before["score_head.out_proj.weight"][0, 0])
    offset = float(after["score_head.out_proj.bias"] - slope * before["score_head.out_proj.bias"])
    assert slope > 0 and f"times {slope:.4f} plus {offset:.4f}" in capsys.readouterr().out
    states = torch.randn(50, old.config.hidden_size)
    (boxes, logits), (new_boxes, new_logits) = old.predict(states), new.predict(states)
    assert torch.equal(boxes, new_boxes)
    torch.testing.assert_close(new_logits, slope * logits + offset, atol=1e-5, rtol=1e-5)

    with pytest.raises(SystemExit, match="own folder"):
        run(calibrate_score, "--model", model_folder, "--output", model_folder)
