"""The repository itself: style, and what travels where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "modeling_scanformer").glob("*.py"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.name)
def test_the_package_imports_only_itself_and_its_dependencies(path):
    """Its files travel to the Hub as remote code, whose exporter follows `from .name import Thing`, single dot."""
    allowed = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "transformers", "typer"}
    allowed |= set(sys.stdlib_module_names)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in allowed for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 if node.level else node.module.split(".")[0] in allowed, ast.unparse(node)
            assert node.module, f"the exporter misses `{ast.unparse(node)}`"
