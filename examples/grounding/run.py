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
"""What evaluation and batch jobs share: a model that is to be run, and how."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import PIL.Image
from huggingface_hub.errors import StrictDataclassError
from scenes import LEVELS
from transformers.utils import PROCESSOR_NAME, cached_file, find_adapter_config_file

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor

from .arguments import ColumnArguments
from .checkpoints import LAST_FILES
from .checks import DataError
from .data import GroundingDataset, check_boxes_in_pictures, load_grounding_dataset


# What is raised where a model cannot be loaded: a kernel or a file is missing or damaged, or weights do not fit.
LOAD_FAILURES = (ImportError, OSError, RuntimeError, StrictDataclassError, ValueError)


@dataclass(kw_only=True)
class RunArguments:
    model: str | None = field(default=None, metadata={"help": "Model to run: a folder or an id on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration, where a data set has several."})
    dataset_level: str = field(
        default="standard",
        metadata={"help": f"Level of Scenes: {', '.join(LEVELS)}."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of Scenes: another one gives fresh pictures of the split."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Rows to take from the start; all by default. Needed for Scenes."}
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Resolution in pixels, if not the processor's."})
    max_scales: int | None = field(default=None, metadata={"help": "Number of scales to read, if not all."})
    selection_threshold: float | None = field(
        default=None, metadata={"help": "Threshold, if not the model's; 0 reads every patch."}
    )
    token_budget: float | None = field(
        default=None, metadata={"help": "Share of the patches of all scales that a sample may read at most."}
    )
    early_exit: bool = field(
        default=False,
        metadata={"help": "Stop reading by the model's rule; examples/calibrate_early_exit.py makes one."},
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(default="no", metadata={"help": "Precision of products."})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or a flash kernel."})
    dataloader_num_workers: int = field(default=1, metadata={"help": "Processes that prepare batches."})

    @property
    def generation_options(self) -> dict[str, Any]:
        """The options of `generate` that were given."""
        given = {name: getattr(self, name) for name in ("max_scales", "selection_threshold", "token_budget")}
        given["early_exit"] = self.early_exit or None
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class MeasurementArguments(RunArguments, ColumnArguments):
    """Of scripts that hold a model against true boxes."""

    dataset: str = field(
        default="scenes", metadata={"help": "'scenes', a folder of parquet files or of pictures, or a Hub id."}
    )
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "What to do with unusable samples: 'stop', or 'skip' and count them."}
    )
    batch_size: int = field(default=50, metadata={"help": "Batch size of every process."})


def load_dataset(args: MeasurementArguments, split: str) -> GroundingDataset:
    """
    A split of the data set.

    Raises:
        DataError: if it cannot be read, or its rows make no sense.
    """
    dataset = load_grounding_dataset(
        args.dataset,
        split,
        config=args.dataset_config,
        seed=args.seed,
        num_samples=args.max_samples,
        level=args.dataset_level,
        on_error=args.on_error,
        columns=args.columns,
        bbox_format=args.bbox_format,
    )
    if args.dataset != "scenes":
        check_boxes_in_pictures(dataset, args.on_error)
    return dataset


def load_model(args: RunArguments) -> tuple[ScanFormerForVisualGrounding, ScanFormerProcessor]:
    if args.model is None:
        raise DataError("Give a --model: a folder or an id on the Hub.")
    for name, least in (("batch_size", 1), ("dataloader_num_workers", 0)):
        if getattr(args, name, least) < least:
            raise DataError(f"--{name} is at least {least}, got {getattr(args, name)}.")
    options = {} if args.attn_implementation is None else {"attn_implementation": args.attn_implementation}
    try:
        processor = load_processor(args.model, find_base(args.model) or args.model)
        model = ScanFormerForVisualGrounding.from_pretrained(args.model, **options)
    except LOAD_FAILURES as error:
        if any(Path(args.model, name).is_file() for name in LAST_FILES):
            raise DataError(f"Cannot load the model {args.model!r}: {error}") from error
        raise DataError(f"There is no model {args.model!r}. {list_models(Path(args.model))}") from error
    if args.longest_edge is not None:
        processor.image_processor.size = {"longest_edge": args.longest_edge}
    return model, processor


def find_base(name: str) -> str | None:
    """What an adapter says it was made for; `None` where `name` is no adapter."""
    file = find_adapter_config_file(name)
    if file is None:
        return None
    base = json.loads(Path(file).read_text()).get("base_model_name_or_path")
    if base is None:
        raise DataError(f"{file} does not name the adapter's base: write it there as base_model_name_or_path.")
    return base


def load_processor(*places: str) -> ScanFormerProcessor:
    """The processor of the first place that has one: an adapter may leave that to its base."""
    options = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
    options = {f"_raise_exceptions_for_{name}": value for name, value in options.items()}
    have_one = (place for place in places if cached_file(place, PROCESSOR_NAME, **options) is not None)
    return ScanFormerProcessor.from_pretrained(next(have_one, places[-1]))


def list_models(path: Path) -> str:
    """What can be had instead of a missing model."""
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    models = sorted(str(config.parent) for config in folder.glob("*/config.json"))
    if models:
        return f"In {folder} there are: {', '.join(models)}."
    return f"{folder.resolve()} holds no models, and the Hub has no such model or cannot be reached."


def try_out(model: ScanFormerForVisualGrounding, processor: ScanFormerProcessor, options: dict):
    """Let senseless options, and a processor that does not fit the model, fail before the work begins."""
    if len(processor.tokenizer) > model.config.vocab_size:
        raise DataError(
            f"The tokenizer knows {len(processor.tokenizer)} words, the model {model.config.vocab_size}: they are not of one "
            "checkpoint."
        )
    try:
        inputs = processor(images=PIL.Image.new("RGB", (64, 64)), text="anything", return_tensors="pt")
        model.generate(**inputs.to(model.device), **options)
    except (IndexError, RuntimeError, ValueError) as error:
        raise DataError(
            f"The model cannot be run like this, or the processor and the model do not fit together: {error}"
        ) from error
