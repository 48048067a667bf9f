"""Options of `generate`, and where they are kept."""

import pytest
import torch
from tiny import tiny_inputs, tiny_model
from transformers import GenerationConfig

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerGenerationConfig


def test_options_are_saved_with_the_model_and_loaded(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.generation_config.max_scales = 2
    model.generation_config.stopping_score = 0.9
    model.save_pretrained(tmp_path)
    loaded = ScanFormerForVisualGrounding.from_pretrained(tmp_path)
    assert isinstance(loaded.generation_config, ScanFormerGenerationConfig)
    assert (loaded.generation_config.max_scales, loaded.generation_config.stopping_score) == (2, 0.9)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    assert loaded.generate(**inputs).scale_boxes.shape == (3, 2, 4)
    # what the call says wins, and is not kept
    assert loaded.generate(**inputs, max_scales=3, stopping_score=1.0).scale_boxes.shape == (3, 3, 4)
    assert loaded.generate(**inputs, generation_config=ScanFormerGenerationConfig()).scale_boxes.shape == (3, 3, 4)
    assert loaded.generation_config.max_scales == 2

    given = ScanFormerForVisualGrounding.from_pretrained(
        tmp_path, generation_config=ScanFormerGenerationConfig(max_scales=1)
    )
    assert given.generation_config.max_scales == 1


def test_a_checkpoint_without_options_has_the_defaults(tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = ScanFormerForVisualGrounding.from_pretrained(tmp_path)
    assert loaded.generation_config.to_diff_dict().get("max_scales") is None


def test_fields_of_the_config_are_no_options(tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    changes = {"merge_constant_tokens": False, "selection_threshold": 0.9, "output_hidden_states": True}
    loaded = ScanFormerForVisualGrounding.from_pretrained(tmp_path, **changes)
    assert {name: getattr(loaded.config, name) for name in changes} == changes
    assert loaded.generation_config.selection_threshold is None and loaded.scan_options()["selection_threshold"] == 0.9


@pytest.mark.parametrize("content", ["", '{"max_scales": 1, "token'])
def test_damaged_options_do_not_vanish_unseen(tmp_path, content):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(OSError, match="generation_config.json"):
        ScanFormerForVisualGrounding.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"max_scales": 0},
        {"max_scales": 1.5},
        {"max_scales": True},
        {"max_scales": 4},
        {"selection_threshold": -0.1},
        {"selection_threshold": "high"},
        {"selection_threshold": True},
        {"stopping_score": 1.1},
        {"token_budget": -0.1},
        {"token_budget": 1.5},
        {"token_budget": True},
        {"token_budget": "half"},
        {"token_budget": [1.0, None, 0.5]},
        {"budget_split": "odd", "token_budget": 0.5},
        {"budget_score": "odd", "token_budget": 0.5},
        {"budget_split": "even"},
        {"early_exit": "yes"},
        {"num_beams": 4},
        {"max_new_tokens": 5},
        {"validate": 1},
        {"foo": None},
    ],
    ids=str,
)
def test_unknown_and_senseless_arguments_raise(options):
    model = tiny_model(dtype=torch.float32)
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(**tiny_inputs(model.config, dtype=torch.float32), **options)


def test_options_of_text_generation_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        ScanFormerGenerationConfig(temperature=0.5)
    model = tiny_model(dtype=torch.float32)
    with pytest.raises(ValueError, match="ScanFormerGenerationConfig"):
        model.generate(**tiny_inputs(model.config, dtype=torch.float32), generation_config=GenerationConfig())


def test_generate_computes_no_gradients():
    model = tiny_model(dtype=torch.float32).train()
    outputs = model.generate(**tiny_inputs(model.config, dtype=torch.float32))
    assert not outputs.pred_boxes.requires_grad
