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
"""The command `scanformer`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from transformers import pipeline
from transformers.utils import logging

from .pipeline_scanformer import DEFAULT_CHECKPOINT
from .visualization_scanformer import stack_drawings


app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main():
    """Find what an expression refers to in a picture."""


@app.command()
def ground(
    image: Annotated[str, typer.Argument(help="Picture file or URL.")],
    expressions: Annotated[list[str], typer.Argument(help="What to find; several are grounded one by one.")],
    model: Annotated[str, typer.Option(help="Checkpoint: a folder or an id on the Hub.")] = DEFAULT_CHECKPOINT,
    out: Annotated[Path | None, typer.Option(help="Write a picture that explains the scan to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
):
    """Print the box of each expression, in pixels of the picture."""
    logging.disable_progress_bar()
    try:
        pipe = pipeline("visual-grounding", model=model)
        answers = pipe(image, text=expressions, return_scan=True)
        if out is not None:
            stack_drawings([pipe.draw(image, answer) for answer in answers]).save(out)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # where a model cannot be loaded, Transformers' message ends with the traceback of the reason
        reason = str(error).strip().splitlines()[-1] if "Traceback" in str(error) else error
        typer.echo(f"scanformer: {reason}", err=True)
        raise typer.Exit(1) from error

    if as_json:
        typer.echo(json.dumps([_summary(answer) for answer in answers], indent=2))
        return
    for answer in map(_summary, answers):
        box = ", ".join(f"{side} {pixel}" for side, pixel in answer["box"].items())
        read = " / ".join(f"{share:.0%}" for share in answer["patches_read"])
        typer.echo(f"{answer['label']}: {box} (score {answer['score']:.2f}, patches read {read})")
    if out is not None:
        typer.echo(f"The scan is drawn in {out}")


def _summary(answer: dict) -> dict:
    """An answer of the pipeline, with shares of patches read in place of the grids."""
    scan = answer["scan"]
    return {
        "label": answer["label"],
        "score": answer["score"],
        "box": answer["box"],
        "scale_boxes": scan["boxes"],
        "scale_scores": scan["scores"],
        "patches_read": [float(grid.mean()) for grid in scan["selection"]],
    }
