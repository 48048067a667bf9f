# Copyright 2026 The ScanFormer authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""examples/teach_objects.py: what is shown of an object is what a scan would read of it, and it is learned."""

import numpy as np
import pytest
import teach_objects
import torch
from safetensors.torch import load_file
from scenes import ScenesDataset
from scenes.create_model import create_model
from scenes.supervision import ROLES, UNKNOWN, SceneSupervision, label_patches
from teach_objects import LARGEST_SIDE, Arguments, Glimpse, compute_loss, find_glimpses, teach

from modeling_scanformer.pyramid_scanformer import scale_offsets


NUM_PICTURES = 6
# The roles that looks tell.
LOOKS = [ROLES.index("described"), ROLES.index("anchor_described")]


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return create_model(
        "hidden_size=32,num_attention_heads=2,intermediate_size=64,num_hidden_layers=4,selection_layer=3", 192
    )


@pytest.fixture(scope="module")
def dataset():
    return ScenesDataset("train", seed=3, num_samples=18, level="standard+easy", expressions_per_scene=3)


def test_glimpses_are_the_patches_that_a_scan_would_read(untrained, dataset):
    model, processor = untrained
    scales, fits = set(), set()
    for number in range(NUM_PICTURES):
        samples = [dataset[3 * number + following] for following in range(3)]
        inputs = processor(images=[samples[0]["image"]], text=["it"], return_tensors="pt")
        pixels, shapes = inputs["pixel_values"][0], inputs["spatial_shapes"]
        labels = label_patches(samples, shapes.expand(3, -1, -1), len(pixels), model.config.patch_size)
        offsets = scale_offsets(len(pixels), model.config.num_scales)
        glimpses = find_glimpses(number, dataset, processor.image_processor)
        scales.update(glimpse.scale for glimpse in glimpses)
        for glimpse in glimpses:
            assert list(glimpse.grid) == shapes[0, glimpse.scale].tolist()
            places = offsets[glimpse.scale] + torch.from_numpy(glimpse.indices)
            torch.testing.assert_close(torch.from_numpy(glimpse.patches), pixels[places].half())
            np.testing.assert_array_equal(glimpse.names, labels["patch_names"][0, places])
            np.testing.assert_array_equal(glimpse.outlines, labels["patch_outlines"][0, places])
            assert (glimpse.names != UNKNOWN).any(), "something is known of what is shown"
            assert glimpse.expressions == [sample["expression"] for sample in samples]
            np.testing.assert_array_equal(glimpse.roles[..., LOOKS], labels["patch_roles"][:, places][..., LOOKS])
            among_others = np.delete(glimpse.roles, LOOKS, axis=-1)
            shown = labels["patch_outlines"][0, places].isfinite().all(-1).numpy()
            assert (among_others[:, shown] == UNKNOWN).all(), "the others are not seen"
            fits.update(glimpse.roles[..., LOOKS].ravel().tolist())
            rows, columns = np.divmod(glimpse.indices, glimpse.grid[1])
            assert max(np.ptp(rows), np.ptp(columns)) < LARGEST_SIDE
            assert len(glimpse.indices) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert scales >= {1, 2}
    assert fits >= {0, 1}


def test_the_loss_of_a_batch_is_that_of_its_glimpses(untrained, dataset):
    model, processor = untrained
    supervision = SceneSupervision(model.config)
    glimpses = [g for i in range(NUM_PICTURES) for g in find_glimpses(i, dataset, processor.image_processor)]
    glimpses = [glimpse for glimpse in glimpses if glimpse.scale == 2]
    chosen = [place % 3 for place in range(len(glimpses))]
    assert len({len(glimpse.indices) for glimpse in glimpses}) > 2, "some are padded"

    def loss_of(glimpses: list[Glimpse], chosen: list[int]) -> torch.Tensor:
        return compute_loss(model.model, supervision, processor.tokenizer, glimpses, chosen)[0]

    with torch.no_grad():
        together = loss_of(glimpses, chosen)
        alone = torch.stack([loss_of([glimpse], [number]) for glimpse, number in zip(glimpses, chosen)])
        otherwise = loss_of(glimpses, [(number + 1) % 3 for number in chosen])
    torch.testing.assert_close(together, alone.mean())
    assert not torch.isclose(together, otherwise), "it depends on what is asked"


def test_encoder1_reads_an_object_as_a_scan_does(untrained, dataset):
    """Whose coarsest scale shows nothing but the object."""
    model, processor = untrained
    sample = dataset[0]
    inputs = processor(images=[sample["image"]], text=[sample["expression"]], return_tensors="pt")
    grid = tuple(inputs["spatial_shapes"][0, 0].tolist())
    num_patches = grid[0] * grid[1]
    whole = Glimpse(
        scale=0,
        grid=grid,
        indices=np.arange(num_patches),
        patches=inputs["pixel_values"][0, :num_patches].numpy(),
        names=np.full((num_patches, 3), UNKNOWN),
        outlines=np.full((num_patches, 4), np.nan, np.float32),
        expressions=[sample["expression"]],
        roles=np.full((1, num_patches, 4), UNKNOWN),
    )
    seen = []

    def look(hidden_states, patch_indices, text_length, **labels):
        seen.extend([hidden_states, patch_indices, text_length])

    with torch.no_grad():
        compute_loss(model.model, look, processor.tokenizer, [whole], [0])
        outputs = model(**inputs, output_hidden_states=True)
    hidden_states, (indices,), text_length = seen
    assert text_length == inputs["input_ids"].shape[1]
    assert indices.tolist() == [list(range(num_patches))]
    for own, scanned in zip(hidden_states, outputs.hidden_states):
        torch.testing.assert_close(own, scanned[:, : own.shape[1]], rtol=1e-4, atol=1e-4)


def test_teaching_is_reproducible_and_leaves_the_rest_alone(untrained, tmp_path, capsys):
    model, processor = untrained
    model.save_pretrained(tmp_path / "untrained")
    processor.save_pretrained(tmp_path / "untrained")

    def run(name: str, steps: int) -> dict[str, torch.Tensor]:
        teach(
            Arguments(
                model_name_or_path=str(tmp_path / "untrained"),
                output_dir=str(tmp_path / name),
                num_pictures=16,
                train_batch_size=16,
                max_train_steps=steps,
                num_warmup_steps=2,
                logging_steps=steps // 2,
                num_proc=1,
            )
        )
        return load_file(tmp_path / name / "model.safetensors")

    before = load_file(tmp_path / "untrained" / "model.safetensors")
    after, again = run("taught", 40), run("again", 40)
    for name, weights in after.items():
        assert torch.equal(weights, again[name]), name
        tokens = (
            "text_embeddings",
            "patch_embeddings",
            "reg_tokens",
            "modality_embeddings",
            *(f"layers.{layer}." for layer in range(3)),
        )
        taught = any(part in name for part in tokens)
        assert taught or torch.equal(weights, before[name]), f"{name} has nothing to do with it"
    assert not torch.equal(after["model.layers.0.mlp.fc1.weight"], before["model.layers.0.mlp.fc1.weight"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    losses = [float(line.split("loss_names ")[1].split(",")[0]) for line in lines]
    assert losses[1] < 0.9 * losses[0]


def test_what_cannot_be_used_is_told(untrained, tmp_path, monkeypatch):
    model, processor = untrained
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    words = ["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--num_pictures", "1"]
    monkeypatch.setattr("sys.argv", ["teach_objects.py", *words, "--num_proc", "1"])
    with pytest.raises(SystemExit, match="raise --num_pictures"):
        teach_objects.main()
    monkeypatch.setattr("sys.argv", ["teach_objects.py", *words, "--dataset_level", "none"])
    with pytest.raises(SystemExit, match="unknown level"):
        teach_objects.main()
    monkeypatch.setattr("sys.argv", ["teach_objects.py", *words, "--model_name_or_path", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="nowhere is no model"):
        teach_objects.main()
