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
From downloaded files to the finished row of the table, for one of the recipes beside this file.

    python examples/recipes/reproduce.py --recipe refcoco --annotations downloads/refcoco --images downloads/train2014.zip

Each step is skipped if its result is there, so the command goes on where it was stopped. `--train` changes settings of
the recipe: `--train max_train_steps=2 mixed_precision=no`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from transformers import HfArgumentParser


FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]

# recipe: name in the table, who made the splits, splits to evaluate on
RECIPES = {
    "refcoco": ("RefCOCO", "unc", ("val", "testA", "testB")),
    "refcoco_plus": ("RefCOCO+", "unc", ("val", "testA", "testB")),
    "refcocog_umd": ("RefCOCOg (umd)", "umd", ("val", "test")),
    "referitgame": ("ReferItGame (berkeley)", "berkeley", ("val", "test")),
}

# argument of the training: folder in the output
PATHS = {"model_name_or_path": "start", "dataset": "data", "output_dir": "model"}


@dataclass
class Arguments:
    recipe: Literal["refcoco", "refcoco_plus", "refcocog_umd", "referitgame"] = field(
        metadata={"help": "Name of a recipe."}
    )
    annotations: str = field(metadata={"help": "Folder with refs(...).p and instances.json."})
    images: str = field(metadata={"help": "Folder or zip file of the pictures."})
    vilt: str = field(default="dandelin/vilt-b32-mlm", metadata={"help": "ViLT to start from: a folder or Hub id."})
    output: str | None = field(default=None, metadata={"help": "Folder for all results; outputs/recipes/RECIPE."})
    train: list[str] = field(default_factory=list, metadata={"help": "Settings of the training, as name=value."})
    launcher: Literal["python", "accelerate"] = field(default="python", metadata={"help": "What runs the training."})
    on_error: Literal["skip", "stop"] = field(default="stop", metadata={"help": "What to do with bad records."})


def run(*command: str | Path):
    """Run a step of the chain from the repository's root."""
    command = [str(part) for part in command]
    print("+", " ".join(command), flush=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, env=environment, check=True)


def training_settings(args: Arguments, output: Path) -> dict:
    """The recipe's settings with this run's paths and the user's changes."""
    settings = yaml.safe_load((FOLDER / f"{args.recipe}.yaml").read_text())
    settings.update({key: str(output / name) for key, name in PATHS.items()})
    for change in args.train:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--train takes name=value, not {change!r}.")
        try:
            # not YAML, to which "no" is false
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def check_settings(settings: dict, output: Path):
    """Stop where the folder holds what was made with other settings, which would be taken for what these give."""
    file = output / "settings.json"
    if not file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    elif json.loads(file.read_text()) != settings:
        sys.exit(f"error: {file} tells of other settings than these. Give another --output, or empty the folder.")


def make_row(recipe: str, output: Path) -> str:
    """The table's row: Acc@0.5 per sentence in percent, and the share of patches read over all splits."""
    title, _, splits = RECIPES[recipe]
    results = {split: json.loads((output / f"results_{split}.json").read_text()) for split in splits}
    scores = ", ".join(f"{split} {100 * result['acc@0.5']:.2f}" for split, result in results.items())
    sentences = sum(result["num_samples"] for result in results.values())
    read = sum(result["patches_read_total"] * result["num_samples"] for result in results.values()) / sentences
    return f"| {title} | {scores} | {100 * read:.1f} | {sentences} |"


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    _, split_by, splits = RECIPES[args.recipe]
    output = Path(args.output or REPOSITORY / "outputs" / "recipes" / args.recipe).resolve()
    python = sys.executable
    check_settings({"vilt": args.vilt, "training": training_settings(args, output)}, output)
    # the last file that a conversion writes
    if not (output / "start" / "processor_config.json").is_file():
        run(python, "-m", "conversion.convert_vilt_to_scanformer", args.vilt, output / "start")
    run(
        *(python, "-m", "conversion.convert_rec_dataset", "--format", "refer", "--split-by", split_by),
        *("--annotations", args.annotations, "--images", args.images, "--output", output / "data"),
        *("--on-error", args.on_error),
    )
    if not (output / "model" / "config.json").is_file():
        settings = training_settings(args, output)
        if (output / "model" / "log.jsonl").is_file():
            settings["resume_from_checkpoint"] = "latest"
        (output / "train.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        launcher = [python] if args.launcher == "python" else [python, "-m", "accelerate.commands.launch"]
        run(*launcher, REPOSITORY / "examples" / "run_visual_grounding.py", output / "train.yaml")
    for split in splits:
        results = output / f"results_{split}.json"
        if not results.is_file():
            run(
                *(python, REPOSITORY / "examples" / "evaluate_visual_grounding.py", "--model", output / "model"),
                *("--dataset", output / "data", "--split", split, "--output", results),
            )
    row = make_row(args.recipe, output)
    (output / "row.md").write_text(row + "\n")
    print(row)


if __name__ == "__main__":
    main()
