"""Is the summary of a finished run read, and a damaged one named?"""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf_ray.console import View
from rlhf_ray.errors import BadData
from rlhf_ray.results import read_summary

ENDS = {"before": {"overall": 0.25}, "after": {"overall": 0.5}}
WHOLE = {"status": "completed", "wall_s": 3, "gold_accuracy": {"sampled": ENDS, "greedy": ENDS}}


def test_a_summary_that_is_read_can_be_shown(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    for found in (WHOLE, WHOLE | {"gold_accuracy": None}):
        (tmp_path / "summary.json").write_text(json.dumps(found))
        assert read_summary(tmp_path) == found
        View(Console(file=io.StringIO())).end(tmp_path, found)
    (tmp_path / "summary.json").write_text('{"status": "failed"}')
    assert read_summary(tmp_path) is None


@pytest.mark.parametrize(
    "found",
    [
        [], "abc", 5, None, {}, {"status": "completed"},
        WHOLE | {"wall_s": "3"}, WHOLE | {"gold_accuracy": [1]},
        WHOLE | {"gold_accuracy": {"sampled": ENDS}},
        WHOLE | {"gold_accuracy": {"sampled": ENDS, "greedy": {"before": 1, "after": 2}}},
    ],
)  # fmt: skip
def test_a_summary_that_is_none_is_named(tmp_path: Path, found: Any) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(found))
    with pytest.raises(BadData, match=r"summary\.json is damaged .*; remove it to go on"):
        read_summary(tmp_path)


def test_a_summary_of_other_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(b"\xff")
    with pytest.raises(BadData, match=r"summary\.json is damaged"):
        read_summary(tmp_path)
