"""Refined boxes: a new refinement changes nothing but can learn, and what it is asked for."""

import pytest
import torch
from test_early_exit import rule_for
from test_scan import Collector
from tiny import tiny_inputs, tiny_labels, tiny_model

from modeling_scanformer import ScanFormerForVisualGrounding
from modeling_scanformer.heads_scanformer import ScanFormerBoxRefinement
from modeling_scanformer.loss_scanformer import box_iou, center_to_corners


def test_a_new_refinement_changes_nothing_and_learns(tmp_path):
    before = tiny_model(dtype=torch.float32)
    before.save_pretrained(tmp_path)
    model = ScanFormerForVisualGrounding.from_pretrained(tmp_path, refine_boxes=True)
    inputs = tiny_inputs(model.config, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).scale_boxes, before(**inputs).scale_boxes)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs, labels=tiny_labels().float()).loss.backward()
        optimizer.step()
    # the second step moves all of it: until the first, nothing depended on what it read
    for name, parameter in model.box_refinement.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_where_nothing_is_read_boxes_stay():
    refined, plain = (tiny_model(selection_threshold=1.0, refine_boxes=refine) for refine in (True, False))
    plain.load_state_dict(refined.state_dict(), strict=False)
    inputs = tiny_inputs(plain.config)
    with torch.no_grad():
        boxes, expected = (model(**inputs).scale_boxes for model in (refined, plain))
    assert torch.equal(boxes[:, 1:], expected[:, 1:]) and not torch.equal(boxes[:, 0], expected[:, 0])


def test_the_nearest_patch_refines_and_no_other():
    refinement = ScanFormerBoxRefinement(tiny_model().config).double()
    torch.nn.init.normal_(refinement.out_proj.weight)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 3, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    # The first center lies in patch 5 of a wide grid, which is not read. Patch 15, right below, is 0.6 patches away, patch 4 on
    # the left 1.2, though of the picture it is less. In the second picture all but one entry is padding, in the third nothing
    # is read, and in the fourth what is read is too far away.
    indices = torch.tensor([[0, 4, 15], [3, -1, -1], [-1, -1, -1], [9, 9, 9]])
    grids = torch.tensor([[2, 10], [2, 2], [2, 2], [1, 10]])
    boxes = torch.tensor([[0.56, 0.45, 0.2, 0.2], *[[0.5, 0.5, 0.1, 0.1]] * 3], dtype=torch.float64)
    refined = refinement(boxes, states, indices, grids)
    refined.sum().backward()
    used = (states.grad != 0).any(-1)
    assert used.tolist() == [[False, False, True], [True, False, False], [False] * 3, [False] * 3]
    assert (refined != boxes).any(-1).tolist() == [True, True, False, False]
    # however far it wants to go
    refinement.out_proj.bias.data.fill_(100.0)
    far = refinement(boxes, states, indices, grids)
    moves = (far - boxes)[:2, :2] * grids[:2].flip(1)
    assert (moves.abs() <= 2 + 1e-9).all() and moves.max() > 0 and (far <= 1).all()


@torch.no_grad()
def test_samples_that_leave_early_keep_their_refined_box():
    model = tiny_model(refine_boxes=True)
    model.generation_config.early_exit_rule = rule_for(model).to_dict()
    inputs = {name: torch.cat([x, x.flip(0)]) for name, x in tiny_inputs(model.config).items()}
    expected = model(**inputs).scale_boxes
    fused, streamed = (model.generate(**inputs, early_exit=True, streamer=each) for each in (None, Collector()))
    assert torch.equal(fused.scales_read, streamed.scales_read) and len(set(fused.scales_read.tolist())) > 1
    for outputs in (fused, streamed):
        for row, read in enumerate(outputs.scales_read.tolist()):
            torch.testing.assert_close(outputs.pred_boxes[row], expected[row, read - 1])
    for max_scales in (1, 2):
        torch.testing.assert_close(
            model.generate(**inputs, max_scales=max_scales).pred_boxes, expected[:, max_scales - 1]
        )


def loss_of_reg(outputs, config):
    weights = {"loss_reg_bbox": config.bbox_loss_coefficient, "loss_reg_giou": config.giou_loss_coefficient}
    return sum(weight * outputs.loss_dict[f"{name}_{scale}"] for name, weight in weights.items() for scale in range(3))


def test_what_is_refined_is_still_asked_for_the_box():
    model = tiny_model(refine_boxes=True)
    config, inputs, labels = model.config, tiny_inputs(model.config), tiny_labels()
    labels[1] = torch.nan
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
        boxes, _ = model.predict(model.model(**inputs).reg_states)
    total = 0.0
    for row in (0, 2):
        for box in boxes[row]:
            _, giou = box_iou(center_to_corners(box), center_to_corners(labels[row]))
            distance = (box - labels[row]).abs().sum()
            total += config.bbox_loss_coefficient * distance + config.giou_loss_coefficient * (1 - giou)
    torch.testing.assert_close(loss_of_reg(outputs, config), total / len(labels))
    assert not any(name.startswith("loss_reg") for name in tiny_model()(**inputs, labels=labels).loss_dict)
    # of the answers, the refinement alone gets a gradient
    model.zero_grad()
    losses = model(**inputs, labels=labels).loss_dict
    sum(value for name, value in losses.items() if name.startswith(("loss_bbox", "loss_giou"))).backward()
    assert model.box_head.dense1.weight.grad is None and model.box_refinement.dense1.weight.grad.abs().max() > 0
    model.zero_grad()
    loss_of_reg(model(**inputs, labels=labels), config).backward()
    assert model.box_refinement.dense1.weight.grad is None and model.box_head.dense1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    # reading everything: near the threshold, rounding decides what is read
    options = {"refine_boxes": True, "selection_threshold": 0.0}
    model, inputs = tiny_model(**options), tiny_inputs(tiny_model().config)
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        boxes = tiny_model(dtype=dtype, **options)(**half).scale_boxes
        assert boxes.dtype == torch.float32
        torch.testing.assert_close(boxes.double(), model(**inputs).scale_boxes, atol=0.1, rtol=0)
