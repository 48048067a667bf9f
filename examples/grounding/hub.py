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
"""What a training run publishes: its model or adapter, and a card that says where it comes from."""

import shlex
from dataclasses import MISSING, fields
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.utils import httpx

from .checkpoints import LOCK_NAME, LOG_NAME
from .checks import DataError


CARD = """---
{metadata}
---

# {title}

A [ScanFormer]({paper}) for visual grounding, fine-tuned from `{base}` on `{dataset}`.

```python
import modeling_scanformer  # registers ScanFormer with Transformers
from transformers import pipeline

pipe = pipeline("visual-grounding", model="{repo_id}"{processor})
pipe("picture.jpg", text="the red cup on the left")
```

{results}## Training

```bash
{command}
```
"""
PAPER = "https://arxiv.org/abs/2406.18048"

# Where a run keeps its files and whom it tells is nobody else's business.
OWN_AFFAIRS = (
    *("output_dir", "resume_from_checkpoint", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)
# What lies in a model's folder besides the model: checkpoints, the best model, the log and the lock.
OWN_FILES = ["*/**", LOG_NAME, LOCK_NAME]


def open_repository(repo_id: str, private: bool) -> str:
    """
    Make sure, before any work is done, that there is a repository to push to.

    Returns:
        `str`: its full name.

    Raises:
        DataError: if nobody is logged in, or the Hub cannot be reached or refuses.
    """
    if get_token() is None:
        raise DataError("To push to the Hub, log in with `hf auth login` first; or leave out --push_to_hub.")
    try:
        return HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise DataError(f"Cannot push to {repo_id!r}: {error}") from error


def public_name(name: str) -> str:
    """An id on the Hub as it is, and of a path only its end: the rest tells of a machine that nobody else has."""
    return Path(name).resolve().name if Path(name).exists() else name


def describe_command(args, num_processes: int) -> str:
    """
    The command that trains such a model anywhere: all settings that are not the defaults, wherever they came from.

    Args:
        args (dataclass of settings):
            Of the run.
        num_processes (`int`):
            On how many it ran: each had its own batches.
    """
    launcher = ["python"] if num_processes == 1 else ["accelerate", "launch", "--num_processes", str(num_processes)]
    command = [*launcher, "examples/run_visual_grounding.py"]
    for setting in fields(args):
        value = getattr(args, setting.name)
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        if setting.name in OWN_AFFAIRS or value == default:
            continue
        value = public_name(value) if setting.name in ("model_name_or_path", "dataset") else value
        values = [] if value is True else value if isinstance(value, list) else [value]
        command += [f"--{setting.name}", *map(str, values)]
    return shlex.join([*command, "--output_dir", "outputs"])


def write_card(folder: Path, repo_id: str, args, results: dict, num_processes: int):
    """
    Write a README.md beside a model.

    Args:
        folder (`Path`):
            Of the model or adapter.
        repo_id (`str`):
            Where it will be found.
        args (dataclass of settings):
            Of the run that trained it.
        results (`dict`):
            Of the evaluation of these very weights; empty if there was none.
        num_processes (`int`):
            On how many it was trained.
    """
    base = args.model_name_or_path
    is_adapter = (folder / "adapter_config.json").is_file()
    on_hub = not Path(base).exists()
    metadata = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        base_model=base if on_hub else None,
        pipeline_tag="zero-shot-object-detection",
        tags=["visual-grounding", "scanformer", *(["lora"] if is_adapter else [])],
    )
    table = ""
    if results:
        lines = [f"| {name} | {results[name]:.3f} |" for name in ("acc@0.5", "acc@0.5:0.95", "mean_iou")]
        head = (
            f"On {results['num_samples']} expressions of the validation split:\n\n| metric | value |\n| --- | --- |\n"
        )
        table = head + "\n".join(lines) + "\n\n"
    content = CARD.format(
        metadata=metadata.to_yaml(),
        title=repo_id.split("/")[-1],
        paper=PAPER,
        base=public_name(base),
        dataset=public_name(args.dataset),
        repo_id=repo_id,
        processor=f', processor="{repo_id}"' if is_adapter else "",
        results=table,
        command=describe_command(args, num_processes),
    )
    ModelCard(content).save(folder / "README.md")


def push(folder: Path, repo_id: str) -> str:
    """
    Push a model's folder in one commit, without the checkpoints and the log that may lie in it.

    Returns:
        `str`: address of the commit.

    Raises:
        DataError: if it fails. The folder stays, to be pushed again.
    """
    try:
        commit = HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload a fine-tuned ScanFormer",
            ignore_patterns=OWN_FILES,
        )
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise DataError(
            f"The model is saved in {folder}, but pushing it to {repo_id} failed: {error}. Push it again with "
            f"`{shlex.join(['hf', 'upload', repo_id, str(folder), *(w for own in OWN_FILES for w in ('--exclude', own))])}`."
        ) from error
    return commit.commit_url
