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
Make a ScanFormer of a ViLT, which reads the coarsest scale as that ViLT would if its text could not see the image; or make
a ViLT of a ScanFormer.

    python -m conversion.convert_vilt_to_scanformer dandelin/vilt-b32-mlm outputs/scanformer-base
    python -m conversion.convert_vilt_to_scanformer vilt_200k_mlm_itm.ckpt outputs/scanformer-base --tokenizer bert-base-uncased
    python -m conversion.convert_vilt_to_scanformer google/vit-base-patch32-384 outputs/scanformer-base \
        --text_encoder bert-base-uncased
    python -m conversion.convert_vilt_to_scanformer outputs/scanformer-base outputs/vilt --reverse

Every tensor of both sides is listed on the standard output and in conversion_report.json.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, ViltConfig, ViltImageProcessorPil, ViltModel, ViltProcessor
from transformers.utils import logging

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerImageProcessor,
    ScanFormerModel,
    ScanFormerProcessor,
)

from .conversion_report import Report, SourceTensor, TargetTensor
from .vilt_key_map import LEADING_ROWS, SEGMENTS, Rule, rules_to_scanformer, rules_to_vilt
from .vilt_sources import Source, read_checkpoint, read_source, read_tokenizer


# Configuration that means the same in both models.
SHARED_CONFIG = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "qkv_bias",
    "initializer_range",
    "layer_norm_eps",
    "max_position_embeddings",
    "patch_size",
)

# Of an earlier conversion, these could outlive a later one that writes no tokenizer.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")

# How new tensors start. With last layers of zero the first step moves the heads alone: the encoder's gradient is zero.
AS_NEW = "as in any new model"
LAST_LAYERS = {
    "box_head.out_proj": "zero: every box starts as the middle half of the picture",
    "score_head.out_proj": "zero: every score starts at one half",
    "model.selection_head.classifier": "weight zero, bias positive: every patch is read at first",
}


def convert_to_scanformer(
    source: Source,
    out: Path,
    num_scales: int = 3,
    longest_edge: int = 640,
    selection_layer: int | None = None,
) -> Report:
    """
    Write a ScanFormer made of a ViLT, with its processor.

    Args:
        source (`Source`):
            The ViLT.
        out (`Path`):
            Folder to write to.
        num_scales (`int`, *optional*, defaults to 3):
            Number of scales.
        longest_edge (`int`, *optional*, defaults to 640):
            Longer side of the finest scale in pixels.
        selection_layer (`int`, *optional*):
            Number of layers of Encoder1; half of them by default.

    Raises:
        ValueError: if the source's tensors do not fit its configuration, or an option does not fit the source.
    """
    vilt = source.config
    config = ScanFormerConfig(
        **{name: getattr(vilt, name) for name in SHARED_CONFIG},
        pad_token_id=vilt.pad_token_id or 0,
        num_scales=num_scales,
        selection_layer=vilt.num_hidden_layers // 2 if selection_layer is None else selection_layer,
        position_grid_size=vilt.image_size // vilt.patch_size,
    )
    unit = config.patch_size * 2 ** (num_scales - 1)
    if longest_edge < unit or longest_edge % unit:
        below = max(longest_edge // unit, 1) * unit
        raise ValueError(
            f"`--longest_edge {longest_edge}` must be a multiple of patch_size * 2 ** (num_scales - 1) = {unit}: for example "
            f"{below} or {below + unit}."
        )
    rules = rules_to_scanformer(config, source.has_modalities)
    with torch.device("meta"):
        expected = ViltModel(vilt).state_dict()
    mapped = apply_rules(rules, source, expected)
    model = new_model(ScanFormerForVisualGrounding, config)
    report = Report(f"{source.name} ({source.kind})", f"{out} (ScanFormer)", notes=list(source.notes))
    new = initialise_new(model, mapped)
    load_mapped(model, "model.", mapped, new)
    describe_tensors(report, source, rules, model, "model.", new)

    dropout = max(vilt.hidden_dropout_prob, vilt.attention_probs_dropout_prob)
    if dropout > 0:
        report.notes.append(
            f"The source's dropout of {dropout} is not carried over: merging patches is exact without."
        )
    image_processor = ScanFormerImageProcessor(
        size={"longest_edge": longest_edge},
        patch_size=config.patch_size,
        num_scales=num_scales,
        **source.pixel_settings,
    )
    processor = make_processor(report, source, image_processor, ScanFormerProcessor, config)
    save(model, processor, report, out)
    return report


def convert_to_vilt(source: Source, out: Path) -> Report:
    """
    Write a ViLT made of a ScanFormer, with its processor.

    Args:
        source (`Source`):
            The ScanFormer.
        out (`Path`):
            Folder to write to.

    Raises:
        ValueError: if the source's tensors do not fit its configuration, or it has convolutions.
    """
    config = source.config
    if config.num_convolution_layers > 0:
        raise ValueError(
            f"{source.name} has {config.num_convolution_layers} sparse convolutions, and a ViLT has none: it cannot compute "
            "the same. Only a model of `num_convolution_layers=0` can become one."
        )
    image_size = config.position_grid_size * config.patch_size
    vilt = ViltConfig(
        **{name: getattr(config, name) for name in SHARED_CONFIG},
        pad_token_id=config.pad_token_id,
        image_size=image_size,
    )
    rules = rules_to_vilt(config)
    with torch.device("meta"):
        expected = ScanFormerModel(config).state_dict()
    mapped = apply_rules(rules, source, expected)
    model = new_model(ViltModel, vilt)
    report = Report(f"{source.name} (ScanFormer)", f"{out} (ViLT of Transformers)")
    report.notes.append(
        "A ViLT reads one scale, with text that sees the image: it computes what the ScanFormer computes of scale 0 where its "
        "text is masked from the image."
    )
    new = {SEGMENTS: "zero: the positions hold segment 0"}
    torch.nn.init.zeros_(model.get_parameter(SEGMENTS))
    new |= {name: AS_NEW for name in model.state_dict() if name.startswith("pooler.")}
    load_mapped(model, "", mapped, new)
    describe_tensors(report, source, rules, model, "", new)
    image_processor = ViltImageProcessorPil(
        size={"shortest_edge": image_size}, size_divisor=config.patch_size, **source.pixel_settings
    )
    processor = make_processor(report, source, image_processor, ViltProcessor, vilt)
    save(model, processor, report, out)
    return report


def apply_rules(rules: list[Rule], source: Source, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Make the tensors that have a rule, in float32.

    Args:
        rules (`list[Rule]`):
            The rules.
        source (`Source`):
            Their sources.
        expected (`dict[str, torch.Tensor]`):
            Tensors with the shapes that the source's configuration asks for.

    Returns:
        `dict[str, torch.Tensor]`: the targets by name.

    Raises:
        ValueError: naming all tensors that are missing or have another shape.
    """
    needed = dict.fromkeys(name for rule in rules for name in rule.sources)
    missing = [name for name in needed if name not in source.tensors]
    if missing:
        raise ValueError(
            f"{source.name} lacks {len(missing)} of the {len(needed)} tensors of a complete {source.kind}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Is it a part of a checkpoint?"
        )
    wrong = [
        f"{source.origin(name)} is {list(source.tensors[name].shape)} instead of {list(expected[name].shape)}"
        for name in needed
        if source.tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(
            f"The weights of {source.name} do not fit its configuration: {'; '.join(wrong[:5])}"
            f"{'; ...' if len(wrong) > 5 else ''}. Take both from the same checkpoint."
        )
    return {rule.target: rule.make(*(source.tensors[name].float() for name in rule.sources)) for rule in rules}


def new_model(model_class: type[PreTrainedModel], config) -> PreTrainedModel:
    """A model with random weights, always the same: a conversion can be repeated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config)


@torch.no_grad()
def initialise_new(model: ScanFormerForVisualGrounding, mapped: dict[str, torch.Tensor]) -> dict[str, str]:
    """
    Give what a ScanFormer has and a ViLT has not values that disturb nothing.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The new model.
        mapped (`dict[str, torch.Tensor]`):
            What its encoder gets from elsewhere.

    Returns:
        `dict[str, str]`: what was done, by name of the tensor.
    """
    encoder = model.model
    new = {"model.patch_embeddings.scale_embeddings.weight": "zero: all scales look alike"}
    encoder.patch_embeddings.scale_embeddings.weight.zero_()
    if "modality_embeddings.weight" not in mapped:
        encoder.modality_embeddings.weight.zero_()
        new["model.modality_embeddings.weight"] = "zero"
    if model.config.num_scales > 1:
        encoder.selection_head.classifier.weight.zero_()
    if model.config.num_scales > 1 and model.config.use_constant_token:
        # unread while everything is selected; then what the encoder knows already and what says nothing
        types = mapped.get("modality_embeddings.weight", encoder.modality_embeddings.weight)
        mean_position = mapped["patch_embeddings.position_embeddings.weight"].mean(0)
        encoder.constant_token.weight.copy_(mapped["patch_embeddings.projection.bias"] + mean_position + types[1])
        new["model.constant_token.weight"] = "a patch of zeros (grey) at the mean position"
    for last in (model.box_head.out_proj, model.score_head.out_proj):
        last.weight.zero_()
        last.bias.zero_()
    for name in model.state_dict():
        if name.startswith(("box_head.", "score_head.", "model.selection_head.")):
            new[name] = LAST_LAYERS.get(name.rpartition(".")[0], AS_NEW)
    return new


def load_mapped(model: PreTrainedModel, prefix: str, mapped: dict[str, torch.Tensor], new: dict[str, str]):
    """Give a model the tensors that are not new. Every other one must be there."""
    state = {name: model.get_parameter(name) for name in new}
    model.load_state_dict(state | {prefix + name: tensor for name, tensor in mapped.items()})


def describe_tensors(
    report: Report, source: Source, rules: list[Rule], model: PreTrainedModel, prefix: str, new: dict[str, str]
):
    """List every tensor of both sides in the report."""
    made = {prefix + rule.target: rule for rule in rules}
    targets: dict[str, list[str]] = {name: [] for name in source.shapes}
    left_out = {}
    for target, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        if target in new:
            report.target_tensors.append(TargetTensor(target, shape, "new", [], new[target]))
            continue
        rule = made[target]
        origins = [source.origin(name) for name in rule.sources]
        report.target_tensors.append(TargetTensor(target, shape, "mapped", origins, rule.how))
        for name in rule.sources:
            targets[source.origins[name]].append(target)
            rows, meaning = LEADING_ROWS.get(name, (None, ""))
            if rows is not None and len(source.tensors[name]) > rows:
                left_out[source.origins[name]] = f"rows from {rows} on, {meaning}"
    for name, shape in source.shapes.items():
        status = "mapped" if targets[name] else "unused"
        report.source_tensors.append(SourceTensor(name, list(shape), status, targets[name], left_out.get(name, "")))


def make_processor(report: Report, source: Source, image_processor, processor_class: type, config):
    """The processor, or without a tokenizer the image processor alone."""
    settings = ", ".join(f"{key} {value}" for key, value in source.pixel_settings.items())
    report.notes.append(f"Settings of the pictures from the source: {settings or 'none, so the defaults are kept'}.")
    tokenizer = source.tokenizer
    if tokenizer is None:
        report.notes.append(
            "The source has no tokenizer, so only the image processor is written. Convert again with `--tokenizer` and the "
            "folder or id of the one that the source was trained with (bert-base-uncased for the published ViLTs)."
        )
        return image_processor
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer knows {len(tokenizer)} word pieces, but {source.name} embeds {config.vocab_size}. Give the one "
            "that it was trained with by `--tokenizer`."
        )
    tokenizer.model_max_length = config.max_position_embeddings
    return processor_class(image_processor, tokenizer)


def check_output(source: str, out: Path):
    """Nothing but an earlier conversion is overwritten."""
    if out.is_file() or (out.exists() and Path(source).exists() and out.samefile(source)):
        raise ValueError(f"Cannot write to {out}: it is a file, or what is read. Give another folder.")
    if (out / "config.json").exists() and not (out / "conversion_report.json").exists():
        raise ValueError(f"{out} holds a checkpoint that no conversion wrote. Give another folder.")


def save(model: PreTrainedModel, processor, report: Report, out: Path):
    """Write the checkpoint, in place of that of an earlier conversion."""
    # it comes first: without it, the files of a conversion that is killed would be taken for somebody else's
    out.mkdir(parents=True, exist_ok=True)
    report.save(out)
    for file in PROCESSOR_FILES:
        (out / file).unlink(missing_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def main(
    source: Annotated[str, typer.Argument(help="Folder or id of a checkpoint, or a .ckpt file of ViLT's authors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    reverse: Annotated[bool, typer.Option("--reverse", help="Make a ViLT of a ScanFormer.")] = False,
    text_encoder: Annotated[str | None, typer.Option("--text_encoder", help="BERT to join a ViT with.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Tokenizer, instead of the source's.")] = None,
    num_scales: Annotated[int | None, typer.Option("--num_scales", help="Number of scales, 3 by default.")] = None,
    longest_edge: Annotated[
        int | None, typer.Option("--longest_edge", help="Longer side of the finest scale in pixels, 640 by default.")
    ] = None,
    selection_layer: Annotated[
        int | None, typer.Option("--selection_layer", help="Layers of Encoder1, by default half of all.")
    ] = None,
):
    """Make a ScanFormer of a ViLT, or with --reverse a ViLT of a ScanFormer."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sizes = {"num_scales": num_scales, "longest_edge": longest_edge, "selection_layer": selection_layer}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    try:
        check_output(source, out)
        if reverse and (sizes or text_encoder):
            raise ValueError(f"With `--reverse`, `--{next(iter(sizes), 'text_encoder')}` has no meaning.")
        read = read_checkpoint(source, ("scanformer",)) if reverse else read_source(source, text_encoder)
        if tokenizer is not None:
            read.tokenizer = read_tokenizer(tokenizer)
            if read.tokenizer is None:
                raise ValueError(f"There is no tokenizer in {tokenizer}.")
        report = convert_to_vilt(read, out) if reverse else convert_to_scanformer(read, out, **sizes)
    except (ValueError, OSError, StrictDataclassError) as error:
        typer.echo(f"convert_vilt_to_scanformer: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(str(report))


if __name__ == "__main__":
    typer.run(main)
