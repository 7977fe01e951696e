"""Is every file, every function, and above all the loop itself short enough to be read?"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = [path for top in ("rlhf_ray", "actors") for path in sorted((ROOT / top).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60
LOOP = {"Driver.run": 12, "Driver.step": 32}
NO_SUBJECT = {"utils", "util", "common", "helpers", "helper", "misc"}


def functions(tree: ast.AST, inside: str = "") -> dict[str, int]:
    """Lines of every function by qualified name, decorators left out."""
    found: dict[str, int] = {}
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            found[name] = node.end_lineno - node.lineno + 1
        found |= functions(node, name)
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_longer_than_400_lines() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in PRODUCT + TESTS}
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE}


def test_no_function_is_longer_than_60_lines() -> None:
    sizes = {
        f"{name_of(path)}: {name}": size
        for path in PRODUCT
        for name, size in functions(ast.parse(path.read_text())).items()
    }
    assert not {name: size for name, size in sizes.items() if size > MAX_FUNCTION}


def test_one_step_of_the_algorithm_fits_on_a_screen() -> None:
    sizes = functions(ast.parse((ROOT / "rlhf_ray" / "driver.py").read_text()))
    assert not {name: sizes[name] for name, limit in LOOP.items() if sizes[name] > limit}


def test_every_module_is_named_after_its_subject() -> None:
    assert not [path for path in PRODUCT + TESTS if path.stem in NO_SUBJECT]


def test_lines_of_a_nested_function_are_counted_for_both() -> None:
    source = "class A:\n    def f(self):\n        def g():\n            pass\n        g()\n"
    assert functions(ast.parse(source)) == {"A.f": 4, "A.f.g": 2}
