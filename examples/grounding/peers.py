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
"""What the latency benchmark compares: ScanFormers, and models of Transformers for the same task or of the same size."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViltConfig,
    ViltImageProcessorPil,
    ViltModel,
)

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerImageProcessor,
    ScanFormerProcessor,
    pack_weights,
)
from modeling_scanformer.static_scanformer import StaticScanner, StaticShapes

from .checks import DataError


REFERENCE = "vilt"
PEERS = (REFERENCE, "owlvit", "grounding_dino")
# Added to the name of a contestant whose weights are packed for the CPU, or that is compiled.
PACKED = "_packed"
COMPILED = "_compiled"
# How much of a picture a ScanFormer reads: the given shares, or what its own selection head wants.
READINGS = ("given", "learned", "every_patch")
# The side of the base size's coarsest scale in patches: 160 pixels, so that a pyramid of 640 pixels has three scales.
COARSEST_SIDE = 5


@dataclass
class Contestant:
    """
    A model that is timed.

    Attributes:
        name (`str`):
            What it is called in the results.
        model (`PreTrainedModel`):
            In evaluation mode, on its device.
        prepare (`Callable[[list[PIL.Image.Image], list[str]], dict[str, torch.Tensor]]`):
            Preprocessing, on the CPU.
        call (`Callable[[PreTrainedModel, dict[str, torch.Tensor]], ModelOutput]`):
            From the model and the prepared inputs, on its device, to the outputs.
        count_tokens (`Callable[[dict[str, torch.Tensor], ModelOutput], int]`):
            Tokens that the encoder reads of a sample, from inputs and outputs; the mean over the batch, rounded.
        passes (`list[str]`):
            Methods of the model, as dotted names, each call of which reads its weights anew. None: the model reads them
            once.
        every_patch (`str`, *optional*):
            Name of the contestant that is the same model reading every patch.
        rates (`list[float]`, *optional*):
            Share of the patches of every scale that is read, where it is given.
        compile (`Callable[[PreTrainedModel, dict[str, Any]], Callable]`, *optional*):
            From the model and options of `torch.compile` to what gives the outputs for inputs, where it can be compiled.
        plain (`Contestant`, *optional*):
            The same as it was, where its weights are packed or it is compiled.
    """

    name: str
    model: PreTrainedModel
    prepare: Callable[[list[Image.Image], list[str]], dict[str, torch.Tensor]]
    call: Callable[[PreTrainedModel, dict[str, torch.Tensor]], Any]
    count_tokens: Callable[[dict[str, torch.Tensor], Any], int]
    passes: list[str] = field(default_factory=list)
    every_patch: str | None = None
    rates: list[float] | None = None
    compile: Callable[[PreTrainedModel, dict[str, Any]], Callable] | None = None
    plain: "Contestant | None" = None

    def run(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.call(self.model, inputs)


def pack(contestants: list[Contestant], wanted: list[str]) -> list[Contestant]:
    """
    Contestants with packed weights, as named in `wanted`: the name of one of `contestants`, and `PACKED`. Those of one model
    share its packed copy.
    """
    packed = {}
    for contestant in contestants:
        if contestant.name + PACKED in wanted and contestant.model not in packed:
            packed[contestant.model] = pack_weights(copy.deepcopy(contestant.model))
    return [
        replace(
            contestant,
            name=contestant.name + PACKED,
            model=packed[contestant.model],
            every_patch=None if contestant.every_patch is None else contestant.every_patch + PACKED,
            plain=contestant,
        )
        for contestant in contestants
        if contestant.name + PACKED in wanted
    ]


def compile_contestants(contestants: list[Contestant], wanted: list[str], options: dict[str, Any]) -> list[Contestant]:
    """
    Contestants that are compiled, as named in `wanted`: the name of one of `contestants`, and `COMPILED`. Their operators are
    fused, so no passes can be told apart in them.

    Args:
        contestants (`list[Contestant]`):
            Where and in what precision they are to run.
        wanted (`list[str]`):
            Names.
        options (`dict[str, Any]`):
            Of `torch.compile`.
    """

    def compiled(contestant: Contestant) -> Contestant:
        run = contestant.compile(contestant.model, options)
        return replace(
            contestant,
            name=contestant.name + COMPILED,
            call=lambda model, inputs: run(inputs),
            passes=[],
            every_patch=None if contestant.every_patch is None else contestant.every_patch + COMPILED,
            plain=contestant,
        )

    return [compiled(contestant) for contestant in contestants if contestant.name + COMPILED in wanted]


def create_peer(name: str, resolution: int, tokenizer: PreTrainedTokenizerBase) -> Contestant:
    """
    One of `PEERS`, of its usual size with random weights. All get the word pieces of one tokenizer, so that their texts are
    equally long.

    Args:
        name (`str`):
            One of `PEERS`.
        resolution (`int`):
            Side of the pictures in pixels; ViLT's is rounded up to whole patches.
        tokenizer (`PreTrainedTokenizerBase`):
            For the expressions.
    """
    if name == "vilt":
        model = ViltModel(vilt_config())
        # it cuts pictures down to whole patches: a checkpoint of ours may have smaller ones
        whole = -(-resolution // model.config.patch_size) * model.config.patch_size
        image_processor = ViltImageProcessorPil(size={"shortest_edge": whole})

        def count_tokens(inputs, outputs):
            return outputs.last_hidden_state.shape[1]
    elif name == "owlvit":
        model = OwlViTForObjectDetection(owlvit_config(resolution))
        image_processor = OwlViTImageProcessorPil(size={"height": resolution, "width": resolution})

        def count_tokens(inputs, outputs):  # the class token and the patches; the text has an encoder of its own
            return inputs["input_ids"].shape[1] + 1 + outputs.image_embeds[0, :, :, 0].numel()
    else:
        model = GroundingDinoForObjectDetection(grounding_dino_config())
        image_processor = GroundingDinoImageProcessorPil(
            size={"shortest_edge": resolution, "longest_edge": resolution}
        )

        def count_tokens(inputs, outputs):  # of its encoder; those of its Swin backbone come on top
            return inputs["input_ids"].shape[1] + outputs.encoder_last_hidden_state_vision.shape[1]

    def prepare(images: list[Image.Image], texts: list[str]) -> dict[str, torch.Tensor]:
        return {
            **tokenizer(texts, padding=True, return_tensors="pt"),
            **image_processor(images=images, return_tensors="pt"),
        }

    def compile_whole(model: PreTrainedModel, options: dict[str, Any]) -> Callable:
        # isolated, so that other sizes and types do not count against what Dynamo compiles of one function
        run = torch.compile(model, dynamic=False, isolate_recompiles=True, **options)
        return lambda inputs: run(**inputs)

    return Contestant(name, model, prepare, lambda model, inputs: model(**inputs), count_tokens, compile=compile_whole)


def vilt_config() -> ViltConfig:
    return ViltConfig()


def owlvit_config(resolution: int) -> OwlViTConfig:
    return OwlViTConfig(vision_config={"image_size": resolution})


def grounding_dino_config() -> GroundingDinoConfig:
    return GroundingDinoConfig()


def scanformer_config(**options) -> ScanFormerConfig:
    return ScanFormerConfig(**options)


def num_base_scales(resolution: int) -> int:
    """
    Scales of a ScanFormer of the base size at a resolution.

    Raises:
        DataError: if no number of scales leads to it.
    """
    coarsest = COARSEST_SIDE * scanformer_config().patch_size
    num_scales = (resolution // coarsest).bit_length()
    if num_scales < 2 or resolution != coarsest * 2 ** (num_scales - 1):
        raise DataError(
            f"ScanFormer base is compared at {2 * coarsest} pixels, {4 * coarsest}, {8 * coarsest}, ..., not at "
            f"{resolution}: its coarsest scale has {coarsest}."
        )
    return num_scales


def check_rates(name: str, num_scales: int, rates: list[float]):
    """
    Raises:
        DataError: if there are fewer rates than scales to select on.
    """
    if len(rates) < num_scales - 1:
        raise DataError(
            f"{name} selects on {num_scales - 1} scales, but --rates gives {len(rates)}: add the share of the patches to "
            "read on each."
        )


def create_base(
    resolution: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[ScanFormerForVisualGrounding, ScanFormerProcessor]:
    """
    A ScanFormer of the base size with random weights. Its coarsest scale has 5 x 5 patches, so the resolution sets the
    number of scales: 2 for 320 pixels, 3 for 640, 4 for 1280.

    Raises:
        DataError: if no number of scales leads to the resolution.
    """
    config = scanformer_config(num_scales=num_base_scales(resolution))
    image_processor = ScanFormerImageProcessor(
        size={"longest_edge": resolution}, patch_size=config.patch_size, num_scales=config.num_scales
    )
    return ScanFormerForVisualGrounding(config), ScanFormerProcessor(image_processor, tokenizer)


def create_scanformers(
    name: str,
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
    readings: list[str],
    rates: list[float],
) -> list[Contestant]:
    """
    Contestants of one model that differ in what they read.

    Args:
        name (`str`):
            Their name, to which the reading is added.
        model ([`ScanFormerForVisualGrounding`]):
            The model.
        processor ([`ScanFormerProcessor`]):
            Its processor.
        readings (`list[str]`):
            Some of `READINGS`.
        rates (`list[float]`):
            Share of the patches of every scale but the coarsest to read where it is given.

    Raises:
        DataError: if there are fewer rates than scales to select on.
    """
    num_scales = model.config.num_scales
    check_rates(name, num_scales, rates)
    shares = [1.0, *rates[: num_scales - 1]]
    generation = {
        "given": {"selection_threshold": 0.0, "token_budget": shares},
        "learned": {},
        "every_patch": {"selection_threshold": 0.0},
    }

    def prepare(images: list[Image.Image], texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(processor(images=images, text=texts, return_tensors="pt"))

    def count_tokens(inputs, outputs) -> int:
        selected = sum(mask.sum().item() for mask in outputs.selection_masks) / len(outputs.scores)
        # [REG] of every scale, and what stands for the unselected patches of all but the coarsest
        return round(selected) + inputs["input_ids"].shape[1] + 2 * num_scales - 1

    def compile_steps(model: ScanFormerForVisualGrounding, options: dict[str, Any], reading: str) -> Callable:
        shapes = StaticShapes.for_pictures(model.config, processor.image_processor.size["longest_edge"])
        if reading == "given":  # what is read is known: a bucket of its size for every scale
            most = [sizes[-1] for sizes in shapes.buckets]
            shapes = replace(shapes, buckets=tuple((max(1, round(rate * n)),) for rate, n in zip(shares, most)))
        scanner = StaticScanner.from_model(model, shapes).compile(**options)
        return lambda inputs: scanner.generate(**inputs, **generation[reading])

    return [
        Contestant(
            f"{name}_{reading}",
            model,
            prepare,
            lambda model, inputs, reading=reading: model.generate(**inputs, **generation[reading]),
            count_tokens,
            passes=["model.read_scale", "model.encode_pending"],
            every_patch=f"{name}_every_patch",
            rates=shares if reading == "given" else None,
            compile=partial(compile_steps, reading=reading),
        )
        for reading in readings
    ]
