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
"""examples/ground_dataset.py on a tiny model: what it writes, and how it goes on after it was stopped."""

import errno
import json
import shutil
import sys

import datasets
import ground_dataset
import PIL.Image
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from filelock import FileLock
from grounding.parts import PartFiles
from grounding.reader import PartReader, Source, num_coarse_patches
from tiny import picture
from transformers import pipeline

from modeling_scanformer import ScanFormerImageProcessor, VisualGroundingPipeline


SIZES = [(40, 20), (20, 40), (30, 30), (48, 12), (17, 23)]
NUM_ROWS = 22


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures of several shapes, in the order of their names, with boxes for some."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for row in range(NUM_ROWS):
        name = f"{row:02}.png"
        picture(*SIZES[row % len(SIZES)], seed=row).save(folder / name)
        expression = "the large red circle on the left" if row % 2 else "the square"
        rows.append({"file_name": name, "expression": expression, "bbox": [1, 2, 9, 10] if row % 3 else None})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(monkeypatch, checkpoint, pictures):
    """Runs the script as from the command line, and reads what it wrote."""

    def run(output, *arguments, dataset=pictures):
        arguments = ["--model", checkpoint, "--dataset", dataset, "--output", output, *arguments]
        arguments += ["--dataloader_num_workers", 0]
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", ["ground_dataset.py", *map(str, arguments)])
        ground_dataset.main()
        return pq.read_table(output).to_pylist()

    return run


@pytest.fixture
def parts_written(monkeypatch):
    parts = []
    write = PartFiles.write

    def note(self, part, table):
        parts.append(part)
        write(self, part, table)

    monkeypatch.setattr(PartFiles, "write", note)
    return parts


def assert_same(rows, others):
    assert [row["row"] for row in rows] == [row["row"] for row in others]
    for row, other in zip(rows, others):
        assert row["box"] == pytest.approx(other["box"], abs=1e-3)
        assert row["score"] == pytest.approx(other["score"], abs=1e-3)
        assert row["patches_read"] == other["patches_read"] and row["expression"] == other["expression"]


def test_predictions_are_the_pipelines_in_the_order_of_the_rows(run, tmp_path, checkpoint, pictures, parts_written):
    rows = run(tmp_path / "new" / "one.parquet", "--batch_size", 4, "--rows_per_part", 9, "--scale_boxes", "true")
    assert parts_written == [0, 1, 2] and [row["row"] for row in rows] == list(range(NUM_ROWS))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.parquet"]

    pipe: VisualGroundingPipeline = pipeline("visual-grounding", model=str(checkpoint))
    for row, line in zip(rows, (pictures / "metadata.jsonl").read_text().splitlines()):
        source = json.loads(line)
        assert row["expression"] == source["expression"] and row["bbox"] == source["bbox"]
        answer = pipe(str(pictures / source["file_name"]), text=source["expression"], return_scan=True)
        assert [round(value) for value in row["box"]] == pytest.approx(list(answer["box"].values()), abs=1)
        assert row["score"] == pytest.approx(answer["score"], abs=1e-3)
        assert row["scale_scores"] == pytest.approx(answer["scan"]["scores"], abs=1e-3)
        grids = answer["scan"]["selection"]
        share = sum(grid.sum() for grid in grids) / sum(grid.size for grid in grids)
        assert row["patches_read"] == pytest.approx(share) and row["box"] == row["scale_boxes"][-1]
        assert row["truncated"] is False and row["error"] is None

    # one by one, in the order of the rows
    assert_same(run(tmp_path / "two.parquet", "--batch_size", 1, "--rows_per_part", 1), rows)


def test_a_stopped_run_goes_on_where_it_was(run, tmp_path, pictures, parts_written, capsys):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    broken = folder / "13.png"
    broken.write_bytes(broken.read_bytes()[:60])
    output, arguments = tmp_path / "out.parquet", ["--rows_per_part", 5]
    with pytest.raises(SystemExit, match="^error: A sample .* row 13, column 'image': cannot decode"):
        run(output, *arguments, dataset=folder)
    assert parts_written == [0, 1] and not output.exists()

    # as if killed while it wrote
    (tmp_path / "out.parts" / "part-000002.partial").write_bytes(b"PAR1")
    parts_written.clear()
    with FileLock(tmp_path / "out.parts" / "lock"), pytest.raises(SystemExit, match="^error: Another run is at work"):
        run(output, *arguments, dataset=folder)
    rows = run(output, *arguments, "--on_error", "skip", "--batch_size", 3, dataset=folder)
    assert parts_written == [2, 3, 4] and not (tmp_path / "out.parts").exists()
    assert rows[13]["box"] is None and rows[13]["error"].startswith("image: cannot decode")
    assert "This run grounded 12 of them, 1 of which cannot be used" in capsys.readouterr().out
    whole = run(tmp_path / "whole.parquet")
    assert_same(rows[:13] + rows[14:], whole[:13] + whole[14:])

    parts_written.clear()
    run(output, *arguments, dataset=folder)
    assert not parts_written and "is there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: .*other settings: max_scales was None and is 1"):
        run(output, *arguments, "--max_scales", 1, dataset=folder)
    (folder / "21.png").unlink()
    with pytest.raises(SystemExit, match="^error: .*other settings: files was"):
        run(output, *arguments, dataset=folder)


def test_a_full_disk_costs_no_finished_part(run, tmp_path, monkeypatch, parts_written):
    output, arguments = tmp_path / "out.parquet", ["--rows_per_part", 8]
    write_table = pq.write_table

    def write_some(table, path):
        if len(parts_written) > 1:
            path.write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", write_some)
        with pytest.raises(SystemExit, match="^error: Cannot write .*part-000001.*No space left.*parts are kept"):
            run(output, *arguments)
    assert [path.name for path in (tmp_path / "out.parts").glob("part*")] == ["part-000000.parquet"]
    with pytest.raises(SystemExit, match="^error: .*out.parts is of a run with other settings: rows_per_part was 8"):
        run(output, "--rows_per_part", 7)
    parts_written.clear()
    assert len(run(output, *arguments)) == NUM_ROWS and parts_written == [1, 2]


def test_parquet_and_scenes(run, tmp_path, parts_written):
    rows = datasets.Dataset.from_dict(
        {
            "image": [picture(*SIZES[row], seed=row) for row in range(4)],
            "mask": [PIL.Image.new("L", (4, 4))] * 4,
            "expression": ["the circle", " ", "the red circle " * 9, "the circle"],
            "sentence_id": ["a", "b", "c", "d"],
        }
    )
    rows = rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="row 1, column 'expression': the expression is empty"):
        run(tmp_path / "out.parquet", dataset=tmp_path / "data")
    found = run(tmp_path / "out.parquet", "--on_error", "skip", dataset=tmp_path / "data")
    assert [row["sentence_id"] for row in found] == ["a", "b", "c", "d"] and "mask" not in found[0]
    assert [row["error"] is None for row in found] == [True, False, True, True]
    assert [row["truncated"] for row in found] == [False, None, True, False]
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    assert len(run(tmp_path / "file.parquet", "--max_samples", 1, dataset=file)) == 1

    # splits are found as evaluation finds them
    file.rename(tmp_path / "data" / "test_fine-00000-of-00001.parquet")
    fine = run(tmp_path / "fine.parquet", "--on_error", "skip", "--split", "test-fine", dataset=tmp_path / "data")
    assert len(fine) == 4
    (tmp_path / "data" / "test_fine-00000-of-00001.parquet").rename(tmp_path / "data" / "test-00000-of-00002.parquet")
    with pytest.raises(SystemExit, match="is not whole"):
        run(tmp_path / "torn.parquet", dataset=tmp_path / "data")

    # theirs take the place of columns that have our names
    theirs = rows.select([0, 3]).add_column("caption", ["the square", "the ring"]).rename_column("image", "photo")
    theirs.to_parquet(tmp_path / "theirs.parquet")
    with pytest.raises(SystemExit, match=r"lacks the columns \['image'\].* --image_column"):
        run(tmp_path / "renamed.parquet", dataset=tmp_path / "theirs.parquet")
    names = ["--image_column", "photo", "--expression_column", "caption"]
    renamed = run(tmp_path / "renamed.parquet", *names, dataset=tmp_path / "theirs.parquet")
    assert [row["expression"] for row in renamed] == ["the square", "the ring"] and "caption" not in renamed[0]

    # the predictions are a data set too, but for the pictures
    assert datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train").num_rows == 4

    scenes = run(tmp_path / "scenes.parquet", "--max_samples", 3, "--dataset_level", "easy", dataset="scenes")
    assert len({row["image_id"] for row in scenes}) == 3 and all(len(row["bbox"]) == 4 for row in scenes)


def test_errors_come_before_the_work(run, tmp_path, pictures, parts_written):
    def fails(message, output=tmp_path / "out.parquet", *arguments, **options):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run(output, *arguments, **options)

    fails("names a parquet file", tmp_path / "out.json")
    fails("lies in the data set", pictures / "out.parquet")
    fails("no such folder or file", dataset=tmp_path / "nowhere")
    fails("has no end", dataset="scenes")
    fails("--batch_size must be positive", tmp_path / "out.parquet", "--batch_size", 0)
    fails("no split 'test'; it has .*'train'", tmp_path / "out.parquet", "--split", "test")
    (tmp_path / "file").write_text("")
    fails("Cannot write to .*file", tmp_path / "file" / "out.parquet")
    (tmp_path / "foreign.parquet").write_text("something")
    fails("is not of this run", tmp_path / "foreign.parquet")

    folder = tmp_path / "data"
    for name, columns in {
        "words": {"image": []},
        "taken": {"image": [None], "expression": ["a"], "score": [1]},
    }.items():
        (folder / name).mkdir(parents=True)
        for split in ("test", "train"):
            datasets.Dataset.from_dict(columns).to_parquet(folder / name / f"{split}.parquet")
    fails(r"several splits: name one of \['test', 'train'\]", dataset=folder / "words")
    fails(r"lacks the columns \['expression'\]", tmp_path / "out.parquet", "--split", "test", dataset=folder / "words")
    fails(r"has columns \['score'\]", tmp_path / "out.parquet", "--split", "test", dataset=folder / "taken")
    assert not parts_written


def test_batches_hold_pictures_of_like_shape():
    image_processor = ScanFormerImageProcessor(size={"longest_edge": 64}, patch_size=2)
    rows = [
        {"image": PIL.Image.new("RGB", SIZES[row * 7 % len(SIZES)]), "expression": "a" * (row % 4)}
        for row in range(60)
    ]
    source = Source(range(60), rows.__getitem__, datasets.Features({"expression": datasets.Value("string")}))

    def padding(batches):
        sizes = [[num_coarse_patches(sample["image"].size, image_processor) for sample in batch] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in sizes)

    reader = PartReader(source, image_processor, rows_per_part=40, batch_size=4)
    batches = list(reader)
    assert [sorted({sample["row"] // 40 for sample in batch}) for batch in batches] == [[0]] * 10 + [[1]] * 5
    assert sorted(sample["row"] for batch in batches for sample in batch) == list(range(60)) and reader.num_rows == 60
    assert padding(batches) == 0 < padding([rows[start : start + 4] for start in range(0, 60, 4)])

    # three processes share out what is not finished
    seen = []
    for index in range(3):
        reader = PartReader(source, image_processor, 7, 2, finished={1, 4}, process_index=index, num_processes=3)
        seen.append({sample["row"] // 7 for batch in reader for sample in batch})
        assert reader.num_rows == 60
    assert seen == [{0, 5, 8}, {2, 6}, {3, 7}]
