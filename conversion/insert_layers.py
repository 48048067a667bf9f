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
import re
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .sources import load_source


def insert_layers(model: ScanFormerForVisualGrounding, after: list[int]) -> ScanFormerForVisualGrounding:
    """
    A deeper model with the same answers. (Only budgets by attention look at other heads, where Encoder1 has a new last layer.)

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            On one device, without adapters. It is not changed.
        after (`list[int]`):
            Numbers of the layers, from 0, that are followed by a new one each. Those of Encoder1 (all before
            `config.selection_layer`) make Encoder1 deeper, the others Encoder2.

    Returns:
        [`ScanFormerForVisualGrounding`]: with the model's options but for the rule of early exit, which was calibrated on other
        weights. All parameters can be trained.

    Raises:
        ValueError: if there is no layer of such a number, or none is given, or one twice.
    """
    config = model.config
    unknown = sorted(set(after) - set(range(config.num_hidden_layers)))
    if unknown or not after or len(set(after)) < len(after):
        raise ValueError(
            f"Give different numbers of layers from 0 to {config.num_hidden_layers - 1} to insert another after, got {after}."
        )
    deeper_config = copy.deepcopy(config)
    deeper_config.num_hidden_layers += len(after)
    deeper_config.selection_layer += sum(number < config.selection_layer for number in after)
    deeper = type(model)(deeper_config).to(model.device, model.dtype).train(model.training)

    sources = [number for number in range(config.num_hidden_layers) for _ in range(1 + (number in after))]
    weights = {}
    for name, weight in model.state_dict().items():
        in_layer = re.fullmatch(r"(model\.layers)\.(\d+)\.(.+)", name)
        if in_layer is None:
            weights[name] = weight
            continue
        layers, source, parameter = in_layer.groups()
        for number in range(len(sources)):
            if sources[number] == int(source):
                weights[f"{layers}.{number}.{parameter}"] = weight
    deeper.load_state_dict(weights)
    for number in range(1, len(sources)):
        if sources[number] == sources[number - 1]:
            layer = deeper.model.layers[number]
            for weight in (*layer.attention.o_proj.parameters(), *layer.mlp.fc2.parameters()):
                nn.init.zeros_(weight)
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
