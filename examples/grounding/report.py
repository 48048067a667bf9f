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
"""Results of an evaluation as a Markdown page and as a plot."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


GROUPS = {
    "by_expression_type": "expression type",
    "by_category": "category",
    "by_target_size": "target's side relative to the picture's",
    "by_aspect_ratio": "width to height of the picture",
}


def to_markdown(results: dict) -> str:
    """A page with a table of the headline numbers, and a table per grouping."""
    parts = [f"# {results['title']}", f"`{results['command']}`", to_table(["measure", "value"], _headline(results))]
    scales = zip(results["scale_acc@0.5"], results["scale_mean_iou"], results["patches_read"])
    rows = [
        [str(scale), _percent(acc), _percent(iou), _percent(read)] for scale, (acc, iou, read) in enumerate(scales)
    ]
    parts.append(to_table(["scale", "Acc@0.5, %", "mean IoU, %", "patches read, %"], rows))
    for key, title in GROUPS.items():
        if key in results:
            rows = [
                [group, str(scores["num_samples"]), *(_percent(scores[name]) for name in ("acc@0.5", "mean_iou"))]
                for group, scores in results[key].items()
            ]
            parts.append(to_table([title, "expressions", "Acc@0.5, %", "mean IoU, %"], rows))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"Made with {versions}.")
    return "\n\n".join(parts) + "\n"


def _headline(results: dict) -> list[list[str]]:
    rows = [
        ["expressions", str(results["num_samples"])],
        ["Acc@0.5, %", _percent(results["acc@0.5"])],
        ["Acc@0.5:0.95, %", _percent(results["acc@0.5:0.95"])],
        ["mean IoU, %", _percent(results["mean_iou"])],
    ]
    if "image_acc@0.5" in results:
        rows.append([f"Acc@0.5 per picture, mean over {results['num_images']}, %", _percent(results["image_acc@0.5"])])
    rows.append(["patches read, of all scales, %", _percent(results["patches_read_total"])])
    if "scales_read" in results:
        rows.append(["scales read, mean", f"{results['scales_read']:.2f}"])
    rows.append(["expected calibration error of the score, %", _percent(results["score_calibration"]["ece"])])
    if "flops_per_sample" in results:
        flops, dense = results["flops_per_sample"], results["dense_flops_per_sample"]
        rows.append(["GFLOPs per sample (matrix products)", f"{flops / 1e9:.4g}"])
        rows.append(["GFLOPs per sample, reading every patch", f"{dense / 1e9:.4g}"])
        rows.append(["milliseconds per sample at batch 1, median", f"{results['latency_ms']:.1f}"])
        rows.append(["the same, reading every patch", f"{results['dense_latency_ms']:.1f}"])
        rows.append(["the same, of preprocessing", f"{results['preprocessing_ms']:.1f}"])
    if "no_target" in results:
        scores = results["no_target"]
        at = f"at score {scores['score_threshold']:g}"
        rows.append(
            [f"N-acc of {scores['num_samples']} expressions without target {at}, %", _percent(scores["n_acc"])]
        )
        rows.append([f"T-acc {at}, %", _percent(scores["t_acc"])])
        rows.append([f"F1 of boxes {at}, %", _percent(scores["f1"])])
        rows.append([f"Pr@(F1=1, IoU>=0.5) {at}, %", _percent(scores["pr@(f1=1)"])])
    if results.get("skipped"):
        rows.append(["samples left out as unusable", str(len(results["skipped"]))])
    if results["num_truncated"]:
        rows.append(["expressions cut to what the model reads", str(results["num_truncated"])])
    return rows


def to_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; its first column is text, the others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def plot(results: dict, path: Path):
    """Accuracy, and patches read, by scale; and how far the score is the IoU."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, key, label in ((left, "scale_acc@0.5", "Acc@0.5"), (middle, "patches_read", "patches read")):
        values = [100 * (share or 0.0) for share in results[key]]
        bars = axes.bar([str(scale) for scale in range(len(values))], values, color="tab:blue")
        axes.bar_label(bars, fmt="%.1f")
        axes.set(xlabel="scale, coarse to fine", ylabel=f"{label}, %", ylim=(0, 108))
    plot_reliability(right, results["score_calibration"])
    figure.suptitle(results["title"])
    figure.savefig(path, dpi=150)


def plot_reliability(axes: Axes, calibration: dict):
    """Mean IoU by score; on the diagonal, the score says what can be expected."""
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    scores, iou = ([group[name] for group in calibration["bins"]] for name in ("score", "iou"))
    axes.plot(scores, iou, "o-", color="tab:blue")
    axes.set(xlabel="score", ylabel="mean IoU", xlim=(0, 1), ylim=(0, 1), title=f"ECE {calibration['ece']:.3f}")
