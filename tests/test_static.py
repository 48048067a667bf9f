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
"""Scans by steps of fixed shapes against `generate`, and their steps compiled and exported."""

import pytest
import torch
from tiny import take_row, tiny_inputs, tiny_model
from torch._dynamo.testing import CompileCounter

from modeling_scanformer.static_scanformer import (
    ScanFormerScaleStep,
    StaticScanner,
    StaticShapes,
    export_steps,
)


# For the pictures of `tiny_inputs`: 6, 24 and 96 patches at most.
SHAPES = StaticShapes(text_length=9, buckets=((6,), (4, 8, 24), (10, 30, 96)))
ONE_BUCKET = StaticShapes(text_length=9, buckets=((6,), (24,), (96,)))


def assert_same(actual, expected, tolerance=1e-10):
    options = {"atol": tolerance, "rtol": tolerance}
    for name in ("pred_boxes", "scores", "scale_boxes", "scale_scores", "selection_masks"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), **options)


def only_pictures(inputs):
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


def record(scanner: StaticScanner) -> list[str]:
    """The names of the steps that a scanner takes from now on."""
    taken = []

    def watched(name, step):
        return lambda **inputs: taken.append(name) or step(**inputs)

    scanner.steps = {name: watched(name, step) for name, step in scanner.steps.items()}
    return taken


@pytest.mark.parametrize("options", [{}, {"selection_threshold": 0.0}, {"selection_threshold": 1.0}], ids=str)
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("config", [{}, {"num_convolution_layers": 3, "refine_boxes": True}], ids=str)
def test_boxes_are_those_of_generate(options, attn_implementation, config):
    model = tiny_model(**config)
    model.set_attn_implementation(attn_implementation)
    scanner = StaticScanner.from_model(model, SHAPES)
    for seed in range(3):
        inputs = tiny_inputs(model.config, seed=seed)
        assert_same(scanner.generate(**inputs, **options), model.generate(**inputs, **options))
        single = take_row(inputs, 1, model.config.num_scales)
        assert_same(scanner.generate(**single, **options), model.generate(**single, **options))


@pytest.mark.parametrize("budget", [0.3, 12, [6, 5, 9], [1.0, 0.25, 0.1]], ids=str)
def test_a_budget_is_that_of_generate_and_fits_a_bucket_of_its_size(budget):
    model = tiny_model()
    options = {"token_budget": budget, "selection_threshold": 0.2}
    inputs = tiny_inputs(model.config)
    expected = model.generate(**inputs, **options)
    assert_same(StaticScanner.from_model(model, SHAPES).generate(**inputs, **options), expected)
    if budget == [6, 5, 9]:
        exact = StaticShapes(text_length=9, buckets=((6,), (5,), (9,)))
        assert_same(StaticScanner.from_model(model, exact).generate(**inputs, **options), expected)


def test_options_that_make_no_sense_are_refused():
    model = tiny_model()
    scanner, inputs = StaticScanner.from_model(model, SHAPES), tiny_inputs(model.config)
    for options in ({"token_budget": 1.5}, {"token_budget": 0.01}, {"selection_threshold": 2.0}):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            scanner.generate(**inputs, **options)


@pytest.mark.parametrize("use_constant_token", [True, False])
def test_a_single_scale(use_constant_token):
    model = tiny_model(num_scales=1, use_constant_token=use_constant_token)
    inputs = tiny_inputs(model.config)
    scanner = StaticScanner.from_model(model, StaticShapes(7, ((8,),)))
    assert_same(scanner.generate(**inputs), model.generate(**inputs))


def test_a_text_read_once_serves_many_pictures():
    model = tiny_model()
    scanner = StaticScanner.from_model(model, SHAPES)
    inputs = tiny_inputs(model.config)
    text = scanner.encode_text(inputs["input_ids"], inputs["attention_mask"])
    for seed in range(3):
        pictures = only_pictures(tiny_inputs(model.config, seed=seed))
        assert_same(scanner.generate(**pictures, past_key_values=text), model.generate(**inputs | pictures))


def test_every_scale_takes_the_smallest_bucket_that_holds_it():
    model = tiny_model()
    scanner = StaticScanner.from_model(model, SHAPES)
    taken = record(scanner)
    for seed in range(6):
        outputs = scanner.generate(**tiny_inputs(model.config, seed=seed))
        counts = [int(mask.sum(1).max()) for mask in outputs.selection_masks[1:]]
        wanted = [min(size for size in SHAPES.buckets[s] if size >= n) for s, n in enumerate(counts, start=1)]
        assert taken == ["text", "scale0_6", f"scale1_{wanted[0]}", f"scale2_{wanted[1]}"]
        taken.clear()
    scanner.generate(**tiny_inputs(model.config), selection_threshold=0.0)
    assert taken == ["text", "scale0_6", "scale1_24", "scale2_96"]


def test_default_shapes_hold_everything():
    model = tiny_model()
    shapes = StaticShapes.for_pictures(model.config, longest_edge=24)
    assert shapes == StaticShapes(12, ((9,), (2, 4, 9, 18, 36), (9, 18, 36, 72, 144)))
    inputs = tiny_inputs(model.config)
    outputs = StaticScanner.from_model(model, shapes).generate(**inputs, selection_threshold=0.0)
    assert_same(outputs, model.generate(**inputs, selection_threshold=0.0))


@pytest.mark.parametrize("config", [{}, {"num_convolution_layers": 1, "refine_boxes": True}], ids=str)
def test_exported_steps_compute_the_same_for_every_batch_size(config):
    model = tiny_model(num_hidden_layers=2, selection_layer=1, **config)
    programs = export_steps(model, ONE_BUCKET)
    scanner = StaticScanner(model.config, ONE_BUCKET, {name: program.module() for name, program in programs.items()})
    inputs = tiny_inputs(model.config, seed=1)
    assert_same(scanner.generate(**inputs), model.generate(**inputs))
    single = take_row(inputs, 0, model.config.num_scales)
    assert_same(scanner.generate(**single), model.generate(**single))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exported_steps_in_half_precision_take_what_the_processor_gives(dtype):
    model = tiny_model(dtype=dtype, num_hidden_layers=2, selection_layer=1)
    programs = export_steps(model, ONE_BUCKET)
    scanner = StaticScanner(model.config, ONE_BUCKET, {name: program.module() for name, program in programs.items()})
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    options = {"selection_threshold": 0.0}  # rounding decides on no patch
    assert_same(scanner.generate(**inputs, **options), model.generate(**inputs, **options), tolerance=0.05)


@torch._dynamo.config.patch(recompile_limit=2)
def test_a_step_is_compiled_once_without_graph_breaks():
    # more sizes of a scale than Dynamo is allowed to compile of one function
    shapes = StaticShapes(text_length=9, buckets=((6,), (6, 8, 10, 24), (96,)))
    model = tiny_model(dtype=torch.float32, num_convolution_layers=3, refine_boxes=True)
    counter = CompileCounter()
    scanner = StaticScanner.from_model(model, shapes).compile(backend=counter)
    taken = record(scanner)
    inputs = tiny_inputs(model.config)
    for threshold in torch.linspace(0, 1, 11).tolist():
        expected = model.generate(**inputs, selection_threshold=threshold)
        assert_same(scanner.generate(**inputs, selection_threshold=threshold), expected, tolerance=1e-5)
        assert counter.frame_count == len(set(taken))
    assert len({name for name in taken if name.startswith("scale1")}) > 2


def test_what_does_not_fit_is_refused():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    pictures = only_pictures(inputs)
    scanner = StaticScanner.from_model(model, StaticShapes(7, ((6,), (8,), (96,))))
    with pytest.raises(ValueError, match="Scale 1 selected 24 patches, but its largest bucket holds 8"):
        scanner.generate(**inputs, selection_threshold=0.0)
    with pytest.raises(ValueError, match="either as `input_ids` or"):
        scanner.generate(**pictures)
    with pytest.raises(ValueError, match="not of the model: got a ScanCache"):
        scanner.generate(**pictures, past_key_values=model.encode_text(inputs["input_ids"], inputs["attention_mask"]))
    with pytest.raises(ValueError, match="`text_length` 999"):
        StaticShapes.for_pictures(model.config, 32, text_length=999)
    with pytest.raises(ValueError, match="all needed"):
        scanner.generate(inputs["input_ids"])
    with pytest.raises(ValueError, match="patch_size"):
        scanner.generate(**{**inputs, "pixel_values": inputs["pixel_values"][..., :-1]})
    with pytest.raises(ValueError, match="no tokens"):
        scanner.encode_text(inputs["input_ids"][:, :0])
    text = scanner.encode_text(inputs["input_ids"][:1])
    with pytest.raises(ValueError, match="1 expressions but 3 images"):
        scanner.generate(**pictures, past_key_values=text)
    with pytest.raises(ValueError, match="7 tokens, but the text step was made for 5"):
        StaticScanner.from_model(model, StaticShapes(5, SHAPES.buckets)).generate(**inputs)
    with pytest.raises(ValueError, match="buckets for 2 scales, but the model has 3"):
        StaticScanner.from_model(model, StaticShapes(7, ((6,), (8,))))
    for sizes in ((), (0, 4), (8, 4), (4, 4)):
        with pytest.raises(ValueError, match="ascending positive numbers"):
            StaticShapes(7, ((6,), sizes, (96,)))
    with pytest.raises(ValueError, match="merge_constant_tokens=True"):
        ScanFormerScaleStep(tiny_model(merge_constant_tokens=False), 1)
    with pytest.raises(ValueError, match="use_constant_token=True"):
        ScanFormerScaleStep(tiny_model(use_constant_token=False), 1)
