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
Ground every row of a data set of any size: anything with columns of pictures and expressions.

    python examples/ground_dataset.py --model hub_cards/scanformer-tiny-scenes --dataset my_pictures \
        --output predictions.parquet

With several processes, on the CPU or on the GPUs of one machine:

    accelerate launch --cpu --num_processes 2 examples/ground_dataset.py ...
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/ground_dataset.py ...

predictions.parquet has a row for every row of the data set, in its order: "row", its number; the data set's columns but for
pictures; "box" (xyxy in pixels of the upright picture); "score"; "patches_read", the share of all patches of the pyramid;
"truncated", whether the expression was cut; and with --scale_boxes true "scale_boxes" and "scale_scores", coarse first.
With --on_error skip, a row that cannot be used has no box but an "error".

The data set is read as a stream, in parts of --rows_per_part rows that the processes take in turn. Finished parts are kept in
predictions.parts: a run that was stopped goes on with the same command, also with other numbers of processes, batch sizes and
workers, or with --on_error skip. Every process reads past the rows of the others, but decodes only its own pictures.
"""

import hashlib
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from grounding.checks import DataError, Problem, find_expression_problem
from grounding.data import GroundingCollator
from grounding.evaluation import count_patches, make_predictions
from grounding.parts import PartFiles
from grounding.processes import check_processes, start_processes
from grounding.reader import PartReader, open_source
from grounding.run import RunArguments, load_model, try_out
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser

import modeling_scanformer
from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor


BOX = pa.list_(pa.float32())
PREDICTIONS = pa.schema(
    {
        "box": BOX,
        "score": pa.float32(),
        "patches_read": pa.float32(),
        "truncated": pa.bool_(),
        "error": pa.string(),
    }
)
SCALE_PREDICTIONS = pa.schema({"scale_boxes": pa.list_(BOX), "scale_scores": pa.list_(pa.float32())})


@dataclass(kw_only=True)
class Arguments(RunArguments):
    model: str = field(metadata={"help": "Model to run: a folder or an id on the Hub."})
    dataset: str = field(
        metadata={"help": "A folder of pictures or of parquet files, a parquet file, a Hub id, or 'scenes'."}
    )
    output: str = field(metadata={"help": "Parquet file for the predictions."})
    split: str | None = field(default=None, metadata={"help": "Split to ground, where a data set has several."})
    image_column: str = field(default="image", metadata={"help": "What the data set calls its pictures."})
    expression_column: str = field(default="expression", metadata={"help": "What it calls its expressions."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "What to do at an unusable row: 'stop', or 'skip' and say so in its row."}
    )
    scale_boxes: bool = field(default=False, metadata={"help": "Write the box and score of every scale, too."})
    batch_size: int = field(default=32, metadata={"help": "Batch size of every process."})
    rows_per_part: int = field(
        default=1024,
        metadata={"help": "Rows that are written at once, and among which pictures of like shape are looked for."},
    )


class Samples(torch.utils.data.Dataset):
    """Lets a data loader hand samples themselves to its workers, instead of their indices."""

    def __getitem__(self, sample: dict) -> dict:
        return sample


@dataclass
class Collator:
    """Encodes samples; what of them cannot be used is listed under "problems", or raises an error."""

    processor: ScanFormerProcessor
    on_error: str

    def __call__(self, samples: list[dict]) -> dict:
        reasons = [find_expression_problem(sample["expression"]) for sample in samples]
        problems = [Problem(s["row"], "expression", reason) for s, reason in zip(samples, reasons) if reason]
        if problems and self.on_error == "stop":
            raise DataError(f"A sample cannot be used (leave such out by on_error 'skip'): {problems[0]}")
        usable = [{**sample, "bbox": None} for sample, reason in zip(samples, reasons) if not reason]
        batch = GroundingCollator(self.processor, self.on_error, keep_samples=True)(usable)
        batch.pop("labels", None)
        return {**batch, "problems": problems + batch["problems"]}


@dataclass
class Tally:
    """What one process did: rows that it wrote, how many of them cannot be used, patches of its pyramids and of padding."""

    rows: int = 0
    errors: int = 0
    patches: int = 0
    padding: int = 0
    seconds: float = 0.0


class Grounder:
    """
    Runs a model over the batches of one process.

    Args:
        model ([`ScanFormerForVisualGrounding`]), accelerator (`Accelerator`), options (`dict`):
            The model on its device, the precision, and options of [`~ScanFormerForVisualGrounding.generate`].

    Attributes:
        tally ([`Tally`]):
            Of the batches so far.
    """

    def __init__(self, model: ScanFormerForVisualGrounding, accelerator: Accelerator, options: dict):
        self.model = model
        self.accelerator = accelerator
        self.options = options
        self.tally = Tally()

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict[int, dict]:
        """Predictions by row, those of unusable rows included."""
        samples, problems = batch.pop("samples"), batch.pop("problems")
        results = {problem.row: {"error": f"{problem.column}: {problem.reason}"} for problem in problems}
        if not samples:
            return results
        batch = {name: features.to(self.accelerator.device) for name, features in batch.items()}
        with self.accelerator.autocast():
            outputs = self.model.generate(**batch, **self.options)
        num_patches = count_patches(batch["pixel_attention_mask"], self.model.config.num_scales)
        self.tally.patches += int(num_patches.sum())
        self.tally.padding += batch["pixel_attention_mask"].numel() - int(num_patches.sum())
        for prediction in make_predictions([{**sample, "bbox": None} for sample in samples], outputs, num_patches):
            share = sum(prediction["patches_read"]) / sum(prediction["num_patches"])
            results[prediction["row"]] = {**prediction, "patches_read": share}
        return results


def describe_settings(args: Arguments, model: ScanFormerForVisualGrounding, processor: ScanFormerProcessor) -> dict:
    """What predictions depend on. Where the model lies, how work is shared out and what stops it make no difference."""
    parts = (model.config, model.generation_config, processor.image_processor)
    digest = hashlib.sha256("".join(part.to_json_string() for part in parts).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    names = ("dataset", "dataset_config", "split", "max_samples", "longest_edge", "max_scales", "selection_threshold")
    names += ("token_budget", "early_exit", "scale_boxes", "rows_per_part", "mixed_precision")
    names += ("image_column", "expression_column")
    names += ("dataset_level", "seed") if args.dataset == "scenes" else ()
    return {
        "modeling_scanformer": modeling_scanformer.__version__,
        "model": digest.hexdigest()[:16],
        "files": describe_files(Path(args.dataset)),
        **{name: getattr(args, name) for name in names},
    }


def describe_files(path: Path) -> str | None:
    """Tells a data set on the disk from its changed self."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    states = [file.stat() for file in files]
    newest = max((state.st_mtime_ns for state in states), default=0)
    return f"{len(files)} files of {sum(state.st_size for state in states)} bytes, newest {newest}"


def make_table(
    first: int, rows: list[dict], features: datasets.Features, results: dict, schema: pa.Schema
) -> pa.Table:
    """The part of `rows`, the first of which is number `first` of the data set."""
    numbers = range(first, first + len(rows))
    carried = datasets.Dataset.from_list(rows, features=features).with_format("arrow")[:]
    predictions = pa.Table.from_pylist([results[number] for number in numbers], schema=schema)
    columns = {"row": pa.array(numbers, pa.int64())}
    for table in (carried, predictions):
        columns.update(zip(table.column_names, table.columns))
    return pa.table(columns)


def check_arguments(args: Arguments):
    output = Path(args.output)
    if output.suffix != ".parquet":
        raise DataError(f"--output names a parquet file, got {args.output!r}.")
    if Path(args.dataset).is_dir() and output.resolve().is_relative_to(Path(args.dataset).resolve()):
        raise DataError(
            f"--output lies in the data set {args.dataset}, and would become part of it. Write it elsewhere."
        )
    for name in ("batch_size", "rows_per_part"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name} must be positive, got {getattr(args, name)}.")


def ground(args: Arguments):
    check_arguments(args)
    # a process that has finished waits for the others, however long they take
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[patience])
    check_processes(accelerator)
    model, processor = load_model(args)
    model.to(accelerator.device).eval()
    options = args.generation_options
    try_out(model, processor, options)
    schema = pa.unify_schemas([PREDICTIONS, SCALE_PREDICTIONS]) if args.scale_boxes else PREDICTIONS
    source = open_source(
        args.dataset,
        args.split,
        config=args.dataset_config,
        seed=args.seed,
        num_samples=args.max_samples,
        level=args.dataset_level,
        image_column=args.image_column,
        expression_column=args.expression_column,
    )
    taken = sorted({"row", *schema.names} & set(source.features))
    if taken:
        raise DataError(f"The data set {args.dataset} has columns {taken}, which predictions go by. Rename them.")

    settings = describe_settings(args, model, processor) if accelerator.is_main_process else {}
    with PartFiles(Path(args.output), settings) as files:
        # one process looks, so that all see the same parts
        finished = broadcast_object_list([files.open() if accelerator.is_main_process else None])[0]
        if finished is None:
            accelerator.print(f"{args.output} is there already, made with the same settings.")
            return
        reader = PartReader(
            source,
            processor.image_processor,
            args.rows_per_part,
            args.batch_size,
            finished,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = DataLoader(
            Samples(),
            batch_sampler=reader,
            collate_fn=Collator(processor, args.on_error),
            num_workers=args.dataloader_num_workers,
        )
        tally = ground_parts(loader, reader, Grounder(model, accelerator, options), files, schema)
        tallies = gather_object([tally])
        if accelerator.is_main_process:
            files.join(-(-reader.num_rows // args.rows_per_part))
            print(f"Wrote {args.output}: {reader.num_rows} rows.\n{describe(tallies)}")


def ground_parts(
    loader: DataLoader, reader: PartReader, grounder: Grounder, files: PartFiles, schema: pa.Schema
) -> Tally:
    """Ground this process's parts and write them."""
    tally, start = grounder.tally, time.perf_counter()
    results: dict[int, dict] = {}
    # the processes go through the data set side by side, so the place of one tells how far they all are
    silent = not grounder.accelerator.is_main_process
    with tqdm(total=reader.source.num_rows, unit="row", desc="Grounding", disable=silent) as progress:
        for batch in loader:
            results.update(grounder(batch))
            part = next(iter(results)) // reader.rows_per_part
            rows = reader.parts[part]
            if len(results) < len(rows):
                continue
            first = part * reader.rows_per_part
            files.write(part, make_table(first, rows, reader.source.features, results, schema))
            tally.rows += len(rows)
            tally.errors += sum("error" in result for result in results.values())
            del reader.parts[part]
            results = {}
            progress.update(first + len(rows) - progress.n)
        progress.update(reader.num_rows - progress.n)
    tally.seconds = time.perf_counter() - start
    return tally


def describe(tallies: list[Tally]) -> str:
    """One line about all processes. Time is that of the slowest, from its first row to its last, without loading the model."""
    rows, seconds = sum(tally.rows for tally in tallies), max(tally.seconds for tally in tallies)
    padding = sum(tally.padding for tally in tallies) / max(sum(tally.patches for tally in tallies), 1)
    return (
        f"This run grounded {rows} of them, {sum(tally.errors for tally in tallies)} of which cannot be used, with "
        f"{len(tallies)} processes in {seconds:.1f} s, {rows / seconds:.1f} rows per second. Padding added {padding:.1%} to "
        "the patches."
    )


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        start_processes()
        ground(args)
    except DataError as error:
        # a worker of the data loader puts its traceback in front
        sys.exit(f"error: {str(error).rpartition('DataError: ')[2]}")


if __name__ == "__main__":
    main()
