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
"""The publish command: what it writes, what it refuses, and that what was pushed loads again."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from evaluate_visual_grounding import Arguments
from grounding.evaluation import summarize
from huggingface_hub import CommitOperationAdd, ModelCard
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments, pipeline
from typer.testing import CliRunner

from hub_cards import checks, publish
from hub_cards.card import TEMPLATE
from hub_cards.checks import PublishError, check_loads_without_package
from hub_cards.figures import find_unbacked_figures
from modeling_scanformer import ScanFormerForVisualGrounding, ScanFormerProcessor
from modeling_scanformer.early_exit_scanformer import fingerprint


ROOT = Path(__file__).parents[1]
REPO = "org/scanformer-miniature"
CARD = {
    "title": "Miniature",
    "summary": "A model for tests.",
    "training_data": "Nothing.",
    "training_commands": ["python train.py --learning_rate 0.5"],
    "hardware": "one core",
    "hours": 0.25,
    "limits": "It finds nothing.",
    "dataset_names": {"data/pictures": "Pictures"},
    "files": ["train.sh"],
}


def make_results(model: ScanFormerForVisualGrounding, dataset: str, **details) -> dict:
    """What the evaluation script writes, of two predictions."""
    prediction = {"width": 20, "height": 10, "truncated": False, "score": 0.9, "true_box": [0, 0, 10, 10]}
    prediction |= {"patches_read": [1, 2, 3], "num_patches": [1, 4, 16]}
    boxes = [[0, 0, 10, 8], [15, 5, 20, 10]]
    predictions = [{**prediction, "box": box, "scale_boxes": [[0, 0, 20, 10], box, box]} for box in boxes]
    settings = asdict(Arguments(output="results.json", model="model", dataset=dataset, **details))
    command = f"python examples/evaluate_visual_grounding.py --dataset {dataset}"
    details = {"fingerprint": fingerprint(model), "longest_edge": 24, "scan_options": model.scan_options()}
    return {**summarize(predictions), **details, "command": command, "settings": settings}


@pytest.fixture(scope="module")
def maker(checkpoint, tmp_path_factory):
    """Makes folders that can be published."""
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)

    def make() -> Path:
        folder = tmp_path_factory.mktemp("publishable")
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        (folder / "card.yaml").write_text(yaml.safe_dump(CARD))
        (folder / "train.sh").write_text("python train.py\n")
        (folder / "results").mkdir()
        scenes = make_results(model, "scenes", dataset_level="primer", seed=123)
        pictures = make_results(
            model, "data/pictures", split="testA", max_scales=3, selection_threshold=0.0, early_exit=True
        )
        pictures |= {"flops_per_sample": 12_345_000_000.0, "dense_flops_per_sample": 23_456_000_000.0}
        pictures["command"] += " --output /home/maker/work/pictures.json --model=/home/maker/model"
        (folder / "results" / "scenes.json").write_text(json.dumps(scenes))
        (folder / "results" / "pictures.json").write_text(json.dumps(pictures))
        return folder

    return make


@pytest.fixture
def folder(maker):
    return maker()


@pytest.fixture(scope="module")
def repository(maker, tmp_path_factory):
    """What the command writes, run as its users run it: with the check in a process without this package."""
    output = tmp_path_factory.mktemp("dry") / "repository"
    arguments = [maker(), "--repo-id", REPO, "--dry-run", "--output", output]
    command = [sys.executable, "-m", "hub_cards.publish", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing was pushed" in result.stdout
    return output


def test_nothing_tells_of_the_maker_s_machine(repository):
    texts = [file.read_text() for file in repository.rglob("*") if file.suffix in (".md", ".json")]
    assert not any("/home/maker" in text for text in texts)
    assert sum("--output pictures.json --model=model" in text for text in texts) == 2


@pytest.fixture
def trusting(monkeypatch):
    """Leaves out the process without the package, which `repository` has gone through."""
    monkeypatch.setattr(publish, "check_loads_without_package", lambda *arguments: None)


def change_card(folder: Path, **values):
    (folder / "card.yaml").write_text(yaml.safe_dump({**CARD, **values}))


def change_json(file: Path, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_dry_run_writes_the_whole_repository(repository):
    names = {str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()}
    code = {file.name for file in (ROOT / "modeling_scanformer").glob("*.py")}
    assert code & names >= {"modeling_scanformer.py", "pipeline_scanformer.py", "visualization_scanformer.py"}
    assert names - code == {
        *("config.json", "generation_config.json", "model.safetensors", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE", "card.yaml", "train.sh"),
        *("results/scenes.json", "results/pictures.json", "example.png", "example_scan.png"),
    }
    assert (repository / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_metadata_holds_the_results(repository):
    data = ModelCard.load(repository / "README.md").data
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-object-detection" and "visual-grounding" in data.tags
    assert data.widget == [{"src": "example.png", "candidate_labels": "the violet disc"}]
    found = {(result.dataset_name, result.metric_name): result for result in data.eval_results}
    assert len(found) == len(data.eval_results) == 6
    for file, name in (("scenes", "Scenes"), ("pictures", "Pictures")):
        values = json.loads((repository / "results" / f"{file}.json").read_text())
        for key, metric in (("acc@0.5", "Acc@0.5"), ("acc@0.5:0.95", "Acc@0.5:0.95"), ("mean_iou", "mean IoU")):
            assert found[name, metric].metric_value == values[key]
    scenes, pictures = found["Scenes", "mean IoU"], found["Pictures", "mean IoU"]
    assert scenes.dataset_config == "primer" and scenes.dataset_args == {"num_samples": 2, "seed": 123}
    assert pictures.dataset_split == "testA" and pictures.metric_args == {
        "max_scales": 3,
        "selection_threshold": 0.0,
        "early_exit": True,
    }


def test_the_card_says_what_is_true(repository, checkpoint):
    text = (repository / "README.md").read_text()
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    assert f"| parameters | {model.num_parameters():,} |" in text
    assert "| layers | 4, the first 2 of them Encoder1 |" in text
    # one box of two has an IoU of 0.8 and the other of 0; 6 patches of 21 are read
    assert "| Scenes, primer, test | 2 | 50.0 | 35.0 | 40.0 | 28.6 | - | - |" in text
    run = "max_scales `3`, selection_threshold `0.0`, early_exit `True`"
    assert f"| Pictures, testA, {run} | 2 | 50.0 | 35.0 | 40.0 | 28.6 | 12.345 | 23.456 |" in text
    assert "python examples/evaluate_visual_grounding.py --dataset scenes" in text
    assert "python train.py --learning_rate 0.5" in text
    answer = pipeline("visual-grounding", model=str(checkpoint))(str(repository / "example.png"), "the violet disc")
    assert str(answer["box"]) in text


def test_figures_come_from_results_files_alone(repository):
    assert not list(find_unbacked_figures(TEMPLATE.read_text(), []))
    text = (repository / "README.md").read_text()
    values = [number for file in repository.glob("results/*.json") for number in numbers(json.loads(file.read_text()))]
    assert not list(find_unbacked_figures(text, [*values, CARD["hours"]]))
    assert len(list(find_unbacked_figures(text, []))) > 10


def numbers(value):
    if isinstance(value, (dict, list)):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize(
    "text, found",
    [
        ("It gets 61.4 % right, at a mean IoU of 0.493.", []),
        ("It gets 61 percent, 1.8 million parameters, 0.35 GFLOPs.", []),
        ("It gets 61.8 %.", ["61.8 %"]),
        ("Right: 62%, an IoU of 0.7, and .62 of it", ["62%", "0.7", ".62"]),
        ("Accuracy:95%, IoU=0.7, 95-97%, 0.91-0.93, -5 %", ["95%", "0.7", "97%", "0.91", "0.93", "5 %"]),
        ("Acc@0.5:0.95 of transformers 5.23.0, Apache-2.0, arXiv 2406.18048, 500 pictures", []),
        ("`0.4` and [x](https://x.org/0.4) and https://x.org/0.4", []),
        ("```bash\n--seed 0.4\n```\nbut 0.4", ["0.4"]),
    ],
)
def test_figures_that_look_like_results(text, found):
    measured = [0.614, 0.4926, 1_827_209, 348_000_000]
    assert [figure for _, figure, _ in find_unbacked_figures(text, measured)] == found


def test_what_was_published_can_be_published(repository, trusting, tmp_path):
    publish.publish(repository, REPO, dry_run=True, output=tmp_path / "again")
    for file in repository.rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(repository)).read_bytes() == file.read_bytes(), file


def spoil_weights(folder: Path, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HEAD = "score_head.layers.0.weight"
REFUSALS = {
    "no checkpoint": (lambda folder: (folder / "config.json").unlink(), "holds no checkpoint"),
    "an adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "holds an adapter. .*merge",
    ),
    "another model": (
        lambda folder: change_json(folder / "config.json", model_type="vilt"),
        "holds no ScanFormer: .*'vilt'",
    ),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pickles.*pytorch_model.bin",
    ),
    "a pickle": (lambda folder: (folder / "vocab.pkl").write_bytes(b"x"), "pickles.*vocab.pkl"),
    "damaged weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "damaged"),
    "missing weights": (
        lambda folder: spoil_weights(folder, lambda tensors: tensors.pop("model.layernorm.weight")),
        "missing keys model.layernorm.weight",
    ),
    "unexpected weights": (
        lambda folder: spoil_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(1))),
        "unexpected keys extra",
    ),
    "mismatched weights": (
        lambda folder: change_json(folder / "config.json", intermediate_size=64),
        "mismatched keys model.layers.0.mlp.fc1.bias, .* and 9 more",
    ),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
    "no results": (lambda folder: shutil.rmtree(folder / "results"), "no results in .*evaluate_visual_grounding"),
    "results of another model": (
        lambda folder: spoil_weights(folder, lambda tensors: tensors["model.layers.1.attention.q_proj.weight"].neg_()),
        "pictures.json is of another model",
    ),
    "results with another threshold": (
        lambda folder: change_json(folder / "config.json", selection_threshold=0.9),
        "scenes.json was measured with selection_threshold .*, and the checkpoint now has 0.9. Measure it again",
    ),
    "results with another budget": (
        lambda folder: change_json(folder / "generation_config.json", token_budget=0.5),
        "pictures.json was measured with token_budget None, and the checkpoint now has 0.5",
    ),
    "results of another resolution": (
        lambda folder: change_json(folder / "results" / "scenes.json", longest_edge=64),
        "scenes.json was measured with longest_edge 64",
    ),
    "no results of a model": (lambda folder: (folder / "results" / "scenes.json").write_text("{}"), "lacks .*acc@0.5"),
    "broken results": (lambda folder: (folder / "results" / "scenes.json").write_text("{"), "scenes.json is not JSON"),
    "no card": (lambda folder: (folder / "card.yaml").unlink(), "no .*card.yaml. Write one .*'title', .*'limits'"),
    "a broken card": (lambda folder: (folder / "card.yaml").write_text("title: ["), "card.yaml is not YAML"),
    "a card in Latin-1": (
        lambda folder: (folder / "card.yaml").write_bytes(b"title: caf\xe9"),
        "card.yaml is not YAML",
    ),
    "an unknown field": (lambda folder: change_card(folder, accuracy=1), "card.yaml: .*'accuracy'"),
    "a field of the wrong type": (lambda folder: change_card(folder, hours="many"), "(?s)card.yaml: .*'hours'"),
    "emissions from nowhere": (lambda folder: change_card(folder, co2_grams=9), "(?s)card.yaml: .*`co2_source`"),
    "a figure in the card": (
        lambda folder: change_card(folder, limits="It is small.\n\nIt gets 61 % right."),
        "(?s)No results file.*card.yaml, limits, line 3: 61 % in 'It gets 61 % right.'",
    ),
    "a figure in the README": (
        lambda folder: (folder / "README.md").write_text("# Model\n\nAcc@0.5 is 50.0, mean IoU 0.617.\n"),
        "(?s)No results file.*README.md, line 3: 0.617 in 'Acc@0.5 is 50.0, mean IoU 0.617.'$",
    ),
    "a missing file": (lambda folder: (folder / "train.sh").unlink(), "no file 'train.sh'"),
    "a file from elsewhere": (lambda folder: change_card(folder, files=["../secrets"]), "no file '../secrets'"),
    "a pickle among the files": (
        lambda folder: (change_card(folder, files=["a/state.pt"]), spill(folder / "a" / "state.pt", b"x")),
        "Pickles are not published.*a/state.pt",
    ),
    "a licence without text": (lambda folder: change_card(folder, license="mit"), "licence 'mit' needs its text"),
    "no such picture": (lambda folder: change_card(folder, example_image="no.png"), "the example: .*no.png"),
    "no expression": (lambda folder: change_card(folder, example_text=" "), "the example: .*empty"),
}


def spill(file: Path, content: bytes):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)


@pytest.mark.parametrize("spoil, message", REFUSALS.values(), ids=REFUSALS)
def test_refusals(folder, tmp_path, spoil, message):
    spoil(folder)
    with pytest.raises(PublishError, match=message):
        publish.publish(folder, REPO, dry_run=True, output=tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "aB3" * 12, "AKIA" + "A1" * 8, "-----BEGIN OPENSSH PRIVATE KEY-----", "one of an odd form"],
)
def test_secrets_are_refused_and_not_printed(folder, monkeypatch, secret):
    monkeypatch.setenv("HF_TOKEN", "one of an odd form")
    (folder / "train.sh").write_text(f"echo hello\nexport KEY='{secret}'\n")
    with pytest.raises(PublishError, match="train.sh, line 2, holds what looks like") as error:
        publish.publish(folder, REPO, dry_run=True)
    assert secret not in str(error.value)


def test_names_and_folders_are_checked_first(folder, monkeypatch, tmp_path):
    for name in ("name", "org/na me", "org/name/more"):
        with pytest.raises(PublishError, match="--repo-id"):
            publish.publish(folder, name, dry_run=True)
    (tmp_path / "file").touch()
    with pytest.raises(PublishError, match="exists already and is not an empty folder"):
        publish.publish(folder, REPO, dry_run=True, output=tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_")
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set: unset it to push"):
        publish.publish(folder, REPO)


def test_the_command_says_in_a_line_what_is_wrong(folder):
    (folder / "card.yaml").unlink()
    result = CliRunner().invoke(publish.app, [str(folder), "--repo-id", REPO, "--dry-run"])
    assert result.exit_code == 1 and result.stderr.startswith("error: There is no ")
    assert "Traceback" not in result.output


def test_state_of_the_training_stays_behind(folder, trusting, tmp_path):
    (folder / "training_args.bin").write_bytes(b"x")
    spill(folder / "checkpoint-1" / "optimizer.bin", b"x")
    publish.publish(folder, REPO, dry_run=True, output=tmp_path / "output")
    assert not list((tmp_path / "output").rglob("*.bin"))


def test_a_repository_that_answers_otherwise_elsewhere_is_refused(monkeypatch, tmp_path):
    box = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    script = tmp_path / "script.py"
    monkeypatch.setattr(checks, "LOAD_SCRIPT", script)
    monkeypatch.setenv("HF_TOKEN", "secret")
    arguments = (tmp_path, tmp_path / "example.png", "a cup", box)

    script.write_text(f"import json, os\nassert 'HF_TOKEN' not in os.environ\nprint(json.dumps({{'it': {box}}}))")
    check_loads_without_package(*arguments)
    script.write_text(f"import json\nprint(json.dumps({{'it': {box | {'xmax': 9}}}}))")
    with pytest.raises(PublishError, match="it gives the box .*'xmax': 9.*'a cup' in example.png; here .*'xmax': 3"):
        check_loads_without_package(*arguments)
    script.write_text("raise ImportError('no module named somewhere')")
    with pytest.raises(PublishError, match="(?s)only Transformers is installed.*no module named somewhere"):
        check_loads_without_package(*arguments)


def test_a_push_is_one_commit_and_can_be_repeated(folder, trusting, hub, hub_client):
    publish.publish(folder, REPO, private=True)
    assert len(hub.commits(REPO)) == 2 and hub.commits(REPO)[-1].title == "Publish Miniature"
    assert hub_client.model_info(REPO).private
    publish.publish(folder, REPO)
    assert len(hub.commits(REPO)) == 2

    # a pickle that someone put there would be read by some
    stray = [CommitOperationAdd("pytorch_model.bin", b"x")]
    hub_client.create_commit(REPO, stray, commit_message="stray")
    change_card(folder, title="Miniature, again")
    publish.publish(folder, REPO)
    files = hub.files(REPO)
    assert len(hub.commits(REPO)) == 4 and b"# Miniature, again" in files["README.md"]
    assert "pytorch_model.bin" not in files and {".gitattributes", "model.safetensors", "LICENSE"} <= set(files)


@pytest.mark.parametrize("kind", ["lfs_upload", "commit"])
def test_a_broken_push_leaves_the_remote_as_it_was(folder, trusting, hub, hub_client, kind):
    publish.publish(folder, REPO)
    before = hub.files(REPO)
    change_card(folder, title="Miniature, again")
    # but for the numbers by which results know their model
    spoil_weights(folder, lambda tensors: tensors["model.layernorm.weight"][:1].mul_(2))
    with hub.breaking(kind), pytest.raises(PublishError, match="did not go through; .*Repeat the command") as error:
        publish.publish(folder, REPO)
    assert hub.token not in str(error.value)
    assert hub.files(REPO) == before and len(hub.commits(REPO)) == 2
    publish.publish(folder, REPO)
    assert len(hub.commits(REPO)) == 3 and b"# Miniature, again" in hub.files(REPO)["README.md"]


def test_pushes_that_may_not_be(folder, trusting, hub, hub_client, monkeypatch):
    def refuse(message, repo_id=REPO, **options):
        with pytest.raises(PublishError, match=message):
            publish.publish(folder, repo_id, **options)

    def put(repo_id, path, content):
        hub_client.create_repo(repo_id, exist_ok=True)
        hub_client.create_commit(repo_id, [CommitOperationAdd(path, content)], commit_message="other")

    put("org/notes", "notes.txt", b"mine")
    refuse("org/notes exists and holds something else: .*notes.txt", "org/notes")
    put("org/other", "config.json", b'{"model_type": "bert"}')
    refuse("org/other exists and holds a model of type 'bert'", "org/other")
    put("org/public", "README.md", b"# Soon")
    refuse("exists and is public", "org/public", private=True)
    refuse("did not go through", "elsewhere/name")
    hub.expire_token()
    refuse("The Hub refuses")
    assert all(len(hub.commits(name)) == 2 for name in ("org/notes", "org/other", "org/public"))
    monkeypatch.delenv("HF_TOKEN")
    refuse("no access token")


def test_the_card_s_code_runs_for_both_kinds_of_user(repository, hub, hub_client):
    """Each in a fresh process that knows nothing but the repository's name."""
    hub_client.create_repo(REPO)
    files = [file for file in repository.rglob("*") if file.is_file()]
    operations = [CommitOperationAdd(str(file.relative_to(repository)), file) for file in files]
    hub_client.create_commit(REPO, operations, commit_message="push")
    text = (repository / "README.md").read_text()
    trusting, package = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    box = json.loads(re.search(r"'box': (\{.*?\})", trusting)[1].replace("'", '"'))

    # a model that runs by its repository's code brings it along wherever it is saved
    trusting = trusting.replace("\npipe(", "\nanswer = pipe(") + (
        "pipe.push_to_hub('org/again')\n"
        "pipe = pipeline('visual-grounding', model='org/again', trust_remote_code=True)\n"
        f"assert pipe(hf_hub_download({REPO!r}, 'example.png'), text=answer['label']) == answer\n"
        "import json; print(json.dumps(answer['box']))"
    )
    result = hub.run_python(f"import sys\nsys.modules['modeling_scanformer'] = None\n{trusting}")
    assert json.loads(result.stdout.splitlines()[-1]) == box

    package = package.replace("\nprocessor.post", "\nanswer = processor.post") + "print(answer[0]['boxes'].tolist())"
    (xyxy,) = json.loads(hub.run_python(package).stdout.splitlines()[-1])
    assert xyxy == pytest.approx(list(box.values()), abs=1)


def test_push_to_hub_gives_repositories_that_load(checkpoint, hub, hub_client, tmp_path):
    """From where the package is imported, to where it is imported."""
    image, text = str(ROOT / "examples" / "demo.png"), "the violet disc"
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    processor = ScanFormerProcessor.from_pretrained(checkpoint)
    pipe = pipeline("visual-grounding", model=model, processor=processor)
    model.push_to_hub("org/parts")
    processor.push_to_hub("org/parts")
    pipe.push_to_hub("org/pipeline")
    arguments = TrainingArguments(output_dir=tmp_path, hub_model_id="org/trainer", report_to="none", use_cpu=True)
    Trainer(model, arguments, processing_class=processor).push_to_hub()
    for name in ("org/parts", "org/pipeline", "org/trainer"):
        assert not [file for file in hub.files(name) if file.endswith(".py")]
        assert pipeline("visual-grounding", model=name)(image, text=text) == pipe(image, text=text)
