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
"""What both training scripts ask for: a model, data, and which part of the model to train."""

from dataclasses import dataclass, field
from typing import Literal

from scenes import LEVELS

from .augmentation import AUGMENTATIONS
from .checks import DataError


@dataclass(kw_only=True)
class ColumnArguments:
    """What a data set calls its columns, and the form of its boxes."""

    image_column: str = field(default="image", metadata={"help": "What the data set calls its pictures."})
    expression_column: str = field(default="expression", metadata={"help": "What it calls its expressions."})
    bbox_column: str = field(default="bbox", metadata={"help": "What it calls its boxes."})
    bbox_format: Literal["xyxy", "xywh"] = field(
        default="xyxy", metadata={"help": "(x0, y0, x1, y1) or, as in COCO, (x0, y0, width, height); in pixels."}
    )

    @property
    def columns(self) -> dict[str, str]:
        return {"image": self.image_column, "expression": self.expression_column, "bbox": self.bbox_column}


@dataclass(kw_only=True)
class GroundingArguments(ColumnArguments):
    model_name_or_path: str = field(
        metadata={"help": "Model or adapter to start from: a folder or an id on the Hub."},
    )
    config_overrides: str = field(
        default="", metadata={"help": "Changes to its configuration: name=value, separated by commas."}
    )
    dataset: str = field(
        default="scenes", metadata={"help": "'scenes', a folder of parquet files or of pictures, or a Hub id."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration, where a data set has several."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the data while training, without copying it first."}
    )
    dataset_level: str = field(
        default="standard",
        metadata={"help": f"Level of Scenes: {', '.join(LEVELS)}; several joined by + take turns."},
    )
    expressions_per_scene: int = field(
        default=1, metadata={"help": "Samples of Scenes in a row that are about one picture: they tell words apart."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on; empty for none."})
    train_val_split: float | None = field(
        default=None,
        metadata={
            "help": "Instead of a validation split, hold out this share of the training pictures, the same by every seed."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many samples only."})
    max_eval_samples: int = field(default=1000, metadata={"help": "Evaluate on so many samples."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Unusable samples: 'stop', or 'skip' and warn while a batch has others."}
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Resolution in pixels, if not the processor's."})
    augment: list[str] = field(
        default_factory=list, metadata={"help": f"Random changes of the pictures: {', '.join(AUGMENTATIONS)}."}
    )
    train: Literal["full", "heads", "lora"] | None = field(
        default=None,
        metadata={"help": "Train the whole model (default), its heads, or an adapter (default with --lora_r)."},
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of the adapter; 8 if not given."})
    dora: bool = field(default=False, metadata={"help": "Train a DoRA adapter: magnitudes apart from directions."})
    rslora: bool = field(default=False, metadata={"help": "Scale the adapter by 1 / sqrt(rank)."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Train an adapter of the model in 4 bits (QLoRA), by bitsandbytes."}
    )
    selection_warmup_steps: int = field(default=0, metadata={"help": "Steps at the start that read every patch."})
    selection_anneal_steps: int = field(
        default=0, metadata={"help": "Steps after that over which the selection threshold rises to the model's."}
    )
    selection_threshold: float | None = field(default=None, metadata={"help": "Threshold, if not the model's."})
    layerwise_lr_decay: float = field(
        default=1.0, metadata={"help": "A layer learns at this multiple of the rate of the layer after it."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or a flash kernel."})

    def __post_init__(self):
        if self.lora_r is not None or self.dora or self.rslora or self.load_in_4bit:
            if self.train not in (None, "lora"):
                raise DataError(
                    "--lora_r, --dora, --rslora and --load_in_4bit make an adapter: they do not go with --train "
                    f"{self.train}."
                )
            self.train = "lora"
        for name in ("max_train_samples", "max_eval_samples", "expressions_per_scene"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise DataError(f"--{name} is at least 1, got {getattr(self, name)}.")
        for name in ("selection_warmup_steps", "selection_anneal_steps"):
            if getattr(self, name) < 0:
                raise DataError(f"--{name} is at least 0, got {getattr(self, name)}.")
        if self.lora_r is not None and self.lora_r < 1:
            raise DataError(f"--lora_r is a rank, at least 1, got {self.lora_r}.")
        unknown = sorted(set(self.augment) - set(AUGMENTATIONS))
        if unknown:
            raise DataError(f"There is no augmentation {unknown}; known are {list(AUGMENTATIONS)}.")
        if not 0.0 < self.layerwise_lr_decay <= 1.0:
            raise DataError(f"--layerwise_lr_decay lies above 0 and at most at 1, got {self.layerwise_lr_decay}.")
        if self.streaming and self.dataset == "scenes":
            raise DataError("Scenes are made while training anyway: leave out --streaming.")
        if self.streaming and self.train_val_split is not None:
            raise DataError("Pictures of a stream cannot be held out: give --validation_split instead.")

    @property
    def evaluates(self) -> bool:
        return bool(self.validation_split) or self.train_val_split is not None
