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
"""Low-rank adapters (LoRA) of a ScanFormer, by PEFT."""

from importlib import import_module


# How an adapter looks and how it answers: queries and values of all layers, and what turns states into answers.
TARGET_MODULES = ("q_proj", "v_proj", "dense1", "dense2", "dense")
# Smaller than their low-rank updates would be: the heads' last layers, and the tokens, which no linear layer reads.
MODULES_TO_SAVE = ("out_proj", "classifier", "reg_tokens", "constant_token")


def lora_config(r: int = 8, **kwargs):
    """
    The configuration of a LoRA adapter for a ScanFormer: low-rank updates of the queries and values of every layer and
    of the hidden layers of the heads; the heads' last layers and the learned tokens are trained and saved whole.

    Args:
        r (`int`, *optional*, defaults to 8):
            Rank of the updates.
        **kwargs:
            Passed to `peft.LoraConfig`: `lora_alpha` (by default `2 * r`), `lora_dropout`, `use_dora`, `use_rslora`, and
            all others. `target_modules` and `modules_to_save` replace the choice above.

    Returns:
        `peft.LoraConfig`

    Raises:
        ImportError: if PEFT is not installed.

    Example:

    ```python
    >>> model = ScanFormerForVisualGrounding.from_pretrained("hub_cards/scanformer-tiny-scenes")
    >>> model.add_adapter(lora_config(r=8, use_dora=True))
    >>> # ... train ...
    >>> model.save_pretrained("my-adapter")  # the adapter alone

    >>> model = ScanFormerForVisualGrounding.from_pretrained("hub_cards/scanformer-tiny-scenes")
    >>> model.load_adapter("my-adapter")
    ```"""
    try:
        # optional, so hidden from those who read what the package imports
        peft = import_module("peft")
    except ImportError as error:
        raise ImportError("Adapters need PEFT: `pip install peft`.") from error
    defaults = {
        "lora_alpha": 2 * r,
        "target_modules": list(TARGET_MODULES),
        "modules_to_save": list(MODULES_TO_SAVE),
    }
    return peft.LoraConfig(r=r, **{**defaults, **kwargs})


__all__ = ["lora_config"]
