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
"""Time, operations, memory and the roofline of models that are compared on one machine."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from .cost import plain_attention, timed
from .peers import Contestant


# Side of the square matrices whose product gives the peak, and of the weight whose reading gives the bandwidth: 4 ms and
# 256 MB on a core, so neither is done before the clock ticks nor does the weight fit in a cache.
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}
WEIGHT_SIDE = 8192

# The operators that any network has: products, attention, norms, activations, the additions of residuals and
# biases, and the making of views. All others move or choose: selection, gathering, merging, the cache, masks, positions.
COMPUTING = {"mkldnn::_linear_pointwise"} | {
    f"aten::{name}"
    for name in (
        *("addmm", "mm", "bmm", "baddbmm", "matmul", "linear", "mkldnn_linear", "_mkl_linear"),
        *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "softmax", "_softmax"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"),
        *("_efficient_attention_forward", "_flash_attention_forward", "_scaled_dot_product_cudnn_attention"),
        *("layer_norm", "native_layer_norm", "gelu", "add", "add_"),
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "flatten",
            "t",
            "transpose",
            "as_strided",
            "expand",
            "unsqueeze",
            "slice",
        ),
        *("empty", "empty_like", "empty_strided", "resize_"),
    )
}


@dataclass
class Roof:
    """What the machine can do: operations, and bytes of weights read, per second."""

    flops: float
    bandwidth: float

    def seconds(self, passes: list[tuple[int, int]]) -> float:
        """The least time of passes, each given by its operations and the bytes of the weights that it reads."""
        return sum(max(flops / self.flops, size / self.bandwidth) for flops, size in passes)


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roof_probes(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Callable, float]]:
    """
    What to time for the roof: a function, and the operations or bytes that it takes. The bandwidth is that of float32,
    whose kernels on CPUs are bound by memory where others may not be.
    """
    side = PEAK_SIDE["cuda" if device.type == "cuda" else "cpu"]
    matrix = torch.randn(side, side, device=device).to(dtype)
    weight = torch.randn(WEIGHT_SIDE, WEIGHT_SIDE, device=device)
    vector = torch.randn(WEIGHT_SIDE, device=device)
    return {
        "peak": (lambda: matrix @ matrix, 2 * side**3),
        "bandwidth": (lambda: weight @ vector, weight.nbytes),
    }


def time_in_turn(
    contestants: list[Contestant],
    images: list,
    texts: list[str],
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> tuple[Roof, dict[str, dict[str, float]]]:
    """
    Run everybody once a round, the probes of the roof as well, so that what else the machine does meets all alike.

    Returns:
        The roof, and medians in seconds per contestant: "preprocessing" and "model" (for the whole batch).
    """
    probes = roof_probes(device, dtype)
    seconds = {name: [] for name in probes}
    times = {contestant.name: {"preprocessing": [], "model": []} for contestant in contestants}

    def run(function: Callable):
        result = function()
        synchronize(device)
        return result

    for number in tqdm(range(-1, rounds), desc="Rounds", leave=False):  # the first one warms up
        for name, (function, _) in probes.items():
            spent = timed(lambda function=function: run(function))[1]
            if number >= 0:
                seconds[name].append(spent)
        for contestant in contestants:
            inputs, preprocessing = timed(lambda contestant=contestant: contestant.prepare(images, texts))
            spent = timed(
                lambda contestant=contestant, inputs=inputs: run(
                    lambda: contestant.run(to_device(inputs, device, dtype))
                )
            )[1]
            if number >= 0:
                times[contestant.name]["preprocessing"].append(preprocessing)
                times[contestant.name]["model"].append(spent)
    rates = {name: work / statistics.median(seconds[name]) for name, (_, work) in probes.items()}
    medians = {
        name: {part: statistics.median(values) for part, values in parts.items()} for name, parts in times.items()
    }
    return Roof(rates["peak"], rates["bandwidth"]), medians


def to_device(inputs: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()}


def measure_passes(contestant: Contestant, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """
    Operations, and bytes of the weights that are read, of every pass over the network.

    Operations are those of all matrix products and convolutions, a multiplication and an addition as two. A pass is one
    call of the contestant's `passes`; all that happens outside of them (and everything, where there are none) is one
    more. Tables of embeddings, of which single rows are read, do not count.
    """
    passes, modules = [], [set()]

    def read(module: nn.Module, *_):
        if not isinstance(module, nn.Embedding):
            modules[-1].add(module)

    def size_of(called: set[nn.Module]) -> int:
        weights = {weight for module in called for weight in module.parameters(recurse=False)}
        return sum(weight.nbytes for weight in weights)

    # the counter knows no kernel of scaled dot product attention on CPUs; the plain form has the same products
    with ExitStack() as stack:
        stack.enter_context(plain_attention(contestant.model))
        counter = stack.enter_context(FlopCounterMode(display=False))
        for module in contestant.model.modules():
            stack.callback(module.register_forward_hook(read).remove)

        def counted(method: Callable) -> Callable:
            def call(*args, **kwargs):
                before = counter.get_total_flops()
                modules.append(set())
                result = method(*args, **kwargs)
                passes.append((counter.get_total_flops() - before, size_of(modules.pop())))
                return result

            return call

        for path in contestant.passes:
            owner, _, name = path.rpartition(".")
            owner = contestant.model.get_submodule(owner)
            stack.enter_context(replaced(owner, name, counted(getattr(owner, name))))
        contestant.run(inputs)
    rest = counter.get_total_flops() - sum(flops for flops, _ in passes)
    return [*passes, (rest, size_of(modules[0]))]


@contextmanager
def replaced(owner: object, name: str, method: Callable):
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)


def measure_memory(contestant: Contestant, inputs: dict[str, torch.Tensor], device: torch.device) -> int:
    """
    The most bytes that a run holds: its weights and inputs, and what torch allocates on top of them at the worst moment.

    The allocator is asked, not the operating system: what other contestants left in memory, or gave back to a pool, does
    not enter. Workspaces that a library takes past torch's allocator do not either.
    """
    held = sum(parameter.nbytes for parameter in contestant.model.parameters())
    held += sum(tensor.nbytes for tensor in inputs.values())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        contestant.run(inputs)
        return held + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        contestant.run(inputs)
    events = [event for event in recorder.profiler.kineto_results.events() if event.name() == "[memory]"]
    grown = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        grown += event.nbytes()
        most = max(most, grown)
    return held + most


def measure_bookkeeping(contestant: Contestant, inputs: dict[str, torch.Tensor], device: torch.device) -> float:
    """
    Share of the time in operators that compute nothing of the network: selection, gathering, merging, the cache, masks and
    positions. The profiler slows small operators more than large ones, so the true share is a little lower.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorder:
        contestant.run(inputs)
        synchronize(device)
    total = bookkeeping = 0.0
    for event in recorder.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total += spent
        bookkeeping += 0.0 if event.key in COMPUTING else spent
    return bookkeeping / total
