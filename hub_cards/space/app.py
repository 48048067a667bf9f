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
A page on which a ScanFormer finds what you say in your pictures.

    python app.py --model FOLDER_OR_HUB_ID
"""

import os
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import gradio as gr
from drawing import STYLE, ScanView
from streaming import MAX_EXPRESSIONS, load_pipeline, parse_expressions, stream_scan
from transformers import HfArgumentParser, Pipeline


FOLDER = Path(__file__).parent
EXAMPLES = {
    "hexagon.jpg": "the big checkered hexagon that is red\nthe pink shape",
    "pentagon.jpg": "the big yellow pentagon",
    "arrows.jpg": "the red shape furthest to the right",
}
INTRODUCTION = """
# ScanFormer
Say what you mean, get its box. The model reads the picture at a coarse scale first, and at the finer scales only the
patches that it asks for.
"""


@dataclass
class SpaceArguments:
    model: str | None = field(
        default_factory=lambda: os.environ.get("MODEL_ID"),
        metadata={
            "help": "A folder or a repository on the Hub. By default the environment variable MODEL_ID, then the package's "
            "own checkpoint."
        },
    )


def build_controls(pipe: Pipeline) -> dict[str, gr.Slider]:
    """Sliders by the option of `generate` that they set."""
    num_scales, defaults = pipe.model.config.num_scales, pipe.model.generation_config
    if num_scales == 1:
        return {}

    def slider(option: str, fallback: float, minimum: float, maximum: float, step: float, **texts) -> gr.Slider:
        value = getattr(defaults, option)
        precision = 0 if isinstance(step, int) else None
        value = fallback if value is None else value
        return gr.Slider(minimum, maximum, value, step=step, precision=precision, **texts)

    return {
        "max_scales": slider(
            "max_scales", num_scales, 1, num_scales, 1, label="Scales", info="How many scales to read at most."
        ),
        "selection_threshold": slider(
            "selection_threshold",
            pipe.model.config.selection_threshold,
            0.0,
            1.0,
            0.01,
            label="Selection threshold",
            info="Higher reads fewer patches of the finer scales.",
        ),
        "stopping_score": slider(
            "stopping_score",
            1.0,
            0.0,
            1.0,
            0.01,
            label="Stopping score",
            info="A box with this score ends the scan. At 1 all scales are read.",
        ),
    }


def build_page(pipe: Pipeline) -> gr.Blocks:
    """
    The page.

    Args:
        pipe (`Pipeline`):
            `pipeline("visual-grounding")` of the model to show.
    """
    view = ScanView(pipe)
    with gr.Blocks(title="ScanFormer", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type="filepath", label="Picture", height=320, elem_id="picture")
                # the package decodes every kind of picture, and says what is wrong with a broken one; Gradio does not
                picture.preprocess = lambda file: file and file.path
                text = gr.Textbox(
                    label="What to find",
                    info=f"One expression per line, at most {MAX_EXPRESSIONS}.",
                    placeholder="the red cup on the left",
                    lines=2,
                    elem_id="expressions",
                )
                button = gr.Button("Find", variant="primary", size="lg", elem_id="find")
                with gr.Accordion("Options", open=False):
                    controls = build_controls(pipe)
            with gr.Column():
                answer = gr.Image(label="Answer", interactive=False, format="jpeg", elem_id="answer")
                details = gr.HTML(elem_id="details")
        examples = gr.Examples(
            [[str(FOLDER / "examples" / name), text] for name, text in EXAMPLES.items()],
            [picture, text],
            elem_id="examples",
        )

        def ground(picture, text, *values):
            if picture is None:
                raise _error("There is no picture yet. Upload one, take one, or click an example.")
            try:
                # the slider is the rule here, whatever the model has been saved with
                options = {"early_exit": False, **dict(zip(controls, values))}
                for state in stream_scan(pipe, picture, parse_expressions(text), **options):
                    yield view.draw_answers(state), view.describe(state)
            except ValueError as error:
                raise _error(str(error)) from error

        scan = {
            "fn": ground,
            "inputs": [picture, text, *controls.values()],
            "outputs": [answer, details],
            "show_progress": "minimal",
            "show_progress_on": answer,
            "scroll_to_output": True,
        }
        gr.on([button.click, text.submit], **scan, api_name="ground")
        examples.load_input_event.success(**scan, api_visibility="private")
    return page


def _error(message: str) -> gr.Error:
    return gr.Error(escape(message, quote=False), print_exception=False)


def main():
    (arguments,) = HfArgumentParser(SpaceArguments).parse_args_into_dataclasses()
    try:
        pipe = load_pipeline(arguments.model)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    build_page(pipe).launch(css=STYLE)


if __name__ == "__main__":
    main()
