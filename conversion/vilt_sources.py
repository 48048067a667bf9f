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
"""Reads the checkpoints that a ScanFormer can be made of, and the ScanFormer of which a ViLT can be made."""

import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, ViltConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.utils import cached_file

from modeling_scanformer import ScanFormerConfig

from .vilt_key_map import (
    CLS_TOKEN,
    MODALITIES,
    PATCH_POSITIONS,
    PATCH_PROJECTION,
    SEGMENTS,
    TEXT_POSITIONS,
    rename_bert,
    rename_original,
)


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt")

# Settings of an image processor that say what a pixel means, and so belong to the patch projection.
PIXEL_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")

PIXEL_SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")

# Width of an attention head in every published ViT, for checkpoints that do not say.
HEAD_SIZE = 64

# What Transformers' model types are, and what a model with a head puts before the names of its encoder's tensors.
KINDS = {"vilt": "ViLT of Transformers", "vit": "ViT", "bert": "BERT", "scanformer": "ScanFormer"}
PREFIXES = {"vilt": "vilt.", "vit": "vit.", "bert": "bert.", "scanformer": "model."}

# What a ViT and the embeddings of a BERT say about the ViLT that they are joined to.
SIZES_OF_VIT = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "qkv_bias",
)
SIZES_OF_BERT = ("vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id")

# A training checkpoint mentions classes of these libraries next to its weights.
TRAINING_LIBRARIES = ("pytorch_lightning", "lightning", "sacred")


@dataclass
class Source:
    """
    A checkpoint to convert.

    Attributes:
        name (`str`):
            Where it came from.
        kind (`str`):
            What it is, in words.
        config (`ViltConfig` or `ScanFormerConfig`):
            Its sizes.
        tensors (`dict[str, torch.Tensor]`):
            By the names of the key map.
        origins (`dict[str, str]`):
            Name in the checkpoint by name of the key map.
        parts (`dict[str, str]`):
            Which rows of a tensor of the checkpoint a tensor is, `"[a:b]"`, where it is not all of them.
        shapes (`dict[str, tuple[int, ...]]`):
            Shapes by name in the checkpoint.
        has_modalities (`bool`):
            Whether there are modality types. Encoders that were trained apart have none.
        pixel_settings (`dict`):
            Settings of the image processor.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer, if there is one.
        notes (`list[str]`):
            What the user should know.
    """

    name: str
    kind: str
    config: ViltConfig | ScanFormerConfig
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    has_modalities: bool = True
    pixel_settings: dict = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, origin: str, tensor: torch.Tensor):
        self.tensors[name], self.origins[name] = tensor, origin
        self.shapes.setdefault(origin, tuple(tensor.shape))

    def origin(self, name: str) -> str:
        """Where a tensor lies in the checkpoint."""
        return self.origins[name] + self.parts.get(name, "")


def read_source(name: str, text_encoder: str | None = None) -> Source:
    """
    Read what a ScanFormer can be made of.

    Args:
        name (`str`):
            Folder or id of a ViLT of Transformers, with any head, or of a ViT; or a checkpoint file of ViLT's original
            repository.
        text_encoder (`str`, *optional*):
            Folder or id of the BERT whose embeddings a ViT, and only a ViT, is joined with.

    Raises:
        ValueError: if it is something else, incomplete or damaged.
    """
    if Path(name).is_file() or name.endswith(".ckpt"):
        source = read_original(name)
    else:
        source = read_checkpoint(name, ("vilt", "vit"))
    if source.config.model_type == "vit":
        return join_text_encoder(source, text_encoder)
    if text_encoder is not None:
        raise ValueError(f"{name} reads text itself: `--text_encoder` is for a ViT, which does not.")
    return source


def read_checkpoint(name: str, model_types: tuple[str, ...]) -> Source:
    """
    Read a checkpoint of Transformers, from a folder or by its id.

    Args:
        name (`str`):
            Folder or id.
        model_types (`tuple[str, ...]`):
            What it may be, of `KINDS`.

    Raises:
        ValueError: if it is something else, incomplete or damaged.
    """
    config = read_config(name)
    if config.model_type not in model_types:
        hint = " With `--reverse` it is read." if config.model_type == "scanformer" else ""
        raise ValueError(
            f"{name} is a checkpoint of model type {config.model_type!r}, but expected is {' or '.join(model_types)}.{hint}"
        )
    if config.model_type in ("vilt", "vit"):
        check_image_sizes(name, config)
    source = Source(name, KINDS[config.model_type], config)
    add_weights(source, PREFIXES[config.model_type])
    source.tokenizer, source.pixel_settings = read_tokenizer(name), read_pixel_settings(name)
    return source


def join_text_encoder(source: Source, text_encoder: str | None) -> Source:
    """
    Put BERT's embeddings in front of a ViT, which is what ViLT itself was started from. A ViT's tensors have the names of
    ViLT's already.
    """
    name, vit = source.name, source.config
    if text_encoder is None:
        raise ValueError(f"{name} is a ViT, which reads no text: add `--text_encoder` with a BERT of equal width.")
    text = read_checkpoint(text_encoder, ("bert",))
    bert = text.config
    if bert.hidden_size != vit.hidden_size:
        raise ValueError(
            f"The text encoder {text_encoder} has width {bert.hidden_size}, but {name} has width {vit.hidden_size}. Choose a "
            "pair of equal width."
        )
    sizes = {key: getattr(vit, key) for key in SIZES_OF_VIT} | {key: getattr(bert, key) for key in SIZES_OF_BERT}
    pair = Source(
        f"{name} and {text_encoder}",
        "ViT behind the embeddings of a BERT",
        ViltConfig(**sizes),
        has_modalities=False,
        pixel_settings=source.pixel_settings,
        tokenizer=text.tokenizer,
        notes=["Neither encoder knows modality types: they start at zero."],
    )
    for key, tensor in source.tensors.items():
        pair.add(key, f"{name}: {source.origins[key]}", tensor)
    for key, tensor in text.tensors.items():
        origin = f"{text_encoder}: {text.origins[key]}"
        renamed = rename_bert(key)
        # BERT's layers have the names of ViT's, whose place they must not take
        pair.add(renamed if renamed.startswith("embeddings.text_embeddings.") else origin, origin, tensor)
    return pair


def read_original(name: str) -> Source:
    """
    Read a checkpoint file of ViLT's authors: a state dict, or a training checkpoint that holds one. Nothing in it is
    executed.
    """
    if Path(name).suffix == ".safetensors":
        raise ValueError(f"{name} is one file of a Transformers checkpoint. Give the folder that it lies in.")
    checkpoint = load_pickle(Path(name))
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{name} holds no state dict. Expected a checkpoint of ViLT's original repository.")
    source = Source(name, "ViLT of the original repository", ViltConfig())
    for origin, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            source.notes.append(f"{origin} in the state dict is no tensor: unused.")
            continue
        names = rename_original(origin)
        source.shapes[origin] = tuple(tensor.shape)
        rows = len(tensor) // len(names) if tensor.ndim else 0
        for part, renamed in enumerate(names):
            whole = len(names) == 1
            source.add(renamed, origin, tensor if whole else tensor[part * rows : (part + 1) * rows])
            if not whole:
                source.parts[renamed] = f"[{part * rows}:{(part + 1) * rows}]"
    source.config = infer_config(source, checkpoint.get("hyper_parameters"))
    # as the repository's own transforms: mean and deviation 0.5, bicubic
    source.pixel_settings = {"resample": int(PILImageResampling.BICUBIC)}
    return source


def infer_config(source: Source, hyper_parameters) -> ViltConfig:
    """Sizes of an original ViLT, from the shapes of its tensors."""
    word_embeddings = "embeddings.text_embeddings.word_embeddings.weight"
    mlp = "encoder.layer.0.intermediate.dense.weight"
    needed = (word_embeddings, TEXT_POSITIONS, SEGMENTS, CLS_TOKEN, PATCH_PROJECTION, PATCH_POSITIONS, MODALITIES, mlp)
    missing = [name for name in needed if name not in source.tensors]
    if missing:
        raise ValueError(
            f"{source.name} is no ViLT of the original repository: it lacks what becomes {', '.join(missing)}."
        )
    shapes = {name: tuple(source.tensors[name].shape) for name in needed}
    grid = math.isqrt(max(math.prod(shapes[PATCH_POSITIONS][:-1]) - 1, 0))
    expected_ndims = {PATCH_PROJECTION: 4, PATCH_POSITIONS: 3, CLS_TOKEN: 3}
    for name, shape in shapes.items():
        if len(shape) != expected_ndims.get(name, 2):
            raise ValueError(f"{source.origins[name]} in {source.name} has shape {shape}: that is no ViLT.")

    hidden_size = shapes[word_embeddings][1]
    settings = hyper_parameters.get("config") if isinstance(hyper_parameters, dict) else None
    heads = settings.get("num_heads") if isinstance(settings, dict) else None
    if heads is None:
        if hidden_size % HEAD_SIZE:
            raise ValueError(
                f"{source.name} does not say how many attention heads its layers of width {hidden_size} have. Save it again "
                "with 'hyper_parameters': {'config': {'num_heads': ...}} beside the state dict."
            )
        heads = hidden_size // HEAD_SIZE
        source.notes.append(f"The file does not say how many attention heads there are: {heads}, of {HEAD_SIZE} each.")
    layers = {int(name.split(".")[2]) for name in source.tensors if name.startswith("encoder.layer.")}
    patch_size = shapes[PATCH_PROJECTION][-1]
    # layer norms keep the epsilon of `ViltConfig`, as they did when Transformers took these checkpoints in
    return ViltConfig(
        vocab_size=shapes[word_embeddings][0],
        type_vocab_size=shapes[SEGMENTS][0],
        modality_type_vocab_size=shapes[MODALITIES][0],
        max_position_embeddings=shapes[TEXT_POSITIONS][0],
        hidden_size=hidden_size,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=heads,
        intermediate_size=shapes[mlp][0],
        image_size=grid * patch_size,
        patch_size=patch_size,
        qkv_bias="encoder.layer.0.attention.attention.query.bias" in source.tensors,
    )


def read_config(name: str):
    """The configuration in a folder or of an id."""
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"There is no config.json in {name}. Give the folder of a Transformers checkpoint, or a .ckpt file."
        )
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # damaged configurations fail in many ways
        if is_folder:
            raise ValueError(f"Cannot read {Path(name) / 'config.json'}: {error}") from error
        raise ValueError(
            f"{name} is neither a folder or file here nor an id that could be fetched: {error}"
        ) from error


def check_image_sizes(name: str, config):
    """Only square patches of RGB pictures and a square grid of positions can be mapped."""
    if config.num_channels != 3 or not isinstance(config.patch_size, int) or not isinstance(config.image_size, int):
        raise ValueError(
            f"{name} reads {config.num_channels} channels, images of {config.image_size} and patches of "
            f"{config.patch_size}. ScanFormer reads 3 channels, square patches and a square grid of positions."
        )


def add_weights(source: Source, prefix: str):
    """Read all weight files of a checkpoint into the source. Names lose the prefix that a model with a head gives them."""
    found = next(filter(None, (find_file(source.name, file) for file in WEIGHTS)), None)
    if found is None:
        raise ValueError(f"{source.name} has a config.json but no weights: expected one of {', '.join(WEIGHTS)}.")
    files = [found]
    if found.suffix == ".json":
        try:
            names = sorted(set(json.loads(found.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{found} is damaged: it lists no weight files. Get the file again.") from error
        files = [find_file(source.name, file) for file in names]
        missing = [file for file, path in zip(names, files) if path is None]
        if missing:
            raise ValueError(f"{found} lists {', '.join(missing)}, which {source.name} lacks. Get the missing files.")
    for file in files:
        for origin, tensor in load_weights(file).items():
            source.add(origin.removeprefix(prefix), origin, tensor)


def find_file(name: str, file: str) -> Path | None:
    """A file of a folder or of an id on the Hub."""
    try:
        return Path(cached_file(name, file))
    except OSError:
        return None


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        state = load_pickle(file)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError(f"{file} holds no state dict of tensors only.")
        return state
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is damaged or incomplete ({file.stat().st_size} bytes): {error}. Get the file again."
        ) from error


class Mentioned:
    """Stands in for the classes that a training checkpoint mentions beside its weights."""


def load_pickle(file: Path):
    """Load a file of `torch.save` as data: tensors and plain Python values."""
    if not file.is_file():
        raise ValueError(f"There is no file {file}.")
    try:
        stand_ins = []
        if zipfile.is_zipfile(file):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            stand_ins = [(Mentioned, name) for name in unknown if name.split(".")[0] in TRAINING_LIBRARIES]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files fail in many ways
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), type(error).__name__)
        raise ValueError(
            f"{file} was not loaded and nothing in it was executed: it is damaged, or holds more than tensors and plain values "
            f"({reason}). Get it again, or, if you trust it, save its state dict alone where it was made."
        ) from error


def read_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    # without files `from_pretrained` would make a tokenizer that knows no words
    if not any(find_file(name, file) for file in TOKENIZERS):
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"Cannot read the tokenizer in {name}: {error}") from error


def read_pixel_settings(name: str) -> dict:
    if not any(find_file(name, file) for file in PIXEL_SETTINGS_FILES):
        return {}
    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the settings of the image processor in {name}: {error}") from error
    return {key: settings[key] for key in PIXEL_SETTINGS if settings.get(key) is not None}
