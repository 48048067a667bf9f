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
"""The real client of `huggingface_hub` against the tests' own Hub."""

import io

import httpx2
import pytest
from hub_server.routes import ROUTES
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


REPO = "org/name"
README = b"---\nlicense: apache-2.0\npipeline_tag: zero-shot-object-detection\ntags:\n- scanformer\n---\n# Card\n"
WEIGHTS = bytes(range(256)) * 2000


def add(path, content):
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


@pytest.fixture
def repository(hub, hub_client):
    """Id of a repository with a small and an LFS file in one commit."""
    hub_client.create_repo(REPO)
    files = [add("README.md", README), add("deep/model.safetensors", WEIGHTS)]
    hub_client.create_commit(REPO, files, commit_message="first")
    return REPO


def test_a_user_of_another_process_pushes_and_pulls(hub, tmp_path):
    """As users do: nothing but environment variables sends the client here."""
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "README.md").write_bytes(README)
    (tmp_path / "folder" / "deep" / "model.safetensors").write_bytes(WEIGHTS)
    hub.run_python(f"""
from pathlib import Path
from huggingface_hub import create_repo, snapshot_download, upload_folder, whoami

assert whoami()["name"] == "user" and whoami()["orgs"][0]["name"] == "org"
create_repo("org/name")
upload_folder(repo_id="org/name", folder_path={str(tmp_path / "folder")!r}, commit_message="all of it")
pulled = Path(snapshot_download("org/name"))
assert pulled.is_relative_to({str(tmp_path)!r}), pulled
for path in ("README.md", "deep/model.safetensors"):
    assert (pulled / path).read_bytes() == (Path({str(tmp_path / "folder")!r}) / path).read_bytes()
""")
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit", "all of it"]
    files = hub.files(REPO)
    assert (files["README.md"], files["deep/model.safetensors"]) == (README, WEIGHTS)


def test_create_repo(hub, hub_client):
    assert hub_client.create_repo(REPO, private=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="409"):
        hub_client.create_repo(REPO)
    assert hub_client.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert hub_client.create_repo("mine").repo_id == "user/mine"
    assert hub_client.create_repo(REPO, repo_type="dataset").repo_type == "dataset"
    with pytest.raises(HfHubHTTPError, match="403"):
        hub_client.create_repo("somebody/name")
    with pytest.raises(HfHubHTTPError, match="401"):
        hub_client.create_repo("org/other", token=False)
    assert hub_client.model_info(REPO).private
    # Strangers don't learn that it exists.
    with pytest.raises(RepositoryNotFoundError):
        hub_client.model_info(REPO, token=False)


def test_small_files_are_committed_and_large_ones_go_through_lfs(hub, hub_client, repository):
    info = {file.path: file for file in hub_client.list_repo_tree(repository, recursive=True)}
    assert set(info) == {".gitattributes", "README.md", "deep", "deep/model.safetensors"}
    assert info["README.md"].lfs is None and info["README.md"].size == len(README)
    assert info["deep/model.safetensors"].lfs.size == len(WEIGHTS)
    assert [entry.path for entry in hub_client.list_repo_tree(repository, "deep")] == ["deep/model.safetensors"]
    (readme, folder) = hub_client.get_paths_info(repository, ["README.md", "deep", "nothing"])
    assert (readme.path, folder.path) == ("README.md", "deep")
    assert hub.files(repository)["deep/model.safetensors"] == WEIGHTS
    assert hub.requests.count("lfs_upload") == hub.requests.count("lfs_verify") == 1
    # The client knows by their ids which files the Hub has already.
    before = hub.commits(repository)
    hub_client.create_commit(repository, [add("README.md", README), add("copy.bin", WEIGHTS)], commit_message="again")
    (commit,) = hub.commits(repository)[len(before) :]
    assert set(commit.files) - set(before[-1].files) == {"copy.bin"}
    assert hub.requests.count("lfs_upload") == 1


def test_info(hub_client, repository):
    info = hub_client.model_info(repository)
    assert info.pipeline_tag == "zero-shot-object-detection" and info.card_data.license == "apache-2.0"
    assert {file.rfilename for file in info.siblings} == {".gitattributes", "README.md", "deep/model.safetensors"}
    assert hub_client.repo_exists(repository) and not hub_client.repo_exists("org/none")
    assert hub_client.file_exists(repository, "README.md") and not hub_client.file_exists(repository, "none")


def test_delete_and_parent(hub, hub_client, repository):
    first = hub.commits(repository)[-1].id
    hub_client.create_commit(
        repository, [CommitOperationDelete("deep/")], commit_message="delete", parent_commit=first
    )
    assert set(hub.files(repository)) == {".gitattributes", "README.md"}
    with pytest.raises(HfHubHTTPError, match="412"):
        hub_client.create_commit(repository, [add("late", b"1")], commit_message="late", parent_commit=first)
    with pytest.raises(EntryNotFoundError):
        hub_client.delete_file("none", repository)
    assert len(hub.commits(repository)) == 3


def test_every_revision_can_be_pulled(hub, hub_client, repository):
    first = hub.commits(repository)[-1].id
    hub_client.create_tag(repository, tag="v1")
    hub_client.create_branch(repository, branch="topic/one")
    hub_client.upload_file(
        path_or_fileobj=b"on a branch", path_in_repo="README.md", repo_id=REPO, revision="topic/one"
    )
    hub_client.upload_file(path_or_fileobj=b"newer", path_in_repo="README.md", repo_id=REPO)
    contents = {"main": b"newer", "v1": README, "topic/one": b"on a branch", first: README}
    for revision, content in contents.items():
        with open(hf_hub_download(repository, "README.md", revision=revision), "rb") as file:
            assert file.read() == content
    refs = hub_client.list_repo_refs(repository)
    assert {branch.name for branch in refs.branches} == {"main", "topic/one"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]


def test_what_is_cached_is_not_pulled_again(hub, repository):
    folder = snapshot_download(repository)
    assert hub.requests.count("resolve") == 3
    assert snapshot_download(repository) == folder
    path = hf_hub_download(repository, "deep/model.safetensors")
    assert path.startswith(folder) and hub.requests.count("resolve") == 3
    with open(path, "rb") as file:
        assert file.read() == WEIGHTS
    # What isn't there is remembered too, with the commit in which it isn't.
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repository, "none.json")
    assert list((hub.folder / "home" / "hub").glob("**/.no_exist/*/none.json"))


@pytest.mark.parametrize("part", [(0, 10), (511_990, 512_000), (100, None)])
def test_ranges(hub, hub_client, repository, part):
    files = HfFileSystem(endpoint=hub.url, token=hub.token, skip_instance_cache=True)
    start, stop = part
    content = files.cat_file(f"{repository}/deep/model.safetensors", start=start, end=stop)
    assert content == WEIGHTS[start:stop]


def test_missing_things(hub_client, repository):
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/none", "README.md")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("org/none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repository, "README.md", revision="none")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(repository, revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repository, "none.json")
    with pytest.raises(RepositoryNotFoundError):
        hub_client.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="org/none")
    with pytest.raises(RevisionNotFoundError):
        hub_client.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=repository, revision="none")


def test_gated_repository(hub, hub_client, repository):
    hub.gate(repository)
    assert hub_client.model_info(repository).gated == "manual"
    for token in (hub.token, False):
        with pytest.raises(GatedRepoError):
            hf_hub_download(repository, "README.md", token=token)


def test_expired_token(hub, hub_client, repository):
    hub.expire_token()
    for call in (
        hub_client.whoami,
        lambda: hub_client.create_repo("org/other", exist_ok=True),
        lambda: hub_client.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=repository),
        lambda: hf_hub_download(repository, "README.md"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert error.value.response.status_code == 401
    assert "a" not in hub.files(repository)
    # What is public can be read without.
    assert hf_hub_download(repository, "README.md", token=False)


@pytest.mark.parametrize("kind", ["preupload", "lfs_batch", "lfs_upload", "lfs_verify", "commit"])
def test_a_broken_push_leaves_the_remote_as_it_was_and_can_be_repeated(hub, hub_client, repository, kind):
    before, files = hub.commits(repository), hub.files(repository)
    changes = {"README.md": README + b"more", "deep/model.safetensors": WEIGHTS[::-1], "new.bin": WEIGHTS[1:]}

    def push():
        operations = [add(path, content) for path, content in changes.items()]
        hub_client.create_commit(repository, operations, commit_message="second")

    # The client wraps what happens while it uploads.
    with hub.breaking(kind), pytest.raises((httpx2.TransportError, RuntimeError)):
        push()
    assert hub.commits(repository) == before and hub.files(repository) == files
    push()
    assert [commit.title for commit in hub.commits(repository)[len(before) :]] == ["second"]
    assert hub.files(repository) == {**files, **changes}


def test_the_client_survives_a_connection_that_breaks_once(hub, hub_client, repository):
    hub.break_next("lfs_upload")
    hub_client.upload_file(path_or_fileobj=io.BytesIO(WEIGHTS[1:]), path_in_repo="new.bin", repo_id=repository)
    assert hub.requests.count("lfs_upload") == 3
    hub.break_next("resolve")
    with open(hf_hub_download(repository, "new.bin"), "rb") as file:
        assert file.read() == WEIGHTS[1:]
    assert hub.requests.count("resolve") == 2


def test_a_broken_pull_leaves_nothing_that_looks_whole_and_can_be_repeated(hub, repository):
    with hub.breaking("resolve"), pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(repository, "deep/model.safetensors")
    assert not list((hub.folder / "home" / "hub").glob("**/snapshots/*/deep/model.safetensors"))
    with open(hf_hub_download(repository, "deep/model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS


def test_nothing_leaves_loopback(hub):
    """A client that wants to go elsewhere is led to this server, which refuses, and the fixture would fail the test."""
    code = "import httpx2; print(httpx2.get('{}://example.com').status_code)"
    for scheme in ("http", "https"):
        hub.run_python(code.format(scheme), check=False)
    assert hub.strays == ["http://example.com/", "example.com:443"]
    hub.strays.clear()


def test_damaged_uploads_and_cards_are_refused(hub, hub_client, repository):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        hub_client.create_commit(repository, [add("README.md", b"---\na: [\n---\n")], commit_message="bad card")
    operation = add("new.bin", WEIGHTS[1:])
    operation.upload_info.sha256 = b"\0" * 32
    with pytest.raises(RuntimeError) as error:
        hub_client.create_commit(repository, [operation], commit_message="wrong digest")
    assert isinstance(error.value.__cause__, BadRequestError)
    assert "new.bin" not in hub.files(repository)


def test_a_kind_that_no_request_has_is_named(hub):
    with pytest.raises(ValueError, match="unknown kind of request 'upload'"):
        hub.break_next("upload")
    assert {"commit", "lfs_upload", "resolve"} <= set(ROUTES)
