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
"""
Compare ways of fine-tuning on a shifted domain: Scenes at night.

    python examples/compare_tuning.py --model hub_cards/scanformer-tiny-scenes --dataset_level primer --output_dir OUT

Every arm trains with the same steps and data, and is evaluated on the new domain and on the old one. OUT/table.md is the
table. An arm whose results are there is not run again, so the command goes on where it was stopped; other settings need
another folder.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from grounding.checks import DataError
from grounding.report import to_table
from grounding.scripts import evaluate_once, run_script
from transformers import HfArgumentParser


# arm: how it is trained, and whether with the learning rate of full tuning
ARMS = {
    "no tuning": (None, False),
    "full": (["--train", "full"], True),
    "heads": (["--train", "heads"], False),
    "LoRA r=4": (["--lora_r", "4"], False),
    "LoRA r=8": (["--lora_r", "8"], False),
    "LoRA r=16": (["--lora_r", "16"], False),
    "DoRA r=8": (["--lora_r", "8", "--dora"], False),
}
HEADER = [
    *("arm", "Acc@0.5 at night, %", "Acc@0.5 by day, %", "share of full tuning's gain, %"),
    *("trained parameters, %", "size of the result, MB", "training, s"),
]


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Model to fine-tune: a folder or an id on the Hub."})
    output_dir: str = field(metadata={"help": "Folder for the arms and the table."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Some of: {', '.join(ARMS)}."})
    dataset_level: str = field(default="standard", metadata={"help": "Level of Scenes."})
    max_train_steps: int = field(default=500, metadata={"help": "Steps of every arm."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Batch size."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of full tuning."})
    adapter_learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of the other arms."})
    num_test_samples: int = field(default=500, metadata={"help": "Pictures of each domain to evaluate on."})
    seed: int = field(default=0, metadata={"help": "Seed of the training."})
    test_seed: int = field(default=123, metadata={"help": "Seed of the pictures to evaluate on."})


def train(args: Arguments, arm: str, folder: Path):
    """Train an arm, and note what it took. One that was stopped starts anew, as its time is measured."""
    flags, is_full = ARMS[arm]
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    run_script(
        "run_visual_grounding.py",
        [*flags, "--validation_split", ""],
        model_name_or_path=args.model,
        output_dir=folder,
        dataset="scenes",
        dataset_level=args.dataset_level,
        train_split="train-night",
        expressions_per_scene=4,
        max_train_steps=args.max_train_steps,
        num_warmup_steps=args.max_train_steps // 10,
        learning_rate=args.learning_rate if is_full else args.adapter_learning_rate,
        per_device_train_batch_size=args.per_device_train_batch_size,
        seed=args.seed,
    )
    (folder / "seconds.json").write_text(json.dumps(time.monotonic() - start))


def evaluate(args: Arguments, model: str, split: str, output: Path) -> float:
    """Acc@0.5 on a split."""
    results = evaluate_once(
        output,
        model=model,
        dataset="scenes",
        dataset_level=args.dataset_level,
        split=split,
        seed=args.test_seed,
        max_samples=args.num_test_samples,
        num_cost_samples=0,
    )
    return results["acc@0.5"]


def run_arm(args: Arguments, arm: str) -> dict:
    """The figures of an arm, trained and evaluated unless they are there."""
    folder = Path(args.output_dir) / arm.replace(" ", "-").replace("=", "")
    folder.mkdir(parents=True, exist_ok=True)
    model, figures = args.model, {"trained": None, "megabytes": None, "seconds": None}
    if ARMS[arm][0] is not None:
        if not (folder / "seconds.json").is_file():
            train(args, arm, folder)
        model = str(folder)
        (weights,) = folder.glob("*model.safetensors")
        *_, parameters = (json.loads(line) for line in (folder / "log.jsonl").open() if "trainable_parameters" in line)
        figures = {
            "trained": parameters["trainable_parameters"] / parameters["all_parameters"],
            "megabytes": weights.stat().st_size / 1e6,
            "seconds": json.loads((folder / "seconds.json").read_text()),
        }
    for name, split in (("new", "test-night"), ("old", "test")):
        figures[name] = evaluate(args, model, split, folder / f"{split}.json")
    return figures


def to_rows(figures: dict[str, dict]) -> list[list[str]]:
    """Cells of the table, an arm a row."""

    def cell(value: float | None, form: str = "{:.1f}") -> str:
        return "-" if value is None else form.format(value)

    start, full = (figures.get(arm, {}).get("new") for arm in ("no tuning", "full"))
    rows = []
    for arm, values in figures.items():
        gain = None if None in (start, full) or full <= start else 100 * (values["new"] - start) / (full - start)
        rows.append([arm, cell(100 * values["new"]), cell(100 * values["old"]), cell(gain, "{:.0f}")])
        rows[-1] += [cell(None if values["trained"] is None else 100 * values["trained"], "{:.2f}")]
        rows[-1] += [cell(values["megabytes"], "{:.2f}"), cell(values["seconds"], "{:.0f}")]
    return rows


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        sys.exit(f"error: there is no arm {unknown}; known are {list(ARMS)}.")
    try:
        figures = {arm: run_arm(args, arm) for arm in args.arms}
    except DataError as error:
        sys.exit(f"error: {error}")
    output = Path(args.output_dir)
    (output / "table.json").write_text(json.dumps({"settings": vars(args), "arms": figures}, indent=2) + "\n")
    table = to_table(HEADER, to_rows(figures))
    (output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
