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
Print what a split of Scenes is made of, as Markdown.

    python -m examples.scenes.statistics --split train --num_samples 2000
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from .dataset import ScenesDataset
from .levels import LEVELS, SPLITS
from .programs import Facts, members


WARM_UP = 20


@dataclass
class StatisticsArguments:
    split: str = field(default="train", metadata={"help": f"One of {', '.join(SPLITS)}."})
    level: str = field(default="standard", metadata={"help": f"One of {', '.join(LEVELS)}."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    num_samples: int = field(default=1000, metadata={"help": "Number of samples to look at."})


def measure(samples: Iterable[dict]) -> dict:
    """
    Count what samples are made of.

    Args:
        samples (`Iterable[dict]`): Of `ScenesDataset`, each with a target.

    Returns:
        `dict`: Tables of shares, quantiles, and the accuracy at IoU 0.5 that can be had without understanding.
    """
    types, sizes, chance = Counter(), Counter(), []
    numbers = {"objects per scene": [], "words per expression": [], "target side in pixels": []}
    numbers |= {"target side, % of the longer side": [], "visible share of the target, %": []}
    numbers |= {"longer side of the picture": [], "width : height": []}
    expressions, words = set(), set()
    for sample in samples:
        graph = sample["scene"]
        item = graph["objects"][graph["target"]]
        types[sample["expression_type"]] += 1
        sizes[item["size"]] += 1
        longest = max(sample["width"], sample["height"])
        numbers["objects per scene"].append(len(graph["objects"]))
        numbers["words per expression"].append(len(sample["expression"].split()))
        numbers["target side in pixels"].append(item["side"])
        numbers["target side, % of the longer side"].append(100 * item["side"] / longest)
        numbers["visible share of the target, %"].append(100 * item["visible"])
        numbers["longer side of the picture"].append(longest)
        numbers["width : height"].append(sample["width"] / sample["height"])
        expressions.add(sample["expression"])
        words.update(sample["expression"].split())
        chance.append(_chance(sample))
    return {
        "expression types": types,
        "target sizes": sizes,
        "numbers": numbers,
        "accuracy at IoU 0.5 without understanding": dict(zip(CHANCE, np.mean(chance, axis=0))),
        "distinct expressions": len(expressions),
        "distinct words": len(words),
    }


CHANCE = (
    "the whole picture",
    "the largest object",
    "a random object",
    "a random object that the target's noun fits",
    "a random object that the target's attributes fit",
)


def _chance(sample: dict) -> list[float]:
    graph, boxes = sample["scene"], [item["bbox"] for item in sample["scene"]["objects"]]
    hits = np.array([intersection_over_union(box, sample["bbox"]) >= 0.5 for box in boxes])
    filters = _filters_of_target(sample["program"])
    facts = Facts(graph)
    nouns = _fitting(facts, [step for step in filters if step["attribute"] == "shape"])
    described = _fitting(facts, filters)
    whole = intersection_over_union((0, 0, sample["width"], sample["height"]), sample["bbox"]) >= 0.5
    largest = max(range(len(boxes)), key=lambda number: graph["objects"][number]["side"])
    return [float(whole), float(hits[largest]), hits.mean(), hits[nouns].mean(), hits[described].mean()]


def _filters_of_target(program: list[dict]) -> list[dict]:
    """What is said of the target itself, without relations, order, superlatives and negations."""
    filters, step = [], program[-1]
    while step["function"] not in ("scene", "relate", "between", "intersect"):
        step = program[step["inputs"][0]]
        if step["function"] == "filter":
            filters.append(step)
    return filters


def _fitting(facts: Facts, filters: list[dict]) -> list[int]:
    certain = facts.everything
    for step in filters:
        certain &= facts.having(step["attribute"], step["value"])[0]
    return members(certain)


def intersection_over_union(first, second) -> float:
    """IoU of two boxes, xyxy."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def print_tables(measured: dict) -> None:
    for title in ("expression types", "target sizes"):
        total = sum(measured[title].values())
        print(f"\n| {title} | % |\n| --- | ---: |")
        for name, count in sorted(measured[title].items(), key=lambda entry: -entry[1]):
            print(f"| {name} | {100 * count / total:.1f} |")
    print("\n| | lowest | 10 % | median | 90 % | highest | mean |\n| --- " + "| ---: " * 6 + "|")
    for title, values in measured["numbers"].items():
        quantiles = [*np.quantile(values, (0, 0.1, 0.5, 0.9, 1)), np.mean(values)]
        print(f"| {title} | " + " | ".join(f"{value:.3g}" for value in quantiles) + " |")
    print("\n| accuracy at IoU 0.5 without understanding | % |\n| --- | ---: |")
    for name, accuracy in measured["accuracy at IoU 0.5 without understanding"].items():
        print(f"| {name} | {100 * accuracy:.1f} |")
    print(f"\n{measured['distinct expressions']} distinct expressions, {measured['distinct words']} distinct words")


def main() -> None:
    parser = HfArgumentParser(StatisticsArguments)
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        dataset = ScenesDataset(arguments.split, arguments.seed, arguments.num_samples, arguments.level)
    except ValueError as error:
        parser.error(str(error))
    for index in range(min(WARM_UP, len(dataset))):
        dataset[index]
    seconds = 0.0

    def timed():
        nonlocal seconds
        for index in tqdm(range(len(dataset)), unit="sample"):
            start = time.process_time()
            sample = dataset[index]
            seconds += time.process_time() - start
            yield sample

    print_tables(measure(timed()))
    print(f"{1000 * seconds / len(dataset):.2f} ms of processor time per sample")


if __name__ == "__main__":
    main()
