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
"""What the Hub keeps: blobs by their digest, and repositories as chains of commits, none of which ever changes."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
# Larger ones go through LFS, and so do binary ones.
REGULAR_SIZE = 10_000_000


class HubError(Exception):
    """
    A request that the Hub refuses.

    Args:
        status (`int`): HTTP status.
        message (`str`): What the client is told.
        code (`str`, *optional*): Its X-Error-Code, by which the client chooses the exception.
        commit (`str`, *optional*): Commit in which the thing was looked for.
    """

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.commit = commit


@dataclass(frozen=True)
class File:
    """A file of a commit: the digest of its content, its size, its id in git, and whether it went through LFS."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class Commit:
    """A commit: its id, its parent's, the title, the time, and the files by path."""

    id: str
    parent: str | None
    title: str
    date: str
    files: dict[str, File]


class BlobStore:
    """Contents by SHA-256, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256: str) -> bool:
        return (self.folder / sha256).is_file()

    def write(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        return sha256

    def read(self, sha256: str) -> bytes:
        return (self.folder / sha256).read_bytes()

    def add_regular(self, content: bytes) -> File:
        """Keep a file that is committed as it is."""
        return File(self.write(content), len(content), _git_oid(content), lfs=False)

    def find_lfs(self, sha256: str) -> File:
        """The file behind an LFS pointer, if its content has been uploaded."""
        if sha256 not in self:
            raise HubError(400, f"LFS object {sha256} has not been uploaded")
        file = File(sha256, (self.folder / sha256).stat().st_size, "", lfs=True)
        return File(sha256, file.size, _git_oid(file.pointer()), lfs=True)


class Repository:
    """
    A repository, born with a commit of its own as on the Hub.

    Args:
        blobs ([`BlobStore`]): Where the contents are.
        private (`bool`): Whether only its members see it.
    """

    def __init__(self, blobs: BlobStore, private: bool):
        self.private = private
        self.gated = False
        self._commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._record("main", "initial commit", {".gitattributes": blobs.add_regular(GIT_ATTRIBUTES)}, None)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit's id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self._commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self._commits[oid]

    def find(self, revision: str, path: str) -> tuple[Commit, File]:
        """A file and the commit that holds it."""
        commit = self.resolve(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit=commit.id)
        return commit, commit.files[path]

    def history(self, revision: str) -> list[Commit]:
        """A commit and its ancestors, oldest first."""
        commits, oid = [], self.resolve(revision).id
        while oid is not None:
            commits.append(self._commits[oid])
            oid = commits[-1].parent
        return commits[::-1]

    def commit(self, branch: str, title: str, files: dict[str, File], parent: str | None) -> Commit:
        """
        Put a branch's next commit on it.

        Args:
            branch (`str`): Its name.
            title (`str`): First line of the message.
            files (`dict[str, File]`): All files of the new commit.
            parent (`str`, *optional*): The commit that the branch must be at, if the client insists on one.
        """
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent not in (None, self.branches[branch]):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        return self._record(branch, title, files, self.branches[branch])

    def _record(self, branch: str, title: str, files: dict[str, File], parent: str | None) -> Commit:
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        content = [parent, title, date, sorted((path, file.oid) for path, file in files.items())]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self._commits[oid] = Commit(oid, parent, title, date, dict(files))
        # The one step that others can see.
        self.branches[branch] = oid
        return self._commits[oid]


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(sample: bytes, size: int) -> bool:
    """Whether the Hub wants a file by LFS."""
    return b"\0" in sample or size > REGULAR_SIZE
