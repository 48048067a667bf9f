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
"""LoRA adapters: small, and saved, loaded, switched and merged as the ecosystem does."""

import json
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import picture, tiny_config, tiny_inputs, tiny_model
from transformers import AutoModelForZeroShotObjectDetection, pipeline
from transformers.utils import is_bitsandbytes_available

from modeling_scanformer import (
    DEFAULT_CHECKPOINT,
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerProcessor,
)
from modeling_scanformer.adapters_scanformer import MODULES_TO_SAVE, lora_config, quantization_config


VARIANTS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


def shake(model, seed: int = 0):
    """Give what an adapter trains values that it could have after training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def adapted_model(seed: int = 0, **options) -> ScanFormerForVisualGrounding:
    model = tiny_model()
    model.add_adapter(lora_config(r=4, **options))
    return shake(model, seed).eval()


def boxes(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(tiny_config())).scale_boxes


def assert_same(result: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-2)


def num_trained(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_adapters_are_small():
    model = ScanFormerForVisualGrounding(ScanFormerConfig.from_pretrained(DEFAULT_CHECKPOINT))
    size = model.num_parameters()
    model.add_adapter(lora_config(r=8))
    assert num_trained(model) <= 0.03 * size
    with torch.device("meta"):
        model = ScanFormerForVisualGrounding(ScanFormerConfig())
    model.add_adapter(lora_config(r=8))
    assert 4 * num_trained(model) < 2e6, "bytes of a base model's adapter"


def test_the_dense_baseline_takes_an_adapter_too():
    model = tiny_model(num_scales=1)
    model.add_adapter(lora_config())
    assert num_trained(model) > 0


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_saved_adapter_gives_the_same_answers(options, tmp_path):
    model = adapted_model(**options)
    expected = boxes(model)
    assert differ(expected, boxes(tiny_model()))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
    for name in MODULES_TO_SAVE:
        assert any(f".{name}.weight" in key for key in saved), f"{name} is saved"

    loaded = tiny_model()
    loaded.load_adapter(str(tmp_path))
    torch.testing.assert_close(boxes(loaded), expected, atol=0, rtol=0)
    by_peft = PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(boxes(by_peft), expected, atol=0, rtol=0)
    merged = by_peft.merge_and_unload()
    assert_same(boxes(merged), expected)
    assert set(merged.state_dict()) == set(tiny_model().state_dict())


def test_all_schedules_agree_with_an_adapter():
    model, inputs = adapted_model(), tiny_inputs(tiny_config())
    expected = boxes(model)
    results = []

    class Streamer:
        def put(self, result):
            results.append(result)

        def end(self):
            pass

    assert_same(model.generate(**inputs).scale_boxes, expected)
    assert_same(model.generate(**inputs, streamer=Streamer()).scale_boxes, expected)
    assert len(results) == 3
    text = model.encode_text(inputs.pop("input_ids"), inputs.pop("attention_mask"))
    assert_same(model.generate(**inputs, past_key_values=text).scale_boxes, expected)
    assert_same(model(**inputs, past_key_values=text).scale_boxes, expected)


def test_everything_that_an_adapter_trains_gets_a_gradient():
    model, inputs = tiny_model(), tiny_inputs(tiny_config())
    model.add_adapter(lora_config())
    shake(model).train()
    outputs = model(**inputs, labels=torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 3, dtype=torch.float64))
    outputs.loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


def test_several_adapters_are_switched_and_deleted(tmp_path):
    expected = {}
    for seed, name in enumerate(("streets", "kitchens")):
        model = adapted_model(seed)
        model.save_pretrained(tmp_path / name)
        expected[name] = boxes(model)
    assert differ(*expected.values())
    model = tiny_model()
    for name in expected:
        model.load_adapter(str(tmp_path / name), adapter_name=name)
        assert_same(boxes(model), expected[name])
    for name in ("streets", "kitchens", "streets"):
        model.set_adapter(name)
        assert_same(boxes(model), expected[name])
    model.delete_adapter("streets")
    model.set_adapter("kitchens")
    assert_same(boxes(model), expected["kitchens"])
    model.disable_adapters()
    assert_same(boxes(model), boxes(tiny_model()))
    model.enable_adapters()
    assert_same(boxes(model), expected["kitchens"])

    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "streets")
    with model.disable_adapter():
        assert_same(boxes(model), boxes(tiny_model()))
    assert_same(boxes(model), expected["streets"])


def test_a_model_whose_adapters_are_deleted_is_what_it_was(tmp_path):
    adapted = adapted_model()
    adapted.save_pretrained(tmp_path / "adapter")
    model = tiny_model()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for _ in range(2):
        model.load_adapter(str(tmp_path / "adapter"))
        assert_same(boxes(model), boxes(adapted))
        model.delete_adapter("default")
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    model.save_pretrained(tmp_path / "model")
    assert_same(boxes(ScanFormerForVisualGrounding.from_pretrained(tmp_path / "model")), boxes(tiny_model()))


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """A folder that holds an adapter of the tiny checkpoint, and nothing else."""
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    model.add_adapter(lora_config())
    shake(model).save_pretrained(tmp_path)
    return tmp_path


def test_pipelines_and_auto_classes_take_an_adapter(checkpoint, adapter):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    model.load_adapter(str(adapter))
    by_auto_class = AutoModelForZeroShotObjectDetection.from_pretrained(adapter)
    inputs = {name: v.float() if v.is_floating_point() else v for name, v in tiny_inputs(tiny_config()).items()}
    assert_same(by_auto_class(**inputs).pred_boxes, model.eval()(**inputs).pred_boxes)

    picture_and_text = {"image": picture(40, 30), "text": "the red circle"}
    by_hand = pipeline("visual-grounding", model=model, processor=ScanFormerProcessor.from_pretrained(checkpoint))
    base, adapted = (pipeline("visual-grounding", model=str(folder)) for folder in (checkpoint, adapter))
    assert adapted(picture_and_text) == by_hand(picture_and_text) != base(picture_and_text)


def test_an_adapter_of_a_deeper_model_is_an_error(tmp_path):
    deeper = tiny_model(num_hidden_layers=5)
    deeper.add_adapter(lora_config())
    deeper.save_pretrained(tmp_path)
    model = tiny_model()
    model.add_adapter(lora_config(), "own")
    with pytest.raises(ValueError, match="made for another model: 4 weights are in one of them only"):
        model.load_adapter(str(tmp_path))
    assert_same(boxes(model), boxes(tiny_model()))

    model = tiny_model()
    model.box_head.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="made for another model"):
        model.load_adapter(str(tmp_path))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_an_adapter_of_another_shape_is_an_error(tmp_path):
    adapted_model().save_pretrained(tmp_path)
    other = tiny_model(hidden_size=48)
    with pytest.raises(RuntimeError, match="mismatch"):
        other.load_adapter(str(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny_model(hidden_size=48), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    with pytest.raises(ValueError, match="No modules were targeted"):
        tiny_model().load_adapter(str(tmp_path))


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
def test_a_model_in_4_bits_takes_an_adapter(checkpoint, tmp_path):
    def load(**options):
        return ScanFormerForVisualGrounding.from_pretrained(checkpoint, **options).eval()

    def answer(model):
        with torch.no_grad():
            return model(**tiny_inputs(tiny_config(), dtype=torch.float32)).scale_boxes

    model = load(quantization_config=quantization_config())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (type(module).__name__ == "Linear4bit") == (".layers." in name), name
    quantized = answer(model)
    model.add_adapter(lora_config(r=4))
    expected = answer(shake(model).eval())
    assert differ(expected, quantized)
    model.save_pretrained(tmp_path)
    again, whole = load(quantization_config=quantization_config()), load()
    for other in (again, whole):
        other.load_adapter(str(tmp_path))
    torch.testing.assert_close(answer(again), expected, atol=0, rtol=0)
    adapted = {name: p for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name}
    parameters = dict(whole.named_parameters())
    assert adapted and all(torch.equal(parameters[name], tensor) for name, tensor in adapted.items())
    assert differ(answer(whole), answer(load()))


def test_bitsandbytes_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("modeling_scanformer.adapters_scanformer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        quantization_config()


def test_peft_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        lora_config()
