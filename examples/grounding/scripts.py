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
"""The scripts beside this package, run by scripts that compare what comes out."""

import json
import subprocess
import sys
from pathlib import Path

from .checks import DataError


FOLDER = Path(__file__).resolve().parents[1]


def run_script(name: str, flags: list[str] | None = None, **options):
    """
    Run a script in a process of its own.

    Args:
        name (`str`):
            Its file, `"run_visual_grounding.py"`.
        flags (`list[str]`, *optional*):
            Words of the command line, put before the options.
        **options:
            `seed=1` becomes `--seed 1`.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    subprocess.run([sys.executable, str(FOLDER / name), *(flags or []), *words], check=True)


def evaluate_once(output: Path, **options) -> dict:
    """
    Results of `evaluate_visual_grounding.py`, which runs unless `output` is there.

    Raises:
        DataError: if `output` is damaged.
    """
    if not output.is_file():
        run_script("evaluate_visual_grounding.py", output=output, **options)
    try:
        return json.loads(output.read_bytes())
    except ValueError as error:
        raise DataError(f"{output} is damaged, {error}: delete it, and run the same command again.") from error


__all__ = ["evaluate_once", "run_script"]
