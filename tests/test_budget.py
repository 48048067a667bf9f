"""A token budget: never exceeded, spent where it should be, and the same in a batch as alone."""

import pytest
import torch
from tiny import take_row, tiny_inputs, tiny_model

from modeling_scanformer.budget_scanformer import BUDGET_SCORES, BUDGET_SPLITS, apportion, keep_best, reg_attention


def apportion_by_steps(weights: list[float], capacities: list[int], total: int) -> list[float]:
    """The real-valued shares by the textbook: split, take back what exceeds a capacity, split that again."""
    shares, rest = [0.0] * len(weights), float(min(total, sum(capacities)))
    while rest > 1e-9:
        parts = [part for part in range(len(weights)) if capacities[part] - shares[part] > 1e-9]
        scale = rest / sum(weights[part] for part in parts)
        for part in parts:
            given = min(weights[part] * scale, capacities[part] - shares[part])
            shares[part] += given
            rest -= given
    return shares


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_proportional_whole_and_complete(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(4, 7, generator=generator) ** 3 + 1e-3
    capacities = torch.randint(0, 12, (4, 7), generator=generator)
    total = torch.randint(0, 60, (4,), generator=generator)
    shares = apportion(weights, capacities, total)
    assert (shares >= 0).all() and (shares <= capacities).all()
    assert torch.equal(shares.sum(1), torch.minimum(total, capacities.sum(1)))
    for row in range(4):
        exact = apportion_by_steps(weights[row].tolist(), capacities[row].tolist(), int(total[row]))
        assert (shares[row] - torch.tensor(exact)).abs().max() < 1


def test_the_largest_remainders_get_one_more():
    shares = apportion(torch.tensor([[5.0, 3.0, 2.0]]), torch.tensor([[9, 9, 9]]), torch.tensor([7]))
    assert shares.tolist() == [[4, 2, 1]]  # of 3.5, 2.1 and 1.4


def test_parts_without_weight_get_what_the_others_cannot_take():
    shares = apportion(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3, 5, 0]]), torch.tensor([6]))
    assert shares.tolist() == [[3, 3, 0]]
    shares = apportion(torch.zeros(1, 2), torch.tensor([[4, 4]]), torch.tensor([4]))
    assert shares.tolist() == [[2, 2]]


def test_the_best_of_every_region_are_kept():
    regions = torch.tensor([[0, 1, 0, 1, 1, 2]])
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.5, 0.9, 1.0]])
    kept = keep_best(regions, torch.tensor([[1, 2, 0]]), scores)
    assert kept.tolist() == [[False, True, True, False, True, False]]


def test_only_the_row_of_reg_is_computed_and_it_is_the_layers_own():
    model = tiny_model(attn_implementation="eager")
    inputs = take_row(tiny_inputs(model.config), 0, 3)
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=True)
    text, patches = inputs["input_ids"].shape[1], outputs.patch_indices[0].shape[1]
    seen = text + 1 + patches
    for index, layer in enumerate(model.model.layers):
        keys, _ = outputs.past_key_values.states(index)
        row = reg_attention(
            layer,
            outputs.hidden_states[index][:, text],
            keys[:, :, :seen],
            outputs.past_key_values.key_bias[:, :seen],
        )
        torch.testing.assert_close(row, outputs.attentions[index][:, :, text, :seen].mean(1))


@pytest.mark.parametrize("split", BUDGET_SPLITS)
@pytest.mark.parametrize("score", BUDGET_SCORES)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_no_sample_exceeds_its_budget(split, score, threshold):
    for seed in range(4):
        model = tiny_model(seed)
        inputs = tiny_inputs(model.config, seed)
        free = model.generate(**inputs, selection_threshold=threshold)
        wanted = sum(mask.sum(1) for mask in free.selection_masks)
        total = inputs["pixel_attention_mask"].sum(1)
        for budget in (1 / 21, 0.1, 0.37, 0.8, 1.0, 6, 17):
            limited = model.generate(
                **inputs,
                selection_threshold=threshold,
                token_budget=budget,
                budget_split=split,
                budget_score=score,
            )
            read = sum(mask.sum(1) for mask in limited.selection_masks)
            limit = (budget * total + 1e-6).floor() if isinstance(budget, float) else torch.tensor(budget)
            assert (read <= limit).all()
            if threshold == 0:  # everything is wanted: all of the budget is spent
                assert torch.equal(read, torch.minimum(limit, total).long())
            if (limit >= total).all():
                assert torch.equal(read, wanted)


@pytest.mark.parametrize("seed", range(10))
def test_random_attention_never_breaks_the_budget(seed, monkeypatch):
    model = tiny_model(seed)
    generator = torch.Generator().manual_seed(seed)

    def random_attention(layer, reg_states, keys, key_bias):
        maps = torch.rand(key_bias.shape, generator=generator, dtype=torch.float64)
        return maps ** (10 * seed) * (maps > 0.1 * seed)  # from even to nearly all zero

    monkeypatch.setattr("modeling_scanformer.modeling_scanformer.reg_attention", random_attention)
    inputs = tiny_inputs(model.config, seed)
    options = {"token_budget": 0.3, "budget_split": "content", "budget_score": "attention"}
    outputs = model.generate(**inputs, selection_threshold=0.0, **options)
    read = sum(mask.sum(1) for mask in outputs.selection_masks)
    assert torch.equal(read, (0.3 * inputs["pixel_attention_mask"].sum(1)).long())


@pytest.mark.parametrize("split", BUDGET_SPLITS)
@pytest.mark.parametrize("score", ["informativeness", "attention", "center"])
def test_a_batch_spends_as_its_members_do_alone(split, score):
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    options = {"token_budget": 0.3, "budget_split": split, "budget_score": score, "selection_threshold": 0.3}
    together = model.generate(**inputs, **options)
    for row in range(3):
        alone = model.generate(**take_row(inputs, row, 3), **options)
        torch.testing.assert_close(together.scale_boxes[row], alone.scale_boxes[0])


def test_streaming_and_leaving_the_batch_do_not_change_what_is_spent():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    options = {"token_budget": 0.3, "selection_threshold": 0.3}
    fused = model.generate(**inputs, **options)
    stopping_score = float(fused.scale_scores[:, 0].sort().values[1]) + 1e-9  # two leave after the coarsest scale
    stopped = model.generate(**inputs, **options, stopping_score=stopping_score)
    (left,) = (stopped.scales_read > 1).nonzero()[:1]
    for scale in range(int(stopped.scales_read[left])):
        assert torch.equal(stopped.selection_masks[scale][left], fused.selection_masks[scale][left])


def test_a_list_gives_every_scale_its_own_limit():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    outputs = model.generate(**inputs, selection_threshold=0.0, token_budget=[1.0, 0.5, 0.125])
    assert [mask.sum(1).tolist() for mask in outputs.selection_masks] == [[6, 3, 1], [12, 6, 2], [12, 6, 2]]
    outputs = model.generate(**inputs, selection_threshold=0.0, token_budget=[6, 3, 0])
    assert [mask.sum(1).tolist() for mask in outputs.selection_masks] == [[6, 3, 1], [3, 3, 3], [0, 0, 0]]


@pytest.mark.parametrize("options", [{"num_scales": 1}, {"max_scales": 1}], ids=str)
def test_a_budget_of_a_single_scale_only_has_to_cover_it(options):
    max_scales = options.pop("max_scales", None)
    model = tiny_model(**options)
    inputs = tiny_inputs(model.config)
    outputs = model.generate(**inputs, token_budget=1.0, max_scales=max_scales)
    assert torch.equal(outputs.pred_boxes, model.generate(**inputs, max_scales=max_scales).pred_boxes)
    assert [mask.sum(1).tolist() for mask in outputs.selection_masks] == [[6, 3, 1]]


def test_by_default_the_most_informative_patches_of_the_whole_picture_are_read():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    splits = ({}, {"budget_split": "none"}, {"budget_split": "content"})
    default, none, content = (
        torch.cat(model.generate(**inputs, selection_threshold=0.0, token_budget=0.4, **split).selection_masks, dim=1)
        for split in splits
    )
    assert torch.equal(default, none)
    assert not torch.equal(default, content)


def test_a_budget_goes_where_the_content_is():
    """With all attention on one region, that region is read whole before any other."""
    model = tiny_model()
    inputs = take_row(tiny_inputs(model.config), 0, 3)  # 2 x 3 regions
    with pytest.MonkeyPatch.context() as patch:

        def on_the_last_region(layer, reg_states, keys, key_bias):
            weights = torch.zeros_like(key_bias)
            weights[:, -1] = 1  # the last patch of the coarsest scale, which has no constant token
            return weights

        patch.setattr("modeling_scanformer.modeling_scanformer.reg_attention", on_the_last_region)
        options = {"token_budget": [6, 5, 0], "budget_split": "content"}
        outputs = model.generate(**inputs, selection_threshold=0.0, **options)
    grid = outputs.selection_masks[1][0].view(4, 6)
    assert grid[2:, 4:].all() and grid.sum() == 5


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0.04, "coarsest scale.*4.8 %"),
        (5, "coarsest"),
        ([1.0, 0.5], "2 entries.*3 scales"),
        ([0.5, 0.5, 0.5], "coarsest"),
    ],
    ids=str,
)
def test_budgets_that_cannot_be_kept_raise(budget, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model.generate(**tiny_inputs(model.config), token_budget=budget)


def test_a_saved_budget_can_be_switched_off():
    model = tiny_model()
    inputs = tiny_inputs(model.config)
    expected = model.generate(**inputs, selection_threshold=0.0)
    model.generation_config.token_budget = 0.3
    model.generation_config.budget_score, model.generation_config.budget_split = "attention", "content"
    limited = model.generate(**inputs, selection_threshold=0.0)
    free = model.generate(**inputs, selection_threshold=0.0, token_budget=None)
    assert not torch.equal(limited.selection_masks[-1], expected.selection_masks[-1])
    torch.testing.assert_close(free.scale_boxes, expected.scale_boxes)
    with pytest.raises(ValueError, match="there is none"):
        model.generate(**inputs, token_budget=None, budget_score="random")
