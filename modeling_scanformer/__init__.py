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
"""ScanFormer: referring expression comprehension by coarse-to-fine scanning, for Transformers."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .adapters_scanformer import lora_config, quantization_config
from .cache_scanformer import ScanCache
from .configuration_scanformer import ScanFormerConfig
from .early_exit_scanformer import EarlyExitRule
from .generation_scanformer import ScaleResult, ScanFormerGenerationConfig
from .image_processing_scanformer import ScanFormerImageProcessor, read_image
from .modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerModel, ScanFormerPreTrainedModel
from .packing_scanformer import pack_weights
from .pipeline_scanformer import DEFAULT_CHECKPOINT, VisualGroundingPipeline
from .portability_scanformer import save_portable
from .processing_scanformer import ScanFormerProcessor
from .pyramid_scanformer import image_pyramid, pad_pyramids
from .visualization_scanformer import draw_scan


__all__ = [
    "DEFAULT_CHECKPOINT",
    "EarlyExitRule",
    "ScaleResult",
    "ScanCache",
    "ScanFormerConfig",
    "ScanFormerForVisualGrounding",
    "ScanFormerGenerationConfig",
    "ScanFormerImageProcessor",
    "ScanFormerModel",
    "ScanFormerPreTrainedModel",
    "ScanFormerProcessor",
    "VisualGroundingPipeline",
    "draw_scan",
    "image_pyramid",
    "lora_config",
    "pack_weights",
    "pad_pyramids",
    "quantization_config",
    "read_image",
    "save_portable",
]
__version__ = "0.1.0"

AutoConfig.register("scanformer", ScanFormerConfig)
AutoModel.register(ScanFormerConfig, ScanFormerModel)
AutoModelForZeroShotObjectDetection.register(ScanFormerConfig, ScanFormerForVisualGrounding)
AutoImageProcessor.register(ScanFormerConfig, slow_image_processor_class=ScanFormerImageProcessor)
AutoProcessor.register(ScanFormerConfig, ScanFormerProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "visual-grounding",
    pipeline_class=VisualGroundingPipeline,
    pt_model=AutoModelForZeroShotObjectDetection,
    default={"model": (DEFAULT_CHECKPOINT, "main")},
    type="multimodal",
)
