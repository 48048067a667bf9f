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
"""The repository on the Hub: whether it may be written to, and the one commit that does it."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .checks import PublishError, read_model_type


# What a repository may hold that was only just created.
EMPTY = {".gitattributes", "README.md"}


def check_name(repo_id: str):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"--repo-id: {error}") from error
    if "/" not in repo_id:
        raise PublishError(f"--repo-id is the name with its owner, ORG/NAME, got {repo_id!r}.")


def check_remote(repo_id: str, private: bool):
    """
    Find out, before any work, whether a push can go through.

    Args:
        repo_id (`str`):
            Name of the repository on the Hub.
        private (`bool`):
            Whether it is to be private.

    Raises:
        PublishError: without a valid token, or if the name is taken by something that is no ScanFormer, or is public
            already where it should be private.
    """
    api = HfApi()
    if get_token() is None:
        raise PublishError("There is no access token. Log in with `hf auth login`, or set HF_TOKEN.")
    try:
        api.whoami()
        info = find_repository(api, repo_id)
        if info is None:
            return
        if private and not info.private:
            raise PublishError(
                f"{repo_id} exists and is public. Make it private in its settings, or leave out --private."
            )
        files = {file.rfilename for file in info.siblings}
        if files <= EMPTY:
            return
        if "config.json" not in files:
            raise PublishError(
                f"{repo_id} exists and holds something else: {sorted(files - EMPTY)[:5]}. Choose another name."
            )
        model_type = read_model_type(Path(api.hf_hub_download(repo_id, "config.json", revision=info.sha)))
    except OfflineModeIsEnabled as error:
        raise PublishError("HF_HUB_OFFLINE is set: unset it to push, or use --dry-run.") from error
    except HTTPError as error:
        raise PublishError(f"The Hub refuses, or cannot be reached: {_public(error)}") from error
    if model_type != "scanformer":
        raise PublishError(f"{repo_id} exists and holds a model of type {model_type!r}. Choose another name.")


def push(folder: Path, repo_id: str, private: bool, message: str, repo_type: str = "model") -> str:
    """
    Make a repository on the Hub equal to a folder, in one commit: until it is made the repository stays as it was, so an
    interrupted push can simply be repeated.

    Args:
        folder (`Path`):
            What to push.
        repo_id (`str`):
            Name of the repository. It is created where it does not exist.
        private (`bool`):
            Whether to create it private.
        message (`str`):
            Title of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.

    Returns:
        `str`: address of the commit.

    Raises:
        PublishError: if the push does not go through.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
        files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        operations = [CommitOperationAdd(path, file) for path, file in files.items()]
        # what an earlier version left behind would be loaded, too
        stale = {file.rfilename for file in info.siblings} - set(files) - {".gitattributes"}
        operations += [CommitOperationDelete(path) for path in sorted(stale)]
        # not `upload_folder`, which may cut a large folder into several commits
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=info.sha
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise PublishError(
            f"The push did not go through; {repo_id} holds all of it or nothing. Repeat the command. {_public(error)}"
        ) from error
    return commit.commit_url


def find_repository(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _public(error: Exception) -> str:
    """What an error says, without the queries of addresses: those of the Hub's storage carry signatures."""
    return re.sub(r"\?[^\s'\"]+=[^\s'\"]*", "", str(error))
