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
"""What a ScanFormer costs: floating point operations and time, at batch 1 on real samples."""

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers.generation.streamers import BaseStreamer

from modeling_scanformer import ScaleResult, ScanFormerForVisualGrounding

from .data import GroundingCollator


# Runs before time is taken: the first ones allocate memory and choose kernels.
WARMUP = 3
# Options of `generate` that keep it from reading every patch, besides the selection threshold.
LIMITS = ("early_exit", "stopping_score", "token_budget", "budget_split", "budget_score")


def measure_cost(
    model: ScanFormerForVisualGrounding,
    dataset: Dataset,
    collator: GroundingCollator,
    accelerator: Accelerator,
    num_samples: int,
    **options,
) -> dict:
    """
    Cost of the first samples of a data set, one at a time, against the same model reading every patch.

    Args:
        model ([`ScanFormerForVisualGrounding`]):
            The model, unwrapped, on its device.
        dataset (`Dataset`):
            Gives the samples.
        collator ([`GroundingCollator`]):
            With `keep_samples=True`.
        accelerator (`Accelerator`):
            Knows the device and the precision.
        num_samples (`int`):
            Number of samples.
        **options:
            Of [`~ScanFormerForVisualGrounding.generate`].

    Returns:
        `dict`: `num_cost_samples`; `flops_counted`, in words; means `flops_per_sample` and `dense_flops_per_sample`; medians in milliseconds
        `latency_ms`, `dense_latency_ms` (the model alone) and `preprocessing_ms` (decoding included, but the making of a
        sample of Scenes not). Empty where no sample can be used.
    """
    dense = {**options, **dict.fromkeys(LIMITS), "selection_threshold": 0.0}
    inputs, preprocessing = [], []
    for index in range(min(num_samples, len(dataset))):
        sample = dataset[index]
        batch, seconds = timed(lambda sample=sample: collator([sample]))
        if batch["samples"]:
            inputs.append({name: batch[name].to(accelerator.device) for name in batch if torch.is_tensor(batch[name])})
            inputs[-1].pop("labels")
            preprocessing.append(seconds)
    if not inputs:
        return {}

    def run(batch: dict, run_options: dict):
        with accelerator.autocast():
            model.generate(**batch, **run_options)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    for batch in inputs[:WARMUP]:
        run(batch, options)
        run(batch, dense)
    flops, dense_flops, seconds, dense_seconds = [], [], [], []
    for batch in tqdm(inputs, desc="Measuring cost", disable=not accelerator.is_local_main_process, leave=False):
        # in turn, so that what else the machine does meets both alike
        seconds.append(timed(lambda batch=batch: run(batch, options))[1])
        dense_seconds.append(timed(lambda batch=batch: run(batch, dense))[1])
        with accelerator.autocast():
            flops.append(count_flops(model, batch, **options))
            dense_flops.append(count_flops(model, batch, **dense))
    return {
        "num_cost_samples": len(inputs),
        "flops_counted": "matrix products at batch 1, a multiplication and an addition as two",
        "flops_per_sample": statistics.mean(flops),
        "dense_flops_per_sample": statistics.mean(dense_flops),
        "latency_ms": 1000 * statistics.median(seconds),
        "dense_latency_ms": 1000 * statistics.median(dense_seconds),
        "preprocessing_ms": 1000 * statistics.median(preprocessing),
    }


def count_flops(model: ScanFormerForVisualGrounding, inputs: dict[str, torch.Tensor], **options) -> int:
    """
    Operations of all matrix products of `generate`, a multiplication and an addition counting as two: projections,
    convolutions, attention, MLPs and heads. Softmax, norms, activations, gathering and the interpolation of positions are
    not counted.
    """
    # the counter knows no kernel of scaled dot product attention on CPUs; the plain form has the same products
    with plain_attention(model), FlopCounterMode(display=False) as counter:
        model.generate(**inputs, **options)
    return counter.get_total_flops()


def count_flops_by_scale(
    model: ScanFormerForVisualGrounding, inputs: dict[str, torch.Tensor], **options
) -> tuple[list[int], list[int]]:
    """
    For every scale of one sample: operations of [`count_flops`] up to and including it, and the patches that it read.
    """
    with plain_attention(model), FlopCounterMode(display=False) as counter:
        streamer = ScaleCounter(counter)
        model.generate(**inputs, **options, streamer=streamer)
    return streamer.flops, streamer.patches


class ScaleCounter(BaseStreamer):
    """A streamer of `generate` that notes what had been computed when a scale was known."""

    def __init__(self, counter: FlopCounterMode):
        self.counter = counter
        self.flops: list[int] = []
        self.patches: list[int] = []

    def put(self, value: ScaleResult):
        self.flops.append(self.counter.get_total_flops())
        self.patches.append(int(value.selection_mask.sum()))

    def end(self):
        pass


@contextmanager
def plain_attention(model: ScanFormerForVisualGrounding):
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def timed(function: Callable):
    """The result of a function and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
