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
"""Recipes name arguments that exist, and the whole chain runs on a miniature."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import run_visual_grounding
import yaml
from accelerate.state import AcceleratorState
from rec_miniature import make_instances, make_refs, python2_pickle, write_images
from transformers import BertTokenizer, HfArgumentParser, ViltConfig, ViltImageProcessor, ViltModel, ViltProcessor

from conversion.splits import KNOWN_SPLITS


RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
sys.path.insert(0, str(RECIPES))
import reproduce  # noqa: E402


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_arguments_of_the_training(path):
    words = run_visual_grounding.read_yaml(str(path))
    (args,) = HfArgumentParser(run_visual_grounding.Arguments).parse_args_into_dataclasses(words)
    assert path.stem in reproduce.RECIPES
    # 3 scales of patches of 32 pixels
    assert args.longest_edge % (32 * 2**2) == 0
    assert args.num_warmup_steps < args.max_train_steps
    assert args.selection_warmup_steps + args.selection_anneal_steps < args.max_train_steps
    assert {"start", "data", "model"} == {
        Path(folder).name for folder in (args.model_name_or_path, args.dataset, args.output_dir)
    }


def test_epochs_are_what_the_recipes_say():
    for recipe, source in (
        ("refcoco", "refcoco_unc"),
        ("refcoco_plus", "refcoco+_unc"),
        ("refcocog_umd", "refcocog_umd"),
    ):
        settings = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
        batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        epochs = settings["max_train_steps"] * batch / KNOWN_SPLITS[source]["train"][0]
        assert 29 < epochs < 31
        assert set(reproduce.RECIPES[recipe][2]) == set(KNOWN_SPLITS[source]) - {"train"}


def make_vilt(folder: Path):
    """A random ViLT, tiny, with a tokenizer of letters."""
    letters = "abcdefghijklmnopqrstuvwxyzé"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViltConfig(vocab_size=len(words), max_position_embeddings=40, image_size=64, patch_size=32, **sizes)
    ViltModel(config).save_pretrained(folder)
    processor = ViltProcessor(
        ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=32),
        BertTokenizer(str(folder / "vocab.txt"), model_max_length=40),
    )
    processor.save_pretrained(folder)


def run_in_process(*command):
    """A step of the chain in this process, where everything is imported already; data in one of its own, as users do."""
    if "conversion.convert_rec_dataset" in command:
        return reproduce_run(*command)
    is_module = command[1] == "-m"
    sys.argv = [str(part) for part in command[1 + is_module :]]
    try:
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code


reproduce_run = reproduce.run


def test_the_whole_chain(tmp_path, monkeypatch, capsys):
    """Downloaded files in, the table's row out: 2 steps of training of a tiny model."""
    images, source = write_images(tmp_path / "train2014"), tmp_path / "refcoco"
    source.mkdir()
    refs = make_refs()
    # a ref for every split of the recipe
    splits = dict(zip(range(5), ("train", "train", "val", "testA", "testB")))
    for ref in refs:
        ref["split"] = splits[ref["ref_id"]]
    (source / "refs(unc).p").write_bytes(python2_pickle(refs))
    (source / "instances.json").write_text(json.dumps(make_instances()))
    make_vilt(tmp_path / "vilt")

    output = tmp_path / "out"
    command = ["reproduce.py", "--recipe", "refcoco", "--output", str(output)]
    command += ["--annotations", str(source), "--images", str(images), "--vilt", str(tmp_path / "vilt")]
    changes = {"max_train_steps": 2, "num_warmup_steps": 1, "selection_warmup_steps": 0, "selection_anneal_steps": 1}
    changes |= {"longest_edge": 128, "per_device_train_batch_size": 1, "mixed_precision": "no"}
    changes |= {"dataloader_num_workers": 0, "checkpointing_steps": 1}
    command += ["--train", *(f"{name}={value}" for name, value in changes.items())]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reproduce, "run", run_in_process)
    monkeypatch.setattr(sys, "argv", command)
    reproduce.main()
    AcceleratorState._reset_state(reset_partial_state=True)
    row = (output / "row.md").read_text()
    assert row.startswith("| RefCOCO | val ") and "testB" in row and row.rstrip().endswith("| 6 |")
    assert (output / "model" / "log.jsonl").is_file()

    # a second run finds everything there but the data, which are looked at again
    calls = []
    monkeypatch.setattr(reproduce, "run", lambda *command: calls.append(command))
    monkeypatch.setattr(sys, "argv", command)
    reproduce.main()
    assert ["conversion.convert_rec_dataset" in call for call in calls] == [True]
    assert row in capsys.readouterr().out


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """The steps of a run whose output folder holds some files already, and none of which does anything."""

    def main(*train: str, files: tuple[str, ...] = ()):
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        calls = []
        monkeypatch.setattr(reproduce, "run", lambda *command: calls.append(" ".join(map(str, command))))
        monkeypatch.setattr(reproduce, "make_row", lambda *_: "")
        command = ["reproduce.py", "--recipe", "refcoco", "--annotations", "a", "--images", "i"]
        train = ["--train", *train] if train else []
        monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path), *train])
        reproduce.main()
        return calls

    return main


def test_an_interrupted_training_goes_on(chain, tmp_path):
    chain("learning_rate=2e-4", "mixed_precision=no")
    assert "resume_from_checkpoint" not in yaml.safe_load((tmp_path / "train.yaml").read_text())
    chain("learning_rate=2e-4", "mixed_precision=no", files=("model/log.jsonl",))
    settings = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert settings["resume_from_checkpoint"] == "latest"
    assert (settings["learning_rate"], settings["mixed_precision"]) == (2e-4, "no")


def test_a_killed_conversion_is_made_again(chain):
    # the report comes first
    assert any("convert_vilt" in call for call in chain(files=("start/conversion_report.json",)))
    assert not any("convert_vilt" in call for call in chain(files=("start/processor_config.json",)))


def test_other_settings_need_another_folder(chain):
    chain("max_train_steps=2")
    with pytest.raises(SystemExit, match="other settings"):
        chain()
