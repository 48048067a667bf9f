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
"""Fixtures of the Hub server; see the package. Nothing of Hugging Face is imported before a test asks for them."""

from types import SimpleNamespace

import pytest

from . import HubServer


@pytest.fixture
def hub(tmp_path):
    """A [`HubServer`] of the test's own."""
    server = HubServer(tmp_path / "hub")
    yield server
    server.close()
    assert not server.strays, "a client went elsewhere"


@pytest.fixture
def hub_client(hub, monkeypatch):
    """
    An `HfApi` of this process that reaches `hub`, as does all else here that goes through `huggingface_hub`. It doesn't
    wait before it tries again.
    """
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http, close_session

    close_session()
    for name, value in hub.settings.items():
        monkeypatch.setenv(name, value)
    home = hub.folder / "home"
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    # The functions of `huggingface_hub` are methods of an object made at its import; Transformers has one of its own.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield hf_api.HfApi(endpoint=hub.url, token=hub.token)
    close_session()
