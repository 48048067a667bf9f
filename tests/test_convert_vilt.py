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
"""A converted ViLT computes what that ViLT computes, and the report hides nothing."""

import json
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model
from transformers import (
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltForTokenClassification,
    ViltImageProcessorPil,
    ViltModel,
    ViltProcessor,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)
from typer.testing import CliRunner

from conversion import convert_vilt_to_scanformer as converter
from conversion.vilt_key_map import rename_original, rules_to_scanformer, rules_to_vilt
from modeling_scanformer import ScanFormerConfig, ScanFormerForVisualGrounding, ScanFormerModel
from modeling_scanformer.pyramid_scanformer import image_pyramid, pad_pyramids


ROOT = Path(__file__).parents[1]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "cup", "left", "of"]
TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
    "image_size": 20,
    "patch_size": 4,
}
SIZES = {
    "tiny": {},
    "deep": {"num_hidden_layers": 6, "hidden_size": 24, "num_attention_heads": 2, "layer_norm_eps": 1e-5},
    "wide": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "patch_size": 8,
        "image_size": 56,
    },
    "two images": {"modality_type_vocab_size": 3, "type_vocab_size": 4, "hidden_act": "relu"},
    "no bias": {"qkv_bias": False, "image_size": 16, "num_hidden_layers": 2},
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
VILT_HEADS = [
    ViltModel,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForTokenClassification,
]


def lively(model, seed=0):
    """Every tensor counts: the embeddings are as large as what they are added to, no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        norm_weight = parameter.ndim == 1 and name.endswith("weight")
        std = 0.5 if parameter.ndim == 1 or "embed" in name or "cls_token" in name else parameter.shape[1] ** -0.5
        parameter.data = (
            torch.randn(parameter.shape, generator=generator) * (0.1 if norm_weight else std) + norm_weight
        )
    return short(model).eval()


def short(model):
    """Weights of few bits, so that a sum of two is exact in float32 and float64 shows any other difference."""
    for parameter in model.parameters():
        parameter.data = (parameter.data * 2**10).round() / 2**10
    return model


def random_vilt(model_class=ViltModel, **options):
    return lively(model_class(ViltConfig(**TINY | options)))


def write(model, folder, with_processor=True):
    model.save_pretrained(folder)
    if with_processor:
        tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=512)
        settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size_divisor": 4}
        ViltProcessor(ViltImageProcessorPil(**settings), tokenizer).save_pretrained(folder)
    return folder


def run_command(*arguments):
    app = converter.typer.Typer()
    app.command()(converter.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def convert(source, out, *options):
    """The command, in this process."""
    result = run_command(source, out, *options)
    assert result.exit_code == 0, result.output
    return out


def error_of(*arguments):
    """What the command says when it fails, on one line; it leaves nothing behind."""
    result = run_command(*arguments)
    assert result.exit_code == 1 and result.stderr.startswith("convert_vilt_to_scanformer: "), result.output
    assert not Path(arguments[1]).is_dir()
    return " ".join(result.stderr.split())


def read_report(folder):
    return json.loads((folder / "conversion_report.json").read_text())


def random_inputs(vilt, unit, dtype):
    """Expressions of different lengths, and pictures of different shapes whose sides are multiples of `unit`."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, vilt.vocab_size, (3, 7), generator=generator)
    attention_mask = (torch.arange(7) < torch.tensor([[7], [3], [5]])).long()
    pictures = [
        torch.randn(1, 3, rows * unit, columns * unit, generator=generator, dtype=dtype)
        for rows, columns in ((2, 3), (3, 1), (1, 1))
    ]
    return input_ids * attention_mask, attention_mask, pictures


def embed_scale(vilt, pixels):
    """ViLT's image tokens, patches in the order of their place: ViLT draws them at random."""
    mask = torch.ones(1, *pixels.shape[-2:], dtype=torch.long)
    tokens, _, (places, (_, columns)) = vilt.embeddings.visual_embed(pixels, mask, max_image_length=-1)
    order = (places[0, :, 0] * columns + places[0, :, 1]).argsort()
    tokens = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    return tokens + vilt.embeddings.token_type_embeddings.weight[1]


def run_masked_vilt(vilt, input_ids, scales):
    """
    Hidden states of ViLT's own layers and its final norm's output, where text sees text alone, and every scale the text,
    the scales before it and itself.
    """
    text = vilt.embeddings.text_embeddings(input_ids) + vilt.embeddings.token_type_embeddings.weight[0]
    blocks = [text] + [embed_scale(vilt, pixels) for pixels in scales]
    block_of = torch.cat([torch.full((block.shape[1],), number) for number, block in enumerate(blocks)])
    hides = block_of[:, None] < block_of[None, :]
    mask = torch.zeros(hides.shape, dtype=text.dtype).masked_fill(hides, torch.finfo(text.dtype).min)[None, None]
    states = [torch.cat(blocks, dim=1)]
    for layer in vilt.encoder.layer:
        states.append(layer(states[-1], mask)[0])
    return states, vilt.layernorm(states[-1]), block_of


def assert_same_as_vilt(vilt, model, dtype, num_scales_read):
    """Every token of text and image, at every layer, in a padded batch against ViLT on each sample alone."""
    vilt, encoder = vilt.to(dtype), model.to(dtype).eval().model
    config = encoder.config
    input_ids, attention_mask, pictures = random_inputs(
        vilt.config, config.patch_size * 2 ** (config.num_scales - 1), dtype
    )
    pyramids = [image_pyramid(picture, config.patch_size, config.num_scales) for picture in pictures]
    outputs = encoder(input_ids, attention_mask, **pad_pyramids(pyramids), output_hidden_states=True)
    for row, pixels in enumerate(pictures):
        length = int(attention_mask[row].sum())
        scales = [pixels]
        while len(scales) < config.num_scales:
            scales.insert(0, torch.nn.functional.avg_pool2d(scales[0], 2))
        states, final, block_of = run_masked_vilt(vilt, input_ids[row : row + 1, :length], scales[:num_scales_read])
        tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        for ours, theirs in zip(outputs.hidden_states, states, strict=True):
            torch.testing.assert_close(ours[row, :length], theirs[0, :length], **tolerance)
        for scale in range(num_scales_read):
            tokens = final[0, block_of == scale + 1]
            torch.testing.assert_close(outputs.reg_states[row, scale], tokens[0], **tolerance)
            # patches come parent by parent
            indices = outputs.patch_indices[scale][row]
            patches = outputs.patch_states[scale][row][indices >= 0][indices[indices >= 0].argsort()]
            torch.testing.assert_close(patches, tokens[1:], **tolerance)
            if scale == 0:
                first = input_ids.shape[1]
                for ours, theirs in zip(outputs.hidden_states, states):
                    theirs = theirs[0, block_of == 1]
                    torch.testing.assert_close(ours[row, first : first + len(theirs)], theirs, **tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_one_scale_is_vilt_with_the_mask_of_text_first(tmp_path, size, dtype):
    vilt = random_vilt(**SIZES[size])
    write(vilt, tmp_path / "vilt")
    out = convert(tmp_path / "vilt", tmp_path / "out", "--num_scales", 1, "--longest_edge", 3 * vilt.config.patch_size)
    assert_same_as_vilt(vilt, ScanFormerForVisualGrounding.from_pretrained(out), dtype, num_scales_read=1)


@torch.no_grad()
def test_three_scales_are_vilt_with_a_mask_that_hides_finer_scales(tmp_path):
    """Scale embeddings start at zero and every patch is read, so each scale is what ViLT makes of that resolution."""
    vilt = random_vilt()
    out = convert(write(vilt, tmp_path / "vilt"), tmp_path / "out", "--longest_edge", 16)
    assert_same_as_vilt(vilt, ScanFormerForVisualGrounding.from_pretrained(out), torch.float64, num_scales_read=3)


@torch.no_grad()
def test_cached_text_is_vilt_on_text_alone(tmp_path):
    vilt = random_vilt()
    write(vilt, tmp_path / "vilt")
    vilt.double()
    out = convert(tmp_path / "vilt", tmp_path / "out", "--longest_edge", 16)
    model = ScanFormerForVisualGrounding.from_pretrained(out).double().eval()
    input_ids = torch.tensor([[2, 6, 7, 3]])
    cache = model.encode_text(input_ids)
    states, _, _ = run_masked_vilt(vilt, input_ids, [])
    for index, layer in enumerate(vilt.encoder.layer):
        attended = layer.layernorm_before(states[index])
        for ours, projection in zip(
            cache.states(index), (layer.attention.attention.key, layer.attention.attention.value)
        ):
            torch.testing.assert_close(ours.transpose(1, 2).flatten(2), projection(attended), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_new_tensors_disturb_nothing(tmp_path):
    vilt = random_vilt()
    out = convert(write(vilt, tmp_path / "vilt"), tmp_path / "out", "--longest_edge", 16)
    model = ScanFormerForVisualGrounding.from_pretrained(out).eval()
    input_ids, attention_mask, pictures = random_inputs(vilt.config, 16, torch.float32)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= pad_pyramids([image_pyramid(picture * 100, 4, 3) for picture in pictures])
    outputs = model(**inputs)
    assert torch.equal(torch.cat(outputs.selection_masks, dim=1), inputs["pixel_attention_mask"].bool())
    assert (outputs.scale_boxes == 0.5).all() and (outputs.scale_scores == 0.5).all()
    # the constant token is how the encoder sees a grey patch, at the mean of all places
    grey = embed_scale(vilt, torch.zeros(1, 3, 20, 20))[0, 1:].mean(0)
    torch.testing.assert_close(model.model.constant_token.weight[0], grey)

    with torch.enable_grad():
        model.train()
        model(**inputs, labels=torch.tensor([[0.4, 0.5, 0.2, 0.2]] * 3)).loss.backward()
    assert (
        model.box_head.out_proj.weight.grad.norm() > 0 and model.model.selection_head.classifier.weight.grad.norm() > 0
    )
    assert all(layer.mlp.fc1.weight.grad.abs().max() == 0 for layer in model.model.layers)


@pytest.mark.parametrize("model_class", VILT_HEADS, ids=lambda model_class: model_class.__name__)
def test_any_head_gives_the_same_model_and_is_reported(tmp_path, model_class):
    options = {"num_images": 2, "modality_type_vocab_size": 3}
    source = write(random_vilt(model_class, **options), tmp_path / "vilt")
    out = convert(source, tmp_path / "out", "--longest_edge", 16)
    report = read_report(out)
    used = {tensor["name"]: tensor for tensor in report["source_tensors"]}
    written = {tensor["name"]: tensor for tensor in report["target_tensors"]}
    for folder, tensors in ((source, used), (out, written)):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {
                name: tensor["shape"] for name, tensor in tensors.items()
            }
    # both sides tell the same
    assert {(origin, name) for name, tensor in written.items() for origin in tensor["sources"]} == {
        (name, target) for name, tensor in used.items() for target in tensor["targets"]
    }
    encoder = "" if model_class is ViltModel else "vilt."
    unused = {name for name, tensor in used.items() if tensor["status"] == "unused"}
    assert unused == {name for name in used if not name.startswith(encoder) or name.startswith(f"{encoder}pooler.")}
    assert {name for name, tensor in used.items() if tensor["left_out"]} == {
        f"{encoder}embeddings.text_embeddings.token_type_embeddings.weight",
        f"{encoder}embeddings.token_type_embeddings.weight",
    }
    for name, tensor in written.items():
        assert (tensor["status"] == "mapped") == bool(tensor["sources"])
        assert (tensor["status"] == "new") == bool(
            re.search(r"scale_embeddings|constant_token|selection_head|^box_head|^score_head", name)
        )


def test_standard_output_is_the_report(tmp_path):
    source = write(random_vilt(ViltForMaskedLM), tmp_path / "vilt")
    result = run_command(source, tmp_path / "out", "--longest_edge", 16)
    report = read_report(tmp_path / "out")
    lines = [line.split() for line in result.stdout.splitlines()]
    for tensor in report["target_tensors"] + report["source_tensors"]:
        assert any(line[:2] == [tensor["status"], tensor["name"]] for line in lines)
    assert all(note in result.stdout for note in report["notes"])


@pytest.mark.parametrize("options", [{}, {"num_scales": 1}, {"qkv_bias": False, "num_hidden_layers": 5}], ids=str)
def test_key_map_names_every_tensor(options):
    """Without weights: names and shapes alone, in both directions."""
    config = tiny_config(**options)
    vilt = ViltConfig(
        **{name: getattr(config, name) for name in converter.SHARED_CONFIG},
        image_size=config.position_grid_size * config.patch_size,
        modality_type_vocab_size=3,
    )
    with torch.device("meta"):
        ours, theirs = ScanFormerModel(config).state_dict(), ViltModel(vilt).state_dict()
    new = [name for name in ours if re.match(r"patch_embeddings.scale_embed|constant_token|selection_head", name)]
    pooler = [name for name in theirs if name.startswith("pooler.")]
    segments = "embeddings.text_embeddings.token_type_embeddings.weight"

    forward = rules_to_scanformer(config)
    assert sorted(rule.target for rule in forward) == sorted(set(ours) - set(new))
    assert {name for rule in forward for name in rule.sources} == set(theirs) - set(pooler)
    for rule in forward:
        assert rule.make(*(theirs[name] for name in rule.sources)).shape == ours[rule.target].shape, rule.target

    backward = rules_to_vilt(config)
    assert sorted(rule.target for rule in backward) == sorted(set(theirs) - {*pooler, segments})
    used = {name for rule in backward for name in rule.sources}
    assert set(ours) - used == {name for name in new if "scale_embeddings" not in name}
    for rule in backward:
        shape = theirs[rule.target].shape
        # two modalities come back from a ViLT of three
        shape = (2, *shape[1:]) if rule.target == "embeddings.token_type_embeddings.weight" else shape
        assert rule.make(*(ours[name] for name in rule.sources)).shape == shape, rule.target


# How Transformers renamed the original checkpoints when it took ViLT in.
ORIGINAL_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
ORIGINAL = {
    "text_embeddings.word_embeddings.weight": "embeddings.text_embeddings.word_embeddings.weight",
    "text_embeddings.position_embeddings.weight": "embeddings.text_embeddings.position_embeddings.weight",
    "text_embeddings.token_type_embeddings.weight": "embeddings.text_embeddings.token_type_embeddings.weight",
    "text_embeddings.LayerNorm.weight": "embeddings.text_embeddings.LayerNorm.weight",
    "text_embeddings.LayerNorm.bias": "embeddings.text_embeddings.LayerNorm.bias",
    "transformer.cls_token": "embeddings.cls_token",
    "transformer.patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "transformer.patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "transformer.pos_embed": "embeddings.position_embeddings",
    "token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
    "transformer.norm.weight": "layernorm.weight",
    "transformer.norm.bias": "layernorm.bias",
    "pooler.dense.weight": "pooler.dense.weight",
    "pooler.dense.bias": "pooler.dense.bias",
}


def original_names(num_layers):
    layers = {
        f"transformer.blocks.{layer}.{original}.{part}": f"encoder.layer.{layer}.{ours}.{part}"
        for layer in range(num_layers)
        for original, ours in ORIGINAL_LAYER.items()
        for part in ("weight", "bias")
    }
    return ORIGINAL | layers


def original_checkpoint(vilt):
    """What ViLT's authors would have saved."""
    state = vilt.state_dict()
    original = {name: state[renamed] for name, renamed in original_names(vilt.config.num_hidden_layers).items()}
    for layer in range(vilt.config.num_hidden_layers):
        for part in ("weight", "bias"):
            query_key_value = [
                state[f"encoder.layer.{layer}.attention.attention.{x}.{part}"] for x in ("query", "key", "value")
            ]
            original[f"transformer.blocks.{layer}.attn.qkv.{part}"] = torch.cat(query_key_value)
    original["itm_score.fc.weight"] = torch.zeros(2, vilt.config.hidden_size)
    original["text_embeddings.position_ids"] = torch.arange(vilt.config.max_position_embeddings)[None]
    return {"state_dict": original, "hyper_parameters": {"config": {"num_heads": vilt.config.num_attention_heads}}}


def test_original_names():
    for original, renamed in original_names(12).items():
        assert rename_original(original) == (renamed,)
    assert rename_original("transformer.blocks.11.attn.qkv.bias") == tuple(
        f"encoder.layer.11.attention.attention.{part}.bias" for part in ("query", "key", "value")
    )
    assert rename_original("itm_score.fc.weight") == ("itm_score.fc.weight",)


def test_original_checkpoint_equals_the_one_of_transformers(tmp_path, monkeypatch):
    vilt = random_vilt()
    reference = convert(write(vilt, tmp_path / "vilt"), tmp_path / "reference", "--longest_edge", 16)
    # a training checkpoint mentions classes of Lightning, which is not installed where it is converted
    module = types.ModuleType("pytorch_lightning.callbacks")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    checkpoint = original_checkpoint(vilt) | {"callbacks": {module.ModelCheckpoint: {"best": 0.5}}, "epoch": 3}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(checkpoint, tmp_path / "vilt.ckpt")
    out = convert(tmp_path / "vilt.ckpt", tmp_path / "out", "--longest_edge", 16, "--tokenizer", tmp_path / "vilt")

    expected, actual = (load_file(folder / "model.safetensors") for folder in (reference, out))
    assert expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)
    reference_config, config = (ScanFormerConfig.from_pretrained(folder) for folder in (reference, out))
    assert config.to_dict() == reference_config.to_dict()
    report = read_report(out)
    assert {tensor["name"] for tensor in report["source_tensors"]} == set(checkpoint["state_dict"])
    unused = {tensor["name"] for tensor in report["source_tensors"] if tensor["status"] == "unused"}
    assert unused == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "itm_score.fc.weight",
        "text_embeddings.position_ids",
    }
    (key,) = (t for t in report["target_tensors"] if t["name"] == "model.layers.1.attention.k_proj.bias")
    assert key["sources"] == ["transformer.blocks.1.attn.qkv.bias[32:64]"]
    assert len(AutoProcessor.from_pretrained(out).tokenizer) == len(WORDS)


def test_original_checkpoint_that_does_not_say_its_heads(tmp_path):
    wide = original_checkpoint(random_vilt(hidden_size=128, num_attention_heads=2))["state_dict"]
    torch.save(wide, tmp_path / "wide.ckpt")
    out = convert(tmp_path / "wide.ckpt", tmp_path / "out", "--longest_edge", 16)
    assert ScanFormerConfig.from_pretrained(out).num_attention_heads == 2
    assert any("attention heads" in note for note in read_report(out)["notes"])

    torch.save(original_checkpoint(random_vilt())["state_dict"], tmp_path / "narrow.ckpt")
    assert "'num_heads'" in error_of(tmp_path / "narrow.ckpt", tmp_path / "none")


@pytest.mark.parametrize("form", ["bin", "shards"])
def test_other_forms_of_weight_files(tmp_path, form):
    vilt = random_vilt(ViltForMaskedLM)
    reference = convert(write(vilt, tmp_path / "vilt"), tmp_path / "reference", "--longest_edge", 16)
    if form == "bin":
        vilt.config.save_pretrained(tmp_path / form)
        torch.save(vilt.state_dict(), tmp_path / form / "pytorch_model.bin")
    else:
        vilt.save_pretrained(tmp_path / form, max_shard_size="20KB")
        assert (tmp_path / form / "model.safetensors.index.json").exists()
    out = convert(tmp_path / form, tmp_path / "out", "--longest_edge", 16)
    expected, actual = (load_file(folder / "model.safetensors") for folder in (reference, out))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    if form == "shards":
        shard = sorted((tmp_path / form).glob("model-*.safetensors"))[0]
        shard.unlink()
        assert shard.name in error_of(tmp_path / form, tmp_path / "none")
        (tmp_path / form / "model.safetensors.index.json").write_text("[]")
        assert "index.json is damaged" in error_of(tmp_path / form, tmp_path / "none")


@torch.no_grad()
def test_pair_of_text_encoder_and_vit(tmp_path):
    sizes = {
        key: TINY[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    text_sizes = {key: TINY[key] for key in ("vocab_size", "max_position_embeddings")}
    bert = lively(BertForMaskedLM(BertConfig(**sizes, **text_sizes)))
    vit = lively(ViTForImageClassification(ViTConfig(**sizes, image_size=20, patch_size=4)), seed=1)
    write(bert, tmp_path / "bert")
    write(vit, tmp_path / "vit", with_processor=False)
    options = ("--text_encoder", tmp_path / "bert", "--longest_edge", 16)
    out = convert(tmp_path / "vit", tmp_path / "out", *options)
    model = ScanFormerForVisualGrounding.from_pretrained(out).eval()

    # a ViLT put together by hand is the specification
    vilt = random_vilt()
    state = load_file(tmp_path / "vit/model.safetensors")
    state = {name.removeprefix("vit."): tensor for name, tensor in state.items() if name.startswith("vit.")}
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(2, 32)
    missing, unexpected = vilt.load_state_dict(state, strict=False)
    assert not unexpected and all("text_embeddings" in name or "pooler" in name for name in missing)
    vilt.embeddings.text_embeddings.load_state_dict(bert.bert.embeddings.state_dict())
    assert_same_as_vilt(vilt, model, torch.float64, num_scales_read=3)

    report = read_report(out)
    (modalities,) = (t for t in report["target_tensors"] if t["name"] == "model.modality_embeddings.weight")
    assert modalities["status"] == "new"
    read = {tensor["name"]: tensor["status"] for tensor in report["source_tensors"]}
    assert read[f"{tmp_path / 'bert'}: bert.encoder.layer.0.attention.self.query.weight"] == "unused"
    assert read[f"{tmp_path / 'vit'}: classifier.weight"] == "unused"

    # BERT's first checkpoints have other names
    old = load_file(tmp_path / "bert/model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in old.items()
    }
    save_file(old, tmp_path / "bert/model.safetensors")
    again = convert(tmp_path / "vit", tmp_path / "again", *options)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()

    BertModel(BertConfig(**sizes | {"hidden_size": 64}, **text_sizes)).save_pretrained(tmp_path / "wide")
    assert "width 64" in error_of(tmp_path / "vit", tmp_path / "none", "--text_encoder", tmp_path / "wide")
    assert "--text_encoder" in error_of(tmp_path / "vit", tmp_path / "none")


@torch.no_grad()
def test_there_and_back_is_the_same_vilt(tmp_path):
    """The text sees the image again, so this is ViLT's own forward pass."""
    vilt = random_vilt(ViltForMaskedLM).eval()
    convert(write(vilt, tmp_path / "vilt"), tmp_path / "there", "--longest_edge", 16)
    back = ViltModel.from_pretrained(convert(tmp_path / "there", tmp_path / "back", "--reverse")).eval()
    input_ids = torch.tensor([[2, 6, 7, 3], [2, 5, 3, 0]])
    attention_mask = (input_ids > 0).long()
    # ViLT draws its patches in a random order
    outputs = []
    for model in (vilt.vilt, back):
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(3))
        pixel_mask = torch.ones(2, 12, 20, dtype=torch.long)
        outputs.append(model(input_ids, attention_mask, pixel_values=pixels, pixel_mask=pixel_mask).last_hidden_state)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)

    processor = ViltProcessor.from_pretrained(tmp_path / "back")
    assert processor.image_processor.size_divisor == 4 and len(processor.tokenizer) == len(WORDS)
    (zeros,) = (
        t for t in read_report(tmp_path / "back")["target_tensors"] if t["status"] == "new" and "text" in t["name"]
    )
    assert zeros["name"] == "embeddings.text_embeddings.token_type_embeddings.weight"


@torch.no_grad()
def test_reverse_computes_the_coarsest_scale(tmp_path):
    """Of any ScanFormer, whatever its scale embeddings are."""
    model = tiny_model(dtype=torch.float32)
    torch.nn.init.normal_(model.model.patch_embeddings.scale_embeddings.weight)
    short(model).save_pretrained(tmp_path / "scanformer")
    vilt = ViltModel.from_pretrained(convert(tmp_path / "scanformer", tmp_path / "vilt", "--reverse")).eval()
    assert_same_as_vilt(vilt, model, torch.float64, num_scales_read=1)
    report = read_report(tmp_path / "vilt")
    left_out = {tensor["name"] for tensor in report["source_tensors"] if tensor["left_out"]}
    assert left_out == {"model.reg_tokens.weight", "model.patch_embeddings.scale_embeddings.weight"}
    unused = {tensor["name"].split(".")[-3] for tensor in report["source_tensors"] if tensor["status"] == "unused"}
    assert {"box_head", "score_head"} <= unused


def test_reverse_refuses_what_a_vilt_does_not_have(tmp_path):
    short(tiny_model(dtype=torch.float32, num_convolution_layers=1)).save_pretrained(tmp_path / "scanformer")
    error = error_of(tmp_path / "scanformer", tmp_path / "vilt", "--reverse")
    assert "1 sparse convolutions, and a ViLT has none" in error and not (tmp_path / "vilt").exists()


def test_output_is_complete(tmp_path):
    source = write(random_vilt(hidden_dropout_prob=0.1), tmp_path / "vilt")
    options = ("--longest_edge", 32, "--num_scales", 2, "--selection_layer", 2)
    out = convert(source, tmp_path / "out", *options)
    processor = AutoProcessor.from_pretrained(out)
    assert processor.tokenizer.model_max_length == 12
    assert processor.image_processor.image_mean == (0.4, 0.5, 0.6) and processor.image_processor.resample == 3
    assert any("dropout of 0.1" in note for note in read_report(out)["notes"])
    pipe = pipeline("visual-grounding", model=str(out))
    assert pipe.model.config.num_scales == pipe.model.config.selection_layer == 2
    assert pipe.model.config.hidden_dropout_prob == 0
    answer = pipe(Image.new("RGB", (64, 48), "red"), text="the red cup", return_scan=True)
    # nothing is learned yet: the middle of the picture, and all of it read
    assert answer["box"] == {"xmin": 16, "ymin": 12, "xmax": 48, "ymax": 36}
    assert all(grid.all() for grid in answer["scan"]["selection"])

    again = convert(source, tmp_path / "again", *options)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_source_without_tokenizer(tmp_path):
    source = write(random_vilt(), tmp_path / "vilt", with_processor=False)
    out = convert(source, tmp_path / "out", "--longest_edge", 16)
    assert any("--tokenizer" in note for note in read_report(out)["notes"])
    assert not list(out.glob("*tokenizer*")) and (out / "preprocessor_config.json").exists()
    assert "no tokenizer in" in error_of(source, tmp_path / "none", "--tokenizer", source)
    # the advice can be followed, and nothing of an earlier conversion stays
    complete = write(random_vilt(), tmp_path / "complete")
    convert(source, out, "--longest_edge", 32, "--tokenizer", complete)
    assert AutoProcessor.from_pretrained(out).image_processor.size["longest_edge"] == 32
    assert not (out / "preprocessor_config.json").exists()
    convert(source, out, "--longest_edge", 16)
    assert not list(out.glob("*tokenizer*")) and not (out / "processor_config.json").exists()


def test_a_conversion_that_was_killed_can_be_repeated(tmp_path, monkeypatch):
    source, out = write(random_vilt(), tmp_path / "vilt"), tmp_path / "out"
    with monkeypatch.context() as context:
        context.setattr(
            ScanFormerForVisualGrounding, "save_pretrained", lambda *args: (out / "config.json").touch() or 1 / 0
        )
        assert isinstance(run_command(source, out, "--longest_edge", 16).exception, ZeroDivisionError)
    convert(source, out, "--longest_edge", 16)
    assert ScanFormerForVisualGrounding.from_pretrained(out)


def test_bad_options(tmp_path):
    source, none = write(random_vilt(), tmp_path / "vilt"), tmp_path / "none"
    assert "multiple of" in error_of(source, none, "--longest_edge", 24) and "16 or 32" in error_of(
        source, none, "--longest_edge", 24
    )
    assert "`selection_layer`" in error_of(source, none, "--selection_layer", 3)
    assert "`num_scales`" in error_of(source, none, "--num_scales", 0)
    assert "reads text itself" in error_of(source, none, "--text_encoder", source)
    assert "--num_scales` has no meaning" in error_of(source, none, "--reverse", "--num_scales", 2)
    assert "'vilt', but expected is scanformer" in error_of(source, none, "--reverse")
    assert run_command(source, source).exit_code == 1 and not (source / "conversion_report.json").exists()
    other = write(random_vilt(), tmp_path / "other")
    assert "no conversion wrote" in run_command(source, other, "--longest_edge", 16).stderr
    small = write(random_vilt(vocab_size=8), tmp_path / "small")
    assert "10 word pieces" in error_of(small, none, "--longest_edge", 16)


def test_damaged_sources(tmp_path):
    vilt, none = random_vilt(), tmp_path / "none"
    assert "nowhere" in error_of(tmp_path / "nowhere", none)
    assert "nowhere.ckpt" in error_of(tmp_path / "nowhere.ckpt", none)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error_of(tmp_path / "empty", none)

    source = tmp_path / "vilt"
    write(vilt, source)
    weights, config = source / "model.safetensors", source / "config.json"
    complete, settings = weights.read_bytes(), json.loads(config.read_text())
    assert "Give the folder" in error_of(weights, none)
    weights.write_bytes(complete[: len(complete) // 2])
    assert f"{weights} is damaged or incomplete" in error_of(source, none)
    weights.unlink()
    assert "no weights" in error_of(source, none)

    tensors = random_vilt().state_dict()
    save_file({name: t for name, t in tensors.items() if "layer.2" not in name}, weights, metadata={"format": "pt"})
    assert "lacks 16 of" in error_of(source, none)
    tensors["embeddings.cls_token"] = torch.zeros(1, 1, 31)
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "embeddings.cls_token is [1, 1, 31] instead of [1, 1, 32]" in error_of(source, none)

    weights.write_bytes(complete)
    for changes, message in (
        ({"model_type": "clip"}, "'clip', but expected is vilt or vit"),
        ({"model_type": "unheard"}, "unheard"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"image_size": [20, 24]}, "square"),
        ({"num_channels": 1}, "1 channels"),
    ):
        config.write_text(json.dumps(settings | changes))
        assert message in error_of(source, none), changes
    config.write_text(json.dumps(settings))
    processor = (source / "processor_config.json").read_text()
    (source / "processor_config.json").write_text(processor[: len(processor) // 2])
    assert "the image processor in" in error_of(source, none)
    (source / "processor_config.json").write_text(processor)
    (source / "tokenizer.json").write_text("{")
    assert "the tokenizer in" in error_of(source, none)
    config.write_text("{")
    assert "config.json" in error_of(source, none)
    tiny_model().save_pretrained(tmp_path / "scanformer")
    assert "'scanformer', but expected is vilt or vit. With `--reverse`" in error_of(tmp_path / "scanformer", none)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_hostile_and_foreign_pickles_are_data(tmp_path):
    none, trace, file = tmp_path / "none", tmp_path / "executed", tmp_path / "vilt.ckpt"
    hostile = {"state_dict": {"weight": torch.zeros(2)}, "callbacks": Hostile(trace)}
    torch.save(hostile, file)
    assert str(file) in error_of(file, none) and "mkdir" in error_of(file, none)
    torch.save(hostile, file, _use_new_zipfile_serialization=False)
    assert "nothing in it was executed" in error_of(file, none)
    file.write_bytes(pickle.dumps(Hostile(trace), protocol=2))
    assert "nothing in it was executed" in error_of(file, none)
    file.write_bytes(b"no checkpoint")
    assert "nothing in it was executed" in error_of(file, none)
    random_vilt().config.save_pretrained(tmp_path / "vilt")
    torch.save(hostile, tmp_path / "vilt/pytorch_model.bin")
    assert "nothing in it was executed" in error_of(tmp_path / "vilt", none)
    assert not trace.exists()

    complete = original_checkpoint(random_vilt())
    torch.save(complete, file)
    file.write_bytes(file.read_bytes()[:-2000])
    assert "nothing in it was executed" in error_of(file, none)
    torch.save([1, 2], file)
    assert "no state dict" in error_of(file, none)
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 2)}}, file)
    assert "no ViLT of the original repository" in error_of(file, none)
    qkv = "transformer.blocks.1.attn.qkv.weight"
    state = complete["state_dict"] | {qkv: torch.zeros(60, 32)}
    torch.save(complete | {"state_dict": state}, file)
    assert f"{qkv}[0:20] is [20, 32] instead of [32, 32]" in error_of(file, none)


def test_the_command_as_users_write_it(tmp_path):
    write(random_vilt(ViltForMaskedLM, patch_size=16, image_size=64), tmp_path / "vilt")
    command = [
        sys.executable,
        "-m",
        "conversion.convert_vilt_to_scanformer",
        str(tmp_path / "vilt"),
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"{tmp_path / 'vilt'} (ViLT of Transformers) -> {tmp_path / 'out'} (ScanFormer)")
    assert result.stderr == ""
    config = ScanFormerConfig.from_pretrained(tmp_path / "out")
    assert (config.num_scales, config.selection_layer, config.patch_size, config.position_grid_size) == (3, 1, 16, 4)
