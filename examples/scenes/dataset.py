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
"""Samples by number: for a training loop, for `datasets`, and one at a time."""

import hashlib
import json
import zlib
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from .expressions import Proposer, is_describable
from .language import realize
from .levels import Level, level_of, split_of
from .programs import Facts
from .rendering import render_scene
from .scene import Scene, sample_scene


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "expression": datasets.Value("string"),
        "bbox": datasets.List(datasets.Value("float32")),
        "mask": datasets.Image(),
        "expression_type": datasets.Value("string"),
        "program": datasets.Value("string"),
        "scene": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
    }
)
SCENE, PICTURE, EXPRESSION = range(3)


class ScenesDataset(torch.utils.data.Dataset):
    """
    The samples of a split, each made when it is asked for.

    A sample is a function of the arguments and its index alone: any process can make any of them, in any order, and
    a training run resumes at an index.

    Args:
        split (`str`, *optional*, defaults to `"train"`): One of `SPLITS`.
        seed (`int`, *optional*, defaults to 0): Another seed gives other samples, in every split.
        num_samples (`int`, *optional*): Length of the data set. Without it, it has no end and no length.
        level (`str`, *optional*, defaults to `"standard"`): One of `LEVELS`, or several joined by "+", whose scenes take
            turns. A level can be named more than once.
        no_target (`float`, *optional*, defaults to 0.0): Share of expressions that nothing in the picture fits. Their
            "bbox" is `None`.
        expressions_per_scene (`int`, *optional*, defaults to 1): So many consecutive samples are about one picture,
            which saves rendering it again where they are asked for one after another.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        num_samples: int | None = None,
        level: str = "standard",
        no_target: float = 0.0,
        expressions_per_scene: int = 1,
    ):
        self.split = split_of(split)
        self.levels = [level_of(name, self.split.kind) for name in level.split("+")]
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be positive, got {num_samples}")
        if not 0.0 <= no_target <= 1.0:
            raise ValueError(f"no_target is a probability, got {no_target}")
        if expressions_per_scene < 1:
            raise ValueError(f"expressions_per_scene must be positive, got {expressions_per_scene}")
        self.seed = seed
        self.num_samples = num_samples
        self.no_target = no_target
        self.expressions_per_scene = expressions_per_scene
        self._name = f"{level}-{split}-{seed}"
        self._entropy = (seed, _number_of(self.split.stream), _number_of(level))
        self._last: tuple | None = None

    def __len__(self) -> int:
        if self.num_samples is None:
            raise TypeError("a ScenesDataset without num_samples has no length")
        return self.num_samples

    def __getitem__(self, index: int) -> dict:
        """
        A sample: "image" (PIL, RGB), "expression", "bbox" (list of four floats, xyxy in pixels, or `None`), "mask"
        (boolean array `(height, width)`), "owner" (of every pixel the number of the object seen there, or -1),
        "expression_type", "program" (list of steps), "scene" (scene graph), "image_id", "width", "height".
        """
        if index < 0 or (self.num_samples is not None and index >= self.num_samples):
            raise IndexError(f"index {index} is out of range")
        scene_index, expression_index = divmod(index, self.expressions_per_scene)
        scene, graph, facts, image = self._render(scene_index)
        rng = self._generator(scene_index, EXPRESSION, expression_index)
        proposer = Proposer(scene, facts, self._level(scene_index), rng)
        if rng.random() < self.no_target:
            kind, target, program = "no_target", None, proposer.propose_absent()
        else:
            kind, program, target = proposer.propose()
        return {
            "image": image.copy(),
            "expression": realize(program, rng),
            "bbox": None if target is None else list(scene.objects[target].bbox),
            "mask": np.zeros_like(scene.owner, dtype=bool) if target is None else scene.mask(target),
            "owner": scene.owner,
            "expression_type": kind,
            "program": program,
            "scene": {**graph, "target": target},
            "image_id": f"{self._name}-{scene_index:08d}",
            "width": scene.width,
            "height": scene.height,
        }

    def _level(self, scene_index: int) -> Level:
        return self.levels[scene_index % len(self.levels)]

    def _generator(self, *path: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([*self._entropy, *path]))

    def _render(self, scene_index: int) -> tuple:
        if self._last is None or self._last[0] != scene_index:
            scene, graph, facts = self._draw(scene_index)
            rng = self._generator(scene_index, PICTURE)
            picture = render_scene(scene, rng, self._level(scene_index), self.split.effect)
            self._last = (scene_index, scene, graph, facts, picture)
        return self._last[1:]

    def _draw(self, scene_index: int) -> tuple[Scene, dict, Facts]:
        rng, level = self._generator(scene_index, SCENE), self._level(scene_index)
        while True:
            scene = sample_scene(rng, level, self.split.kind)
            graph = scene.graph()
            facts = Facts(graph)
            if is_describable(scene, facts, level):
                return scene, graph, facts


def make_sample(
    seed: int,
    index: int,
    split: str = "train",
    level: str = "standard",
    no_target: float = 0.0,
    expressions_per_scene: int = 1,
) -> dict:
    """
    One sample, the same for the same arguments in every process; see `ScenesDataset`, which takes the same arguments
    and is the better choice for many samples.
    """
    dataset = ScenesDataset(split, seed, None, level, no_target, expressions_per_scene)
    return dataset[index]


def load_scenes(
    split: str = "train",
    seed: int = 0,
    num_samples: int | None = None,
    level: str = "standard",
    no_target: float = 0.0,
    expressions_per_scene: int = 1,
    streaming: bool = True,
    num_shards: int = 64,
) -> datasets.IterableDataset | datasets.Dataset:
    """
    The samples of a split as a data set of the `datasets` library, "program" and "scene" as JSON.

    Args:
        split, seed, num_samples, level, no_target, expressions_per_scene: See `ScenesDataset`.
        streaming (`bool`, *optional*, defaults to `True`): Make the samples while they are read. The pictures are then
            handed over as they are, without being encoded on the way, and the data set declares no features. With
            `False`, all samples are made now and kept in the cache of `datasets`; `num_samples` is then needed.
        num_shards (`int`, *optional*, defaults to 64): Shards that workers and nodes share out when streaming, with
            the pictures in turn. Without `num_samples`, no shard ends, and a worker never leaves its first one.

    Returns:
        `datasets.IterableDataset` or `datasets.Dataset`.
    """
    arguments = {
        "split": split,
        "seed": seed,
        "num_samples": num_samples,
        "level": level,
        "no_target": no_target,
        "expressions_per_scene": expressions_per_scene,
    }
    ScenesDataset(**arguments)
    if streaming:
        if num_shards < 1:
            raise ValueError(f"num_shards must be positive, got {num_shards}")
        shards = [(number, num_shards) for number in range(num_shards)]
        return datasets.IterableDataset.from_generator(_stream, gen_kwargs={"shards": shards, **arguments})
    if num_samples is None:
        raise ValueError("num_samples is needed where the data set isn't streamed")
    # `datasets` finds a cached data set by its generator's arguments; the sources' digest tells changed code apart.
    generator = partial(_stream, shards=[(0, 1)], sources=_digest_of_sources())
    return datasets.Dataset.from_generator(generator, features=FEATURES, gen_kwargs=arguments)


def _stream(shards: list[tuple[int, int]], sources: str | None = None, **arguments):
    dataset = ScenesDataset(**arguments)
    block = dataset.expressions_per_scene
    for shard, num_shards in shards:
        scene_index = shard
        while dataset.num_samples is None or scene_index * block < dataset.num_samples:
            for index in range(scene_index * block, (scene_index + 1) * block):
                if dataset.num_samples is None or index < dataset.num_samples:
                    yield to_row(dataset[index])
            scene_index += num_shards


def to_row(sample: dict) -> dict:
    """A sample of `ScenesDataset` in the columns of `FEATURES`, the mask as a black and white picture."""
    return {
        **{name: sample[name] for name in FEATURES},
        "mask": Image.fromarray(sample["mask"]),
        "program": json.dumps(sample["program"]),
        "scene": json.dumps(sample["scene"]),
    }


def _number_of(name: str) -> int:
    return zlib.crc32(name.encode())


def _digest_of_sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
