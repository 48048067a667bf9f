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
"""Every form of the same small data set becomes the same rows; bad input is named, and never half converted."""

import json
import sys
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from grounding.data import load_grounding_dataset
from PIL import Image
from rec_miniature import (
    CATEGORIES,
    COMPARED,
    NUM_SENTENCES,
    PICTURES,
    WRITERS,
    annotation_id,
    arguments,
    by_sentence,
    compress,
    file_name,
    jpeg,
    make_instances,
    make_refs,
    python2_pickle,
    read_rows,
    sentences,
    write_images,
    write_mdetr,
    write_refer,
    xyxy,
)

from conversion import convert_rec_dataset, shards
from conversion.convert_rec_dataset import Arguments, ConversionError, convert
from conversion.rec_formats import FORMATS
from conversion.rec_formats.records import SEVERAL_TARGETS, FormatError
from conversion.shards import INCOMPLETE


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "train2014")


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_rows(tmp_path, images, name):
    write, form = WRITERS[name]
    args = arguments(tmp_path, images, write(tmp_path / "source"), format=form, source="mini")
    convert(args)
    rows = by_sentence(read_rows(tmp_path / "out"))
    assert len(rows) == NUM_SENTENCES
    for _, _, picture, _, box, split, text in sentences():
        width, height = PICTURES[picture][0]
        expected = dict(zip(COMPARED, (str(picture), width, height, text, xyxy(box), split, "mini")))
        assert {key: rows[text][key] for key in COMPARED} == expected
        assert rows[text]["image"]["bytes"] == jpeg(picture)


@pytest.mark.parametrize("name", ["refer", "jxu124"])
def test_ids_are_kept(tmp_path, images, name):
    write, form = WRITERS[name]
    convert(arguments(tmp_path, images, write(tmp_path / "source"), format=form))
    rows = by_sentence(read_rows(tmp_path / "out"))
    for number, ref, *_, text in sentences():
        assert (rows[text]["ref_id"], rows[text]["sentence_id"]) == (str(ref), str(number))


@pytest.mark.parametrize("name", ["refer", "mdetr"])
def test_categories_have_names(tmp_path, images, name):
    write, form = WRITERS[name]
    convert(arguments(tmp_path, images, write(tmp_path / "source"), format=form))
    rows = by_sentence(read_rows(tmp_path / "out"))
    assert all(rows[text]["category"] == CATEGORIES[category] for _, _, _, category, _, _, text in sentences())


def test_folder_and_zip_of_pictures_are_the_same(tmp_path, images):
    archive = tmp_path / "train2014.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for picture in images.iterdir():
            file.write(picture, f"train2014/{picture.name}")
    convert(arguments(tmp_path, images))
    convert(arguments(tmp_path, archive, output=str(tmp_path / "zipped")))
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "zipped")


def test_pictures_behind_links_are_found_once(tmp_path, images):
    folder = tmp_path / "data"
    (folder / "coco").mkdir(parents=True)
    (folder / "coco" / "train2014").symlink_to(images)
    (folder / "coco" / "again").symlink_to(folder)
    convert(arguments(tmp_path, images))
    convert(arguments(tmp_path, folder, output=str(tmp_path / "linked")))
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "linked")


def test_datasets_reads_it(tmp_path, images, monkeypatch, capsys):
    source, out = str(write_refer(tmp_path / "mini")[0]), str(tmp_path / "out")
    command = f"convert --format refer --annotations {source} --split-by unc --images {images} --output {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    convert_rec_dataset.main()
    assert "testA: 2 converted" in capsys.readouterr().out
    for loaded in (
        datasets.load_dataset("parquet", data_dir=out, cache_dir=str(tmp_path / "cache")),
        # as the Hub would read it, by the card
        datasets.load_dataset(out, cache_dir=str(tmp_path / "cache")),
    ):
        assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "val": 1, "testA": 2}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    samples = load_grounding_dataset(out, "testA")
    assert len(samples) == 2 and samples[0]["bbox"] == [60.0, 5.0, 90.0, 30.0]


def test_a_picture_is_stored_once_in_a_shard(tmp_path, images):
    refs = make_refs()[:1]
    refs[0]["sentences"] = [{"sent_id": number, "sent": f"dog {number}"} for number in range(200)]
    convert(arguments(tmp_path, images, write_refer(tmp_path / "mini", refs)))
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert len(read_rows(tmp_path / "out")) == 200
    assert file.stat().st_size < 20 * len(jpeg(7))


def test_no_target_is_null_and_several_targets_are_left_out(tmp_path, images):
    refs = make_refs()
    refs[0].update(ann_id=[-1], category_id=[-1], no_target=True)
    refs[1].update(ann_id=[annotation_id(0), annotation_id(1)], category_id=[18, 1])
    refs[2].update(ann_id=[annotation_id(2)], category_id=[1])
    write_refer(tmp_path / "grefcoco")
    (tmp_path / "grefcoco" / "refs(unc).p").unlink()
    (tmp_path / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))
    # several targets are no error, so they don't stop
    writer = convert(arguments(tmp_path, images, [str(tmp_path / "grefcoco")], on_error="stop"))
    rows = by_sentence(read_rows(tmp_path / "out"))
    assert rows["the red dog"]["bbox"] is None and rows["her"]["bbox"] == [0.0, 10.0, 25.5, 72.0]
    assert "a man" not in rows and writer.counts["train"][SEVERAL_TARGETS] == 1
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert [row["bbox"] for row in loaded["train"]][:2] != [None, [0.0] * 4]


def test_no_target_in_other_forms(tmp_path, images):
    width, height = PICTURES[7][0]
    picture = {"width": width, "height": height}
    odvg = {**picture, "filename": file_name(7), "grounding": {"caption": "a cat", "regions": []}}
    vlm_r1 = {**picture, "image": file_name(7), "normal_caption": "a cat", "solution": None}
    image = {**picture, "id": 0, "file_name": file_name(7), "caption": "a cat", "original_id": 7, "dataset_name": "m"}
    empty = {"image_id": 0, "category_id": -1, "bbox": [0, 0, 0, 0], "empty": True}
    contents = {"odvg": odvg, "vlm-r1": [vlm_r1], "mdetr": {"images": [image], "annotations": [empty]}}
    for form, content in contents.items():
        file = tmp_path / f"{form}_test.json"
        file.write_text(json.dumps(content))
        convert(arguments(tmp_path, images, [str(file)], format=form, output=str(tmp_path / f"out_{form}")))
        (row,) = read_rows(tmp_path / f"out_{form}")
        assert (row["expression"], row["bbox"], row["split"]) == ("a cat", None, "test")


def test_phrases_of_an_odvg_caption(tmp_path, images):
    regions = [
        {"bbox": [1, 2, 10, 20], "phrase": "a man"},
        {"bbox": [[5, 5, 9, 9]], "phrase": "a hat"},
        {"bbox": [[0, 0, 4, 4], [8, 8, 12, 12]], "phrase": "two dogs"},
    ]
    grounding = {"caption": "a man with a hat and two dogs", "regions": regions}
    (tmp_path / "x_train.jsonl").write_text(
        json.dumps({"filename": file_name(7), "width": 64, "height": 48, "grounding": grounding}) + "\n"
    )
    writer = convert(arguments(tmp_path, images, [str(tmp_path / "x_train.jsonl")], format="odvg"))
    rows = by_sentence(read_rows(tmp_path / "out"))
    assert {text: row["bbox"] for text, row in rows.items()} == {"a man": [1, 2, 10, 20], "a hat": [5, 5, 9, 9]}
    assert writer.counts["train"] == {"converted": 2, SEVERAL_TARGETS: 1}


def test_referitgame(tmp_path):
    """Its ids are strings, its masks run lengths, and its pictures lie in folders of their own."""
    pictures = tmp_path / "saiapr_tc-12" / "08" / "images"
    pictures.mkdir(parents=True)
    (pictures / "8756.jpg").write_bytes(jpeg(300))
    counts = [56 * 56 - 56 * 3, 56 * 3]  # the last 3 columns
    annotation = {"id": "8756_2", "image_id": 8756, "category_id": 5, "bbox": [53, 0, 3, 56]}
    segmentation = [{"size": [56, 56], "counts": compress(counts)}]
    ref = {"ref_id": 1, "ann_id": "8756_2", "image_id": 8756, "split": "test", "file_name": "8756_2.jpg"}
    sentence = {"sent_id": 3, "sent": "right edge", "raw": "Right edge", "tokens": ["right", "edge"]}
    folder = tmp_path / "refclef"
    instances = {"images": [{"id": 8756, "file_name": "8756.jpg", "width": 56, "height": 56}]}
    instances |= {"annotations": [{**annotation, "segmentation": segmentation}]}
    write_refer(folder, [], {**instances, "categories": [{"id": 5, "name": "wall"}]})
    (folder / "refs(berkeley).p").write_bytes(python2_pickle([{**ref, "sentences": [sentence]}]))
    source = [str(folder)]
    convert(arguments(tmp_path, tmp_path / "saiapr_tc-12", source, split_by="berkeley", with_masks=True))
    (row,) = read_rows(tmp_path / "out")
    assert (row["source"], row["split"], row["category"]) == ("refclef_berkeley", "test", "wall")
    mask = np.asarray(Image.open(BytesIO(row["mask"]["bytes"])))
    assert mask[:, 53:].all() and not mask[:, :53].any()

    for split_by in (None, "google"):
        with pytest.raises(FormatError, match=r"say which of \['refs\(berkeley|neither refs\(google\).p"):
            convert(arguments(tmp_path, tmp_path, source, split_by=split_by, output=str(tmp_path / "none")))
    with pytest.raises(FormatError, match="split by berkeley, not by unc"):
        convert(arguments(tmp_path, tmp_path, [f"{folder}/refs(berkeley).p"], split_by="unc"))
    (folder / "instances.json").unlink()
    with pytest.raises(FormatError, match="no instances.json"):
        convert(arguments(tmp_path, tmp_path, source, output=str(tmp_path / "none")))


def spoil_picture(refs, instances, images):
    (images / file_name(20)).unlink()


def spoil_picture_contents(refs, instances, images):
    (images / file_name(20)).write_bytes(jpeg(20)[:200])


def spoil_names(refs, instances, images):
    (images / "copy").mkdir()
    (images / "copy" / file_name(20)).write_bytes(jpeg(20))


def spoil_size(refs, instances, images):
    instances["images"][1].update(width=72, height=40)


def spoil_box(refs, instances, images):
    instances["annotations"][2]["bbox"] = [30, 10, 20, 62]


def spoil_area(refs, instances, images):
    instances["annotations"][2]["bbox"] = [30, 10, 0, 62]


def spoil_number(refs, instances, images):
    instances["annotations"][2]["bbox"] = [30, 10, float("nan"), 62]


def spoil_sentences(refs, instances, images):
    refs[2]["sentences"] = []


def spoil_expression(refs, instances, images):
    refs[2]["sentences"][1]["sent"] = "  "


def spoil_annotation(refs, instances, images):
    refs[2]["ann_id"] = 99


def spoil_record(refs, instances, images):
    del refs[2]["sentences"][1]["sent"]


def spoil_corners(refs, instances, images):
    instances["annotations"][2]["bbox"] = [30, 10, 20]


def spoil_text(refs, instances, images):
    refs[2]["sentences"][1]["sent"] = 5


def spoil_split(refs, instances, images):
    refs[2]["split"] = "../train"


@pytest.mark.parametrize(
    "spoil, kind, lost, number",
    [
        (spoil_picture, "missing picture", 3, 3),
        (spoil_picture_contents, "broken picture", 3, 3),
        (spoil_names, "two pictures with one name", 3, 3),
        (spoil_size, "another picture", 3, 3),
        (spoil_box, "box outside its picture", 3, 3),
        (spoil_area, "box without area", 3, 3),
        (spoil_number, "malformed record", 3, 3),
        (spoil_sentences, "no sentence", 3, 1),
        (spoil_expression, "no sentence", 1, 1),
        (spoil_annotation, "malformed record", 3, 1),
        (spoil_record, "malformed record", 1, 1),
        (spoil_corners, "malformed record", 3, 1),
        (spoil_text, "malformed record", 1, 1),
        (spoil_split, "malformed record", 3, 3),
    ],
)
def test_a_bad_record_is_named_and_skipped_or_stopped_at(tmp_path, images, capsys, spoil, kind, lost, number):
    refs, instances = make_refs(), make_instances()
    spoil(refs, instances, images)
    source = write_refer(tmp_path / "mini", refs, instances)
    args = arguments(tmp_path, images, source, on_error="skip")
    writer = convert(args)
    assert len(read_rows(tmp_path / "out")) == NUM_SENTENCES - lost
    assert sum(counts[kind] for counts in writer.counts.values()) == number
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith(kind)]
    assert len(messages) == number and all("refs(unc).p, ref 2" in message for message in messages)

    args = arguments(tmp_path, images, source, output=str(tmp_path / "stopped"))
    with pytest.raises(ConversionError, match=f"{kind}: .*ref 2"):
        convert(args)
    assert not list((tmp_path / "stopped").rglob("*.parquet"))


def test_a_box_that_was_rounded_over_the_border_is_cut(tmp_path, images):
    instances = make_instances()
    instances["annotations"][4]["bbox"] = [60.0, -0.4, 30.6, 25.0]
    writer = convert(arguments(tmp_path, images, write_refer(tmp_path / "mini", instances=instances)))
    assert by_sentence(read_rows(tmp_path / "out"))["boy"]["bbox"] == [60.0, 0.0, 90.0, 24.6]
    assert writer.counts["testA"] == {convert_rec_dataset.CUT: 2}


def test_a_ref_whose_picture_instances_do_not_know(tmp_path, images):
    """Its file name, less the annotation's id, is enough."""
    instances = make_instances()
    del instances["images"][1]
    convert(arguments(tmp_path, images, write_refer(tmp_path / "mini", instances=instances)))
    assert by_sentence(read_rows(tmp_path / "out"))["her"]["image_id"] == "20"


@pytest.mark.parametrize("form, suffix", [("odvg", "jsonl"), ("ofa", "tsv")])
def test_a_last_line_that_is_cut_off(tmp_path, images, capsys, form, suffix):
    files = WRITERS[form][0](tmp_path / "source")
    (train,) = (file for file in files if "train" in file)
    with open(train, "r+b") as file:
        file.truncate(len(file.read()) - 41)
    writer = convert(arguments(tmp_path, images, files, format=form, on_error="skip"))
    assert writer.counts["train"]["converted"] == 5
    assert f"{train}, line 6" in capsys.readouterr().err


def spoil_annotation_id(content):
    del content["annotations"][1]["image_id"]


def spoil_image_id(content):
    del content["images"][1]["id"]


def spoil_sample(content):
    content[1] = "a sample"


def spoil_dataset(content):
    del content[1]["dataset"]


@pytest.mark.parametrize(
    "form, spoil",
    [
        ("mdetr", spoil_annotation_id),
        ("mdetr", spoil_image_id),
        ("vlm-r1", spoil_sample),
        ("vlm-r1", spoil_dataset),
    ],
)
def test_one_entry_that_its_form_does_not_know(tmp_path, images, form, spoil):
    files = WRITERS[form][0](tmp_path / "source")
    (file,) = (Path(file) for file in files if "train" in file)
    content = json.loads(file.read_text())
    spoil(content)
    # a name that doesn't tell the split, so that the samples have to
    file = file.rename(file.with_name("mini.json") if form == "vlm-r1" else file)
    file.write_text(json.dumps(content))
    writer = convert(arguments(tmp_path, images, [str(file)], format=form, on_error="skip"))
    assert sum(counts["converted"] for counts in writer.counts.values()) == 5
    assert sum(counts["malformed record"] for counts in writer.counts.values()) == 1


def test_an_odvg_line_that_is_not_utf8(tmp_path, images):
    (file,) = (Path(file) for file in WRITERS["odvg"][0](tmp_path / "source") if "train" in file)
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second.replace(b'"caption": "', b'"caption": "caf\xe9 ') + b"".join(rest))
    writer = convert(arguments(tmp_path, images, [str(file)], format="odvg", on_error="skip"))
    assert writer.counts["train"] == {"converted": 5, "malformed record": 1}


def test_an_index_that_its_form_does_not_know(tmp_path, images):
    files = WRITERS["mdetr"][0](tmp_path / "source")
    content = json.loads(Path(files[0]).read_text())
    Path(files[0]).write_text(json.dumps({**content, "categories": 5}))
    with pytest.raises(ConversionError, match=f"unreadable file: {files[0]}: not as its form has it"):
        convert(arguments(tmp_path, images, files, format="mdetr"))


def test_the_name_to_push_to_is_checked_first(tmp_path, images):
    with pytest.raises(ValueError, match="Repo id"):
        convert(arguments(tmp_path, images, push_to_hub="bad name!/x"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mdetr", "vlm-r1", "refer"])
def test_a_json_file_that_is_cut_off(tmp_path, images, name):
    write, form = WRITERS[name]
    source = write(tmp_path / "source")
    (broken,) = list((tmp_path / "source").glob("*train.json")) or [tmp_path / "source" / "instances.json"]
    broken.write_text(broken.read_text()[:-30])
    with pytest.raises(ConversionError, match=f"unreadable file: .*{broken.name}: not a whole JSON file"):
        convert(arguments(tmp_path, images, source, format=form))
    if name != "refer":
        args = arguments(tmp_path, images, source, format=form, on_error="skip", output=str(tmp_path / "skipped"))
        assert convert(args).counts[""] == {"unreadable file": 1}
        assert len(read_rows(tmp_path / "skipped")) == 3


@pytest.mark.parametrize(
    "form, name",
    [(form, name) for form in FORMATS for name, (_, own_form) in WRITERS.items() if form != own_form],
)
def test_a_file_of_another_form(tmp_path, images, form, name):
    write, own_form = WRITERS[name]
    source = write(tmp_path / "source")
    if own_form == "refer":
        source = [str(tmp_path / "source" / "refs(unc).p")]
    elif form == "refer":
        (tmp_path / "source" / "instances.json").write_text(json.dumps(make_instances()))
    with pytest.raises((ConversionError, FormatError), match="source"):
        convert(arguments(tmp_path, images, source, format=form, split="train"))
    assert not (tmp_path / "out" / "data").exists()


def test_a_zip_file_that_is_cut_off(tmp_path, images):
    archive = tmp_path / "train2014.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for picture in images.iterdir():
            file.write(picture, picture.name)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match="train2014.zip is not a whole zip file"):
        convert(arguments(tmp_path, archive))


def test_damage_inside_a_zip_file(tmp_path, images, capsys):
    archive = tmp_path / "train2014.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for picture in sorted(images.iterdir()):
            file.write(picture, picture.name)
    content = bytearray(archive.read_bytes())
    start = content.index(jpeg(20))
    content[start + 100 : start + 110] = bytes(10)
    archive.write_bytes(content)
    assert convert(arguments(tmp_path, archive, on_error="skip")).counts["train"]["broken picture"] == 3
    assert "Bad CRC-32" in capsys.readouterr().err


def test_a_split_that_nothing_tells(tmp_path, images):
    (file,) = (path for path in write_mdetr(tmp_path / "source") if "val" in path)
    unnamed = tmp_path / "source" / "annotations.json"
    unnamed.write_bytes((tmp_path / "source" / file).read_bytes())
    with pytest.raises(ConversionError, match="--split"):
        convert(arguments(tmp_path, images, [str(unnamed)], format="mdetr"))
    convert(arguments(tmp_path, images, [str(unnamed)], format="mdetr", split="val", output=str(tmp_path / "named")))
    assert [row["split"] for row in read_rows(tmp_path / "named")] == ["val"]


def test_pictures_that_were_not_given(tmp_path):
    with pytest.raises(ConversionError, match="--images"):
        convert(Arguments(write_refer(tmp_path / "mini"), str(tmp_path / "out"), format="refer", split_by="unc"))


def test_a_conversion_goes_on_where_it_stopped(tmp_path, images):
    refs = make_refs()
    # the last of train, in the order of pictures
    refs[1]["sentences"][0]["sent"] = ""
    source = write_refer(tmp_path / "mini", refs)
    options = {"annotations": source, "rows_per_shard": 2}
    with pytest.raises(ConversionError, match="no sentence"):
        convert(arguments(tmp_path, images, **options))
    written = sorted((tmp_path / "out" / INCOMPLETE).iterdir())
    assert [shard.name for shard in written] == [
        f"{name}.parquet" for name in ("testA-00000", "train-00000", "train-00001")
    ]
    before = [shard.stat().st_mtime_ns for shard in written]
    with pytest.raises(datasets.data_files.EmptyDatasetError):
        datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))

    writer = convert(arguments(tmp_path, images, on_error="skip", **options))
    whole = convert(arguments(tmp_path, images, on_error="skip", output=str(tmp_path / "at once"), **options))
    assert writer.counts == whole.counts
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "at once")
    names = ("testA-00000-of-00001", "train-00000-of-00003", "train-00001-of-00003")
    moved = [tmp_path / "out" / "data" / f"{name}.parquet" for name in names]
    assert [shard.stat().st_mtime_ns for shard in moved] == before

    # a third run has nothing to do
    again = convert(arguments(tmp_path, images, on_error="skip", **options))
    assert again.counts == whole.counts and [shard.stat().st_mtime_ns for shard in moved] == before


def test_a_crash_leaves_nothing_that_looks_whole(tmp_path, images, monkeypatch):
    write_table, calls = pq.write_table, Counter()

    def crash(table, path, **options):
        calls["shards"] += 1
        if calls["shards"] == 2:
            path.write_bytes(b"PAR1 and then the power went")
            raise KeyboardInterrupt
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", crash)
    with pytest.raises(KeyboardInterrupt):
        convert(arguments(tmp_path, images, rows_per_shard=2))
    assert [path.name for path in (tmp_path / "out").rglob("*.parquet")] == ["train-00000.parquet"]
    monkeypatch.undo()
    convert(arguments(tmp_path, images, rows_per_shard=2))
    assert len(read_rows(tmp_path / "out")) == NUM_SENTENCES
    assert not (tmp_path / "out" / INCOMPLETE).exists()


def test_a_crash_while_shards_are_moved(tmp_path, images, monkeypatch):
    replace, calls = shards.os.replace, Counter()

    def crash(source, target):
        calls["moves"] += target.parent.name == "data"
        if calls["moves"] == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(shards.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        convert(arguments(tmp_path, images))
    monkeypatch.undo()
    writer = convert(arguments(tmp_path, images))
    assert len(read_rows(tmp_path / "out")) == NUM_SENTENCES == sum(sum(c.values()) for c in writer.counts.values())


def test_other_arguments_need_another_folder(tmp_path, images):
    convert(arguments(tmp_path, images))
    with pytest.raises(ValueError, match="'with_masks': True"):
        convert(arguments(tmp_path, images, with_masks=True))
    (tmp_path / "mini" / "instances.json").write_text(json.dumps({**make_instances(), "info": "another file"}))
    with pytest.raises(ValueError, match="sha256"):
        convert(arguments(tmp_path, images))
    with pytest.raises(ValueError, match="not empty"):
        convert(arguments(tmp_path, images, output=str(tmp_path / "mini")))
    with pytest.raises(ValueError, match="at least 1 row"):
        convert(arguments(tmp_path, images, rows_per_shard=0, output=str(tmp_path / "none")))
    next((tmp_path / "out" / "data").iterdir()).unlink()
    (tmp_path / "mini" / "instances.json").write_text(json.dumps(make_instances()))
    with pytest.raises(ValueError, match="has lost"):
        convert(arguments(tmp_path, images))
    (tmp_path / "out" / shards.MANIFEST).write_text('{"arguments": {')
    with pytest.raises(ValueError, match="is damaged; delete"):
        convert(arguments(tmp_path, images))


def test_two_conversions_do_not_write_to_one_folder(tmp_path, images, monkeypatch):
    def convert_again(item):
        with pytest.raises(ValueError, match="Another conversion is writing to"):
            convert(arguments(tmp_path, images))
        return item

    read_all = convert_rec_dataset.read_all
    monkeypatch.setattr(convert_rec_dataset, "read_all", lambda *options: map(convert_again, read_all(*options)))
    convert(arguments(tmp_path, images))
    assert len(read_rows(tmp_path / "out")) == NUM_SENTENCES
    assert not (tmp_path / "out" / shards.LOCK).exists()


def test_push_to_hub_is_private(tmp_path, images, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repository, **options):
            calls.append((repository, options["private"]))

        def upload_folder(self, repo_id, folder_path, **options):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(convert_rec_dataset, "HfApi", Api)
    source = write_refer(tmp_path / "mini")[0]
    command = f"convert --format refer --annotations {source} --split-by unc --images {images} --push-to-hub me/mini"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output", str(tmp_path / "out")])
    convert_rec_dataset.main()
    assert calls == [("me/mini", True), ("me/mini", [".conversion.json", "README.md", "data"])]
