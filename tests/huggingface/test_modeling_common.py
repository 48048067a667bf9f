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
"""Hugging Face's common tests of models and configurations, on a tiny ScanFormer."""

import copy
import unittest
from unittest import mock

import pytest
import torch
from common_tests import import_common_tests
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerModel,
    image_pyramid,
    pad_pyramids,
)
from modeling_scanformer.heads_scanformer import ScanFormerSelectionHead
from modeling_scanformer.scan_scanformer import Scan


ConfigTester = import_common_tests("test_configuration_common").ConfigTester
common = import_common_tests("test_modeling_common")


class ScanFormerModelTester:
    """A batch of pictures of several shapes, so padded. With a threshold of 0 all of it is read: lengths are known."""

    # Rows and columns of the coarsest scale. The first picture is the largest, because `test_batching_equivalence`
    # runs it alone and expects the lengths of the batch.
    grids = [(2, 2), (1, 2), (2, 1), (1, 1), (2, 2), (1, 1), (1, 2)]
    batch_size = len(grids)
    seq_length = 6
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    intermediate_size = 37
    patch_size = 2
    num_scales = 3
    selection_threshold = 0.0
    patches_per_parent = 4
    is_training = True

    @property
    def encoder_seq_length(self) -> int:
        num_patches = sum(4 * self.patches_per_parent**scale for scale in range(self.num_scales))
        # text; per scale [REG] and patches; constant tokens of every scale but the first
        return self.seq_length + self.num_scales + num_patches + self.num_scales - 1

    def get_config(self) -> ScanFormerConfig:
        return ScanFormerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            selection_layer=1,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=16,
            patch_size=self.patch_size,
            num_scales=self.num_scales,
            position_grid_size=3,
            num_convolution_layers=1,
            refine_boxes=True,
            selection_threshold=self.selection_threshold,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        inputs = pad_pyramids([self.prepare_pyramid(*grid) for grid in self.grids])
        inputs["input_ids"] = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 1) + 1
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1::2, -2:] = 0
        return config, {name: value.to(torch_device) for name, value in inputs.items()}

    def prepare_pyramid(self, rows: int, columns: int) -> dict[str, torch.Tensor]:
        unit = self.patch_size * 2 ** (self.num_scales - 1)
        return image_pyramid(
            common.floats_tensor([1, 3, rows * unit, columns * unit]), self.patch_size, self.num_scales
        )


class ScanFormerModelTest(common.ModelTesterMixin, unittest.TestCase):
    model_tester_class = ScanFormerModelTester
    all_model_classes = (ScanFormerModel, ScanFormerForVisualGrounding)
    additional_model_inputs = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

    # `generate` scans: it shares no arguments and no outputs with that of GenerationMixin, whose tests sample text.
    all_generative_model_classes = ()

    @pytest.fixture(autouse=True)
    def known_as_base_model(self, monkeypatch):
        # The common tests tell models with a loss from those without by this table of names.
        monkeypatch.setitem(MODEL_MAPPING_NAMES, "scanformer", "ScanFormerModel")

    def setUp(self):
        self.model_tester = self.model_tester_class()
        self.config_tester = ConfigTester(self, config_class=ScanFormerConfig)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is ScanFormerForVisualGrounding:
            box = torch.tensor([0.4, 0.6, 0.3, 0.5], device=torch_device)
            inputs["labels"] = box.repeat(self.model_tester.batch_size, 1)
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(
        "The only conversion is of DoRA's magnitudes, which no model here carries; tests/test_adapters.py does."
    )
    def test_reverse_loading_mapping(self):
        pass

    def test_model_outputs_equivalence(self):
        # Their comparison always computes a difference, which boolean tensors don't have: it gets integers.
        def integer_mask(scan, scale):
            return selection_mask(scan, scale).long()

        selection_mask = Scan.selection_mask
        with mock.patch.object(Scan, "selection_mask", integer_mask):
            super().test_model_outputs_equivalence()

    def test_retain_grad_hidden_states_attentions(self):
        # They expect that the layers consumed the very tensors that are returned. A layer of ours runs once per scale,
        # so what is returned was put together after the scan: a gradient runs from it to the inputs, not into it.
        config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
        model = ScanFormerModel._from_config(config, attn_implementation="eager").to(torch_device)
        outputs = model(**inputs_dict, output_hidden_states=True, output_attentions=True)
        for states in (*outputs.hidden_states, *outputs.attentions):
            gradient = torch.autograd.grad(
                states[..., 0].sum(), model.get_input_embeddings().weight, retain_graph=True
            )[0]
            self.assertTrue((gradient != 0).any())


class ScanFormerSelectingModelTester(ScanFormerModelTester):
    """Two of the four children of every patch are selected: lengths are known here too."""

    selection_threshold = 0.5
    patches_per_parent = 2


class ScanFormerSelectingModelTest(ScanFormerModelTest):
    model_tester_class = ScanFormerSelectingModelTester

    @pytest.fixture(autouse=True)
    def selecting_two_children(self, monkeypatch):
        # Random weights would select by chance, and otherwise in bfloat16 than in float32. Here every logit keeps a
        # distance of at least 2 from the threshold's.
        def forward(head, hidden_states):
            logits = learned_logits(head, hidden_states)
            return logits.tanh() + logits.new_tensor([3.0, -3.0, -3.0, 3.0])

        learned_logits = ScanFormerSelectionHead.forward
        monkeypatch.setattr(ScanFormerSelectionHead, "forward", forward)
