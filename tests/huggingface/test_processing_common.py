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
"""Hugging Face's common tests of processors, on ScanFormer's."""

import string
import unittest

from common_tests import import_common_tests
from transformers import BertTokenizer

from modeling_scanformer import ScanFormerImageProcessor, ScanFormerProcessor


common = import_common_tests("test_processing_common")


class ScanFormerProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = ScanFormerProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ScanFormerImageProcessor(size={"longest_edge": 32}, patch_size=4, num_scales=2)

    @classmethod
    def _setup_tokenizer(cls):
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
        return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=128)

    def test_processor_text_has_no_visual(self):
        # They leave out the picture of one expression. Grounding needs a picture for every expression.
        with self.assertRaisesRegex(ValueError, "2 pictures but 3 expressions"):
            super().test_processor_text_has_no_visual()
