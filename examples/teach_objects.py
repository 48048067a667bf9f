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
Teach a model what single objects of Scenes look like and are called, before it learns to tell them apart in whole pictures.

    python examples/teach_objects.py --model_name_or_path DIR --output_dir OUT --max_train_steps 1000

Encoder1 reads an expression about the picture and then an object as a scan would, [REG] and the patches that show it at one
scale, but nothing else of the picture. It is asked for the object's colour, texture, shape and outline, and whether the words
for the target, or those for another thing in the expression, fit it (see `scenes/supervision.py`). Textures and shapes are
learned within minutes so, which whole pictures teach in hours; what the model knew of places and orders fades meanwhile, and
comes back when `run_visual_grounding.py` goes on with `--scene_supervision 1`.
"""

import multiprocessing
import os
import sys
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from grounding.checks import DataError
from grounding.muon import Muon
from grounding.optimization import create_parameter_groups
from grounding.run import LOAD_FAILURES
from grounding.setup import drop_early_exit_rule
from scenes import Facts, ScenesDataset
from scenes.levels import LEVELS
from scenes.supervision import (
    HEADS_RATE,
    ROLES,
    UNKNOWN,
    SceneSupervision,
    assign_roles,
    cover_patches,
    describe_patches,
    find_roles,
)
from torch import nn
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_scheduler, set_seed

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerModel, ScanFormerProcessor
from modeling_scanformer.embeddings_scanformer import embedding_row
from modeling_scanformer.layer_scanformer import MASKED_BIAS
from modeling_scanformer.pyramid_scanformer import scale_offsets


# An object is read at the scales where it takes at most so many patches in a row or a column.
LARGEST_SIDE = 4


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "The model to start from, with its processor."})
    output_dir: str = field(metadata={"help": "Folder to write the model and its processor to."})
    dataset_level: str = field(
        default="standard+easy", metadata={"help": f"Of {', '.join(LEVELS)}; levels joined by + take turns."}
    )
    num_pictures: int = field(default=4000, metadata={"help": "Pictures whose objects are shown, again and again."})
    expressions_per_scene: int = field(default=8, metadata={"help": "Expressions about each picture."})
    longest_edge: int | None = field(
        default=None, metadata={"help": "Longer side of the finest scale, in pixels; by default the processor's."}
    )
    max_train_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    train_batch_size: int = field(default=512, metadata={"help": "Objects per step."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak rate of Muon; the heads' is higher."})
    num_warmup_steps: int = field(
        default=50, metadata={"help": "Steps in which the rate rises; then it falls linearly."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Longer gradients are cut to this norm."})
    logging_steps: int = field(default=50, metadata={"help": "Losses are printed every so many steps."})
    num_proc: int = field(default=os.cpu_count() or 1, metadata={"help": "Processes that make pictures."})
    seed: int = field(default=0, metadata={"help": "Of the pictures and their order."})


@dataclass
class Glimpse:
    """
    An object at one scale: the rectangle of patches that it touches.

    Args:
        scale (`int`):
            Number of the scale.
        grid (`tuple[int, int]`):
            Rows and columns of the whole picture's patches.
        indices (`np.ndarray` of shape `(num_patches,)`):
            Of the patches, in that grid.
        patches (`np.ndarray` of shape `(num_patches, 3 * patch_size**2)`):
            Their pixels, in half precision.
        names, outlines (`np.ndarray` of shapes `(num_patches, 3)` and `(num_patches, 4)`):
            See [`describe_patches`].
        expressions (`list[str]`):
            About the picture.
        roles (`np.ndarray` of shape `(num_expressions, num_patches, 4)`):
            See [`assign_roles`]. What an object is among others, its looks alone do not tell: that is unknown.
    """

    scale: int
    grid: tuple[int, int]
    indices: np.ndarray
    patches: np.ndarray
    names: np.ndarray
    outlines: np.ndarray
    expressions: list[str]
    roles: np.ndarray


def find_glimpses(number: int, dataset: ScenesDataset, image_processor) -> list[Glimpse]:
    """The objects of a picture, each at every scale where it is small enough and something is known of it."""
    first = number * dataset.expressions_per_scene
    samples = [dataset[first + following] for following in range(dataset.expressions_per_scene)]
    sample, expressions = samples[0], [sample["expression"] for sample in samples]
    graph, patch_size = sample["scene"], image_processor.patch_size
    facts = Facts(graph)
    played = [find_roles(sample["program"], facts) for sample in samples]
    for roles in played:
        roles[[ROLES.index("anchor"), ROLES.index("target")]] = UNKNOWN
    inputs = image_processor(images=[sample["image"]], return_tensors="pt")
    pixels, grids = inputs["pixel_values"][0].numpy(), [tuple(grid) for grid in inputs["spatial_shapes"][0].tolist()]
    shares = cover_patches(sample["owner"], len(graph["objects"]), grids)
    glimpses = []
    for scale, (offset, covered, grid) in enumerate(zip(scale_offsets(len(pixels), len(grids)), shares, grids)):
        names, outlines = describe_patches(graph, covered, grid, patch_size)
        roles = np.stack([assign_roles(some, covered) for some in played])
        places = np.arange(grid[0] * grid[1]).reshape(grid)
        for touched in covered.reshape(-1, *grid) > 0:
            rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
            if len(rows) == 0 or max(np.ptp(rows), np.ptp(columns)) >= LARGEST_SIDE:
                continue
            indices = places[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].ravel()
            if (names[indices] == UNKNOWN).all():
                continue
            patches = pixels[offset + indices].astype(np.float16)
            shown = names[indices], outlines[indices]
            glimpses.append(Glimpse(scale, grid, indices, patches, *shown, expressions, roles[:, indices]))
    return glimpses


def collect_glimpses(args: Arguments, image_processor) -> list[Glimpse]:
    """Of all pictures, with a progress bar."""
    try:
        num_samples = args.num_pictures * args.expressions_per_scene
        dataset = ScenesDataset(
            "train", args.seed, num_samples, args.dataset_level, expressions_per_scene=args.expressions_per_scene
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    find = partial(find_glimpses, dataset=dataset, image_processor=image_processor)
    # threads of PyTorch do not survive a fork
    with multiprocessing.get_context("spawn").Pool(args.num_proc, torch.set_num_threads, (1,)) as pool:
        found = pool.imap(find, range(args.num_pictures), chunksize=50)
        return [glimpse for some in tqdm(found, total=args.num_pictures, unit="picture") for glimpse in some]


def compute_loss(
    model: ScanFormerModel, supervision: SceneSupervision, tokenizer, glimpses: list[Glimpse], chosen: list[int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Of glimpses of one scale.

    Args:
        model ([`ScanFormerModel`]):
            Its embeddings and Encoder1 are taught.
        supervision ([`SceneSupervision`]):
            The heads.
        tokenizer:
            Of the model.
        glimpses (`list[Glimpse]`):
            All of one scale.
        chosen (`list[int]`):
            The number of the expression that each is read with.

    Returns:
        The loss, and what it is made of by name.
    """

    def join(values: list[np.ndarray], padding: float) -> torch.Tensor:
        values = [torch.from_numpy(value) for value in values]
        return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)

    expressions = [glimpse.expressions[number] for glimpse, number in zip(glimpses, chosen)]
    inputs = tokenizer(expressions, truncation=True, padding=True, return_tensors="pt")
    is_word = inputs["attention_mask"].bool()
    text = model.text_embeddings(inputs["input_ids"], is_word)
    text = text + embedding_row(model.modality_embeddings, 0, text.device)

    indices, scale = join([glimpse.indices for glimpse in glimpses], -1), glimpses[0].scale
    read = indices >= 0
    grids = torch.tensor([glimpse.grid for glimpse in glimpses])
    patches = join([glimpse.patches for glimpse in glimpses], 0).float()
    patches = model.patch_embeddings(patches, indices.clamp(min=0), grids, scale)
    reg = embedding_row(model.reg_tokens, scale, text.device).expand(len(glimpses), 1, -1)
    block = torch.cat([reg, patches], dim=1) + embedding_row(model.modality_embeddings, 1, text.device)

    states = torch.cat([text, block], dim=1)
    is_key = torch.cat([is_word, nn.functional.pad(read, (1, 0), value=True)], dim=1)
    bias = torch.zeros(is_key.shape).masked_fill(~is_key, MASKED_BIAS)
    hidden_states = [states]
    for layer in model.layers[: model.config.selection_layer]:
        states = layer(states, None, None, bias, [text.shape[1], block.shape[1]])[0]
        hidden_states.append(states)
    return supervision(
        tuple(hidden_states),
        # numbered as if the rectangle were the whole picture
        (torch.arange(indices.shape[1]).expand_as(indices).where(read, -1),),
        text_length=text.shape[1],
        patch_names=join([glimpse.names for glimpse in glimpses], UNKNOWN),
        patch_outlines=join([glimpse.outlines for glimpse in glimpses], float("nan")),
        patch_roles=join([glimpse.roles[number] for glimpse, number in zip(glimpses, chosen)], UNKNOWN),
    )


def teach(args: Arguments):
    set_seed(args.seed)
    try:
        model = ScanFormerForVisualGrounding.from_pretrained(args.model_name_or_path)
        processor = ScanFormerProcessor.from_pretrained(args.model_name_or_path)
    except LOAD_FAILURES as error:
        raise DataError(f"{args.model_name_or_path} is no model with its processor: {error}") from error
    drop_early_exit_rule(model)
    if args.longest_edge is not None:
        processor.image_processor.size = {"longest_edge": args.longest_edge}
    glimpses = collect_glimpses(args, processor.image_processor)
    if len(glimpses) < args.train_batch_size:
        raise DataError(
            f"The {args.num_pictures} pictures show {len(glimpses)} objects, not enough for one step: raise --num_pictures."
        )
    supervision = SceneSupervision(model.config)
    groups = create_parameter_groups(model, args.learning_rate, weight_decay=0.01, with_muon=True)
    heads = {"params": list(supervision.parameters()), "weight_decay": 0.0, "lr": HEADS_RATE * args.learning_rate}
    optimizer = Muon([*groups, heads], lr=args.learning_rate, fused=True)
    scheduler = get_scheduler("linear", optimizer, args.num_warmup_steps, args.max_train_steps)
    model.train()
    generator = torch.Generator().manual_seed(args.seed)
    sums: dict[str, float] = {}
    for step in (progress := tqdm(range(1, args.max_train_steps + 1), unit="step")):
        shape = (args.train_batch_size,)
        drawn = torch.randint(len(glimpses), shape, generator=generator).tolist()
        read_with = torch.randint(args.expressions_per_scene, shape, generator=generator).tolist()
        for scale in range(model.config.num_scales):
            some = [place for place, number in enumerate(drawn) if glimpses[number].scale == scale]
            if not some:
                continue
            share = len(some) / len(drawn)
            loss, losses = compute_loss(
                model.model,
                supervision,
                processor.tokenizer,
                [glimpses[drawn[place]] for place in some],
                [read_with[place] for place in some],
            )
            (share * loss).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + share * value.item()
        nn.utils.clip_grad_norm_([*model.parameters(), *supervision.parameters()], args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % args.logging_steps == 0:
            means = ", ".join(f"{name} {total / args.logging_steps:.3f}" for name, total in sums.items())
            progress.write(f"step {step}: {means}")
            sums = {}
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


def main():
    try:
        teach(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
