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
"""Low-rank adapters (LoRA) of a ScanFormer, by PEFT, also of one in 4 bits."""

from importlib import import_module

from transformers import BitsAndBytesConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import is_bitsandbytes_available


# PEFT keeps DoRA's magnitudes in a module but saves them without its ".weight". PEFT knows; Transformers' `load_adapter`
# does not, and would start them anew.
register_checkpoint_conversion_mapping(
    "scanformer",
    [WeightRenaming(r"lora_magnitude_vector\.([^.]+)$", r"lora_magnitude_vector.\1.weight")],
    overwrite=True,
)

# What pixels look like, and what is looked for: the projection of patches, queries and values of all layers.
TARGET_MODULES = ("projection", "q_proj", "v_proj")
# Smaller than their low-rank updates would be: the heads' last layers, and the tokens, which no linear layer reads.
MODULES_TO_SAVE = ("out_proj", "classifier", "reg_tokens", "constant_token")
# Patterns of what 4 bits leave alone: how pixels come in, convolutions included, and how answers and the selection come out.
FULL_PRECISION_MODULES = (
    r"(model\.)?patch_embeddings",
    r"(model\.)?selection_head",
    "box_head",
    "box_refinement",
    "score_head",
)


def lora_config(r: int = 8, **kwargs):
    """
    The configuration of a LoRA adapter for a ScanFormer: low-rank updates of the projection of patches and of the queries
    and values of every layer; the heads' last layers and the learned tokens are trained and saved whole.

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
        # optional, so hidden from Transformers, which demands all that a repository's code imports
        peft = import_module("peft")
    except ImportError as error:
        raise ImportError("Adapters need PEFT: `pip install peft`.") from error
    defaults = {
        "lora_alpha": 2 * r,
        "target_modules": list(TARGET_MODULES),
        "modules_to_save": list(MODULES_TO_SAVE),
    }
    return peft.LoraConfig(r=r, **{**defaults, **kwargs})


def quantization_config(**kwargs) -> BitsAndBytesConfig:
    """
    The configuration to load a ScanFormer in 4 bits and train an adapter of it (QLoRA, https://arxiv.org/abs/2305.14314):
    the linear layers of the encoder in NF4, their scales quantized as well; patch projection, heads and embeddings as they
    are.

    Args:
        **kwargs:
            Passed to `BitsAndBytesConfig`: `bnb_4bit_compute_dtype` (by default float32), `bnb_4bit_quant_storage`, and
            all others. `llm_int8_skip_modules` replaces the choice above.

    Returns:
        `BitsAndBytesConfig`

    Raises:
        ImportError: if bitsandbytes is not installed.

    Example:

    ```python
    >>> model = ScanFormerForVisualGrounding.from_pretrained(
    ...     "hub_cards/scanformer-tiny-scenes", quantization_config=quantization_config()
    ... )
    >>> model.add_adapter(lora_config(r=8))
    ```"""
    if not is_bitsandbytes_available():
        raise ImportError("A model in 4 bits needs bitsandbytes: `pip install bitsandbytes`.")
    defaults = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": list(FULL_PRECISION_MODULES),
    }
    return BitsAndBytesConfig(**{**defaults, **kwargs})


class ScanFormerAdapterMixin:
    """What Transformers' own adapter methods of a model leave open."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            # On a CPU that knows bfloat16, bitsandbytes would repack weights of 4 bits when they are first evaluated: less
            # precise from then on, so that training depends on it, and an error where a side is no multiple of 64.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return loaded

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, *args, **kwargs):
        """
        As in every model, but an adapter that was made for another model is an error.

        Raises:
            ValueError: if weights of the adapter have no place in the model, or the other way round.
        """
        adapter_name = adapter_name or "default"
        active = self.active_adapters() if getattr(self, "_hf_peft_config_loaded", False) else []
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        report = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        # the report also misses what belongs to other adapters
        missing = {key for key in report.missing_keys if adapter_name in key.split(".")}
        strays = sorted(missing | report.unexpected_keys)
        if strays:
            self.set_adapter(adapter_name)  # PEFT can only delete the active one
            self.delete_adapter(adapter_name)
            if active:
                self.set_adapter(active)
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in trained)
            raise ValueError(
                f"The adapter {peft_model_id} was made for another model: {len(strays)} weights are in one of them only, as "
                f"{strays[0]}."
            )
        # Transformers activates the low-rank updates alone
        for module in self.modules():
            if adapter_name in getattr(module, "modules_to_save", ()):
                module.set_adapter(adapter_name)
        return report

    def delete_adapter(self, adapter_names: list[str] | str):
        """As in every model, and with its last adapter the model also loses PEFT's modules, and trains again."""
        super().delete_adapter(adapter_names)
        if self._hf_peft_config_loaded:
            return
        tuner_layer = import_module("peft.tuners.tuners_utils").BaseTunerLayer
        wrapper = import_module("peft.utils.other").AuxiliaryTrainingWrapper
        for name, module in list(self.named_modules()):
            if isinstance(module, (tuner_layer, wrapper)):
                inner = module.get_base_layer() if isinstance(module, tuner_layer) else module.original_module
                self.set_submodule(name, inner)
        # how an adapter's weights are named in files, which Transformers keeps and would name the model's own by
        vars(self).pop("_weight_conversions", None)
        for parameter in self.parameters():
            if parameter.is_floating_point():  # weights of 4 bits are never trained
                parameter.requires_grad_(True)

    def enable_adapters(self):
        """As in every model, and also the modules that an adapter replaces, which Transformers leaves disabled."""
        super().enable_adapters()
        for module in self.modules():
            if hasattr(module, "modules_to_save"):
                module.enable_adapters(enabled=True)


__all__ = ["ScanFormerAdapterMixin", "lora_config", "quantization_config"]
