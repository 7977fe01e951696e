"""Small recipes and the files they name, for tests of what is asked for and what is refused."""

import json
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks import check_recipe
from rlhf_ray.config.schema import Recipe
from rlhf_ray.errors import RecipeError

GOLD = {"preferences": {"kind": "gold", "expert": "sort"}}
GOLD_JUDGE = {"kind": "bradley_terry", "train": GOLD}


def recipe_with(**sections: Any) -> Recipe:
    """A recipe of generated data with a trained judge and a rule, changed by whole sections."""
    base: dict[str, Any] = {
        "name": "small",
        "data": {"kind": "gold"},
        "policy": {"supervised": {"steps": 5}},
        "judges": {"a": GOLD_JUDGE, "b": {"kind": "rules"}},
    }
    return Recipe.model_validate(base | sections)


def without_policy(**sections: Any) -> Recipe:
    """A recipe of nothing but a judge with a model and pairs of its own, changed by whole
    sections."""
    train = {"preferences": {"kind": "files", "train": "some/pairs"}}
    own = {"kind": "bradley_terry", "path": "some/model", "train": train}
    return Recipe.model_validate({"name": "small", "judges": {"a": own}} | sections)


def files(folder: Path, **more: Any) -> dict[str, Any]:
    """Sections for data from files, with prompts in `folder`."""
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    names = {"prompts": "prompts.jsonl", "prompts_held_out": "prompts.jsonl"}
    data = {"kind": "files", "dir": str(folder), "max_prompt_tokens": 20} | names | more
    return {"data": data, "policy": {}, "judges": {"b": {"kind": "rules"}}}


def model_folder(folder: Path, weights: str = "model.safetensors", **config: Any) -> str:
    """A model folder with a config and 4000 bytes of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / weights).write_bytes(bytes(4000))
    return str(folder)


def judge_at(path: str, kind: str = "bradley_terry") -> dict[str, Any]:
    return {"judges": {"a": {"kind": kind, "path": path}}}


def problems(**sections: Any) -> list[str]:
    """What is said about a recipe that is refused, line by line; empty for one that is taken."""
    try:
        check_recipe(recipe_with(**sections))
    except RecipeError as error:
        return str(error).splitlines()
    return []
