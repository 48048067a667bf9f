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
"""Checks of a checkpoint, and of a folder that is about to become a public repository."""

import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor


PICKLE_SUFFIXES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
# How the files of Trainer and Accelerate begin that lie beside a checkpoint and are never pushed.
TRAINING_STATE = ("optimizer", "random_states", "rng_state", "scaler", "scheduler", "training_args")
# Access tokens of Hugging Face, GitHub, OpenAI and AWS, and private keys.
SECRET = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16})\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# In pixels of the example: the pipeline rounds.
BOX_TOLERANCE = 1
LOAD_SCRIPT = Path(__file__).with_name("load_repository.py")


class PublishError(ValueError):
    """What keeps a repository from being published; the message says what to do."""


def load_checkpoint(folder: Path) -> tuple[ScanFormerForVisualGrounding, ScanFormerProcessor]:
    """
    Load a checkpoint that may be published.

    Args:
        folder (`Path`):
            Folder of a ScanFormer and its processor.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        PublishError: if the folder holds no ScanFormer, holds pickles where safetensors should be, or weights that do not
            fit the configuration.
    """
    check_is_scanformer(folder)
    pickles = [file.name for file in find_pickles(folder.glob("*")) if not file.name.startswith(TRAINING_STATE)]
    if pickles:
        raise PublishError(
            f"{folder} holds pickles, which can run code when they are read: {pickles}. Save the model with "
            "`save_pretrained`, which writes model.safetensors, and delete them."
        )
    try:
        model, info = ScanFormerForVisualGrounding.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        processor = ScanFormerProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise PublishError(f"The checkpoint in {folder} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise PublishError(
                f"The weights in {folder} do not fit its config.json: {kind.replace('_', ' ')} {_first(info[kind])}."
            )
    return model.eval(), processor


def check_is_scanformer(folder: Path):
    config = folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not config.is_file():
        raise PublishError(
            f"{folder} holds an adapter. Push it with the `push_to_hub` of its PeftModel, or merge it into its base "
            "(`merge_and_unload`), save that and publish it."
        )
    if not config.is_file():
        raise PublishError(f"{folder} holds no checkpoint: there is no {config}.")
    model_type = read_model_type(config)
    if model_type != "scanformer":
        raise PublishError(f"{folder} holds no ScanFormer: the model type in its config.json is {model_type!r}.")


def read_model_type(config: Path) -> str | None:
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{config} is not JSON: {error}.") from error
    return values.get("model_type") if isinstance(values, dict) else None


def check_files(folder: Path):
    """
    Look through everything that would be pushed.

    Raises:
        PublishError: if a file is a pickle or holds what looks like a token or a key. The secret itself is not named.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    pickles = [str(file.relative_to(folder)) for file in find_pickles(files)]
    if pickles:
        raise PublishError(f"Pickles are not published, they can run code when they are read: {pickles}.")
    token = get_token()
    for file in files:
        if line := _find_secret(file, token):
            raise PublishError(
                f"{file.relative_to(folder)}, line {line}, holds what looks like an access token or a private key. Remove "
                "it, and revoke it if anyone else has seen the file."
            )


def find_pickles(files) -> list[Path]:
    return sorted(file for file in files if file.suffix.lower() in PICKLE_SUFFIXES)


def _find_secret(file: Path, token: str | None) -> int | None:
    """The line of the first secret in a file."""
    if file.stat().st_size == 0:
        return None
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = SECRET.search(content)
        start = match.start() if match else content.find(token.encode()) if token else -1
        return None if start < 0 else content[:start].count(b"\n") + 1


def check_loads_without_package(folder: Path, image: Path, text: str, expected: dict[str, Any]):
    """
    Load a repository as a user does who has Transformers but not this package: in a fresh process that cannot import it,
    without network, token or cached code.

    Args:
        folder (`Path`):
            The repository.
        image, text (`Path`, `str`):
            What to ground.
        expected (`dict`):
            The box that the pipeline gave for them here.

    Raises:
        PublishError: if it does not load there, or gives another box.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
        environment |= {"HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
        # without HF_TOKEN the client would read the token that `hf auth login` keeps
        environment["HF_TOKEN_PATH"] = f"{home}/token"
        command = [sys.executable, "-I", LOAD_SCRIPT, folder.resolve(), image.resolve(), text]
        process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    if process.returncode != 0:
        raise PublishError(
            "The repository does not load where only Transformers is installed:\n" + process.stderr.strip()[-2000:]
        )
    for way, box in json.loads(process.stdout).items():
        if any(abs(box[side] - expected[side]) > BOX_TOLERANCE for side in expected):
            raise PublishError(
                f"Loaded where only Transformers is installed, {way} gives the box {box} for {text!r} in {image.name}; here "
                f"the model gives {expected}."
            )


def _first(keys) -> str:
    # a mismatched key comes with both shapes
    keys = sorted(key if isinstance(key, str) else key[0] for key in keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
