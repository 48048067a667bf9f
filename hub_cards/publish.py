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
Publish a checkpoint on the Hub, with its code, a model card and what it was measured with.

    python -m hub_cards.publish CHECKPOINT_DIR --repo-id ORG/NAME --dry-run --output DIR
    python -m hub_cards.publish CHECKPOINT_DIR --repo-id ORG/NAME

CHECKPOINT_DIR holds a model and its processor as `save_pretrained` writes them, and besides

- `card.yaml`: what only the maker can tell, see [`CardMetadata`];
- `results/*.json`: what `examples/evaluate_visual_grounding.py` wrote, the only source of figures in the card.

The repository is built in a temporary folder and looked through there, and loaded in a process that does not have this
package, before anything is pushed.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from transformers import pipeline

from modeling_scanformer import draw_scan, read_image, save_portable

from .card import CardMetadata, check_figures, read_metadata, render_card
from .checks import PublishError, check_files, check_loads_without_package, load_checkpoint
from .hub import check_name, check_remote, push
from .results import Results, read_results


ROOT = Path(__file__).parents[1]

app = typer.Typer(add_completion=False)


@app.command()
def main(
    checkpoint_dir: Annotated[Path, typer.Argument(help="Folder of the model, card.yaml and results/*.json.")],
    repo_id: Annotated[str, typer.Option(help="Name of the repository on the Hub: ORG/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but the push.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the repository to this folder, too.")] = None,
):
    """Publish a ScanFormer checkpoint on the Hub, with its code, a model card and its results."""
    try:
        publish(checkpoint_dir, repo_id, private, dry_run, output)
    except PublishError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def publish(
    checkpoint_dir: Path, repo_id: str, private: bool = False, dry_run: bool = False, output: Path | None = None
):
    """
    Build, check and push a repository.

    Args:
        checkpoint_dir (`Path`):
            Folder of the model, its processor, `card.yaml` and `results/*.json`.
        repo_id (`str`):
            Name of the repository on the Hub.
        private (`bool`, *optional*, defaults to `False`):
            Whether to create it private.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to do everything but the push.
        output (`Path`, *optional*):
            New or empty folder to write the repository to.

    Raises:
        PublishError: if the repository must not, or cannot, be published.
    """
    check_name(repo_id)
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PublishError(f"{output} exists already and is not an empty folder.")
    metadata = read_metadata(checkpoint_dir / "card.yaml")
    if not dry_run:
        check_remote(repo_id, private)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        build_repository(checkpoint_dir, repo_id, metadata, folder)
        if output is not None:
            shutil.copytree(folder, output, dirs_exist_ok=True)
            typer.echo(f"The repository is in {output}.")
        if dry_run:
            typer.echo("Checked. Nothing was pushed.")
        else:
            typer.echo(f"Pushed: {push(folder, repo_id, private, f'Publish {metadata.title}')}")


def build_repository(checkpoint_dir: Path, repo_id: str, metadata: CardMetadata, folder: Path):
    """Write the repository of a checkpoint to a folder, and check it. Arguments and errors as of [`publish`]."""
    model, processor = load_checkpoint(checkpoint_dir)
    results = read_results(checkpoint_dir / "results", metadata.dataset_names, model, processor)
    check_figures(metadata, checkpoint_dir / "README.md", results)

    typer.echo("Writing the repository")
    save_portable(model, processor, folder)
    copy_companions(checkpoint_dir, metadata, results, folder)
    example = folder / "example.png"
    source = ROOT / "examples" / "demo.png"
    if metadata.example_image is not None:
        source = checkpoint_dir / metadata.example_image
    try:
        read_image(source).save(example)
        pipe = pipeline("visual-grounding", model=model, processor=processor)
        answer = pipe(str(example), text=metadata.example_text, return_scan=True)
    except ValueError as error:
        raise PublishError(f"card.yaml, the example: {error}") from error
    draw_scan(str(example), answer, processor).save(folder / "example_scan.png")
    del answer["scan"]
    render_card(repo_id, model, processor, metadata, results, answer).save(folder / "README.md")

    check_files(folder)
    typer.echo("Loading it where only Transformers is installed")
    check_loads_without_package(folder, example, metadata.example_text, answer["box"])


def copy_companions(checkpoint_dir: Path, metadata: CardMetadata, results: list[Results], folder: Path):
    """Copy what the card refers to: its source, the results, the licence, and the files that card.yaml names."""
    for name in metadata.files:
        file = checkpoint_dir / name
        if not file.is_file() or not file.resolve().is_relative_to(checkpoint_dir.resolve()):
            raise PublishError(f"card.yaml, files: there is no file {name!r} in {checkpoint_dir}.")
    license_file = checkpoint_dir / "LICENSE"
    if not license_file.is_file():
        if metadata.license != "apache-2.0":
            raise PublishError(f"The licence {metadata.license!r} needs its text in {license_file}.")
        license_file = ROOT / "LICENSE"
    shutil.copy(license_file, folder / "LICENSE")
    for name in ("card.yaml", *metadata.files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint_dir / name, folder / name)
    (folder / "results").mkdir(exist_ok=True)
    for result in results:
        # not the file itself: it may tell of folders that nobody else has
        (folder / "results" / result.path.name).write_text(json.dumps(result.values, indent=2) + "\n")


if __name__ == "__main__":
    app()
