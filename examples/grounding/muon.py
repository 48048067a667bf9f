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
Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), beside AdamW for what is no hidden matrix.

`torch.optim.Muon` computes in bfloat16, which a CPU without units for it does in software and slowly. This one computes in the
weights' own type, and all matrices of one shape together.
"""

import torch


# Of the quintic polynomial that drives all singular values towards 1, from the page above.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# The root mean square of an update, in learning rates: what AdamW's have in the midst of training, so that one learning rate
# serves both (Liu et al., arXiv 2502.16982, eq. 4).
SCALE = 0.2
# Below it a gradient is as good as none, and is not blown up.
EPSILON = 1e-7


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """
    Nearly the nearest matrices whose singular values are all alike, by a Newton-Schulz iteration.

    Args:
        matrices (`torch.Tensor` of shape `(num_matrices, num_rows, num_columns)`):
            In any scale.

    Returns:
        `torch.Tensor` of that shape: the same singular vectors, and singular values between about 0.7 and 1.2, save for those
        that were a small fraction of the greatest, which are only raised.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        products = matrices @ matrices.mT
        polynomial = torch.baddbmm(products, products, products, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return matrices


class Muon(torch.optim.AdamW):
    """
    AdamW that updates the matrices of some groups by their orthogonalized momentum instead.

    Args:
        params (`list[dict]`):
            Groups of parameters. Where `"orthogonalize"` is true, all are matrices.
        **kwargs:
            Those of `torch.optim.AdamW`. Learning rate and weight decay serve all groups.
    """

    def __init__(self, params: list[dict], **kwargs):
        super().__init__([{"orthogonalize": False, **group} for group in params], **kwargs)
        # fused AdamW would be called with infinite gradients too, and skip them itself
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [group for group in self.param_groups if group["orthogonalize"]]
        matrices = [p for group in groups for p in group["params"] if p.grad is not None]
        gradients = [matrix.grad for matrix in matrices]
        for group in groups:
            self._step_matrices(group)
        # without gradients, AdamW leaves them as they are
        for matrix in matrices:
            matrix.grad = None
        super().step()
        for matrix, gradient in zip(matrices, gradients):
            matrix.grad = gradient
        return loss

    def _step_matrices(self, group: dict):
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape.setdefault(matrix.shape, []).append(matrix)
        for shape, matrices in by_shape.items():
            updates = orthogonalize(torch.stack([self._nesterov(matrix) for matrix in matrices]))
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(updates), alpha=-group["lr"] * SCALE * max(shape) ** 0.5)

    def _nesterov(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
            # AdamW, which loads checkpoints, expects it of all
            state["step"] = torch.zeros((), dtype=torch.float32)
        momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(momentum, MOMENTUM)
