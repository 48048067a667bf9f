"""pipeline("visual-grounding"), its inputs and outputs, and Transformers' own detection pipeline on a ScanFormer."""

import ast
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture
from torch.utils.data import Dataset
from transformers import pipeline

from modeling_scanformer import VisualGroundingPipeline, draw_scan
from modeling_scanformer.pipeline_scanformer import DEFAULT_CHECKPOINT
from modeling_scanformer.visualization_scanformer import rebuild_seen_image, stack_drawings


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline("visual-grounding", model=str(checkpoint))


def assert_answers_equal(actual, expected):
    """Up to the rounding of floats; boxes are whole pixels already."""
    if isinstance(expected, dict):
        assert actual["label"] == expected["label"] and actual["box"] == expected["box"]
        assert actual["score"] == pytest.approx(expected["score"], abs=1e-5)
    else:
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_answers_equal(one, other)


def test_an_answer_is_what_processor_and_model_give(pipe):
    image = picture(60, 40)
    answer = pipe(image, text="the red box")
    assert isinstance(pipe, VisualGroundingPipeline)
    inputs = pipe.processor(images=image, text="the red box", return_tensors="pt")
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    result = pipe.processor.post_process_visual_grounding(outputs, target_sizes=[(40, 60)])[0]
    expected = [round(value) for value in result["boxes"][0].tolist()]
    assert list(answer["box"].values()) == expected and list(answer["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert answer["score"] == pytest.approx(float(result["scores"][0])) and answer["label"] == "the red box"


def test_every_kind_of_input_gives_the_same_answers(pipe, tmp_path):
    images = [picture(60, 40, 1), picture(30, 50, 2), picture(20, 20, 3)]
    paths = []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    expected = [pipe(image, text="red") for image in images]

    class Pictures(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return {"image": images[index], "text": "red"}

    assert_answers_equal(pipe(paths[0], text="red"), expected[0])
    assert_answers_equal(pipe({"image": paths[1], "text": "red"}), expected[1])
    assert_answers_equal(pipe(images, text="red"), expected)
    assert_answers_equal(pipe(paths, text="red"), expected)
    assert_answers_equal(pipe([{"image": image, "text": "red"} for image in images]), expected)
    assert_answers_equal(list(pipe((image for image in images), text="red")), expected)
    assert_answers_equal(list(pipe(Pictures())), expected)
    assert_answers_equal(list(pipe(Pictures(), num_workers=1, batch_size=2)), expected)
    rows = datasets.Dataset.from_dict({"image": images, "text": ["red"] * 3})
    assert_answers_equal(list(pipe(rows, batch_size=2)), expected)
    assert_answers_equal(list(pipe(rows.to_iterable_dataset(), batch_size=2)), expected)
    assert_answers_equal(list(pipe(rows["image"], text="red", batch_size=2)), expected)
    assert_answers_equal(list(pipe(rows.to_iterable_dataset()["image"], text="red")), expected)
    assert_answers_equal(pipe(tuple(images), text="red"), expected)
    assert pipe([], text="red") == pipe((), text="red") == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_several_expressions_and_batches(pipe, batch_size):
    images = [picture(60, 40, 1), picture(30, 50, 2), picture(20, 20, 3)]
    text = ["red", "the big blue circle", "left"]
    expected = [[pipe(image, text=expression) for expression in text] for image in images]
    assert_answers_equal(pipe(images, text=text, batch_size=batch_size), expected)
    assert_answers_equal(pipe(images, text=iter(text), batch_size=batch_size), expected)
    mixed = [
        {"image": images[0], "text": iter(text)},
        {"image": images[1], "text": "red"},
        {"image": images[2], "text": text[:2]},
    ]
    assert_answers_equal(pipe(mixed, batch_size=batch_size), [expected[0], expected[1][0], expected[2][:2]])


@pytest.mark.parametrize("file", ["README.md", "modeling_scanformer/pipeline_scanformer.py"])
def test_the_documented_answer_is_what_the_shipped_checkpoint_gives(file):
    (documented,) = re.findall(r"^[# ]*({'score': .*'the violet disc'.*}})$", (ROOT / file).read_text(), re.M)
    documented = ast.literal_eval(documented)
    answer = pipeline("visual-grounding", model=DEFAULT_CHECKPOINT)(
        ROOT / "examples" / "demo.png", text="the violet disc"
    )
    assert answer["score"] == pytest.approx(documented["score"], abs=0.006)
    assert answer["box"] == pytest.approx(documented["box"], abs=1)


def test_many_expressions_are_read_in_parts(pipe, monkeypatch):
    image, text = picture(60, 40), ["red", "the big blue circle", "left", "blue", "the left red circle"]
    expected = pipe(image, text=text)
    rows, generate = [], pipe.model.generate

    def spy(**inputs):
        rows.append(len(inputs["pixel_values"]))
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", spy)
    monkeypatch.setattr("modeling_scanformer.pipeline_scanformer.PAIRS_PER_PASS", 2)
    assert_answers_equal(pipe(image, text=text), expected)
    assert rows == [2, 2, 1]
    assert_answers_equal(pipe([image] * 3, text=text, batch_size=3), [expected] * 3)
    assert rows[3:] == [3] * 5


def test_long_expressions_are_cut_on_request(pipe):
    image, length = picture(60, 40), pipe.processor.tokenizer.model_max_length
    long = "red " * 50
    answer = pipe(image, text=[long, "left"], truncation=True)
    tokens = pipe.processor(text=long, truncation=True)["input_ids"]
    assert len(tokens) == length and answer[0]["label"] == long
    assert answer[0]["box"] == pipe(image, text="red " * (length - 2))["box"]


def test_a_scan_is_returned_on_request(pipe):
    image = picture(60, 40)
    answer = pipe(image, text="red", return_scan=True)
    scan = answer["scan"]
    assert [grid.shape for grid in scan["selection"]] == [(2, 3), (4, 6), (8, 12)]
    assert scan["boxes"][-1] == answer["box"] and scan["scores"][-1] == answer["score"]
    assert scan["selection"][0].all() and len(scan["boxes"]) == 3
    assert "scan" not in pipe(image, text="red")

    first = pipe(image, text="red", return_scan=True, max_scales=1)
    assert first["box"] == scan["boxes"][0] and len(first["scan"]["selection"]) == 1
    stopped = pipe(image, text="red", return_scan=True, stopping_score=0.0)
    assert len(stopped["scan"]["boxes"]) == len(stopped["scan"]["selection"]) == 1


def test_answers_below_the_threshold_are_none(pipe):
    image = picture(60, 40)
    assert pipe(image, text="red", threshold=1.0) is None
    assert pipe(image, text=["red", "blue"], threshold=1.0) == [None, None]
    assert pipe(image, text="red", threshold=0.0) is not None


def test_a_rotated_photograph_gives_boxes_of_the_upright_picture(pipe, tmp_path):
    upright = picture(60, 40)
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    assert_answers_equal(pipe(str(tmp_path / "rotated.png"), text="red"), pipe(upright, text="red"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(checkpoint, dtype):
    answer = pipeline("visual-grounding", model=str(checkpoint), dtype=dtype)(picture(60, 40), text="red")
    assert 0 <= answer["score"] <= 1


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    image = picture(60, 40)
    assert_answers_equal(pipeline("visual-grounding", model=str(tmp_path))(image, text="red"), pipe(image, text="red"))


def test_what_is_wrong_is_said(pipe, tmp_path):
    image = picture(60, 40)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for arguments, message in [
        ((str(tmp_path / "broken.png"), "red"), "broken.png"),
        ((str(tmp_path / "missing.png"), "red"), "missing.png"),
        ((image, None), "no expression"),
        ((image, ""), "empty"),
        ((image, 5), "got a int"),
        ((image, []), "no expression"),
        ((image, "  "), "empty"),
        ((image, ["red", ""]), "empty"),
        ((image, "red " * 50), "truncation"),
        (({"picture": image, "text": "red"}, None), "'image'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(*arguments)
    with pytest.raises(ValueError, match="num_beams"):
        pipe(image, text="red", num_beams=2)
    with pytest.raises(ValueError, match="max_scales"):
        pipe(image, text="red", max_scales=7)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_zero_shot_detection_pipeline_of_transformers_runs_the_same_checkpoint(checkpoint, pipe, batch_size):
    detector = pipeline("zero-shot-object-detection", model=str(checkpoint), batch_size=batch_size)
    image = picture(60, 40)
    found = {result["label"]: result for result in detector(image, candidate_labels=["red", "blue"], threshold=0.0)}
    for label in ("red", "blue"):
        answer = pipe(image, text=label)
        assert found[label]["score"] == pytest.approx(answer["score"], abs=1e-5)
        # that pipeline rounds down, ours to the nearest pixel
        assert all(abs(found[label]["box"][side] - answer["box"][side]) <= 1 for side in answer["box"])


def test_the_drawing_shows_boxes_and_what_was_seen(pipe):
    image = picture(60, 40)
    answer = pipe(image, text="red", return_scan=True)
    drawing = draw_scan(image, answer, pipe.processor)
    assert drawing.width > 2 * image.width and drawing.height > image.height
    colors = {color for _, color in drawing.crop((0, 0, 60, 40)).getcolors(maxcolors=10**6)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} & colors
    assert stack_drawings([drawing, drawing]).height == 2 * drawing.height
    with pytest.raises(ValueError, match="return_scan"):
        draw_scan(image, pipe(image, text="red"), pipe.processor)


def test_captions_are_whole_on_narrow_pictures(pipe):
    image = picture(20, 60)
    answer = pipe(image, text="red", return_scan=True)
    short, long = (
        draw_scan(image, {**answer, "label": label}, pipe.processor) for label in ("red", "red circle " * 9)
    )
    assert short.width == long.width > 200, "wide enough for what is said of a scale"
    assert long.height > short.height
    margin = np.asarray(long)[:, -8:]
    assert (margin == 255).all(), "no letter is cut off"


def test_the_rebuilt_image_has_detail_where_patches_were_read_and_only_there():
    image = picture(32, 32)
    nothing, everything = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    coarse = [np.ones((2, 2), bool)]
    assert np.array_equal(np.asarray(rebuild_seen_image(image, [*coarse, everything], 8)), np.asarray(image))
    seen = np.asarray(rebuild_seen_image(image, [*coarse, nothing], 8))
    assert np.array_equal(seen[::2, ::2], seen[1::2, 1::2]), "unread, so each pixel is a mean of 2 x 2"
    corner = nothing.copy()
    corner[0, 3] = True
    seen_corner = np.asarray(rebuild_seen_image(image, [*coarse, corner], 8))
    assert np.array_equal(seen_corner[:8, 24:], np.asarray(image)[:8, 24:])
    assert np.array_equal(seen_corner[8:], seen[8:]) and np.array_equal(seen_corner[:, :24], seen[:, :24])
