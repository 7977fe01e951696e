"""Does a card tell what the critiques of its labelled pairs came to, and always the same?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import recipe_with
from transformers import LlamaConfig

from rlhf_ray.bootstrap.judges import JudgeMaker
from rlhf_ray.bootstrap.roles import Sampler
from rlhf_ray.bootstrap.store import Store
from rlhf_ray.config.judges import CritiquedJudge
from rlhf_ray.config.schema import FileData, Recipe, Scratch
from rlhf_ray.critiques.cache import CritiqueCache
from rlhf_ray.critiques.template import template_of
from rlhf_ray.critiques.wave import WaveCritic
from rlhf_ray.critiques.writer import Asks, Completion, CritiqueWriter
from rlhf_ray.data.task import FileTask
from rlhf_ray.launch.run import judge_rows
from rlhf_ray.training.scratch import make_tokenizer

PAIRS = [
    {"prompt": "ab=", "chosen": "a", "rejected": "b"},
    {"prompt": "ba=", "chosen": "a", "rejected": "bb", "rejected_critique": "b"},
]
HELD_OUT = [{"prompt": "aa=", "chosen": "a", "rejected": "b"}]


class Ranks:
    """Learner ranks that train nothing and prefer every chosen response."""

    def begin(self, build: Any) -> None: ...

    def advance(self, steps: int) -> dict[str, float]:
        return {"steps": 10**6, "loss": 0.5}

    def margins(self, items: Any) -> Any:
        return np.ones(len(items))

    def export(self, folder: Path, tokenizer: str, *, trust_remote_code: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")

    def end(self) -> None: ...


class Echo:
    """Criticises in as many tokens as a question has letters, and has nothing to say of `bb`."""

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, asks: Asks) -> list[Completion]:
        self.asked += len(asks)
        return [Completion("" if "bb" in one.text else "ab", len(one.text), "ok") for one in asks]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A judge that reads critiques and one that does not, trained on two pairs."""
    folder = tmp_path / "model"
    tokenizer = make_tokenizer(Scratch(), ["ab=?!"])
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    for name, rows in (("train", PAIRS), ("held_out", HELD_OUT)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = {"kind": "files", "train": "train.jsonl", "held_out": "held_out.jsonl"}
    judge = {"path": str(folder), "train": {"preferences": files}}
    return recipe_with(
        data={"kind": "files", "dir": str(tmp_path)},
        policy={},
        judges={
            "reader": {"kind": "critiqued"} | judge,
            "plain": {"kind": "bradley_terry"} | judge,
        },
        critic={"kind": "policy", "template": "terse-1"},
    )


class Shop:
    """A run as far as its judges go."""

    def __init__(self, recipe: Recipe, folder: Path, critic: Echo) -> None:
        assert isinstance(recipe.data, FileData)
        self.recipe = recipe
        writer = CritiqueWriter(
            critic.complete, template=template_of("terse-1"), critic="c",
            cache=CritiqueCache(folder / "critiques"), max_tokens=8, seed=0,
        )  # fmt: skip
        task: Any = FileTask(recipe.data, seed=0, judges=recipe.judges, critic=recipe.critic)
        gang: Any = Ranks()
        store = Store(recipe, folder, lambda *said: None)
        write = WaveCritic(writer, ["reader"], 0.0).write_all
        self.maker = JudgeMaker(store, task, gang, None, str, Sampler(list), write)  # type: ignore[arg-type]

    def trained(self) -> dict[str, Any]:
        return dict(self.recipe.judges)


def test_card_and_metrics_tell_what_critiques_of_labelled_pairs_came_to(
    recipe: Recipe, tmp_path: Path
) -> None:
    shop: Any = Shop(recipe, tmp_path / "run", Echo())
    for name, entry in shop.trained().items():
        shop.maker.judge(name, entry)
    # `ab=a?` and `ab=b?`, `ba=a?`, and of the held-out pair `aa=a?` and `aa=b?`: five letters each.
    # The critique that the file brought is one more that a judge reads, and cost nothing.
    costs = {"ok": 6, "tokens": 25}
    rows = {row["name"]: row for row in judge_rows(shop, known=())}
    assert rows["reader"]["critiques"] == shop.maker.card("reader")["critiques"] == costs
    assert rows["plain"]["critiques"] == shop.maker.card("plain")["critiques"] == {}
    assert rows["reader"]["accuracy"] == {"held_out": 1.0}


def test_a_kill_between_critiques_and_training_changes_no_count(
    recipe: Recipe, tmp_path: Path
) -> None:
    whole, folder = Shop(recipe, tmp_path / "whole", Echo()), tmp_path / "killed"
    entry: Any = recipe.judges["reader"]
    assert isinstance(entry, CritiquedJudge)
    whole.maker.judge("reader", entry)
    assert entry.train is not None
    # What a kill leaves: all critiques of the training pairs, once even the lessons.
    Shop(recipe, folder, Echo()).maker.pairs(entry)
    Shop(recipe, folder, Echo()).maker.lessons("reader", entry)
    last = Echo()
    resumed = Shop(recipe, folder, last)
    resumed.maker.judge("reader", entry)
    assert last.asked == 0
    ours, theirs = (
        (one / "judges" / "reader" / "judge.json").read_bytes()
        for one in (tmp_path / "whole", folder)
    )
    assert ours == theirs
    assert "seconds" not in json.loads(ours)["critiques"]


def test_critiques_that_failed_or_were_empty_are_counted_by_what_became_of_them(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({**PAIRS[1], "rejected_critique": ""}) + "\n")
    shop = Shop(recipe, tmp_path / "run", Echo())
    entry: Any = recipe.judges["reader"]
    shop.maker.judge("reader", entry)
    assert shop.maker.card("reader")["critiques"] == {"empty": 1, "ok": 3, "tokens": 21}
