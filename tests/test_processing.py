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
import json
import string
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor, BertTokenizer

from modeling_scanformer import ScanFormerConfig, ScanFormerImageProcessor, ScanFormerProcessor


SMALL = {"size": {"longest_edge": 32}, "patch_size": 4, "num_scales": 3}
LIMIT = 12
SIZES = [(20, 30), (30, 20), (24, 24), (1, 40), (40, 1), (3, 20_000), (2000, 3000)]


def create_processor():
    letters = string.ascii_lowercase
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "red",
        "cup",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    tokenizer = BertTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        model_max_length=LIMIT,
        model_input_names=["input_ids", "attention_mask"],
    )
    return ScanFormerProcessor(ScanFormerImageProcessor(**SMALL), tokenizer)


@pytest.fixture(scope="module")
def processor():
    return create_processor()


@pytest.fixture
def no_preprocessing(processor, monkeypatch):
    """For errors that must come before the work."""

    def fail(*args, **kwargs):
        raise AssertionError("pictures were preprocessed before the inputs were checked")

    monkeypatch.setattr(ScanFormerImageProcessor, "_preprocess", fail)


def picture(height=20, width=30):
    return PIL.Image.new("RGB", (width, height))


def predicting(boxes, scores=None):
    boxes = torch.as_tensor(boxes)
    return SimpleNamespace(pred_boxes=boxes, scores=torch.ones(len(boxes)) if scores is None else torch.tensor(scores))


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(torch.as_tensor(actual[name]), torch.as_tensor(expected[name]), rtol=0, atol=0)


# Boxes


@pytest.mark.parametrize("height, width", SIZES)
def test_boxes_return_from_labels(processor, height, width):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), axis=1) * [width, height]
    boxes = [[0, 0, width, height], *corners.reshape(6, 4).tolist()]
    batch = processor(images=[picture(height, width)] * 7, text=["cup"] * 7, boxes=boxes, return_tensors="pt")
    assert batch["labels"].min() >= 0 and batch["labels"].max() <= 1
    results = processor.post_process_visual_grounding(predicting(batch["labels"]), [(height, width)] * 7)
    actual = torch.cat([result["boxes"] for result in results])
    difference = (actual - torch.tensor(boxes)).abs() / torch.tensor([width, height, width, height])
    assert difference.max() < 1e-6


def test_boxes_are_clamped_to_the_picture(processor):
    outputs = predicting([[0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 0.0, 0.0]])
    results = processor.post_process_visual_grounding(outputs, [(10, 40)] * 3)
    assert [result["boxes"].tolist() for result in results] == [
        [[0, 0, 20, 10]],
        [[30, 7.5, 40, 10]],
        [[20, 5, 20, 5]],
    ]


def test_boxes_belong_to_the_upright_picture(processor, tmp_path):
    exif = PIL.Image.Exif()
    exif[274] = 6
    picture(20, 30).save(tmp_path / "turned.jpg", exif=exif)
    box = [10, 15, 20, 30]
    for image in (tmp_path / "turned.jpg", PIL.Image.open(tmp_path / "turned.jpg")):
        labels = processor(images=image, text="cup", boxes=box, return_tensors="pt")["labels"]
        torch.testing.assert_close(labels, torch.tensor([[0.75, 0.75, 0.5, 0.5]]))


def test_boxes_of_arrays(processor):
    array = np.zeros((20, 30, 3), np.uint8)
    images = [array, array.transpose(2, 0, 1), torch.tensor(array), array[..., 0]]
    labels = processor(images=images, boxes=[[15, 10, 30, 20]] * 4, return_tensors="pt")["labels"]
    torch.testing.assert_close(labels, torch.tensor([[0.75, 0.75, 0.5, 0.5]] * 4))
    for options in ({"input_data_format": "channels_last"}, {"images_kwargs": {"input_data_format": "channels_last"}}):
        ambiguous = np.zeros((3, 30, 3), np.uint8)
        labels = processor(images=ambiguous, boxes=[15, 0, 30, 3], return_tensors="pt", **options)["labels"]
        torch.testing.assert_close(labels, torch.tensor([[0.75, 0.5, 0.5, 1.0]]))


def test_forms_of_boxes(processor):
    box = [3, 4, 13.5, 14]
    expected = processor(images=picture(), text="cup", boxes=[box], return_tensors="pt")["labels"]
    for same in (box, tuple(box), np.array(box), torch.tensor([box]), [torch.tensor(box)], list(np.array(box))):
        actual = processor(images=picture(), text="cup", boxes=same, return_tensors="pt")["labels"]
        assert torch.equal(actual, expected)
    labels = processor(images=[picture()] * 4, boxes=[box, None, box, None], return_tensors="pt")["labels"]
    assert labels.isnan().all(1).tolist() == [False, True, False, True]
    for count in (1, 4):
        labels = processor(images=[picture()] * count, boxes=[None] * count, return_tensors="pt")["labels"]
        assert labels.shape == (count, 4) and labels.isnan().all()


def test_half_a_pixel_outside_is_rounding(processor):
    labels = processor(images=picture(), boxes=[-0.4, 0, 30.01, 20.5], return_tensors="pt")["labels"]
    assert torch.equal(labels, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


@pytest.mark.parametrize(
    "box",
    [
        [-1, 0, 5, 5],
        [0, -1, 5, 5],
        [0, 0, 31, 5],
        [0, 0, 5, 21],
        [40, 5, 50, 9],
        [30.2, 5, 30.4, 9],
        [5, 5, 5, 9],
        [5, 5, 9, 5],
        [20, 10, 8, 6],  # (x, y, width, height)
        [float("nan"), 0, 5, 5],
        [0, float("nan"), 5, 5],
        [0, 0, float("nan"), 5],
        [0, 0, 5, float("inf")],
    ],
)
def test_boxes_that_do_not_fit(processor, no_preprocessing, box):
    with pytest.raises(ValueError, match=r"Box 1, .* within its picture of 30 x 20 .*x \+ width"):
        processor(images=[picture()] * 2, text=["cup"] * 2, boxes=[[0, 0, 5, 5], box])


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], "abcd", [1, 2, 3, "x"], 5.0, [1, 2, 3, None]])
def test_boxes_that_are_none(processor, no_preprocessing, box):
    with pytest.raises(ValueError, match="Box 1, .* is not four numbers"):
        processor(images=[picture()] * 2, text=["cup"] * 2, boxes=[[0, 0, 5, 5], box])


@pytest.mark.parametrize("boxes", [5, np.float64(5), "abcd", True])
def test_boxes_that_are_no_list(processor, no_preprocessing, boxes):
    with pytest.raises(ValueError, match="is a list of boxes"):
        processor(images=picture(), text="cup", boxes=boxes)


def test_results(processor):
    outputs = predicting([[0.5, 0.5, 0.5, 0.5]] * 2, [0.3, 0.7])
    low, high = processor.post_process_visual_grounding(outputs, torch.tensor([[10, 20]] * 2), 0.5, ["a", "b"])
    assert low["boxes"].shape == (0, 4) and low["scores"].shape == (0,) and low["text"] == "a"
    assert high["boxes"].tolist() == [[5, 2.5, 15, 7.5]] and high["scores"].shape == (1,) and high["text"] == "b"
    everything = processor.post_process_visual_grounding(outputs, [torch.tensor([10, 20])] * 2)
    assert [len(result["boxes"]) for result in everything] == [1, 1] and everything[0]["text"] is None
    # as object detectors give them
    detected = processor.image_processor.post_process_object_detection(outputs, 0.5, [(10, 20)] * 2)
    assert [result["labels"].tolist() for result in detected] == [[], [0]]
    assert torch.equal(detected[1]["boxes"], high["boxes"])
    # relative, where the pictures' sizes are not given
    for relative in (
        processor.post_process_visual_grounding(outputs),
        processor.image_processor.post_process_object_detection(outputs),
    ):
        assert relative[0]["boxes"].tolist() == [[0.25, 0.25, 0.75, 0.75]]


def test_results_in_half_precision(processor):
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.5]], dtype=torch.bfloat16)
    (result,) = processor.post_process_visual_grounding(predicting(boxes), [(1001, 3003)], text="cup")
    torch.testing.assert_close(result["boxes"], torch.tensor([[0, 250.25, 1501.5, 750.75]]))


@pytest.mark.parametrize(
    "sizes, text", [([(10, 20)], None), ([(10, 20)] * 2, ["a"]), ([10, 20], None), ([(1,)] * 2, None)]
)
def test_results_of_wrong_pairing(processor, sizes, text):
    with pytest.raises(ValueError, match="target.sizes"):
        processor.post_process_visual_grounding(predicting([[0.5] * 4] * 2), sizes, text=text)


# Pairs


def test_batch_pairs(processor):
    images, text = [picture(20, 30), picture(30, 20)], ["the red cup", "cup"]
    batch = processor(images=images, text=text, return_tensors="pt")
    assert set(batch) == set(processor.model_input_names)
    tokens = processor.tokenizer(text, padding=True, return_tensors="pt")
    assert_same(batch, {**tokens, **processor.image_processor(images, return_tensors="pt")})
    assert batch["input_ids"].tolist()[1][3:] == [0, 0] and batch["attention_mask"].tolist()[1] == [1, 1, 1, 0, 0]
    single = processor(images=images[0], text=text[0], return_tensors="pt")
    assert_same(single, processor(images=images[:1], text=tuple(text[:1]), return_tensors="pt"))
    assert set(processor(images=images)) == set(processor.image_processor.model_input_names)
    assert processor(text="cup")["input_ids"] == processor.tokenizer("cup")["input_ids"]
    assert processor(text=["cup"])["input_ids"] == [processor.tokenizer("cup")["input_ids"]]


def test_return_tensors(processor):
    inputs = {"images": picture(), "text": "cup", "boxes": [1, 2, 3, 4]}
    tensors = processor(**inputs, return_tensors="pt")
    arrays = processor(**inputs, return_tensors="np")
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert tensors["labels"].dtype == torch.float32
    assert_same(arrays, tensors)
    assert_same(processor(**inputs), tensors)
    assert_same(processor(**inputs, text_kwargs={"return_tensors": "pt"}), tensors)
    for images in (None, picture()):
        assert isinstance(processor(images=images, text="cup", return_tensors="np")["input_ids"], np.ndarray)


def test_options_reach_their_parts(processor):
    options = {"size": {"longest_edge": 64}, "padding": "max_length", "max_length": 9}
    nested = {
        "images_kwargs": {"size": {"longest_edge": 64}},
        "text_kwargs": {"padding": "max_length", "max_length": 9},
    }
    batch = processor(images=picture(), text="cup", return_tensors="pt", **options)
    assert batch["input_ids"].shape == (1, 9)
    assert batch["spatial_shapes"].tolist() == [[[3, 4], [6, 8], [12, 16]]]
    assert_same(processor(images=picture(), text="cup", return_tensors="pt", **nested), batch)
    assert "token_type_ids" in processor(text="cup", return_token_type_ids=True)


def test_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    inputs = {"images": [picture(7, 30)] * 2, "text": ["the red cup", "cup"], "boxes": [[1, 2, 3, 4], None]}
    expected = processor(**inputs, return_tensors="pt")
    # a processor is found by its own file, or by the model's configuration
    ScanFormerConfig().save_pretrained(tmp_path)
    for loader in (ScanFormerProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is ScanFormerProcessor and type(loaded.image_processor) is ScanFormerImageProcessor
        actual = loaded(**inputs, return_tensors="pt")
        expected["labels"], actual["labels"] = expected["labels"].nan_to_num(), actual["labels"].nan_to_num()
        assert_same(actual, expected)
        with pytest.raises(ValueError, match=f"at most {LIMIT}"):
            loaded(text="a " * 50)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "ScanFormerProcessor"


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "nothing to process"),
        ({"boxes": [1, 2, 3, 4]}, "nothing to process"),
        ({"text": "cup", "boxes": [1, 2, 3, 4]}, "need the pictures"),
        ({"text": []}, "no expressions"),
        ({"images": [], "text": "cup"}, "Got 0 pictures but 1 expressions"),
        ({"images": 2, "text": "cup"}, "Got 2 pictures but 1 expressions"),
        ({"images": 1, "text": ["cup", "red"]}, "Got 1 pictures but 2 expressions"),
        ({"images": 2, "text": ["cup", "red"], "boxes": [1, 2, 3, 4]}, "Got 2 pictures but 1 boxes"),
        ({"images": 1, "boxes": [[1, 2, 3, 4]] * 2}, "Got 1 pictures but 2 boxes"),
        ({"images": 1, "text": "cup", "boxes": []}, "Got 1 pictures but 0 boxes"),
    ],
)
def test_wrong_pairs(processor, monkeypatch, inputs, message):
    if isinstance(inputs.get("images"), int):
        # found out before the first is read
        inputs = inputs | {"images": ["missing.png"] * inputs["images"]}
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_pictures_that_cannot_be_read(processor, no_preprocessing, tmp_path):
    with pytest.raises(ValueError, match="missing.png.*no such file"):
        processor(images=[picture(), tmp_path / "missing.png"], text=["cup"] * 2, boxes=[None] * 2)
    with pytest.raises(ValueError, match="got generator"):
        processor(images=(picture() for _ in range(2)), text="cup")


# Expressions


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "Expression 0 is empty"),
        (" \t\n\u3000\u200b\0", "Expression 0 is empty"),
        ("\u115f\u1160\u3164\uffa0\u2800", "Expression 0 is empty"),
        ("\ufffd", "Expression 0 is empty"),
        (["cup", " \u0301"], "Expression 1 is empty"),
        (["cup", "  "], "Expression 1 is empty"),
        (["cup", None], "Expression 1 is a NoneType"),
        (["cup", 5], "Expression 1 is a int"),
        (["cup", ["red", "cup"]], "Expression 1 is a list"),
        (b"cup", "Expression 0 is a int"),
        (5, "got a int"),
        ("half an emoji \ud83d", "not valid Unicode"),
        (["cup", "a " * LIMIT], f"has {LIMIT + 2} tokens, but the model reads at most {LIMIT}.*truncation=True"),
    ],
)
def test_wrong_expressions(processor, no_preprocessing, text, message):
    images = ["missing.png"] * (len(text) if isinstance(text, list) else 1)
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text)
    for options in ({}, {"return_tensors": "pt"}):
        with pytest.raises(ValueError, match=message):
            processor(text=text, **options)


def test_truncation(processor):
    for length in (LIMIT - 2, LIMIT - 1, 500):
        text = "a " * length
        batch = processor(images=picture(), text=text, truncation=True, return_tensors="pt")
        assert batch["input_ids"].shape == (1, LIMIT)
        if length > LIMIT - 2:
            with pytest.raises(ValueError, match="truncation=True"):
                processor(images=picture(), text=text)
    with pytest.raises(ValueError, match="at most"):
        processor(text="a " * 500, truncation=True, max_length=LIMIT + 1)


@pytest.mark.parametrize(
    "text",
    [
        "die rote Tasse",
        "la taza pequen\u0303a",  # a combining accent
        "e" + "\u0301" * 50,
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
        "הכוס האדומה",
        "الكأس \u202eالأحمر",
        "左边的红色杯子",
        "红" * 100,
        "ไทย हिन्दी",
        "cup\0 \x07\x1b[31m\u200b\ufeff\ufffd\uffff",
        "x" * 10_000,
        "ßſİıﬃ①",
        "[SEP] [CLS] [PAD] <s> ##a",
        "\U0010ffff cup",
        "!?.,",
        "a\r\nb\u2028c",
    ],
)
def test_any_unicode_text(processor, text):
    try:
        batch = processor(images=picture(), text=text, return_tensors="pt")
    except ValueError as error:
        assert "tokens, but the model reads at most" in str(error)
        batch = processor(images=picture(), text=text, truncation=True, return_tensors="pt")
        assert batch["input_ids"].shape == (1, LIMIT)
    assert 2 < batch["input_ids"].shape[1] <= LIMIT
