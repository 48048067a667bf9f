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
Two processes on the CPU, over gloo. They are launched twice, as

    accelerate launch --cpu --num_processes 2 ...
    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml --num_processes 2 ...

and do all that the tests below look at, one after another; see `work` and `work_sharded`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import evaluate_visual_grounding
import ground_dataset
import pyarrow.parquet as pq
import pytest
import run_visual_grounding
import run_visual_grounding_trainer
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, is_deepspeed_available
from grounding.checks import DataError
from grounding.processes import check_processes, start_processes
from safetensors.torch import load_file
from tiny import ALL_PARTS, picture, save_tiny_checkpoint, take_row, tiny_inputs, tiny_labels, tiny_model
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from modeling_scanformer import ScanFormerForVisualGrounding, scan_scanformer
from modeling_scanformer.layer_scanformer import ScanFormerLayer


ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "accelerate_configs"

# Gradients are summed in another order. Logged losses were measured to be equal in all their digits; the weights after four
# steps of AdamW, whose first steps magnify differences, to differ by up to 7e-5.
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 5e-4
LEARNING_RATE = 0.05

# For every step, what each process has: its row of the batch, its selection threshold, and whether its expression has a target.
# Everything is read by one process while the other selects nothing; patch counts always differ.
STEPS = [((0, 0.0, True), (1, 1.0, True)), ((2, 1.0, True), (0, 0.0, True)), ((1, 0.5, False), (2, 0.5, True))]


def step_loss(model, config, inputs, row: int, threshold: float, has_target: bool) -> torch.Tensor:
    config.selection_threshold = threshold
    labels = tiny_labels()[row : row + 1]
    labels = labels if has_target else labels * torch.nan
    return model(**take_row(inputs, row, config.num_scales), labels=labels).loss


def train_extremes(accelerator: Accelerator, folder: Path, sharded: bool):
    """Steps with opposite selections on the two processes; each saves the weights and boxes that it ends with."""
    model = tiny_model().train()
    inputs, config = tiny_inputs(model.config), model.config
    if sharded:
        for module in model.modules():
            if isinstance(module, ScanFormerLayer):
                fully_shard(module)
        fully_shard(model)
        register_fsdp_forward_method(model, "generate")
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    else:
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    for shares in STEPS:
        loss = step_loss(model, config, inputs, *shares[accelerator.process_index])
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    model = accelerator.unwrap_model(model).eval()
    weights = {name: tensor.full_tensor() if sharded else tensor for name, tensor in model.state_dict().items()}
    weights["boxes"] = model.generate(**inputs).scale_boxes
    # as if a pass cost nothing: a batch of three is read in parts, and one of one is not
    rows = slice(0, 3) if accelerator.process_index == 0 else slice(1, 2)
    share = inputs if accelerator.process_index == 0 else take_row(inputs, 1, config.num_scales)
    with patch.dict(scan_scanformer.TOKENS_PER_PASS, cpu=0):
        torch.testing.assert_close(model.generate(**share).scale_boxes, weights["boxes"][rows])
    if sharded:
        rule = {"weights": [[0.0] * config.hidden_size] * 2, "biases": [0.0] * 2, "threshold": 0.5, "alpha": 0.01}
        rule |= {"confidence": 0.95, "num_samples": 1000, "fingerprint": [], "options": {}}
        model.generation_config.early_exit_rule = rule
        for option in ({"stopping_score": 0.5}, {"early_exit": True}):
            with pytest.raises(ValueError, match="Under FSDP no sample can leave early"):
                model.generate(**inputs, **option)
    torch.save(weights, folder / f"extremes-{'sharded' if sharded else 'ddp'}-{accelerator.process_index}.pt")


def train_alone() -> dict[str, torch.Tensor]:
    """The same in one process: the gradient is the mean of those of the two shares."""
    model = tiny_model().train()
    inputs = tiny_inputs(model.config)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for shares in STEPS:
        for share in shares:
            (step_loss(model, model.config, inputs, *share) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {**model.state_dict(), "boxes": model.eval().generate(**inputs).scale_boxes}


def call(main, script: str, arguments: dict):
    """Run a script's `main` as from the command line."""
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.argv = [script, *(f"--{name}={value}" for name, value in arguments.items())]
    main()


def training_arguments(folder: Path, output: str, batch_size: int, **options) -> dict:
    return {
        "model_name_or_path": folder / "checkpoint",
        "dataset": folder / "pictures",
        "validation_split": "train",
        "output_dir": folder / output,
        "max_train_steps": 4,
        "per_device_train_batch_size": batch_size,
        "num_warmup_steps": 1,
        "selection_warmup_steps": 1,
        "selection_anneal_steps": 2,
        "logging_steps": 1,
        "checkpointing_steps": 2,
        "dataloader_num_workers": 0,
        **options,
    }


SUPERVISED = {
    "dataset": "scenes",
    "dataset_level": "easy",
    "validation_split": "",
    "optimizer": "muon",
    "scene_supervision": 1.0,
    # in an Encoder1 of two layers, no layer is told which words fit; in smaller pictures, nothing can be named
    "config_overrides": "selection_layer=3",
    "longest_edge": 64,
}


def grounding_arguments(folder: Path, output: str, **options) -> dict:
    return {
        "model": folder / "checkpoint",
        "dataset": folder / "pictures",
        "output": folder / output,
        "rows_per_part": 3,
        "dataloader_num_workers": 0,
        **options,
    }


def evaluation_arguments(folder: Path, output: str) -> dict:
    options = {"split": "train", "batch_size": 2, "num_cost_samples": 0, "dataloader_num_workers": 0}
    return {"model": folder / "checkpoint", "dataset": folder / "pictures", "output": folder / output, **options}


def work(folder: Path):
    """What each of the two processes does."""
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    train_extremes(accelerator, folder, sharded=False)
    train_extremes(accelerator, folder, sharded=True)
    call(ground_dataset.main, "ground_dataset.py", grounding_arguments(folder, "two.parquet"))
    call(evaluate_visual_grounding.main, "evaluate_visual_grounding.py", evaluation_arguments(folder, "two.json"))
    call(run_visual_grounding.main, "run_visual_grounding.py", training_arguments(folder, "two", batch_size=2))
    arguments = training_arguments(folder, "spanning", batch_size=2, logging_steps=3)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    arguments = training_arguments(folder, "two-supervised", batch_size=2, **SUPERVISED)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)


def allow_on_the_cpu(kind: DistributedType):
    """Accelerate leaves sharding to GPUs: told that there are some, it shards on the CPU as well."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", kind)


def work_sharded(folder: Path):
    """The same under FSDP2."""
    allow_on_the_cpu(DistributedType.MULTI_GPU)
    assert Accelerator().is_fsdp2
    arguments = training_arguments(folder, "sharded", batch_size=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    arguments |= {
        "output_dir": folder / "sharded-resumed",
        "resume_from_checkpoint": folder / "sharded" / "checkpoint-2",
    }
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    arguments = training_arguments(folder, "sharded-adapter", batch_size=2, lora_r=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)


def work_deepspeed(folder: Path):
    """Training under DeepSpeed's ZeRO."""
    allow_on_the_cpu(DistributedType.DEEPSPEED)
    arguments = training_arguments(folder, "zero", batch_size=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    arguments |= {"output_dir": folder / "zero-resumed", "resume_from_checkpoint": folder / "zero" / "checkpoint-2"}
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    arguments = training_arguments(folder, "zero-adapter", batch_size=2, lora_r=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)


def launch(folder: Path, *options):
    """Run this file in the processes that Accelerate starts."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *options, __file__, folder]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "examples", ROOT / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            # they need seconds; a deadlock would last for ever
            code = process.wait(timeout=500)
        except subprocess.TimeoutExpired:
            # the launcher ends its processes, which are not in its group
            process.terminate()
            code = process.wait(timeout=60)
    assert code == 0, (folder / "log").read_text()[-5000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of all that the processes need."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_checkpoint(folder / "checkpoint")
    (folder / "pictures").mkdir()
    with (folder / "pictures" / "metadata.jsonl").open("w") as file:
        for row in range(13):
            width, height = 20 + row % 3 * 12, 20 + row % 4 * 8
            picture(width, height, seed=row).save(folder / "pictures" / f"{row:02}.png")
            box = [2, 3, 12 + row % 5, 15]
            file.write(json.dumps({"file_name": f"{row:02}.png", "expression": "the circle", "bbox": box}) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(data):
    """The folder in which two processes have worked."""
    launch(data, "--cpu")
    return data


@pytest.fixture(scope="module")
def sharded(data):
    """The folder in which two processes have worked, each with its share of the model."""
    launch(data, "--config_file", CONFIGS / "fsdp2.yaml", "--main_process_port", "0")
    return data


@pytest.fixture(scope="module")
def one(data):
    """What one process trains with the same global batch."""
    call(run_visual_grounding.main, "run_visual_grounding.py", training_arguments(data, "one", batch_size=4))
    return data / "one"


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_opposite_selections_neither_hang_nor_part_the_processes(folder, kind):
    expected = train_alone()
    for rank in range(2):
        weights = torch.load(folder / f"extremes-{kind}-{rank}.pt")
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"merge_constant_tokens": False}, {"relevance_loss_coefficient": 0.0}, {"patch_box_loss_coefficient": 0.0}],
    ids=str,
)
def test_every_parameter_gets_a_gradient_whatever_is_selected(threshold, options):
    """So DDP needs no `find_unused_parameters`: no process waits for a gradient that another does not have."""
    model = tiny_model(**options).train()
    step_loss(model, model.config, tiny_inputs(model.config), 0, threshold, has_target=False).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def read_log(path: Path, key: str = "loss") -> dict[int, dict]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if key in line}


def assert_trained_alike(folder: Path, expected: Path, name: str = "model.safetensors"):
    logged, expected_log = read_log(folder), read_log(expected)
    assert sorted(logged) == sorted(expected_log) == [1, 2, 3, 4]
    for step, line in expected_log.items():
        assert logged[step] == pytest.approx(line, rel=LOSS_TOLERANCE), step
    weights, expected_weights = (load_file(path / name) for path in (folder, expected))
    assert set(weights) == set(expected_weights)
    for key, tensor in expected_weights.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=WEIGHT_TOLERANCE, msg=key)


def test_two_processes_train_as_one_does(folder, one):
    """With the same global batch."""
    assert_trained_alike(folder / "two", one)


def test_two_processes_learn_from_scene_graphs_as_one_does(folder):
    arguments = training_arguments(folder, "one-supervised", batch_size=4, **SUPERVISED)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    assert_trained_alike(folder / "two-supervised", folder / "one-supervised")
    logged = read_log(folder / "one-supervised", "loss_words")
    assert sum(line["loss_words"] for line in logged.values()) > 0, "words were asked for"


def test_sharded_processes_train_evaluate_and_save_as_one_does(sharded, one):
    assert_trained_alike(sharded / "sharded", one)
    (answers,), (expected,) = (read_log(path, "eval_mean_iou").values() for path in (sharded / "sharded", one))
    assert answers["eval_num_samples"] == expected["eval_num_samples"] == 13
    assert answers["eval_mean_iou"] == pytest.approx(expected["eval_mean_iou"], abs=1e-3)
    model = ScanFormerForVisualGrounding.from_pretrained(sharded / "sharded" / "best")
    assert model.num_parameters() == tiny_model(vocab_size=model.config.vocab_size, **ALL_PARTS).num_parameters()

    arguments = training_arguments(sharded, "one-adapter", batch_size=4, lora_r=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    assert_trained_alike(sharded / "sharded-adapter", sharded / "one-adapter", "adapter_model.safetensors")


@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
def test_processes_of_deepspeed_train_as_one_does(data, one):
    launch(data, "--config_file", CONFIGS / "deepspeed_zero2.yaml", "--main_process_port", "0")
    assert_trained_alike(data / "zero", one)
    weights, expected = (load_file(data / name / "model.safetensors") for name in ("zero-resumed", "zero"))
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    arguments = training_arguments(data, "one-adapter-of-deepspeed", batch_size=4, lora_r=2)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    assert_trained_alike(data / "zero-adapter", data / "one-adapter-of-deepspeed", "adapter_model.safetensors")


def test_sharded_processes_resume(sharded):
    weights, expected = (load_file(sharded / name / "model.safetensors") for name in ("sharded-resumed", "sharded"))
    assert sorted(read_log(sharded / "sharded-resumed")) == [3, 4]
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize("name, options", [("sharded", {}), ("sharded-adapter", {"lora_r": 2})])
def test_one_process_goes_on_from_a_checkpoint_of_sharded_ones(sharded, name, options):
    arguments = training_arguments(sharded, f"{name}-alone", batch_size=4, **options)
    arguments["resume_from_checkpoint"] = sharded / name / "checkpoint-2"
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    whole, resumed = read_log(sharded / name), read_log(sharded / f"{name}-alone")
    assert sorted(resumed) == [3, 4]
    for step, line in resumed.items():
        assert line == pytest.approx(whole[step], rel=LOSS_TOLERANCE), step


@pytest.mark.parametrize(
    "options, refusal",
    [
        ({"ema_decay": 0.9}, "--ema_decay does not go with FSDP"),
        ({"load_in_4bit": True}, "--load_in_4bit does not go with FSDP"),
        ({"on_error": "skip"}, "--on_error skip does not go with FSDP"),
        ({"optimizer": "muon"}, "--optimizer muon needs whole matrices"),
        ({"scene_supervision": 1.0}, "--scene_supervision brings a module of its own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_sharded_model_cannot_do_is_refused(options, refusal):
    usual = {
        "ema_decay": None,
        "load_in_4bit": False,
        "on_error": "stop",
        "optimizer": "adamw",
        "scene_supervision": 0.0,
    }
    args = SimpleNamespace(**{**usual, **options})

    def accelerator(kind: DistributedType, is_fsdp2: bool = False):
        return SimpleNamespace(distributed_type=kind, is_fsdp2=is_fsdp2)

    with pytest.raises(DataError, match=refusal):
        run_visual_grounding.check_sharding(args, accelerator(DistributedType.FSDP, is_fsdp2=True))
    if {"optimizer", "scene_supervision"} & options.keys():
        with pytest.raises(DataError, match=refusal):
            run_visual_grounding.check_sharding(args, accelerator(DistributedType.DEEPSPEED))
    run_visual_grounding.check_sharding(args, accelerator(DistributedType.MULTI_CPU))


def test_processes_that_would_work_otherwise_than_told_are_refused(monkeypatch):
    def accelerator(kind: DistributedType, number: int = 2, is_fsdp2: bool = False):
        return SimpleNamespace(num_processes=number, distributed_type=kind, is_fsdp2=is_fsdp2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(accelerator(DistributedType.MULTI_CPU))
    check_processes(accelerator(DistributedType.FSDP, is_fsdp2=True))
    with pytest.raises(DataError, match="none knows of the others.*--cpu --num_processes"):
        check_processes(accelerator(DistributedType.NO, number=1))
    with pytest.raises(DataError, match="fsdp_version"):
        check_processes(accelerator(DistributedType.FSDP))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(DataError, match="shards nothing on the CPU, as FSDP"):
        check_processes(accelerator(DistributedType.MULTI_CPU))


def test_processes_are_started_only_where_the_launcher_left_that_to_others(monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    start_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr("grounding.processes.psutil.Process.cmdline", lambda process: ["bash", "run.sh"])
    with pytest.raises(DataError, match="accelerate launch --cpu --num_processes N SCRIPT.*run.sh"):
        start_processes()
    monkeypatch.setattr(
        "grounding.processes.psutil.Process.cmdline",
        lambda process: [
            "python",
            "accelerate",
            "launch",
            "--cpu",
            "--num_machines=2",
            "--num_processes=4",
            "script.py",
        ],
    )
    with pytest.raises(DataError, match="an MPI"):
        start_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    start_processes()


def test_one_process_goes_on_from_a_checkpoint_of_two(folder):
    shutil.copytree(folder / "two" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    arguments = training_arguments(folder, "resumed", batch_size=4, resume_from_checkpoint="latest")
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    two, resumed = read_log(folder / "two"), read_log(folder / "resumed")
    assert sorted(resumed) == [3, 4]
    for step, line in resumed.items():
        assert line == pytest.approx(two[step], rel=LOSS_TOLERANCE), step


def test_a_checkpoint_keeps_the_losses_of_both_processes(folder):
    """Where a line of the log spans it: the steps before it are those of the two, the steps after it of one."""
    arguments = {"logging_steps": 3, "checkpointing_steps": 2}
    copy = folder / "spanning-resumed"
    shutil.copytree(folder / "spanning" / "checkpoint-2", copy / "checkpoint-2")
    arguments |= {"resume_from_checkpoint": "latest"}
    arguments = training_arguments(folder, "spanning-resumed", batch_size=4, **arguments)
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    assert read_log(copy)[3] == pytest.approx(read_log(folder / "spanning")[3], rel=LOSS_TOLERANCE)


def test_two_processes_ground_as_one_does(folder):
    call(ground_dataset.main, "ground_dataset.py", grounding_arguments(folder, "one.parquet", batch_size=1))
    two, one = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("two", "one"))
    assert [row["row"] for row in two] == list(range(13))
    for row, expected in zip(two, one):
        assert row["box"] == pytest.approx(expected["box"], abs=1e-3)
        assert row["score"] == pytest.approx(expected["score"], abs=1e-3)
        assert row["patches_read"] == expected["patches_read"]
    assert "13 of them, 0 of which cannot be used, with 2 processes" in (folder / "log").read_text()


def test_two_processes_evaluate_as_one_does(folder):
    call(evaluate_visual_grounding.main, "evaluate_visual_grounding.py", evaluation_arguments(folder, "one.json"))
    two, one = (json.loads((folder / f"{name}.json").read_text()) for name in ("two", "one"))
    assert two["num_samples"] == one["num_samples"] == 13
    assert two["mean_iou"] == pytest.approx(one["mean_iou"], abs=1e-4)
    assert two["device"].startswith("2 x ")


@pytest.mark.parametrize(
    "script", [run_visual_grounding, run_visual_grounding_trainer, evaluate_visual_grounding, ground_dataset]
)
def test_every_script_starts_the_processes_that_it_was_asked_for(script, monkeypatch):
    def start():
        raise DataError("started")

    monkeypatch.setattr(script, "start_processes", start)
    monkeypatch.setattr(sys, "argv", ["script", "--model=m", "--dataset=d", "--output=o.json"])
    if script in (run_visual_grounding, run_visual_grounding_trainer):
        monkeypatch.setattr(sys, "argv", ["script", "--model_name_or_path=m", "--output_dir=o"])
    with pytest.raises(SystemExit, match="error: started"):
        script.main()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_all_that_the_configurations_say(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    # of these, unknown ones would be passed over in silence
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert {**config.fsdp_config, **config.deepspeed_config}.keys() <= options.keys()
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == ScanFormerLayer.__name__


if __name__ == "__main__":
    # the runs of a process share its group: in one that is made while the other process leaves the last, both wait for ever
    PartialState.destroy_process_group = lambda *args, **kwargs: None
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        work_sharded(Path(sys.argv[1]))
    elif os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        work_deepspeed(Path(sys.argv[1]))
    else:
        start_processes()
        work(Path(sys.argv[1]))
