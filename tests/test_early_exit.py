"""Early exit by a calibrated rule: what it sees, when samples leave, and what it refuses."""

import json

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from grounding.exit_samples import Collector
from peft import IA3Config, LoHaConfig, OFTConfig, get_peft_model
from tiny import take_row, tiny_inputs, tiny_model

from modeling_scanformer import (
    EarlyExitRule,
    ScanFormerForVisualGrounding,
    lora_config,
    pack_weights,
    scan_scanformer,
)
from modeling_scanformer.early_exit_scanformer import fingerprint


def rule_for(model, **fields) -> EarlyExitRule:
    """Leaves a scale where the first number of [REG]'s state, after Encoder1, is not negative."""
    exits = model.config.num_scales - 1
    values = {
        "weights": [[1.0, *[0.0] * (model.config.hidden_size - 1)]] * exits,
        "biases": [0.0] * exits,
        "threshold": 0.5,
        "alpha": 0.01,
        "confidence": 0.95,
        "num_samples": 1000,
        "fingerprint": fingerprint(model),
        "options": model.scan_options(),
    }
    return EarlyExitRule(**{**values, **fields})


def early_reg_states(model, inputs) -> list[torch.Tensor]:
    """Of every scale [REG] between the encoders, from the hidden states of `forward`."""
    outputs = model(**inputs, output_hidden_states=True)
    states = outputs.hidden_states[model.config.selection_layer]
    begin, found = inputs["input_ids"].shape[1], []
    for scale, indices in enumerate(outputs.patch_indices):
        found.append(states[:, begin])
        begin += 1 + indices.shape[1] + (scale > 0)
    assert begin == states.shape[1]
    return found


def test_a_scale_shows_what_decides_of_leaving():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    streamer = Collector()
    model.generate(**inputs, streamer=streamer)
    outputs, states = model(**inputs), early_reg_states(model, inputs)
    assert [result.selection_mask.shape[1] for result in streamer.results] == [6, 24, 96]
    for scale, result in enumerate(streamer.results):
        torch.testing.assert_close(result.early_reg_state, states[scale].float())
        if scale == 2:
            assert not result.wanted.any()
        else:
            patches = inputs["spatial_shapes"][:, scale + 1].prod(1)
            torch.testing.assert_close(result.wanted, outputs.selection_masks[scale + 1].sum(1) / patches)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
@pytest.mark.parametrize("way", ["fused", "streamed", "in parts"])
def test_samples_leave_when_the_rule_says_so(threshold, way, monkeypatch):
    streamer = Collector() if way == "streamed" else None
    if way == "in parts":  # as if a pass cost nothing
        monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", {"cpu": 0})
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    everything = model.generate(**inputs)
    states = torch.stack(early_reg_states(model, inputs), dim=1)
    # at the first scale one sample leaves, at the second another
    weights = torch.linalg.pinv(states[:, :2].flatten(0, 1)) @ states.new_tensor([2, -2, -2, 2, -2, -2])
    rule = rule_for(model, weights=[weights.tolist()] * 2, threshold=threshold)
    model.generation_config.early_exit_rule = rule.to_dict()
    outputs = model.generate(**inputs, early_exit=True, streamer=streamer)
    if threshold == 0.5:
        assert outputs.scales_read.tolist() == [1, 2, 3]
    for row in range(3):
        scores = (states[row, :2] @ weights).sigmoid()  # no rule is asked after the last scale
        leaves = (scores >= threshold).nonzero()[:, 0].tolist()
        last = leaves[0] if leaves else 2
        assert outputs.scales_read[row] == last + 1
        torch.testing.assert_close(outputs.pred_boxes[row], everything.scale_boxes[row, last])
        assert not any(
            outputs.selection_masks[scale][row].any() for scale in range(last + 1, len(outputs.selection_masks))
        )
        alone = model.generate(**take_row(inputs, row, 3), early_exit=True)
        torch.testing.assert_close(alone.pred_boxes[0], outputs.pred_boxes[row])


def test_a_rule_is_saved_with_the_model_and_holds_in_half_precision(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["early_exit_rule"]["alpha"] == 0.01
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = ScanFormerForVisualGrounding.from_pretrained(tmp_path, dtype=dtype)
        loaded.generate(**tiny_inputs(model.config, dtype=dtype), early_exit=True)


def test_autocast_does_not_round_what_decides():
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, model.config.hidden_size, generator=generator)
    rule = rule_for(model, weights=torch.randn(2, model.config.hidden_size, generator=generator).tolist())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = rule.stops(states, 0)
    assert torch.equal(rounded, rule.stops(states, 0)) and 100 < rounded.sum() < 400


def test_no_early_exit_without_calibration():
    model = tiny_model()
    with pytest.raises(ValueError, match="calibrated rule.*calibrate_early_exit"):
        model.generate(**tiny_inputs(model.config), early_exit=True)


def test_a_rule_of_another_checkpoint_is_refused():
    model, other = tiny_model(0), tiny_model(1)
    other.generation_config.early_exit_rule = rule_for(model).to_dict()
    with pytest.raises(ValueError, match="another checkpoint"):
        other.generate(**tiny_inputs(other.config), early_exit=True)


def test_a_rule_is_refused_once_any_parameter_has_changed():
    model = tiny_model(dtype=torch.float32)
    rule = rule_for(model)
    rule.check(model, model.scan_options())
    padding = model.model.text_embeddings.word_embeddings.weight.detach()[model.config.pad_token_id]
    for parameter in model.parameters():
        original, original_padding = parameter.detach().clone(), padding.clone()
        with torch.no_grad():
            parameter += 1
            padding.copy_(original_padding)  # which training never changes
            with pytest.raises(ValueError, match="another checkpoint"):
                rule.check(model, model.scan_options())
            parameter.copy_(original)
        rule.check(model, model.scan_options())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "adapter",
    [
        lora_config(r=2, modules_to_save=None, init_lora_weights=False),
        lora_config(r=2, modules_to_save=None, init_lora_weights=False, use_dora=True),
        IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False),
        LoHaConfig(r=2, target_modules=["k_proj"], init_weights=False),
        OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"], init_weights=False),
    ],
    ids=["LoRA", "DoRA", "IA3", "LoHa", "OFT"],
)
def test_a_rule_is_refused_under_an_adapter(adapter, merged):
    model = tiny_model(dtype=torch.float32)
    rule, alone = rule_for(model), fingerprint(model)
    adapted = get_peft_model(model, adapter)
    model = adapted.merge_and_unload() if merged else adapted.base_model.model
    with pytest.raises(ValueError, match="another checkpoint"):
        rule.check(model, model.scan_options())
    assert (fingerprint(model, with_adapters=False) == alone) != merged


@pytest.mark.parametrize(
    "damage",
    [
        {"threshold": "0.5"},
        {"threshold": None},
        {"threshold": float("nan")},
        {"biases": ["a", "b"]},
        {"fingerprint": None},
        {"fingerprint": ["1"]},
        {"num_samples": "x"},
    ],
    ids=str,
)
def test_a_damaged_rule_is_refused(damage):
    model = tiny_model()
    model.generation_config.early_exit_rule = {**rule_for(model).to_dict(), **damage}
    with pytest.raises(ValueError, match="early exit rule holds"):
        model.generate(**tiny_inputs(model.config), early_exit=True)


def test_a_rule_knows_its_model_packed():
    model = tiny_model(dtype=torch.float32)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    pack_weights(model).generate(**tiny_inputs(model.config, dtype=torch.float32), early_exit=True)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_a_rule_knows_its_model_offloaded(offload, adapted, tmp_path):
    model = tiny_model(dtype=torch.float32)
    if adapted:
        adapter = lora_config(r=2, modules_to_save=None, init_lora_weights=False)
        model = get_peft_model(model, adapter).base_model.model
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    expected = model.generate(**inputs, early_exit=True)
    folder = {"offload_dir": tmp_path} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **folder)
    outputs = model.generate(**inputs, early_exit=True)
    assert torch.equal(outputs.scales_read, expected.scales_read)
    torch.testing.assert_close(outputs.pred_boxes, expected.pred_boxes)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"selection_threshold": 0.1}, {"max_scales": 2}, {"token_budget": 0.5}, {"token_budget": [6, 9, 9]}],
    ids=str,
)
def test_a_rule_under_other_options_is_refused(options):
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    with pytest.raises(ValueError, match="options"):
        model.generate(**inputs, early_exit=True, **options)
    model.generation_config.update(**options)
    exits = options.get("max_scales", 3) - 1
    fields = {"weights": rule_for(model).weights[:exits], "biases": [0.0] * exits}
    fields["options"] = model.scan_options()
    model.generation_config.early_exit_rule = rule_for(model, **fields).to_dict()
    model.generate(**inputs, early_exit=True)


def test_a_rule_takes_options_that_say_the_defaults():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    said = model.generate(
        **inputs, early_exit=True, max_scales=3, selection_threshold=model.config.selection_threshold
    )
    assert torch.equal(said.pred_boxes, model.generate(**inputs, early_exit=True).pred_boxes)
    model.generation_config.update(token_budget=0.5)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    model.generate(**inputs, early_exit=True, budget_split="none", budget_score="informativeness")


@pytest.mark.parametrize(
    "rule",
    [
        {"threshold": 0.5},
        "yes",
        {**rule_for(tiny_model()).to_dict(), "weights": [[1.0]] * 2},
        {**rule_for(tiny_model()).to_dict(), "weights": [[1.0] * 5] * 2},
        {**rule_for(tiny_model()).to_dict(), "alpha": 0},
        {**rule_for(tiny_model()).to_dict(), "alpha": "0.1"},
        {**rule_for(tiny_model()).to_dict(), "weights": None},
        {**rule_for(tiny_model()).to_dict(), "weights": [1.0, 1.0]},
        {**rule_for(tiny_model()).to_dict(), "weights": [[1.0] * 32, [1.0] * 31]},
    ],
    ids=[
        *("missing fields", "no rule", "missing weights", "another hidden size", "alpha", "text", "no weights"),
        *("numbers", "unequal weights"),
    ],
)
def test_senseless_rules_raise(rule):
    model = tiny_model()
    model.generation_config.early_exit_rule = rule
    with pytest.raises(ValueError, match="rule"):
        model.generate(**tiny_inputs(model.config), early_exit=True)


def test_two_rules_at_once_are_refused():
    model = tiny_model()
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    with pytest.raises(ValueError, match="one of them"):
        model.generate(**tiny_inputs(model.config), early_exit=True, stopping_score=0.5)
