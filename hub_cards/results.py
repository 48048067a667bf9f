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
"""What `examples/evaluate_visual_grounding.py` measured: the only source of figures in a card."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor
from modeling_scanformer.early_exit_scanformer import has_fingerprint

from .checks import PublishError


TASK = "zero-shot-object-detection"
REQUIRED = (
    *("num_samples", "acc@0.5", "acc@0.5:0.95", "mean_iou", "scale_acc@0.5", "scale_mean_iou"),
    *("patches_read", "patches_read_total", "fingerprint", "longest_edge", "scan_options", "command", "settings"),
)
# Folders that only the maker's machine has, in front of a file's name.
LOCAL_FOLDERS = re.compile(r"(?<![^\s'\"=])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")
SETTINGS = ("dataset", "dataset_config", "dataset_level", "split", "seed")
# Key of the results file, the Hub's id of the metric, and its name for readers.
METRICS = (
    ("acc@0.5", "accuracy", "Acc@0.5"),
    ("acc@0.5:0.95", "accuracy", "Acc@0.5:0.95"),
    ("mean_iou", "mean_iou", "mean IoU"),
)
# Settings that change how a model answers, where they are given.
RUN_OPTIONS = (
    *("longest_edge", "max_scales", "selection_threshold", "token_budget", "early_exit", "mixed_precision"),
)


@dataclass(frozen=True)
class Results:
    """
    A results file.

    Attributes:
        path (`Path`):
            The file.
        values (`dict`):
            What it holds.
        dataset_name (`str`):
            What the card calls the data set.
    """

    path: Path
    values: dict[str, Any]
    dataset_name: str

    @property
    def run_options(self) -> dict[str, Any]:
        settings = self.values["settings"]
        # by identity: a threshold of 0.0, which reads everything, equals False
        given = {name: settings.get(name) for name in RUN_OPTIONS}
        return {name: value for name, value in given.items() if not (value is None or value is False or value == "no")}

    @property
    def config(self) -> str | None:
        """The configuration of the data set: of Scenes, the level."""
        settings = self.values["settings"]
        return settings["dataset_level"] if settings["dataset"] == "scenes" else settings["dataset_config"]

    @property
    def data(self) -> str:
        """Data set, configuration, split, and how the model was run, in words."""
        options = [f"{name} `{value}`" for name, value in self.run_options.items()]
        parts = (self.dataset_name, self.config, self.values["settings"]["split"], *options)
        return ", ".join(part for part in parts if part)

    def headline(self) -> dict[str, str]:
        """A row of the card's table, by the title of its column."""
        row = {"data": self.data, "expressions": str(self.values["num_samples"])}
        for key, _, name in METRICS:
            row[f"{name}, %"] = _percent(self.values[key])
        row["patches read, %"] = _percent(self.values["patches_read_total"])
        for column, key in (("GFLOPs", "flops_per_sample"), ("GFLOPs, every patch read", "dense_flops_per_sample")):
            row[column] = f"{self.values[key] / 1e9:.3f}" if key in self.values else "-"
        return row

    def by_scale(self) -> dict[str, str]:
        """A row of the table of scales, coarse to fine."""
        columns = {"Acc@0.5, %": "scale_acc@0.5", "mean IoU, %": "scale_mean_iou", "patches read, %": "patches_read"}
        lists = {column: ", ".join(map(_percent, self.values[key])) for column, key in columns.items()}
        return {"data": self.data, **lists}

    def eval_results(self) -> list[EvalResult]:
        """The headline numbers as the Hub's metadata has them."""
        settings = self.values["settings"]
        return [
            EvalResult(
                task_type=TASK,
                task_name="Referring expression comprehension",
                dataset_type=self.dataset_name.lower().replace(" ", "-"),
                dataset_name=self.dataset_name,
                dataset_config=self.config,
                dataset_split=settings["split"],
                dataset_args={"num_samples": self.values["num_samples"], "seed": settings["seed"]},
                metric_type=metric,
                metric_name=name,
                metric_value=self.values[key],
                metric_args=self.run_options or None,
            )
            for key, metric, name in METRICS
            if self.values[key] is not None
        ]

    def numbers(self) -> Iterator[float]:
        """Every number of the file."""
        yield from _numbers({key: value for key, value in self.values.items() if key != "fingerprint"})


def without_local_folders(value):
    """What a results file holds, with the names of local files but not of the folders that they lie in."""
    if isinstance(value, dict):
        return {name: without_local_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_local_folders(item) for item in value]
    return LOCAL_FOLDERS.sub("", value) if isinstance(value, str) else value


def read_results(
    folder: Path,
    dataset_names: dict[str, str],
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
) -> list[Results]:
    """
    Read the results of a model.

    Args:
        folder (`Path`):
            Where they are: `results` in the folder of the checkpoint.
        dataset_names (`dict[str, str]`):
            Names of data sets by what `--dataset` of the evaluation was. By default the last part of that path.
        model ([`ScanFormerForVisualGrounding`]):
            The model, which must be the one that was measured, with the options that it had then.
        processor ([`ScanFormerProcessor`]):
            Its processor, which must scale pictures to the size that was measured.

    Returns:
        `list[Results]`: in the order of the files' names.

    Raises:
        PublishError: if there are none, or if one is not of this model.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise PublishError(
            f"There are no results in {folder}, and a card without results is not published. Measure some: "
            f"python examples/evaluate_visual_grounding.py --model {folder.parent} ... --output {folder}/NAME.json"
        )
    return [_read(file, dataset_names, model, processor) for file in files]


def _read(
    file: Path,
    dataset_names: dict[str, str],
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
) -> Results:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{file} is not JSON: {error}.") from error
    missing = [name for name in REQUIRED if name not in values] if isinstance(values, dict) else list(REQUIRED)
    if missing:
        raise PublishError(
            f"{file} lacks {missing}: it does not come from running a model with examples/evaluate_visual_grounding.py."
        )
    unsaid = [name for name in SETTINGS if not isinstance(values["settings"], dict) or name not in values["settings"]]
    if unsaid:
        raise PublishError(f"{file}: its settings lack {unsaid}. Measure again, with this version.")
    if not has_fingerprint(model, values["fingerprint"]):
        raise PublishError(f"{file} is of another model: the weights differ. Measure this model again.")
    dataset = values["settings"]["dataset"]
    name = dataset_names.get(dataset) or {"scenes": "Scenes"}.get(dataset) or Path(dataset).name
    results = Results(file, without_local_folders(values), name)
    _check_options(results, model, processor)
    return results


def _check_options(results: Results, model: ScanFormerForVisualGrounding, processor: ScanFormerProcessor):
    """What an evaluation was not told is the checkpoint's own, which may have changed since."""
    now = {**model.scan_options(), "longest_edge": processor.image_processor.size["longest_edge"]}
    then = {**results.values["scan_options"], "longest_edge": results.values["longest_edge"]}
    changed = [
        name
        for name in now.keys() | then.keys()
        if name not in results.run_options and now.get(name) != then.get(name)
    ]
    if changed:
        name = min(changed)
        raise PublishError(
            f"{results.path} was measured with {name} {then.get(name)}, and the checkpoint now has {now.get(name)}. Measure it again."
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
