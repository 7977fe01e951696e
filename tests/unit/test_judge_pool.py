"""Who is asked for what, what fits on a shelf, and what chunks cost together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors import judges
from actors.judge import Ask
from actors.judges import Judges, merged
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Judgement, Preference
from rlhf_ray.rewards.shelf import Shelf, weights_bytes


@dataclass
class Book:
    size_bytes: int
    closed: list[str] = field(default_factory=list)
    name: str = ""

    def close(self) -> None:
        self.closed.append(self.name)


def shelf(limit: int | None, **sizes: int) -> tuple[Shelf[Book], list[str]]:
    made: Shelf[Book] = Shelf(limit)
    closed: list[str] = []
    for name, size in sizes.items():
        made.register(name, lambda name=name, size=size: Book(size, closed, name), size)  # type: ignore[misc]
    return made, closed


def test_the_judge_not_used_for_longest_makes_room() -> None:
    judges, closed = shelf(10, a=4, b=4, c=4)
    for name in ("a", "b", "a", "c"):
        judges.get(name)
    assert list(judges.held) == ["a", "c"]
    assert closed == ["b"]
    judges.get("b")
    assert (list(judges.held), judges.loads) == (["c", "b"], 4)


def test_room_is_made_before_a_judge_is_loaded() -> None:
    judges, closed = shelf(10, a=6)
    judges.get("a")
    there: list[list[str]] = []

    def make() -> Book:
        there.append(list(judges.held))
        return Book(7, closed, "b")

    judges.register("b", make, 5)
    judges.get("b")
    assert there == [[]]
    assert closed == ["a"]
    judges.get("a")
    assert judges.sizes == {"a": 6, "b": 7}, "what was loaded is known better than its files"


def test_a_judge_that_turns_out_larger_makes_room_afterwards() -> None:
    judges, closed = shelf(10, a=6)
    judges.get("a")
    judges.register("b", lambda: Book(7, closed, "b"), 0)
    judges.get("b")
    assert (list(judges.held), closed) == (["b"], ["a"])


def test_the_size_of_a_judge_is_read_from_its_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    half = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(2)}
    save_file(half, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(7)}, tmp_path / "model-2.safetensors")
    assert weights_bytes(str(tmp_path)) == 4 * (15 + 2 + 7)
    assert weights_bytes(None) == weights_bytes("owner/name") == 0
    (tmp_path / "model-2.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{dam")
    with pytest.raises(BadData, match=r"model-2.safetensors cannot be read"):
        weights_bytes(str(tmp_path))


def test_the_size_of_other_weights_is_their_bytes_in_half_precision(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    (tmp_path / "training_args.bin").write_bytes(b"1")
    assert weights_bytes(str(tmp_path)) == 10


def test_a_judge_larger_than_the_limit_is_held_alone() -> None:
    judges, closed = shelf(10, small=4, large=40)
    judges.get("small")
    assert judges.get("large").size_bytes == 40
    assert (list(judges.held), closed) == (["large"], ["small"])


def test_without_a_limit_all_judges_stay() -> None:
    judges, closed = shelf(None, a=4, b=10**12)
    judges.get("a")
    judges.get("b")
    assert (list(judges.held), closed) == (["a", "b"], [])


def test_the_cost_of_chunks_is_their_sum_and_measures_their_mean() -> None:
    two, one = np.zeros((2, 3)), np.zeros((1, 3))
    parts = [
        Judgement(two, {"timeout": 1}, 6, 60, 0.5, {"mass": 0.5}),
        Judgement(one, {"timeout": 2, "refused": 1}, 3, 30, 0.25, {"mass": 0.8}),
        Judgement(one, {}, 0, 0, 0.25),
    ]
    found = merged(parts)
    assert (found.forwards, found.tokens, found.seconds) == (9, 90, 1.0)
    assert found.failures == {"refused": 1, "timeout": 3}
    assert found.measures == {"mass": pytest.approx((2 * 0.5 + 0.8) / 3)}


class Echo:
    """A pool of a size that answers each ask for pairs with their numbers."""

    def __init__(self, size: int) -> None:
        self.size, self.done, self.asked = size, dict[str, Any](), list[Ask]()

    def submit(self, kind: str, jobs: dict[str, Ask]) -> None:
        self.asked += jobs.values()
        for key, ask in jobs.items():
            self.done[key] = np.array([float(pair.id) for pair in ask.arguments[0]])

    def take(self, keys: list[str]) -> list[Any]:
        return [self.done.pop(key) for key in keys]


def test_pairs_are_cut_alike_however_many_replicas_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch of another size may round otherwise."""
    monkeypatch.setattr(judges, "PAIRS", 2)
    monkeypatch.setattr(judges, "finish", list)
    pairs = [Preference(str(number), "", "", "", "") for number in range(7)]
    shares = []
    for sizes in ({("a",): 1}, {("a",): 2, ("a", "b"): 1, ("b",): 1}):
        ours: Any = Judges.__new__(Judges)
        ours.pools, ours._calls = {names: Echo(size) for names, size in sizes.items()}, 0
        assert ours.margins("a", pairs).tolist() == list(range(7))
        shares.append([[len(ask.arguments[0]) for ask in one.asked] for one in ours.pools.values()])
    assert shares == [[[2, 2, 2, 1]], [[2, 2, 1], [2], []]], "by where it has workers, in turn"
