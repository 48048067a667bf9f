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
"""Reads pickles of plain data and nothing else: a pickle is a program, and data sets come from dead links' mirrors."""

import pickle
from collections import OrderedDict
from pathlib import Path


# Lists, dicts, tuples, strings and numbers have opcodes of their own. These containers are found by name, and building
# one calls no code but its own.
ADMITTED = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): OrderedDict,
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that looks up no class and no function, but for three plain containers."""

    def find_class(self, module: str, name: str):
        # Python 2's name of the module
        module = "builtins" if module == "__builtin__" else module
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain data is admitted")
        return ADMITTED[module, name]


def load_plain_pickle(path: str | Path):
    """
    Load a pickle that holds plain containers, strings and numbers only, of any protocol, written by Python 2 or 3.

    Args:
        path (`str` or `Path`):
            The pickle.

    Raises:
        pickle.UnpicklingError: if it asks for anything else, or isn't a whole pickle. Nothing of it is executed.
    """
    with open(path, "rb") as file:
        try:
            # Python 2's str holds bytes; what isn't UTF-8 in it becomes a replacement character
            return RestrictedUnpickler(file, encoding="utf-8", errors="replace").load()
        except pickle.UnpicklingError:
            raise
        # a damaged pickle fails in whatever opcode it happens to reach
        except Exception as error:
            raise pickle.UnpicklingError(f"it is damaged or cut off ({error!r})") from error
