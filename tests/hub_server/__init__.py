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
A Hugging Face Hub for tests, on loopback: what the real client of `huggingface_hub` asks for when it pushes and pulls.

Two fixtures ([`fixture`]):

- `hub`, a [`HubServer`] with its own empty storage. Clients run in a process of their own, as a user's does:

      result = hub.run_python("from huggingface_hub import HfApi; HfApi().create_repo('org/name')")

- `hub_client`, an `HfApi` of this process. While the test runs, everything in this process that goes through
  `huggingface_hub` (`model.push_to_hub`, `from_pretrained`, `snapshot_download`) reaches the server, with a cache and a
  token of the test's own. What is read once, at import, stays as it was: `datasets` needs `hub.run_python`.

The server's user is "user", a member of "org". Repositories are "user/..." or "org/...":

      hub.commits("org/name")                    # oldest first; the first one holds .gitattributes alone
      hub.files("org/name", "main")              # {path: bytes}
      hub.break_next("commit")                   # the connection breaks half-way; kinds are the names in `routes.ROUTES`
      with hub.breaking("lfs_upload"): ...       # all of them, so that the client gives up
      hub.gate("org/name")                       # nobody has been granted access to the files
      hub.expire_token()                         # 401 from now on
      hub.requests                               # kinds of the requests so far, in order

Left out: Xet storage (the client's HF_HUB_DISABLE_XET is set), pull requests, multi-part uploads, paging.
"""

from .server import HubServer


__all__ = ["HubServer"]
