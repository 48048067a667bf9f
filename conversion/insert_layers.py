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
Make a ScanFormer deeper without changing what it answers.

    python -m conversion.insert_layers outputs/before outputs/deeper --after 0 --after 4

A new layer reads as the one before it does, and adds nothing yet to the states (as in LLaMA Pro, arXiv 2401.02415): it is for
training to find a use for it. So a model that has become too small for what there is to learn need not start anew.
"""

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .sources import load_source


def insert_layers(model: ScanFormerForVisualGrounding, after: list[int]) -> ScanFormerForVisualGrounding:
    """
    A deeper model with the same answers.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            Is not changed.
        after (`list[int]`):
            Numbers of the layers, from 0, that are followed by a new one each. Those of Encoder1 (all before
            `config.selection_layer`) make Encoder1 deeper, the others Encoder2.

    Returns:
        [`ScanFormerForVisualGrounding`]: with the model's options but for the rule of early exit, which holds for what the
        layers cost.

    Raises:
        ValueError: if there is no layer of such a number, or none is given, or one twice.
    """
    config = model.config
    unknown = sorted(set(after) - set(range(config.num_hidden_layers)))
    if unknown or not after or len(set(after)) < len(after):
        raise ValueError(
            f"Give different numbers of layers from 0 to {config.num_hidden_layers - 1} to insert another after, got {after}."
        )
    sizes = config.to_dict()
    sizes["num_hidden_layers"] += len(after)
    sizes["selection_layer"] += sum(number < config.selection_layer for number in after)
    deeper = type(model)(type(config)(**sizes)).to(model.device, model.dtype).train(model.training)
    sources = [number for number in range(config.num_hidden_layers) for _ in range(1 + (number in after))]
    with torch.no_grad():
        for name, module in model.named_children():
            if name != "model":
                getattr(deeper, name).load_state_dict(module.state_dict())
        for name, module in model.model.named_children():
            if name != "layers":
                getattr(deeper.model, name).load_state_dict(module.state_dict())
        for number, source in enumerate(sources):
            layer = deeper.model.layers[number]
            layer.load_state_dict(model.model.layers[source].state_dict())
            if number > 0 and sources[number - 1] == source:
                for adds in (layer.attention.o_proj, layer.mlp.fc2):
                    for weight in adds.parameters():
                        weight.zero_()
    deeper.generation_config = copy.deepcopy(model.generation_config)
    deeper.generation_config.update(early_exit_rule=None, early_exit=None)
    return deeper


def main(
    model: Annotated[str, typer.Argument(help="Model: a folder or an id on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Folder for the deeper model, with the same processor.")],
    after: Annotated[list[int], typer.Option("--after", help="Number of a layer, from 0, to insert another after.")],
):
    """Make a ScanFormer deeper without changing what it answers."""
    try:
        deeper = insert_layers(load_source(model, out), after)
        processor = ScanFormerProcessor.from_pretrained(model)
        deeper.save_pretrained(out)
        processor.save_pretrained(out)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{out}: {deeper.config.num_hidden_layers} layers, {deeper.config.selection_layer} of them in Encoder1")


if __name__ == "__main__":
    typer.run(main)
