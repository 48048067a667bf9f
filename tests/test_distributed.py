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
Two processes on the CPU, over gloo. They are launched once, as

    ACCELERATE_USE_CPU=true accelerate launch --config_file examples/accelerate_configs/cpu_2_processes.yaml ...

and do all that the tests below look at, one after another; see `work`. (`accelerate launch --cpu --num_processes 2` starts a
single process unless it is given an MPI.)
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ground_dataset
import pyarrow.parquet as pq
import pytest
import run_visual_grounding
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import picture, save_tiny_checkpoint, take_row, tiny_inputs, tiny_labels, tiny_model
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

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


def grounding_arguments(folder: Path, output: str, **options) -> dict:
    return {
        "model": folder / "checkpoint",
        "dataset": folder / "pictures",
        "output": folder / output,
        "rows_per_part": 3,
        "dataloader_num_workers": 0,
        **options,
    }


def work(folder: Path):
    """What each of the two processes does."""
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    train_extremes(accelerator, folder, sharded=False)
    train_extremes(accelerator, folder, sharded=True)
    call(ground_dataset.main, "ground_dataset.py", grounding_arguments(folder, "two.parquet"))
    call(run_visual_grounding.main, "run_visual_grounding.py", training_arguments(folder, "two", batch_size=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which two processes have worked."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_checkpoint(folder / "checkpoint")
    (folder / "pictures").mkdir()
    with (folder / "pictures" / "metadata.jsonl").open("w") as file:
        for row in range(13):
            width, height = 20 + row % 3 * 12, 20 + row % 4 * 8
            picture(width, height, seed=row).save(folder / "pictures" / f"{row:02}.png")
            box = [2, 3, 12 + row % 5, 15]
            file.write(json.dumps({"file_name": f"{row:02}.png", "expression": "the circle", "bbox": box}) + "\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", CONFIGS / "cpu_2_processes.yaml", __file__, folder]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "examples", ROOT / "tests")))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            # they need seconds; a deadlock would last for ever
            code = process.wait(timeout=500)
        except subprocess.TimeoutExpired:
            # the launcher ends its processes, which are not in its group
            process.terminate()
            code = process.wait(timeout=60)
    assert code == 0, (folder / "log").read_text()[-5000:]
    return folder


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_opposite_selections_neither_hang_nor_part_the_processes(folder, kind):
    expected = train_alone()
    for rank in range(2):
        weights = torch.load(folder / f"extremes-{kind}-{rank}.pt")
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"merge_constant_tokens": False}, {"relevance_loss_coefficient": 0.0}], ids=str
)
def test_every_parameter_gets_a_gradient_whatever_is_selected(threshold, options):
    """So DDP needs no `find_unused_parameters`: no process waits for a gradient that another does not have."""
    model = tiny_model(**options).train()
    step_loss(model, model.config, tiny_inputs(model.config), 0, threshold, has_target=False).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def read_losses(path: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def test_two_processes_train_as_one_does(folder):
    """With the same global batch."""
    call(run_visual_grounding.main, "run_visual_grounding.py", training_arguments(folder, "one", batch_size=4))
    one, two = read_losses(folder / "one"), read_losses(folder / "two")
    assert sorted(one) == sorted(two) == [1, 2, 3, 4]
    for step, line in one.items():
        assert line == pytest.approx(two[step], rel=LOSS_TOLERANCE), step
    weights, expected = (load_file(folder / output / "model.safetensors") for output in ("two", "one"))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=WEIGHT_TOLERANCE, msg=name)


def test_one_process_goes_on_from_a_checkpoint_of_two(folder):
    shutil.copytree(folder / "two" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    arguments = training_arguments(folder, "resumed", batch_size=4, resume_from_checkpoint="latest")
    call(run_visual_grounding.main, "run_visual_grounding.py", arguments)
    two, resumed = read_losses(folder / "two"), read_losses(folder / "resumed")
    assert sorted(resumed) == [3, 4]
    for step, line in resumed.items():
        assert line == pytest.approx(two[step], rel=LOSS_TOLERANCE), step


def test_two_processes_ground_as_one_does(folder):
    call(ground_dataset.main, "ground_dataset.py", grounding_arguments(folder, "one.parquet", batch_size=1))
    two, one = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("two", "one"))
    assert [row["row"] for row in two] == list(range(13))
    for row, expected in zip(two, one):
        assert row["box"] == pytest.approx(expected["box"], abs=1e-3)
        assert row["score"] == pytest.approx(expected["score"], abs=1e-3)
        assert row["patches_read"] == expected["patches_read"]
    assert "13 of them, 0 of which cannot be used, with 2 processes" in (folder / "log").read_text()


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
    work(Path(sys.argv[1]))
