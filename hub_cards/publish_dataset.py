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
"""
Make a data set repository of Scenes and push it to the Hub, in one commit.

    python -m hub_cards.publish_dataset --repo-id ORG/scenes --level standard --num_samples 10000 --output DIR --dry-run

writes to DIR what the same command without --dry-run pushes. The card's figures are measured on the files beside it. A
push that was interrupted has changed nothing, and is repeated by the same command, which takes the files from DIR.
"""

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from examples.scenes import LEVELS, vocabulary
from examples.scenes.dataset import FEATURES, ScenesDataset
from examples.scenes.generate import GenerateArguments, generate
from examples.scenes.levels import level_of
from examples.scenes.objects import COLORS, SHAPES, TEXTURES
from examples.scenes.sheet import SheetArguments, draw_sheet
from examples.scenes.statistics import measure

from .hub import check_name, push


ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).parent / "scenes" / "card_template.md"
# By which a repository of Scenes is known.
TAG = "scenes"
# The splits of the repository, and what is special about them.
DESCRIPTIONS = {
    "train": "",
    "validation": "",
    "test": "",
    "test-compositional": "the target has a pair (colour, shape) or (texture, shape) that no object of another split has",
    "test-fine": "two or more objects share all of the target's attributes but texture, or but shape",
    "test-dense": "more objects than any scene of train",
    "test-night": "the rows of test, rendered at night",
    "test-fog": "the rows of test, rendered in fog",
    "test-rain": "the rows of test, rendered in rain",
}
QUANTILES = (0.1, 0.5, 0.9)
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class PublishDatasetArguments:
    repo_id: str = field(metadata={"help": "Repository on the Hub, ORG/NAME."})
    output: str = field(
        metadata={"help": "Folder for the repository: empty, or written whole by the same command before."}
    )
    num_samples: int = field(metadata={"help": "Number of samples of train."})
    num_test_samples: int = field(default=1000, metadata={"help": "Number of samples of every other split."})
    level: str = field(
        default="standard",
        metadata={"help": f"One of {', '.join(n for n, level in LEVELS.items() if not level.distinct)}."},
    )
    seed: int = field(default=0, metadata={"help": "Another seed gives other samples."})
    num_proc: int = field(default=1, metadata={"help": "Processes that make samples."})
    private: bool = field(default=False, metadata={"help": "Create the repository as a private one."})
    dry_run: bool = field(default=False, metadata={"help": "Write the repository and push nothing."})


def publish(arguments: PublishDatasetArguments) -> Path:
    """
    Write a data set repository of Scenes, and push it unless `dry_run`.

    Args:
        arguments (`PublishDatasetArguments`): What to make, and where to put it.

    Returns:
        `Path`: The folder that holds what was pushed, or would be.

    Raises:
        ValueError: if an argument is bad, if there is no valid token, or if the folder or the repository on the Hub
            holds something else. Nothing has been made then.
        PublishError: if the push does not go through.
    """
    check_name(arguments.repo_id)
    if arguments.num_proc < 1:
        raise ValueError(f"num_proc must be positive, got {arguments.num_proc}")
    for split in DESCRIPTIONS:
        ScenesDataset(split, arguments.seed, _num_samples(arguments, split), arguments.level)
    folder = Path(arguments.output)
    is_written = _is_written(folder, arguments)
    if not arguments.dry_run:
        _prepare_remote(HfApi(), arguments)
    if not is_written:
        write_repository(folder, arguments)
    if not arguments.dry_run:
        print(f"Pushed to {push(folder, arguments.repo_id, arguments.private, 'Publish Scenes', 'dataset')}")
    return folder


def write_repository(folder: Path, arguments: PublishDatasetArguments) -> None:
    """Write the splits, the sheet of examples, the licence and, last, the card."""
    for split in DESCRIPTIONS:
        options = {"level": arguments.level, "seed": arguments.seed, "num_proc": arguments.num_proc}
        generate(GenerateArguments(str(folder), _num_samples(arguments, split), split, **options))
    sheet = SheetArguments(str(folder / "sheet.jpg"), level=arguments.level, seed=arguments.seed)
    draw_sheet(sheet).save(sheet.output, quality=88, optimize=True)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    render_card(folder, arguments).save(folder / "README.md")


def render_card(folder: Path, arguments: PublishDatasetArguments) -> DatasetCard:
    """
    The card of the parquet files in a folder.

    Args:
        folder (`Path`): Holds a split's shards as `data/SPLIT-*.parquet`, as `examples.scenes.generate` writes them.
        arguments (`PublishDatasetArguments`): What the files were made from.

    Returns:
        `DatasetCard`: With the features, sizes and files of every split in its metadata, and measured figures in its text.
    """
    names = {split: split.replace("-", "_") for split in DESCRIPTIONS}
    shards = {name: sorted((folder / "data").glob(f"{name}-*.parquet")) for name in names.values()}
    infos = {name: _measure_files(name, files) for name, files in shards.items()}
    measured = [measure(_read_samples(name, files)) for name, files in shards.items()]
    level, dense = level_of(arguments.level), level_of(arguments.level, "dense")
    return DatasetCard.from_template(
        _card_data(infos, sum(file.stat().st_size for files in shards.values() for file in files)),
        str(TEMPLATE),
        repo_id=arguments.repo_id,
        level=arguments.level,
        splits=[
            {"name": name, "rows": infos[name].num_examples, "description": DESCRIPTIONS[split]}
            for split, name in names.items()
        ],
        objects=level.objects,
        dense_objects=dense.objects,
        num_shapes=len(SHAPES),
        num_colors=len(COLORS),
        num_textures=len(TEXTURES),
        num_words=len(vocabulary()),
        command=_command(arguments),
        versions={name: version(name) for name in ("numpy", "pillow")},
        statistics=list(tabulate(measured)),
    )


def tabulate(measured: list[dict]) -> Iterator[tuple[str, list[str]]]:
    """
    Rows of a table of statistics.

    Args:
        measured (`list[dict]`): What `examples.scenes.statistics.measure` gives, for every column.

    Returns:
        `Iterator[tuple[str, list[str]]]`: A row's title and cells.
    """
    for group, title in (("expression types", "{}, %"), ("target sizes", "{} target, %")):
        totals = [sum(column[group].values()) for column in measured]
        for name, _ in sum((column[group] for column in measured), Counter()).most_common():
            shares = [100 * column[group][name] / total for column, total in zip(measured, totals)]
            yield title.format(name), [f"{share:.1f}" if share else "-" for share in shares]
    for title in measured[0]["numbers"]:
        quantiles = [np.quantile(column["numbers"][title], QUANTILES) for column in measured]
        yield f"{title}: 10 %, median, 90 %", [", ".join(f"{value:.3g}" for value in values) for values in quantiles]
    for name in measured[0]["accuracy at IoU 0.5 without understanding"]:
        accuracies = [100 * column["accuracy at IoU 0.5 without understanding"][name] for column in measured]
        yield f"Acc@0.5 of {name}, %", [f"{accuracy:.1f}" for accuracy in accuracies]
    for name in ("distinct expressions", "distinct words"):
        yield name, [f"{column[name]:,}" for column in measured]


def _read_samples(name: str, files: list[Path]) -> Iterator[dict]:
    """The samples of a split as `ScenesDataset` makes them, but for the pictures."""
    columns = [column for column, feature in FEATURES.items() if not isinstance(feature, datasets.Image)]
    total = sum(pq.read_metadata(file).num_rows for file in files)
    with tqdm(total=total, unit="sample", desc=f"measure {name}") as progress:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(columns=columns):
                for row in batch.to_pylist():
                    yield {**row, "scene": json.loads(row["scene"]), "program": json.loads(row["program"])}
                    progress.update()


def _measure_files(name: str, files: list[Path]) -> datasets.SplitInfo:
    metadata = [pq.read_metadata(file) for file in files]
    num_bytes = sum(
        part.row_group(number).total_byte_size for part in metadata for number in range(part.num_row_groups)
    )
    return datasets.SplitInfo(name=name, num_bytes=num_bytes, num_examples=sum(part.num_rows for part in metadata))


def _card_data(infos: dict[str, datasets.SplitInfo], download_size: int) -> DatasetCardData:
    total = sum(info.num_examples for info in infos.values())
    data = DatasetCardData(
        language="en",
        license="apache-2.0",
        pretty_name="Scenes",
        task_categories=["zero-shot-object-detection", "object-detection"],
        size_categories=next((name for limit, name in SIZE_CATEGORIES if total < limit), "n>1M"),
        annotations_creators="machine-generated",
        language_creators="machine-generated",
        source_datasets=["original"],
        tags=[TAG, "referring-expression-comprehension", "visual-grounding", "synthetic"],
    )
    splits = datasets.SplitDict()
    for info in infos.values():
        splits.add(info)
    info = datasets.DatasetInfo(
        features=FEATURES,
        splits=splits,
        download_size=download_size,
        dataset_size=sum(split.num_bytes for split in infos.values()),
    )
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": name, "path": f"data/{name}-*"} for name in infos]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return data


def _num_samples(arguments: PublishDatasetArguments, split: str) -> int:
    return arguments.num_samples if split == "train" else arguments.num_test_samples


def _command(arguments: PublishDatasetArguments) -> str:
    """The command that makes the same files."""
    names = ("level", "seed", "num_samples", "num_test_samples")
    options = " ".join(f"--{name} {getattr(arguments, name)}" for name in names)
    return f"python -m hub_cards.publish_dataset --repo-id {shlex.quote(arguments.repo_id)} {options} --output DIR --dry-run"


def _is_written(folder: Path, arguments: PublishDatasetArguments) -> bool:
    """Whether a folder holds the whole repository: its card, written last, says what the files were made from."""
    card = folder / "README.md"
    if card.is_file() and _command(arguments) in card.read_text(encoding="utf-8"):
        for split in DESCRIPTIONS:
            files = (folder / "data").glob(f"{split.replace('-', '_')}-*.parquet")
            found, wanted = sum(pq.read_metadata(file).num_rows for file in files), _num_samples(arguments, split)
            if found != wanted:
                raise ValueError(
                    f"{folder} has lost files: {found} of the {wanted} samples of {split} are there. Empty it and write "
                    "it again"
                )
        return True
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds something else than what this command makes, or what was made before it was stopped: empty "
            "it or choose another --output"
        )
    return False


def _prepare_remote(api: HfApi, arguments: PublishDatasetArguments) -> None:
    """Find out that the push will be allowed, before the samples are made."""
    try:
        api.whoami()
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to push, or use --dry_run") from error
    except (LocalTokenNotFoundError, HTTPError) as error:
        raise ValueError(
            f"the Hub cannot be reached or doesn't know who you are: run `hf auth login` or set HF_TOKEN ({error})"
        ) from error
    try:
        info = api.dataset_info(arguments.repo_id)
    except RepositoryNotFoundError:
        api.create_repo(arguments.repo_id, repo_type="dataset", private=arguments.private)
        return
    if arguments.private and not info.private:
        raise ValueError(f"{arguments.repo_id} exists and is public: make it private first, or leave out --private")
    present = {file.rfilename for file in info.siblings} - {".gitattributes"}
    if present and TAG not in (info.tags or []):
        raise ValueError(f"{arguments.repo_id} exists and is not a repository of Scenes: choose another --repo-id")


def main() -> None:
    parser = HfArgumentParser(PublishDatasetArguments, description=__doc__.strip().splitlines()[0])
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        print(f"The repository is in {publish(arguments)}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
