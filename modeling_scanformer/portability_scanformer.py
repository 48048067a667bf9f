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
Repositories that bring their own code, for those who have Transformers but not this package.

Where the package is imported, a save is lean, and [`save_portable`] writes a repository with its code. Where these
files themselves run as a repository's code, every save brings them along.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files


# Whether these files were loaded from a repository, with `trust_remote_code=True`.
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")


def code_entries() -> dict[str, Any]:
    """
    The entries of `config.json` by which Transformers finds the classes in the files beside it.

    The imports also make Transformers bring along all files, whichever it begins with.
    """
    from .configuration_scanformer import ScanFormerConfig
    from .modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerModel
    from .pipeline_scanformer import VisualGroundingPipeline

    return {
        "auto_map": {
            "AutoConfig": _reference(ScanFormerConfig),
            "AutoModel": _reference(ScanFormerModel),
            "AutoModelForZeroShotObjectDetection": _reference(ScanFormerForVisualGrounding),
        },
        "custom_pipelines": {
            "visual-grounding": {
                "impl": _reference(VisualGroundingPipeline),
                "pt": ["AutoModelForZeroShotObjectDetection"],
                "type": "multimodal",
            }
        },
    }


def processor_code_entries() -> dict[str, Any]:
    """The entries of `processor_config.json` by which Transformers finds the classes, see [`code_entries`]."""
    from .image_processing_scanformer import ScanFormerImageProcessor
    from .processing_scanformer import ScanFormerProcessor

    return {
        "auto_map": {
            "AutoImageProcessor": _reference(ScanFormerImageProcessor),
            "AutoProcessor": _reference(ScanFormerProcessor),
        }
    }


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def renew_code_entries(config_dict: dict[str, Any], entries: Callable[[], dict[str, Any]] = dict) -> dict[str, Any]:
    """
    A configuration with the given entries where this is a repository's code, and with none where the package is
    installed: its classes need no code from a repository, and save none.
    """
    config_dict = {name: value for name, value in config_dict.items() if name not in ("auto_map", "custom_pipelines")}
    return {**config_dict, **entries()} if IS_REMOTE_CODE else config_dict


def save_portable(model, processor, save_directory: str | os.PathLike, **kwargs):
    """
    Save a model and its processor in a folder that also loads where this package is not installed, with
    `trust_remote_code=True`: weights, configurations, tokenizer, and the files of this package.

    Args:
        model ([`ScanFormerPreTrainedModel`]):
            The model.
        processor ([`ScanFormerProcessor`]):
            Its processor.
        save_directory (`str` or `os.PathLike`):
            Folder to write to, made if needed.
        **kwargs:
            Passed to the `save_pretrained` of both, but for `push_to_hub`.

    Raises:
        ValueError: with `push_to_hub`, which would push before the code is there; and for a model with an adapter, of
            which a save holds the adapter only.

    Example:

    ```python
    >>> save_portable(model, processor, "my-model")
    >>> # elsewhere, with nothing but transformers, torch and pillow
    >>> pipeline("visual-grounding", model="my-model", trust_remote_code=True)
    ```
    """
    if kwargs.get("push_to_hub"):
        raise ValueError(
            "Save first, and push the folder then: `HfApi().upload_folder`, or `python -m hub_cards.publish`."
        )
    if getattr(model, "peft_config", None):
        raise ValueError(
            "The model carries an adapter, and a save would hold nothing else. Save that by `model.save_pretrained`, and merge "
            "it into its base for a repository of its own: `PeftModel.from_pretrained(base, adapter).merge_and_unload()`."
        )
    model.save_pretrained(save_directory, **kwargs)
    processor.save_pretrained(save_directory, **kwargs)
    for file in code_files():
        shutil.copy(file, save_directory)
    _add_entries(Path(save_directory) / "config.json", code_entries())
    _add_entries(Path(save_directory) / "processor_config.json", processor_code_entries(), "image_processor")


def code_files() -> list[Path]:
    """The files of this package that a repository brings along: whatever its classes import."""
    start = Path(__file__)
    return sorted({start, *map(Path, get_relative_import_files(start))})


def _add_entries(file: Path, entries: dict[str, Any], part: str | None = None):
    config = json.loads(file.read_text(encoding="utf-8"))
    config.update(entries)
    if part is not None:
        config[part].update(entries)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["save_portable"]
