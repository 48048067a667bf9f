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
Export a ScanFormer to ONNX: a file for the text, and one for every scale and number of patches (its buckets).

    python examples/export_onnx.py --model hub_cards/scanformer-tiny-scenes --output outputs/onnx --int8 \
        --text_length 24 --evaluate_level colors --num_samples 200

The files are run by ONNX Runtime and held against PyTorch on a picture. `--evaluate_level` measures on Scenes what they
cost in accuracy, and how long they take, one sample at a time. In your own code,
`grounding.onnx_steps.load_onnx_scanner(Path(OUTPUT)).generate(**inputs)` takes what the processor gives, as the model does.
"""

import json
import logging
import shlex
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import PIL.Image
import torch
from grounding.checks import DataError
from grounding.data import GroundingCollator, load_grounding_dataset
from grounding.evaluation import count_patches, make_predictions, summarize
from grounding.onnx_steps import FLOAT32, INT8, export_onnx, import_optional, load_onnx_scanner, quantize_onnx
from grounding.report import to_table
from grounding.run import RunArguments, load_model
from scenes import LEVELS
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BatchFeature, HfArgumentParser

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerGenerationConfig,
    ScanFormerProcessor,
)
from modeling_scanformer.static_scanformer import StaticShapes


PICTURE = Path(__file__).with_name("demo.png")
# Of boxes relative to the picture; float32 in another order of sums is some 1e-6 off.
TOLERANCE = 1e-3
HEADER = ["runtime", "size, MB", "Acc@0.5, %", "mean IoU, %", "patches read, %", "ms per sample, median"]


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Model to export: a folder or an id on the Hub."})
    output: str = field(metadata={"help": "Folder for the ONNX files."})
    text_length: int | None = field(
        default=None, metadata={"help": "Tokens of an expression at most; all that the model reads by default."}
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Resolution in pixels, if not the processor's."})
    buckets: list[str] | None = field(
        default=None,
        metadata={
            "help": "For every scale, coarse first, numbers of patches: 16 8,16,64 32,64,256. By default all of the "
            "coarsest scale, and a sixteenth, an eighth, a quarter, a half and all of every other."
        },
    )
    int8: bool = field(default=False, metadata={"help": "Also write steps with weights of 8 bits."})
    image: str = field(default=str(PICTURE), metadata={"help": "Picture to check the files on ..."})
    expression: str = field(default="the violet disc", metadata={"help": "... and what to look for in it."})
    evaluate_level: str | None = field(
        default=None,
        metadata={"help": f"Level of Scenes to evaluate on: {', '.join(LEVELS)}."},
    )
    num_samples: int = field(default=200, metadata={"help": "Pictures of the test split to evaluate on."})
    seed: int = field(default=123, metadata={"help": "Seed of these pictures."})


def read_shapes(args: Arguments, config: ScanFormerConfig, longest_edge: int) -> StaticShapes:
    text_length = config.max_position_embeddings if args.text_length is None else args.text_length
    if not 1 <= text_length <= config.max_position_embeddings:
        raise DataError(f"--text_length must lie between 1 and {config.max_position_embeddings}, got {text_length}.")
    if args.buckets is None:
        return StaticShapes.for_pictures(config, longest_edge, text_length)
    if len(args.buckets) != config.num_scales:
        raise DataError(f"--buckets has entries for {len(args.buckets)} scales, the model has {config.num_scales}.")
    try:
        buckets = tuple(tuple(int(size) for size in sizes.split(",")) for sizes in args.buckets)
        return StaticShapes(text_length, buckets)
    except ValueError as error:
        raise DataError(f"--buckets is as 16 8,16,64 32,64,256, got {' '.join(args.buckets)}: {error}") from error


def read_sample(args: Arguments, processor: ScanFormerProcessor) -> BatchFeature:
    try:
        with PIL.Image.open(args.image) as image:
            return processor(images=image, text=args.expression, truncation=True, return_tensors="pt")
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {args.expression!r} in the picture {args.image}: {error}") from error


class PlainScan:
    """`generate` of a model at its plain defaults, whatever options are saved with it."""

    def __init__(self, model: ScanFormerForVisualGrounding):
        self.model = model

    def generate(self, **inputs):
        return self.model.generate(**inputs, generation_config=ScanFormerGenerationConfig())


def compare(scanners: dict, inputs: BatchFeature) -> dict[str, float]:
    """Largest difference of boxes and scores to those of the first scanner."""
    truth, *others = [(name, scanner.generate(**inputs)) for name, scanner in scanners.items()]
    return {
        name: max(
            float((getattr(outputs, key) - getattr(truth[1], key)).abs().max())
            for key in ("scale_boxes", "scale_scores")
        )
        for name, outputs in others
    }


def evaluate(scanners: dict, dataloader: DataLoader, num_scales: int) -> dict[str, dict]:
    """What `grounding.evaluation.summarize` gives for every scanner, and the median time of a sample."""
    predictions = {name: [] for name in scanners}
    seconds = {name: [] for name in scanners}
    for batch in tqdm(dataloader, desc="Evaluating"):
        samples, inputs = batch["samples"], {name: batch[name] for name in batch if torch.is_tensor(batch[name])}
        del inputs["labels"]
        num_patches = count_patches(inputs["pixel_attention_mask"], num_scales)
        # in turn, so that what else the machine does meets all alike
        for name, scanner in scanners.items():
            start = time.perf_counter()
            outputs = scanner.generate(**inputs)
            seconds[name].append(time.perf_counter() - start)
            predictions[name].extend(make_predictions(samples, outputs, num_patches))
    return {
        name: {**summarize(predictions[name]), "median_ms": 1000 * statistics.median(seconds[name])}
        for name in scanners
    }


def to_rows(results: dict[str, dict], megabytes: dict[str, float]) -> list[list[str]]:
    rows = []
    for name, figures in results.items():
        shares = [figures[key] for key in ("acc@0.5", "mean_iou", "patches_read_total")]
        cells = [f"{megabytes[name]:.1f}", *(f"{100 * share:.1f}" for share in shares), f"{figures['median_ms']:.1f}"]
        rows.append([name, *cells])
    return rows


def folder_megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def export(args: Arguments):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(package)
    # it tells four times per step that torchvision is missing, which is not needed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    model, processor = load_model(RunArguments(model=args.model, longest_edge=args.longest_edge))
    model.eval()
    shapes = read_shapes(args, model.config, processor.image_processor.size["longest_edge"])
    processor.tokenizer.model_max_length = shapes.text_length
    sample = read_sample(args, processor)
    dataset = None
    if args.evaluate_level is not None:
        options = {"seed": args.seed, "num_samples": args.num_samples, "level": args.evaluate_level}
        dataset = load_grounding_dataset("scenes", "test", **options)

    output = Path(args.output)
    processor.save_pretrained(output)
    export_onnx(model, shapes, output)
    if args.int8:
        quantize_onnx(output)
    precisions = [FLOAT32, INT8] if args.int8 else [FLOAT32]
    scanners = {"PyTorch float32": PlainScan(model)}
    megabytes = {"PyTorch float32": model.get_memory_footprint() / 1e6}
    for precision in precisions:
        name = f"ONNX Runtime {precision}"
        scanners[name] = load_onnx_scanner(output, precision, torch.get_num_threads())
        megabytes[name] = folder_megabytes(output / precision)
    differences = compare(scanners, sample)
    for name, difference in differences.items():
        print(f"{name}: boxes and scores differ from PyTorch's by {difference:.1e} at most")
    if not differences[f"ONNX Runtime {FLOAT32}"] < TOLERANCE:
        raise DataError(f"The exported steps in {output} do not compute what the model does: do not use them.")
    if dataset is not None:
        loader = DataLoader(dataset, collate_fn=GroundingCollator(processor, keep_samples=True))
        results = evaluate(scanners, loader, model.config.num_scales)
        report = {"command": shlex.join(["python", *sys.argv]), "settings": asdict(args), "differences": differences}
        report |= {"megabytes": megabytes, "results": results}
        (output / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        print(to_table(HEADER, to_rows(results, megabytes)))


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        export(args)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
