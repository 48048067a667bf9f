"""Every path through the scan against the executable specification, and against each other."""

import shutil

import pytest
import torch
from reference import reference_forward
from tiny import dense_logits, take_row, tiny_inputs, tiny_labels, tiny_model
from transformers import AttentionInterface
from transformers.generation.streamers import BaseStreamer

from modeling_scanformer import ScanCache


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def maskless_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Stands in for the flash kernels: takes no mask and no bias, and heads whose size is a multiple of 8."""
    assert attention_mask is None
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[-1] % 8 == 0
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling, dropout_p=dropout)
    return output.transpose(1, 2), None


AttentionInterface.register("maskless", maskless_attention)


class Collector(BaseStreamer):
    def __init__(self):
        self.results, self.ended = [], False

    def put(self, value):
        self.results.append(value)

    def end(self):
        self.ended = True


def close(actual, expected, dtype=torch.float64):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def objective(boxes, score_logits, logits):
    """A scalar that depends on everything a scan gives, differently on every part."""
    total = (boxes * torch.arange(1, boxes.numel() + 1).view_as(boxes)).sum() + (score_logits.sin() * 3).sum()
    for sample in logits:
        for scale, values in enumerate(sample):
            kept = values[~values.isnan().any(-1)]
            total = total + (scale + 1) * kept.tanh().mean()
    return total


def scan_objective(model, inputs):
    outputs = model(**inputs)
    logits = [
        [
            dense_logits(outputs, s, row, int(inputs["spatial_shapes"][row, s].prod()))
            for s in range(len(outputs.selection_logits))
        ]
        for row in range(len(outputs.pred_boxes))
    ]
    return objective(outputs.scale_boxes, outputs.scale_scores.logit(), logits), outputs


def reference_objective(model, inputs):
    boxes, scores, selected, logits = reference_forward(model, **inputs)
    read = [
        [values.where(kept[:, None], torch.nan) for values, kept in zip(sample, mask)]
        for sample, mask in zip(logits, selected)
    ]
    return objective(boxes, scores, read), (boxes, scores, selected, read)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    # what is refined has a loss of its own, and no gradient from what it becomes
    apart = "box_head." if model.config.refine_boxes else ()
    return {name: p.grad.clone() for name, p in model.named_parameters() if not name.startswith(apart)}


@DTYPES
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge_constant_tokens": False},
        {"use_constant_token": False},
        {"num_convolution_layers": 3},
        {"refine_boxes": True},
    ],
    ids=["merged", "apart", "dropped", "convolutions", "refined"],
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "maskless"])
@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_outputs_and_gradients_equal_the_specification(dtype, options, implementation, num_scales):
    model = tiny_model(dtype=dtype, num_scales=num_scales, **options).train()
    model.set_attn_implementation(implementation)
    inputs = tiny_inputs(model.config, dtype=dtype)
    loss, outputs = scan_objective(model, inputs)
    expected_loss, (boxes, scores, selected, logits) = reference_objective(model, inputs)

    for row, sample in enumerate(selected):
        for scale, mask in enumerate(sample):
            assert torch.equal(outputs.selection_masks[scale][row, : len(mask)], mask)
            assert not outputs.selection_masks[scale][row, len(mask) :].any()
    if num_scales == 3:
        shares = [torch.cat([sample[scale] for sample in selected]).double().mean() for scale in (1, 2)]
        assert all(0.1 < share < 0.9 for share in shares), "the test needs a selection that is neither all nor nothing"
    close(outputs.scale_boxes, boxes, dtype)
    close(outputs.scale_scores, scores.sigmoid(), dtype)
    for row, sample in enumerate(logits):
        for scale, values in enumerate(sample):
            actual = dense_logits(outputs, scale, row, len(values))
            torch.testing.assert_close(actual, values, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)

    actual, expected = gradients(model, loss), gradients(model, expected_loss)
    for name in expected:
        assert expected[name].abs().max() > 0, f"{name} has no gradient"
        # gradients sum many terms: the tolerance is relative to the largest of the tensor
        scale = expected[name].abs().max().clamp(min=1)
        close(actual[name] / scale, expected[name] / scale, dtype)


@pytest.mark.parametrize("num_convolution_layers", [0, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_merged_equals_unmerged_with_all_some_and_none_selected(threshold, num_convolution_layers):
    model = tiny_model(selection_threshold=threshold, num_convolution_layers=num_convolution_layers).train()
    inputs = tiny_inputs(model.config)
    results = []
    for merge in (True, False):
        model.config.merge_constant_tokens = merge
        loss = model(**inputs, labels=tiny_labels()).loss
        results.append((loss.detach(), gradients(model, loss)))
    close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        close(gradient, results[1][1][name])
    read = [mask.sum() / inputs["pixel_attention_mask"].sum() for mask in model(**inputs).selection_masks[1:]]
    assert (threshold == 1.0) == (sum(read) == 0)


def test_everything_is_read_at_threshold_zero_even_where_the_sigmoid_underflows():
    model = tiny_model(dtype=torch.float32, selection_threshold=0.0)
    torch.nn.init.constant_(model.model.selection_head.classifier.bias, -1000.0)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    assert torch.equal(torch.cat(model(**inputs).selection_masks, dim=1), inputs["pixel_attention_mask"].bool())


@DTYPES
@pytest.mark.parametrize(
    "options",
    [{}, {"use_constant_token": False}, {"num_convolution_layers": 3}, {"refine_boxes": True}],
    ids=str,
)
def test_forward_equals_generate_at_every_scale_in_both_schedules(dtype, options):
    model = tiny_model(dtype=dtype, **options)
    inputs = tiny_inputs(model.config, dtype=dtype)
    with torch.no_grad():
        outputs = model(**inputs)
    streamer = Collector()
    fused, streamed = model.generate(**inputs), model.generate(**inputs, streamer=streamer)
    for generated in (fused, streamed):
        close(generated.scale_boxes, outputs.scale_boxes, dtype)
        close(generated.scale_scores, outputs.scale_scores, dtype)
        assert generated.scales_read.tolist() == [3, 3, 3]
        for actual, expected in zip(generated.selection_masks, outputs.selection_masks):
            assert torch.equal(actual, expected)
    assert streamer.ended and [result.scale for result in streamer.results] == [0, 1, 2]
    for result in streamer.results:
        close(result.boxes, outputs.scale_boxes[:, result.scale], dtype)


@pytest.mark.parametrize("max_scales", [1, 2])
def test_fewer_scales_give_the_same_boxes_for_less_work(max_scales):
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    full = model.generate(**inputs)
    projected = []
    model.model.patch_embeddings.projection.register_forward_hook(
        lambda _, args, __: projected.append(args[0].shape[1])
    )
    for streamer in (None, Collector()):
        projected.clear()
        part = model.generate(**inputs, max_scales=max_scales, streamer=streamer)
        close(part.scale_boxes, full.scale_boxes[:, :max_scales])
        close(part.pred_boxes, full.scale_boxes[:, max_scales - 1])
        assert len(projected) == max_scales == len(part.selection_masks)


@pytest.mark.parametrize("num_convolution_layers", [0, 3])
def test_unselected_patches_are_never_embedded_at_inference(num_convolution_layers):
    model = tiny_model(num_convolution_layers=num_convolution_layers)
    inputs = take_row(tiny_inputs(model.config), 0, 3)
    poisoned = dict(inputs)
    read = torch.cat(model(**inputs).selection_masks, dim=1)
    assert 0 < read.sum() < read.numel()
    poisoned["pixel_values"] = inputs["pixel_values"].where(read[..., None], torch.nan)
    close(model.generate(**poisoned).scale_boxes, model.generate(**inputs).scale_boxes)

    lengths = []
    model.model.patch_embeddings.projection.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        outputs = model(**inputs)
    assert lengths == [int(mask.sum()) for mask in outputs.selection_masks]


def test_children_lie_exactly_under_their_parents():
    model = tiny_model(selection_threshold=0.45)
    inputs = tiny_inputs(model.config)
    masks = model(**inputs).selection_masks
    for row, shapes in enumerate(inputs["spatial_shapes"].tolist()):
        grids = [mask[row, : r * c].view(r, c) for mask, (r, c) in zip(masks, shapes)]
        assert grids[0].all()
        for parents, children in zip(grids[:-1], grids[1:]):
            covered = parents.repeat_interleave(2, 0).repeat_interleave(2, 1)
            assert not (children & ~covered).any()


@DTYPES
def test_a_batch_gives_what_its_members_give_alone(dtype):
    model = tiny_model(dtype=dtype)
    inputs = tiny_inputs(model.config, dtype=dtype)
    batched = model(**inputs)
    for row in range(3):
        single = model(**take_row(inputs, row, 3))
        close(batched.scale_boxes[row], single.scale_boxes[0], dtype)
        close(batched.scale_scores[row], single.scale_scores[0], dtype)


def test_padding_changes_nothing():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    expected = model(**inputs)
    garbage = dict(inputs)
    garbage["pixel_values"] = inputs["pixel_values"].where(inputs["pixel_attention_mask"][..., None].bool(), 1e3)
    garbage["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), 5)
    close(model(**garbage).scale_boxes, expected.scale_boxes)


def test_text_may_be_padded_on_either_side():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    expected = model(**inputs).scale_boxes
    lengths = inputs["attention_mask"].sum(1)
    for name in ("input_ids", "attention_mask"):
        rows = [row.roll(len(row) - int(length)) for row, length in zip(inputs[name], lengths)]
        inputs[name] = torch.stack(rows)
    assert not inputs["attention_mask"][:, 0].all()
    close(model(**inputs).scale_boxes, expected)


def test_a_text_cache_serves_one_image_each_and_many_images():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    tokens = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    expected = model(**tokens, **inputs)
    cache = model.encode_text(**tokens)
    for _ in range(2):  # the cache is left as it was
        close(model(**inputs, past_key_values=cache).scale_boxes, expected.scale_boxes)
        close(model.generate(**inputs, past_key_values=cache).scale_boxes, expected.scale_boxes)
        close(model.generate(**inputs, past_key_values=cache, streamer=Collector()).scale_boxes, expected.scale_boxes)
    assert cache.num_scales == 0 and cache.get_seq_length() == cache.text_length == 7

    one = {name: value[:1] for name, value in tokens.items()}
    repeated = {name: value.expand(3, -1) for name, value in one.items()}
    close(
        model(**inputs, past_key_values=model.encode_text(**one)).scale_boxes, model(**repeated, **inputs).scale_boxes
    )


def test_a_returned_cache_holds_everything_read_and_gives_its_text_back():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    images = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    outputs = model(**inputs, use_cache=True)
    cache = outputs.past_key_values
    length = 7 + sum(1 + indices.shape[1] for indices in outputs.patch_indices) + 2
    assert isinstance(cache, ScanCache) and cache.num_scales == 3
    assert [layer.keys.shape[2] for layer in cache.layers] == [length] * 4
    assert cache.key_bias.shape == (3, length)
    with pytest.raises(ValueError, match="text_prefix"):
        model(**images, past_key_values=cache)
    close(model(**images, past_key_values=cache.text_prefix()).scale_boxes, outputs.scale_boxes)
    assert cache.get_seq_length() == length


def test_a_cached_scale_equals_a_recomputed_one():
    """What the streamed scan keeps of text and earlier scales is what reading them all at once computes."""
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    whole = model(**inputs, use_cache=True).past_key_values
    scan = model.model.start_scan(**inputs, use_cache=True)
    while not scan.finished:
        model.model.read_scale(scan)
        model.model.encode_pending(scan)
        for layer in range(4):
            keys, values = scan.cache.states(layer)
            close(keys, whole.states(layer)[0][:, :, : keys.shape[2]])
            close(values, whole.states(layer)[1][:, :, : values.shape[2]])
    close(scan.cache.key_bias, whole.key_bias)


def test_cache_rows_can_be_reordered_repeated_and_selected():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    tokens = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    expected = model(**tokens, **inputs).scale_boxes
    order = torch.tensor([2, 0, 1])

    cache = model.encode_text(**tokens)
    cache.reorder_cache(order)
    close(model(**{n: v[order] for n, v in inputs.items()}, past_key_values=cache).scale_boxes, expected[order])

    cache = model.encode_text(**tokens)
    cache.batch_select_indices(order[:2])
    assert cache.batch_size == 2
    close(
        model(**{n: v[order[:2]] for n, v in inputs.items()}, past_key_values=cache).scale_boxes, expected[order[:2]]
    )

    cache = model.encode_text(**tokens)
    cache.batch_repeat_interleave(2)
    repeated = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
    close(model(**repeated, past_key_values=cache).scale_boxes, expected.repeat_interleave(2, dim=0))

    cache.reset()
    for change in (cache.reorder_cache, cache.batch_select_indices):
        change(order)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 0 and cache.get_seq_length() == 0


def test_a_finished_sample_leaves_the_batch_with_its_answer():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    full = model.generate(**inputs)
    scores = full.scale_scores[:, 0]
    # between the scores of the first scale: some samples stop there, some go on
    stopping_score = float(scores.sort().values[1:].mean())
    streamer = Collector()
    outputs = model.generate(**inputs, stopping_score=stopping_score, streamer=streamer)
    stopped = scores >= stopping_score
    assert 0 < stopped.sum() < 3
    assert torch.equal(outputs.scales_read == 1, stopped)
    for row in range(3):
        read = int(outputs.scales_read[row])
        close(outputs.scale_boxes[row, :read], full.scale_boxes[row, :read])
        close(outputs.pred_boxes[row], full.scale_boxes[row, read - 1])
        close(outputs.scores[row], full.scale_scores[row, read - 1])
        assert all(not mask[row].any() for mask in outputs.selection_masks[read:])
    assert streamer.results[1].rows.tolist() == (~stopped).nonzero()[:, 0].tolist()

    everyone = model.generate(**inputs, stopping_score=0.0)
    assert everyone.scales_read.tolist() == [1, 1, 1] and everyone.scale_boxes.shape[1] == 1


def test_a_selection_threshold_of_generate_replaces_the_configured_one():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    generated = model.generate(**inputs, selection_threshold=0.3)
    model.config.selection_threshold = 0.3
    close(generated.scale_boxes, model(**inputs).scale_boxes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "maskless"])
def test_half_precision_is_close_to_full(dtype, implementation):
    # everything is read, so that a rounded logit can't change what is compared
    model = tiny_model(dtype=torch.float32, selection_threshold=0.0)
    model.set_attn_implementation(implementation)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    expected = model(**inputs).scale_boxes
    actual = model.to(dtype)(**inputs).scale_boxes
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0)


def test_the_log_count_survives_bfloat16_in_the_key_dimensions():
    """One merged key of n patches weighs as n keys, although bfloat16 alone would round log n."""
    from modeling_scanformer.layer_scanformer import append_bias_dimensions

    torch.manual_seed(0)
    head_dim, scaling = 24, 24**-0.5
    query, key, value = (torch.randn(1, 2, length, head_dim).bfloat16() for length in (3, 4, 4))
    bias = torch.tensor([[0.0, float(torch.tensor(397.0).log()), -1e4, 0.0]])
    wide_query, wide_key, wide_value = append_bias_dimensions(query, key, value, bias, scaling)
    assert wide_query.shape[-1] % 8 == 0
    logits = wide_query.float() @ wide_key.float().transpose(2, 3) * scaling
    expected = query.float() @ key.float().transpose(2, 3) * scaling + bias[:, None, None]
    torch.testing.assert_close(logits[..., [0, 1, 3]], expected[..., [0, 1, 3]], atol=1e-4, rtol=0)
    assert (logits[..., 2] < -9e3).all()
    assert torch.equal(wide_value[..., :head_dim], value)


@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention compiles its kernel")
def test_flex_attention_gives_the_same_boxes():
    model = tiny_model(dtype=torch.float32, hidden_size=64)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    expected = model.generate(**inputs).scale_boxes
    model.set_attn_implementation("flex_attention")
    close(model.generate(**inputs).scale_boxes, expected, torch.float32)
