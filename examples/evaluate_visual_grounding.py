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
Evaluate a ScanFormer on Scenes, or on any data set with pictures, expressions and boxes.

    python examples/evaluate_visual_grounding.py --model hub_cards/scanformer-tiny-scenes --dataset scenes \
        --split test --seed 123 --max_samples 500 --output results.json

Besides results.json this writes results.md (tables), results.png (plots) and results.predictions.jsonl: a line per
sentence, from which anyone can compute the numbers again:

    python examples/evaluate_visual_grounding.py --predictions results.predictions.jsonl --output again.json
"""

import copy
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from grounding.checks import make_folder
from grounding.cost import measure_cost
from grounding.data import DataError, GroundingCollator
from grounding.evaluation import predict, summarize
from grounding.parts import replace_file
from grounding.processes import check_processes, start_processes
from grounding.report import plot, to_markdown
from grounding.run import MeasurementArguments, load_dataset, load_model, try_out
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

import modeling_scanformer
from modeling_scanformer.early_exit_scanformer import fingerprint


# Without these, a line is no prediction; see `grounding.evaluation.predict`.
PREDICTION_FIELDS = (
    *("row", "expression", "width", "height", "box", "score", "true_box"),
    *("scale_boxes", "patches_read", "num_patches", "truncated"),
)
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "pillow", "numpy")


@dataclass(kw_only=True)
class Arguments(MeasurementArguments):
    output: str = field(metadata={"help": "JSON file for the results; tables, plots and predictions go beside it."})
    predictions: str | None = field(
        default=None, metadata={"help": "Instead of running a model, score a file of predictions again."}
    )
    score_threshold: float = field(
        default=0.5, metadata={"help": "A lower score says that nothing fits; for data with such expressions."}
    )
    num_cost_samples: int = field(
        default=20, metadata={"help": "Measure FLOPs and latency on so many samples; 0 to leave it out."}
    )


def run_model(args: Arguments, accelerator: Accelerator) -> tuple[list[dict], dict]:
    """The predictions, and what is known of their making."""
    model, processor = load_model(args)
    model.to(accelerator.device).eval()
    options = args.generation_options
    try_out(model, processor, options)
    config = copy.deepcopy(model.generation_config)
    config.update(**options)
    dataset = load_dataset(args, args.split)
    collator = GroundingCollator(processor, on_error=args.on_error, keep_samples=True)
    workers = {"num_workers": args.dataloader_num_workers, "collate_fn": collator}
    dataloader = accelerator.prepare(DataLoader(dataset, batch_size=args.batch_size, **workers))
    predictions, problems = predict(model, dataloader, accelerator, **options)
    problems = sorted([*dataset.problems, *problems], key=lambda problem: problem.row)
    details = {
        "skipped": [str(problem) for problem in problems],
        "num_parameters": model.num_parameters(),
        "fingerprint": fingerprint(model),
        "scan_options": model.scan_options(config),
        "longest_edge": processor.image_processor.size["longest_edge"],
        "device": describe_device(accelerator),
    }
    if args.num_cost_samples and accelerator.is_main_process:
        details.update(measure_cost(model, dataset, collator, accelerator, args.num_cost_samples, **options))
    return predictions, details


def describe_device(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{accelerator.device.type}, {torch.get_num_threads()} threads"
    return f"{accelerator.num_processes} x {name}, {accelerator.mixed_precision} mixed precision"


def read_predictions(path: Path) -> list[dict]:
    if not path.is_file():
        raise DataError(f"There is no file of predictions {path}.")
    predictions = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            prediction = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
        fields = prediction if isinstance(prediction, dict) else {}
        missing = [name for name in PREDICTION_FIELDS if name not in fields]
        if missing:
            raise DataError(f"{path}, line {number} is not a prediction: it lacks {missing}.")
        predictions.append(prediction)
    if not predictions:
        raise DataError(f"{path} holds no predictions.")
    return predictions


def write(output: Path, results: dict, predictions: list[dict] | None):
    page = to_markdown(results)
    output.with_suffix(".md").write_text(page)
    plot(results, output.with_suffix(".png"))
    if predictions is not None:
        with output.with_suffix(".predictions.jsonl").open("w") as file:
            file.writelines(json.dumps(prediction) + "\n" for prediction in predictions)
    # it comes last, and whole: with it, an evaluation is done
    replace_file(output, lambda partial: partial.write_text(json.dumps(results, indent=2) + "\n"))
    print(page)


def evaluate(args: Arguments):
    if (args.model is None) == (args.predictions is None):
        raise DataError("Give either --model or --predictions.")
    if Path(args.output).suffix != ".json":
        raise DataError(f"--output names a JSON file, got {args.output!r}.")
    make_folder(Path(args.output).parent)
    if args.predictions is None:
        accelerator = Accelerator(mixed_precision=args.mixed_precision)
        check_processes(accelerator)
        predictions, details = run_model(args, accelerator)
        is_main_process = accelerator.is_main_process
        title = f"{args.model} on {args.dataset}, {args.split}"
    else:
        predictions, details, is_main_process = read_predictions(Path(args.predictions)), {}, True
        title = args.predictions
    if is_main_process:
        results = {
            "title": title,
            **summarize(predictions, args.score_threshold),
            **details,
            "command": shlex.join(["python", *sys.argv]),
            "settings": asdict(args),
            "versions": {
                "python": platform.python_version(),
                "modeling_scanformer": modeling_scanformer.__version__,
                **{name: version(name) for name in PACKAGES},
            },
        }
        write(Path(args.output), results, None if args.model is None else predictions)


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        start_processes()
        evaluate(args)
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
