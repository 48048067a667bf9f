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
import hashlib
import json
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node

from examples.scenes import (
    LEVELS,
    SPLITS,
    Facts,
    ScenesDataset,
    UnclearError,
    execute,
    generate,
    load_scenes,
    make_sample,
    sheet,
    statistics,
    vocabulary,
)
from examples.scenes.levels import level_of
from examples.scenes.objects import COLORS, OTHER_NAMES, SHAPES, TEXTURE_FAMILIES, TEXTURES, held_out


ROOT = Path(__file__).parents[1]


def digest(sample):
    parts = (sample["image"].tobytes(), sample["mask"].tobytes(), json.dumps(sample["program"]))
    texts = (json.dumps(sample["scene"]), sample["expression"], str(sample["bbox"]), sample["image_id"])
    return hashlib.sha256(b"".join(parts[:2]) + "".join((parts[2], *texts)).encode()).hexdigest()


def samples(split="train", count=60, **arguments):
    dataset = ScenesDataset(split, num_samples=count, **arguments)
    return [dataset[index] for index in range(count)]


def target_of(sample):
    return sample["scene"]["objects"][sample["scene"]["target"]]


def test_sample_depends_on_seed_and_index_only():
    dataset = ScenesDataset("train", seed=3, expressions_per_scene=2)
    forward = [digest(dataset[index]) for index in range(6)]
    backward = [digest(dataset[index]) for index in reversed(range(6))][::-1]
    alone = [digest(make_sample(3, index, expressions_per_scene=2)) for index in range(6)]
    assert forward == backward == alone
    assert len(set(forward)) == 6
    assert digest(make_sample(4, 0)) != digest(make_sample(3, 0))
    # A sample may be changed without changing the next one of the same picture.
    dataset[0]["image"].paste((0, 0, 0), (0, 0, 9, 9))
    assert digest(dataset[0]) == forward[0]


def test_other_process_makes_the_same_sample():
    """Also as `scenes`, with examples/ on the path, as it is for a script there."""
    code = "from scenes import make_sample; s = make_sample(1, 7); print(s['expression'], s['image'].tobytes()[:4096])"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "examples", capture_output=True, text=True)
    sample = make_sample(1, 7)
    assert other.stdout.strip() == f"{sample['expression']} {sample['image'].tobytes()[:4096]}", other.stderr


def test_splits_are_disjoint():
    streams = {split.stream: name for name, split in reversed(SPLITS.items())}
    pictures = [hashlib.sha256(s["image"].tobytes()).digest() for name in streams.values() for s in samples(name, 15)]
    assert len(set(pictures)) == 15 * len(streams)


@pytest.mark.parametrize("split", SPLITS)
def test_box_is_extent_of_mask(split):
    for sample in samples(split, 12):
        assert sample["image"].mode == "RGB"
        assert sample["image"].size == (sample["width"], sample["height"])
        assert sample["mask"].shape == (sample["height"], sample["width"])
        rows, columns = np.nonzero(sample["mask"])
        assert sample["bbox"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert sample["bbox"] == target_of(sample)["bbox"]


class Person:
    """
    Understands programs in a way of their own: `generous` people call more things "left of" another than strict ones,
    and take what is too small to be seen for whatever it is said to be. The answers must not depend on who is asked.
    """

    def __init__(self, scene, generous):
        self.objects = scene["objects"]
        self.generous = generous
        self.longest = max(scene["width"], scene["height"])

    def center(self, item):
        x0, y0, x1, y1 = item["bbox"]
        return (x0 + x1) / 2, (y0 + y1) / 2

    def has(self, item, attribute, value):
        truth = [item[attribute], TEXTURE_FAMILIES.get(item[attribute])]
        if self.generous:
            limit = {
                "size": 0,
                "color": 8,
                "shape": 20 if item["shape"] in ("pentagon", "hexagon") else 11,
                "texture": 14,
            }
            truth += OTHER_NAMES.get(item[attribute], ())
            return value in truth or item["side"] < limit[attribute]
        return value in truth

    def stands(self, item, relation, anchor):
        (x, y), (x_anchor, y_anchor) = self.center(item), self.center(anchor)
        dx, dy = x - x_anchor, y - y_anchor
        along, across = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
        if self.generous:
            return along > 0 and abs(across) < 4 * along
        return along > 0.039 * self.longest and abs(across) <= 1.21 * along

    def lies_between(self, item, first, second):
        (x, y), (x0, y0), (x1, y1) = (self.center(each) for each in (item, first, second))
        length = math.dist((x0, y0), (x1, y1))
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length**2
        across = abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length
        if self.generous:
            return 0.031 < along < 0.969 and across < 0.349 * length + item["side"] / 2
        return 0.199 < along < 0.801 and across < 0.121 * length

    def order(self, key):
        axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}.get(key, (None, None))
        if axis is None:
            return lambda item: item["side"] * (1 if key == "small" else -1)
        if self.generous:
            # Looks at where the objects begin, not at their centres.
            return lambda item: sign * item["bbox"][axis if sign == 1 else axis + 2]
        return lambda item: sign * self.center(item)[axis]

    def answer(self, program):
        results = []
        for step in program:
            inputs = [results[number] for number in step["inputs"]]
            results.append(getattr(self, f"do_{step['function']}")(step, *inputs))
        return [item["id"] for item in results[-1]]

    def do_scene(self, step):
        return self.objects

    def do_filter(self, step, items):
        return [item for item in items if self.has(item, step["attribute"], step["value"])]

    def do_exclude(self, step, items):
        return [item for item in items if not self.has(item, step["attribute"], step["value"])]

    def do_relate(self, step, anchors):
        return [i for i in self.objects for a in anchors if i is not a and self.stands(i, step["relation"], a)]

    def do_between(self, step, first, second):
        pairs = [(one, two) for one in first for two in second]
        return [i for i in self.objects for pair in pairs if i not in pair and self.lies_between(i, *pair)]

    def do_intersect(self, step, first, second):
        return [item for item in first if item in second]

    def do_extreme(self, step, items):
        return sorted(items, key=self.order(step["key"]))[:1]

    def do_ordinal(self, step, items):
        return sorted(items, key=self.order(step["key"]))[step["rank"] - 1 : step["rank"]]

    def do_nearest(self, step, items, anchors):
        items = [item for item in items if item not in anchors]
        nearness = {i["id"]: math.dist(self.center(i), self.center(a)) for i in items for a in anchors}
        return sorted(items, key=lambda item: nearness[item["id"]])[:1] if anchors else []

    def do_unique(self, step, items):
        return items


@pytest.mark.parametrize(
    "split, level",
    [
        ("train", "shapes"),
        ("train", "easy"),
        ("train", "contrasts"),
        ("train", "standard"),
        ("test", "hard"),
        ("test-dense", "standard"),
        ("test-fine", "standard"),
        ("test-compositional", "standard"),
    ],
)
def test_exactly_one_object_fits_whoever_is_asked(split, level):
    for sample in samples(split, 120, level=level, expressions_per_scene=4):
        for generous in (False, True):
            found = Person(sample["scene"], generous).answer(sample["program"])
            assert found == [sample["scene"]["target"]], (sample["expression"], sample["program"])
        assert execute(sample["program"], Facts(sample["scene"])) == sample["scene"]["target"]


def test_contrasts_are_alike_save_for_one_attribute():
    kinds = set()
    for sample in samples("train", 40, level="contrasts"):
        looks = [[item[name] for name in ("size", "color", "texture", "shape")] for item in sample["scene"]["objects"]]
        differences = {sum(a != b for a, b in zip(*pair)) for pair in combinations(looks, 2)}
        assert 3 <= len(looks) <= 6 and min(differences) <= 1, looks
        kinds.add(sample["expression_type"])
    assert kinds == {"attribute", "ordinal", "negation"}


def test_nothing_fits_expressions_without_target():
    for sample in samples("train", 60, no_target=1.0, expressions_per_scene=3):
        assert sample["expression_type"] == "no_target"
        assert sample["bbox"] is None and sample["scene"]["target"] is None and not sample["mask"].any()
        assert execute(sample["program"], Facts(sample["scene"])) is None
        for generous in (False, True):
            assert Person(sample["scene"], generous).answer(sample["program"]) == []
    share = np.mean([s["bbox"] is None for s in samples("train", 200, no_target=0.3, expressions_per_scene=20)])
    assert 0.15 < share < 0.45


def test_unclear_facts_have_no_answer():
    def item(number, x, y, side=40.0, shape="circle", color="red"):
        box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
        look = {"size": "medium", "color": color, "texture": "dotted", "shape": shape}
        return {"id": number, **look, "side": side, "bbox": box, "visible": 1.0}

    def graph(*objects):
        return {"width": 400, "height": 400, "objects": list(objects)}

    def left_of(steps):
        return [
            *steps,
            {"function": "relate", "inputs": [2], "relation": "left"},
            {"function": "unique", "inputs": [3]},
        ]

    scene = {"function": "scene", "inputs": []}
    blue = {"function": "filter", "inputs": [0], "attribute": "color", "value": "blue"}
    anchor = [scene, blue, {"function": "unique", "inputs": [1]}]
    blue_one = item(0, 200, 200, color="blue")
    assert execute(left_of(anchor), Facts(graph(blue_one, item(1, 100, 210)))) == 1
    assert execute(left_of(anchor), Facts(graph(blue_one, item(1, 300, 200)))) is None
    with pytest.raises(UnclearError):
        execute(left_of(anchor), Facts(graph(blue_one, item(1, 150, 60))))
    with pytest.raises(UnclearError):
        execute(left_of(anchor), Facts(graph(blue_one, item(1, 100, 200), item(2, 90, 260))))

    def last(function, **arguments):
        return [scene, {"function": function, "inputs": [0], **arguments}, {"function": "unique", "inputs": [1]}]

    sizes = graph(item(0, 100, 100, 40), item(1, 300, 300, 44))
    assert execute(last("extreme", key="left"), Facts(sizes)) == 0
    with pytest.raises(UnclearError):
        execute(last("extreme", key="large"), Facts(sizes))
    level = graph(item(0, 100, 100), item(1, 300, 105))
    for function, more in (("extreme", {}), ("ordinal", {"rank": 2})):
        with pytest.raises(UnclearError):
            execute(last(function, key="top", **more), Facts(level))
    nearest = [*anchor, {"function": "nearest", "inputs": [0, 2]}, {"function": "unique", "inputs": [3]}]
    assert execute(nearest, Facts(graph(blue_one, item(1, 100, 200), item(2, 200, 60)))) == 1
    with pytest.raises(UnclearError):
        execute(nearest, Facts(graph(blue_one, item(1, 100, 200), item(2, 200, 90))))
    ring = graph(item(0, 100, 100), item(1, 300, 300, shape="ring"))
    for function in ("filter", "exclude"):
        with pytest.raises(UnclearError):
            execute(last(function, attribute="shape", value="circle"), Facts(ring))
    speck = graph(item(0, 100, 100), item(1, 300, 300, 9.0))
    with pytest.raises(UnclearError):
        execute(last("filter", attribute="texture", value="dotted"), Facts(speck))


def test_every_shape_and_texture_lacks_pairs():
    pairs = {held_out(color, texture, shape) for color in COLORS for texture in TEXTURES for shape in SHAPES}
    assert pairs == {None, ("color", "shape"), ("texture", "shape")}


def test_held_out_pairs_occur_in_the_compositional_split_only():
    def pair(item):
        return held_out(item["color"], item["texture"], item["shape"])

    for split in ("train", "validation", "test", "test-fine", "test-dense"):
        assert not any(pair(item) for sample in samples(split, 40) for item in sample["scene"]["objects"])
    for sample in samples("test-compositional", 40):
        attributes = pair(target_of(sample))
        named = {step.get("attribute") for step in sample["program"]}
        assert attributes and set(attributes) <= named


def test_fine_split_needs_texture_or_small_shape():
    for sample in samples("test-fine", 40):
        target = target_of(sample)
        alike = [item for item in sample["scene"]["objects"] if item["color"] == target["color"]]
        different = {a for a in ("size", "color", "texture", "shape") if len({item[a] for item in alike}) > 1}
        assert len(alike) >= 3 and len(different) == 1 and different <= {"texture", "shape"}
        assert different <= {step.get("attribute") for step in sample["program"]}
        assert target["size"] == "small" and target["visible"] == 1.0


def test_dense_split_has_more_objects_than_training():
    fewest, most = level_of("standard", "dense").objects
    counts = [len(sample["scene"]["objects"]) for sample in samples("test-dense", 20)]
    assert fewest <= min(counts) and max(counts) <= most and fewest > LEVELS["standard"].objects[1]


@pytest.mark.parametrize("split", ["test-night", "test-fog", "test-rain", "train-night"])
def test_weather_changes_the_picture_only(split):
    for clear, weather in zip(samples(split.partition("-")[0], 8), samples(split, 8), strict=True):
        for key in ("expression", "bbox", "scene", "program", "expression_type"):
            assert clear[key] == weather[key]
        assert (clear["mask"] == weather["mask"]).all()
        change = np.abs(np.asarray(clear["image"], dtype=float) - np.asarray(weather["image"])).mean()
        assert change > 8


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_as_declared(name):
    level = LEVELS[name]
    drawn = samples("train", 40, level=name)
    kinds = {sample["expression_type"] for sample in samples("train", 120, level=name, expressions_per_scene=6)}
    assert kinds == set(level.expressions)
    for sample in drawn:
        longer, shorter = max(sample["image"].size), min(sample["image"].size)
        assert level.longest_side[0] <= longer <= level.longest_side[1]
        assert longer / shorter < level.elongation * 1.01
        items = sample["scene"]["objects"]
        assert level.objects[0] <= len(items) <= level.objects[1]
        assert {item["size"] for item in items} <= set(level.sizes)
        for attribute in level.distinct:
            assert len({item[attribute] for item in items}) == len(items)
        assert min(item["side"] for item in items) >= level.minimum_side
        assert min(item["visible"] for item in items) >= 0.6


def test_levels_take_turns():
    """Scene by scene, whoever makes it; a level can have more turns than another."""
    dataset = ScenesDataset("train", 3, 24, "standard+colors+colors", expressions_per_scene=2)
    made = [dataset[index] for index in range(24)]
    names = [{s["image_id"] for s in made[start : start + 2]} for start in range(0, 24, 2)]
    assert [len(name) for name in names] == [1] * 12 and len(set.union(*names)) == 12
    assert digest(make_sample(3, 8, level="standard+colors+colors", expressions_per_scene=2)) == digest(made[8])
    colors = LEVELS["colors"]
    for number, sample in enumerate(made):
        items = sample["scene"]["objects"]
        if number // 2 % 3:
            assert colors.objects[0] <= len(items) <= colors.objects[1]
            assert len({item["color"] for item in items}) == len(items)
    others = [len(sample["scene"]["objects"]) for number, sample in enumerate(made) if number // 2 % 3 == 0]
    assert max(others) > colors.objects[1]
    with pytest.raises(ValueError, match="unknown level 'color'"):
        ScenesDataset("train", level="standard+color")
    with pytest.raises(ValueError, match="unknown level ''"):
        ScenesDataset("train", level="standard+")


def test_level_without_enough_colors_for_a_dense_split_says_so():
    with pytest.raises(ValueError, match="no dense split"):
        ScenesDataset("test-dense", num_samples=1, level="colors")


def test_vocabulary_has_every_word():
    words = set(vocabulary())
    assert vocabulary() == sorted(words)
    for split in ("train", "test-dense", "test-compositional"):
        for sample in samples(split, 300, no_target=0.1, expressions_per_scene=30):
            assert sample["expression"] == sample["expression"].strip()
            assert set(sample["expression"].split(" ")) <= words


def test_parquet_is_what_is_streamed(tmp_path, monkeypatch):
    folder = tmp_path / "scenes"
    arguments = ["--split", "test-fog", "--num_samples", "7", "--output", str(folder), "--no_target", "0.4"]
    arguments += ["--num_proc", "2", "--samples_per_shard", "4", "--seed", "5", "--expressions_per_scene", "2"]
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    generate.main()
    # What an interrupted run leaves behind is not read.
    (folder / "data" / ".test_fog-00002-of-00003.parquet.incomplete").write_bytes(b"PAR1")
    written = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["test_fog"]
    settings = {"seed": 5, "num_samples": 7, "no_target": 0.4, "expressions_per_scene": 2}
    streamed = list(load_scenes("test-fog", num_shards=1, **settings))
    assert len(written) == len(streamed) == 7
    assert any(row["bbox"] is None for row in streamed)
    for ours, theirs in zip(streamed, written, strict=True):
        assert set(ours) == set(theirs)
        for key in ("image", "mask"):
            assert (np.asarray(ours.pop(key)) == np.asarray(theirs.pop(key))).all()
        assert ours == theirs


def test_materialised_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    dataset = load_scenes("validation", num_samples=3, streaming=False)
    assert dataset[2]["expression"] == make_sample(0, 2, "validation")["expression"]
    assert load_scenes("validation", seed=1, num_samples=3, streaming=False)[2] != dataset[2]


def test_nodes_share_out_the_stream():
    stream = load_scenes("train", num_samples=12, expressions_per_scene=2, num_shards=4)
    parts = [[row["expression"] for row in split_dataset_by_node(stream, rank, 2)] for rank in range(2)]
    everything = [sample["expression"] for sample in samples("train", 12, expressions_per_scene=2)]
    assert all(parts) and sorted(parts[0] + parts[1]) == sorted(everything)
    endless = iter(load_scenes("train", num_shards=1))
    assert [next(endless)["expression"] for _ in range(3)] == [s["expression"] for s in samples("train", 3)]


def test_no_half_written_shard_looks_whole(tmp_path, monkeypatch):
    def break_down(dataset, indices):
        if indices.start:
            raise RuntimeError("out of luck")
        return make_group(dataset, indices)

    make_group = generate._make_group
    monkeypatch.setattr(generate, "_make_group", break_down)
    monkeypatch.setattr(generate, "ROWS_PER_GROUP", 2)
    with pytest.raises(RuntimeError, match="out of luck"):
        generate.generate(generate.GenerateArguments(output=str(tmp_path), num_samples=4))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"split": "tset"}, "unknown split 'tset'"),
        ({"level": "medium"}, "unknown level 'medium'"),
        ({"num_samples": 0}, "num_samples must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"no_target": 1.5}, "no_target is a probability"),
        ({"expressions_per_scene": 0}, "expressions_per_scene must be positive"),
        ({"num_proc": 0}, "num_proc must be positive"),
        ({"samples_per_shard": 0}, "samples_per_shard must be positive"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, capsys, wrong, message):
    arguments = {"output": str(tmp_path), "num_samples": 2, **wrong}
    monkeypatch.setattr(sys, "argv", ["generate", *(f"--{key}={value}" for key, value in arguments.items())])
    with pytest.raises(SystemExit):
        generate.main()
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_split_is_not_mixed_with_another(tmp_path):
    arguments = generate.GenerateArguments(output=str(tmp_path), num_samples=1, level="easy")
    generate.generate(arguments)
    with pytest.raises(ValueError, match="holds this split already"):
        generate.generate(arguments)


def test_load_scenes_needs_an_end_to_be_written():
    with pytest.raises(ValueError, match="num_samples is needed"):
        load_scenes("train", streaming=False)
    with pytest.raises(ValueError, match="num_shards must be positive"):
        load_scenes("train", num_shards=0)
    with pytest.raises(TypeError, match="no length"):
        len(ScenesDataset("train"))
    with pytest.raises(IndexError):
        ScenesDataset("train", num_samples=2)[2]


def test_sheet(tmp_path, monkeypatch):
    path = tmp_path / "sheet.jpg"
    monkeypatch.setattr(sys, "argv", ["sheet", "--output", str(path), "--rows", "1", "--columns", "2"])
    sheet.main()
    assert 0 < path.stat().st_size < 400_000


def test_a_sheet_of_a_level_without_a_dense_split(tmp_path):
    drawn = sheet.draw_sheet(sheet.SheetArguments(str(tmp_path / "sheet.jpg"), level="colors", rows=2, columns=4))
    assert drawn.width == 4 * sheet.CELL


def test_statistics(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["statistics", "--num_samples", "5", "--level", "easy"])
    statistics.main()
    assert "ms of processor time per sample" in capsys.readouterr().out


def test_a_model_that_ignores_the_words_does_badly():
    measured = statistics.measure(samples("test", 200))
    chance = measured["accuracy at IoU 0.5 without understanding"]
    assert chance["the whole picture"] < 0.01
    assert chance["the largest object"] < 0.3 and chance["a random object"] < 0.25
    assert chance["a random object that the target's attributes fit"] < 0.75


def test_a_target_that_only_its_exact_texture_tells_is_described():
    """The family of its texture ("striped"), drawn first for this sample, fits another object too."""
    sample = make_sample(1, 19018, level="easy", expressions_per_scene=4)
    assert execute(sample["program"], Facts(sample["scene"])) == sample["scene"]["target"]
