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
Give the patches of a ScanFormer a finer grid of positions without changing what it answers.

    python -m conversion.refine_positions outputs/before outputs/finer --factor 3 --sinusoids 1.0

Between the nodes of the grid, positions are interpolated. So patches of which several lie between two nodes can't be told
from their neighbours by attention. A finer grid can tell them apart, once training has found a use for it. Sinusoids help it to:
with them, the inner product of two positions depends on how far apart they are (as with the sinusoidal encodings of "Attention
Is All You Need", arXiv 1706.03762, section 3.5).
"""

import copy
import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .sources import load_source


TABLE = "model.patch_embeddings.position_embeddings.weight"

# Nodes along a side, which make a table of a million positions.
MOST_NODES = 1024
# In intervals of the finer grid, which hardly shows any shorter ones.
WAVELENGTHS = [3.0 * 1.5**number for number in range(5)]
SEED = 0


def refine_positions(
    model: ScanFormerForVisualGrounding, factor: int, sinusoids: float = 0.0
) -> ScanFormerForVisualGrounding:
    """
    A model with a finer grid of positions. Without sinusoids its answers are the same up to rounding.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            On one device, without adapters. It is not changed.
        factor (`int`):
            Number of intervals that each interval between two nodes of the grid becomes.
        sinusoids (`float`, *optional*, defaults to 0.0):
            Amplitude of sinusoids that are added to the positions, in units of the embeddings: along rows and along columns, of
            five wavelengths, a sine and a cosine each, in directions of their own.

    Returns:
        [`ScanFormerForVisualGrounding`]: with the model's options but for the rule of early exit, which was calibrated on other
        weights. All parameters can be trained.

    Raises:
        ValueError: if the grid would not be finer or too fine, the amplitude is negative or not finite, or the sinusoids have
            more directions than the states of the model.
    """
    config = copy.deepcopy(model.config)
    nodes = factor * (config.position_grid_size - 1) + 1
    if not config.position_grid_size < nodes <= MOST_NODES:
        raise ValueError(
            f"By a factor of {factor}, the grid of {config.position_grid_size} nodes along a side would have {nodes}: that must "
            f"be more, and at most {MOST_NODES}."
        )
    if not (math.isfinite(sinusoids) and sinusoids >= 0):
        raise ValueError(f"The amplitude of sinusoids is a number from 0 on, got {sinusoids}.")
    weights = model.state_dict()
    table = weights[TABLE].to(torch.promote_types(model.dtype, torch.float32))
    grid = table.T.reshape(1, config.hidden_size, config.position_grid_size, config.position_grid_size)
    grid = torch.nn.functional.interpolate(grid, size=(nodes, nodes), mode="bilinear", align_corners=True)
    finer_table = grid.flatten(2)[0].T
    if sinusoids > 0:
        finer_table = finer_table + sinusoids * create_sinusoids(nodes, config.hidden_size).to(table)
    weights[TABLE] = finer_table.to(model.dtype)

    config.position_grid_size = nodes
    finer = type(model)(config).to(model.device, model.dtype).train(model.training)
    finer.load_state_dict(weights)
    finer.generation_config = copy.deepcopy(model.generation_config)
    finer.generation_config.update(early_exit_rule=None, early_exit=None)
    return finer


def create_sinusoids(nodes: int, hidden_size: int) -> torch.Tensor:
    """
    Sinusoids of [`refine_positions`], of amplitude 1. The inner product of two nodes is a sum of cosines of how far apart they
    are, along rows and along columns.

    Args:
        nodes (`int`):
            Number of nodes along a side of the grid.
        hidden_size (`int`):
            Of the model.

    Returns:
        `torch.DoubleTensor` of shape `(nodes**2, hidden_size)`, row by row.

    Raises:
        ValueError: if they have more directions than there are.
    """
    phases = 2 * torch.pi * torch.arange(nodes, dtype=torch.float64)[:, None] / torch.tensor(WAVELENGTHS)
    along = torch.cat([phases.sin(), phases.cos()], dim=1)
    values = torch.cat([along.repeat_interleave(nodes, 0), along.repeat(nodes, 1)], dim=1)
    if values.shape[1] > hidden_size:
        raise ValueError(
            f"Sinusoids have {values.shape[1]} directions, but the states only {hidden_size}: leave them out."
        )
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(hidden_size, values.shape[1], generator=generator, dtype=torch.float64)
    return values @ torch.linalg.qr(directions).Q.T


def main(
    model: Annotated[str, typer.Argument(help="Model: a folder or an id on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model with finer positions, with the same processor.")],
    factor: Annotated[int, typer.Option("--factor", help="How many intervals each interval of the grid becomes.")],
    sinusoids: Annotated[
        float, typer.Option("--sinusoids", help="Amplitude of sinusoids to add; without, the answers stay the same.")
    ] = 0.0,
):
    """Give the patches of a ScanFormer a finer grid of positions."""
    try:
        finer = refine_positions(load_source(model, out), factor, sinusoids)
        processor = ScanFormerProcessor.from_pretrained(model)
        finer.save_pretrained(out)
        processor.save_pretrained(out)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{out}: {finer.config.position_grid_size} x {finer.config.position_grid_size} positions")


if __name__ == "__main__":
    typer.run(main)
