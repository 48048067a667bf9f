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

import torch
from torch import nn

from .loss_scanformer import box_iou, center_to_corners
from .packing_scanformer import PackedLinear


# What a scale shows, in the order of a rule's weights; see `exit_signals`. The last is as long as a hidden state.
SIGNALS = ("score", "agreement", "wanted", "change", "state")

# How much of a weight the rounding of half precision may change.
FINGERPRINT_TOLERANCE = 2.0**-7


def exit_signals(
    score_logits: torch.Tensor,
    boxes: torch.Tensor,
    reg_states: torch.Tensor,
    previous: tuple[torch.Tensor, torch.Tensor] | None,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """
    What a scale shows of whether a finer one would change the answer.

    Args:
        score_logits (`torch.Tensor` of shape `(batch_size,)`):
            Scores of this scale's boxes, before the sigmoid.
        boxes (`torch.Tensor` of shape `(batch_size, 4)`):
            This scale's boxes, relative (center_x, center_y, width, height).
        reg_states (`torch.Tensor` of shape `(batch_size, hidden_size)`):
            Encoder2's outputs of this scale's [REG].
        previous (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Boxes and [REG] states of the scale before; `None` at the coarsest.
        wanted (`torch.Tensor` of shape `(batch_size,)`):
            Share of the next scale's patches that the selection asks for.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 4 + hidden_size)`: the score's logit; the IoU of the box with the one of
        the scale before; `wanted`; 1 - the cosine of the [REG] states of the two scales; and the [REG] state itself. The
        second and fourth are 0 at the coarsest scale.
    """
    if previous is None:
        agreement = change = torch.zeros_like(wanted)
    else:
        agreement, _ = box_iou(center_to_corners(boxes), center_to_corners(previous[0]))
        change = 1 - nn.functional.cosine_similarity(reg_states.float(), previous[1].float())
    numbers = torch.stack([signal.float() for signal in (score_logits, agreement, wanted, change)], dim=1)
    return torch.cat([numbers, reg_states.float()], dim=1)


def fingerprint(model, with_adapters: bool = True) -> list[float]:
    """
    Numbers by which a [`ScanFormerForVisualGrounding`] is recognized: the first weight of what each layer's queries, values
    and outputs come from, of how patches come in and are selected, of both heads, and, unless told otherwise, of adapters, if
    it carries any.
    """
    linears = [model.box_head.out_proj, model.score_head.out_proj, model.model.patch_embeddings.projection]
    if model.config.num_scales > 1:
        linears.append(model.model.selection_head.classifier)
    for layer in model.model.layers:
        linears += [layer.attention.q_proj, layer.attention.v_proj, layer.mlp.fc2]
    linears = [getattr(linear, "base_layer", linear) for linear in linears]  # below an adapter
    numbers = [
        _first_number(linear, "first_weight" if isinstance(linear, PackedLinear) else "weight") for linear in linears
    ]
    if with_adapters and getattr(model, "peft_config", None):
        for path, module in model.named_modules():
            names = [name for name, _ in module.named_parameters(recurse=False) if "lora_" in f"{path}.{name}"]
            numbers += [_first_number(module, name) for name in names]
    # one transfer from the device, as every scan with a rule is preceded by this
    found = torch.stack([number.to(numbers[0].device, torch.float32) for number in numbers])
    return [float(f"{number:.6g}") for number in found.tolist()]


def _first_number(module: nn.Module, name: str) -> torch.Tensor:
    """Of a module's weight, which may be a vector; one that Accelerate has offloaded is fetched for the moment."""
    offloaded = getattr(module, name).is_meta
    if offloaded:
        module._hf_hook.pre_forward(module)
    number = getattr(module, name).detach().flatten()[0]
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
    A sample leaves the scan at scale s as soon as `sigmoid(weights[s] . signals + biases[s]) >= threshold`.

    Args:
        weights (`list[list[float]]`):
            Weights of the `SIGNALS`, `4 + hidden_size` of them, for every scale but the last.
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
        if len(self.weights) != len(self.biases) or any(len(row) < len(SIGNALS) for row in self.weights):
            raise ValueError(
                "An early exit rule needs an offset, and a weight of everything that a scale shows, for every scale but the "
                "last: calibrate again."
            )
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
        num_signals = len(SIGNALS) - 1 + model.config.hidden_size
        if any(len(row) != num_signals for row in self.weights):
            raise ValueError(f"An early exit rule for this model has {num_signals} weights a scale: calibrate again.")
        num_exits = options.get("max_scales", model.config.num_scales) - 1
        if options != self.options or len(self.weights) != num_exits:
            raise ValueError(
                f"The early exit rule was calibrated for {len(self.weights)} exits with the options {self.options}, but "
                f"the scan has {num_exits} exits and the options {options}. Use the same, or calibrate again."
            )

    def stopping_score(self, signals: torch.Tensor, scale: int) -> torch.Tensor:
        """Stopping scores in [0, 1], of shape `(batch_size,)`, from [`exit_signals`] of a scale."""
        return (signals @ signals.new_tensor(self.weights[scale]) + self.biases[scale]).sigmoid()


__all__ = ["EarlyExitRule", "exit_signals", "fingerprint", "has_fingerprint"]
