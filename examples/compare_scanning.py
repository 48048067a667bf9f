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
Compare reading what matters with reading everything and with one scale alone, all trained from scratch on Scenes.

    python examples/compare_scanning.py --output_dir outputs/scanning

The arms have one size, one budget of samples and the same data. Each trains in two stages: `--start_steps` at a constant
learning rate, with every patch read, and `--finish_steps` in which the rate falls to 0 and, where the arm has it, the
selection is learned. Arms that differ in the second stage only share the first: those of one scale start from the model of
three, too, except the one from scratch, and those that learn the selection otherwise start with a new selection head.
OUT/table.md has a row for every arm, the mean over its seeds.

What is done is not done again, and a stage that was stopped goes on, so the command can be repeated; other settings need
another folder. Several commands can share the work if they have different seeds; the table is then made by the command with
all of them.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

from grounding.checkpoints import holds_model
from grounding.checks import DataError
from grounding.report import to_table
from grounding.scripts import evaluate_once, run_script
from safetensors.torch import load_file
from scenes.create_model import create_model
from transformers import HfArgumentParser, set_seed

from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding, ScanFormerProcessor


MODEL = (
    "hidden_size=96,num_attention_heads=3,intermediate_size=384,num_hidden_layers=6,selection_layer=4,patch_size=8,"
    "patch_box_loss_coefficient=0.0"
)
LONGEST_EDGE = 64  # of the finest of three scales, in pixels
SELECTION = ("--selection_threshold", "0.1", "--selection_anneal_steps", "100")
EVERY_PATCH = ("--selection_threshold", "0")
SELECTOR = "model.selection_head."
# weights with a row for every scale
BY_SCALE = ("model.reg_tokens.weight", "model.patch_embeddings.scale_embeddings.weight")


@dataclass(frozen=True)
class Arm:
    """
    One way to read pictures.

    Args:
        finish (`tuple[str, ...]`): Flags of the second stage.
        shape (`str`, *optional*): What differs in the configuration from the first stage on.
        changes (`str`, *optional*): What differs in the configuration of the second stage.
        scale (`int`, *optional*): The only scale that is left for the second stage.
        fresh_selector (`bool`, *optional*): Whether the second stage starts from an untrained selection head.
        num_seeds (`int`, *optional*): How many of the seeds 0, 1, ... it is trained with.
    """

    finish: tuple[str, ...] = SELECTION
    shape: str = ""
    changes: str = ""
    scale: int | None = None
    fresh_selector: bool = False
    num_seeds: int = 1


NO_TERMS = "relevance_loss_coefficient=0.0,selection_rate_loss_coefficient=0.0"
ARMS = {
    "selected patches": Arm(num_seeds=3),
    "every patch": Arm(EVERY_PATCH, num_seeds=3),
    "finest scale alone": Arm(EVERY_PATCH, changes="num_scales=1", scale=2, num_seeds=3),
    "coarsest scale alone": Arm(EVERY_PATCH, changes="num_scales=1", scale=0),
    "finest scale alone from scratch": Arm(EVERY_PATCH, shape="num_scales=1"),
    "unselected patches dropped": Arm(changes="use_constant_token=false"),
    "selection end to end": Arm(changes=NO_TERMS, fresh_selector=True),
    "selection by the rate term": Arm(changes="relevance_loss_coefficient=0.0", fresh_selector=True),
    "selection by the relevance term": Arm(changes="selection_rate_loss_coefficient=0.0", fresh_selector=True),
    "boxes of patches": Arm(shape="patch_box_loss_coefficient=3.0", num_seeds=3),
    "Encoder1 of 2 layers": Arm(shape="selection_layer=2"),
    "Encoder1 of 5 layers": Arm(shape="selection_layer=5"),
}


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder for the arms and the table."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Some of: {', '.join(ARMS)}."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Seeds of weights and data, of 0, 1 and 2; most arms have 0 only."},
    )
    dataset_level: str = field(default="colors", metadata={"help": "Level of Scenes."})
    splits: list[str] = field(
        default_factory=lambda: ["test", "test-night", "test-fog", "test-rain"],
        metadata={"help": "Splits to evaluate on; the first gives costs as well."},
    )
    start_steps: int = field(default=800, metadata={"help": "Steps at a constant learning rate."})
    finish_steps: int = field(default=400, metadata={"help": "Steps in which it falls to 0."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Batch size."})
    num_test_samples: int = field(default=1000, metadata={"help": "Samples of each split to evaluate on."})
    test_seed: int = field(default=123, metadata={"help": "Seed of the samples to evaluate on."})


def train(args: Arguments, start: Path, output: Path, seed: int, flags: tuple[str, ...]):
    """A stage of the training, unless it is done."""
    if holds_model(output):
        return
    resume = ("--resume_from_checkpoint", "latest") if any(output.glob("checkpoint-*")) else ()
    run_script(
        "run_visual_grounding.py",
        [*flags, *resume, "--validation_split", ""],
        model_name_or_path=start,
        output_dir=output,
        dataset="scenes",
        dataset_level=args.dataset_level,
        expressions_per_scene=4,
        seed=seed,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.per_device_train_batch_size,
        mixed_precision="no",
        attn_implementation="eager",
        checkpointing_steps=200,
        checkpoints_total_limit=1,
    )


def train_start(args: Arguments, arm: Arm, seed: int) -> Path:
    """The first stage, which reads every patch; shared by the arms of one shape."""
    name = f"start-{arm.shape or 'num_scales=3'}-{seed}"
    untrained, output = (Path(args.output_dir) / f"{name}{suffix}" for suffix in ("-untrained", ""))
    if not (untrained / "processor_config.json").is_file():
        for part in create_model(",".join(filter(None, [MODEL, arm.shape])), LONGEST_EDGE, seed):
            part.save_pretrained(untrained)
    flags = ("--max_train_steps", str(args.start_steps), "--num_warmup_steps", "100")
    train(args, untrained, output, seed, (*flags, "--lr_scheduler_type", "constant_with_warmup", *EVERY_PATCH))
    return output


def train_arm(args: Arguments, name: str, seed: int) -> Path:
    """Both stages."""
    arm = ARMS[name]
    folder = Path(args.output_dir) / f"{name.replace(' ', '-')}-{seed}"
    start = train_start(args, arm, seed)
    if arm.changes:
        start = change(start, folder / "start", arm, seed)
    flags = ("--max_train_steps", str(args.finish_steps), "--num_warmup_steps", "0", "--lr_scheduler_type", "linear")
    train(args, start, folder, seed + 1000, (*flags, *arm.finish))
    return folder


def change(start: Path, output: Path, arm: Arm, seed: int) -> Path:
    """The model of the first stage, changed to what the second one needs; what it lacks is untrained."""
    config = ScanFormerConfig.from_pretrained(start)
    config.update_from_string(arm.changes)
    processor = ScanFormerProcessor.from_pretrained(start)
    weights = load_file(start / "model.safetensors")
    if arm.scale is not None:
        processor.image_processor.num_scales = 1
        processor.image_processor.size = {"longest_edge": LONGEST_EDGE // 2 ** (2 - arm.scale)}
        weights |= {name: weights[name][arm.scale : arm.scale + 1] for name in BY_SCALE}
    set_seed(seed)
    model = ScanFormerForVisualGrounding(config)
    known = {name for name in model.state_dict() if not (arm.fresh_selector and name.startswith(SELECTOR))}
    model.load_state_dict({name: weight for name, weight in weights.items() if name in known}, strict=False)
    for part in (model, processor):
        part.save_pretrained(output)
    return output


def evaluate(args: Arguments, folder: Path) -> dict[str, dict]:
    """Results on every split."""
    return {
        split: evaluate_once(
            folder / f"{split}.json",
            model=folder,
            dataset="scenes",
            dataset_level=args.dataset_level,
            split=split,
            seed=args.test_seed,
            max_samples=args.num_test_samples,
            num_cost_samples=20 if split == args.splits[0] else 0,
        )
        for split in args.splits
    }


def to_rows(results: dict[str, list[dict[str, dict]]]) -> list[list[str]]:
    """Cells of the table, an arm a row; `results` has the splits' results of every seed."""

    def spread(values: list[float]) -> str:
        deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):.1f}{deviation}"

    rows = []
    for name, seeds in results.items():
        first, *others = seeds[0]
        of_first = [splits[first] for splits in seeds]
        by_scale = zip(*(result["scale_acc@0.5"] for result in of_first))
        row = [name, str(len(seeds)), spread([100 * result["acc@0.5"] for result in of_first])]
        row.append(" / ".join(f"{100 * mean(accuracies):.1f}" for accuracies in by_scale))
        row += [spread([100 * splits[split]["acc@0.5"] for splits in seeds]) for split in others]
        row.append(f"{100 * mean(result['patches_read_total'] for result in of_first):.1f}")
        row.append(f"{mean(result['flops_per_sample'] for result in of_first) / 1e6:.1f}")
        row.append(f"{mean(result['latency_ms'] for result in of_first):.1f}")
        rows.append(row)
    return rows


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        sys.exit(f"error: there is no arm {unknown}; known are {list(ARMS)}.")
    seeds = {name: [seed for seed in args.seeds if seed in range(ARMS[name].num_seeds)] for name in args.arms}
    if not any(seeds.values()):
        sys.exit(f"error: none of the arms {args.arms} is trained with a seed of {args.seeds}.")
    try:
        results = {
            name: [evaluate(args, train_arm(args, name, seed)) for seed in of_arm]
            for name, of_arm in seeds.items()
            if of_arm
        }
    except DataError as error:
        sys.exit(f"error: {error}")
    output = Path(args.output_dir)
    (output / "table.json").write_text(json.dumps({"settings": asdict(args), "arms": results}, indent=2) + "\n")
    first, *others = args.splits
    header = ["arm", "seeds", f"Acc@0.5 on {first}, %", "by scale, %", *(f"on {split}, %" for split in others)]
    table = to_table([*header, "patches read, %", "MFLOPs", "ms at batch 1"], to_rows(results))
    (output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
