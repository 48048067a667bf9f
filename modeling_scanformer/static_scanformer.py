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
"""
A scan by steps of fixed shapes, for `torch.compile`, CUDA graphs, `torch.export` and ONNX.

How many patches a scale selects depends on the picture, so no graph can hold a whole scan. Here a scale is padded to the
smallest of a few sizes, its buckets, and a step is a pure function of fixed shapes: one for the text, and one for every
scale and bucket. What is data-dependent, choosing patches and their bucket, stays between the steps, in
[`StaticScanner`]. It takes the steps as callables, so that modules, compiled or exported ones, and sessions of another
runtime can stand in for each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from .cache_scanformer import ScanCache
from .configuration_scanformer import ScanFormerConfig
from .embeddings_scanformer import embedding_row
from .generation_scanformer import ScanFormerGenerationConfig
from .layer_scanformer import MASKED_BIAS
from .modeling_scanformer import ScanFormerForVisualGrounding
from .outputs_scanformer import ScanFormerVisualGroundingOutput
from .scan_scanformer import ScaleReading, Scan, check_pyramid
from .selection_scanformer import Selection, select_all, select_children


TEXT_STEP = "text"

# Of a finer scale's patches; the coarsest is always read whole.
BUCKET_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class StaticShapes:
    """
    The sizes that the steps of a scan are made for.

    Args:
        text_length (`int`):
            Tokens of an expression; shorter ones are padded.
        buckets (`tuple[tuple[int, ...], ...]`):
            For every scale, numbers of patches in ascending order.

    Raises:
        ValueError: if a scale has no buckets, or they are no ascending positive numbers.
    """

    text_length: int
    buckets: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        for scale, sizes in enumerate(self.buckets):
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"Buckets are ascending positive numbers; those of scale {scale} are {list(sizes)}.")

    @classmethod
    def for_pictures(
        cls, config: ScanFormerConfig, longest_edge: int, text_length: int | None = None
    ) -> "StaticShapes":
        """
        Sizes that hold every picture of a resolution: all patches of the coarsest scale, and a sixteenth, an eighth, a
        quarter, a half or all of every other.

        Args:
            config ([`ScanFormerConfig`]):
                Configuration of the model.
            longest_edge (`int`):
                Longest side of the pictures in pixels, as the image processor scales them.
            text_length (`int`, *optional*):
                Tokens of an expression at most; all that the model reads by default.

        Raises:
            ValueError: if the model does not read so many tokens.
        """
        if text_length is not None and not 1 <= text_length <= config.max_position_embeddings:
            raise ValueError(
                f"The model reads 1 to {config.max_position_embeddings} tokens, got `text_length` {text_length}."
            )
        buckets = []
        for scale in range(config.num_scales):
            unit = config.patch_size * 2 ** (config.num_scales - 1 - scale)
            most = max(1, round(longest_edge / unit)) ** 2
            shares = BUCKET_SHARES if scale > 0 else (1,)
            buckets.append(tuple(sorted({max(1, round(share * most)) for share in shares})))
        return cls(config.max_position_embeddings if text_length is None else text_length, tuple(buckets))

    @property
    def offsets(self) -> list[int]:
        """
        Start of every scale's keys in the cache. They do not depend on the buckets that a scan happens to use: every scale
        has room for its largest.
        """
        offsets = [self.text_length]
        for scale, sizes in enumerate(self.buckets[:-1]):
            offsets.append(offsets[-1] + _num_tokens(scale, sizes[-1]))
        return offsets

    def names(self) -> Iterator[tuple[str, int, int]]:
        """Name, scale and bucket of every step but the text's."""
        for scale, sizes in enumerate(self.buckets):
            for size in sizes:
                yield f"scale{scale}_{size}", scale, size

    def fit(self, scale: int, num_patches: int) -> tuple[str, int]:
        """
        Name and bucket of the step that reads so many patches of a scale.

        Raises:
            ValueError: if no bucket holds them.
        """
        for size in self.buckets[scale]:
            if num_patches <= size:
                return f"scale{scale}_{size}", size
        raise ValueError(
            f"Scale {scale} selected {num_patches} patches, but its largest bucket holds {self.buckets[scale][-1]}. Make "
            "the steps with a larger bucket, or read less: by a higher selection threshold or smaller pictures."
        )


def _num_tokens(scale: int, num_patches: int) -> int:
    """[REG], the patches, and behind the coarsest scale the constant token."""
    return 1 + num_patches + (scale > 0)


class ScanFormerTextStep(nn.Module):
    """
    Reads expressions of a fixed length.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            Its weights are shared, not copied.
    """

    def __init__(self, model: ScanFormerForVisualGrounding):
        super().__init__()
        self.encoder = model.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, text_length)`):
                The tokens, and 1 where they are no padding.

        Returns:
            Keys and values of shape `(num_layers, batch_size, num_heads, text_length, head_dim)`, and the keys' bias of
            shape `(batch_size, text_length)`.
        """
        cache = self.encoder.encode_text(input_ids, attention_mask)
        keys, values = zip(*(cache.states(index) for index in range(len(self.encoder.layers))))
        return torch.stack(keys), torch.stack(values), cache.key_bias


class ScanFormerScaleStep(nn.Module):
    """
    Reads a fixed number of patches of one scale, through both encoders.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            Its weights are shared, not copied.
        scale (`int`):
            The scale.

    Raises:
        ValueError: if the model keeps its constant tokens apart, whose number depends on the picture, or has none.
    """

    def __init__(self, model: ScanFormerForVisualGrounding, scale: int):
        super().__init__()
        if model.config.num_scales > 1 and not model.config.merge_constant_tokens:
            raise ValueError("Steps of fixed shapes need `merge_constant_tokens=True`, which gives the same numbers.")
        if model.config.num_scales > 1 and not model.config.use_constant_token:
            raise ValueError("Steps of fixed shapes need a constant token: a model of `use_constant_token=True`.")
        self.encoder = model.model
        self.predict = model.predict
        self.box_head, self.score_head = model.box_head, model.score_head
        if model.config.refine_boxes:
            self.box_refinement = model.box_refinement
        self.scale = scale
        self.is_last = scale + 1 == model.config.num_scales

    def forward(
        self,
        patches: torch.Tensor,
        indices: torch.Tensor,
        mask: torch.Tensor,
        grid: torch.Tensor,
        num_unselected: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
        past_bias: torch.Tensor,
        neighbors: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            patches (`torch.Tensor` of shape `(batch_size, num_patches, 3 * patch_size**2)`):
                The selected patches, padded to the bucket.
            indices (`torch.LongTensor` of shape `(batch_size, num_patches)`):
                Their row-major indices in the scale's grid.
            mask (`torch.BoolTensor` of shape `(batch_size, num_patches)`):
                False where a patch is padding.
            grid (`torch.LongTensor` of shape `(batch_size, 2)`):
                Rows and columns of the scale.
            num_unselected (`torch.LongTensor` of shape `(batch_size,)`):
                Number of patches of the scale that are not selected.
            past_keys, past_values (`torch.Tensor` of shape `(num_layers, batch_size, num_heads, past_length, head_dim)`):
                The cache, up to this scale.
            past_bias (`torch.Tensor` of shape `(batch_size, past_length)`):
                Bias of its keys; a large negative number where nothing has been written.
            neighbors (`torch.LongTensor` of shape `(batch_size, num_patches, 9)`, *optional*):
                Where among them the patches around each stand, see [`find_neighbors`]; only of a model with convolutions.

        Returns:
            Boxes of shape `(batch_size, 4)` and scores of shape `(batch_size,)`; and, except at the last scale, selection
            logits of shape `(batch_size, num_patches, 4)` and the keys, values and bias of this scale's tokens, shaped as
            those of the past.
        """
        encoder = self.encoder
        batch_size, num_patches = indices.shape
        modality = embedding_row(encoder.modality_embeddings, 1, indices.device)
        tokens = [
            (embedding_row(encoder.reg_tokens, self.scale, indices.device) + modality).expand(batch_size, 1, -1),
            encoder.patch_embeddings(patches, indices, grid, self.scale, neighbors) + modality,
        ]
        biases = [past_bias, past_bias.new_zeros(batch_size, 1), encoder._masked_bias(mask)]
        if self.scale > 0:
            constant = embedding_row(encoder.constant_token, 0, indices.device)
            merged, bias = encoder._constant_tokens(constant, num_unselected, None)
            tokens.append(merged)
            biases.append(bias)
        hidden_states, key_bias = torch.cat(tokens, dim=1), torch.cat(biases, dim=1)

        keys, values, logits = [], [], None
        for index, layer in enumerate(encoder.layers):
            hidden_states, new_keys, new_values, _ = layer(
                hidden_states, past_keys[index], past_values[index], key_bias, [hidden_states.shape[1]]
            )
            keys.append(new_keys)
            values.append(new_values)
            if index + 1 == encoder.config.selection_layer and not self.is_last:
                logits = encoder.selection_head(hidden_states[:, 1 : 1 + num_patches])
        boxes, score_logits = self.predict(encoder.layernorm(hidden_states[:, 0]))
        if encoder.config.refine_boxes:
            states = encoder.layernorm(hidden_states[:, 1 : 1 + num_patches])
            boxes = self.box_refinement(boxes, states, indices.where(mask, -1), grid)
        if self.is_last:
            return boxes, score_logits.sigmoid()
        new_bias = key_bias[:, past_bias.shape[1] :]
        return boxes, score_logits.sigmoid(), logits, torch.stack(keys), torch.stack(values), new_bias


def static_steps(model: ScanFormerForVisualGrounding, shapes: StaticShapes) -> dict[str, nn.Module]:
    """The steps of a scan by name, as modules that share the model's weights."""
    steps = {TEXT_STEP: ScanFormerTextStep(model)}
    by_scale = [ScanFormerScaleStep(model, scale) for scale in range(model.config.num_scales)]
    return steps | {name: by_scale[scale] for name, scale, _ in shapes.names()}


def example_inputs(
    model: ScanFormerForVisualGrounding, shapes: StaticShapes, batch_size: int
) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs of every step, by its and by their names, of the shapes and types that a scan gives it."""
    config, device, dtype = model.config, model.device, model.dtype
    full = torch.promote_types(dtype, torch.float32)  # of the pictures, as the processor makes them, and of the bias
    integers = {"dtype": torch.long, "device": device}
    # two tensors: export takes one that is passed twice for one argument
    texts = [torch.ones(batch_size, shapes.text_length, **integers) for _ in range(2)]
    inputs = {TEXT_STEP: dict(zip(("input_ids", "attention_mask"), texts))}
    head_dim = config.hidden_size // config.num_attention_heads
    for name, scale, size in shapes.names():
        length = shapes.offsets[scale]
        past_shape = (config.num_hidden_layers, batch_size, config.num_attention_heads, length, head_dim)
        inputs[name] = {
            "patches": torch.zeros(batch_size, size, 3 * config.patch_size**2, dtype=full, device=device),
            "indices": torch.zeros(batch_size, size, **integers),
            "mask": torch.ones(batch_size, size, dtype=torch.bool, device=device),
            "grid": torch.ones(batch_size, 2, **integers),
            "num_unselected": torch.ones(batch_size, **integers),
            "past_keys": torch.zeros(past_shape, dtype=dtype, device=device),
            "past_values": torch.zeros(past_shape, dtype=dtype, device=device),
            "past_bias": torch.zeros(batch_size, length, dtype=full, device=device),
        }
        if config.num_convolution_layers > 0:
            inputs[name]["neighbors"] = torch.zeros(batch_size, size, 9, **integers)
    return inputs


@torch.no_grad()
def export_steps(
    model: ScanFormerForVisualGrounding, shapes: StaticShapes, names: list[str] | None = None
) -> dict[str, torch.export.ExportedProgram]:
    """
    Export the steps by `torch.export`. All sizes are fixed but the batch's.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model, in evaluation mode.
        shapes ([`StaticShapes`]):
            Sizes of the steps.
        names (`list[str]`, *optional*):
            Which steps; all by default.
    """
    # an example of 1 would be taken for a fixed size
    inputs, batch = example_inputs(model, shapes, batch_size=2), torch.export.Dim("batch")
    steps = static_steps(model, shapes)
    programs = {}
    for name in steps if names is None else names:
        dynamic = {key: {1 if value.ndim == 5 else 0: batch} for key, value in inputs[name].items()}
        programs[name] = torch.export.export(steps[name], (), inputs[name], dynamic_shapes=dynamic)
    return programs


class StaticScanCache:
    """
    Keys and values of a scan in memory of a fixed size: the text, then room for every scale's largest bucket. What is not
    written is masked by its bias.

    Args:
        keys, values, key_bias (`torch.Tensor`):
            Of the text, as [`ScanFormerTextStep`] gives them.
        shapes ([`StaticShapes`]):
            Sizes of the scan.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, key_bias: torch.Tensor, shapes: StaticShapes):
        self.offsets = shapes.offsets
        num_layers, batch_size, num_heads, _, head_dim = keys.shape
        # zeros, because what is masked still goes into products
        self.keys = keys.new_zeros(num_layers, batch_size, num_heads, self.offsets[-1], head_dim)
        self.values = torch.zeros_like(self.keys)
        self.key_bias = key_bias.new_full((batch_size, self.offsets[-1]), MASKED_BIAS)
        self._write(0, keys, values, key_bias)

    @property
    def batch_size(self) -> int:
        return self.key_bias.shape[0]

    def before(self, scale: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, values and bias of all that comes before a scale."""
        stop = self.offsets[scale]
        return self.keys[:, :, :, :stop], self.values[:, :, :, :stop], self.key_bias[:, :stop]

    def write_scale(self, scale: int, keys: torch.Tensor, values: torch.Tensor, key_bias: torch.Tensor):
        self._write(self.offsets[scale], keys, values, key_bias)

    def _write(self, start: int, keys: torch.Tensor, values: torch.Tensor, key_bias: torch.Tensor):
        stop = start + key_bias.shape[1]
        self.keys[:, :, :, start:stop], self.values[:, :, :, start:stop] = keys, values
        self.key_bias[:, start:stop] = key_bias

    def forget_scales(self):
        """Cut the cache back to its text."""
        self.key_bias[:, self.offsets[0] :] = MASKED_BIAS


class StaticScanner:
    """
    Scans by steps of fixed shapes; the boxes are those of [`~ScanFormerForVisualGrounding.generate`] with the same options.
    All scales are read: of the options of `generate` only the selection threshold and the token budget exist here, and those
    saved with a model in `generation_config.json` are not looked at. With a budget for every scale, a single bucket of its
    size holds every picture.

    Args:
        config ([`ScanFormerConfig`]):
            Configuration of the model.
        shapes ([`StaticShapes`]):
            Sizes of the steps.
        steps (`dict[str, Callable]`):
            The steps by name, with the arguments and results of [`ScanFormerTextStep`] and [`ScanFormerScaleStep`]. All
            arguments are passed by name.

    Example:

    ```python
    >>> longest_edge = processor.image_processor.size["longest_edge"]
    >>> shapes = StaticShapes.for_pictures(model.config, longest_edge)
    >>> scanner = StaticScanner.from_model(model, shapes).compile(mode="reduce-overhead")
    >>> outputs = scanner.generate(**inputs)
    ```"""

    def __init__(self, config: ScanFormerConfig, shapes: StaticShapes, steps: dict[str, Callable]):
        if len(shapes.buckets) != config.num_scales:
            raise ValueError(
                f"The shapes have buckets for {len(shapes.buckets)} scales, but the model has {config.num_scales}."
            )
        self.config = config
        self.shapes = shapes
        self.steps = steps

    @classmethod
    def from_model(cls, model: ScanFormerForVisualGrounding, shapes: StaticShapes) -> "StaticScanner":
        """A scanner whose steps are modules that share the model's weights."""
        return cls(model.config, shapes, static_steps(model, shapes))

    def compile(self, **options) -> "StaticScanner":
        """
        A scanner with compiled steps, each compiled at its first use, once for every batch size and without graph breaks.
        Needs a PyTorch whose `torch.compile` knows `isolate_recompiles`, as 2.13 does.

        Args:
            **options:
                Of `torch.compile`: `mode="reduce-overhead"` for CUDA graphs, `backend`.
        """
        # isolated: the steps share their code, of which Dynamo otherwise compiles only a few variants
        options |= {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
        steps = {name: torch.compile(step, **options) for name, step in self.steps.items()}
        return StaticScanner(self.config, self.shapes, steps)

    @torch.no_grad()
    def encode_text(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> StaticScanCache:
        """
        Read expressions once, to ground them in many images.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, length)`):
                As of [`~ScanFormerForVisualGrounding.generate`].

        Raises:
            ValueError: if the expressions have no tokens, or more than the text step reads.
        """
        if input_ids.shape[1] == 0:
            raise ValueError("The expressions have no tokens. Say which object is meant.")
        missing = self.shapes.text_length - input_ids.shape[1]
        if missing < 0:
            raise ValueError(
                f"The expressions have {input_ids.shape[1]} tokens, but the text step was made for "
                f"{self.shapes.text_length}. Make it for a longer text, or shorten them."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        keys, values, key_bias = self.steps[TEXT_STEP](
            input_ids=nn.functional.pad(input_ids, (0, missing), value=self.config.pad_token_id or 0),
            attention_mask=nn.functional.pad(attention_mask, (0, missing)),
        )
        return StaticScanCache(keys, values, key_bias, self.shapes)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.LongTensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        past_key_values: StaticScanCache | None = None,
        selection_threshold: float | None = None,
        token_budget: float | int | list | None = None,
    ) -> ScanFormerVisualGroundingOutput:
        """
        Scan images for what the expressions say.

        Args:
            input_ids, attention_mask, pixel_values, pixel_attention_mask, spatial_shapes:
                See [`ScanFormerModel.forward`].
            past_key_values ([`StaticScanCache`], *optional*):
                The text, already read by [`~StaticScanner.encode_text`], instead of `input_ids`. The scales of the
                previous scan in it are overwritten.
            selection_threshold (`float`, *optional*):
                Replaces the model's.
            token_budget (`float` or `int` or `list`, *optional*):
                The most patches that a sample may read, see [`ScanFormerGenerationConfig`]; they are the most informative.

        Returns:
            [`ScanFormerVisualGroundingOutput`] as of [`~ScanFormerForVisualGrounding.generate`].

        Raises:
            ValueError: if inputs do not fit together, or do not fit into the steps' sizes.
        """
        offsets = check_pyramid(self.config, pixel_values, pixel_attention_mask, spatial_shapes)
        if (input_ids is None) == (past_key_values is None):
            raise ValueError(
                "Give the text either as `input_ids` or, already read by `encode_text`, as `past_key_values`."
            )
        if not isinstance(past_key_values, (StaticScanCache, type(None))):
            raise ValueError(
                f"Steps of fixed sizes read a text by `encode_text` of this scanner, not of the model: got a "
                f"{type(past_key_values).__name__}."
            )
        # checks them
        ScanFormerGenerationConfig(selection_threshold=selection_threshold, token_budget=token_budget)
        cache = self.encode_text(input_ids, attention_mask) if past_key_values is None else past_key_values
        if cache.batch_size != len(pixel_values):
            raise ValueError(f"Got {cache.batch_size} expressions but {len(pixel_values)} images.")
        cache.forget_scales()
        scan = self._start(pixel_values, pixel_attention_mask, spatial_shapes, offsets, selection_threshold)
        if token_budget is not None:
            scan.limit(token_budget, self.config)
        boxes, scores = [], []
        while not scan.finished:
            box, score = self._read_scale(scan, cache)
            boxes.append(box)
            scores.append(score)
        boxes, scores = torch.stack(boxes, dim=1), torch.stack(scores, dim=1)
        return ScanFormerVisualGroundingOutput(
            pred_boxes=boxes[:, -1],
            scores=scores[:, -1],
            scale_boxes=boxes,
            scale_scores=scores,
            scales_read=torch.full_like(scan.rows, scan.num_scales),
            selection_masks=tuple(scan.selection_mask(scale) for scale in range(scan.num_scales)),
        )

    def _start(self, pixel_values, pixel_attention_mask, spatial_shapes, offsets, selection_threshold) -> Scan:
        return Scan(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            offsets=offsets,
            num_scales=self.config.num_scales,
            threshold=self.config.selection_threshold if selection_threshold is None else selection_threshold,
            use_cache=False,
            wants_last_logits=False,
            rows=torch.arange(len(pixel_values), device=pixel_values.device),
            cache=ScanCache(),
            text_states=None,
            selection=select_all(pixel_attention_mask[:, : offsets[1]]),
        )

    def _read_scale(self, scan: Scan, cache: StaticScanCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the next scale and select what to read after it; the scale's boxes and scores."""
        scale = scan.scale
        name, size = self.shapes.fit(scale, scan.selection.indices.shape[1])
        selection = _pad(scan.selection, size)
        past_keys, past_values, past_bias = cache.before(scale)
        neighbors = {}
        if self.config.num_convolution_layers > 0:
            neighbors["neighbors"] = scan.neighbors(selection.indices, selection.mask, scale)
        box, score, *rest = self.steps[name](
            patches=scan.patches(selection.indices, scale),
            indices=selection.indices,
            mask=selection.mask,
            grid=scan.grid(scale),
            num_unselected=selection.num_unselected,
            past_keys=past_keys,
            past_values=past_values,
            past_bias=past_bias,
            **neighbors,
        )
        scan.readings.append(ScaleReading(selection))
        if not scan.finished:
            logits, keys, values, key_bias = rest
            cache.write_scale(scale, keys, values, key_bias)
            scan.selection = select_children(
                selection,
                logits,
                columns=scan.grid(scale)[:, 1],
                patch_mask=scan.patch_mask(scale + 1),
                threshold=scan.threshold,
                gated=False,
                limit=None if scan.budget is None else partial(scan.budget, scan),
            )
        # the next replay of a CUDA graph writes to the same memory
        return box.clone(), score.clone()


def _pad(selection: Selection, size: int) -> Selection:
    """Pad a selection to `size` patches."""
    missing = (0, size - selection.indices.shape[1])
    return replace(
        selection,
        indices=nn.functional.pad(selection.indices, missing),
        mask=nn.functional.pad(selection.mask, missing),
    )


__all__ = [
    "ScanFormerScaleStep",
    "ScanFormerTextStep",
    "StaticScanCache",
    "StaticScanner",
    "StaticShapes",
    "example_inputs",
    "export_steps",
    "static_steps",
]
