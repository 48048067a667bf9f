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
Compare ways of spending a token budget, the most patches that a sample may read.

    python examples/compare_budgets.py --model hub_cards/scanformer-tiny-scenes --dataset_level colors --max_samples 500 \
        --output budgets.json

Every way spends every budget whole, on the same samples. budgets.md is the table, budgets.png the curves.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from grounding.checks import make_folder
from grounding.cost import LIMITS
from grounding.data import DataError, GroundingCollator
from grounding.evaluation import predict, summarize
from grounding.report import to_table
from grounding.run import MeasurementArguments, load_dataset, load_model, try_out
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser, set_seed


# `budget_split` and `budget_score` of every way
WAYS = {
    "HiRED split, attention": ("content", "attention"),
    "HiRED split, informativeness": ("content", "informativeness"),
    "even split, informativeness": ("even", "informativeness"),
    "informativeness alone": ("none", "informativeness"),
    "random": ("none", "random"),
    "center": ("none", "center"),
}


@dataclass(kw_only=True)
class Arguments(MeasurementArguments):
    output: str = field(metadata={"help": "JSON file for the results; the table and the curves go beside it."})
    budgets: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        metadata={"help": "Shares of the patches of all scales."},
    )


def compare(args: Arguments) -> dict:
    """Accuracy of every way at every budget, and of the selection that the model has learned, at what it reads."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    model, processor = load_model(args)
    model.to(accelerator.device).eval()
    # a stop that is saved with the model would save patches, too; a budget is spent whole only where everything is wanted
    learned = {**dict.fromkeys(LIMITS), **args.generation_options}
    common = {**learned, "selection_threshold": 0.0}
    runs = [(way, budget) for way in WAYS for budget in args.budgets]
    for budget in args.budgets:
        try_out(model, processor, {**common, "token_budget": budget})
    dataset = load_dataset(args, args.split)
    loader = DataLoader(
        dataset,
        batch_size=args.batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=GroundingCollator(processor, args.on_error, keep_samples=True),
    )
    batches = list(tqdm(accelerator.prepare(loader), desc="Preparing"))

    def measure(**options) -> dict:
        set_seed(args.seed)
        # `predict` takes from a batch what the model does not know
        results = summarize(predict(model, map(dict, batches), accelerator, **options)[0])
        return {"acc@0.5": results["acc@0.5"], "patches_read": results["patches_read_total"]}

    curves = {way: [] for way in WAYS}
    for way, budget in tqdm(runs, desc="Comparing"):
        split, score = WAYS[way]
        curves[way].append(measure(**{**common, "token_budget": budget, "budget_split": split, "budget_score": score}))
    return {"curves": curves, "learned_selection": measure(**learned)}


def to_markdown(results: dict) -> str:
    budgets, learned = results["settings"]["budgets"], results["learned_selection"]
    header = ["Acc@0.5, %, at a budget of", *(f"{100 * budget:g} %" for budget in budgets)]
    rows = [[way, *(f"{100 * point['acc@0.5']:.1f}" for point in curve)] for way, curve in results["curves"].items()]
    selection = (
        f"The learned selection, without a budget: {100 * learned['acc@0.5']:.1f} %, reading "
        f"{100 * learned['patches_read']:.1f} % of all patches."
    )
    return "\n\n".join([f"`{results['command']}`", to_table(header, rows), selection]) + "\n"


def plot(results: dict, path: Path):
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for way, curve in results["curves"].items():
        read, accuracies = ([100 * point[name] for point in curve] for name in ("patches_read", "acc@0.5"))
        axes.plot(read, accuracies, "o-", markersize=3, label=way)
    learned = results["learned_selection"]
    axes.plot(100 * learned["patches_read"], 100 * learned["acc@0.5"], "k*", markersize=10, label="learned selection")
    axes.set(xlabel="patches read, %", ylabel="Acc@0.5, %")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        if args.model is None:
            raise DataError("Give a --model.")
        if args.token_budget is not None or args.selection_threshold is not None:
            raise DataError("--token_budget and --selection_threshold are what is compared: use --budgets.")
        output = Path(args.output)
        if output.suffix != ".json":
            raise DataError(f"--output names a JSON file, got {args.output!r}.")
        make_folder(output.parent)
        results = {"command": shlex.join(["python", *sys.argv]), "settings": asdict(args), **compare(args)}
    except DataError as error:
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")
    output.write_text(json.dumps(results, indent=2) + "\n")
    page = to_markdown(results)
    output.with_suffix(".md").write_text(page)
    plot(results, output.with_suffix(".png"))
    print(page)


if __name__ == "__main__":
    main()
