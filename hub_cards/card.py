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
"""The model card: facts of the checkpoint, what its maker says in card.yaml, and figures from results files."""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .checks import PublishError
from .figures import find_unbacked_figures
from .results import TASK, Results


TEMPLATE = Path(__file__).with_name("card_template.md")
# Fields in which a figure could be claimed.
PROSE = ("title", "summary", "training_data", "hardware", "limits")


@strict
@dataclass
class CardMetadata:
    """
    What only the maker of a checkpoint can tell: `card.yaml` in its folder.

    Args:
        title (`str`):
            Title of the card.
        summary (`str`):
            What the model is, in a paragraph or two of Markdown.
        training_data (`str`):
            What it was trained on.
        training_commands (`list[str]`):
            The commands that made it, in their order.
        hardware (`str`):
            What it was trained on, as a machine.
        hours (`float`):
            How long that took.
        limits (`str`):
            What it cannot do, and what it must not be used for.
        license (`str`, *optional*, defaults to `"apache-2.0"`):
            Licence of the weights, as the Hub writes it. Another one needs a file LICENSE beside the checkpoint.
        language (`list[str]`, *optional*, defaults to `["en"]`):
            Languages of the expressions.
        base_model (`str`, *optional*):
            Id on the Hub of the model that it started from.
        datasets (`list[str]`, *optional*):
            Ids on the Hub of the data sets it was trained on.
        dataset_names (`dict[str, str]`, *optional*):
            Names for the results' data sets, by what `--dataset` of the evaluation was.
        co2_grams (`float`, *optional*):
            Emissions of the training, in grams of CO2 equivalents.
        co2_source (`str`, *optional*):
            Where that number comes from; needed with `co2_grams`.
        example_image (`str`, *optional*):
            Picture beside the checkpoint for the card's example. By default that of the project's demo.
        example_text (`str`, *optional*, defaults to `"the violet disc"`):
            Expression for the card's example.
        citation (`str`, *optional*):
            BibTeX of the model itself; the paper's is always there.
        files (`list[str]`, *optional*):
            Further files beside the checkpoint that belong to the repository, such as a training script.
    """

    title: str
    summary: str
    training_data: str
    training_commands: list[str]
    hardware: str
    hours: float | int
    limits: str
    license: str = "apache-2.0"
    language: list[str] = field(default_factory=lambda: ["en"])
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    dataset_names: dict[str, str] = field(default_factory=dict)
    co2_grams: float | int | None = None
    co2_source: str | None = None
    example_image: str | None = None
    example_text: str = "the violet disc"
    citation: str | None = None
    files: list[str] = field(default_factory=list)

    def validate_emissions(self):
        if self.co2_grams is not None and not self.co2_source:
            raise ValueError("`co2_grams` needs `co2_source`: say where the number comes from.")


def read_metadata(path: Path) -> CardMetadata:
    """
    Read `card.yaml`.

    Raises:
        PublishError: if it is missing, or a field is missing, unknown or of the wrong type.
    """
    needed = [item.name for item in fields(CardMetadata) if item.default is item.default_factory is MISSING]
    if not path.is_file():
        raise PublishError(f"There is no {path}. Write one with the fields {needed}; see CardMetadata in {__file__}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishError(f"{path} is not YAML in UTF-8: {error}") from error
    if not isinstance(values, dict):
        raise PublishError(f"{path} holds no fields. It needs {needed}; see CardMetadata in {__file__}.")
    try:
        return CardMetadata(**values)
    except (StrictDataclassError, TypeError) as error:
        raise PublishError(f"{path}: {error}") from error


def check_figures(metadata: CardMetadata, readme: Path, results: list[Results]):
    """
    Look for figures that no results file backs, in what the maker wrote: the prose of card.yaml, and a README.md beside
    the checkpoint, which tells the same story in the project that the card tells on the Hub.

    Raises:
        PublishError: with every such figure, and the line it is in.
    """
    measured = [number for result in results for number in result.numbers()]
    measured += [metadata.hours, *filter(None, [metadata.co2_grams])]
    texts = {f"card.yaml, {name}": getattr(metadata, name) for name in PROSE}
    if readme.is_file():
        texts["README.md"] = readme.read_text(encoding="utf-8")
    found = [
        f"{source}, line {number}: {figure} in {line!r}"
        for source, text in texts.items()
        for number, figure, line in find_unbacked_figures(text, measured)
    ]
    if found:
        raise PublishError(
            "No results file holds these figures. Measure them, take them out, or, where they are no results, write them "
            "as `code`:\n" + "\n".join(found)
        )


def render_card(
    repo_id: str,
    model: ScanFormerForVisualGrounding,
    processor: ScanFormerProcessor,
    metadata: CardMetadata,
    results: list[Results],
    example: dict[str, Any],
) -> ModelCard:
    """
    Render the card of a checkpoint.

    Args:
        repo_id (`str`):
            Name of the repository on the Hub.
        model ([`ScanFormerForVisualGrounding`]):
            The model, whose configuration the card describes.
        processor ([`ScanFormerProcessor`]):
            Its processor.
        metadata ([`CardMetadata`]):
            What its maker says.
        results (`list[Results]`):
            What was measured. The template gets its figures from nowhere else.
        example (`dict`):
            What the pipeline answers for the example: `"label"`, `"score"` and `"box"`.

    Returns:
        `ModelCard`: with the results as a model index in its metadata.
    """
    emissions = {"emissions": metadata.co2_grams, "source": metadata.co2_source, "hardware_used": metadata.hardware}
    data = ModelCardData(
        license=metadata.license,
        language=metadata.language,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["scanformer", "visual-grounding", "referring-expression-comprehension"],
        base_model=metadata.base_model,
        datasets=metadata.datasets or None,
        metrics=sorted({item.metric_type for result in results for item in result.eval_results()}),
        co2_eq_emissions=None if metadata.co2_grams is None else emissions,
        widget=[{"src": "example.png", "candidate_labels": metadata.example_text}],
        model_name=metadata.title,
        eval_results=[item for result in results for item in result.eval_results()],
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        metadata=metadata,
        architecture=describe_architecture(model, processor),
        headline_table=_table([result.headline() for result in results]),
        scale_table=_table([result.by_scale() for result in results]),
        results=results,
        example_text=json.dumps(metadata.example_text, ensure_ascii=False),
        example={**example, "score": round(example["score"], 2)},
    )


def describe_architecture(model: ScanFormerForVisualGrounding, processor: ScanFormerProcessor) -> dict[str, str]:
    """Sizes of a model, by their names for readers."""
    config = model.config
    convolutions = {"sparse convolutions": str(config.num_convolution_layers)} if config.num_convolution_layers else {}
    refined = {"boxes": "from [REG], refined by a patch"} if config.refine_boxes else {}
    return {
        "parameters": f"{model.num_parameters():,}",
        "width": str(config.hidden_size),
        **convolutions,
        "layers": f"{config.num_hidden_layers}, the first {config.selection_layer} of them Encoder1",
        "attention heads": str(config.num_attention_heads),
        "scales": str(config.num_scales),
        "patch": f"{config.patch_size} x {config.patch_size} pixels",
        "longer side of the finest scale": f"{processor.image_processor.size['longest_edge']} pixels",
        "selection threshold": f"`{config.selection_threshold}`",
        **refined,
        "longest expression": f"{config.max_position_embeddings} tokens",
        "vocabulary": f"{config.vocab_size:,} word pieces",
        "type of the weights": str(model.dtype).removeprefix("torch."),
    }


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] + ["---:"] * (len(rows[0]) - 1), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
