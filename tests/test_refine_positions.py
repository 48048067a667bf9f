"""A model with finer positions answers as before, tells more patches apart, and what can't be refined so is refused."""

import pytest
import torch
from test_early_exit import rule_for
from tiny import save_tiny_adapter, tiny_inputs, tiny_labels, tiny_model

from conversion.refine_positions import create_sinusoids, main, refine_positions
from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig, ScanFormerProcessor


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("position_grid_size", [2, 5])
def test_answers_stay_the_same(factor, position_grid_size):
    model = tiny_model(position_grid_size=position_grid_size)
    finer = refine_positions(model, factor)
    assert finer.config.position_grid_size == factor * (position_grid_size - 1) + 1
    assert finer.dtype == torch.float64 and not finer.training
    inputs = tiny_inputs(model.config)
    with torch.no_grad():
        before, now = (each(**inputs, output_hidden_states=True) for each in (model, finer))
    assert all(map(torch.equal, before.patch_indices, now.patch_indices))
    for old, new in zip(before.hidden_states, now.hidden_states):
        torch.testing.assert_close(old, new, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(before.pred_boxes, now.pred_boxes, rtol=1e-9, atol=1e-9)


def test_half_precision_and_attention_are_kept():
    model = tiny_model(dtype=torch.bfloat16)
    model.set_attn_implementation("eager")
    finer = refine_positions(model, 2, sinusoids=0.1)
    assert finer.dtype == torch.bfloat16 and finer.config._attn_implementation == "eager"
    # the nodes that were there before are what they were
    old, new = (each.model.patch_embeddings.position_embeddings.weight for each in (model, refine_positions(model, 2)))
    assert torch.equal(old.view(5, 5, -1), new.view(9, 9, -1)[::2, ::2])


def test_products_of_sinusoids_tell_distances():
    nodes = 11
    sinusoids = create_sinusoids(nodes, 24)
    products = (sinusoids @ sinusoids.T).view(nodes, nodes, nodes, nodes)
    distances = torch.arange(nodes, dtype=torch.float64)
    lengths = torch.tensor([3.0, 4.5, 6.75, 10.125, 15.1875], dtype=torch.float64)
    cosines = (2 * torch.pi * distances[:, None] / lengths).cos().sum(1)
    apart = (torch.arange(nodes)[:, None] - torch.arange(nodes)).abs()
    expected = cosines[apart][:, None, :, None] + cosines[apart][None, :, None, :]
    torch.testing.assert_close(products, expected)


def test_sinusoids_have_their_amplitude():
    model = tiny_model()
    plain, added = (refine_positions(model, 2, sinusoids=amplitude) for amplitude in (0.0, 0.3))
    plain, added = (each.model.patch_embeddings.position_embeddings.weight for each in (plain, added))
    # a sine and a cosine of five lengths along rows and columns
    torch.testing.assert_close((added - plain).norm(dim=1), torch.full((81,), 0.3 * 10**0.5, dtype=torch.float64))


def test_a_place_between_the_nodes_before_can_be_learned():
    def fit(model):
        patches = model.model.patch_embeddings
        indices, grid = torch.arange(81)[None], torch.tensor([[9, 9]])
        with torch.no_grad():
            target = patches.interpolate_positions(indices, grid).clone()
            target[0, 10] += 1  # between four nodes of the grid of five
        optimizer = torch.optim.SGD([patches.position_embeddings.weight], lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            loss = (patches.interpolate_positions(indices, grid) - target).square().sum(-1).mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    model = tiny_model()
    assert fit(refine_positions(model, 2)) < 0.5 * fit(model)


def test_the_model_itself_stays_as_it_was():
    model = tiny_model(dtype=torch.float32)
    model.generation_config = ScanFormerGenerationConfig(
        early_exit=True, early_exit_rule=rule_for(model).to_dict(), token_budget=30
    )
    old = {name: weight.clone() for name, weight in model.state_dict().items()}
    finer = refine_positions(model, 2)
    for parameter in finer.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(weight, old[name]) for name, weight in model.state_dict().items())
    assert model.generation_config.early_exit_rule is not None and model.config.position_grid_size == 5
    config = finer.generation_config
    assert config.early_exit is config.early_exit_rule is None and config.token_budget == 30


def test_all_positions_get_gradients():
    finer = refine_positions(tiny_model(selection_threshold=0.0), 2, sinusoids=0.1).train()
    finer(**tiny_inputs(finer.config), labels=tiny_labels()).loss.backward()
    gradient = finer.model.patch_embeddings.position_embeddings.weight.grad
    assert (gradient != 0).any(1).all()
    assert all(parameter.grad is not None for parameter in finer.parameters())


def test_command_writes_a_model_that_loads(checkpoint, tmp_path, capsys):
    main(str(checkpoint), tmp_path / "out", factor=2)
    assert "positions" in capsys.readouterr().out
    before, after = (ScanFormerForVisualGrounding.from_pretrained(each) for each in (checkpoint, tmp_path / "out"))
    assert after.config.position_grid_size == 2 * before.config.position_grid_size - 1
    inputs = tiny_inputs(before.config, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(before(**inputs).pred_boxes, after(**inputs).pred_boxes, rtol=1e-4, atol=1e-5)
    ScanFormerProcessor.from_pretrained(tmp_path / "out")


def test_what_cannot_be_refined_is_named(checkpoint, tmp_path):
    for factor in (-1, 0, 1, 257, 10**30):
        with pytest.raises(ValueError, match="that must be more, and at most 1024"):
            refine_positions(tiny_model(), factor)
    with pytest.raises(ValueError, match="grid of 1 nodes"):
        refine_positions(tiny_model(position_grid_size=1), 2)
    for amplitude in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="a number from 0 on"):
            refine_positions(tiny_model(), 2, amplitude)
    with pytest.raises(ValueError, match="Sinusoids have 20 directions, but the states only 16"):
        refine_positions(tiny_model(hidden_size=16), 2, sinusoids=1.0)
    with pytest.raises(SystemExit, match="is what is read"):
        main(str(checkpoint), checkpoint, factor=2)
    save_tiny_adapter(tmp_path / "adapter", checkpoint)
    with pytest.raises(SystemExit, match="adapter is an adapter: merge it first"):
        main(str(tmp_path / "adapter"), tmp_path / "out", factor=2)
    assert not (tmp_path / "out").exists()
