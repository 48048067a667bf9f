"""The demo page: the scan as it goes on, what the page shows of it, and the page itself in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import metadata_load
from PIL import Image
from test_early_exit import rule_for
from tiny import picture

from modeling_scanformer import (
    ScanFormerForVisualGrounding,
    ScanFormerGenerationConfig,
    ScanFormerProcessor,
    save_portable,
)


SPACE = Path(__file__).parents[1] / "hub_cards" / "space"
# Its files import each other as top-level modules, as they do on the Hub.
sys.path.insert(0, str(SPACE))

from drawing import COLORS, ScanView  # noqa: E402
from streaming import MAX_EXPRESSIONS, load_pipeline, parse_expressions, stream_scan  # noqa: E402


EXPRESSIONS = ["red", "the big blue circle"]


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return load_pipeline(str(checkpoint))


@pytest.fixture
def image():
    return picture(60, 40)


@pytest.fixture
def page(pipe):
    """The function behind the button, and the values of the sliders."""
    app = pytest.importorskip("app", reason="The page needs gradio: pip install -r hub_cards/space/requirements.txt")
    event = next(event for event in app.build_page(pipe).fns.values() if event.api_name == "ground")
    picture, text, *sliders = event.inputs
    return event.fn, [slider.value for slider in sliders]


def assert_answers_equal(answers, expected):
    for answer, other in zip(answers, expected, strict=True):
        assert answer["label"] == other["label"] and answer["box"] == other["box"]
        assert answer["score"] == pytest.approx(other["score"], abs=1e-5)
        assert answer["scan"]["boxes"] == other["scan"]["boxes"]
        assert answer["scan"]["scores"] == pytest.approx(other["scan"]["scores"], abs=1e-5)
        assert all(map(np.array_equal, answer["scan"]["selection"], other["scan"]["selection"]))


def test_after_each_scale_comes_what_the_pipeline_gives_for_so_many_scales(pipe, image):
    states = list(stream_scan(pipe, image, EXPRESSIONS))
    assert len(states) == 3
    for scale, state in enumerate(states):
        expected = pipe(image, text=EXPRESSIONS, return_scan=True, max_scales=scale + 1)
        assert_answers_equal(state.answers, expected)
        assert state.num_patches == 2 * 3 * (1 + 4 + 16)


@pytest.mark.parametrize(
    "options",
    [{"max_scales": 2}, {"selection_threshold": 0.9}, {"stopping_score": 0.0}, {"stopping_score": 0.5}],
    ids=str,
)
def test_options_reach_the_scan(pipe, image, options):
    *_, last = stream_scan(pipe, image, EXPRESSIONS, **options)
    assert_answers_equal(last.answers, pipe(image, text=EXPRESSIONS, return_scan=True, **options))


def test_errors_come_through_from_the_thread_that_scans(pipe, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for arguments, options, message in [
        ((image, ["red"]), {"max_scales": 7}, "max_scales"),
        ((image, ["red " * 50]), {}, "at most 12"),
        ((str(tmp_path / "broken.png"), ["red"]), {}, "broken.png"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(stream_scan(pipe, *arguments, **options))


def test_a_picture_is_answered_upright(pipe, image, tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    image.rotate(180).save(tmp_path / "turned.png", exif=exif)
    *_, last = stream_scan(pipe, str(tmp_path / "turned.png"), EXPRESSIONS)
    assert_answers_equal(last.answers, pipe(image, text=EXPRESSIONS, return_scan=True))


def test_an_expression_per_line():
    assert parse_expressions("  red\n\n the box \n") == ["red", "the box"]
    with pytest.raises(ValueError, match="Say what to find"):
        parse_expressions(" \n ")
    assert len(parse_expressions("red\n" * MAX_EXPRESSIONS)) == len(COLORS) == MAX_EXPRESSIONS
    with pytest.raises(ValueError, match=f"at most {MAX_EXPRESSIONS}"):
        parse_expressions("red\n" * (MAX_EXPRESSIONS + 1))


def test_a_drawing_shows_the_box_and_fades_what_was_not_read(pipe, image):
    view = ScanView(pipe)
    *_, state = stream_scan(pipe, image, ["red"])
    drawing = np.asarray(view.draw_answers(state)).astype(int)
    height, width = drawing.shape[:2]
    rgb = [int(COLORS[0][start : start + 2], 16) for start in (1, 3, 5)]
    rows, columns = np.nonzero((drawing == rgb).all(axis=-1))
    sides = np.array(list(state.answers[0]["box"].values())) * width / image.width
    found = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert np.abs(found - np.minimum(sides, [width - 1, height - 1] * 2)).max() <= 1

    first, *_, finest = (np.asarray(tile) for tile in view.draw_scales(image, state.answers[0], COLORS[0]))
    grid = state.answers[0]["scan"]["selection"][-1]
    assert 0 < grid.sum() < grid.size
    read = np.kron(grid, np.ones((first.shape[0] // grid.shape[0], first.shape[1] // grid.shape[1]))).astype(bool)
    gray = np.abs(finest.astype(int) - 128)
    assert gray[~read].mean() < 0.6 * gray[read].mean()


def test_the_description_names_scores_and_the_share_read_and_escapes_expressions(pipe, image):
    expressions = ["<b>red</b>", "blue"]
    *_, state = stream_scan(pipe, image, expressions)
    html = ScanView(pipe).describe(state)
    assert "&lt;b&gt;red&lt;/b&gt;" in html and "<b>red</b>" not in html
    assert html.count("<figure>") == 6
    for answer in state.answers:
        read = sum(grid.sum() for grid in answer["scan"]["selection"])
        assert (
            f"{read} / {state.num_patches}<" in html and f"{1 - read / state.num_patches:.0%} of all patches" in html
        )
        assert f">{answer['score']:.2f}<" in html


def test_without_the_package_the_code_of_the_repository_answers(checkpoint, pipe, image, tmp_path):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    save_portable(model, ScanFormerProcessor.from_pretrained(checkpoint), tmp_path / "model")
    image.save(tmp_path / "picture.png")
    # without site, an editable install is not on the path
    client = f"""
import json, sys
sys.path += [{str(SPACE)!r}, {sysconfig.get_path("purelib")!r}]
from drawing import ScanView
from streaming import load_pipeline, stream_scan
try:
    load_pipeline()
except ValueError as error:
    assert "MODEL_ID" in str(error)
pipe = load_pipeline("model")
assert type(pipe).__module__.startswith("transformers_modules.")
*_, state = stream_scan(pipe, "picture.png", {EXPRESSIONS})
assert ScanView(pipe).describe(state).count("<figure>") == 6
print(json.dumps([answer["box"] for answer in state.answers]))
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", client],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert json.loads(result.stdout) == [answer["box"] for answer in pipe(image, text=EXPRESSIONS)]


def test_the_card_tells_the_hub_what_to_run():
    card = metadata_load(SPACE / "README.md")
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60, "the Hub's limit"
    requirements = (SPACE / "requirements.txt").read_text()
    oldest, before = re.search(r"^gradio>=([\d.]+),<(\d+)$", requirements, re.MULTILINE).groups()
    numbers = [list(map(int, version.split("."))) for version in (oldest, card["sdk_version"], before)]
    assert numbers[0] <= numbers[1] < numbers[2]


def test_the_page_shows_a_state_per_scale(page, pipe, image, tmp_path):
    ground, values = page
    image.save(tmp_path / "picture.png")
    states = list(ground(str(tmp_path / "picture.png"), "\n".join(EXPRESSIONS), *values))
    assert [details.count("<figure>") for _, details in states] == [2, 4, 6]
    assert states[-1][1] == ScanView(pipe).describe(list(stream_scan(pipe, image, EXPRESSIONS))[-1])
    assert all(answer.size == (768, 512) for answer, _ in states)


def test_the_slider_is_the_rule_whatever_was_saved(page, pipe, image, tmp_path, monkeypatch):
    ground, values = page
    rule = rule_for(pipe.model, threshold=0.0).to_dict()
    monkeypatch.setattr(
        pipe.model, "generation_config", ScanFormerGenerationConfig(early_exit=True, early_exit_rule=rule)
    )
    image.save(tmp_path / "picture.png")
    assert len(list(ground(str(tmp_path / "picture.png"), "red", *values))) == 3


def test_the_page_says_what_is_wrong(page, tmp_path):
    import gradio

    ground, values = page
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    picture(60, 40).save(tmp_path / "picture.png")
    for name, text, message in [
        (None, "red", "no picture"),
        ("picture.png", "", "Say what to find"),
        ("picture.png", "red " * 50, "at most 12"),
        ("broken.png", "red", "broken.png"),
    ]:
        with pytest.raises(gradio.Error, match=message):
            list(ground(name and str(tmp_path / name), text, *values))


def test_sliders_begin_at_what_the_model_does_by_itself(page, pipe):
    assert page[1] == [3, pipe.model.config.selection_threshold, 1.0]


def test_a_model_of_one_scale_has_no_sliders(pipe, monkeypatch):
    app = pytest.importorskip("app", reason="The page needs gradio")
    monkeypatch.setattr(pipe.model.config, "num_scales", 1)
    assert app.build_controls(pipe) == {}


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="The browser is driven by selenium")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("No Chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def url(checkpoint):
    """Of the page, served as users serve it."""
    pytest.importorskip("gradio", reason="The page needs gradio")
    server = subprocess.Popen(
        [sys.executable, SPACE / "app.py", "--model", checkpoint],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(SPACE.parents[1])},
    )
    lines = (re.search(r"http://\S+", line) for line in server.stdout)
    yield next(filter(None, lines)).group()
    server.terminate()
    server.wait()


def test_in_a_browser(browser, url, pipe, image, tmp_path):
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, 300, ignored_exceptions=[WebDriverException])

    def find(selector):
        return waiting.until(lambda _: browser.find_element("css selector", selector))

    image.save(tmp_path / "picture.png")
    browser.get(url)
    find("#picture input[type=file]").send_keys(str(tmp_path / "picture.png"))
    remove = find("#picture button[aria-label='Remove Image']")
    find("#expressions textarea").send_keys("\n".join(EXPRESSIONS))
    find("#find").click()
    waiting.until(lambda _: find("#details").text.count("Scale 2") == len(EXPRESSIONS))
    details = find("#details").text
    for answer in pipe(image, text=EXPRESSIONS):
        assert answer["label"] in details and f"{answer['score']:.2f}" in details
    waiting.until(lambda _: find("#answer img").get_property("naturalWidth") == 768)
    tiles = browser.find_elements("css selector", "#details img")
    assert [tile.get_property("naturalWidth") for tile in tiles] == [384] * 6

    browser.execute_script("arguments[0].click()", remove)
    find("#picture input[type=file]")
    browser.execute_script("arguments[0].click()", find("#find"))
    waiting.until(lambda _: "There is no picture" in find("body").text)

    (tmp_path / "broken.png").write_bytes(b"not a picture")
    find("#picture input[type=file]").send_keys(str(tmp_path / "broken.png"))
    find("#picture button[aria-label='Remove Image']")
    browser.execute_script("arguments[0].click()", find("#find"))
    waiting.until(lambda _: "no known picture format" in find("body").text)
