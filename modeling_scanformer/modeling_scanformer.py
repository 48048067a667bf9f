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
"""PyTorch ScanFormer model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .adapters_scanformer import ScanFormerAdapterMixin
from .budget_scanformer import reg_attention
from .cache_scanformer import ScanCache
from .configuration_scanformer import ScanFormerConfig
from .early_exit_scanformer import EarlyExitRule
from .embeddings_scanformer import ScanFormerPatchEmbeddings, ScanFormerTextEmbeddings, embedding_row
from .generation_scanformer import OPTIONS, ScanFormerGenerationConfig, ScanFormerGenerationMixin
from .heads_scanformer import (
    INITIAL_SELECTION_LOGIT,
    ScanFormerBoxRefinement,
    ScanFormerPredictionHead,
    ScanFormerSelectionClassifier,
    ScanFormerSelectionHead,
)
from .layer_scanformer import MASKED_BIAS, ScanFormerLayer, ScanFormerZeroLinear
from .loss_scanformer import visual_grounding_loss
from .outputs_scanformer import ScanFormerModelOutput, ScanFormerVisualGroundingOutput
from .scan_scanformer import ScaleReading, Scan, check_pyramid, join_scans
from .selection_scanformer import select_all, select_children


logger = logging.get_logger(__name__)


class ScanFormerPreTrainedModel(ScanFormerAdapterMixin, PreTrainedModel):
    config: ScanFormerConfig
    config_class = ScanFormerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["ScanFormerTextEmbeddings", "ScanFormerPatchEmbeddings", "ScanFormerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ScanFormerSelectionClassifier):
            init.constant_(module.bias, INITIAL_SELECTION_LOGIT)
        elif isinstance(module, ScanFormerZeroLinear):
            init.zeros_(module.weight)

    def _replicate_for_data_parallel(self):
        raise NotImplementedError(
            "`torch.nn.DataParallel` cannot gather what each replica gives, because each reads its own number of patches. "
            "Start one process per device instead: `accelerate launch` or `torchrun`."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool = True, **kwargs):
        """
        As in every model, but pickled weights are read only on demand (`use_safetensors=False`).

        Raises:
            OSError: if the weights are missing or damaged.
            ValueError: if the checkpoint is of another model type.
        """
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path, *args, use_safetensors=use_safetensors, **kwargs
            )
        except SafetensorError as error:
            raise OSError(
                f"The weights (model.safetensors) of {pretrained_model_name_or_path} are damaged: {error}. Copy or download "
                "them again."
            ) from error


class ScanFormerModel(ScanFormerPreTrainedModel):
    """
    The ScanFormer encoder: reads an expression, then an image pyramid scale by scale, coarse to fine, and at every scale
    only the patches that the scale before selected.

    With a device map its modules lie on several devices: what each gives comes back to the device of the inputs, where
    all that lies between them is computed.

    Args:
        config ([`ScanFormerConfig`]):
            Configuration of the model.
    """

    def __init__(self, config: ScanFormerConfig):
        super().__init__(config)
        self.text_embeddings = ScanFormerTextEmbeddings(config)
        self.patch_embeddings = ScanFormerPatchEmbeddings(config)
        self.modality_embeddings = nn.Embedding(2, config.hidden_size)
        self.reg_tokens = nn.Embedding(config.num_scales, config.hidden_size)
        self.layers = nn.ModuleList([ScanFormerLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.num_scales > 1:
            if config.use_constant_token:
                self.constant_token = nn.Embedding(1, config.hidden_size)
            self.selection_head = ScanFormerSelectionHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.text_embeddings.word_embeddings = value

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.LongTensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        past_key_values: ScanCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScanFormerModelOutput:
        r"""
        Reads all scales, in the fused schedule. On the CPU samples that read much more than others are read apart from them,
        unless the cache or attentions are wanted.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Tokens of the expressions. Not together with `past_key_values`.
            attention_mask (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                1 for tokens, 0 for padding.
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_patches, 3 * patch_size**2)`):
                Flattened patches of the image pyramid; see [`ScanFormerImageProcessor`].
            pixel_attention_mask (`torch.LongTensor` of shape `(batch_size, num_patches)`):
                1 for real patches, 0 for padding.
            spatial_shapes (`torch.LongTensor` of shape `(batch_size, num_scales, 2)`):
                Rows and columns of each scale's patch grid.
            past_key_values (`ScanCache`, *optional*):
                The text, already read by [`~ScanFormerModel.encode_text`], for as many rows as there are images or for
                one, which then serves every image. It is left as it is.
            use_cache (`bool`, *optional*):
                Whether to return the cache.

        Raises:
            ValueError: if inputs are missing or do not fit together, or for an option of `generate`.
        """
        misplaced = sorted(set(kwargs).intersection(OPTIONS))
        if misplaced:
            raise ValueError(f"`forward` reads all scales and does not know {misplaced}: give them to `generate`.")
        scan = self.start_scan(
            input_ids, attention_mask, pixel_values, pixel_attention_mask, spatial_shapes, past_key_values, use_cache
        )
        scan.wants_last_logits = self.config.num_scales > 1
        wanted = {
            name: getattr(self.config, name) if kwargs.get(name) is None else kwargs[name]
            for name in ("output_hidden_states", "output_attentions")
        }
        scan.keeps_hidden_states = wanted["output_hidden_states"]
        if wanted["output_attentions"]:
            if self.config._attn_implementation == "eager":
                scan.attentions = {}
            else:
                logger.warning_once(
                    "`output_attentions=True` needs the attention implementation that keeps its weights: no attentions "
                    "are returned. Call `model.set_attn_implementation('eager')` first."
                )
        return self.assemble_output(join_scans(self.finish_scan(scan)))

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP shards the layers: every process then has to call them equally often."""
        return any(isinstance(layer, FSDPModule) for layer in self.layers)

    def encode_text(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None) -> ScanCache:
        """
        Read expressions once, to ground them in many images.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`):
                Tokens of the expressions.
            attention_mask (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                1 for tokens, 0 for padding.

        Returns:
            [`ScanCache`]: keys and values of the text, to be passed as `past_key_values`.
        """
        cache = ScanCache()
        hidden_states = self._embed_text(input_ids, attention_mask, cache)
        for index, layer in enumerate(self.layers):
            hidden_states, keys, values, _ = layer(hidden_states, None, None, cache.key_bias, [hidden_states.shape[1]])
            cache.update(keys, values, index)
        return cache

    def start_scan(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.LongTensor | None,
        pixel_values: torch.FloatTensor | None,
        pixel_attention_mask: torch.LongTensor | None,
        spatial_shapes: torch.LongTensor | None,
        past_key_values: ScanCache | None = None,
        use_cache: bool | None = False,
        num_scales: int | None = None,
        threshold: float | None = None,
    ) -> Scan:
        """
        Check the inputs and embed the text. Arguments as in [`~ScanFormerModel.forward`]; `num_scales` limits the scales
        to read, `threshold` replaces the configured selection threshold.
        """
        offsets = check_pyramid(self.config, pixel_values, pixel_attention_mask, spatial_shapes)
        if (input_ids is None) == (past_key_values is None):
            raise ValueError(
                "Give the text either as `input_ids` or, already read by `encode_text`, as `past_key_values`."
            )
        if past_key_values is not None and not isinstance(past_key_values, ScanCache):
            raise ValueError(
                f"`past_key_values` is the `ScanCache` that `encode_text` returns, got a {type(past_key_values).__name__}."
            )
        batch_size = pixel_values.shape[0]
        text_rows = past_key_values.batch_size if input_ids is None else input_ids.shape[0]
        if text_rows != batch_size and not (input_ids is None and text_rows == 1):
            raise ValueError(
                f"Got {text_rows} expressions but {batch_size} images. Give one expression per image, or one cached "
                "expression for all of them."
            )

        if past_key_values is not None:
            if past_key_values.num_scales > 0:
                raise ValueError(
                    f"`past_key_values` holds {past_key_values.num_scales} scales of an image already. Pass "
                    "`past_key_values.text_prefix()` to ground the same text in other images."
                )
            cache, text_states = past_key_values.copy(), None
            if text_rows != batch_size:
                cache.batch_repeat_interleave(batch_size)
        else:
            cache = ScanCache()
            text_states = self._embed_text(input_ids, attention_mask, cache)
        return Scan(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            offsets=offsets,
            num_scales=self.config.num_scales if num_scales is None else num_scales,
            threshold=self.config.selection_threshold if threshold is None else threshold,
            use_cache=bool(use_cache),
            wants_last_logits=False,
            rows=torch.arange(batch_size, device=pixel_values.device),
            cache=cache,
            text_states=text_states,
            selection=select_all(pixel_attention_mask[:, : offsets[1]]),
        )

    def finish_scan(self, scan: Scan, rule: EarlyExitRule | None = None) -> list[Scan]:
        """
        Read the scales that are left in the fused schedule: each sample no further than the rule says, if there is one, and on
        the CPU those that read much more than others apart from them, by [`Scan.split`]. Gives the parts, in any order.
        """
        stays_whole = self.is_sharded
        unfinished, finished = [scan], []
        while unfinished:
            part = unfinished.pop()
            if part.finished:
                self.encode_pending(part)
                finished.append(part)
                continue
            self.read_scale(part)
            parts = [part]
            if rule is not None and not part.finished:
                parts = part.stop(rule.stops(part.early_reg_state(), part.scale - 1))
            for part in parts:
                unfinished.extend([part] if stays_whole else part.split())
        return finished

    def read_scale(self, scan: Scan):
        """Run Encoder1 over the next scale (and over the text, if it is still unread) and select what to read after it."""
        scale, selection = scan.scale, scan.selection
        blocks = [self._embed_scale(scan)]
        reading = ScaleReading(replace(selection, gates=None, rejected=None))
        hidden_states = [reading.hidden_states]
        if scan.text_states is not None:
            blocks.insert(0, scan.text_states)
            hidden_states.insert(0, scan.text_hidden_states)
            scan.text_states, scan.text_is_pending = None, True
        scan.readings.append(reading)
        scan.selection = None

        blocks = self._run_layers(scan, blocks, range(self.config.selection_layer), hidden_states)
        scan.pending.extend(blocks)
        if not scan.finished or scan.wants_last_logits:
            logits = self.selection_head(blocks[-1][:, 1 : 1 + selection.indices.shape[1]])
            reading.logits = logits.to(selection.indices.device)
        if not scan.finished:
            self._watch_reg(scan)
            scan.selection = select_children(
                selection,
                reading.logits,
                columns=scan.grid(scale)[:, 1],
                patch_mask=scan.patch_mask(scale + 1),
                threshold=scan.threshold,
                gated=self.training,
                limit=None if scan.budget is None else partial(scan.budget, scan),
            )

    def _watch_reg(self, scan: Scan):
        """Note how much [REG] looks at every patch of the scale just read, where a token budget wants to know."""
        reading = scan.readings[-1]
        num_patches = reading.selection.indices.shape[1]
        for index, reg_states in scan.reg_inputs.items():
            keys, _ = scan.cache.states(index)
            attention = reg_attention(self.layers[index], reg_states, keys, scan.cache.key_bias).to(scan.rows.device)
            first = keys.shape[2] - scan.pending[-1].shape[1] + 1
            reading.reg_attention[index] = attention[:, first : first + num_patches]

    def encode_pending(self, scan: Scan):
        """Run Encoder2 over everything that Encoder1 has read since the last call."""
        num_scales = len(scan.pending) - scan.text_is_pending
        hidden_states = [reading.hidden_states for reading in scan.readings[-num_scales:]]
        if scan.text_is_pending:
            hidden_states.insert(0, scan.text_hidden_states)
        layers = range(self.config.selection_layer, len(self.layers))
        blocks = self._run_layers(scan, scan.pending, layers, hidden_states)[-num_scales:]
        for reading, block in zip(scan.readings[-num_scales:], blocks):
            block = self.layernorm(block).to(block.device)
            reading.reg_state = block[:, 0]
            reading.patch_states = block[:, 1 : 1 + reading.selection.indices.shape[1]]
        scan.pending, scan.text_is_pending = [], False

    def assemble_output(self, scan: Scan) -> ScanFormerModelOutput:
        """The output of a scan that all samples finished together."""
        return ScanFormerModelOutput(
            reg_states=torch.stack([reading.reg_state for reading in scan.readings], dim=1),
            patch_states=tuple(reading.patch_states for reading in scan.readings),
            patch_indices=tuple(reading.selection.marked_indices for reading in scan.readings),
            selection_masks=tuple(scan.selection_mask(scale) for scale in range(scan.num_scales)),
            selection_logits=tuple(reading.logits for reading in scan.readings if reading.logits is not None),
            past_key_values=scan.cache if scan.use_cache else None,
            hidden_states=self._join_hidden_states(scan) if scan.keeps_hidden_states else None,
            attentions=None
            if scan.attentions is None
            else tuple(_join_attentions(weights) for _, weights in sorted(scan.attentions.items())),
        )

    def _join_hidden_states(self, scan: Scan) -> tuple[torch.Tensor, ...]:
        """By layer, those of the text (unless it came cached) and of all scales, one after another."""
        blocks = [reading.hidden_states for reading in scan.readings]
        if scan.text_hidden_states:
            blocks.insert(0, scan.text_hidden_states)
        return tuple(torch.cat(states, dim=1) for states in zip(*blocks))

    def _run_layers(
        self, scan: Scan, blocks: list[torch.Tensor], layers: range, kept: list[list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """
        Run layers over blocks that follow what is cached, and write their keys and values to the cache. `kept` is where the
        hidden states of each block go, if the scan keeps them.
        """

        def keep(hidden_states: torch.Tensor):
            if scan.keeps_hidden_states:
                for states, block in zip(kept, hidden_states.split(block_lengths, dim=1)):
                    states.append(block)

        hidden_states = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]
        block_lengths = [block.shape[1] for block in blocks]
        for index in layers:
            keep(hidden_states)
            if scan.budget is not None and index in scan.budget.watched_layers:
                scan.reg_inputs[index] = hidden_states[:, -block_lengths[-1]]
            past_keys, past_values = scan.cache.states(index)
            hidden_states, keys, values, weights = self.layers[index](
                hidden_states, past_keys, past_values, scan.cache.key_bias, block_lengths
            )
            if scan.keeps_keys:
                scan.cache.update(keys, values, index)
            if scan.attentions is not None:
                scan.attentions.setdefault(index, []).extend(weights)
        hidden_states = hidden_states.to(blocks[0].device)
        if layers.stop == len(self.layers):
            keep(hidden_states)
        return list(hidden_states.split(block_lengths, dim=1))

    def _embed_text(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None, cache: ScanCache
    ) -> torch.Tensor:
        if input_ids.shape[1] == 0:
            raise ValueError("The expressions have no tokens. Say which object is meant.")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"The expression has {input_ids.shape[1]} tokens, but the model reads at most "
                f"{self.config.max_position_embeddings}. Shorten it, or let the processor do so with `truncation=True`."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` of shape {tuple(attention_mask.shape)} does not fit `input_ids` of shape "
                f"{tuple(input_ids.shape)}."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        cache.extend_bias(self._masked_bias(mask))
        cache.text_length = input_ids.shape[1]
        modality = embedding_row(self.modality_embeddings, 0, input_ids.device)
        return self.text_embeddings(input_ids, mask).to(input_ids.device) + modality

    def _embed_scale(self, scan: Scan) -> torch.Tensor:
        """
        The tokens of the next scale: [REG], the selected patches, and what stands for the others. `e_j` is embedded for
        selected patches only; in training also for the unselected children of selected parents, whose gates get a gradient
        although their value is the constant token's (design: x_j = k_j e_j + (1 - k_j) c, straight-through). Without a
        constant token c is 0 and nothing stands for the others. The convolution of an unselected child reads the selected
        patches around it; theirs do not read it.
        """
        scale, selection = scan.scale, scan.selection
        batch_size, device = len(scan.rows), selection.indices.device
        modality = embedding_row(self.modality_embeddings, 1, device)
        constant = None
        if scale > 0 and self.config.use_constant_token:
            constant = embedding_row(self.constant_token, 0, device)

        indices, read = selection.indices, selection.mask
        rejected = None if constant is None else selection.rejected
        if rejected is not None:
            indices = torch.cat([indices, rejected.indices], dim=1)
            read = torch.cat([read, torch.zeros_like(rejected.mask)], dim=1)
        neighbors = scan.neighbors(indices, read, scale) if self.config.num_convolution_layers > 0 else None
        patches = self.patch_embeddings(scan.patches(indices, scale), indices, scan.grid(scale), scale, neighbors)
        patches = patches.to(device) + modality
        num_selected = selection.indices.shape[1]
        patches, unselected = patches[:, :num_selected], patches[:, num_selected:]

        reg = (embedding_row(self.reg_tokens, scale, device) + modality).expand(batch_size, 1, -1)
        tokens = [reg, patches]
        biases = [self._masked_bias(selection.mask.new_ones(batch_size, 1)), self._masked_bias(selection.mask)]
        # gates are 0: what they are multiplied by gets no gradient, but they do
        if scale > 0 and selection.gates is not None:
            pull = (patches if constant is None else patches - constant).detach()
            tokens[1] = patches + selection.gates[..., None].to(patches.dtype) * pull
        if constant is not None:
            rejected_pull = None
            if rejected is not None:
                gates = (rejected.gates * rejected.mask)[..., None].to(patches.dtype)
                rejected_pull = gates * (unselected - constant).detach()
            constants, bias = self._constant_tokens(constant, selection.num_unselected, rejected_pull)
            tokens.append(constants)
            biases.append(bias)
        scan.cache.extend_bias(torch.cat(biases, dim=1))
        scan.cache.num_scales += 1
        return torch.cat([token.to(patches.dtype) for token in tokens], dim=1)

    def _constant_tokens(
        self, constant: torch.Tensor, num_unselected: torch.Tensor, rejected_pull: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What stands for the n unselected patches: one token whose attention logits get + log n, or n tokens.

        Args:
            constant (`torch.Tensor` of shape `(hidden_size,)`):
                The constant token.
            num_unselected (`torch.Tensor` of shape `(batch_size,)`):
                n.
            rejected_pull (`torch.Tensor` of shape `(batch_size, num_rejected, hidden_size)`, *optional*):
                The straight-through term of the unselected children of selected parents. Its value is 0.

        Returns:
            Tokens of shape `(batch_size, 1 or max(n), hidden_size)` and their key bias.
        """
        batch_size = num_unselected.shape[0]  # len() would fix it in an export
        if self.config.merge_constant_tokens:
            token = constant.expand(batch_size, -1)
            if rejected_pull is not None:
                token = token + rejected_pull.sum(1) / num_unselected.clamp(min=1)[:, None]
            log_count = num_unselected.clamp(min=1).to(self._bias_dtype).log()
            return token[:, None], log_count.where(num_unselected > 0, MASKED_BIAS)[:, None]
        most = int(num_unselected.max())
        tokens = constant.expand(batch_size, most, -1)
        if rejected_pull is not None:
            missing = most - rejected_pull.shape[1]
            tokens = tokens + nn.functional.pad(rejected_pull, (0, 0, 0, missing))
        positions = torch.arange(most, device=num_unselected.device)
        return tokens, self._masked_bias(positions < num_unselected[:, None])

    @property
    def _bias_dtype(self) -> torch.dtype:
        return torch.promote_types(self.layernorm.weight.dtype, torch.float32)

    def _masked_bias(self, mask: torch.Tensor) -> torch.Tensor:
        """Key bias of a boolean mask: 0 where a key may be seen."""
        return torch.zeros(mask.shape, dtype=self._bias_dtype, device=mask.device).masked_fill(~mask, MASKED_BIAS)


def _join_attentions(weights: list[torch.Tensor]) -> torch.Tensor:
    """Stack the attention weights of blocks, widening each to all keys by zeros."""
    num_keys = weights[-1].shape[-1]
    return torch.cat([nn.functional.pad(weight, (0, num_keys - weight.shape[-1])) for weight in weights], dim=2)


def _to_full(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """At least in float32, on the given device."""
    return values.to(device, torch.promote_types(values.dtype, torch.float32))


class ScanFormerForVisualGrounding(ScanFormerPreTrainedModel, ScanFormerGenerationMixin):
    """
    ScanFormer with a box and a score for every scale: referring expression comprehension, an image and an expression in,
    one box out.

    Args:
        config ([`ScanFormerConfig`]):
            Configuration of the model.
    """

    generation_config_class = ScanFormerGenerationConfig

    def __init__(self, config: ScanFormerConfig):
        super().__init__(config)
        self.model = ScanFormerModel(config)
        self.box_head = ScanFormerPredictionHead(config, num_outputs=4)
        self.score_head = ScanFormerPredictionHead(config, num_outputs=1)
        if config.refine_boxes:
            self.box_refinement = ScanFormerBoxRefinement(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.model.set_input_embeddings(value)

    def encode_text(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None) -> ScanCache:
        """See [`ScanFormerModel.encode_text`]."""
        return self.model.encode_text(input_ids, attention_mask)

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.LongTensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        past_key_values: ScanCache | None = None,
        labels: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScanFormerVisualGroundingOutput:
        r"""
        Reads all scales. All arguments but `labels` are those of [`ScanFormerModel.forward`].

        Args:
            labels (`torch.FloatTensor` of shape `(batch_size, 4)`, *optional*):
                True boxes as (center_x, center_y, width, height) relative to the image, in [0, 1]. A row of NaN says
                that nothing in the image fits the expression: only the score learns from it.

        Examples:

        ```python
        >>> from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor, read_image

        >>> checkpoint = "hub_cards/scanformer-tiny-scenes"
        >>> model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
        >>> processor = ScanFormerProcessor.from_pretrained(checkpoint)

        >>> image = read_image("examples/demo.png")
        >>> inputs = processor(images=image, text="the violet disc", return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> result = processor.post_process_visual_grounding(outputs, target_sizes=[image.size[::-1]])[0]
        ```"""
        if None not in (labels, pixel_values) and labels.shape != (pixel_values.shape[0], 4):
            raise ValueError(
                f"Expected `labels` of shape {(pixel_values.shape[0], 4)}, one relative (center_x, center_y, width, height) "
                f"per image, got {tuple(labels.shape)}."
            )
        outputs: ScanFormerModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        boxes, score_logits = self.predict(outputs.reg_states)
        reg_boxes = None
        if self.config.refine_boxes:
            reg_boxes = boxes
            boxes = self.refine(reg_boxes, outputs.patch_states, outputs.patch_indices, spatial_shapes.unbind(1))
        loss, loss_dict = None, None
        if labels is not None:
            patch_boxes = []
            if self.config.patch_box_loss_coefficient > 0:
                patch_boxes = [self._predict_boxes(states) for states in outputs.patch_states]
            loss, loss_dict = visual_grounding_loss(
                self.config,
                boxes,
                score_logits,
                reg_boxes,
                patch_boxes,
                labels,
                outputs,
                pixel_attention_mask,
                spatial_shapes,
            )
        scores = score_logits.sigmoid()
        return ScanFormerVisualGroundingOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_boxes=boxes[:, -1],
            scores=scores[:, -1],
            scale_boxes=boxes,
            scale_scores=scores,
            patch_indices=outputs.patch_indices,
            selection_masks=outputs.selection_masks,
            selection_logits=outputs.selection_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def predict(self, reg_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Boxes and scores of [REG] states.

        Args:
            reg_states (`torch.Tensor` of shape `(..., hidden_size)`):
                Encoder2's outputs.

        Returns:
            Boxes of shape `(..., 4)`, relative (center_x, center_y, width, height), and score logits of shape `(...)`, at
            least in float32. The boxes are not refined yet.
        """
        return self._predict_boxes(reg_states), _to_full(self.score_head(reg_states)[..., 0], reg_states.device)

    def refine(
        self,
        boxes: torch.Tensor,
        patch_states: Sequence[torch.Tensor],
        patch_indices: Sequence[torch.Tensor],
        grids: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """
        Boxes as a model with `config.refine_boxes` answers them, of what [`~ScanFormerForVisualGrounding.predict`] gives.

        Args:
            boxes (`torch.Tensor` of shape `(batch_size, num_scales, 4)`):
                From [REG].
            patch_states, patch_indices, grids (`Sequence[torch.Tensor]`):
                Of every scale; see [`ScanFormerBoxRefinement`].
        """
        refined = [
            self.box_refinement(*scale).to(boxes.device)
            for scale in zip(boxes.unbind(1), patch_states, patch_indices, grids)
        ]
        return torch.stack(refined, dim=1)

    def _predict_boxes(self, states: torch.Tensor) -> torch.Tensor:
        return _to_full(self.box_head(states), states.device).sigmoid()


__all__ = [
    "ScanFormerForVisualGrounding",
    "ScanFormerModel",
    "ScanFormerPreTrainedModel",
]
