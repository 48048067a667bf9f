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
"""Packed weights: the same answers, and clear errors for what a packed model cannot do."""

import copy

import pytest
import torch
from tiny import tiny_inputs, tiny_model

from modeling_scanformer import lora_config, pack_weights
from modeling_scanformer.packing_scanformer import FEWEST_OUTPUTS, PackedLinear


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_packed_equals_unpacked(qkv_bias):
    inputs = tiny_inputs(tiny_model().config, dtype=torch.float32)
    options = {"dtype": torch.float32, "qkv_bias": qkv_bias, "num_convolution_layers": 1, "refine_boxes": True}
    model, packed = tiny_model(**options), pack_weights(tiny_model(**options))
    left = [m for m in packed.modules() if isinstance(m, torch.nn.Linear)]
    assert left and all(module.out_features < FEWEST_OUTPUTS for module in left)
    expected, outputs = model(**inputs), packed(**inputs)
    torch.testing.assert_close(outputs.scale_boxes, expected.scale_boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.scale_scores, expected.scale_scores, atol=1e-5, rtol=0)
    assert all(map(torch.equal, outputs.selection_masks, expected.selection_masks))
    assert not outputs.scale_boxes.requires_grad
    torch.testing.assert_close(packed.generate(**inputs).pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="processor without bfloat16")
def test_half_precision_stays_close():
    inputs = tiny_inputs(tiny_model().config, dtype=torch.bfloat16)
    # reading everything: near the threshold, rounding decides what is read
    model = tiny_model(dtype=torch.bfloat16, selection_threshold=0.0)
    packed = pack_weights(tiny_model(dtype=torch.bfloat16, selection_threshold=0.0))
    torch.testing.assert_close(packed(**inputs).scale_boxes, model(**inputs).scale_boxes, atol=0.03, rtol=0)


def test_packed_under_autocast():
    model = tiny_model(dtype=torch.float32, selection_threshold=0.0)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    expected = model.generate(**inputs).scale_boxes
    with torch.autocast("cpu", torch.bfloat16):
        outputs = pack_weights(model).generate(**inputs)
    torch.testing.assert_close(outputs.scale_boxes.float(), expected, atol=0.03, rtol=0)


def test_a_packed_model_is_for_inference_where_it_is(tmp_path):
    packed = pack_weights(tiny_model(dtype=torch.float32))
    assert packed.to("cpu", torch.float32) is packed
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    with pytest.raises(RuntimeError, match="before `pack_weights`"):
        packed.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="Save it before"):
        packed.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="copied or pickled"):
        copy.deepcopy(packed)
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_cannot_be_packed_is_left_as_it_was():
    model = tiny_model(dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        pack_weights(model)
    with pytest.raises(ValueError, match="on meta"):
        pack_weights(tiny_model(dtype=torch.float32).to("meta"))
    adapted = tiny_model(dtype=torch.float32)
    adapted.add_adapter(lora_config(r=2))
    with pytest.raises(ValueError, match="merge it first"):
        pack_weights(adapted)
    for left in (model, adapted):
        assert not any(isinstance(module, PackedLinear) for module in left.modules())
