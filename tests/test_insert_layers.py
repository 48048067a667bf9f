"""A deeper model answers as before, and what is new in it can learn; what cannot be made deeper so is refused."""

import pytest
import torch
from test_early_exit import rule_for
from tiny import save_tiny_adapter, tiny_inputs, tiny_labels, tiny_model

from conversion.insert_layers import insert_layers, main
from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig, ScanFormerProcessor


PLACES = [[0], [1], [2], [3], [0, 3], [3, 2, 1, 0]]


@pytest.mark.parametrize("after", PLACES)
def test_answers_stay_the_same(after):
    model = tiny_model()
    deeper = insert_layers(model, after)
    assert deeper.config.num_hidden_layers == len(deeper.model.layers) == 4 + len(after)
    assert deeper.config.selection_layer == 2 + sum(number < 2 for number in after)
    assert deeper.dtype == torch.float64 and not deeper.training
    inputs = tiny_inputs(model.config)
    with torch.no_grad():
        before, now = (each(**inputs, output_hidden_states=True) for each in (model, deeper))
    assert torch.equal(before.pred_boxes, now.pred_boxes)
    assert all(map(torch.equal, before.patch_indices, now.patch_indices))
    with torch.no_grad():
        before_budget, now_budget = (each.generate(**inputs, token_budget=0.4) for each in (model, deeper))
    assert torch.equal(before_budget.pred_boxes, now_budget.pred_boxes)
    # what was known after each layer is known after its double
    doubles = [number + sum(other < number for other in after) for number in range(4)]
    kept = [now.hidden_states[0], *(now.hidden_states[number + 1] for number in doubles)]
    assert all(map(torch.equal, before.hidden_states, kept))


def test_new_layers_learn():
    torch.manual_seed(0)
    deeper = insert_layers(tiny_model(), [1, 2]).train()
    inputs = tiny_inputs(deeper.config)
    optimizer = torch.optim.SGD(deeper.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        deeper(**inputs, labels=tiny_labels()).loss.backward()
        optimizer.step()
    # the second step moves all of them: until the first, nothing depended on what the new layers read
    for number in (2, 4):
        for name, parameter in deeper.model.layers[number].named_parameters():
            if name != "attention.k_proj.bias":
                assert parameter.grad.abs().max() > 0, name


def test_the_model_keeps_its_type_and_its_attention():
    model = tiny_model(dtype=torch.bfloat16)
    model.set_attn_implementation("eager")
    deeper = insert_layers(model, [1])
    assert deeper.dtype == torch.bfloat16 and deeper.config._attn_implementation == "eager"
    inputs = tiny_inputs(model.config, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model(**inputs).pred_boxes, deeper(**inputs).pred_boxes)


def test_the_model_itself_stays_as_it_was():
    model = tiny_model(dtype=torch.float32)
    model.generation_config = ScanFormerGenerationConfig(
        early_exit=True, early_exit_rule=rule_for(model).to_dict(), token_budget=30, budget_score="attention"
    )
    old = {name: weight.clone() for name, weight in model.state_dict().items()}
    deeper = insert_layers(model, [0])
    for parameter in deeper.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(weight, old[name]) for name, weight in model.state_dict().items())
    assert model.generation_config.early_exit_rule is not None and model.config.num_hidden_layers == 4
    config = deeper.generation_config
    assert config.early_exit is config.early_exit_rule is None
    assert (config.token_budget, config.budget_score) == (30, "attention")


def test_command_writes_a_model_that_loads(checkpoint, tmp_path, capsys):
    main(str(checkpoint), tmp_path / "out", after=[0, 1])
    assert "layers, " in capsys.readouterr().out
    before, after = (ScanFormerForVisualGrounding.from_pretrained(each) for each in (checkpoint, tmp_path / "out"))
    inputs = tiny_inputs(before.config, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(before(**inputs).pred_boxes, after(**inputs).pred_boxes)
    ScanFormerProcessor.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("after", [[], [4], [-1], [1, 1]])
def test_places_that_do_not_exist_are_refused(after):
    with pytest.raises(ValueError, match="numbers of layers from 0 to 3"):
        insert_layers(tiny_model(), after)


def test_what_cannot_be_made_deeper_is_named(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="is what is read"):
        main(str(checkpoint), checkpoint, after=[0])
    save_tiny_adapter(tmp_path / "adapter", checkpoint)
    with pytest.raises(SystemExit, match="adapter is an adapter: merge it first"):
        main(str(tmp_path / "adapter"), tmp_path / "out", after=[0])
    assert not (tmp_path / "out").exists()
