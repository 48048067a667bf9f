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
"""Batches whose samples read different numbers of patches are read in parts, and answer the same."""

from itertools import combinations

import pytest
import torch
from tiny import tiny_inputs, tiny_model

from modeling_scanformer import scan_scanformer
from modeling_scanformer.pyramid_scanformer import scale_offsets
from modeling_scanformer.scan_scanformer import split_sizes


OPTIONS = [
    {},
    {"selection_threshold": 0.6},
    {"token_budget": 0.5, "budget_split": "content", "budget_score": "attention"},
    {"token_budget": [1.0, 0.3, 0.4], "budget_split": "even"},
]


def count_tokens(model, monkeypatch) -> list[tuple[int, int]]:
    """Shape of what Encoder1 reads of every scale, to be filled."""
    shapes = []
    embed = model.model.patch_embeddings.forward

    def watched(patches, *args):
        shapes.append(tuple(patches.shape[:2]))
        return embed(patches, *args)

    monkeypatch.setattr(model.model.patch_embeddings, "forward", watched)
    return shapes


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parts_give_what_the_whole_gives(options, monkeypatch):
    model = tiny_model()
    inputs = {name: torch.cat([x, x.flip(0)]) for name, x in tiny_inputs(model.config).items()}
    monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", {})
    whole = model.generate(**inputs, **options)
    # as if a pass cost nothing: only samples that read equally much stay together
    monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", {"cpu": 0})
    shapes = count_tokens(model, monkeypatch)
    parts = model.generate(**inputs, **options)
    torch.testing.assert_close(parts.scale_boxes, whole.scale_boxes, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.scale_scores, whole.scale_scores, atol=1e-10, rtol=0)
    assert all(map(torch.equal, parts.selection_masks, whole.selection_masks))
    assert torch.equal(parts.scales_read, whole.scales_read)
    # nothing is padded beyond the coarsest scale, where all padding is the pictures' own
    counts = torch.stack([mask.sum(1) for mask in whole.selection_masks[1:]])
    assert len(set(counts.flatten().tolist())) > 2
    assert sum(rows * length for rows, length in shapes[1:]) == counts.sum()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"merge_constant_tokens": False},
        {"use_constant_token": False},
        {"num_convolution_layers": 3, "refine_boxes": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_parts_of_a_forward_pass_give_what_the_whole_gives(training, config, monkeypatch):
    model = tiny_model(**config).train(training)
    shapes = count_tokens(model, monkeypatch)
    inputs = {name: torch.cat([x, x.flip(0)]) for name, x in tiny_inputs(model.config).items()}
    labels = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(price):
        monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", price)
        model.zero_grad()
        outputs = model(**inputs, labels=labels, output_hidden_states=True)
        outputs.loss.backward()
        return outputs, [parameter.grad for parameter in model.parameters()]

    whole, whole_gradients = run({})
    whole_shapes = list(shapes)
    shapes.clear()
    parts, gradients = run({"cpu": 0})
    assert len(shapes) > len(whole_shapes)
    torch.testing.assert_close(parts.loss_dict, whole.loss_dict, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.scale_boxes, whole.scale_boxes, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.patch_indices, whole.patch_indices)
    torch.testing.assert_close(gradients, whole_gradients, atol=1e-10, rtol=1e-8)
    for logits, other, indices in zip(parts.selection_logits, whole.selection_logits, whole.patch_indices):
        torch.testing.assert_close(logits[indices >= 0], other[indices >= 0], atol=1e-10, rtol=0)
    # padding aside: of every scale come [REG], the patches, and what stands for the others
    tokens = [inputs["attention_mask"].bool()]
    offsets = scale_offsets(inputs["pixel_values"].shape[1], model.config.num_scales)
    for scale, (indices, mask) in enumerate(zip(whole.patch_indices, whole.selection_masks)):
        tokens += [torch.ones(6, 1, dtype=torch.bool), indices >= 0]
        real = inputs["pixel_attention_mask"][:, offsets[scale] : offsets[scale + 1]].sum(1)
        unselected = (real - mask.sum(1))[:, None]
        if scale > 0 and model.config.use_constant_token:
            merged = model.config.merge_constant_tokens
            tokens.append(unselected > (0 if merged else torch.arange(int(unselected.max()))))
    tokens = torch.cat(tokens, dim=1)
    for states, other in zip(parts.hidden_states, whole.hidden_states):
        assert states.shape == other.shape
        torch.testing.assert_close(states[tokens], other[tokens], atol=1e-10, rtol=0)
    # keys and attention weights belong to the whole batch
    model.set_attn_implementation("eager")
    for wanted in ({"use_cache": True}, {"output_attentions": True}):
        shapes.clear()
        model(**inputs, **wanted)
        assert {rows for rows, _ in shapes} == {6}


def test_hidden_states_of_parts_leave_a_cached_text_out(monkeypatch):
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", {"cpu": 0})
    whole = model(**text, **inputs, output_hidden_states=True).hidden_states
    rest = model(past_key_values=model.encode_text(**text), **inputs, output_hidden_states=True).hidden_states
    for states, other in zip(rest, whole):
        regs = other[:, text["input_ids"].shape[1]]
        torch.testing.assert_close(states[:, 0], regs, atol=1e-10, rtol=0)
        assert states.shape[1] == other.shape[1] - text["input_ids"].shape[1]


def test_few_tokens_are_not_worth_a_pass(monkeypatch):
    model = tiny_model()
    shapes = count_tokens(model, monkeypatch)
    model.generate(**tiny_inputs(model.config))
    assert [rows for rows, _ in shapes] == [3, 3, 3]


def test_a_cut_costs_least():
    generator = torch.Generator().manual_seed(0)
    for price in (0, 3, 10, 1000):
        for _ in range(30):
            lengths = torch.randint(0, 12, (6,), generator=generator).sort().values.tolist()

            def cost(cuts, lengths=lengths, price=price):
                edges = [0, *cuts, len(lengths)]
                return sum(price + (end - start) * lengths[end - 1] for start, end in zip(edges, edges[1:]))

            least = min(cost(cuts) for number in range(6) for cuts in combinations(range(1, 6), number))
            sizes = split_sizes(lengths, price)
            assert sum(sizes) == 6 and min(sizes) > 0
            assert cost(torch.tensor(sizes).cumsum(0)[:-1].tolist()) == least
    assert split_sizes([5], 100) == [1]
