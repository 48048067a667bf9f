"""Repositories with their own code, in fresh processes with and without the installed package."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from peft import get_peft_model
from tiny import picture

from modeling_scanformer import (
    ScanFormerForVisualGrounding,
    ScanFormerModel,
    ScanFormerProcessor,
    lora_config,
    save_portable,
)
from modeling_scanformer.portability_scanformer import code_files


# Loads a repository in every way, prints what it found, and saves it again in three ways.
CLIENT = """
import json, sys
from transformers import AutoImageProcessor, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

folder, picture, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipe = pipeline("visual-grounding", model=folder, **options)
answer = pipe(picture, text="the red disc", return_scan=True)
pipe.draw(picture, answer).save("drawing.png")
model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, **options)
processor = AutoProcessor.from_pretrained(folder, **options)
base = AutoModel.from_pretrained(folder, **options)
inputs = processor(images=picture, text="the red disc", return_tensors="pt")
classes = [pipe, pipe.model, pipe.processor, model, processor, base, model.generation_config]
classes.append(AutoImageProcessor.from_pretrained(folder, **options))
print(json.dumps({
    "score": answer["score"],
    "box": answer["box"],
    "boxes": model.generate(**inputs).pred_boxes.tolist(),
    "classes": [type(each).__name__ for each in classes],
    "remote": [type(each).__module__.startswith("transformers_modules.") for each in classes],
}))
model.save_pretrained("saved")
processor.save_pretrained("saved")
pipe.save_pretrained("saved-by-pipeline")
model.config.save_pretrained("configuration-only")
"""


def run_client(folder, working_directory: Path, installed: bool, **options) -> dict:
    """In a process of its own, where the package is imported, or cannot even be found."""
    working_directory.mkdir(exist_ok=True)
    picture(64, 48).save(working_directory / "picture.png")
    if installed:
        command, prologue = [sys.executable], "import modeling_scanformer\n"
    else:
        # without site, an editable install is not on the path (what it leaves behind has no code)
        libraries = sysconfig.get_path("purelib")
        command = [sys.executable, "-S"]
        prologue = f"import sys\nsys.path.append({libraries!r})\n"
        prologue += "try:\n    from modeling_scanformer import ScanFormerConfig\nexcept ImportError:\n    pass\n"
        prologue += "else:\n    raise SystemExit('the package is still there')\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(working_directory / "home")}
    result = subprocess.run(
        [*command, "-c", prologue + CLIENT, str(folder), "picture.png", json.dumps(options)],
        cwd=working_directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


CLASSES = [
    "VisualGroundingPipeline",
    "ScanFormerForVisualGrounding",
    "ScanFormerProcessor",
    "ScanFormerForVisualGrounding",
    "ScanFormerProcessor",
    "ScanFormerModel",
    "ScanFormerGenerationConfig",
    "ScanFormerImageProcessor",
]


@pytest.fixture(scope="module")
def portable(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable") / "my.model-1"
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    save_portable(model, ScanFormerProcessor.from_pretrained(checkpoint), folder)
    return folder


def mentions_code(folder) -> bool:
    return any("auto_map" in file.read_text() or "_pipelines" in file.read_text() for file in folder.glob("*.json"))


def test_a_portable_repository_loads_with_and_without_the_package(portable, tmp_path):
    installed = run_client(portable, tmp_path / "installed", installed=True)
    assert installed["classes"] == CLASSES
    assert not any(installed["remote"])
    # the installed code wins even over a repository whose code may run
    assert run_client(portable, tmp_path / "trusting", installed=True, trust_remote_code=True) == installed
    for name in ("installed", "trusting"):
        for folder in ("saved", "saved-by-pipeline", "configuration-only"):
            assert not mentions_code(tmp_path / name / folder)
            assert not list((tmp_path / name / folder).glob("*.py"))

    bare = run_client(os.path.relpath(portable, tmp_path / "bare"), tmp_path / "bare", False, trust_remote_code=True)
    assert all(bare["remote"])
    assert {**bare, "remote": None} == {**installed, "remote": None}
    # what it saved is portable in turn, and lean again once the package has it
    names = {file.name for file in portable.iterdir()}
    for folder in ("saved", "saved-by-pipeline"):
        assert {file.name for file in (tmp_path / "bare" / folder).iterdir()} == names
    assert {file.name for file in (tmp_path / "bare" / "configuration-only").glob("*.py")} == {
        name for name in names if name.endswith(".py")
    }
    again = run_client(tmp_path / "bare" / "saved", tmp_path / "again", False, trust_remote_code=True)
    assert again == bare
    model = ScanFormerForVisualGrounding.from_pretrained(tmp_path / "bare" / "saved-by-pipeline")
    processor = ScanFormerProcessor.from_pretrained(tmp_path / "bare" / "saved-by-pipeline")
    model.save_pretrained(tmp_path / "lean")
    processor.save_pretrained(tmp_path / "lean")
    assert not mentions_code(tmp_path / "lean")


PINNED = """
import sys
sys.modules["modeling_scanformer"] = None
from transformers import pipeline

pipe = pipeline("visual-grounding", model="org/name", revision="REVISION", trust_remote_code=True)
assert pipe(sys.argv[-1], text="the red disc")["score"] > 0
for each in (pipe, pipe.model, pipe.processor):
    assert "REVISION" in type(each).__module__, type(each)
print(pipe.model.config.selection_threshold)
"""


def test_a_pinned_revision_stays_what_it_was_and_loads_from_the_cache(portable, hub, hub_client, tmp_path):
    hub_client.create_repo("org/name")
    pinned = hub_client.upload_folder(repo_id="org/name", folder_path=portable).oid
    config = json.loads((portable / "config.json").read_text())
    later = json.dumps({**config, "selection_threshold": 0.75}).encode()
    hub_client.upload_file(repo_id="org/name", path_or_fileobj=later, path_in_repo="config.json")
    hub_client.upload_file(
        repo_id="org/name", path_or_fileobj=b"raise SystemExit", path_in_repo="pipeline_scanformer.py"
    )
    picture(64, 48).save(tmp_path / "picture.png")
    code = PINNED.replace("REVISION", pinned).replace("sys.argv[-1]", repr(str(tmp_path / "picture.png")))
    online = hub.run_python(code).stdout
    hub.close()
    assert hub.run_python(code, HF_HUB_OFFLINE="1").stdout == online
    assert float(online) == config["selection_threshold"]


def test_no_code_runs_unasked(portable, tmp_path):
    with pytest.raises(AssertionError, match="trust_remote_code=True"):
        run_client(portable, tmp_path / "bare", installed=False)


def test_a_portable_save_is_a_lean_one_and_its_code(checkpoint, portable):
    lean = {file.name for file in checkpoint.iterdir()}
    assert {file.name for file in portable.iterdir()} == lean | {file.name for file in code_files()}
    for name in lean - {"config.json", "processor_config.json", "tokenizer_config.json"}:
        assert (portable / name).read_bytes() == (checkpoint / name).read_bytes()


def test_the_base_model_can_be_portable_as_well(checkpoint, tmp_path):
    save_portable(
        ScanFormerModel.from_pretrained(checkpoint), ScanFormerProcessor.from_pretrained(checkpoint), tmp_path
    )
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ScanFormerModel"]
    assert isinstance(ScanFormerModel.from_pretrained(tmp_path), ScanFormerModel)


def test_a_model_with_an_adapter_is_not_saved_without_its_base(checkpoint, tmp_path):
    model = ScanFormerForVisualGrounding.from_pretrained(checkpoint)
    processor = ScanFormerProcessor.from_pretrained(checkpoint)
    adapted = get_peft_model(ScanFormerForVisualGrounding.from_pretrained(checkpoint), lora_config(r=2))
    model.add_adapter(lora_config(r=2))
    for each in (model, adapted):
        with pytest.raises(ValueError, match="merge it into its base"):
            save_portable(each, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    save_portable(adapted.merge_and_unload(), processor, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_remote_code_needs_only_torch_transformers_and_pillow():
    """Transformers refuses to load code whose imports, even those inside of functions, are not there."""
    brought_along = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}
    names = {file.name for file in code_files()}
    assert {"configuration_scanformer.py", "pipeline_scanformer.py", "visualization_scanformer.py"} <= names
    for file in code_files():
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module] if node.level == 0 else []
                assert node.level == 0 or f"{node.module}.py" in names
            for module in modules:
                assert module.split(".")[0] in brought_along | set(sys.stdlib_module_names), (file.name, module)
