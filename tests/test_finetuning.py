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
"""examples/run_visual_grounding.py on a folder of pictures: what is trained, what comes out, and what is refused."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import datasets
import evaluate_visual_grounding
import pytest
import run_visual_grounding
import torch
import yaml
from grounding import hub as grounding_hub
from grounding.checks import DataError
from grounding.evaluation import evaluate_grounding
from grounding.optimization import average_weights, create_parameter_groups
from grounding.run import find_base
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_early_exit import rule_for
from test_training import assert_same_files, reset_accelerator, train, write_pictures
from tiny import picture, save_tiny_adapter, save_tiny_checkpoint, tiny_model
from transformers import HfArgumentParser, pipeline
from transformers.utils import is_bitsandbytes_available

from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 6)


@pytest.fixture
def finetune(monkeypatch, checkpoint, pictures, tmp_path):
    """Runs the script on the folder of pictures, with every sixth of them held out."""

    def run(model=checkpoint, output_dir=tmp_path / "out", **options):
        options = {"dataset": pictures, "train_val_split": 0.17, "learning_rate": 0.01, **options}
        return train(monkeypatch, model, output_dir, **options)

    return run


def changed(folder, checkpoint) -> set[str]:
    """Parts of the model whose weights are not those that training began with."""
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    names = (
        name.removeprefix("model.").split(".")[0] for name in before if not torch.equal(before[name], after[name])
    )
    return set(names)


def test_all_of_the_model_is_trained_or_its_heads(finetune, checkpoint, tmp_path):
    finetune(output_dir=tmp_path / "full", max_train_steps=2)
    heads = {"selection_head", "box_head", "box_refinement", "score_head"}
    parts = {"text_embeddings", "patch_embeddings", "layers", "reg_tokens", *heads}
    assert parts <= changed(tmp_path / "full", checkpoint)
    finetune(output_dir=tmp_path / "heads", max_train_steps=2, train="heads")
    assert changed(tmp_path / "heads", checkpoint) == heads


def test_the_configuration_can_be_changed(finetune, tmp_path):
    _, lines = finetune(
        max_train_steps=2, config_overrides="patch_box_loss_coefficient=0.0,score_loss_coefficient=0.5"
    )
    losses = next(line for line in lines if "loss" in line)
    assert "loss_relevance" in losses and "loss_patch_box" not in losses
    assert ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out").config.score_loss_coefficient == 0.5
    for overrides, message in (
        ("patch_loss=0.0", "patch_loss"),
        ("selection_target_rate=2.0", "must lie in"),
        ("intermediate_size=64", "mismatched_sizes"),
    ):
        with pytest.raises(SystemExit, match=f"Cannot load the model(?s:.*)({message})"):
            finetune(output_dir=tmp_path / "other", config_overrides=overrides)


def test_an_adapter_does_not_change_the_configuration_of_its_base(finetune, tmp_path):
    with pytest.raises(SystemExit, match="would not have the changed selection_threshold, use_constant_token"):
        finetune(lora_r=2, config_overrides="selection_threshold=0.9,use_constant_token=false")
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    finetune(lora_r=2, config_overrides="score_loss_coefficient=0.5,hidden_dropout_prob=0.1", max_train_steps=1)


def test_an_adapter_is_not_resumed_on_another_base(finetune, checkpoint, tmp_path):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    torch.nn.init.ones_(model.box_head.out_proj.weight)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    model.save_pretrained(other)
    finetune(lora_r=2, max_train_steps=2)
    with pytest.raises(SystemExit, match="was trained on another model"):
        finetune(other, lora_r=2, max_train_steps=4, resume_from_checkpoint="latest")
    finetune(lora_r=2, max_train_steps=3, resume_from_checkpoint="latest", seed=1)  # is warned of


def test_an_adapter_that_names_no_base_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(DataError, match="does not name the adapter's base"):
        find_base(str(tmp_path))


def test_an_adapter_comes_out_and_goes_on_training(finetune, checkpoint, tmp_path):
    adapter = tmp_path / "adapter"
    _, lines = finetune(output_dir=adapter, lora_r=4, rslora=True, gradient_checkpointing=True)
    (counts,) = (line for line in lines if "trainable_parameters" in line)
    stored = sum(weights.numel() for weights in load_file(adapter / "adapter_model.safetensors").values())
    assert counts["trainable_parameters"] == stored < counts["all_parameters"]
    assert not list(adapter.glob("model*")) and not list((adapter / "best").glob("model*"))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["r"], settings["use_rslora"]) == (4, True)
    assert settings["base_model_name_or_path"] == str(checkpoint)
    pair = {"image": picture(40, 30), "text": "the red cup"}
    base, adapted = (pipeline("visual-grounding", model=str(folder)) for folder in (checkpoint, adapter))
    assert adapted(pair) != base(pair)

    # a folder of an adapter alone: the processor is its base's
    (adapter / "processor_config.json").unlink()
    results = tmp_path / "results.json"
    evaluate_visual_grounding.evaluate(
        evaluate_visual_grounding.Arguments(
            model=str(adapter), dataset="scenes", max_samples=2, num_cost_samples=0, output=str(results)
        )
    )
    assert json.loads(results.read_text())["num_samples"] == 2
    with pytest.raises(SystemExit, match="publish the base first"):
        finetune(adapter, tmp_path / "pushed", push_to_hub=True, hub_model_id="me/mine")
    with pytest.raises(SystemExit, match="merge the adapter into its model first"):
        finetune(adapter, tmp_path / "whole", optimizer="muon")
    finetune(adapter, tmp_path / "more", max_train_steps=2)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "more"))
    assert set(before) == set(after) and all(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "more" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
def test_an_adapter_of_a_model_in_4_bits_is_trained_resumed_and_used(finetune, checkpoint, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    finetune(output_dir=whole, load_in_4bit=True)
    assert json.loads((whole / "adapter_config.json").read_text())["r"] == 8
    resumed.mkdir()
    (whole / "checkpoint-2").rename(resumed / "checkpoint-2")
    finetune(output_dir=resumed, load_in_4bit=True, resume_from_checkpoint="latest")
    assert_same_files(resumed, whole, "adapter_model.safetensors")
    pair = {"image": picture(40, 30), "text": "the red cup"}
    base, adapted = (pipeline("visual-grounding", model=str(folder)) for folder in (checkpoint, whole))
    assert adapted(pair) != base(pair)
    finetune(whole, tmp_path / "more", load_in_4bit=True, max_train_steps=2)
    finetune(whole, tmp_path / "in-full", max_train_steps=2)


def test_a_missing_bitsandbytes_is_said(finetune, monkeypatch):
    monkeypatch.setattr("modeling_scanformer.adapters_scanformer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(SystemExit, match="^error: .*pip install bitsandbytes"):
        finetune(load_in_4bit=True)


def test_a_checkpoint_of_an_adapter_holds_what_is_trained(finetune, tmp_path):
    finetune(output_dir=tmp_path / "adapter", lora_r=2, max_train_steps=2)
    stored = load_file(tmp_path / "adapter" / "checkpoint-2" / "model.safetensors")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(map(torch.numel, stored.values())) == sum(map(torch.numel, saved.values()))


def test_gradient_checkpointing_changes_nothing_for_an_adapter(finetune, tmp_path):
    options = {"lora_r": 2, "max_train_steps": 2}
    plain, _ = finetune(output_dir=tmp_path / "plain", **options)
    recomputed, _ = finetune(output_dir=tmp_path / "recomputed", gradient_checkpointing=True, **options)
    assert plain == pytest.approx(recomputed, abs=1e-4)


def test_a_resumed_stream_equals_one_that_was_not_interrupted(finetune, pictures, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = {"streaming": True, "train_val_split": None, "validation_split": "train", "max_train_steps": 8}
    options |= {"checkpointing_steps": 7, "augment": ["flip"]}
    losses, lines = finetune(output_dir=whole, **options)
    assert sorted(losses) == list(range(1, 9)) and lines[-1]["eval_num_samples"] == 4
    resumed.mkdir()
    (whole / "checkpoint-7").rename(resumed / "checkpoint-7")
    finetune(output_dir=resumed, resume_from_checkpoint="latest", **options)
    assert_same_files(resumed, whole)


def test_training_stops_early_and_keeps_the_best(finetune, tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.5, 0.3, 0.4, 0.9])

    def evaluate(*args):
        return {**evaluate_grounding(*args), "acc@0.5": next(accuracies)}

    monkeypatch.setattr("run_visual_grounding.evaluate_grounding", evaluate)
    options = {"max_train_steps": 20, "eval_steps": 2, "checkpointing_steps": 6, "early_stopping_patience": 2}
    losses, _ = finetune(**options)
    assert len(losses) == 8, "the third and the fourth evaluation are no gain"
    best = load_file(tmp_path / "out" / "best" / "model.safetensors")
    last = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(best["box_head.out_proj.weight"], last["box_head.out_proj.weight"])

    # on other samples, what was best before says nothing
    accuracies = iter([0.2] * 2)
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    _, lines = finetune(
        output_dir=tmp_path / "other",
        resume_from_checkpoint="latest",
        **{**options, "max_eval_samples": 1, "max_train_steps": 8},
    )
    other = load_file(tmp_path / "other" / "best" / "model.safetensors")
    assert not torch.equal(best["box_head.out_proj.weight"], other["box_head.out_proj.weight"])
    with pytest.raises(SystemExit, match="goes on with its own --train_val_split 0.17"):
        finetune(resume_from_checkpoint="latest", **{**options, "train_val_split": 0.5})
    with pytest.raises(SystemExit, match="goes on with its own --max_train_samples None"):
        finetune(resume_from_checkpoint="latest", **{**options, "max_train_samples": 5})

    # resumed after the third evaluation, it still knows the best of those before
    accuracies = iter([0.4])
    _, lines = finetune(resume_from_checkpoint="latest", **options)
    assert lines[-1]["step"] == 8
    again = load_file(tmp_path / "out" / "best" / "model.safetensors")
    assert torch.equal(best["box_head.out_proj.weight"], again["box_head.out_proj.weight"])


def test_the_average_of_weights_is_what_is_saved(finetune, tmp_path):
    finetune(output_dir=tmp_path / "average", ema_decay=0.999, max_train_steps=2)
    finetune(output_dir=tmp_path / "last", max_train_steps=2)
    name = "box_head.out_proj.weight"
    saved, last = (load_file(tmp_path / folder / "model.safetensors")[name] for folder in ("average", "last"))
    raw = load_file(tmp_path / "average" / "checkpoint-2" / "model.safetensors")[name]
    assert torch.equal(raw, last) and not torch.equal(saved, last)

    model = torch.nn.Linear(1, 1, bias=False)
    average = average_weights(model, decay=0.5)
    expected = None
    for value in (1.0, 3.0, 2.0, 7.0):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        # the share that is kept rises to the given one: 2 / 11, 3 / 12, 4 / 13, ...
        keep = min(0.5, (1 + int(average.n_averaged) - 1) / (10 + int(average.n_averaged) - 1))
        expected = value if expected is None else keep * expected + (1 - keep) * value
        assert average.module.weight.item() == pytest.approx(expected)


def test_lower_layers_learn_more_slowly():
    model = tiny_model()  # of 4 layers
    groups = create_parameter_groups(model, 1.0, 0.1, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert set(rates) == set(names.values())
    assert rates["box_head.out_proj.weight"] == rates["model.layernorm.bias"] == 1.0
    assert [rates[f"model.layers.{layer}.mlp.fc1.weight"] for layer in range(4)] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert rates["model.text_embeddings.word_embeddings.weight"] == rates["model.reg_tokens.weight"] == 1 / 32
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert "model.layers.0.mlp.fc1.weight" in decayed
    assert not [name for name in decayed if "embeddings.w" in name or "bias" in name or "layernorm" in name]
    assert len(create_parameter_groups(model, 1.0, 0.1)) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": "heads", "lora_r": 4}, "do not go with --train heads"),
        ({"train": "full", "dora": True}, "do not go with --train full"),
        ({"train": "full", "load_in_4bit": True}, "--load_in_4bit make an adapter"),
        ({"ema_decay": 0.9, "load_in_4bit": True}, "cannot be averaged"),
        ({"lora_r": 0}, "at least 1"),
        ({"augment": ["blur"]}, "no augmentation"),
        ({"layerwise_lr_decay": 0}, "layerwise_lr_decay"),
        ({"ema_decay": 1}, "ema_decay"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit"),
        ({"streaming": True}, "--validation_split instead"),
        ({"push_to_hub": True}, "--hub_model_id"),
        ({"push_to_hub": True, "hub_model_id": "me/mine", "lora_r": 4}, "publish the base first"),
        ({"longest_edge": 25}, "do not fit together"),
        ({"selection_threshold": 1.5}, "do not fit together"),
        ({"per_device_train_batch_size": 32}, "10 samples, do not fill one batch of 32"),
        ({"dataset": "scenes"}, "leave out --train_val_split"),
        ({"bbox_column": "box"}, "--bbox_column"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_training(finetune, options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}"):
        finetune(**options)
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_boxes_in_another_form_are_no_stray_mistakes(finetune, tmp_path):
    """Only the pictures tell that they are: skipping them one by one would leave a fraction of the data."""
    data = write_pictures(tmp_path / "corners", 4)
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        size = Image.open(data / line["file_name"]).size
        line["bbox"] = [size[0] // 2, size[1] // 2, *size]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(SystemExit, match="All boxes make sense as xyxy"):
        finetune(dataset=data, bbox_format="xywh", on_error="skip")


def test_a_missing_split_comes_with_advice(monkeypatch, checkpoint, pictures, tmp_path):
    with pytest.raises(SystemExit, match="(?s)validation.*--train_val_split 0.1"):
        train(monkeypatch, checkpoint, tmp_path, dataset=pictures)
    with pytest.raises(SystemExit, match="--early_stopping_patience needs"):
        train(monkeypatch, checkpoint, tmp_path, dataset=pictures, validation_split="", early_stopping_patience=1)


def test_models_that_do_not_fit_are_refused(finetune, checkpoint, tmp_path):
    finetune(output_dir=tmp_path / "full", max_train_steps=2)
    for model, message in (
        (tmp_path / "full" / "checkpoint-2", "a checkpoint to resume from"),
        (tmp_path / "nowhere", "Cannot load the model"),
    ):
        with pytest.raises(SystemExit, match=message):
            finetune(model)
    with pytest.raises(SystemExit, match="not of this model and these settings"):
        finetune(lora_r=4, resume_from_checkpoint=tmp_path / "full" / "checkpoint-2")

    # one of its layers more than its base has now
    save_tiny_adapter(tmp_path / "adapter", checkpoint, num_hidden_layers=5)
    with pytest.raises(SystemExit, match="made for another model than .* weights are in one of them only"):
        finetune(tmp_path / "adapter")
    with pytest.raises(SystemExit, match="leave out --lora_r"):
        finetune(tmp_path / "adapter", lora_r=4)
    with pytest.raises(SystemExit, match="merge it into its model first"):
        finetune(tmp_path / "adapter", train="full")

    # a processor of another patch size
    save_tiny_checkpoint(tmp_path / "mixed")
    processor = ScanFormerProcessor.from_pretrained(checkpoint)
    processor.image_processor.patch_size, processor.image_processor.size = 4, {"longest_edge": 32}
    processor.save_pretrained(tmp_path / "mixed")
    with pytest.raises(SystemExit, match="processor and the model do not fit together"):
        finetune(tmp_path / "mixed")


def test_a_rule_of_early_exit_ends_with_the_weights_that_it_holds_for(finetune, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    model.generation_config.update(early_exit=True, early_exit_rule=rule_for(model).to_dict(), token_budget=0.9)
    model.generation_config.save_pretrained(tmp_path / "model")
    finetune(tmp_path / "model", max_train_steps=1, eval_steps=1)
    tuned = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out").generation_config
    assert tuned.early_exit is tuned.early_exit_rule is None and tuned.token_budget == 0.9


def test_a_threshold_that_is_asked_for_goes_before_a_saved_one(finetune, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    model.generation_config.selection_threshold = 0.0
    model.generation_config.save_pretrained(tmp_path / "model")
    _, lines = finetune(tmp_path / "model", max_train_steps=1, eval_steps=1, selection_threshold=1.0)
    (shares,) = (line["eval_patches_read"] for line in lines if "eval_patches_read" in line)
    assert shares == [1.0, 0.0, 0.0]
    tuned = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "out")
    assert tuned.scan_options() == {"selection_threshold": 1.0}


def test_the_best_adapter_is_pushed_with_a_card(finetune, checkpoint, tmp_path, hub, hub_client, monkeypatch):
    hub_client.create_repo("org/base")
    hub_client.upload_folder(repo_id="org/base", folder_path=checkpoint)
    options = {"push_to_hub": True, "hub_model_id": "org/cups", "lora_r": 2, "max_train_steps": 4, "eval_steps": 2}
    _, lines = finetune("org/base", **options)
    best = tmp_path / "out" / "best"
    assert set(hub.files("org/cups")) >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert not [name for name in hub.files("org/cups") if "checkpoint" in name or name.startswith("model")]
    assert hub.files("org/cups")["adapter_model.safetensors"] == (best / "adapter_model.safetensors").read_bytes()
    pair = {"image": picture(40, 30), "text": "the red cup"}
    pulled, saved = (pipeline("visual-grounding", model=str(model)) for model in ("org/cups", best))
    assert pulled(pair) == saved(pair)

    card = ModelCard.load("org/cups")
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")
    evaluations = [line for line in lines if "eval_mean_iou" in line]
    chosen = max(evaluations, key=lambda line: (line["eval_acc@0.5"], -line["step"]))
    assert f"| mean_iou | {chosen['eval_mean_iou']:.3f} |" in card.text
    assert 'model="org/cups"' in card.text and "fine-tuned from `org/base` on `pictures`" in card.text
    assert str(tmp_path.parent) not in card.text, "where the files lie is nobody else's business"


def test_the_command_of_a_card_trains_such_a_model_anywhere(checkpoint, pictures, tmp_path):
    settings = {"model_name_or_path": str(checkpoint), "dataset": str(pictures), "output_dir": str(tmp_path)}
    settings |= {"lora_r": 4, "dora": True, "augment": ["flip", "crop"], "validation_split": "", "learning_rate": 1e-3}
    settings |= {"lr_scheduler_type": "cosine", "push_to_hub": False, "resume_from_checkpoint": "latest"}
    parser = HfArgumentParser(run_visual_grounding.Arguments)
    (args,) = parser.parse_dict(settings)
    python, script, *flags = shlex.split(grounding_hub.describe_command(args, 1))
    assert (python, script) == ("python", "examples/run_visual_grounding.py")
    (again,) = parser.parse_args_into_dataclasses(flags)
    differing = {name for name, value in vars(args).items() if vars(again)[name] != value}
    assert differing == {"model_name_or_path", "dataset", "output_dir", "resume_from_checkpoint"}
    assert (again.model_name_or_path, again.dataset) == (checkpoint.name, "pictures")
    assert grounding_hub.describe_command(args, 4).startswith("accelerate launch --num_processes 4 examples/")


def test_settings_may_come_from_a_file(monkeypatch, checkpoint, pictures, tmp_path):
    settings = {"model_name_or_path": str(checkpoint), "dataset": str(pictures), "output_dir": str(tmp_path / "out")}
    settings |= {"train_val_split": 0.17, "max_train_steps": 2, "per_device_train_batch_size": 2, "augment": ["flip"]}
    settings |= {"lora_r": 4, "dora": True, "learning_rate": 0.01}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(sys, "argv", ["run_visual_grounding.py", str(tmp_path / "settings.yaml")])
    reset_accelerator()
    run_visual_grounding.main()
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["use_dora"]) == (4, True)


def test_a_file_is_read_as_the_command_line_is(monkeypatch, tmp_path):
    file = tmp_path / "settings.yaml"
    monkeypatch.setattr(sys, "argv", ["run_visual_grounding.py", str(file)])
    required = "model_name_or_path: model\noutput_dir: out\n"
    file.write_text(required + "learning_rate: 1e-4\nmixed_precision: no\ndora: yes\nstreaming: no\naugment: [flip]\n")
    args = run_visual_grounding.parse_arguments()
    assert (args.learning_rate, args.mixed_precision, args.augment) == (1e-4, "no", ["flip"])
    assert args.dora is True and args.streaming is False
    file.write_text(required + "augment: []\nlearning_rate: 1e-4\n")
    changes = ["--learning_rate", "1e-3", "--resume_from_checkpoint", "latest"]
    monkeypatch.setattr(sys, "argv", ["run_visual_grounding.py", str(file), *changes])
    args = run_visual_grounding.parse_arguments()
    assert (args.augment, args.learning_rate, args.resume_from_checkpoint) == ([], 1e-3, "latest")
    file.write_text(required + "train: head\n")
    with pytest.raises(SystemExit):
        run_visual_grounding.parse_arguments()
    file.write_text("- a list\n")
    with pytest.raises(SystemExit, match="holds no settings"):
        run_visual_grounding.main()
    file.unlink()
    with pytest.raises(SystemExit, match="^error: Cannot read the settings"):
        run_visual_grounding.main()


def test_there_has_to_be_something_to_evaluate_on(finetune, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "bbox": None}) for row in rows))
    with pytest.raises(SystemExit, match="None of the .* samples to evaluate on has a box"):
        finetune(output_dir=tmp_path / "out", dataset=folder)


def test_what_cannot_be_read_is_no_evaluation(finetune, pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data / "train")
    shutil.copytree(pictures, data / "validation")
    # the only box to evaluate on is of a picture that cannot be read
    (data / "validation" / "0.png").write_bytes(b"damaged")
    rows = [{"file_name": "0.png", "bbox": [1, 2, 20, 25]}, {"file_name": "1.png", "bbox": None}]
    lines = [json.dumps({**row, "expression": "red"}) for row in rows]
    (data / "validation" / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="None of the samples to evaluate on that can be read"):
        finetune(dataset=data, train_val_split=None, on_error="skip", max_train_steps=1)


def test_a_data_set_on_the_hub_is_trained_on(finetune, pictures, hub, hub_client, tmp_path, monkeypatch):
    hub_client.create_repo("org/pictures", repo_type="dataset")
    hub_client.upload_folder(repo_id="org/pictures", folder_path=pictures, repo_type="dataset")
    settings = {"HF_DATASETS_CACHE": tmp_path / "cache", "HF_HUB_OFFLINE": False, "HF_ENDPOINT": hub.url}
    settings["HF_UPDATE_DOWNLOAD_COUNTS"] = False  # they are kept elsewhere
    for name, value in settings.items():
        monkeypatch.setattr(datasets.config, name, value)
    by_folder, _ = finetune(output_dir=tmp_path / "folder", max_train_steps=2)
    by_hub, _ = finetune(output_dir=tmp_path / "hub", max_train_steps=2, dataset="org/pictures")
    assert by_hub == by_folder


def test_what_cannot_be_pushed_is_known_before_training(finetune, tmp_path, hub, hub_client, monkeypatch):
    options = {"push_to_hub": True, "hub_model_id": "org/cups", "max_train_steps": 2}
    hub.expire_token()
    with pytest.raises(SystemExit, match="Cannot push to 'org/cups'"):
        finetune(**options)
    monkeypatch.setattr(grounding_hub, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="hf auth login"):
        finetune(**options)
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_push_that_fails_leaves_the_model_here(tmp_path, checkpoint, hub, hub_client):
    hub_client.create_repo("org/cups")
    with hub.breaking("commit"), pytest.raises(DataError, match="hf upload org/cups .* --exclude log.jsonl"):
        grounding_hub.push(checkpoint, "org/cups")
    assert (checkpoint / "model.safetensors").is_file()
    assert hub.url in grounding_hub.push(checkpoint, "org/cups")
    assert "model.safetensors" in hub.files("org/cups")


GUIDE = Path(__file__).parents[1] / "examples" / "README.md"
# What keeps a run of the guide short; the last value of an argument counts.
SHORT = {
    "run_visual_grounding.py": "--max_train_steps 2 --per_device_train_batch_size 2 --eval_steps 2 --max_eval_samples 4",
    "evaluate_visual_grounding.py": "--num_cost_samples 0 --max_samples 4",
}


def test_the_guide_works_as_written(monkeypatch, checkpoint, tmp_path):
    """All blocks but those that need the Hub, one after another, on a tiny checkpoint in the place of the shipped one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub_cards").mkdir()
    (tmp_path / "hub_cards" / "scanformer-tiny-scenes").symlink_to(checkpoint)
    (tmp_path / "examples").symlink_to(GUIDE.parent)
    (tmp_path / "outputs").mkdir()
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = next(block for language, block in blocks if language == "json")
    names = [f"{number:04}.jpg" for number in range(1, 7)]
    (tmp_path / "my-pictures").mkdir()
    for name in names:
        picture(320, 240).save(tmp_path / "my-pictures" / name)
    more = [{"file_name": name, "expression": "the cup", "bbox": [1, 2, 30, 40]} for name in names[2:]]
    metadata = lines + "\n".join(map(json.dumps, more))
    (tmp_path / "my-pictures" / "metadata.jsonl").write_text(metadata)

    ran = []
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(GUIDE), "exec"), {})
        elif language == "bash" and "--push_to_hub" not in block:
            _, script, *arguments = shlex.split(block.replace("\\\n", " "))
            command = [script, *arguments, *shlex.split(SHORT[Path(script).name])]
            monkeypatch.setattr(sys, "argv", command)
            reset_accelerator()
            runpy.run_path(script, run_name="__main__")
            ran.append(Path(script).name)
    assert ran == ["evaluate_visual_grounding.py", "run_visual_grounding.py"]
    assert ScanFormerForVisualGrounding.from_pretrained("outputs/merged").num_parameters() > 0
    (pushing,) = [block for _, block in blocks if "--push_to_hub" in block]
    arguments = shlex.split(pushing.replace("\\\n", " ").splitlines()[1])[2:]
    (args,) = HfArgumentParser(run_visual_grounding.Arguments).parse_args_into_dataclasses(arguments)
    assert args.push_to_hub and args.train == "lora"
