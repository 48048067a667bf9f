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
"""Models that a conversion starts from."""

from pathlib import Path

from modeling_scanformer import ScanFormerForVisualGrounding


def load_source(source: str, out: Path) -> ScanFormerForVisualGrounding:
    """
    A model to make another one of.

    Args:
        source (`str`):
            A folder or an id on the Hub.
        out (`Path`):
            Where the other one will be written.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is an adapter, or would be written over.
    """
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ValueError(f"{out} is what is read: give another folder.")
    model = ScanFormerForVisualGrounding.from_pretrained(source)
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"{source} is an adapter: merge it first, by "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)."
        )
    return model
