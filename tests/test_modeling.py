"""What the models promise besides the scan itself: losses, training, saving, errors."""

import json

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_inputs, tiny_labels, tiny_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    BertConfig,
    BertModel,
    DynamicCache,
)

from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding, ScanFormerModel, image_pyramid
from modeling_scanformer.loss_scanformer import balanced_relevance_loss, box_iou, center_to_corners, relevance


def test_losses_add_up_by_their_coefficients():
    model = tiny_model().train()
    outputs = model(**tiny_inputs(model.config), labels=tiny_labels())
    config, losses = model.config, outputs.loss_dict
    expected = config.relevance_loss_coefficient * losses["loss_relevance"]
    expected = expected + config.selection_rate_loss_coefficient * losses["loss_selection_rate"]
    expected = expected + config.patch_box_loss_coefficient * losses["loss_patch_box"]
    for scale in range(3):
        expected = expected + config.bbox_loss_coefficient * losses[f"loss_bbox_{scale}"]
        expected = expected + config.giou_loss_coefficient * losses[f"loss_giou_{scale}"]
        expected = expected + config.score_loss_coefficient * losses[f"loss_score_{scale}"]
    torch.testing.assert_close(outputs.loss, expected)
    assert len(losses) == 12


def test_box_losses_and_iou_against_hand_computed_values():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    iou, giou = box_iou(boxes, targets)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0.0, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1 / 7 - 2 / 9, -1 / 3, 0.0]))
    same = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert box_iou(same, same)[0].item() == pytest.approx(1.0)


def test_relevance_is_overlap_with_the_target():
    indices = torch.arange(12)[None]
    # 3 rows, 4 columns; the box reaches from the middle of column 1 into column 2, and exactly to the end of row 1
    relevant = relevance(indices, torch.tensor([[3, 4]]), torch.tensor([[0.4, 0.1, 0.6, 2 / 3]]))
    assert relevant.view(3, 4).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_relevance_loss_weighs_both_kinds_alike_and_ignores_padding():
    logits = torch.tensor([[2.0, -1.0, 0.5, 9.0]])
    relevant = torch.tensor([[True, False, False, True]])
    offered = torch.tensor([[True, True, True, False]])
    softplus = torch.nn.functional.softplus
    expected = softplus(torch.tensor(-2.0)) / 2 + (softplus(torch.tensor(-1.0)) + softplus(torch.tensor(0.5))) / 4
    torch.testing.assert_close(balanced_relevance_loss(logits, relevant, offered), expected[None])


def test_every_patch_read_on_the_target_is_asked_for_its_box():
    model = tiny_model()
    config, inputs, labels = model.config, tiny_inputs(model.config), tiny_labels()
    labels[1] = torch.nan
    with torch.no_grad():
        loss = model(**inputs, labels=labels).loss_dict["loss_patch_box"]
        outputs = model.model(**inputs)
        total, num_asked = 0.0, 0
        for row in (0, 2):
            corners = center_to_corners(labels[row])
            for scale, indices in enumerate(outputs.patch_indices):
                grid = inputs["spatial_shapes"][row : row + 1, scale]
                on_target = (indices[row] >= 0) & relevance(indices[row : row + 1], grid, corners[None])[0]
                boxes = model.predict(outputs.patch_states[scale][row, on_target])[0]
                distance = (boxes - labels[row]).abs().sum(-1)
                giou = box_iou(center_to_corners(boxes), corners)[1]
                losses = config.bbox_loss_coefficient * distance + config.giou_loss_coefficient * (1 - giou)
                total += losses.sum() / max(len(losses), 1)
                num_asked += len(losses)
    assert num_asked > 0
    torch.testing.assert_close(loss, total / len(labels) / config.num_scales)


def test_the_rate_loss_pulls_the_share_read_to_its_target_from_both_sides():
    for threshold, sign in ((0.99, -1), (0.01, 1)):
        model = tiny_model(selection_threshold=threshold, selection_target_rate=0.5).train()
        outputs = model(**tiny_inputs(model.config), labels=tiny_labels())
        outputs.loss_dict["loss_selection_rate"].backward()
        # descending raises the logits where too little is read, and lowers them where too much is
        assert model.model.selection_head.classifier.bias.grad.sum() * sign > 0
    model.config.selection_threshold = 0.0
    assert model(**tiny_inputs(model.config), labels=tiny_labels()).loss_dict["loss_selection_rate"] == 0


def test_a_sample_without_target_teaches_the_score_only():
    model = tiny_model(relevance_loss_coefficient=0, selection_rate_loss_coefficient=0).train()
    labels = torch.full_like(tiny_labels(), torch.nan)
    outputs = model(**tiny_inputs(model.config), labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite() and outputs.loss_dict["loss_bbox_2"] == 0
    assert model.box_head.out_proj.weight.grad.abs().max() == 0
    expected = torch.nn.functional.softplus(outputs.scale_scores.logit()).mean(0)
    torch.testing.assert_close(torch.stack([outputs.loss_dict[f"loss_score_{s}"] for s in range(3)]), expected)


@pytest.mark.parametrize("row_without_target", [None, 1])
def test_loss_is_that_of_the_members_averaged(row_without_target):
    model = tiny_model().train()
    inputs, labels = tiny_inputs(model.config), tiny_labels()
    if row_without_target is not None:
        labels[row_without_target] = torch.nan
    whole = model(**inputs, labels=labels).loss
    parts = [model(**{n: v[i : i + 1] for n, v in inputs.items()}, labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model().train()
    inputs = tiny_inputs(model.config)
    results = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs, labels=tiny_labels()).loss.backward()
        results.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.gradient_checkpointing_enable()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


def test_eight_samples_are_learned_by_heart():
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, intermediate_size=128, patch_size=8, relevance_loss_coefficient=1.0)
    model = ScanFormerForVisualGrounding(config).train()
    inputs = image_pyramid(torch.randn(8, 3, 64, 64), patch_size=8, num_scales=3)
    inputs["input_ids"] = torch.randint(1, 40, (8, 6))
    labels = torch.rand(8, 4) * 0.3 + 0.25
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.05, total_iters=300)
    for _ in range(300):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    outputs = model.generate(**inputs)
    iou, _ = box_iou(center_to_corners(outputs.scale_boxes), center_to_corners(labels)[:, None])
    assert (iou.mean(0) > 0.9).all()
    assert 0 < outputs.selection_masks[2].float().mean() < 1


def test_a_new_model_reads_everything():
    torch.manual_seed(0)
    model = ScanFormerForVisualGrounding(tiny_config()).eval()
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    read = torch.cat(model(**inputs).selection_masks, dim=1)
    assert torch.equal(read, inputs["pixel_attention_mask"].bool())


def test_a_single_scale_has_no_selector():
    model = tiny_model(num_scales=1)
    assert not any("selection" in name or "constant" in name for name, _ in model.named_parameters())


def test_saved_equals_loaded_also_by_auto_classes(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.generation_config.max_scales = 2
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    for auto_class in (ScanFormerForVisualGrounding, AutoModelForZeroShotObjectDetection):
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, ScanFormerForVisualGrounding)
        assert loaded.generation_config.max_scales == 2
        assert torch.equal(loaded(**inputs).scale_boxes, model(**inputs).scale_boxes)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ScanFormerConfig)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, ScanFormerModel)
    assert torch.equal(encoder(**inputs).reg_states, model.model(**inputs).reg_states)


def test_hidden_states_and_attentions_have_an_entry_per_layer_in_scan_order():
    model = tiny_model(attn_implementation="eager")
    inputs = tiny_inputs(model.config)
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=True)
    length = outputs.past_key_values.get_seq_length()
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(3, length, 32)] * 5
    assert [tuple(a.shape) for a in outputs.attentions] == [(3, 4, length, length)] * 4
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        assert weights[:, :, :7, 7:].abs().max() == 0  # text sees text only
    regs = torch.tensor([7, 7 + 1 + outputs.patch_indices[0].shape[1]])
    final = model.model.layernorm(outputs.hidden_states[-1][:, regs])
    torch.testing.assert_close(model.predict(final)[0], outputs.scale_boxes[:, :2])

    model.set_attn_implementation("sdpa")
    assert model(**inputs, output_attentions=True).attentions is None


def test_layers_compile():
    model = tiny_model(dtype=torch.float32, num_hidden_layers=2, selection_layer=1)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    expected = model(**inputs)
    for layer in model.model.layers:
        # the tracer without code generation, so that the test needs no compiler
        layer.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    torch.testing.assert_close(model(**inputs).scale_boxes, expected.scale_boxes, atol=1e-5, rtol=1e-5)
    loss = model.train()(**inputs, labels=tiny_labels(torch.float32)).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_with_merging_is_warned_about(caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    logging.get_logger("modeling_scanformer").propagate = True
    try:
        tiny_config(hidden_dropout_prob=0.1)
    finally:
        logging.disable_propagation()
    assert "merge_constant_tokens" in caplog.text
    assert tiny_config(hidden_dropout_prob=0.1, merge_constant_tokens=False).hidden_dropout_prob == 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_size": 30}, "multiple"),
        ({"num_scales": 0}, "num_scales"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"selection_layer": 0}, "selection_layer"),
        ({"selection_layer": 4}, "selection_layer"),
        ({"selection_threshold": 1.5}, "selection_threshold"),
        ({"selection_target_rate": -0.1}, "selection_target_rate"),
        ({"num_convolution_layers": -1}, "num_convolution_layers"),
        ({"num_convolution_layers": 1, "hidden_size": 2, "num_attention_heads": 1}, "at least 4"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_senseless_configurations_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**options)


def test_changes_that_make_no_sense_are_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    for change in ({"selection_layer": 9}, {"selection_threshold": 2}, {"num_attention_heads": 5}):
        with pytest.raises(ValueError, match=next(iter(change))):
            AutoConfig.from_pretrained(tmp_path, **change)
    assert AutoConfig.from_pretrained(tmp_path, selection_threshold=0.75).selection_threshold == 0.75


def test_options_of_generate_are_not_ignored():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    for option in ({"max_scales": 1}, {"token_budget": 0.1}, {"early_exit": True}):
        with pytest.raises(ValueError, match="give them to `generate`"):
            model(**inputs, **option)
    model.config.output_hidden_states = True
    assert model(**inputs, output_hidden_states=None).hidden_states is not None
    assert model(**inputs, output_hidden_states=False).hidden_states is None


def test_inputs_that_do_not_fit_are_refused():
    model = tiny_model()
    inputs = tiny_inputs(model.config)

    def call(**changes):
        return model(**{**inputs, **changes})

    with pytest.raises(ValueError, match="all needed"):
        call(pixel_values=None)
    with pytest.raises(ValueError, match="all needed"):
        call(pixel_values=None, labels=tiny_labels())
    with pytest.raises(ValueError, match="num_patches"):
        call(pixel_values=inputs["pixel_values"][0])
    with pytest.raises(ValueError, match="no tokens"):
        call(input_ids=inputs["input_ids"][:, :0], attention_mask=None)
    with pytest.raises(ValueError, match="got a DynamicCache"):
        call(input_ids=None, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="input_ids"):
        call(input_ids=None)
    with pytest.raises(ValueError, match="past_key_values"):
        call(past_key_values=model.encode_text(inputs["input_ids"]))
    with pytest.raises(ValueError, match="2 expressions but 3 images"):
        call(input_ids=inputs["input_ids"][:2], attention_mask=inputs["attention_mask"][:2])
    with pytest.raises(ValueError, match="at most 12"):
        call(input_ids=torch.ones(3, 13, dtype=torch.long), attention_mask=None)
    with pytest.raises(ValueError, match="attention_mask"):
        call(attention_mask=inputs["attention_mask"][:, :3])
    with pytest.raises(ValueError, match="num_scales"):
        call(pixel_values=inputs["pixel_values"][:, :-1])
    with pytest.raises(ValueError, match="patch_size"):
        call(pixel_values=inputs["pixel_values"][..., :-1])
    with pytest.raises(ValueError, match="spatial_shapes"):
        call(spatial_shapes=inputs["spatial_shapes"][:, :2])
    with pytest.raises(ValueError, match="pixel_attention_mask"):
        call(pixel_attention_mask=inputs["pixel_attention_mask"][:2])
    with pytest.raises(ValueError, match="labels"):
        call(labels=tiny_labels()[:, :3])


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
@torch.no_grad()
def test_an_offloaded_model_gives_the_same_boxes(offload, tmp_path):
    model = tiny_model(dtype=torch.float32)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    expected = model(**inputs).scale_boxes
    folder = {"offload_dir": tmp_path} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **folder)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(**inputs).scale_boxes, expected)
    torch.testing.assert_close(model.generate(**inputs).scale_boxes, expected, atol=1e-6, rtol=0)


def test_replicas_of_data_parallel_are_refused():
    with pytest.raises(NotImplementedError, match="accelerate launch"):
        tiny_model()._replicate_for_data_parallel()


class TestBadCheckpoints:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
        return tmp_path

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(OSError, match="model.safetensors"):
            ScanFormerForVisualGrounding.from_pretrained(tmp_path)

    def test_missing_weights(self, checkpoint):
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(OSError, match="model.safetensors"):
            ScanFormerForVisualGrounding.from_pretrained(checkpoint)

    def test_truncated_weights(self, checkpoint):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(OSError, match="model.safetensors.*damaged"):
            ScanFormerForVisualGrounding.from_pretrained(checkpoint)

    def test_pickled_weights_are_not_read(self, checkpoint):
        torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            ScanFormerForVisualGrounding.from_pretrained(checkpoint)

    def test_another_model_type(self, tmp_path):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="bert.*scanformer"):
            ScanFormerForVisualGrounding.from_pretrained(tmp_path)

    def test_weights_of_other_sizes(self, checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
        with pytest.raises(RuntimeError, match="size"):
            ScanFormerForVisualGrounding.from_pretrained(checkpoint)

    def test_incomplete_weights_are_reported(self, checkpoint):
        weights = load_file(checkpoint / "model.safetensors")
        del weights["model.constant_token.weight"]
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
        _, info = ScanFormerForVisualGrounding.from_pretrained(checkpoint, output_loading_info=True)
        assert info["missing_keys"] == {"model.constant_token.weight"}
