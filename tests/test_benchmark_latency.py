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
"""examples/benchmark_latency.py and benchmark_sharing.py: everybody in turn, on tiny stand-ins of the same classes."""

import json
import sys

import benchmark_latency
import benchmark_sharing
import pytest
import torch
from grounding import peers
from grounding.latency import Roof, measure_bookkeeping, measure_memory, measure_passes
from grounding.latency_report import compare_settings
from scenes.create_model import create_tokenizer
from transformers import GroundingDinoConfig, OwlViTConfig, ViltConfig

from modeling_scanformer import ScanFormerConfig


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def tiny_peers(monkeypatch):
    text = {**SIZES, "vocab_size": 300}
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    swin["out_indices"] = [2, 3, 4]
    dino = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 9, "encoder_ffn_dim": 32}
    dino |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    configs = {
        "vilt_config": lambda: ViltConfig(**text),
        "owlvit_config": lambda resolution: OwlViTConfig(
            vision_config={**SIZES, "image_size": resolution}, text_config=text, projection_dim=32
        ),
        "grounding_dino_config": lambda: GroundingDinoConfig(
            backbone_config=swin, text_config={**text, "model_type": "bert"}, **dino
        ),
        "scanformer_config": lambda **options: ScanFormerConfig(**text, selection_layer=1, **options),
    }
    for name, config in configs.items():
        monkeypatch.setattr(peers, name, config)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark_latency.py", *map(str, arguments)])
    benchmark_latency.main()


def test_everybody_gets_a_row(tiny_peers, checkpoint, tmp_path, monkeypatch, capsys):
    output = tmp_path / "bench.json"
    run(monkeypatch, "--output", output, "--resolution", 320, "--model", checkpoint, "--rounds", 1)
    rows = json.loads(output.read_text())
    default = [name for name in benchmark_latency.CONTESTANTS if not name.endswith("compiled")]
    names = [name for name in default if not name.startswith("checkpoint")]
    own = [name for name in default if name.startswith(("vilt", "checkpoint"))]
    expected = {*((name, 320) for name in names), *((name, 24) for name in own)}
    assert len(rows) == len(expected) and {(row["name"], row["resolution"]) for row in rows} == expected
    for row in rows:
        assert all(row[name] > 0 for name in ("median_ms", "preprocessing_ms", "roofline_ms", "peak_memory_mb"))
        assert row["end_to_end_ms"] == pytest.approx(row["median_ms"] + row["preprocessing_ms"])
        assert row["name"] != "vilt" or row["ratio_to_dense_vilt"] == 1
    page = output.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out and "| base_given |" in page
    assert output.with_suffix(".png").stat().st_size > 0


def test_given_rates_are_what_is_read(tiny_peers, tmp_path, monkeypatch):
    output = tmp_path / "bench.json"
    arguments = ["--output", output, "--resolution", 640, "--rounds", 1, "--batch_size", 2]
    run(monkeypatch, *arguments, "--contestants", "base_given", "base_every_patch", "base_given_packed")
    rows = {row["name"]: row for row in json.loads(output.read_text())}
    given, every, vilt, packed = (rows[n] for n in ("base_given", "base_every_patch", "vilt", "base_given_packed"))
    text = vilt["tokens"] - 400 - 1
    # [REG] of three scales, and two merged constant tokens
    assert given["rates"] == [1.0, 0.35, 0.2] and given["tokens"] == text + 25 + 35 + 80 + 5
    assert every["tokens"] == text + 25 + 100 + 400 + 5
    assert given["flops"] < vilt["flops"] < every["flops"]
    assert given["saved_flops_share"] == pytest.approx(1 - given["flops"] / every["flops"])
    assert 0 < given["bookkeeping_share"] < 1 and vilt["bookkeeping_share"] is None
    assert "vilt_packed" not in rows and packed["end_to_end_ratio_to_dense_vilt_packed"] is None
    assert all(packed[name] == given[name] for name in ("tokens", "flops", "passes"))
    # three times Encoder1, once Encoder2, and what is outside of them
    assert len(given["passes"]) == 5 and len(vilt["passes"]) == 1


def test_compiled_contestants_do_the_same_work(tiny_peers, tmp_path, monkeypatch):
    output = tmp_path / "bench.json"
    # Dynamo traces; no C++ is compiled
    monkeypatch.setattr(benchmark_latency, "COMPILE_OPTIONS", {"cpu": {"backend": "eager"}})
    names = ["vilt_compiled", "base_given_compiled"]
    run(
        monkeypatch, "--output", output, "--resolution", 640, "--rounds", 1, "--batch_size", 2, "--contestants", *names
    )
    rows = {row["name"]: row for row in json.loads(output.read_text())}
    assert rows.keys() == {"vilt", "base_given", *names}
    for name in ("vilt", "base_given"):
        assert all(rows[name + "_compiled"][key] == rows[name][key] for key in ("tokens", "flops"))
    compiled = rows["base_given_compiled"]
    assert compiled["bookkeeping_share"] is None
    ratio = compiled["end_to_end_ms"] / rows["vilt_compiled"]["end_to_end_ms"]
    assert compiled["end_to_end_ratio_to_dense_vilt_compiled"] == pytest.approx(ratio)


def test_sharing_is_timed_and_changes_no_answer(tiny_peers, checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "sharing.json"
    arguments = ["--model", checkpoint, "--number", 3, "--resolution", 320, "--rounds", 1]
    monkeypatch.setattr(sys, "argv", list(map(str, ["benchmark_sharing.py", "--output", output, *arguments])))
    benchmark_sharing.main()
    rows = json.loads(output.read_text())
    assert len(rows) == 10 and {row["model"] for row in rows} == {"base, 320 px", "checkpoint, 24 px"}
    assert all(row["ms_per_answer"] > 0 for row in rows)
    assert all(row["ratio_to_one_by_one"] == 1 for row in rows if row["way"] == "one by one")
    assert "| base, 320 px | 3 expressions, one picture |" in output.with_suffix(".md").read_text()

    wrong = {("asked", "one by one"): lambda: torch.zeros(2, 4), ("asked", "wrongly"): lambda: torch.ones(2, 4)}
    with pytest.raises(benchmark_sharing.DataError, match="wrongly: other boxes"):
        benchmark_sharing.measure("tiny", wrong, 1, torch.device("cpu"))


def test_settings_are_compared():
    def row(resolution, batch_size, milliseconds):
        names = {"name": "base_given", "dtype": "fp32", "rates": [1.0, 0.35]}
        return {**names, "resolution": resolution, "batch_size": batch_size, "end_to_end_ms": milliseconds}

    lines = dict(compare_settings([row(320, 1, 100), row(640, 1, 140), row(320, 8, 400)]))
    assert lines == {
        "base_given, fp32, batch 1: end to end at 640 px / at 320 px": "1.40",
        "base_given, fp32, 320 px: end to end of a sample in a batch of 8 / alone": "0.50",
    }


class Twice(torch.nn.Module):
    """A model of one layer that is called twice, each call a pass."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(64, 32)
        self.config = type("Config", (), {"_attn_implementation": "eager"})

    def set_attn_implementation(self, name):
        pass

    def step(self, x):
        return self.inner(x)

    def forward(self, x):
        return torch.cat([self.step(x), self.step(x)])


def linear_contestant() -> tuple[peers.Contestant, torch.nn.Linear]:
    model = Twice()
    return peers.Contestant("linear", model, None, lambda model, inputs: model(**inputs), None), model.inner


def test_weights_count_once_a_pass():
    contestant, inner = linear_contestant()
    size = inner.weight.nbytes + inner.bias.nbytes
    inputs = {"x": torch.randn(3, 64)}
    flops = 2 * 3 * 64 * 32
    assert measure_passes(contestant, inputs) == [(2 * flops, size)]
    contestant.passes = ["step"]
    assert measure_passes(contestant, inputs) == [(flops, size), (flops, size), (0, 0)]

    assert "step" not in vars(contestant.model)

    # the first pass is bound by operations, the second by memory
    assert Roof(flops=100, bandwidth=10).seconds([(200, 10), (50, 30)]) == pytest.approx(2 + 3)


def test_memory_is_what_a_run_holds_at_its_worst():
    contestant, inner = linear_contestant()
    inputs = {"x": torch.randn(1000, 64)}

    def run(model, inputs):
        for _ in range(3):
            large = inputs["x"].repeat(2, 1)
        return inner(large)

    contestant.call = run
    held = inner.weight.nbytes + inner.bias.nbytes + inputs["x"].nbytes
    grown = measure_memory(contestant, inputs, torch.device("cpu")) - held
    # while the last copy is made, the one before is still there
    assert grown == pytest.approx(4 * inputs["x"].nbytes, rel=0.01)


def test_bookkeeping_is_what_computes_nothing():
    contestant, inner = linear_contestant()
    weight, index = torch.randn(300, 300), torch.randint(0, 300, (2000,))
    contestant.call = lambda model, inputs: weight @ weight
    assert measure_bookkeeping(contestant, {}, torch.device("cpu")) < 0.01
    contestant.call = lambda model, inputs: weight[index]
    assert measure_bookkeeping(contestant, {}, torch.device("cpu")) > 0.9


def test_only_resolutions_of_whole_pyramids(tiny_peers):
    tokenizer = create_tokenizer(40)
    model, processor = peers.create_base(1280, tokenizer)
    assert model.config.num_scales == 4 and processor.image_processor.size["longest_edge"] == 1280
    for resolution in (160, 480, 700):
        with pytest.raises(peers.DataError, match="320 pixels, 640, 1280"):
            peers.create_base(resolution, tokenizer)
    with pytest.raises(peers.DataError, match="--rates gives 2"):
        peers.create_scanformers("base", model, processor, ["given"], [0.3, 0.2])


def test_senseless_arguments_are_told_before_any_work(tmp_path, monkeypatch):
    output = ["--output", tmp_path / "bench.json"]
    for arguments, message in (
        ([*output, "--contestants", "yolo"], "not yolo"),
        ([*output, "--dtype", "int8"], "not int8"),
        ([*output, "--rounds", 0], "at least 1"),
        ([*output, "--rates", 1.5], "shares"),
        (["--output", "bench"], "JSON file"),
        ([*output, "--contestants", "base_given", "--resolution", 320, 500], "not at 500"),
        ([*output, "--contestants", "base_given", "--resolution", 320, 1280, "--rates", 0.5], "--rates gives 1"),
        ([*output, "--contestants", "checkpoint_given", "--model", "nowhere"], "no model 'nowhere'"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())
