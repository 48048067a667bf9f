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
Mix the weights of a ScanFormer with those of the same one trained on.

    python -m conversion.interpolate_weights outputs/before outputs/after outputs/mixed --share 0.75

What was trained on knows something new and has forgotten a little of the old. A model between the two often knows both, at
the cost of one (WiSE-FT, arXiv 2109.01903). This needs weights of one descent: models trained apart have nothing between.
Choose the share on a validation split.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .sources import load_source


def interpolate_weights(
    before: ScanFormerForVisualGrounding, after: ScanFormerForVisualGrounding, share: float
) -> ScanFormerForVisualGrounding:
    """
    A model between two.

    Args:
        before ([`ScanFormerForVisualGrounding`]):
            The model that training started from.
        after ([`ScanFormerForVisualGrounding`]):
            The model that it made, which is changed.
        share (`float`):
            Share of the second model's weights, from 0 to 1. The mean is taken in float32.

    Returns:
        [`ScanFormerForVisualGrounding`]: `after`, whose rule of early exit is left out.

    Raises:
        ValueError: if the share lies outside 0 and 1, or the weights are not of one shape.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"The share of the second model lies between 0 and 1, got {share}.")
    first, second = before.state_dict(), after.state_dict()
    differing = sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or first[name].shape != second[name].shape
    )
    if differing:
        raise ValueError(f"The models are not of one shape: {', '.join(differing[:3])} differ.")
    with torch.no_grad():
        for name, weight in second.items():
            weight.copy_((1 - share) * first[name].to(weight.device).float() + share * weight.float())
    # the rule was calibrated on the weights as they were
    after.generation_config.update(early_exit_rule=None, early_exit=None)
    return after


def main(
    before: Annotated[str, typer.Argument(help="Model that training started from: a folder or an id on the Hub.")],
    after: Annotated[str, typer.Argument(help="Model that it made.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model between, with the second one's processor.")],
    share: Annotated[float, typer.Option("--share", help="Share of the second model's weights.")] = 0.5,
):
    """Mix the weights of a ScanFormer with those of the same one trained on."""
    try:
        models = [load_source(source, out) for source in (before, after)]
        processor = ScanFormerProcessor.from_pretrained(after)
        interpolate_weights(*models, share).save_pretrained(out)
        processor.save_pretrained(out)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{out}: {1 - share:g} of the weights of {before} and {share:g} of those of {after}")


if __name__ == "__main__":
    typer.run(main)
