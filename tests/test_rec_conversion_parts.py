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
"""Pickles that execute nothing, masks, known counts, and leakage."""

import json
import pickle
import shutil
import sys
from collections import OrderedDict
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rec_miniature import (
    arguments,
    compress,
    file_name,
    make_instances,
    python2_pickle,
    render,
    write_images,
    write_refer,
)

from conversion import convert_rec_dataset, leakage, splits
from conversion.convert_rec_dataset import ConversionError, convert
from conversion.masks import decode_rle, encode_mask
from conversion.rec_formats import vlm_r1
from conversion.rec_formats.records import ReadOptions
from conversion.restricted_pickle import load_plain_pickle


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "train2014")


class Hostile:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_hostile_pickle_does_nothing(tmp_path, images, protocol):
    target = tmp_path / "executed"
    write_refer(tmp_path / "mini")
    for hostile in (Hostile(open, str(target), "w"), Hostile(eval, f"open({str(target)!r}, 'w')")):
        (tmp_path / "mini" / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": hostile}], protocol=protocol))
        with pytest.raises(ConversionError, match="only plain data is admitted"):
            convert(arguments(tmp_path, images))
        assert not target.exists()


def test_plain_pickles_of_every_protocol(tmp_path):
    value = [{"a": (1, 2.5, True, None), "b": {1, 2}, "c": OrderedDict(d="é"), "e": 2**70, "f": frozenset("g")}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "plain.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_plain_pickle(tmp_path / "plain.p") == value
    (tmp_path / "python2.p").write_bytes(python2_pickle([{"word": "café", "number": -3}]))
    assert load_plain_pickle(tmp_path / "python2.p") == [{"word": "café", "number": -3}]


@pytest.mark.parametrize("content", [b"", b"\x80\x02](", b"no pickle at all", b"\x80\x02K\x01"])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "damaged.p").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError):
        load_plain_pickle(tmp_path / "damaged.p")


def test_run_lengths_and_polygons_agree():
    expected = np.zeros((30, 50), dtype=np.uint8)
    expected[5:21, 10:41] = 255
    runs, columns = np.unique(np.diff(expected.T.ravel() > 0).nonzero()[0] + 1), expected.size
    counts = np.diff([0, *runs, columns]).tolist()
    for rle in ({"counts": counts, "size": [30, 50]}, {"counts": compress(counts), "size": [30, 50]}):
        assert np.array_equal(decode_rle(rle, 50, 30), expected)
        assert np.array_equal(np.asarray(Image.open(BytesIO(encode_mask([rle], 50, 30)))), expected)
    polygon = [[10, 5, 40, 5, 40, 20, 10, 20]]
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_mask(polygon, 50, 30)))), expected)


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3]], ["x"], {"counts": [5, 5], "size": [30, 50]}, {"counts": "o", "size": [50, 30]}]
)
def test_bad_segmentations(segmentation):
    with pytest.raises(ValueError):
        encode_mask(segmentation, 50, 30)


def test_masks_are_a_column_of_pictures(tmp_path, images):
    instances = make_instances()
    del instances["annotations"][3]["segmentation"]
    source = write_refer(tmp_path / "mini", instances=instances)
    convert(arguments(tmp_path, images, source, with_masks=True))
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert loaded["val"][0]["mask"] is None
    mask = np.asarray(loaded["testA"][0]["mask"])
    assert mask.shape == (30, 90) and mask[10, 80] == 255 and mask[25, 61] == 0

    instances["annotations"][0]["segmentation"] = [[1, 2]]
    source = write_refer(tmp_path / "broken", instances=instances)
    args = arguments(tmp_path, images, source, with_masks=True, on_error="skip", output=str(tmp_path / "out2"))
    assert convert(args).counts["train"]["broken segmentation"] == 2


@pytest.mark.parametrize(
    "path, dataset, split",
    [
        ("ref.coco_val.json", None, "val"),
        ("mini.json", "refcocog.val", "val"),
        ("mini_val.json", "refcoco_testA", "testA"),
        ("mini_test.json", "refcoco.v1", "test"),
    ],
)
def test_names_with_dots_tell_their_split(tmp_path, path, dataset, split):
    sample = {"image": "1.jpg", "normal_caption": "a cup", "solution": None, "width": 4, "height": 4}
    (tmp_path / path).write_text(json.dumps([sample if dataset is None else {**sample, "dataset": dataset}]))
    (record,) = vlm_r1.read_records(str(tmp_path / path), ReadOptions())
    assert record.split == split


def test_the_table_of_known_splits_adds_up():
    totals = {
        name: [sum(split[column] for split in known.values()) for column in (0, 1)]
        for name, known in splits.KNOWN_SPLITS.items()
        if all(split[0] for split in known.values())
    }
    assert totals == {"refcoco_unc": [142210, 50000], "refcoco+_unc": [141564, 49856], "refcocog_umd": [95010, 49822]}
    # google cut the same refs in another way
    for name in ("refcoco", "refcocog"):
        refs = sum(split[1] for split in splits.KNOWN_SPLITS[f"{name}_google"].values())
        assert refs == totals[{"refcoco": "refcoco_unc", "refcocog": "refcocog_umd"}[name]][1]


def test_verify_compares_with_known_counts(tmp_path, images, monkeypatch, capsys):
    source, out = write_refer(tmp_path / "mini")[0], tmp_path / "out"
    known = {"train": (6, 3, 2), "val": (1, 1, 1), "testA": (None, 1, 1), "testB": (5, 5, 5)}
    monkeypatch.setattr(splits, "KNOWN_SPLITS", {"mini_unc": known})
    command = f"convert --format refer --annotations {source} --split_by unc --images {images} --output {out} --verify"
    monkeypatch.setattr(sys, "argv", command.split())
    convert_rec_dataset.main()
    assert "mini_unc train: expressions 6 as known, refs 3 as known" in (printed := capsys.readouterr().out)
    assert "testA: expressions 2 (not compared)" in printed and "testB: not converted" in printed

    known["val"] = (2, 1, 1)
    with pytest.raises(SystemExit, match="not the genuine"):
        convert_rec_dataset.main()
    assert "val: expressions 1 where 2 are known" in capsys.readouterr().out
    monkeypatch.setattr(splits, "KNOWN_SPLITS", {"another": known})
    with pytest.raises(SystemExit, match="--source"):
        convert_rec_dataset.main()


def test_pictures_that_train_and_test_are_found(tmp_path, images, monkeypatch, capsys):
    convert(arguments(tmp_path, images))
    training = tmp_path / "training"
    training.mkdir()
    # the same id under COCO's later name, whatever it shows
    render(7).save(training / "000000000300.jpg")
    # the same picture, smaller, darker and compressed, under another name
    copy = render(4123).resize((60, 20)).point(lambda value: value * 0.8)
    copy.save(training / "holiday.jpg", quality=60)
    (training / "notes.txt").write_text("no picture")
    report = leakage.find_leaks([str(training)], [str(tmp_path / "out")], "train", 6)
    out = str(tmp_path / "out")
    assert report[f"{out} val"] == {"pictures": 1, "same_id": ["300"], "same_look": {}}
    assert report[f"{out} testA"] == {"pictures": 1, "same_id": [], "same_look": {"4123": "holiday.jpg"}}
    assert f"{out} train" not in report

    # RefCOCO's own splits don't leak into each other
    command = f"leakage --train {out} --evaluation {out} --output {tmp_path / 'report.json'}"
    monkeypatch.setattr(sys, "argv", command.split())
    leakage.main()
    assert "val: 0 of 1 pictures" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())[f"{out} testA"]["pictures"] == 1


def test_pictures_that_cannot_be_decoded_are_compared_by_id(tmp_path, images, capsys):
    convert(arguments(tmp_path, images))
    training = tmp_path / "training"
    shutil.copytree(images, training / "backup")
    (training / "000000000300.jpg").write_bytes(b"cut off")
    (training / "notes.pdf").write_bytes(b"%PDF")
    (training / "a.jpg").write_bytes((images / file_name(4123)).read_bytes())
    shutil.copy(training / "a.jpg", training / "backup" / "a.jpg")
    out = str(tmp_path / "out")
    report = leakage.find_leaks([str(training)], [out], "train", 6)
    assert report[f"{out} val"]["same_id"] == ["300"]
    errors = capsys.readouterr().err
    assert "300 is compared by its id only" in errors and "notes.pdf is compared by its id only" in errors


def test_leakage_looks_at_its_arguments_first(tmp_path, images, monkeypatch):
    convert(arguments(tmp_path, images))
    monkeypatch.setattr(leakage, "perceptual_hash", lambda content: pytest.fail("pictures were read"))
    (tmp_path / "scenes" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"image": [1]}), tmp_path / "scenes" / "data" / "train-0.parquet")
    for train, evaluation, message in (
        (images, "nowhere", "nowhere is no converted data set"),
        (images, tmp_path / "scenes", r"lacks the columns \['image_id', 'split'\]"),
        (tmp_path / "nowhere", tmp_path / "out", "no folder or zip file"),
    ):
        with pytest.raises(ValueError, match=message):
            leakage.find_leaks([str(images), str(train)], [str(evaluation)], "train", 6)
    command = f"leakage --train {images} --evaluation {tmp_path / 'out'} --output {tmp_path / 'no' / 'report.json'}"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match="no folder for --output"):
        leakage.main()


def test_leakage_needs_data(tmp_path, images):
    convert(arguments(tmp_path, images))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No picture to train on"):
        leakage.find_leaks([str(tmp_path / "empty")], [str(tmp_path / "out")], "train", 6)
    with pytest.raises(ValueError, match="no converted data set"):
        leakage.find_leaks([str(images)], [str(tmp_path / "empty")], "train", 6)
