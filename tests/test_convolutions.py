"""Sparse convolutions: who is next to whom, and that new ones change nothing but can learn."""

import pytest
import torch
from tiny import tiny_inputs, tiny_labels, tiny_model

from modeling_scanformer import ScanFormerForVisualGrounding
from modeling_scanformer.selection_scanformer import find_neighbors


def neighbors_by_hand(indices, read, grid):
    (rows, columns), length = grid.tolist(), len(indices)
    found = []
    for place, index in enumerate(indices.tolist()):
        for row in range(index // columns - 1, index // columns + 2):
            for column in range(index % columns - 1, index % columns + 2):
                inside = 0 <= row < rows and 0 <= column < columns
                there = [p for p in range(length) if read[p] and inside and indices[p] == row * columns + column]
                (other,) = there or [length]
                found.append(place if row * columns + column == index and inside else other)
    return torch.tensor(found).view(length, 9)


@pytest.mark.parametrize("grids", [[(3, 5), (4, 2)], [(1, 6), (6, 1)], [(1, 1), (2, 2)]], ids=str)
def test_neighbors_are_those_that_are_read_and_lie_in_the_grid(grids):
    generator = torch.Generator().manual_seed(0)
    num_patches = max(rows * columns for rows, columns in grids)
    for share in (0.0, 0.4, 1.0):
        orders = [torch.randperm(rows * columns, generator=generator) for rows, columns in grids]
        indices = torch.nn.utils.rnn.pad_sequence(orders, batch_first=True)
        is_patch = torch.arange(num_patches) < torch.tensor([[len(order)] for order in orders])
        read = is_patch & (torch.rand(indices.shape, generator=generator) < share)
        actual = find_neighbors(indices, read, torch.tensor(grids), num_patches)
        for row, grid in enumerate(torch.tensor(grids)):
            expected = neighbors_by_hand(indices[row], read[row], grid)
            # of padding, they mean nothing
            assert torch.equal(actual[row][is_patch[row]], expected[is_patch[row]])
    nothing = indices[:, :0]
    assert find_neighbors(nothing, nothing.bool(), torch.tensor(grids), num_patches).shape == (2, 0, 9)


def test_new_convolutions_change_nothing_and_learn(tmp_path):
    before = tiny_model(dtype=torch.float32)
    before.save_pretrained(tmp_path)
    model = ScanFormerForVisualGrounding.from_pretrained(tmp_path, num_convolution_layers=2)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(**inputs).scale_boxes, before(**inputs).scale_boxes)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs, labels=tiny_labels().float()).loss.backward()
        optimizer.step()
    # the second step moves all of them: until the first, nothing depended on what they read
    for name, parameter in model.model.patch_embeddings.convolutions.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_patch_sees_as_many_steps_away_as_there_are_convolutions():
    patches = torch.randn(25, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices, grid = torch.arange(25)[None], torch.tensor([[5, 5]])
    neighbors = find_neighbors(indices, torch.ones_like(indices, dtype=torch.bool), grid, 25)
    for number in (1, 2):
        embeddings = tiny_model(num_convolution_layers=number).model.patch_embeddings
        changed = patches.clone()
        changed[0] += 1
        before, after = (embeddings(each[None], indices, grid, 0, neighbors)[0] for each in (patches, changed))
        moved = (before != after).any(-1).view(5, 5)
        assert torch.equal(moved, (torch.arange(5)[:, None] <= number) & (torch.arange(5) <= number))


def test_convolutions_without_neighbors_are_refused():
    embeddings = tiny_model(num_convolution_layers=1).model.patch_embeddings
    patches, indices = torch.zeros(1, 4, 12, dtype=torch.float64), torch.arange(4)[None]
    with pytest.raises(ValueError, match="need `neighbors`"):
        embeddings(patches, indices, torch.tensor([[2, 2]]), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    # reading everything: near the threshold, rounding decides what is read
    options = {"num_convolution_layers": 2, "selection_threshold": 0.0}
    model, inputs = tiny_model(**options), tiny_inputs(tiny_model().config)
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        boxes = tiny_model(dtype=dtype, **options)(**half).scale_boxes
        torch.testing.assert_close(boxes.double(), model(**inputs).scale_boxes, atol=0.05, rtol=0)
