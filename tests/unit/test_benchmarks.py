"""Do the scripts beside the product still find what they import from it?"""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_from_us_is_there(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    ours = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.split(".")[0] in ("rlhf_ray", "actors")
        for alias in node.names
    ]
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
