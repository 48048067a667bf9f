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
The steps of a scan as ONNX files, and a scanner that runs them.

A folder of them holds config.json and the processor's files, scan.json with the sizes of the steps, and for every precision
a folder with a file per step and one file of weights that all of them share.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding
from modeling_scanformer.static_scanformer import (
    TEXT_STEP,
    StaticScanner,
    StaticShapes,
    example_inputs,
    export_steps,
)

from .checks import DataError


SHAPES_NAME = "scan.json"
WEIGHTS_NAME = "weights.bin"
FLOAT32, INT8 = "float32", "int8"

OUTPUT_NAMES = {
    "text": ["keys", "values", "key_bias"],
    "scale": ["boxes", "scores", "selection_logits", "keys", "values", "key_bias"],
    "last_scale": ["boxes", "scores"],
}

# Smaller tensors stay in the steps' own files. Those of the shared file start at a page, so that a runtime can map them.
SHARED_BYTES = 1024
PAGE_BYTES = 4096


def import_optional(name: str):
    """
    Import a package of the extra "export".

    Raises:
        DataError: if it is missing.
    """
    # ONNX Runtime would report its use to its makers
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(f"This needs the package {name}: pip install 'modeling-scanformer[export]'.") from error


class OnnxStep:
    """
    A step that ONNX Runtime runs on the CPU, with the arguments and results of the module that it was exported from.

    Args:
        path (`Path`):
            The ONNX file.
        num_threads (`int`, *optional*, defaults to 0):
            Threads to use; 0 leaves it to the runtime.
    """

    def __init__(self, path: Path, num_threads: int = 0):
        runtime = import_optional("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # every step has threads of its own: waiting busily, they would keep the cores from the next step and from PyTorch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        return tuple(torch.from_numpy(result) for result in self.session.run(None, arrays))


def export_onnx(model: ScanFormerForVisualGrounding, shapes: StaticShapes, folder: Path):
    """
    Write the steps of a model to ONNX files, in float32. All sizes are fixed but the batch's.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model.
        shapes ([`StaticShapes`]):
            Sizes of the steps.
        folder (`Path`):
            Gets the config, the sizes, and the folder "float32" with the steps.

    Raises:
        DataError: if the exporter's packages are missing.
    """
    for package in ("onnx", "onnxscript"):
        import_optional(package)
    model = model.eval().float()
    for stale in (FLOAT32, INT8):  # steps of other buckets, and their copies
        shutil.rmtree(folder / stale, ignore_errors=True)
    (folder / FLOAT32).mkdir(parents=True)
    model.config.save_pretrained(folder)
    (folder / SHAPES_NAME).write_text(json.dumps(asdict(shapes), indent=2) + "\n")
    inputs, files = example_inputs(model, shapes, batch_size=2), []
    last = [name for name, scale, _ in shapes.names() if scale + 1 == model.config.num_scales]
    for name in tqdm(inputs, desc="Exporting steps"):
        kind = "text" if name == TEXT_STEP else "last_scale" if name in last else "scale"
        files.append(folder / FLOAT32 / f"{name}.onnx")
        torch.onnx.export(
            export_steps(model, shapes, [name])[name],
            kwargs=inputs[name],
            f=files[-1],
            input_names=list(inputs[name]),
            output_names=OUTPUT_NAMES[kind],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    share_weights(files)


def quantize_onnx(folder: Path):
    """
    Write a copy of exported steps whose matrix products have weights of 8 bits, quantized by output channel, and
    activations that are quantized as they come ("dynamic"). The weights are unsigned, as x86 CPUs without VNNI add pairs
    of products with signed ones in 16 bits, where large ones are cut off.

    Args:
        folder (`Path`):
            As [`export_onnx`] writes it; gets the folder "int8".

    Raises:
        DataError: if ONNX Runtime is missing.
    """
    quantization = import_optional("onnxruntime.quantization")
    shutil.rmtree(folder / INT8, ignore_errors=True)
    (folder / INT8).mkdir()
    files = []
    for source in tqdm(sorted((folder / FLOAT32).glob("*.onnx")), desc="Quantizing steps"):
        files.append(folder / INT8 / source.name)
        quantization.quantize_dynamic(
            source,
            files[-1],
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    share_weights(files)


def share_weights(files: list[Path]):
    """Move the weights of ONNX files of one folder into a file beside them, equal ones once."""
    onnx = import_optional("onnx")
    set_external_data = import_optional("onnx.external_data_helper").set_external_data
    weights = files[0].parent / WEIGHTS_NAME
    places: dict[bytes, int] = {}
    with weights.open("wb") as file:
        for path in files:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < SHARED_BYTES:
                    continue
                digest = hashlib.sha256(data).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % PAGE_BYTES))
                    places[digest] = file.tell()
                    file.write(data)
                set_external_data(tensor, weights.name, offset=places[digest], length=len(data))
                tensor.ClearField("raw_data")
            # the exporter notes of every node where in the code it comes from: more bytes than the step itself
            for node in model.graph.node:
                node.ClearField("metadata_props")
            onnx.save(model, path)


def load_onnx_scanner(folder: Path, precision: str = FLOAT32, num_threads: int = 0) -> StaticScanner:
    """
    A scanner that runs exported steps by ONNX Runtime.

    Args:
        folder (`Path`):
            As [`export_onnx`] writes it.
        precision (`str`, *optional*, defaults to `"float32"`):
            `"float32"`, or `"int8"` after [`quantize_onnx`].
        num_threads (`int`, *optional*, defaults to 0):
            Threads of the runtime; 0 leaves it to the runtime.

    Raises:
        DataError: if files or ONNX Runtime are missing.
    """
    if not (folder / SHAPES_NAME).is_file():
        raise DataError(f"{folder} holds no exported steps; examples/export_onnx.py writes them.")
    shapes = json.loads((folder / SHAPES_NAME).read_text())
    shapes = StaticShapes(shapes["text_length"], tuple(map(tuple, shapes["buckets"])))
    files = {name: folder / precision / f"{name}.onnx" for name in [TEXT_STEP, *(name for name, *_ in shapes.names())]}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(f"Steps are missing, as {missing[0]}: export again" + " with --int8." * (precision == INT8))
    steps = {name: OnnxStep(path, num_threads) for name, path in files.items()}
    return StaticScanner(ScanFormerConfig.from_pretrained(folder), shapes, steps)
