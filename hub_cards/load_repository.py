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
"""
Run in a process of its own: grounds an expression with a repository's own code, as if this package did not exist.

    python -I hub_cards/load_repository.py REPOSITORY IMAGE EXPRESSION

Prints the boxes by the way they were got, as JSON.
"""

import json
import sys


# Importing the package fails from here on.
sys.modules["modeling_scanformer"] = None

from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    pipeline,
)


def main(repository: str, image: str, expression: str):
    pipe = pipeline("visual-grounding", model=repository, trust_remote_code=True)
    boxes = {"the pipeline": pipe(image, text=expression)["box"]}

    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(repository, trust_remote_code=True)
    picture = Image.open(image).convert("RGB")
    inputs = processor(images=picture, text=expression, return_tensors="pt").to(model.device)
    outputs = model.generate(**inputs)
    (answer,) = processor.post_process_visual_grounding(outputs, target_sizes=[(picture.height, picture.width)])
    xyxy = answer["boxes"].flatten().tolist()
    boxes["the model"] = dict(zip(("xmin", "ymin", "xmax", "ymax"), xyxy))

    encoder = AutoModel.from_pretrained(repository, trust_remote_code=True)
    if type(encoder).__module__.split(".")[0] != "transformers_modules":
        raise ImportError(f"AutoModel took {type(encoder)} instead of the repository's own code.")
    print(json.dumps(boxes))


if __name__ == "__main__":
    main(*sys.argv[1:])
