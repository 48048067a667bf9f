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
import os
import sys
from pathlib import Path

import pytest


# Before anything imports what reads them once: tests must not depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Scripts in examples/ import each other as top-level modules.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest_plugins = ["hub_server.fixture"]

# Carried by Hugging Face's common tests.
HUGGINGFACE_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in HUGGINGFACE_MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by Hugging Face's common tests")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a tiny model and its processor."""
    from tiny import save_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    return folder
