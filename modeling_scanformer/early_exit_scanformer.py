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
"""When a scan may stop: a rule over what each scale shows, calibrated so that it costs little accuracy."""

from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import isfinite

import torch
from torch import nn

from .packing_scanformer import PackedLinear, sample_number


# How much of a weight the rounding of half precision may change.
FINGERPRINT_TOLERANCE = 2.0**-7


def fingerprint(model, with_adapters: bool = True) -> list[float]:
    """
    Numbers by which a [`ScanFormerForVisualGrounding`] is recognized: the middle one of each of its parameters and,
    unless told otherwise, of those of adapters, if it carries any.
    """
    added = tuple(  # by PEFT, whose layers name their own
        f"{path}.{name}."
        for path, module in model.named_modules()
        for name in (*getattr(module, "adapter_layer_names", ()), "modules_to_save")
        if hasattr(module, name)
    )
    numbers, of_adapters = [], []
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            numbers += module.sampled_numbers
            continue
        for name, _ in module.named_parameters(recurse=False):
            group = of_adapters if f"{path}.{name}".startswith(added) else numbers
            group.append(_sample_number(module, name))
    if with_adapters:
        numbers += of_adapters
    # one transfer from the device, as every scan with a rule is preceded by this
    found = torch.stack([number.to(numbers[0].device, torch.float32) for number in numbers])
    return [float(f"{number:.6g}") for number in found.tolist()]


def _sample_number(module: nn.Module, name: str) -> torch.Tensor:
    """Of a module's parameter; one that Accelerate has offloaded is fetched for the moment."""
    offloaded = getattr(module, name).is_meta
    if offloaded:
        module._hf_hook.pre_forward(module)
    number = sample_number(getattr(module, name))
    if offloaded:
        number = number.clone()
        module._hf_hook.post_forward(module, None)
    return number


def has_fingerprint(model, numbers: list[float]) -> bool:
    """Whether the [`fingerprint`] of a model is this one, up to the rounding of half precision."""
    found = torch.tensor(fingerprint(model))
    return found.shape == (len(numbers),) and torch.allclose(
        found, torch.tensor(numbers), rtol=FINGERPRINT_TOLERANCE, atol=1e-6
    )


@dataclass
class EarlyExitRule:
    """
    A sample leaves the scan at the first scale s, but the last, where `sigmoid(weights[s] . early_reg_state + biases[s])`
    reaches the threshold. `early_reg_state` is Encoder1's output of the scale's [REG]: so whether to go on is known before
    Encoder2 runs, which reads all at once, wherever a sample leaves.

    Args:
        weights (`list[list[float]]`):
            Weights of [REG]'s state, `hidden_size` of them, for every scale but the last.
        biases (`list[float]`):
            Offsets, for every scale but the last.
        threshold (`float`):
            The stopping score from which on a sample leaves; above 1 nothing ever does.
        alpha (`float`):
            What accuracy may fall by, as a share of all samples ...
        confidence (`float`):
            ... with this probability over the draw of the calibration data.
        num_samples (`int`):
            Number of samples that the threshold was calibrated on.
        fingerprint (`list[float]`):
            Identifies the model; see [`fingerprint`].
        options (`dict`):
            The options of `generate` under which it was calibrated, those left out being at their defaults.

    Raises:
        ValueError: where lengths or values make no sense.
    """

    weights: list[list[float]]
    biases: list[float]
    threshold: float
    alpha: float
    confidence: float
    num_samples: int
    fingerprint: list[float]
    options: dict

    def __post_init__(self):
        if len(self.weights) != len(self.biases) or len({len(row) for row in self.weights}) > 1:
            raise ValueError(
                "An early exit rule needs an offset and equally many weights for every scale but the last."
            )
        numbers = [self.threshold, self.num_samples, *self.biases, *self.fingerprint, *chain(*self.weights)]
        if not all(isinstance(number, (int, float)) and isfinite(number) for number in numbers):
            raise ValueError("An early exit rule holds finite numbers.")
        for name in ("alpha", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` of an early exit rule must lie between 0 and 1, got {getattr(self, name)}."
                )

    @classmethod
    def from_dict(cls, values: dict) -> "EarlyExitRule":
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"An early exit rule has the fields {sorted(names)}, got {values!r}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"An early exit rule holds numbers and lists of them, got {values!r}.") from error

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self, model, options: dict):
        """
        Refuse to judge another model, or a scan under other options, than the rule was calibrated on.

        Raises:
            ValueError: if the rule is not for this model or these options.
        """
        if not has_fingerprint(model, self.fingerprint):
            raise ValueError(
                "The early exit rule was calibrated on another checkpoint: its guarantee says nothing about this one. "
                "Calibrate this model (examples/calibrate_early_exit.py)."
            )
        hidden_size = model.config.hidden_size
        if any(len(row) != hidden_size for row in self.weights):
            raise ValueError(f"An early exit rule for this model has {hidden_size} weights a scale: calibrate again.")
        num_exits = options.get("max_scales", model.config.num_scales) - 1
        if options != self.options or len(self.weights) != num_exits:
            raise ValueError(
                f"The early exit rule was calibrated for {len(self.weights)} exits with the options {self.options}, but "
                f"the scan has {num_exits} exits and the options {options}. Use the same, or calibrate again."
            )

    def stops(self, early_reg_state: torch.Tensor, scale: int) -> torch.Tensor:
        """
        Which samples leave at a scale.

        Args:
            early_reg_state (`torch.Tensor` of shape `(batch_size, hidden_size)`):
                Encoder1's output of the scale's [REG].
            scale (`int`):
                The scale, not the last.

        Returns:
            `torch.BoolTensor` of shape `(batch_size,)`.
        """
        state = early_reg_state.float()
        # no matrix product, which autocast would round: the threshold is proven for what full precision decides
        scores = (state * state.new_tensor(self.weights[scale])).sum(1) + self.biases[scale]
        return scores.sigmoid() >= self.threshold


__all__ = ["EarlyExitRule", "fingerprint", "has_fingerprint"]
