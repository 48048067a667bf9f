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
"""Hugging Face's common tests of image processors, on ScanFormer's."""

import math
import subprocess
import unittest
from unittest import mock

from common_tests import import_common_tests
from transformers.image_utils import get_image_size, to_numpy_array

from modeling_scanformer import ScanFormerImageProcessor


common = import_common_tests("test_image_processing_common")


class ScanFormerImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"longest_edge": 32})
        kwargs.setdefault("patch_size", 4)
        kwargs.setdefault("num_scales", 2)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # Found by the model's name in their own tables otherwise.
        return {"pil": ScanFormerImageProcessor}

    def expected_output_image_shape(self, images):
        unit = self.patch_size * 2 ** (self.num_scales - 1)
        longer = self.size["longest_edge"] // unit  # side of the coarsest grid
        shorter = []
        for image in images:
            sides = get_image_size(to_numpy_array(image))
            exact = longer * min(sides) / max(sides)
            shorter.append(min(range(1, longer + 1), key=lambda side: abs(math.log(side / exact))))
        num_patches = sum(longer * max(shorter) * 4**scale for scale in range(self.num_scales))
        return num_patches, self.num_channels * self.patch_size**2


class ScanFormerImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ScanFormerImageProcessingTester
    test_cast_dtype = True

    def test_call_numpy_4_channels(self):
        # They ask for patches of four channels. The model's patches have three, whatever the picture had.
        with self.assertRaisesRegex(ValueError, "3 channels"):
            super().test_call_numpy_4_channels()

    @unittest.skip("Our image processor has one backend: there is no torchvision for a CPU build of torch.")
    def test_new_models_require_torchvision_backend(self):
        pass

    def test_pil_can_run_without_torchvision(self):
        # Their script runs in a process of its own and would not know our class.
        def run_with_our_package(command, **kwargs):
            python, option, script, *arguments = command
            script = script.replace("from transformers", "import modeling_scanformer\nfrom transformers")
            return run([python, option, script, *arguments], **kwargs)

        run = subprocess.run
        with mock.patch.object(subprocess, "run", run_with_our_package):
            super().test_pil_can_run_without_torchvision()
