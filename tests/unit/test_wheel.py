"""Does the wheel ship both packages, and nothing else?"""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of a wheel built from this tree."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra `dev`, builds the wheel")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_top_level_is_the_two_packages_and_the_metadata(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    (metadata,) = (top for top in tops if top.endswith(".dist-info"))
    assert metadata.startswith("rlhf_ray-")
    assert tops == {"rlhf_ray", "actors", metadata}


def test_every_module_of_the_tree_is_in_it(names: list[str]) -> None:
    tree = {
        str(path.relative_to(ROOT)) for top in ("rlhf_ray", "actors")
        for path in (ROOT / top).rglob("*.py")
    }  # fmt: skip
    assert tree == {name for name in names if name.endswith(".py")}
