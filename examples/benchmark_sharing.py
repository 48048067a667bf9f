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
Measure what is gained where answers share a picture or an expression.

    python examples/benchmark_sharing.py --output sharing.json

Many expressions about one picture share its preprocessing and a batch; one expression about many pictures, as the frames of
a video, shares the text that was read. Every way gives the same answers, takes its turn in every round, and is timed from
pictures and expressions to boxes. The base size has random weights and reads given shares of its patches; weights are packed
on the CPU. sharing.md has the table.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from benchmark_latency import create_samples, describe_machine
from grounding.checks import DataError, make_folder
from grounding.cost import timed
from grounding.latency import synchronize, to_device
from grounding.peers import create_base
from grounding.report import to_table
from grounding.run import RunArguments, load_model
from scenes.create_model import create_tokenizer
from tqdm.auto import tqdm
from transformers import HfArgumentParser, set_seed

from modeling_scanformer import pack_weights


RATES = [1.0, 0.35, 0.20]
EXPRESSIONS = ("the red disc left of the blue square", "the violet disc", "the big gray disk", "the star")


@dataclass
class Arguments:
    output: str = field(metadata={"help": "JSON file for the rows; the table goes beside it."})
    number: int = field(default=8, metadata={"help": "Expressions about a picture, and pictures of an expression."})
    resolution: int = field(default=640, metadata={"help": "Side of the pictures for the base size, in pixels."})
    model: str = field(default="hub_cards/scanformer-tiny-scenes", metadata={"help": "A checkpoint to time as well."})
    rounds: int = field(default=15, metadata={"help": "Times that every way runs; medians are reported."})
    device: str | None = field(
        default=None, metadata={"help": "Where to run: cuda where there is one, otherwise cpu."}
    )


def create_ways(model, processor, options: dict, images: list, texts: list[str]) -> dict[tuple[str, str], Callable]:
    """The ways to get the answers, by what is asked and how; each gives boxes of shape `(number, 4)`."""
    device = model.device

    def read_text(expressions: list[str]) -> dict[str, torch.Tensor]:
        return to_device(dict(processor(text=expressions, return_tensors="pt")), device, model.dtype)

    def read_pictures(pictures: list) -> dict[str, torch.Tensor]:
        return to_device(dict(processor.image_processor(pictures, return_tensors="pt")), device, model.dtype)

    def ground(text: dict, pictures: dict) -> torch.Tensor:
        return model.generate(**text, **pictures, **options).pred_boxes

    def one_by_one(pairs) -> torch.Tensor:
        return torch.cat([ground(read_text([text]), read_pictures([image])) for image, text in pairs])

    def picture_shared() -> torch.Tensor:
        picture = read_pictures(images[:1])
        return ground(read_text(texts), {name: x.expand(len(texts), *x.shape[1:]) for name, x in picture.items()})

    def read_once() -> dict:
        return {"past_key_values": model.encode_text(**read_text(texts[:1]))}

    def text_shared() -> torch.Tensor:
        text = read_once()
        return torch.cat([ground(text, read_pictures([image])) for image in images])

    expressions, pictures = f"{len(texts)} expressions, one picture", f"one expression, {len(images)} pictures"
    return {
        (expressions, "one by one"): lambda: one_by_one([(images[0], text) for text in texts]),
        (expressions, "in a batch, preprocessed once"): picture_shared,
        (pictures, "one by one"): lambda: one_by_one([(image, texts[0]) for image in images]),
        (pictures, "one by one, text read once"): text_shared,
        (pictures, "in a batch, text read once"): lambda: ground(read_once(), read_pictures(images)),
    }


@torch.inference_mode()
def measure(name: str, ways: dict[tuple[str, str], Callable], rounds: int, device: torch.device) -> list[dict]:
    """
    A row for every way.

    Raises:
        DataError: if two ways give different answers.
    """
    seconds = {key: [] for key in ways}
    for number in tqdm(range(-1, rounds), desc=name, leave=False):  # the first one warms up
        boxes = {}
        for key, way in ways.items():
            boxes[key], spent = timed(lambda way=way: (way(), synchronize(device))[0])
            if number >= 0:
                seconds[key].append(spent)
    rows = []
    for (task, way), times in seconds.items():
        if not torch.allclose(boxes[task, way], boxes[task, "one by one"], atol=1e-4):
            raise DataError(f"{name}: {task}, {way}: other boxes than one by one.")
        rows.append(
            {
                "model": name,
                "task": task,
                "way": way,
                "ms_per_answer": 1000 * median(times) / len(boxes[task, way]),
                "ratio_to_one_by_one": median(times) / median(seconds[task, "one by one"]),
            }
        )
    return rows


def benchmark(args: Arguments) -> list[dict]:
    if min(args.number, args.rounds) < 1:
        raise DataError("--number and --rounds must be at least 1.")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    set_seed(0)
    base = create_base(args.resolution, create_tokenizer(model_max_length=40))
    num_scales = base[0].config.num_scales
    if num_scales > len(RATES):
        raise DataError(f"--resolution {args.resolution} needs {num_scales} scales; rates are known of {len(RATES)}.")
    given = {"selection_threshold": 0.0, "token_budget": RATES[:num_scales]}
    models = {"base": (*base, given), "checkpoint": (*load_model(RunArguments(model=args.model)), {})}
    rows = []
    for name, (model, processor, options) in models.items():
        model.to(device).eval()
        if device.type == "cpu":
            pack_weights(model)
        resolution = processor.image_processor.size["longest_edge"]
        images, _ = create_samples(resolution, args.number)
        texts = [EXPRESSIONS[number % len(EXPRESSIONS)] for number in range(args.number)]
        ways = create_ways(model, processor, options, images, texts)
        rows += measure(f"{name}, {resolution} px", ways, args.rounds, device)
    return rows


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output = Path(args.output)
    try:
        if output.suffix != ".json":
            raise DataError(f"--output names a JSON file, got {args.output!r}.")
        make_folder(output.parent)
        rows = benchmark(args)
    except DataError as error:
        sys.exit(f"error: {error}")
    output.write_text(json.dumps(rows, indent=2) + "\n")
    header = ["model", "asked", "how", "ms per answer", "time / one by one"]
    cells = [
        [*list(row.values())[:3], f"{row['ms_per_answer']:.1f}", f"{row['ratio_to_one_by_one']:.2f}"] for row in rows
    ]
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    page = "\n\n".join(
        [f"`{shlex.join(['python', *sys.argv])}`", f"{describe_machine(device)}.", to_table(header, cells)]
    )
    output.with_suffix(".md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
