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
"""ScanFormer model configuration"""

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .portability_scanformer import IS_REMOTE_CODE, code_entries, renew_code_entries


logger = logging.get_logger(__name__)

# How many times narrower sparse convolutions are than the encoder, as the bottlenecks of ResNet (arXiv 1512.03385).
CONVOLUTION_REDUCTION = 4

POSITIVE_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "patch_size",
    "num_scales",
    "position_grid_size",
)


@strict
class ScanFormerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ScanFormerModel`]. The defaults give the base size: ViLT-B/32 reading a pyramid of three scales.

    Args:
        vocab_size (`int`, *optional*, defaults to 30522):
            Number of word pieces.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of layers of Encoder1 and Encoder2 together.
        selection_layer (`int`, *optional*, defaults to 6):
            Layers `[0, selection_layer)` are Encoder1, whose output selects the patches of the next scale; the rest are
            Encoder2, whose output gives the box.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the MLP in every layer.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of embeddings and layer outputs. Merging the unselected patches into one token is exact only without
            dropout.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of attention weights; see `hidden_dropout_prob`.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether the query, key and value projections have a bias.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of the layer norms.
        max_position_embeddings (`int`, *optional*, defaults to 40):
            Longest expression in tokens.
        pad_token_id (`int`, *optional*, defaults to 0):
            Id of the padding token.
        patch_size (`int`, *optional*, defaults to 32):
            Side of a patch in pixels, at every scale.
        num_scales (`int`, *optional*, defaults to 3):
            Number of scales of the pyramid, each with twice the side of the one before. With 1 there is neither
            selection nor constant token: the dense, single-scale baseline.
        position_grid_size (`int`, *optional*, defaults to 12):
            Side of the grid of learned positions, interpolated to the patch grid of every scale.
        num_convolution_layers (`int`, *optional*, defaults to 0):
            Number of residual 3 x 3 convolutions over the embeddings of the patches that are read; those that are not count as
            0. The paper has none. New ones change nothing until they are trained.
        refine_boxes (`bool`, *optional*, defaults to `False`):
            Whether the patch that is read nearest to the center of a box from [REG], if it is no more than 2 patches away, moves
            it by up to 2 patches along either axis, and resizes it by up to a factor of e, at every scale. In the paper none does.
            [REG]'s box and the refined one both have the losses of a box, and the refined one sends no gradient to [REG]'s. A new
            refinement changes no answer until it is trained.
        selection_threshold (`float`, *optional*, defaults to 0.5):
            A patch is selected where the sigmoid of its logit exceeds this. 0.0 reads everything, 1.0 nothing beyond the
            coarsest scale.
        use_constant_token (`bool`, *optional*, defaults to `True`):
            Whether a learned constant token stands for each unselected patch, as in the paper. `False` drops these patches
            outright: the ablation.
        merge_constant_tokens (`bool`, *optional*, defaults to `True`):
            Whether the unselected patches of a scale are merged into one token that counts for all of them. `False`
            keeps one constant token per unselected patch: the same numbers, for more work. Without a constant token it
            changes nothing.
        bbox_loss_coefficient (`float`, *optional*, defaults to 5.0):
            Weight of the L1 loss of the box of every scale.
        giou_loss_coefficient (`float`, *optional*, defaults to 2.0):
            Weight of the generalized IoU loss of the box of every scale.
        patch_box_loss_coefficient (`float`, *optional*, defaults to 3.0):
            Weight of the auxiliary loss that asks every patch read that overlaps the target for the target's box, by the
            head that gives [REG]'s. Inference does not change.
        score_loss_coefficient (`float`, *optional*, defaults to 1.0):
            Weight of the cross-entropy of the score of every scale against the IoU of its box.
        relevance_loss_coefficient (`float`, *optional*, defaults to 30.0):
            Weight of the auxiliary loss that asks each selection logit whether its child overlaps the target.
        selection_rate_loss_coefficient (`float`, *optional*, defaults to 1.0):
            Weight of the squared distance between the share of selected patches and `selection_target_rate`. Not applied
            while everything is read (`selection_threshold=0.0`).
        selection_target_rate (`float`, *optional*, defaults to 0.35):
            Share of the patches of every scale but the coarsest that the selection rate loss asks for.
        use_cache (`bool`, *optional*, defaults to `False`):
            Whether the model returns the keys and values of what it has read.

    Example:

    ```python
    >>> from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding

    >>> configuration = ScanFormerConfig()
    >>> model = ScanFormerForVisualGrounding(configuration)  # random weights
    ```"""

    model_type = "scanformer"
    # they differ in number from batch to batch, so Trainer cannot gather them
    keys_to_ignore_at_inference = [
        "loss_dict",
        "patch_indices",
        "selection_masks",
        "selection_logits",
        "past_key_values",
        "hidden_states",
        "attentions",
    ]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    selection_layer: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    qkv_bias: bool = True
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 40
    pad_token_id: int | None = 0
    patch_size: int = 32
    num_scales: int = 3
    position_grid_size: int = 12
    num_convolution_layers: int = 0
    refine_boxes: bool = False
    selection_threshold: float | int = 0.5
    use_constant_token: bool = True
    merge_constant_tokens: bool = True
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    patch_box_loss_coefficient: float | int = 3.0
    score_loss_coefficient: float | int = 1.0
    relevance_loss_coefficient: float | int = 30.0
    selection_rate_loss_coefficient: float | int = 1.0
    selection_target_rate: float | int = 0.35
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        is_merging = self.use_constant_token and self.merge_constant_tokens
        if is_merging and max(self.hidden_dropout_prob, self.attention_probs_dropout_prob) > 0:
            logger.warning_once(
                "Dropout is set together with `merge_constant_tokens=True`: in training one merged token then draws one "
                "dropout mask for all unselected patches, so it no longer equals them exactly."
            )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"The checkpoint is of model type '{model_type}', not '{cls.model_type}'. Load it with the classes of "
                f"'{model_type}', or convert it first."
            )
        try:
            loaded = super().from_dict(config_dict if IS_REMOTE_CODE else renew_code_entries(config_dict), **kwargs)
            # again: `kwargs` may have changed it
            (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
            return loaded
        except StrictDataclassError as error:
            raise ValueError(f"The configuration makes no sense. {error}") from error

    def to_diff_dict(self):
        return renew_code_entries(super().to_diff_dict(), code_entries)

    def validate_architecture(self):
        """Validates that the sizes fit together. Called by the strict dataclass after initialisation."""
        for name in POSITIVE_SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_convolution_layers < 0:
            raise ValueError(f"`num_convolution_layers` must be at least 0, got {self.num_convolution_layers}.")
        if self.num_convolution_layers > 0 and self.hidden_size < CONVOLUTION_REDUCTION:
            raise ValueError(
                f"Sparse convolutions need a `hidden_size` of at least {CONVOLUTION_REDUCTION}, got {self.hidden_size}."
            )
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if not 1 <= self.selection_layer < self.num_hidden_layers:
            raise ValueError(
                f"`selection_layer` must be at least 1 and below `num_hidden_layers` ({self.num_hidden_layers}), got "
                f"{self.selection_layer}."
            )
        if not 0.0 <= self.selection_threshold <= 1.0:
            raise ValueError(f"`selection_threshold` must lie in [0, 1], got {self.selection_threshold}.")
        if not 0.0 <= self.selection_target_rate <= 1.0:
            raise ValueError(f"`selection_target_rate` must lie in [0, 1], got {self.selection_target_rate}.")


__all__ = ["ScanFormerConfig"]
