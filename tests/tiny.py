"""A tiny model with lively weights, and ragged inputs for it."""

import json

import numpy as np
import torch
from PIL import Image
from scenes.create_model import create_tokenizer

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerImageProcessor,
    ScanFormerProcessor,
    image_pyramid,
    pad_pyramids,
)
from modeling_scanformer.adapters_scanformer import lora_config


def tiny_config(**options) -> ScanFormerConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "selection_layer": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 12,
        "patch_size": 2,
        "num_scales": 3,
        "position_grid_size": 5,
    }
    return ScanFormerConfig(**{**sizes, **options})


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> ScanFormerForVisualGrounding:
    """In evaluation mode. The weights are large enough that selection, boxes and gradients depend on everything."""
    torch.manual_seed(seed)
    model = ScanFormerForVisualGrounding(tiny_config(**options))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ("embeddings" not in name or "convolutions" in name):
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    if model.config.num_scales > 1:
        if model.config.use_constant_token:
            torch.nn.init.normal_(model.model.constant_token.weight)
        torch.nn.init.normal_(model.model.selection_head.classifier.weight, std=0.3)
        torch.nn.init.zeros_(model.model.selection_head.classifier.bias)
    return model.to(dtype).eval()


def tiny_inputs(
    config: ScanFormerConfig, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Three pictures of different shapes with expressions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    unit = config.patch_size * 2 ** (config.num_scales - 1)
    pyramids = []
    for rows, columns in ((2, 3), (3, 1), (1, 1)):
        pixels = torch.randn(1, 3, rows * unit, columns * unit, generator=generator, dtype=dtype)
        pyramids.append(image_pyramid(pixels, config.patch_size, config.num_scales))
    input_ids = torch.randint(1, config.vocab_size, (3, 7), generator=generator)
    attention_mask = (torch.arange(7) < torch.tensor([[4], [7], [2]])).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask, **pad_pyramids(pyramids)}


def tiny_labels(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([[0.5, 0.4, 0.3, 0.4], [0.2, 0.7, 0.2, 0.3], [0.6, 0.6, 0.7, 0.5]], dtype=dtype)


def take_row(inputs: dict[str, torch.Tensor], row: int, num_scales: int) -> dict[str, torch.Tensor]:
    """One sample of a batch, without the padding that the others forced on it."""
    mask = inputs["attention_mask"][row].bool()
    single = {name: inputs[name][row : row + 1, mask] for name in ("input_ids", "attention_mask")}
    real = inputs["pixel_attention_mask"][row].bool()
    single["pixel_values"] = inputs["pixel_values"][row : row + 1, real]
    single["pixel_attention_mask"] = inputs["pixel_attention_mask"][row : row + 1, real]
    single["spatial_shapes"] = inputs["spatial_shapes"][row : row + 1]
    return single


def dense_logits(outputs, scale: int, row: int, num_patches: int) -> torch.Tensor:
    """Selection logits of a sample in the order of its patches; NaN where a patch was not read."""
    indices = outputs.patch_indices[scale][row]
    logits = outputs.selection_logits[scale][row]
    dense = torch.full((num_patches, 4), torch.nan, dtype=logits.dtype)
    dense[indices[indices >= 0]] = logits[indices >= 0]
    return dense


# of the configuration: what not every model has
ALL_PARTS = {"num_convolution_layers": 1, "refine_boxes": True}


def save_tiny_checkpoint(folder):
    """A tiny model with its processor, for whatever loads from a folder."""
    tokenizer = create_tokenizer(model_max_length=12)
    image_processor = ScanFormerImageProcessor(size={"longest_edge": 24}, patch_size=2, num_scales=3)
    tiny_model(dtype=torch.float32, vocab_size=len(tokenizer), **ALL_PARTS).save_pretrained(folder)
    ScanFormerProcessor(image_processor, tokenizer).save_pretrained(folder)


def save_tiny_adapter(folder, base, **options):
    """An untrained adapter of the model in `base`."""
    model = tiny_model(dtype=torch.float32, **ALL_PARTS, **options)
    model.add_adapter(lora_config())
    model.save_pretrained(folder)
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": str(base)}))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))
