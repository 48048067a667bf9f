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
Calibrate when a ScanFormer stops reading, so that accuracy falls by no more than you allow.

    python examples/calibrate_early_exit.py --model DIR --dataset scenes --dataset_level colors --alpha 0.005 \\
        --confidence 0.95 --output outputs/early-exit.json

The rule is written into DIR/generation_config.json; `generate(early_exit=True)` and `--early_exit` of the other scripts
use it. With --confidence, over the draw of the calibration data, accuracy on new samples of the same kind falls by no more
than --alpha. Of several expressions about one picture, which are not independent, a random one is used, and such draws are
what the bound is about. With --output, the rule is held against others on another split, and the guarantee is checked on
repeated calibrations: tables, curves and a plot.
"""

import copy
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from grounding.calibration import Calibration, ScanSamples, calibrate, check_guarantee, num_samples_needed
from grounding.checks import make_folder
from grounding.data import DataError, GroundingCollator, GroundingDataset, one_sample_per_picture
from grounding.exit_curves import compare_exits, plot_exits, to_markdown
from grounding.exit_samples import read_samples
from grounding.parts import replace_file
from grounding.run import MeasurementArguments, load_dataset, load_model, try_out
from transformers import HfArgumentParser
from transformers.utils import GENERATION_CONFIG_NAME

from modeling_scanformer import EarlyExitRule, ScanFormerForVisualGrounding, ScanFormerProcessor
from modeling_scanformer.early_exit_scanformer import fingerprint


@dataclass(kw_only=True)
class Arguments(MeasurementArguments):
    split: str = field(default="validation", metadata={"help": "Split to calibrate on; not one that was trained on."})
    max_samples: int | None = field(default=4000, metadata={"help": "Samples to use, from the start."})
    alpha: float = field(default=0.005, metadata={"help": "What accuracy may fall by: 0.005 is half a point."})
    confidence: float = field(default=0.95, metadata={"help": "With what probability it falls by no more."})
    output: str | None = field(
        default=None, metadata={"help": "JSON file for a comparison with other rules; tables and a plot go beside it."}
    )
    comparison_split: str = field(default="test", metadata={"help": "Split to compare on, with --output."})
    num_trials: int = field(default=100, metadata={"help": "Repeated calibrations that check the guarantee."})
    num_cost_samples: int = field(default=50, metadata={"help": "Count operations on so many samples."})


def check_arguments(args: Arguments):
    for name in ("alpha", "confidence"):
        if not 0 < getattr(args, name) < 1:
            raise DataError(f"--{name} lies between 0 and 1, got {getattr(args, name)}.")
    for name in ("batch_size", "num_trials", "num_cost_samples"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name} must be positive, got {getattr(args, name)}.")
    if args.early_exit:
        raise DataError("Calibration makes the rule that --early_exit uses, and reads every scale: leave it out.")
    if args.output is not None and Path(args.output).suffix != ".json":
        raise DataError(f"--output names a JSON file, got {args.output!r}.")
    if args.model is None or not Path(args.model, "config.json").is_file():
        raise DataError(
            f"The rule is written into the model's folder, so --model must be a folder with a config.json, got "
            f"{args.model!r}. Download a model of the Hub first (hf download), and merge an adapter into its model."
        )
    if args.max_samples is not None:
        check_number(args.max_samples, args)
    for folder in (args.model, *(() if args.output is None else (Path(args.output).parent,))):
        make_folder(folder)


def check_number(num_samples: int, args: Arguments):
    needed = num_samples_needed(args.alpha, args.confidence)
    if num_samples < needed:
        raise DataError(
            f"{num_samples} samples can never prove that accuracy falls by at most {args.alpha:g} with a confidence of "
            f"{args.confidence:g}, even if none loses: at least {needed} with a box are needed. Give more, or allow more by "
            "--alpha."
        )


def load_split(args: Arguments, split: str) -> GroundingDataset:
    """Samples that are independent draws, as the guarantee needs them."""
    if args.dataset == "scenes":  # each has a picture of its own
        return load_dataset(args, split)
    dataset = load_dataset(replace(args, max_samples=None), split)
    independent = one_sample_per_picture(dataset, args.seed)
    if len(independent) < len(dataset):
        print(
            f"Of the {len(dataset)} expressions of {split!r}, {len(independent)} are used: one with a box about every picture, as "
            "those about one are not independent. The bound is about such draws."
        )
    independent.indices = independent.indices[: args.max_samples]
    return independent


def read_dataset(
    args: Arguments,
    dataset: GroundingDataset,
    model: ScanFormerForVisualGrounding,
    collator: GroundingCollator,
    accelerator: Accelerator,
) -> ScanSamples:
    return read_samples(
        model,
        dataset,
        collator,
        accelerator,
        args.batch_size,
        args.dataloader_num_workers,
        args.num_cost_samples,
        **args.generation_options,
    )


def make_rule(calibration: Calibration, model: ScanFormerForVisualGrounding, args: Arguments) -> EarlyExitRule:
    config = copy.deepcopy(model.generation_config)
    config.update(**args.generation_options)
    return EarlyExitRule(
        weights=calibration.weights.tolist(),
        biases=calibration.biases.tolist(),
        threshold=calibration.threshold,
        alpha=args.alpha,
        confidence=args.confidence,
        num_samples=calibration.num_samples,
        fingerprint=fingerprint(model),
        options=model.scan_options(config),
    )


def write_comparison(args: Arguments, rule: EarlyExitRule, samples: ScanSamples, others: ScanSamples):
    rng = np.random.default_rng(args.seed)
    results = {
        "title": f"Early exit of {args.model} on {args.dataset}, {args.comparison_split}",
        "rule": rule.to_dict(),
        **compare_exits(samples, others, args.alpha, args.confidence, args.seed),
        "guarantee": check_guarantee(samples, args.alpha, args.confidence, args.num_trials, rng),
        "command": shlex.join(["python", *sys.argv]),
        "settings": asdict(args),
    }
    output = Path(args.output)
    output.write_text(json.dumps(results, indent=2) + "\n")
    page = to_markdown(results)
    output.with_suffix(".md").write_text(page)
    plot_exits(results, output.with_suffix(".png"))
    print(page)


def run(args: Arguments):
    check_arguments(args)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise DataError("Calibration runs in one process: start it without a launcher.")
    model, processor = load_model(args)
    model.to(accelerator.device).eval()
    size = ScanFormerProcessor.from_pretrained(args.model).image_processor.size
    if size != processor.image_processor.size:
        raise DataError(
            f"The rule is kept with the checkpoint, whose processor scales pictures to {size['longest_edge']} pixels: leave "
            "out --longest_edge, or save a processor of that resolution there first."
        )
    if (args.max_scales or model.config.num_scales) < 2:
        raise DataError("With a single scale there is nothing to leave early.")
    kept = copy.deepcopy(model.generation_config)
    # a rule that is there already, or a stop at a score, would end scans before the last scale
    model.generation_config.update(early_exit=None, stopping_score=None)
    try_out(model, processor, args.generation_options)
    collator = GroundingCollator(processor, args.on_error, keep_samples=True)
    dataset = load_split(args, args.split)
    check_number(len(dataset), args)
    comparison = None if args.output is None else load_split(args, args.comparison_split)
    samples = read_dataset(args, dataset, model, collator, accelerator)
    check_number(len(samples), args)
    calibration = calibrate(samples, args.alpha, args.confidence, np.random.default_rng(args.seed))
    if calibration.threshold is None:
        raise DataError(
            f"Nothing can be proven: on {calibration.num_samples} samples even leaving rarely may cost more than "
            f"{args.alpha:g}. Give more samples, or allow more by --alpha."
        )
    rule = make_rule(calibration, model, args)
    kept.update(early_exit_rule=rule.to_dict())
    replace_file(
        Path(args.model, GENERATION_CONFIG_NAME), lambda partial: kept.save_pretrained(partial.parent, partial.name)
    )
    saved = samples.saved(calibration.last_scale_read(samples))
    print(
        f"Wrote the rule to {args.model}/generation_config.json. On the calibration data it saves {saved:.1%} of the work."
    )
    if comparison is not None:
        write_comparison(args, rule, samples, read_dataset(args, comparison, model, collator, accelerator))


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        run(args)
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
