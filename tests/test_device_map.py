"""A model whose modules lie on two devices, the second of which is played."""

import pytest
import torch
from accelerate.utils import send_to_device
from tiny import tiny_inputs, tiny_labels, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from modeling_scanformer import scan_scanformer


HERE, ELSEWHERE = torch.device("cpu"), torch.device("cuda:1")
# As `device_map="auto"` cuts the model: in the order of its modules.
ON_THE_SECOND = (
    *("model.layers.1", "model.layers.2", "model.layers.3", "model.layernorm", "model.constant_token"),
    *("model.selection_head", "box_head", "box_refinement", "score_head"),
)


def place(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "place", HERE)


class TwoDevices(TorchFunctionMode):
    """Everything is computed on the CPU, but tensors know where they would be, and functions refuse to mix them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == torch.Tensor.device.__get__:
            return place(args[0])
        leaves = tree_leaves((args, kwargs))
        places = {place(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > 0}
        wanted = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if len(places) > 1:
            raise RuntimeError(f"{function.__name__} got tensors on several devices")

        def play(leaf):
            return HERE if isinstance(leaf, torch.device) else leaf

        result = function(*tree_map(play, args), **tree_map(play, kwargs))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                there = wanted[0] if wanted else next(iter(places), HERE)
                if there != place(leaf) and any(leaf is other for other in leaves):
                    result = leaf = leaf.clone()
                leaf.place = there
        return result


@pytest.fixture
def two_devices():
    model = tiny_model(dtype=torch.float32, num_convolution_layers=1, refine_boxes=True)
    for name, module in model.named_modules():
        there = ELSEWHERE if name.startswith(ON_THE_SECOND) else HERE
        for parameter in module.parameters(recurse=False):
            parameter.place = there
        is_whole = name.startswith("model.layers.") or name == "box_refinement"
        if list(module.parameters(recurse=False)) or is_whole:
            # what Accelerate's hooks do before a module runs; nothing brings back what it gives
            def move(module, args, kwargs, there=there):
                return send_to_device(args, there), send_to_device(kwargs, there)

            module.register_forward_pre_hook(move, with_kwargs=True)
    with TwoDevices():
        yield model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_budget": 0.4, "budget_split": "content", "budget_score": "attention"},
        {"stopping_score": 0.5},
    ],
)
def test_a_model_on_two_devices_scans_as_on_one(two_devices, options):
    inputs = tiny_inputs(two_devices.config, dtype=torch.float32)
    outputs = two_devices.generate(**inputs, **options)
    assert outputs.scale_boxes.device == outputs.selection_masks[-1].device == HERE
    expected = tiny_model(dtype=torch.float32, num_convolution_layers=1, refine_boxes=True).generate(
        **inputs, **options
    )
    assert torch.equal(outputs.scale_boxes, expected.scale_boxes)
    assert torch.equal(outputs.scales_read, expected.scales_read)


def test_a_model_on_two_devices_learns_as_on_one(two_devices):
    inputs = {**tiny_inputs(two_devices.config, dtype=torch.float32), "labels": tiny_labels(torch.float32)}
    alone = tiny_model(dtype=torch.float32, num_convolution_layers=1, refine_boxes=True).train()
    losses = [model(**inputs).loss for model in (two_devices.train(), alone)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(two_devices.parameters(), alone.parameters()):
        assert one.grad is not None and one.grad.tolist() == other.grad.tolist()


def test_hidden_states_on_two_devices_are_joined_from_parts(two_devices, monkeypatch):
    inputs = tiny_inputs(two_devices.config, dtype=torch.float32)
    expected = tiny_model(dtype=torch.float32, num_convolution_layers=1, refine_boxes=True)(
        **inputs, output_hidden_states=True
    ).hidden_states
    # as if a pass cost nothing: only samples that read equally much stay together
    monkeypatch.setattr(scan_scanformer, "TOKENS_PER_PASS", {"cpu": 0})
    states = two_devices(**inputs, output_hidden_states=True).hidden_states
    read = inputs["attention_mask"].bool()
    for one, other in zip(states, expected):
        assert one.shape == other.shape
        torch.testing.assert_close(
            torch.tensor(one.tolist())[:, : read.shape[1]][read], other[:, : read.shape[1]][read]
        )


def test_a_text_cached_on_two_devices_serves_many_pictures(two_devices):
    inputs = tiny_inputs(two_devices.config, dtype=torch.float32)
    text = {name: inputs.pop(name)[:1] for name in ("input_ids", "attention_mask")}
    cached = two_devices.generate(past_key_values=two_devices.encode_text(**text), **inputs)
    repeated = two_devices.generate(**{name: value.expand(3, -1) for name, value in text.items()}, **inputs)
    torch.testing.assert_close(cached.scale_boxes, repeated.scale_boxes)
