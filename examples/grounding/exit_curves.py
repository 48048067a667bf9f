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
"""Accuracy against compute: a rule of early exit, alternatives to it, and what they are to be held against."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .calibration import ScanSamples, calibrate, last_scale_read
from .report import to_table


RULE = "[REG]'s state"
NUM_POINTS = 50


def compare_exits(samples: ScanSamples, others: ScanSamples, alpha: float, confidence: float, seed: int) -> dict:
    """
    Ways of leaving early, calibrated on some samples and compared on others.

    Args:
        samples ([`ScanSamples`]):
            To calibrate on.
        others ([`ScanSamples`]):
            To compare on.
        alpha, confidence (`float`):
            The guarantee; see [`~grounding.calibration.learn_then_test`].
        seed (`int`):
            Of the split of `samples`, and of leaving at random.

    Returns:
        `dict`: `all_scales`, a point with the `flops` and `accuracy` of reading everything; `curves`, points over all
        thresholds for the rule, each alternative and leaving at random; `calibrated`, a point of the rule and of each
        alternative at the threshold that was proven for it; `fixed_scale`, a point per scale; and `oracle`, which leaves
        at the first scale that is right, and at the coarsest where none is. Points also have `saved`, the share of the
        operations, and `drop`, what accuracy falls by.
    """
    ways = {RULE: (samples, others)}
    ways.update({name: (samples.shown_by(name), others.shown_by(name)) for name in samples.alternatives})
    curves, calibrated = {}, {}
    for name, (own, judged) in ways.items():
        calibration = calibrate(own, alpha, confidence, np.random.default_rng(seed))
        curves[name] = trace(judged, calibration.scores(judged))
        calibrated[name] = to_point(judged, calibration.last_scale_read(judged))
    num_scales = others.iou.shape[1]
    curves["random"] = trace(others, np.random.default_rng(seed).random((len(others), num_scales - 1)))
    scales = [np.full(len(others), scale) for scale in range(num_scales)]
    return {
        "num_calibration_samples": len(samples),
        "num_comparison_samples": len(others),
        "all_scales": to_point(others, scales[-1]),
        "curves": curves,
        "calibrated": calibrated,
        "fixed_scale": [to_point(others, scale) for scale in scales],
        "oracle": to_point(others, others.right.argmax(axis=1)),
    }


def trace(samples: ScanSamples, scores: np.ndarray) -> list[dict]:
    """Points from leaving never to leaving at once."""
    thresholds = [np.inf, *np.unique(np.quantile(scores, np.linspace(0, 1, NUM_POINTS)))[::-1]]
    return [to_point(samples, last_scale_read(scores, threshold)) for threshold in thresholds]


def to_point(samples: ScanSamples, last_read: np.ndarray) -> dict:
    return {
        "flops": float(samples.at(samples.flops, last_read).mean()),
        "accuracy": float(samples.at(samples.right, last_read).mean()),
        "saved": samples.saved(last_read),
        "drop": float(samples.losses(last_read).mean()),
    }


def to_markdown(results: dict) -> str:
    """A page with a table of the ways to leave, and one of the checks of the guarantee."""
    settings = results["settings"]
    alpha, confidence = settings["alpha"], settings["confidence"]
    parts = [
        f"# {results['title']}",
        f"`{results['command']}`",
        f"Calibrated on {results['num_calibration_samples']} samples: with a confidence of {confidence:g}, Acc@0.5 falls by at "
        f"most {100 * alpha:g} points. Compared on {results['num_comparison_samples']} others.",
    ]
    points = {"all scales": results["all_scales"]}
    points.update({f"{name}, calibrated": point for name, point in results["calibrated"].items()})
    points.update({f"scale {scale} always": point for scale, point in enumerate(results["fixed_scale"][:-1])})
    points["oracle: first right scale"] = results["oracle"]
    for name, curve in results["curves"].items():
        # what no one could have chosen without the answers; it tells how good the order is
        allowed = [point for point in curve if point["drop"] <= alpha]
        points[f"{name}, best threshold in hindsight"] = max(allowed, key=lambda point: point["saved"])
    rows = [
        [name, f"{point['flops'] / 1e9:.4g}", *(f"{100 * point[key]:.1f}" for key in ("saved", "accuracy"))]
        + [f"{100 * point['drop']:.2f}"]
        for name, point in points.items()
    ]
    parts.append(to_table(["way to leave", "GFLOPs", "saved, %", "Acc@0.5, %", "falls by, points"], rows))
    rows = [
        [
            way,
            str(len(check["drop"])),
            f"{100 * np.mean(check['saved']):.1f}",
            f"{100 * np.mean(check['drop']):.2f}",
            f"{100 * np.max(check['drop']):.2f}",
            f"{100 * check['exceeded']:.0f}",
        ]
        for way, check in results["guarantee"].items()
    ]
    header = ["check", "calibrations", "saved, %", "falls by, points", "at most", f"beyond {100 * alpha:g} points, %"]
    parts.append(to_table(header, rows))
    return "\n\n".join(parts) + "\n"


def plot_exits(results: dict, path: Path):
    """Accuracy against compute, and what the repeated calibrations cost in accuracy."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, curve in results["curves"].items():
        style = {RULE: {"linewidth": 2.5}, "random": {"color": "gray", "linestyle": ":"}}.get(name, {"linewidth": 1})
        points = sorted(curve, key=lambda point: point["flops"])
        left.plot(*_axes(points), label=name, **style)
    left.plot(*_axes(results["fixed_scale"]), "ks", label="fixed scale")
    left.plot(*_axes([results["oracle"]]), "k*", markersize=11, label="oracle")
    left.plot(*_axes([results["calibrated"][RULE]]), "ro", markersize=9, label="calibrated rule")
    left.set(xlabel="GFLOPs per sample, mean", ylabel="Acc@0.5, %")
    left.legend()
    for way, check in results["guarantee"].items():
        right.hist([100 * drop for drop in check["drop"]], bins=15, alpha=0.6, label=way)
    right.axvline(100 * results["settings"]["alpha"], color="red", label="allowed")
    right.set(xlabel="Acc@0.5 falls by, points", ylabel="calibrations")
    right.legend()
    figure.suptitle(results["title"])
    figure.savefig(path, dpi=150)


def _axes(points: list[dict]) -> tuple[list[float], list[float]]:
    return [point["flops"] / 1e9 for point in points], [100 * point["accuracy"] for point in points]
