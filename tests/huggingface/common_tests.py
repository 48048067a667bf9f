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
Hugging Face's own common tests, taken from the source distribution of the installed Transformers: the wheel has none.
They are kept in the ignored folder `.cache`.
"""

import functools
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock


CACHE = Path(__file__).parents[2] / ".cache"
NAME = f"transformers-{transformers.__version__}"

# Their tests/ becomes a package of this name, because "tests" is ours.
PACKAGE = "transformers_tests"

# What the common tests import but the source distribution lacks. The configuration values are ours: each differs from
# its default, so that a configuration that drops one is found out.
STAND_INS = {
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["ScanFormerModel"],
            "id2label": {0: "first", 1: "second", 2: "third"},
            "label2id": {"first": 0, "second": 1, "third": 2},
            "problem_type": "regression",
        }
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def import_common_tests(name: str) -> ModuleType:
    """
    Import a module of Transformers' tests/. Where it can't be had, the test module asking is skipped; in CI it fails.
    """
    problem = _install_package()
    if problem is not None:
        reason = f"The source distribution of {NAME} with the common tests can't be had: {problem}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    return importlib.import_module(f"{PACKAGE}.{name}")


@functools.cache
def _install_package() -> str | None:
    """Make the package importable, or say why not: once, because waiting for a network takes long."""
    try:
        folder = _unpack_tests()
    except subprocess.CalledProcessError as error:
        return error.stderr.strip().splitlines()[-1]
    except (OSError, subprocess.TimeoutExpired, tarfile.TarError) as error:
        return str(error)
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, attributes in STAND_INS.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    return None


def _unpack_tests() -> Path:
    folder = CACHE / f"{NAME}-tests"
    CACHE.mkdir(exist_ok=True)
    # several pytest-xdist workers may come here at once
    with FileLock(CACHE / f"{NAME}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as unpacking:
                with tarfile.open(_source_distribution()) as archive:
                    members = [m for m in archive.getmembers() if m.name.startswith(f"{NAME}/tests/")]
                    archive.extractall(unpacking, members, filter="data")
                tests = Path(unpacking, NAME, "tests")
                # test_configuration_common.py imports "transformers" by the path of this file
                (tests / "__init__.py").touch()
                tests.rename(folder)
    return folder


def _source_distribution() -> Path:
    archive = CACHE / f"{NAME}.tar.gz"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
            command += ["--no-build-isolation", "--retries", "1", "--dest", download]
            command += [f"transformers=={transformers.__version__}"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            Path(download, archive.name).rename(archive)
    return archive
