"""Data for visual grounding: anything with the columns image, expression and bbox (xyxy, pixels)."""

from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from scenes import ScenesDataset

from modeling_scanformer import ScanFormerProcessor


COLUMNS = ("image", "expression", "bbox")


def load_grounding_dataset(
    name: str, split: str, *, seed: int = 0, num_samples: int | None = None, level: str = "standard"
) -> torch.utils.data.Dataset:
    """
    Load a data set of visual grounding.

    Args:
        name (`str`):
            `"scenes"` for the rendered benchmark, a folder of parquet files, or the id of a data set on the Hub.
        split (`str`):
            Name of the split; a folder without splits has only `"train"`.
        seed (`int`, *optional*, defaults to 0):
            Seed of Scenes.
        num_samples (`int`, *optional*):
            Number of samples to take from the start. Needed for Scenes, which has no end.
        level (`str`, *optional*, defaults to `"standard"`):
            Level of Scenes.

    Raises:
        ValueError: if the columns image, expression and bbox are not all there.
    """
    if name == "scenes":
        return ScenesDataset(split=split, seed=seed, num_samples=num_samples, level=level)
    if Path(name).is_dir():
        dataset = datasets.load_dataset("parquet", data_dir=name, split=split)
    else:
        dataset = datasets.load_dataset(name, split=split)
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set {name} lacks the columns {missing}; it has {dataset.column_names}. Rename its columns to "
            f"{list(COLUMNS)}, with boxes as (x0, y0, x1, y1) in pixels."
        )
    dataset = dataset.select_columns(COLUMNS)
    return dataset if num_samples is None else dataset.select(range(min(num_samples, len(dataset))))


@dataclass
class GroundingCollator:
    """Turns samples into model inputs with labels."""

    processor: ScanFormerProcessor

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        return self.processor(
            images=[sample["image"] for sample in samples],
            text=[sample["expression"] for sample in samples],
            boxes=[sample["bbox"] for sample in samples],
            return_tensors="pt",
        )
