"""A model between two: each end is one of them, and what cannot be mixed is refused."""

import pytest
import torch
from test_early_exit import rule_for
from tiny import save_tiny_adapter, save_tiny_checkpoint, tiny_model

from conversion.interpolate_weights import interpolate_weights, main
from modeling_scanformer import (
    ScanFormerForVisualGrounding,
    ScanFormerGenerationConfig,
    ScanFormerProcessor,
)


def trained_on(model: ScanFormerForVisualGrounding) -> ScanFormerForVisualGrounding:
    """Every weight is one more."""
    other = type(model)(model.config)
    other.load_state_dict({name: weight + 1 for name, weight in model.state_dict().items()})
    return other


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_move_by_the_share(share):
    before = tiny_model(dtype=torch.float32)
    old = {name: weight.clone() for name, weight in before.state_dict().items()}
    mixed = interpolate_weights(before, trained_on(before), share).state_dict()
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, old[name])
        torch.testing.assert_close(mixed[name], weight + share)


def test_half_precision_is_mixed_in_full():
    before = tiny_model(dtype=torch.float32)
    after = trained_on(before).bfloat16()
    expected = {
        name: (0.75 * before.state_dict()[name] + 0.25 * weight.float()).bfloat16()
        for name, weight in after.state_dict().items()
    }
    mixed = interpolate_weights(before, after, 0.25)
    assert mixed.dtype == torch.bfloat16
    assert all(torch.equal(weight, expected[name]) for name, weight in mixed.state_dict().items())


def test_options_stay_but_for_the_rule_of_early_exit():
    before = tiny_model(dtype=torch.float32)
    after = trained_on(before)
    after.generation_config = ScanFormerGenerationConfig(
        early_exit=True, early_exit_rule=rule_for(after).to_dict(), token_budget=30, budget_score="attention"
    )
    config = interpolate_weights(before, after, 0.5).generation_config
    assert config.early_exit is config.early_exit_rule is None
    assert (config.token_budget, config.budget_score) == (30, "attention")


def test_command_writes_a_model_that_loads(checkpoint, tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "after")
    before = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    trained_on(before).save_pretrained(tmp_path / "after")
    main(str(checkpoint), str(tmp_path / "after"), tmp_path / "out", share=0.5)
    assert "0.5 of the weights of" in capsys.readouterr().out
    mixed = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out")
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(mixed.state_dict()[name], weight + 0.5)
    ScanFormerProcessor.from_pretrained(tmp_path / "out")


def test_what_cannot_be_mixed_is_named(checkpoint, tmp_path):
    model = tiny_model(dtype=torch.float32)
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        interpolate_weights(model, model, 1.5)
    with pytest.raises(ValueError, match="not of one shape: model.patch_embeddings.projection.weight differ"):
        interpolate_weights(model, tiny_model(patch_size=4), 0.5)
    with pytest.raises(SystemExit, match="is what is read"):
        main(str(checkpoint), str(tmp_path / "missing"), checkpoint)
    save_tiny_adapter(tmp_path / "adapter", checkpoint)
    with pytest.raises(SystemExit, match="adapter is an adapter: merge it first"):
        main(str(checkpoint), str(tmp_path / "adapter"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
