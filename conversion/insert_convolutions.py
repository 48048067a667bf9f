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
Give a ScanFormer sparse convolutions over its patches without changing what it answers.

    python -m conversion.insert_convolutions outputs/before outputs/with_convolutions --number 3

A shape that spreads over several patches is told by how its outline goes on from one to the next. Convolutions relate each
patch to those next to it, which attention is slow to learn. New ones add nothing yet to the embeddings; training has to find a
use for them.
"""

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .sources import load_source


SEED = 0


def insert_convolutions(model: ScanFormerForVisualGrounding, number: int) -> ScanFormerForVisualGrounding:
    """
    A model with more sparse convolutions, behind those that it has, and the same answers.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            On one device, without adapters. It is not changed.
        number (`int`):
            Number of convolutions to insert.

    Returns:
        [`ScanFormerForVisualGrounding`]: with the model's options but for the rule of early exit, which was calibrated on other
        weights. All parameters can be trained.

    Raises:
        ValueError: if the number is not positive, or the model is too narrow for convolutions.
    """
    if number < 1:
        raise ValueError(f"Give the number of convolutions to insert, from 1 on, got {number}.")
    config = copy.deepcopy(model.config)
    config.num_convolution_layers += number
    config.validate_architecture()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        larger = type(model)(config).to(model.device, model.dtype).train(model.training)
    larger.load_state_dict(model.state_dict(), strict=False)
    for convolution in larger.model.patch_embeddings.convolutions[-number:]:
        for weight in convolution.dense.parameters():
            nn.init.zeros_(weight)
    larger.generation_config = copy.deepcopy(model.generation_config)
    larger.generation_config.update(early_exit_rule=None, early_exit=None)
    return larger


def main(
    model: Annotated[str, typer.Argument(help="Model: a folder or an id on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model with convolutions, with the same processor.")],
    number: Annotated[int, typer.Option("--number", help="How many convolutions to insert.")],
):
    """Give a ScanFormer sparse convolutions over its patches without changing what it answers."""
    try:
        larger = insert_convolutions(load_source(model, out), number)
        processor = ScanFormerProcessor.from_pretrained(model)
        larger.save_pretrained(out)
        processor.save_pretrained(out)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{out}: {larger.config.num_convolution_layers} convolutions")


if __name__ == "__main__":
    typer.run(main)
