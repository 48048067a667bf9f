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
"""The rows of the latency benchmark as a Markdown page and as a plot."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .peers import PEERS
from .report import to_table


# Column: key of a row, factor, and form.
COLUMNS = {
    "model, ms": ("median_ms", 1, "{:.1f}"),
    "preprocessing, ms": ("preprocessing_ms", 1, "{:.1f}"),
    "end to end, ms": ("end_to_end_ms", 1, "{:.1f}"),
    "end to end / ViLT's": ("end_to_end_ratio_to_dense_vilt", 1, "{:.2f}"),
    "end to end / packed ViLT's": ("end_to_end_ratio_to_dense_vilt_packed", 1, "{:.2f}"),
    "end to end / compiled ViLT's": ("end_to_end_ratio_to_dense_vilt_compiled", 1, "{:.2f}"),
    "GFLOPs": ("flops", 1e-9, "{:.1f}"),
    "roofline, ms": ("roofline_ms", 1, "{:.1f}"),
    "model / roofline": ("ratio_to_roofline", 1, "{:.2f}"),
    "FLOP saving that becomes time, %": ("flop_saving_that_becomes_time", 100, "{:.0f}"),
    "bookkeeping, %": ("bookkeeping_share", 100, "{:.1f}"),
    "peak memory, MB": ("peak_memory_mb", 1, "{:.0f}"),
    "tokens": ("tokens", 1, "{:.0f}"),
}

NOTES = """\
Medians over rounds in which everybody runs once; times are those of a batch, tokens those of a sample. End to end is from
pictures and expressions to the model's outputs. GFLOPs: all matrix products and convolutions, a multiplication and an
addition as two. Roofline: the sum over passes of the larger of FLOPs over the measured peak and weight bytes over the measured
bandwidth. The FLOP saving is that against the same model reading every patch. Bookkeeping: the profiler's share of operators
that select, gather, merge, cache, mask and place. Peak memory: weights, inputs, and what torch allocates on top; packed
weights take as much. GFLOPs and memory of what is compiled are those before it is."""


def to_markdown(rows: list[dict], command: str, machine: str) -> str:
    """A page with a table per setting."""
    parts = ["# Latency", f"`{command}`", f"{machine}.", NOTES]
    for (dtype, resolution, batch_size), group in group_rows(rows).items():
        parts.append(f"## {dtype}, {resolution} px, batch {batch_size}")
        peak, bandwidth = group[0]["peak_gflops_per_s"], group[0]["bandwidth_gb_per_s"]
        parts.append(f"Measured peak {peak:.1f} GFLOP/s, bandwidth {bandwidth:.1f} GB/s.")
        parts.append(to_table(["contestant", *COLUMNS], [_cells(row) for row in group]))
    comparisons = compare_settings(rows)
    if comparisons:
        parts += ["## Across settings", to_table(["comparison", "ratio"], comparisons)]
    return "\n\n".join(parts) + "\n"


def group_rows(rows: list[dict]) -> dict[tuple[str, int, int], list[dict]]:
    """Rows by (dtype, resolution, batch size)."""
    groups = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["resolution"], row["batch_size"]), []).append(row)
    return groups


def compare_settings(rows: list[dict]) -> list[list[str]]:
    """What a higher resolution costs, and a sample in a batch, of the contestants that read given shares."""
    lines = []
    given = {(row["name"], row["dtype"], row["resolution"], row["batch_size"]): row for row in rows if row["rates"]}
    for (name, dtype, resolution, batch_size), row in given.items():
        lower = given.get((name, dtype, resolution // 2, batch_size))
        if lower is not None:
            ratio = row["end_to_end_ms"] / lower["end_to_end_ms"]
            what = f"{name}, {dtype}, batch {batch_size}: end to end at {resolution} px / at {resolution // 2} px"
            lines.append([what, f"{ratio:.2f}"])
        single = given.get((name, dtype, resolution, 1))
        if single is not None and single is not row:
            ratio = row["end_to_end_ms"] / batch_size / single["end_to_end_ms"]
            what = f"{name}, {dtype}, {resolution} px: end to end of a sample in a batch of {batch_size} / alone"
            lines.append([what, f"{ratio:.2f}"])
    return lines


def _cells(row: dict) -> list[str]:
    values = [(row[key], factor, form) for key, factor, form in COLUMNS.values()]
    return [row["name"], *("-" if value is None else form.format(factor * value) for value, factor, form in values)]


def plot(rows: list[dict], path: Path):
    """End-to-end time of everybody, a panel per setting."""
    groups = group_rows(rows)
    figure = Figure(figsize=(8, 1.0 + 0.35 * len(rows) + 0.8 * len(groups)), layout="constrained")
    heights = [len(group) for group in groups.values()]
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, ((dtype, resolution, batch_size), group) in zip(panels, groups.items()):
        group = group[::-1]
        colors = ["tab:gray" if row["name"].startswith(PEERS) else "tab:blue" for row in group]
        bars = axes.barh([row["name"] for row in group], [row["end_to_end_ms"] for row in group], color=colors)
        axes.bar_label(bars, [f"{row['end_to_end_ms']:.0f}" for row in group], padding=3)
        axes.set(title=f"{dtype}, {resolution} px, batch {batch_size}", xscale="log", xlabel="end to end, ms")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
    figure.savefig(path, dpi=150)
