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
Compare the latency of ScanFormer with that of its peers: one run, one machine, everybody in turn.

    python examples/benchmark_latency.py --output bench.json --dtype fp32 --resolution 640 1280 --batch_size 1

bench.json is a list of rows, a contestant each; bench.md has the tables, bench.png the plot. Weights of the base size and of
the peers are random, which serves for time. Everybody gets the same pictures, a quarter larger than the resolution, so that
every image processor has to scale them; and the same word pieces. ScanFormer base starts at 160 pixels: 3 scales lead to
640, 4 to 1280. The checkpoint in --model is timed at its own resolution.

| contestant | what it is |
| --- | --- |
| vilt | Transformers' ViLT-B/32, dense: what ratios refer to, always there |
| owlvit | OWL-ViT base, patch 32 |
| grounding_dino | Grounding DINO tiny |
| base_given | ScanFormer of the base size, reading --rates of the scales after the coarsest |
| base_every_patch | the same, reading everything |
| checkpoint_given, checkpoint_learned, checkpoint_every_patch | --model, reading --rates, what it selects itself, everything |
| vilt_packed, base_given_packed, ... | the same after `pack_weights`, on the CPU |
| vilt_compiled, base_given_compiled, ... | the same by `torch.compile`, on a GPU with CUDA graphs; where they are asked for |

Whoever is packed or compiled is compared with ViLT in this form as well.
"""

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from grounding.checks import DataError, make_folder
from grounding.latency import (
    measure_bookkeeping,
    measure_memory,
    measure_passes,
    time_in_turn,
    to_device,
)
from grounding.latency_report import plot, to_markdown
from grounding.peers import (
    COMPILED,
    PACKED,
    PEERS,
    READINGS,
    REFERENCE,
    Contestant,
    check_rates,
    compile_contestants,
    create_base,
    create_peer,
    create_scanformers,
    num_base_scales,
    pack,
)
from grounding.run import RunArguments, load_model
from PIL import Image, ImageChops
from scenes.create_model import create_tokenizer
from tqdm.auto import tqdm
from transformers import HfArgumentParser, set_seed


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCANFORMERS = ("base_given", "base_every_patch", *(f"checkpoint_{reading}" for reading in READINGS))
# ViLT and ScanFormer come packed and compiled too: what the scan gains must not be what these gain.
FORMS = (PACKED, COMPILED)
CONTESTANTS = (*PEERS, *SCANFORMERS, *(name + form for form in FORMS for name in (REFERENCE, *SCANFORMERS)))
# Of torch.compile, by device.
COMPILE_OPTIONS = {"cpu": {}, "cuda": {"mode": "reduce-overhead"}}

PICTURE = Path(__file__).with_name("demo.png")
EXPRESSION = "the red disc left of the blue square"
PACKAGES = ("torch", "transformers", "pillow", "numpy")


@dataclass
class Arguments:
    output: str = field(metadata={"help": "JSON file for the rows; the Markdown page and the plot go beside it."})
    dtype: list[str] = field(default_factory=lambda: ["fp32"], metadata={"help": f"Some of {', '.join(DTYPES)}."})
    resolution: list[int] = field(
        default_factory=lambda: [640, 1280], metadata={"help": "Sides of pictures, in pixels."}
    )
    batch_size: list[int] = field(default_factory=lambda: [1], metadata={"help": "Pictures at once."})
    contestants: list[str] = field(
        default_factory=lambda: [name for name in CONTESTANTS if not name.endswith(COMPILED)],
        metadata={"help": f"Some of {', '.join(CONTESTANTS)}."},
    )
    rates: list[float] = field(
        default_factory=lambda: [0.35, 0.20, 0.04],
        metadata={"help": "Share of the patches to read of every scale after the coarsest, where it is given."},
    )
    model: str = field(
        default="hub_cards/scanformer-tiny-scenes",
        metadata={"help": "Checkpoint with learned rates: folder or Hub id."},
    )
    rounds: int = field(default=15, metadata={"help": "Times that everybody runs; medians are reported."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads of torch, if not its own choice."})
    device: str | None = field(
        default=None, metadata={"help": "Where to run: cuda where there is one, otherwise cpu."}
    )


def check(args: Arguments):
    """Everything that can be told before anything is timed."""
    for name, known in (("dtype", tuple(DTYPES)), ("contestants", CONTESTANTS)):
        unknown = sorted(set(getattr(args, name)) - set(known))
        if unknown:
            raise DataError(f"--{name} knows {', '.join(known)}, not {', '.join(unknown)}.")
    if min(*args.batch_size, *args.resolution, args.rounds) < 1:
        raise DataError("--batch_size, --resolution and --rounds must be at least 1.")
    if not all(0 <= rate <= 1 for rate in args.rates):
        raise DataError(f"--rates are shares in [0, 1], got {args.rates}.")
    if Path(args.output).suffix != ".json":
        raise DataError(f"--output names a JSON file, got {args.output!r}.")
    if any(name.startswith("base_") for name in args.contestants):
        for resolution in args.resolution:
            check_rates("base", num_base_scales(resolution), args.rates)
    if any(name.startswith("checkpoint_") for name in args.contestants):
        model, _ = load_model(RunArguments(model=args.model))
        check_rates("checkpoint", model.config.num_scales, args.rates)


def create_groups(args: Arguments) -> Iterator[tuple[int, list[Contestant]]]:
    """Those that are compared with each other: per resolution, and at that of the checkpoint."""
    tokenizer = create_tokenizer(model_max_length=40)
    wanted = {name.removesuffix(PACKED).removesuffix(COMPILED) for name in args.contestants}
    base_readings = [reading for reading in READINGS if f"base_{reading}" in wanted]
    for resolution in args.resolution:
        contestants = [
            create_peer(name, resolution, tokenizer) for name in PEERS if name == REFERENCE or name in wanted
        ]
        if base_readings:
            contestants += create_scanformers("base", *create_base(resolution, tokenizer), base_readings, args.rates)
        yield resolution, contestants
    readings = [reading for reading in READINGS if f"checkpoint_{reading}" in wanted]
    if readings:
        model, processor = load_model(RunArguments(model=args.model))
        resolution = processor.image_processor.size["longest_edge"]
        yield (
            resolution,
            [
                create_peer(REFERENCE, resolution, tokenizer),
                *create_scanformers("checkpoint", model, processor, readings, args.rates),
            ],
        )


def create_samples(resolution: int, batch_size: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that differ, so that what is selected in a batch differs too, and their expressions."""
    side = resolution + resolution // 4
    picture = Image.open(PICTURE).convert("RGB").resize((side, side))
    images = [ImageChops.offset(picture, number * side // batch_size, 0) for number in range(batch_size)]
    return images, [EXPRESSION] * batch_size


@torch.inference_mode()
def run_group(
    args: Arguments, contestants: list[Contestant], resolution: int, dtype: str, batch_size: int, device: torch.device
) -> list[dict]:
    """The rows of contestants that take turns."""
    images, texts = create_samples(resolution, batch_size)
    for model in {contestant.model for contestant in contestants}:
        model.to(device, DTYPES[dtype]).eval()
    compiled = compile_contestants(contestants, args.contestants, COMPILE_OPTIONS.get(device.type, {}))
    if device.type == "cpu" and dtype != "fp16":
        contestants = contestants + pack(contestants, args.contestants)
    contestants = contestants + compiled
    roof, seconds = time_in_turn(contestants, images, texts, device, DTYPES[dtype], args.rounds)
    rows = []
    for contestant in tqdm(contestants, desc="Counting", leave=False):
        inputs = to_device(contestant.prepare(images, texts), device, DTYPES[dtype])
        # packed or compiled, they do the same work, which the counter cannot see
        passes = measure_passes(contestant.plain or contestant, inputs)
        rows.append(
            {
                "name": contestant.name,
                "dtype": dtype,
                "resolution": resolution,
                "batch_size": batch_size,
                "median_ms": 1000 * seconds[contestant.name]["model"],
                "preprocessing_ms": 1000 * seconds[contestant.name]["preprocessing"],
                "end_to_end_ms": 1000 * sum(seconds[contestant.name].values()),
                "tokens": contestant.count_tokens(inputs, contestant.run(inputs)),
                "rates": contestant.rates,
                "flops": sum(flops for flops, _ in passes),
                "passes": [{"flops": flops, "weight_bytes": size} for flops, size in passes],
                "roofline_ms": 1000 * roof.seconds(passes),
                "peak_memory_mb": measure_memory(contestant.plain or contestant, inputs, device) / 1e6,
                "bookkeeping_share": measure_bookkeeping(contestant, inputs, device) if contestant.passes else None,
                "peak_gflops_per_s": roof.flops / 1e9,
                "bandwidth_gb_per_s": roof.bandwidth / 1e9,
            }
        )
    by_name = {row["name"]: row for row in rows}
    for contestant, row in zip(contestants, rows):
        references = {form: by_name.get(REFERENCE + form) for form in ("", *FORMS)}
        compare(row, references, by_name.get(contestant.every_patch))
    return rows


def compare(row: dict, references: dict[str, dict | None], every_patch: dict | None):
    """
    Add a row's ratios: its time over its roofline, its times over dense ViLT's in every form, as Transformers has it, packed
    and compiled; and what share of its operations and of its time the selection saves, against the same model reading every
    patch.
    """
    row["ratio_to_roofline"] = row["median_ms"] / row["roofline_ms"]
    row["ratio_to_dense_vilt"] = row["median_ms"] / references[""]["median_ms"]
    for form, reference in references.items():
        ratio = None if reference is None else row["end_to_end_ms"] / reference["end_to_end_ms"]
        row[f"end_to_end_ratio_to_dense_vilt{form}"] = ratio
    saves = every_patch is not None and every_patch is not row
    row["saved_flops_share"] = 1 - row["flops"] / every_patch["flops"] if saves else None
    row["saved_time_share"] = 1 - row["median_ms"] / every_patch["median_ms"] if saves else None
    row["flop_saving_that_becomes_time"] = (
        row["saved_time_share"] / row["saved_flops_share"] if row["saved_flops_share"] else None
    )


def describe_machine(device: torch.device) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{name}, {torch.get_num_threads()} CPU threads; Python {platform.python_version()}, {packages}"


def benchmark(args: Arguments):
    check(args)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    set_seed(0)
    rows = []
    output = Path(args.output)
    make_folder(output.parent)
    for resolution, contestants in create_groups(args):
        for dtype in args.dtype:
            for batch_size in args.batch_size:
                rows += run_group(args, contestants, resolution, dtype, batch_size, device)
                # what is known so far: the long run may be stopped
                output.write_text(json.dumps(rows, indent=2) + "\n")
    page = to_markdown(rows, shlex.join(["python", *sys.argv]), describe_machine(device))
    output.with_suffix(".md").write_text(page)
    plot(rows, output.with_suffix(".png"))
    print(page)


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    try:
        benchmark(args)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
