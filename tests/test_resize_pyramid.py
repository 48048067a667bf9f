"""Another pyramid: patches look as at the old size, and further scales leave the first ones as they were."""

import shutil

import pytest
import torch
from test_early_exit import rule_for
from tiny import save_tiny_adapter, save_tiny_checkpoint, take_row, tiny_inputs, tiny_model

from conversion.resize_pyramid import main, resize_patch_projection, resize_pyramid
from modeling_scanformer import (
    ScanFormerForVisualGrounding,
    ScanFormerGenerationConfig,
    ScanFormerProcessor,
)
from modeling_scanformer.pyramid_scanformer import scale_offsets


def scaled_patches(pixel_values: torch.Tensor, patch_size: int, ratio: int) -> torch.Tensor:
    """Flattened patches, each enlarged by repeating its pixels."""
    patches = pixel_values.unflatten(-1, (patch_size, patch_size, 3))
    return patches.repeat_interleave(ratio, -3).repeat_interleave(ratio, -2).flatten(-3)


@pytest.mark.parametrize("size, new_size", [(4, 2), (2, 4), (2, 2), (2, 6)])
def test_a_patch_looks_as_it_did_at_the_old_size(size, new_size, tmp_path):
    """Equal outputs for patches and for the same patches enlarged, whichever of the two sizes is the new one."""
    save_tiny_checkpoint(tmp_path)
    processor = ScanFormerProcessor.from_pretrained(tmp_path)
    model = tiny_model(patch_size=size)
    resized, processor = resize_pyramid(model, processor, new_size, longest_edge=24 * new_size // 2)
    assert resized.config.patch_size == processor.image_processor.patch_size == new_size
    small, large = sorted((size, new_size))
    inputs = tiny_inputs(tiny_model(patch_size=small).config)
    enlarged = {**inputs, "pixel_values": scaled_patches(inputs["pixel_values"], small, large // small)}
    before, after = (inputs, enlarged) if size == small else (enlarged, inputs)
    with torch.no_grad():
        expected, actual = model(**before), resized.eval()(**after)
    torch.testing.assert_close(actual.scale_boxes, expected.scale_boxes, rtol=0, atol=1e-10)
    torch.testing.assert_close(actual.scale_scores, expected.scale_scores, rtol=0, atol=1e-10)


def test_a_new_scale_leaves_the_others_as_they_were(tmp_path):
    """More scales, then as few as before: the first ones give the same boxes throughout."""
    save_tiny_checkpoint(tmp_path)
    processor = ScanFormerProcessor.from_pretrained(tmp_path)
    model = tiny_model()
    deeper, processor = resize_pyramid(model, processor, num_scales=4)
    image_processor = processor.image_processor
    assert (deeper.config.num_scales, image_processor.num_scales, image_processor.size["longest_edge"]) == (4, 4, 48)
    inputs = tiny_inputs(deeper.eval().config)
    offset = scale_offsets(inputs["pixel_values"].shape[1], 4)[3]
    coarse = {name: value[:, :offset] if name.startswith("pixel") else value for name, value in inputs.items()}
    coarse["spatial_shapes"] = inputs["spatial_shapes"][:, :3]
    with torch.no_grad():
        expected, actual = model(**coarse), deeper(**inputs)
    torch.testing.assert_close(actual.scale_boxes[:, :3], expected.scale_boxes, rtol=0, atol=1e-10)
    assert not torch.allclose(actual.scale_boxes[:, 3], actual.scale_boxes[:, 2])
    again, processor = resize_pyramid(deeper, processor, num_scales=3)
    assert processor.image_processor.size["longest_edge"] == 24
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**coarse).scale_boxes, expected.scale_boxes, rtol=0, atol=0)
    single, processor = resize_pyramid(deeper, processor, num_scales=1)
    assert single.config.num_scales == 1
    with pytest.raises(ValueError, match="not learned to select"):
        resize_pyramid(single, processor, num_scales=2)


def test_command_writes_a_model_that_loads(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint, tmp_path / "source")
    ScanFormerGenerationConfig(token_budget=0.5, max_scales=3).save_pretrained(source)
    main(str(source), tmp_path / "out", patch_size=1)
    model = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out")
    processor = ScanFormerProcessor.from_pretrained(tmp_path / "out")
    assert model.config.patch_size == 1 and processor.image_processor.size["longest_edge"] == 24
    assert (model.generation_config.token_budget, model.generation_config.max_scales) == (0.5, 3)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    assert model.generate(**take_row(inputs, 0, 3)).scale_boxes.shape == (1, 3, 4)


@pytest.mark.parametrize("budget", [[1.0, 0.5, 0.25], 0.1, 30, [4, 4, 4]], ids=str)
def test_options_that_mean_nothing_for_the_other_model_are_dropped(checkpoint, tmp_path, budget):
    source = shutil.copytree(checkpoint, tmp_path / "source")
    rule = rule_for(ScanFormerForVisualGrounding.from_pretrained(source)).to_dict()
    options = {"token_budget": budget, "budget_score": "attention"}
    ScanFormerGenerationConfig(early_exit=True, early_exit_rule=rule, **options).save_pretrained(source)
    main(str(source), tmp_path / "out", num_scales=2)
    model = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out")
    assert model.generation_config.early_exit is model.generation_config.early_exit_rule is None
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    assert model.generate(**take_row(inputs, 0, 2)).scale_boxes.shape == (1, 2, 4)


def test_sizes_that_do_not_fit_are_named(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="multiple or a divisor of 4, got 3"):
        resize_patch_projection(torch.zeros(8, 48), 4, 3)
    with pytest.raises(SystemExit, match="at least one scale"):
        main(str(checkpoint), tmp_path / "out", num_scales=0)
    with pytest.raises(SystemExit, match="multiple of 16"):
        main(str(checkpoint), tmp_path / "out", patch_size=4, longest_edge=24)
    with pytest.raises(SystemExit, match="is what is read"):
        main(str(checkpoint), checkpoint, num_scales=2)
    save_tiny_adapter(tmp_path / "adapter", checkpoint)
    with pytest.raises(SystemExit, match="is an adapter.*merge it first"):
        main(str(tmp_path / "adapter"), tmp_path / "out", num_scales=2)
    assert not (tmp_path / "out").exists()
