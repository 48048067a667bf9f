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
"""What the Hub answers, route by route."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

import yaml

from .store import Commit, File, HubError, Repository, is_lfs


API = r"/api/(?P<repo_type>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
WEB = r"/(?:(?P<repo_type>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)
LFS_JSON = "application/vnd.git-lfs+json"


@dataclass
class Request:
    """A request: the parts of its path by the names in the route's pattern, its query, headers and body."""

    parts: dict[str, str | None]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: str | None

    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def repo_type(self) -> str:
        return self.parts["repo_type"] or "model"

    @property
    def revision(self) -> str:
        return unquote(self.parts.get("revision") or "main")


@dataclass
class Response:
    """An answer: its body, status and headers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def answer(value, status: int = 200, content_type: str = "application/json") -> Response:
    """An answer in JSON."""
    return Response(json.dumps(value).encode(), status, {"Content-Type": content_type})


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern
    function: Callable


ROUTES: dict[str, Route] = {}


def route(method: str, pattern: str):
    """Answer requests of a method and path by the function, whose name is the kind of these requests."""

    def register(function):
        ROUTES[function.__name__] = Route(method, re.compile(pattern), function)
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(hub, request: Request) -> Response:
    user = hub.require_user(request)
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in hub.orgs]
    token = {"displayName": "tests", "role": "write"}
    return answer({"type": "user", "name": user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, request: Request) -> Response:
    try:
        card_data(request.json()["content"])
    except (yaml.YAMLError, ValueError) as error:
        return answer({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    return answer({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(hub, request: Request) -> Response:
    wanted = request.json()
    user = hub.require_user(request)
    repo_type, namespace = wanted.get("type", "model"), wanted.get("organization") or user
    hub.require_membership(namespace)
    repo_id = f"{namespace}/{wanted['name']}"
    prefix = "" if repo_type == "model" else f"{repo_type}s/"
    created = {"url": f"{hub.url}/{prefix}{repo_id}", "name": repo_id}
    if (repo_type, repo_id) in hub.repositories:
        return answer({"error": "You already created this repo", **created}, status=409)
    hub.repositories[repo_type, repo_id] = Repository(hub.blobs, private=wanted.get("visibility") == "private")
    return answer(created)


@route("POST", f"{API}/preupload/{REVISION}")
def preupload(hub, request: Request) -> Response:
    files = hub.find_repository(request, write=True).resolve(request.revision).files
    infos = []
    for file in request.json()["files"]:
        lfs = is_lfs(base64.b64decode(file["sample"]), file["size"])
        present = files.get(file["path"])
        oid = present.etag if present and present.lfs == lfs else None
        mode = "lfs" if lfs else "regular"
        infos.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return answer({"files": infos})


@route("POST", rf"{WEB}\.git/info/lfs/objects/batch")
def lfs_batch(hub, request: Request) -> Response:
    hub.find_repository(request, write=True)
    objects = []
    for wanted in request.json()["objects"]:
        upload = {"href": f"{hub.url}/lfs/{wanted['oid']}"}
        verify = {"href": f"{hub.url}/lfs/{wanted['oid']}/verify"}
        actions = {} if wanted["oid"] in hub.blobs else {"actions": {"upload": upload, "verify": verify}}
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
    return answer({"transfer": "basic", "objects": objects}, content_type=LFS_JSON)


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_upload(hub, request: Request) -> Response:
    """Without a token, as the storage behind the Hub: the address is the secret."""
    if hashlib.sha256(request.body).hexdigest() != request.parts["oid"]:
        raise HubError(400, "The content doesn't have the digest that was announced")
    hub.blobs.write(request.body)
    return Response(headers={"ETag": f'"{request.parts["oid"]}"'})


@route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(hub, request: Request) -> Response:
    hub.require_user(request)
    if hub.blobs.find_lfs(request.parts["oid"]).size != request.json()["size"]:
        raise HubError(400, "The size is not the one that was announced")
    return answer({})


@route("POST", f"{API}/commit/{REVISION}")
def commit(hub, request: Request) -> Response:
    repository = hub.find_repository(request, write=True)
    if "create_pr" in request.query:
        raise HubError(400, "This server has no pull requests")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    files = dict(repository.resolve(request.revision).files)
    for line in lines[1:]:
        _apply(hub, files, line["key"], line["value"])
    made = repository.commit(request.revision, header["summary"], files, header.get("parentCommit"))
    prefix = "" if request.repo_type == "model" else f"{request.repo_type}s/"
    url = f"{hub.url}/{prefix}{request.parts['repo_id']}/commit/{made.id}"
    return answer({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _apply(hub, files: dict[str, File], key: str, value: dict) -> None:
    path = value["path"]
    if key == "file":
        files[path] = hub.blobs.add_regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = hub.blobs.find_lfs(value["oid"])
    elif key == "deletedFile" and path in files:
        del files[path]
    elif key == "deletedFolder" and (inside := [name for name in files if name.startswith(f"{path.rstrip('/')}/")]):
        for name in inside:
            del files[name]
    else:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


@route("GET", f"{WEB}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub, request: Request) -> Response:
    repository = hub.find_repository(request)
    if repository.gated:
        raise HubError(403 if request.user else 401, "Access to this repository is restricted.", "GatedRepo")
    found, file = repository.find(request.revision, unquote(request.parts["path"]))
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": found.id, "Accept-Ranges": "bytes"}
    content = hub.blobs.read(file.sha256)
    if "range" not in request.headers:
        return Response(content, headers={**headers, "Content-Type": "application/octet-stream"})
    start, stop = _parse_range(request.headers["range"], file.size)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return Response(content[start:stop], 206, headers)


def _parse_range(text: str, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if not match or match[1] == match[2] == "":
        raise HubError(416, f"cannot read the range {text!r}")
    start = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    stop = min(int(match[2]) + 1, size) if match[1] and match[2] else size
    if start >= stop:
        raise HubError(416, f"the range {text!r} lies outside of a file of {size} bytes")
    return start, stop


@route("GET", rf"{API}(?:/revision/{REVISION})?")
def info(hub, request: Request) -> Response:
    repository = hub.find_repository(request)
    at = repository.resolve(request.revision)
    readme = at.files.get("README.md")
    data = card_data(hub.blobs.read(readme.sha256).decode()) if readme else {}
    repo_id = request.parts["repo_id"]
    return answer(
        {
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": at.id,
            "lastModified": at.date,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "tags": data.get("tags", []),
            "siblings": [{"rfilename": path} for path in sorted(at.files)],
            "cardData": data,
            **{name: data[name] for name in ("library_name", "pipeline_tag") if name in data},
        }
    )


@route("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?")
def tree(hub, request: Request) -> Response:
    at = hub.find_repository(request).resolve(request.revision)
    folder = unquote(request.parts["path"] or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in _entries(at) if path.startswith(prefix)]
    if not inside:
        raise HubError(404, f"{folder} does not exist on {request.revision}", "EntryNotFound", commit=at.id)
    if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        inside = [path for path in inside if "/" not in path[len(prefix) :]]
    return answer([_describe(at, path) for path in inside])


@route("POST", f"{API}/paths-info/{REVISION}")
def paths_info(hub, request: Request) -> Response:
    at = hub.find_repository(request).resolve(request.revision)
    wanted = [path.strip("/") for path in parse_qs(request.body.decode())["paths"]]
    return answer([_describe(at, path) for path in _entries(at) if path in wanted])


def _entries(at: Commit) -> list[str]:
    """Paths of a commit's files and folders."""
    folders = {"/".join(path.split("/")[:depth]) for path in at.files for depth in range(1, path.count("/") + 1)}
    return sorted([*at.files, *folders])


def _describe(at: Commit, path: str) -> dict:
    described = {"path": path, "lastCommit": {"id": at.id, "title": at.title, "date": at.date}}
    if path not in at.files:
        return {**described, "type": "directory", "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    file = at.files[path]
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer())}
    return {**described, "type": "file", "size": file.size, "oid": file.oid, **({"lfs": lfs} if file.lfs else {})}


@route("GET", f"{API}/refs")
def refs(hub, request: Request) -> Response:
    repository = hub.find_repository(request)
    lists = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
    return answer(
        {
            "converts": [],
            **{
                name: [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": oid} for key, oid in pairs.items()]
                for name, (kind, pairs) in lists.items()
            },
        }
    )


@route("POST", f"{API}/branch/{REVISION}")
def create_branch(hub, request: Request) -> Response:
    repository = hub.find_repository(request, write=True)
    if request.revision in repository.branches:
        raise HubError(409, f"Reference already exists: {request.revision}")
    start = repository.resolve(request.json().get("startingPoint", "main"))
    repository.branches[request.revision] = start.id
    return answer({})


@route("POST", f"{API}/tag/{REVISION}")
def create_tag(hub, request: Request) -> Response:
    repository = hub.find_repository(request, write=True)
    tag = request.json()["tag"]
    if tag in repository.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repository.tags[tag] = repository.resolve(request.revision).id
    return answer({})


def card_data(content: str) -> dict:
    """The metadata at the head of a card."""
    match = FRONT_MATTER.match(content)
    data = yaml.safe_load(match[1]) if match else {}
    if not isinstance(data, dict):
        raise ValueError("the metadata of a card must be a dictionary")
    return data
