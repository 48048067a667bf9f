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
"""Loading and checking of data sets: what is found, and what is said of what cannot be used."""

import io
import json
import re

import datasets
import PIL.ExifTags
import PIL.Image
import pytest
import torch
from grounding.arguments import GroundingArguments
from grounding.checks import make_folder, read_picture_size
from grounding.data import (
    DataError,
    GroundingCollator,
    check_boxes_in_pictures,
    find_box_problem,
    find_parquet_splits,
    load_grounding_dataset,
    split_by_picture,
    spread_pictures,
)
from grounding.reader import open_source
from grounding.setup import load_datasets
from grounding.streaming import stream_grounding_dataset, take_samples
from scenes.create_model import create_tokenizer
from tiny import picture

from modeling_scanformer import ScanFormerImageProcessor, ScanFormerProcessor


BOX = [2.0, 3.0, 12.0, 9.0]


@pytest.fixture(scope="module")
def processor():
    image_processor = ScanFormerImageProcessor(size={"longest_edge": 16}, patch_size=2)
    return ScanFormerProcessor(image_processor, create_tokenizer(12))


def make_rows(boxes, **columns) -> datasets.Dataset:
    count = len(boxes)
    rows = {
        "image": [PIL.Image.new("RGB", (20, 10), (index, 0, 0)) for index in range(count)],
        "expression": [f"circle {index}" for index in range(count)],
        "bbox": boxes,
        **columns,
    }
    rows = datasets.Dataset.from_dict(rows)
    return rows.cast_column("image", datasets.Image())


def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)


@pytest.mark.parametrize(
    "file",
    [
        "testA-00000-of-00001.parquet",
        "data/testA-00000-of-00001.parquet",
        "testA/0000.parquet",
        "testA.parquet",
        "testA-00000.parquet",
        "testA-00000-of-00001-5a6b7c8d9e0f1a2b.parquet",
    ],
)
def test_splits_of_parquet_files_are_known_by_files_and_folders(tmp_path, file):
    write(make_rows([BOX, BOX]), tmp_path / file)
    write(make_rows([BOX]), tmp_path / file.replace("testA", "train"))
    assert len(load_grounding_dataset(str(tmp_path), "testA")) == 2
    assert len(load_grounding_dataset(str(tmp_path), "train")) == 1
    with pytest.raises(DataError, match=r"no split 'testB'; it has \['testA', 'train'\]"):
        load_grounding_dataset(str(tmp_path), "testB")


def test_a_split_with_a_dash_is_found_under_its_identifier(tmp_path):
    write(make_rows([BOX]), tmp_path / "data" / "test_fine-00000-of-00001.parquet")
    assert len(load_grounding_dataset(str(tmp_path), "test-fine")) == 1


def test_a_missing_shard_and_a_split_in_two_folders_are_errors(tmp_path):
    write(make_rows([BOX]), tmp_path / "one" / "val-00000-of-00002.parquet")
    with pytest.raises(DataError, match="not whole: it has 1 files"):
        load_grounding_dataset(str(tmp_path), "val")
    write(make_rows([BOX]), tmp_path / "two" / "val-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"\['one', 'two'\]"):
        load_grounding_dataset(str(tmp_path), "val")
    assert len(load_grounding_dataset(str(tmp_path), "val", config="two")) == 1


def test_hidden_folders_hold_no_splits(tmp_path):
    write(make_rows([BOX]), tmp_path / ".cache" / "test.parquet")
    assert find_parquet_splits(tmp_path) == {}
    with pytest.raises(DataError, match="neither parquet files nor pictures"):
        load_grounding_dataset(str(tmp_path), "test")


def test_the_configs_of_a_readme_are_followed(tmp_path):
    write(make_rows([BOX, BOX]), tmp_path / "somewhere" / "part.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: testB\n    path: somewhere/*.parquet\n---\n"
    )
    assert len(load_grounding_dataset(str(tmp_path), "testB")) == 2
    with pytest.raises(DataError, match="testB"):
        load_grounding_dataset(str(tmp_path), "test")


def test_a_folder_of_pictures_with_metadata_is_read(tmp_path):
    lines = []
    for index, box in enumerate((BOX, None)):
        PIL.Image.new("RGB", (20, 10)).save(tmp_path / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "expression": "the cup", "bbox": box, "category": "cup"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    dataset = load_grounding_dataset(str(tmp_path), "train")
    assert [dataset[row]["bbox"] for row in range(2)] == [BOX, None]
    assert dataset[1]["category"] == "cup" and dataset[1]["row"] == 1
    with pytest.raises(DataError, match="train"):
        load_grounding_dataset(str(tmp_path), "test")


@pytest.mark.parametrize("name", ["COCO_train2014_{}.png", "test_{}.png", "train/{}.png", "train{}/val.png"])
def test_names_of_pictures_are_no_splits(tmp_path, name):
    lines = []
    for index in range(3):
        file = tmp_path / name.format(index)
        file.parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (20, 10 + index)).save(file)
        lines.append({"file_name": name.format(index), "expression": "the cup", "bbox": BOX, "height": 10 + index})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = load_grounding_dataset(str(tmp_path), "train")
    stream = stream_grounding_dataset(str(tmp_path), "train")
    source = open_source(str(tmp_path))
    assert source.num_rows == 3 and len(list(source.references)) == 3
    for samples in (dataset, list(stream)):
        assert sorted(sample["height"] for sample in samples) == [10, 11, 12]


def test_a_damaged_readme_is_named(tmp_path):
    write(make_rows([BOX]), tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text("---\ntitle: cups: red and blue\n---\n")
    with pytest.raises(DataError, match="metadata at the top of .*README.md"):
        load_grounding_dataset(str(tmp_path), "train")


def test_boxes_may_be_texts_of_numbers(tmp_path):
    write(make_rows([[str(value) for value in BOX]]), tmp_path / "train.parquet")
    assert load_grounding_dataset(str(tmp_path), "train")[0]["bbox"] == BOX


def test_what_does_not_exist_is_named():
    with pytest.raises(DataError, match="there is no such folder"):
        load_grounding_dataset("nowhere/such", "test")
    with pytest.raises(DataError, match="known are train"):
        load_grounding_dataset("scenes", "testA", num_samples=1)
    with pytest.raises(DataError, match="how many"):
        load_grounding_dataset("scenes", "test")
    with pytest.raises(DataError, match="'stop' or 'skip'"):
        load_grounding_dataset("scenes", "test", num_samples=1, on_error="ignore")


def test_missing_columns_are_named(tmp_path):
    write(make_rows([BOX]).rename_column("bbox", "box"), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"lacks the columns \['bbox'\]; it has \['image', 'expression', 'box'\]"):
        load_grounding_dataset(str(tmp_path), "test")


@pytest.mark.parametrize(
    "box, reason",
    [
        (BOX, None),
        (None, None),
        ([-0.4, 0, 20.4, 10], None),
        ([0, 0, 21, 10], "not .* within its picture of 20 x 10"),
        ([-3, 0, 5, 5], "within its picture"),
        ([5, 5, 5, 8], "no area"),
        ([8, 5, 5, 8], "no area"),
        ([20, 0, 20.4, 10], "no area"),
        ([0, 0, float("nan"), 5], "NaN"),
        ([0, 0, 5, float("inf")], "NaN or infinity"),
        ([0, 0, 5], "not four numbers"),
        ([0, 0, 5, None], "not four numbers"),
    ],
)
def test_senseless_boxes_are_told(box, reason, processor):
    found = find_box_problem(box, 20, 10)
    if reason is None:
        assert found is None
        processor.boxes_to_labels([box], [(10, 20)])
    else:
        assert re.search(reason, found)
        with pytest.raises(ValueError):
            processor.boxes_to_labels([box], [(10, 20)])


def test_bad_rows_stop_the_work_or_are_left_out(tmp_path, monkeypatch):
    rows = make_rows(
        [BOX, [0, 0, float("nan"), 5], BOX, [0, 0, 30, 5]],
        expression=["a", "b", " ", "d"],
        width=[20] * 4,
        height=[10] * 4,
    )
    write(rows, tmp_path / "test.parquet")
    with pytest.raises(DataError) as error:
        load_grounding_dataset(str(tmp_path), "test")
    assert "3 of 4 rows" in str(error.value)
    for place in ("row 1, column 'bbox'", "row 2, column 'expression'", "row 3, column 'bbox'"):
        assert place in str(error.value)
    warnings = []
    monkeypatch.setattr("grounding.data.logger.warning", warnings.append)
    dataset = load_grounding_dataset(str(tmp_path), "test", on_error="skip")
    assert len(warnings) == 1 and warnings[0].startswith("Left out 3 of 4 rows; the first: row 1, column 'bbox'")
    assert [sample["row"] for sample in dataset] == [0]
    assert [problem.row for problem in dataset.problems] == [1, 2, 3]
    assert len(load_grounding_dataset(str(tmp_path), "test", num_samples=1)) == 1


def spoil(rows: datasets.Dataset, row: int) -> datasets.Dataset:
    """Cut the file of a picture in the middle."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    images = [dict(image) for image in rows["image"]]
    images[row]["bytes"] = images[row]["bytes"][:40]
    return rows.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())


def test_unreadable_pictures_stop_the_work_or_are_dropped(tmp_path, processor):
    # no columns width and height: that the last box is outside of its picture shows when that is decoded
    write(spoil(make_rows([BOX, BOX, [0, 0, 30, 5]]), 1), tmp_path / "test.parquet")
    samples = list(load_grounding_dataset(str(tmp_path), "test"))
    with pytest.raises(DataError, match="row 1, column 'image': cannot decode"):
        GroundingCollator(processor)(samples)
    batch = GroundingCollator(processor, on_error="skip", keep_samples=True)(samples)
    assert [sample["row"] for sample in batch["samples"]] == [0]
    assert [(problem.row, problem.column) for problem in batch["problems"]] == [(1, "image"), (2, "bbox")]
    assert batch["input_ids"].shape[0] == batch["labels"].shape[0] == 1
    assert "samples" not in GroundingCollator(processor, on_error="skip")(samples)


def test_a_batch_without_usable_samples_is_empty_or_an_error(tmp_path, processor):
    write(spoil(make_rows([BOX]), 0), tmp_path / "test.parquet")
    samples = list(load_grounding_dataset(str(tmp_path), "test"))
    batch = GroundingCollator(processor, on_error="skip", keep_samples=True)(samples)
    assert batch["samples"] == [] and len(batch["problems"]) == 1 and "pixel_values" not in batch
    with pytest.raises(DataError, match="No sample of a batch"):
        GroundingCollator(processor, on_error="skip")(samples)


def test_long_expressions_are_cut_and_told(tmp_path, processor):
    write(make_rows([BOX, None], expression=["the red circle " * 9, "the red circle"]), tmp_path / "test.parquet")
    batch = GroundingCollator(processor, keep_samples=True)(list(load_grounding_dataset(str(tmp_path), "test")))
    assert batch["input_ids"].shape[1] == 12
    assert [sample["truncated"] for sample in batch["samples"]] == [True, False]
    assert [sample["width"] for sample in batch["samples"]] == [20, 20]
    assert torch.isnan(batch["labels"]).all(1).tolist() == [False, True]


@pytest.mark.parametrize("num_pictures", (1, 2, 6))
def test_shared_pictures_are_encoded_once_and_spread_for_the_model(processor, num_pictures):
    pictures = [picture(40 + 8 * number, 40, seed=number) for number in range(num_pictures)]
    samples = [
        {"row": row, "image": pictures[row % num_pictures].copy(), "expression": words, "bbox": [1, 2, 30, 30 + row]}
        for row, words in enumerate(["red", "the blue disc", "box", "ring", "left", "star"])
    ]
    expected = processor(
        images=[sample["image"] for sample in samples],
        text=[sample["expression"] for sample in samples],
        boxes=[sample["bbox"] for sample in samples],
        return_tensors="pt",
    )
    shared = GroundingCollator(processor, share_pictures=True)(samples)
    assert len(shared["pixel_values"]) == num_pictures
    for batch in (spread_pictures(shared), GroundingCollator(processor)(samples)):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_columns_and_boxes_may_have_other_names_and_forms(tmp_path):
    theirs = {"image": "img", "expression": "caption", "bbox": "region"}
    rows = make_rows([[2, 3, 10, 6], None], bbox_of=[1, 2]).rename_columns(theirs)
    write(rows, tmp_path / "test.parquet")
    dataset = load_grounding_dataset(str(tmp_path), "test", columns=theirs, bbox_format="xywh")
    assert [sample["bbox"] for sample in dataset] == [BOX, None]
    assert dataset[0]["expression"] == "circle 0" and "bbox_of" not in dataset[0]
    check_boxes_in_pictures(dataset)
    with pytest.raises(DataError, match="--image_column"):
        load_grounding_dataset(str(tmp_path), "test")
    with pytest.raises(DataError, match="`bbox_format` must be one of"):
        load_grounding_dataset(str(tmp_path), "test", columns=theirs, bbox_format="cxcywh")


def test_boxes_in_another_form_are_noticed(tmp_path):
    # (x, y, width, height): some of them have no area as corners
    write(make_rows([[1, 1, 9, 5], [12, 2, 6, 6], [3, 4, 10, 3]]), tmp_path / "corners.parquet")
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match="All boxes make sense as xywh"):
            load_grounding_dataset(str(tmp_path), "corners", on_error=on_error)
    # corners, taken for (x, y, width, height): only the pictures tell
    write(make_rows([[1, 1, 9, 5], [12, 2, 18, 8], [3, 4, 13, 7]]), tmp_path / "sizes.parquet")
    dataset = load_grounding_dataset(str(tmp_path), "sizes", bbox_format="xywh")
    with pytest.raises(DataError, match="2 of 3 rows.*\n.*\n.*\nAll boxes make sense as xyxy"):
        check_boxes_in_pictures(dataset)
    # a stream is told by its first rows
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match="All boxes make sense as xyxy"):
            stream_grounding_dataset(str(tmp_path), "sizes", bbox_format="xywh", on_error=on_error)
    # one mistake in many is a mistake
    write(make_rows([BOX] * 30 + [[12, 2, 6, 6]]), tmp_path / "mistake.parquet")
    with pytest.raises(DataError) as error:
        load_grounding_dataset(str(tmp_path), "mistake")
    assert "xywh" not in str(error.value)
    assert len(load_grounding_dataset(str(tmp_path), "mistake", on_error="skip")) == 30


def test_relative_boxes_are_noticed(tmp_path):
    for form, box in (("xyxy", [0.1, 0.2, 0.5, 0.6]), ("xywh", [0.5, 0.5, 0.5, 0.5])):
        write(make_rows([None, box, [0, 0, 1, 1]]), tmp_path / "unit.parquet")
        dataset = load_grounding_dataset(str(tmp_path), "unit", bbox_format=form)
        with pytest.raises(DataError, match="relative to their pictures"):
            check_boxes_in_pictures(dataset)
        with pytest.raises(DataError, match="relative to their pictures"):
            stream_grounding_dataset(str(tmp_path), "unit", bbox_format=form, on_error="skip")
    # one tiny object among others is none
    write(make_rows([[0, 0, 1, 1], BOX]), tmp_path / "tiny.parquet")
    check_boxes_in_pictures(load_grounding_dataset(str(tmp_path), "tiny"))


@pytest.mark.parametrize("sizes", [{"width": ["20", "20"]}, {"width": [5, 5], "height": [4, 4]}], ids=str)
def test_columns_that_tell_of_something_else_make_no_box_bad(tmp_path, sizes):
    write(make_rows([BOX, [1, 1, 99, 9]], **sizes), tmp_path / "test.parquet")
    rows = stream_grounding_dataset(str(tmp_path), "test", on_error="skip")
    assert BOX in [sample["bbox"] for sample in rows]
    if "height" in sizes:
        with pytest.raises(DataError, match="row 1, .* within its picture of 20 x 10 pixels"):
            load_grounding_dataset(str(tmp_path), "test")
        assert load_grounding_dataset(str(tmp_path), "test", on_error="skip").indices == [0]


def test_columns_of_something_else_are_named(tmp_path):
    write(make_rows([BOX], number=[1]), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="'number' holds no pictures but"):
        load_grounding_dataset(str(tmp_path), "test", columns={"image": "number"})
    with pytest.raises(DataError, match="'number' holds no pictures but"):
        open_source(str(tmp_path), split="test", image_column="number")
    with pytest.raises(DataError, match="are three columns"):
        load_grounding_dataset(str(tmp_path), "test", columns={"image": "expression"})
    with pytest.raises(DataError, match="are two columns"):
        open_source(str(tmp_path), split="test", image_column="expression")


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Cannot write to the folder"):
        make_folder(tmp_path / "file" / "results")


def test_sizes_of_pictures_are_those_of_upright_ones():
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.new("RGB", (20, 10)).save(buffer, "jpeg", exif=exif)
    assert read_picture_size({"path": None, "bytes": buffer.getvalue()}) == {"width": 10, "height": 20}
    assert read_picture_size({"path": None, "bytes": b"no picture"}) == {}
    assert read_picture_size(None) == {}
    assert read_picture_size({"path": "nowhere.png", "bytes": None}) == {}


def test_lists_of_expressions_are_told(tmp_path):
    write(make_rows([BOX], expression=[["the cup", "the mug"]]), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="'expression' holds lists. Make a row of every expression"):
        load_grounding_dataset(str(tmp_path), "test")


@pytest.mark.parametrize("columns", [("image",), ("image_id",), ("image", "some ids")], ids=str)
def test_held_out_pictures_are_not_trained_on(tmp_path, columns):
    ids = [f"picture {row // 2}" for row in range(12)]
    values = {
        "image": ("image", [PIL.Image.new("RGB", (20, 10), (row // 2, 0, 0)) for row in range(12)]),
        "image_id": ("image_id", ids),
        "some ids": ("image_id", [name if row < 4 else None for row, name in enumerate(ids)]),
    }
    rows = make_rows([BOX] * 12, **dict(values[column] for column in columns))
    write(rows, tmp_path / "train.parquet")
    dataset = load_grounding_dataset(str(tmp_path), "train")
    train, validation = split_by_picture(dataset, 0.3, seed=1)
    held_out = {ids[sample["row"]] for sample in validation}
    assert len(validation) == 4 and len(held_out) == 2
    assert {ids[sample["row"]] for sample in train} == set(ids) - held_out
    assert split_by_picture(dataset, 0.3, seed=1)[1].indices == validation.indices
    assert len({tuple(split_by_picture(dataset, 0.3, seed)[1].indices) for seed in range(5)}) > 1
    with pytest.raises(DataError, match="at least two"):
        split_by_picture(load_grounding_dataset(str(tmp_path), "train", num_samples=1), 0.5)
    with pytest.raises(DataError, match="between 0 and 1"):
        split_by_picture(dataset, 1.5)


def test_a_run_with_another_seed_holds_out_the_same_pictures(tmp_path):
    """Or a run that is resumed with it would be judged by pictures that it was trained on."""
    write(make_rows([BOX] * 12), tmp_path / "train.parquet")
    args = GroundingArguments(model_name_or_path="", dataset=str(tmp_path), train_val_split=0.3)
    held_out = [load_datasets(args, seed, num_scenes=0)[1].indices for seed in range(5)]
    assert len(held_out[0]) == 4 and all(indices == held_out[0] for indices in held_out)


def test_a_stream_gives_the_same_samples(tmp_path):
    boxes = [[1, 1, 2 + index % 9, 5] for index in range(20)]
    write(make_rows(boxes), tmp_path / "data" / "train-00000-of-00001.parquet")
    plain = load_grounding_dataset(str(tmp_path), "train", bbox_format="xywh")
    stream = stream_grounding_dataset(str(tmp_path), "train", bbox_format="xywh", seed=3)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        samples = list(stream)
        orders.append([sample["row"] for sample in samples])
        assert sorted(orders[-1]) == list(range(20)) and samples[0]["epoch"] == epoch
        for sample in samples:
            assert {**sample, "epoch": 0} == plain[sample["row"]]
    assert orders[0] == orders[2] != orders[1]

    taken = take_samples(stream_grounding_dataset(str(tmp_path), "train", bbox_format="xywh"), 5)
    assert [taken[index] for index in range(len(taken))] == [plain[index] for index in range(5)]
    with pytest.raises(DataError, match=r"lacks the columns \['box'\]"):
        stream_grounding_dataset(str(tmp_path), "train", columns={"bbox": "box"})
    assert len(list(stream_grounding_dataset(str(tmp_path), "train", num_samples=4))) == 4


def test_bad_rows_of_a_stream_stop_it_or_are_left_out(tmp_path):
    write(make_rows([BOX, [9, 9, 1, 1], BOX]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="row 1, column 'bbox'"):
        list(stream_grounding_dataset(str(tmp_path), "train"))
    rows = [sample["row"] for sample in stream_grounding_dataset(str(tmp_path), "train", on_error="skip")]
    assert rows == [0, 2]
    with pytest.raises(DataError, match="no usable row"):
        take_samples(stream_grounding_dataset(str(tmp_path), "train", num_samples=0), 5)
