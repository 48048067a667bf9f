"""A model with new sparse convolutions answers as before, and they can learn; what makes no sense is refused."""

import pytest
import torch
from test_early_exit import rule_for
from tiny import tiny_inputs, tiny_labels, tiny_model

from conversion.insert_convolutions import insert_convolutions, main
from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig, ScanFormerProcessor


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("there_already", [0, 2])
def test_answers_stay_the_same(number, there_already):
    model = tiny_model(num_convolution_layers=there_already)
    larger = insert_convolutions(model, number)
    assert larger.config.num_convolution_layers == there_already + number
    assert larger.dtype == torch.float64 and not larger.training
    inputs = tiny_inputs(model.config)
    with torch.no_grad():
        before, now = (each(**inputs) for each in (model, larger))
    assert torch.equal(before.scale_boxes, now.scale_boxes)
    assert all(map(torch.equal, before.patch_indices, now.patch_indices))


def test_new_convolutions_learn_and_are_the_same_every_time():
    first, second = (insert_convolutions(tiny_model(), 2).train() for _ in range(2))
    for weight, other in zip(first.parameters(), second.parameters()):
        assert torch.equal(weight, other)
    inputs = tiny_inputs(first.config)
    optimizer = torch.optim.SGD(first.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        first(**inputs, labels=tiny_labels()).loss.backward()
        optimizer.step()
    # the second step moves all of them: until the first, nothing depended on what they read
    for name, parameter in first.model.patch_embeddings.convolutions.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_the_model_itself_stays_as_it_was():
    model = tiny_model(dtype=torch.float32)
    model.generation_config = ScanFormerGenerationConfig(
        early_exit=True, early_exit_rule=rule_for(model).to_dict(), token_budget=30
    )
    larger = insert_convolutions(model, 1)
    assert model.generation_config.early_exit_rule is not None and model.config.num_convolution_layers == 0
    config = larger.generation_config
    assert config.early_exit is config.early_exit_rule is None and config.token_budget == 30


def test_command_writes_a_model_that_loads(checkpoint, tmp_path, capsys):
    main(str(checkpoint), tmp_path / "out", number=2)
    assert "convolutions" in capsys.readouterr().out
    before, after = (ScanFormerForVisualGrounding.from_pretrained(each) for each in (checkpoint, tmp_path / "out"))
    assert after.config.num_convolution_layers == before.config.num_convolution_layers + 2
    inputs = tiny_inputs(before.config, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(before(**inputs).pred_boxes, after(**inputs).pred_boxes)
    ScanFormerProcessor.from_pretrained(tmp_path / "out")


def test_what_makes_no_sense_is_refused(checkpoint):
    with pytest.raises(ValueError, match="from 1 on, got 0"):
        insert_convolutions(tiny_model(), 0)
    with pytest.raises(ValueError, match="`hidden_size` of at least 4, got 2"):
        insert_convolutions(tiny_model(hidden_size=2, num_attention_heads=1), 1)
    with pytest.raises(SystemExit, match="is what is read"):
        main(str(checkpoint), checkpoint, number=1)
