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
"""The server: reads requests, keeps the rules on who may do what, and breaks connections when told to."""

import contextlib
import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from .routes import ROUTES, Request, Response, answer
from .store import BlobStore, Commit, HubError, Repository


# Long: the machine may be busy with something else.
CLIENT_SECONDS = 600


class HubServer:
    """
    A Hub on loopback, alive from its creation to `close()`.

    Args:
        folder (`Path`): For what is pushed, and for the clients' home.

    Attributes:
        url (`str`): The endpoint.
        token (`str`): Of the one user.
        requests (`list[str]`): Kinds of the requests so far, in order; HEAD has kinds of its own ("resolve_head").
        strays (`list[str]`): What clients wanted from elsewhere. Refused, and the test fails.
    """

    user = "user"
    orgs = ("org",)
    token = "hf_" + "t" * 34

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.blobs = BlobStore(self.folder / "blobs")
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.strays: list[str] = []
        self.lock = threading.Lock()
        self._breaks: Counter = Counter()
        self._expired = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def break_next(self, kind: str, times: float = 1) -> None:
        """
        Close the connection of the next requests of a kind half-way: in the middle of what the client sends, or of the
        answer where it sends nothing.

        Args:
            kind (`str`): One of `ROUTES`, such as "lfs_upload", "commit" or "resolve" (that is, GET and not HEAD).
            times (`float`, *optional*, defaults to 1): So many requests. The client tries most of them 6 times, a
                commit once.
        """
        if kind not in ROUTES:
            raise ValueError(f"unknown kind of request {kind!r}; known are {', '.join(ROUTES)}")
        self._breaks[kind] = times

    @contextlib.contextmanager
    def breaking(self, kind: str):
        """Break all requests of a kind in a `with` block."""
        self.break_next(kind, math.inf)
        try:
            yield
        finally:
            self.break_next(kind, 0)

    def take_break(self, kind: str) -> bool:
        """Whether a request of this kind is to break now."""
        with self.lock:
            self._breaks[kind] = max(self._breaks[kind] - 1, -1)
            return self._breaks[kind] >= 0

    def expire_token(self) -> None:
        """Refuse the token from now on."""
        self._expired = True

    def gate(self, repo_id: str, repo_type: str = "model") -> None:
        """Let nobody read a repository's files; everybody sees that it exists."""
        self.repositories[repo_type, repo_id].gated = True

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """A repository's commits, oldest first. The first one was there at its creation."""
        return self.repositories[repo_type, repo_id].history(revision)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """What a revision holds: contents by path."""
        commit = self.repositories[repo_type, repo_id].resolve(revision)
        return {path: self.blobs.read(file.sha256) for path, file in commit.files.items()}

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables that send a client here, with a home and a token of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "home"),
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # The server is the way to everywhere else too, so that it can see and refuse what strays.
            "http_proxy": self.url,
            "https_proxy": self.url,
            "no_proxy": "127.0.0.1",
        }

    def run_python(self, code: str, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        """
        Run Python code in a new process whose Hub is this one.

        Args:
            code (`str`): The code.
            check (`bool`, *optional*, defaults to `True`): Fail the test, showing what the code wrote, where it fails.
            variables (`str`, *optional*): More environment variables, over [`settings`].

        Returns:
            `subprocess.CompletedProcess`: With `stdout` and `stderr` as text.
        """
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        environment = {**inherited, **self.settings, **variables}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CLIENT_SECONDS)
        assert not check or result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result

    def authenticate(self, authorization: str | None) -> str | None:
        """The user whose token this is, `None` for nobody's."""
        if not authorization:
            return None
        if self._expired or authorization != f"Bearer {self.token}":
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.user

    def require_user(self, request: Request) -> str:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return request.user

    def require_membership(self, namespace: str) -> None:
        if namespace not in (self.user, *self.orgs):
            raise HubError(403, f'You don\'t have the rights to create a repo under the namespace "{namespace}"')

    def find_repository(self, request: Request, write: bool = False) -> Repository:
        """The repository that a request names, if its user may see it and, with `write`, change it."""
        repo_id = request.parts["repo_id"]
        repository = self.repositories.get((request.repo_type, repo_id))
        if repository is None or (repository.private and request.user is None):
            # The Hub doesn't tell strangers which of both it is.
            raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.require_user(request)
            self.require_membership(repo_id.split("/")[0])
        return repository


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers are written in two parts, of which the second would wait for the client's word on the first.
    disable_nagle_algorithm = True
    hub: HubServer

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_CONNECT(self) -> None:
        self.hub.strays.append(self.path)
        self._send(answer({"error": f"this Hub leads nowhere else: {self.path}"}, status=403))

    def log_message(self, *arguments) -> None:
        """Quiet: the tests' output is theirs."""

    def _handle(self, method: str) -> None:
        address = urlsplit(self.path)
        kind, match = self._find_route(method, address)
        if kind is None:
            self._read_body()
            self._send(answer({"error": f"no such route: {method} {self.path}"}, status=404))
            return
        self.hub.requests.append(f"{kind}_head" if self.command == "HEAD" else kind)
        breaks = self.command != "HEAD" and self.hub.take_break(kind)
        if breaks and self._body_size():
            self.rfile.read(self._body_size() // 2)
            self._hang_up()
            return
        body = self._read_body()
        with self.hub.lock:
            response = self._answer(ROUTES[kind].function, match.groupdict(), parse_qs(address.query), body)
        self._send(response, whole=not breaks)

    def _find_route(self, method: str, address: SplitResult) -> tuple[str | None, re.Match | None]:
        if address.netloc:
            # `datasets` asks the Hub's viewer, by this name, for what it may have converted already.
            if address.netloc != f"datasets-server.{urlsplit(self.hub.url).netloc}":
                self.hub.strays.append(self.path)
            return None, None
        for kind, route in ROUTES.items():
            match = route.pattern.fullmatch(address.path)
            if match and route.method == method:
                return kind, match
        return None, None

    def _answer(self, function, parts: dict, query: dict, body: bytes) -> Response:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            user = self.hub.authenticate(headers.get("authorization"))
            return function(self.hub, Request(parts, query, headers, body, user))
        except HubError as error:
            response = answer({"error": str(error)}, status=error.status)
            response.headers["X-Error-Message"] = str(error)
            if error.code:
                response.headers["X-Error-Code"] = error.code
            if error.commit:
                response.headers["X-Repo-Commit"] = error.commit
            return response

    def _read_body(self) -> bytes:
        return self.rfile.read(self._body_size())

    def _body_size(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _send(self, response: Response, whole: bool = True) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body if whole else response.body[: len(response.body) // 2])
        if not whole:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
