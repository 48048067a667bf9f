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
"""The data set repository of Scenes: written, described, pushed, and loaded by its name."""

import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, load_dataset
from huggingface_hub import DatasetCard

from examples.scenes import ScenesDataset, statistics
from examples.scenes.dataset import FEATURES
from hub_cards import publish_dataset


REPO = "org/scenes"
NAMES = {split: split.replace("-", "_") for split in publish_dataset.DESCRIPTIONS}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["publish_dataset", *map(str, arguments)])
    publish_dataset.main()


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the command and gives its complaint."""

    def refuse(*arguments):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        return capsys.readouterr().err

    return refuse


def options(folder, repo_id=REPO):
    return [
        *("--repo-id", repo_id, "--output", folder, "--level", "easy"),
        *("--num_samples", 5, "--num_test_samples", 2),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A repository as a dry run leaves it."""
    folder = tmp_path_factory.mktemp("scenes") / "repository"
    arguments = publish_dataset.PublishDatasetArguments(
        REPO, str(folder), num_samples=5, num_test_samples=2, level="easy", dry_run=True
    )
    assert publish_dataset.publish(arguments) == folder
    return folder


def test_a_dry_run_writes_what_would_be_pushed(written):
    shards = {f"data/{name}-00000-of-00001.parquet" for name in NAMES.values()}
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {"README.md", "LICENSE", "sheet.jpg", *shards}
    assert (written / "LICENSE").read_text().lstrip().startswith("Apache License")


def test_metadata_describes_the_files(written):
    data = DatasetCard.load(written / "README.md").data.to_dict()
    assert data["license"] == "apache-2.0" and "scenes" in data["tags"] and data["size_categories"] == "n<1K"
    info = data["dataset_info"]
    assert Features._from_yaml_list(info["features"]) == FEATURES
    rows = {
        name: pq.read_metadata(written / f"data/{name}-00000-of-00001.parquet").num_rows for name in NAMES.values()
    }
    assert {split["name"]: split["num_examples"] for split in info["splits"]} == rows
    assert rows == {name: 5 if name == "train" else 2 for name in NAMES.values()}
    assert info["download_size"] == sum(file.stat().st_size for file in (written / "data").iterdir())


def test_figures_are_those_of_the_files(written):
    """Every row of the table, held against the statistics of the samples that the files should hold."""
    text = (written / "README.md").read_text()
    table = {}
    for line in text.split("## Measured")[1].splitlines():
        if line.startswith("| ") and "---" not in line:
            title, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            table[title] = cells
    assert table.pop("") == list(NAMES.values())
    measured = []
    for split in publish_dataset.DESCRIPTIONS:
        dataset = ScenesDataset(split, 0, 5 if split == "train" else 2, "easy")
        measured.append(statistics.measure(dataset[index] for index in range(len(dataset))))
    assert table == dict(publish_dataset.tabulate(measured))
    train = measured[0]
    assert table["attribute, %"][0] == f"{100 * train['expression types']['attribute'] / 5:.1f}"
    median = np.median(train["numbers"]["objects per scene"])
    assert table["objects per scene: 10 %, median, 90 %"][0].split(", ")[1] == f"{median:.3g}"
    chance = train["accuracy at IoU 0.5 without understanding"]["the largest object"]
    assert table["Acc@0.5 of the largest object, %"][0] == f"{100 * chance:.1f}"


def test_the_folder_loads_as_a_data_set(written, tmp_path):
    loaded = load_dataset(str(written), cache_dir=str(tmp_path))
    assert list(loaded) == list(NAMES.values())
    row, sample = loaded["test_fine"][1], ScenesDataset("test-fine", 0, level="easy")[1]
    assert (row["expression"], row["bbox"]) == (sample["expression"], sample["bbox"])
    assert (np.asarray(row["image"]) == np.asarray(sample["image"])).all()
    assert json.loads(row["scene"])["target"] == sample["scene"]["target"]


def test_push_is_one_commit_and_loads_by_name(written, hub, hub_client, monkeypatch, capsys):
    run(monkeypatch, *options(written), "--private")
    assert len(hub.commits(REPO, repo_type="dataset")) == 2 and hub.repositories["dataset", REPO].private
    pushed = hub.files(REPO, repo_type="dataset")
    del pushed[".gitattributes"]
    assert pushed == {p.relative_to(written).as_posix(): p.read_bytes() for p in written.rglob("*") if p.is_file()}
    assert hub.commits(REPO, repo_type="dataset")[-1].id in capsys.readouterr().out

    hub.run_python("""
from datasets import Dataset, load_dataset

loaded = load_dataset("org/scenes")
assert len(loaded) == 9 and loaded.num_rows["train"] == 5 and loaded.num_rows["test_dense"] == 2
row = loaded["train"][4]
assert row["image"].size == row["mask"].size == (row["width"], row["height"])
streamed = load_dataset("org/scenes", split="test", streaming=True)
assert [row["expression"] for row in streamed] == loaded["test"]["expression"]

# What a user does with a selection of their own.
loaded["train"].select(range(2)).push_to_hub("user/selection", split="train")
loaded["test"].push_to_hub("user/selection", split="test")
again = load_dataset("user/selection")
assert again.num_rows == {"train": 2, "test": 2} and again["train"].features == loaded["train"].features
assert again["train"][1]["image"].tobytes() == loaded["train"][1]["image"].tobytes()
""")


def test_a_push_that_breaks_changes_nothing_and_is_repeated_from_the_folder(
    written, hub, hub_client, monkeypatch, refused
):
    hub_client.create_repo(REPO, repo_type="dataset")
    before = hub.commits(REPO, repo_type="dataset")
    monkeypatch.setattr(publish_dataset, "write_repository", lambda *arguments: pytest.fail("made twice"))
    for kind in ("lfs_upload", "commit"):
        with hub.breaking(kind):
            assert "Repeat the command" in refused(*options(written))
        assert hub.commits(REPO, repo_type="dataset") == before
    run(monkeypatch, *options(written))
    assert len(hub.commits(REPO, repo_type="dataset")) == len(before) + 1


def test_a_push_replaces_what_was_there(written, hub, hub_client, monkeypatch):
    hub_client.create_repo(REPO, repo_type="dataset")
    for path, content in {
        "README.md": b"---\ntags:\n- scenes\n---\n",
        "data/old.parquet": b"\0",
        "NOTES": b"1",
    }.items():
        hub_client.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, repo_type="dataset")
    run(monkeypatch, *options(written))
    files = hub.files(REPO, repo_type="dataset")
    assert not {"data/old.parquet", "NOTES"} & set(files) and "data/train-00000-of-00001.parquet" in files


def test_somebody_elses_repository_is_left_alone(written, hub, hub_client, refused):
    hub_client.create_repo(REPO, repo_type="dataset")
    hub_client.upload_file(path_or_fileobj=b"a,b", path_in_repo="table.csv", repo_id=REPO, repo_type="dataset")
    assert "is not a repository of Scenes" in refused(*options(written))
    hub_client.create_repo("org/public", repo_type="dataset")
    assert "is public" in refused(*options(written.parent / "none", "org/public"), "--private")
    assert "403" in refused(*options(written.parent / "none", "somebody/scenes"))
    assert set(hub.files(REPO, repo_type="dataset")) == {".gitattributes", "table.csv"}
    assert not (written.parent / "none").exists()


def test_without_a_valid_token_nothing_is_made(hub, hub_client, monkeypatch, refused, tmp_path):
    hub.expire_token()
    assert "hf auth login" in refused(*options(tmp_path / "scenes"))
    monkeypatch.delenv("HF_TOKEN")
    complaint = refused(*options(tmp_path / "scenes"))
    assert "hf auth login" in complaint and hub.token not in complaint
    assert not (tmp_path / "scenes").exists() and not hub.repositories


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--repo-id", "scenes"], "name with its owner"),
        (["--repo-id", "org/sce nes"], "must use alphanumeric"),
        (["--level", "medium"], "unknown level 'medium'"),
        (["--num_samples", "0"], "num_samples must be positive"),
        (["--num_proc", "0"], "num_proc must be positive"),
        (["--num_test_samples", "0"], "num_samples must be positive"),
    ],
)
def test_bad_arguments_are_named_before_work(refused, tmp_path, wrong, message):
    folder = tmp_path / "scenes"
    assert message in refused(*options(folder), "--dry-run", *wrong)
    assert not folder.exists()


def test_a_folder_with_something_else_is_left_alone(written, refused, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert "holds something else" in refused(*options(tmp_path), "--dry-run")
    assert "holds something else" in refused(*options(written), "--dry-run", "--seed", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_has_lost_files_is_not_taken_for_whole(written, refused, tmp_path):
    folder = shutil.copytree(written, tmp_path / "scenes")
    next((folder / "data").glob("test_fog-*")).unlink()
    assert "0 of the" in refused(*options(folder), "--dry-run")
