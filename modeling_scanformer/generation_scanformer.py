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
"""Scanning with a cache: reads one scale at a time, and only what is needed."""

import copy
from typing import Any, NamedTuple

import torch
from transformers.generation import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from .budget_scanformer import BUDGET_SCORES, BUDGET_SPLITS
from .cache_scanformer import ScanCache
from .early_exit_scanformer import EarlyExitRule
from .outputs_scanformer import ScanFormerVisualGroundingOutput
from .scan_scanformer import ScaleReading, Scan
from .selection_scanformer import join_rows


# What `generate` can be asked for.
SCAN_OPTIONS = ("max_scales", "selection_threshold", "token_budget", "budget_split", "budget_score")
OPTIONS = (*SCAN_OPTIONS, "stopping_score", "early_exit")
WHERE_FILES_ARE = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


class ScanFormerGenerationConfig(GenerationConfig):
    """
    Options of [`~ScanFormerForVisualGrounding.generate`], saved with the model as `generation_config.json`.

    Args:
        max_scales (`int`, *optional*):
            Number of scales to read at most. All by default.
        selection_threshold (`float`, *optional*):
            Replaces the model's `selection_threshold`: higher reads fewer patches.
        token_budget (`float` or `int` or `list`, *optional*):
            The most patches that a sample may read: a share (`float`) or a number (`int`) of the patches of all scales, or a
            list with a share or a number for every scale. It holds for every sample, and limits what the threshold
            selects: with `selection_threshold=0` all of it is read. The coarsest scale is always read whole.
        budget_split (`str`, *optional*, defaults to `"none"`):
            How a scale's budget is shared out over regions of the picture, each being what one patch of the coarsest scale
            covers: `"none"`, without regions; `"content"`, in proportion to what [REG] looks at in the first layer (HiRED,
            arXiv 2408.10945); or `"even"`.
        budget_score (`str`, *optional*, defaults to `"informativeness"`):
            Which patches are read where not all can be: those of the highest learned `"informativeness"`; those whose
            parents get most `"attention"` of [REG] in Encoder1's last layer; and two baselines, `"random"` and `"center"`.
        stopping_score (`float`, *optional*):
            A sample leaves the batch as soon as the score of a box reaches this value. Never by default.
        early_exit (`bool`, *optional*):
            Whether samples leave the batch by the calibrated `early_exit_rule`.
        early_exit_rule (`dict`, *optional*):
            An [`EarlyExitRule`] as a dictionary; `examples/calibrate_early_exit.py` makes it.

    Raises:
        ValueError: for an unknown option or a senseless value.
    """

    # Trainer writes the tokenizer's special tokens into every generation config; a scan has no use for them.
    eos_token_id = bos_token_id = pad_token_id = property(lambda self: None, lambda self, value: None)

    def __init__(self, **kwargs):
        # The parent's options are those of sampling text; none of them means anything here.
        self.max_scales: int | None = kwargs.pop("max_scales", None)
        self.selection_threshold: float | None = kwargs.pop("selection_threshold", None)
        self.token_budget: float | int | list | None = kwargs.pop("token_budget", None)
        self.budget_split: str | None = kwargs.pop("budget_split", None)
        self.budget_score: str | None = kwargs.pop("budget_score", None)
        self.stopping_score: float | None = kwargs.pop("stopping_score", None)
        self.early_exit: bool | None = kwargs.pop("early_exit", None)
        self.early_exit_rule: dict | None = kwargs.pop("early_exit_rule", None)

        self._commit_hash: str | None = kwargs.pop("_commit_hash", None)
        self._from_model_config: bool | None = kwargs.pop("_from_model_config", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        if kwargs:
            raise ValueError(
                f"Unknown generation options: {sorted(kwargs)}. Known are {sorted((*OPTIONS, 'early_exit_rule'))}."
            )
        self.validate()

    def validate(self, **unused_kwargs):
        if self.max_scales is not None and (type(self.max_scales) is not int or self.max_scales < 1):
            raise ValueError(f"`max_scales` must be a positive integer, got {self.max_scales!r}.")
        for name in ("selection_threshold", "stopping_score"):
            value = getattr(self, name)
            if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
                raise ValueError(f"`{name}` must be a number in [0, 1], got {value!r}.")
        budgets = self.token_budget if isinstance(self.token_budget, list) else [self.token_budget]
        for budget in budgets if self.token_budget is not None else ():
            if not (isinstance(budget, float) and 0 <= budget <= 1 or type(budget) is int and budget >= 0):
                raise ValueError(
                    f"`token_budget` must be a share in [0, 1] (a float), a number of patches (an integer), or a list with "
                    f"one of these for every scale, got {self.token_budget!r}."
                )
        for name, known in (("budget_split", BUDGET_SPLITS), ("budget_score", BUDGET_SCORES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
            if value is not None and self.token_budget is None:
                raise ValueError(f"`{name}` says how a `token_budget` is spent, but there is none.")
        if self.early_exit not in (None, True, False):
            raise ValueError(f"`early_exit` must be true or false, got {self.early_exit!r}.")
        if self.early_exit and self.early_exit_rule is None:
            raise ValueError(
                "`early_exit` needs a calibrated rule, and this model has none: make one with "
                "examples/calibrate_early_exit.py, or stop at a score of your choice by `stopping_score`."
            )
        if self.early_exit and self.stopping_score is not None:
            raise ValueError("`early_exit` and `stopping_score` are two rules for one thing: give one of them.")
        if self.early_exit_rule is not None:
            EarlyExitRule.from_dict(self.early_exit_rule)

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        return {}

    def get_generation_mode(self, *args, **kwargs):
        raise NotImplementedError("A scan has no text generation mode.")

    def from_model_config(self, *args, **kwargs):
        # Transformers falls back to the class's defaults on this error.
        raise NotImplementedError("Scanning options are not kept in the model config.")


class ScaleResult(NamedTuple):
    """
    What a streamer gets after each scale.

    Args:
        scale (`int`):
            The scale, 0 is the coarsest.
        rows (`torch.LongTensor` of shape `(num_active,)`):
            Rows of the batch that read it.
        boxes (`torch.FloatTensor` of shape `(num_active, 4)`):
            Their boxes, relative (center_x, center_y, width, height).
        scores (`torch.FloatTensor` of shape `(num_active,)`):
            Their scores.
        selection_mask (`torch.BoolTensor` of shape `(num_active, num_patches)`):
            True at the patches of the scale that were read.
        wanted (`torch.FloatTensor` of shape `(num_active,)`):
            Share of the next scale's patches that the selection asks for; 0 after the last scale.
        early_reg_state (`torch.FloatTensor` of shape `(num_active, hidden_size)`):
            Encoder1's output of [REG], which an early exit is decided by; see [`EarlyExitRule`].
    """

    scale: int
    rows: torch.LongTensor
    boxes: torch.FloatTensor
    scores: torch.FloatTensor
    selection_mask: torch.BoolTensor
    wanted: torch.FloatTensor
    early_reg_state: torch.FloatTensor


class ScanFormerGenerationMixin:
    """`generate` for ScanFormer: the boxes are known scale by scale, as the tokens of a text are one by one."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.LongTensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        past_key_values: ScanCache | None = None,
        generation_config: ScanFormerGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs,
    ) -> ScanFormerVisualGroundingOutput:
        r"""
        Scan images for what the expressions say. Where nobody looks at the boxes on the way (no streamer, no
        `stopping_score`), Encoder2 runs once over everything that a sample reads, and on the CPU samples that read much more
        than others are read apart from them; otherwise it runs after every scale. The boxes are the same.

        Args:
            input_ids, attention_mask, pixel_values, pixel_attention_mask, spatial_shapes, past_key_values:
                See [`ScanFormerModel.forward`].
            generation_config ([`ScanFormerGenerationConfig`], *optional*):
                Options; the model's own by default.
            streamer (`BaseStreamer`, *optional*):
                Its `put` gets a [`ScaleResult`] as soon as a scale is read; its `end` is called at the end.
            **kwargs:
                Options of [`ScanFormerGenerationConfig`] that override the others.

        Returns:
            [`ScanFormerVisualGroundingOutput`] of the scales that were read.

        Raises:
            ValueError: for unknown arguments, senseless options, or inputs that do not fit together.
        """
        config = copy.copy(generation_config if generation_config is not None else self.generation_config)
        if not isinstance(config, ScanFormerGenerationConfig):
            raise ValueError(f"Expected a ScanFormerGenerationConfig, got a {type(config).__name__}.")
        unknown = sorted(set(kwargs) - set(OPTIONS))
        if unknown:
            raise ValueError(
                f"`generate` got unknown arguments {unknown}. Besides the model's inputs it takes a streamer and the "
                f"options {sorted(OPTIONS)}."
            )
        if "token_budget" in kwargs and kwargs["token_budget"] is None:
            # nothing is left of a saved budget, also of how it was to be spent
            config.budget_split = config.budget_score = None
        config.update(**kwargs)
        num_scales = self.config.num_scales
        if config.max_scales is not None and config.max_scales > num_scales:
            raise ValueError(f"`max_scales` is {config.max_scales}, but the model has {num_scales} scales.")
        if self.model.is_sharded and (config.early_exit or config.stopping_score is not None):
            raise ValueError(
                "Under FSDP no sample can leave early: the processes would wait for one another for ever. Leave out "
                "`early_exit` and `stopping_score`."
            )

        scan = self.model.start_scan(
            input_ids,
            attention_mask,
            pixel_values,
            pixel_attention_mask,
            spatial_shapes,
            past_key_values,
            num_scales=config.max_scales,
            threshold=config.selection_threshold,
        )
        if config.token_budget is not None:
            scan.limit(config.token_budget, self.config, config.budget_split, config.budget_score)
        rule = None
        if config.early_exit:
            rule = EarlyExitRule.from_dict(config.early_exit_rule)
            rule.check(self, self.scan_options(config))
        if streamer is None and config.stopping_score is None:
            return self._scan_fused(scan, rule)
        return self._scan_streamed(scan, streamer, config.stopping_score, rule)

    def scan_options(self, generation_config: ScanFormerGenerationConfig | None = None) -> dict[str, Any]:
        """
        The options that decide what a scan reads, and so what an [`EarlyExitRule`] is calibrated for; those at their
        defaults are left out. The selection threshold is always among them, as the model's config has one.
        """
        config = self.generation_config if generation_config is None else generation_config
        defaults = {
            "max_scales": self.config.num_scales,
            "budget_split": BUDGET_SPLITS[0],
            "budget_score": BUDGET_SCORES[0],
        }
        options = {name: getattr(config, name) for name in SCAN_OPTIONS}
        options = {name: value for name, value in options.items() if value not in (None, defaults.get(name))}
        return {"selection_threshold": self.config.selection_threshold, **options}

    def _scan_fused(self, scan: Scan, rule: EarlyExitRule | None) -> ScanFormerVisualGroundingOutput:
        parts = self.model.finish_scan(scan, rule)
        order = torch.cat([part.rows for part in parts]).argsort()
        # a sample that has left the batch keeps its answer, and reads nothing more
        num_scales = max(part.scale for part in parts)

        def keep_last(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, values[:, -1:].repeat_interleave(num_scales - values.shape[1], 1)], dim=1)

        answers = [map(keep_last, self._answer(part, part.readings)) for part in parts]
        boxes, scores = (join_rows(list(values), order) for values in zip(*answers))
        return self._generation_output(
            boxes,
            scores,
            join_rows([part.rows.new_full(part.rows.shape, part.scale) for part in parts], order),
            tuple(join_rows([part.selection_mask(scale) for part in parts], order) for scale in range(num_scales)),
        )

    def _answer(self, scan: Scan, readings: list[ScaleReading]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes of shape `(num_active, num_scales, 4)` and scores of the last scales that were read."""
        boxes, score_logits = self.predict(torch.stack([reading.reg_state for reading in readings], dim=1))
        if self.config.refine_boxes:
            states = [reading.patch_states for reading in readings]
            indices = [reading.selection.marked_indices for reading in readings]
            grids = [scan.grid(scale) for scale in range(scan.scale - len(readings), scan.scale)]
            boxes = self.refine(boxes, states, indices, grids)
        return boxes, score_logits.sigmoid()

    def _scan_streamed(
        self,
        scan: Scan,
        streamer: BaseStreamer | None,
        stopping_score: float | None,
        rule: EarlyExitRule | None,
    ) -> ScanFormerVisualGroundingOutput:
        batch_size = len(scan.rows)
        boxes, scores, masks = [], [], []
        scales_read = torch.zeros_like(scan.rows)
        while not scan.finished and len(scan.rows) > 0:
            rows, scale = scan.rows, scan.scale
            self.model.read_scale(scan)
            early_reg_state = scan.early_reg_state()
            self.model.encode_pending(scan)
            new_boxes, new_scores = (values[:, 0] for values in self._answer(scan, scan.readings[-1:]))
            new_mask = scan.selection_mask(scale)
            scales_read[rows] += 1
            # a sample that has left the batch keeps its answer, and reads nothing more
            boxes.append(boxes[-1].clone() if boxes else new_boxes.new_zeros(batch_size, 4))
            scores.append(scores[-1].clone() if scores else new_scores.new_zeros(batch_size))
            masks.append(new_mask.new_zeros(batch_size, new_mask.shape[1]))
            boxes[-1][rows], scores[-1][rows], masks[-1][rows] = new_boxes, new_scores, new_mask
            if streamer is not None:
                streamer.put(
                    ScaleResult(
                        scale, rows, new_boxes, new_scores, new_mask, scan.share_wanted(), early_reg_state.float()
                    )
                )
            if scan.finished:
                break
            if rule is not None:
                decided = rule.stops(early_reg_state, scale)
            elif stopping_score is not None:
                decided = new_scores >= stopping_score
            else:
                continue
            if decided.any():
                scan = scan.take_rows((~decided).nonzero()[:, 0])
        if streamer is not None:
            streamer.end()
        return self._generation_output(
            torch.stack(boxes, dim=1), torch.stack(scores, dim=1), scales_read, tuple(masks)
        )

    @staticmethod
    def _generation_output(boxes, scores, scales_read, selection_masks):
        return ScanFormerVisualGroundingOutput(
            pred_boxes=boxes[:, -1],
            scores=scores[:, -1],
            scale_boxes=boxes,
            scale_scores=scores,
            scales_read=scales_read,
            selection_masks=selection_masks,
        )

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class,
        from_pipeline,
        pretrained_model_name_or_path,
        *,
        trust_remote_code=None,
        **loading_kwargs,
    ):
        """Called by `from_pretrained`: loads `generation_config.json` where there is one."""
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
            return
        if pretrained_model_name_or_path is None:  # loaded from a state dict: the defaults stay
            return
        # among the others are fields of the model's config, which are no options of `generate`
        options = {name: loading_kwargs[name] for name in WHERE_FILES_ARE if name in loading_kwargs}
        try:
            self.generation_config = self.generation_config_class.from_pretrained(
                pretrained_model_name_or_path,
                _from_auto=from_auto_class,
                _from_pipeline=from_pipeline,
                force_download=loading_kwargs.get("force_download", False),
                **options,
            )
        except OSError:
            found = cached_file(
                pretrained_model_name_or_path,
                GENERATION_CONFIG_NAME,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **options,
            )
            if found is not None:  # it is damaged: its limits and rules must not vanish unseen
                raise
            self.generation_config = self.generation_config_class()


__all__ = ["ScaleResult", "ScanFormerGenerationConfig", "ScanFormerGenerationMixin"]
