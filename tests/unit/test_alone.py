"""What judges and their critic need without a run: a policy, workers, and what is said without."""

from pathlib import Path
from typing import Any

import pytest
from recipes import GOLD, GOLD_JUDGE, recipe_with, without_policy

from rlhf_ray.config.checks import check_policy, check_recipe
from rlhf_ray.config.load import dump_recipe, load_recipe
from rlhf_ray.config.resources import Actors, crew, needs_alone
from rlhf_ray.config.schema import FileData, Policy, Recipe
from rlhf_ray.errors import ClusterUnavailable, RecipeError
from rlhf_ray.launch import judging
from rlhf_ray.launch.judging import measure_strengths, train_judges, write_critiques

OWN = {"preferences": {"kind": "files", "train": "some/pairs"}}
GENERATED = {"data": {"kind": "gold"}}
NONE = "and this recipe has no `policy`;"


def own(**settings: Any) -> dict[str, Any]:
    """A judge that is trained from a model of its own on a file."""
    return {"kind": "bradley_terry", "path": "some/model", "train": OWN} | settings


def reader(critic: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe of a judge that reads critiques, and their critic."""
    judges = {"a": own(kind="critiqued")}
    return without_policy(judges=judges, critic=critic, **sections)


def roles(recipe: Recipe, *judges: str, **asked: Any) -> list[str]:
    return [one.role for one in crew(recipe, needs_alone(recipe, judges, **asked)).actors]


def refusal(recipe: Recipe, *judges: str, **asked: Any) -> list[str]:
    """What is said where the policy is needed, line by line; empty where it is not."""
    try:
        check_policy(recipe, needs_alone(recipe, judges, **asked))
    except RecipeError as error:
        return str(error).splitlines()
    return []


def test_a_judge_with_a_model_and_pairs_of_its_own_needs_a_name_and_nothing_else() -> None:
    recipe = without_policy()
    check_recipe(recipe, alone=True)
    assert refusal(recipe, "a") == []
    assert not recipe.has_policy
    assert recipe.data == FileData()


def test_a_run_without_a_policy_is_refused_with_all_it_lacks() -> None:
    with pytest.raises(RecipeError) as refused:
        check_recipe(without_policy())
    assert str(refused.value).splitlines() == [
        "policy is missing, but a run trains one; add policy.path, or policy.supervised for one "
        "from scratch",
        "data.prompts is missing, but the policy answers them in a run; name a file",
        "data.prompts_held_out is missing, but the policy is measured on them in a run; name a "
        "file",
    ]


def test_no_limit_of_a_policy_that_is_not_there_is_kept() -> None:
    sizes = {"context": {"width": 97}, "rollouts": {"max_tokens": 60}}
    check_recipe(without_policy(judges={"a": own(train=GOLD)}, **sizes, **GENERATED), alone=True)
    one = {"kind": "generative", "train": GOLD}
    check_recipe(without_policy(judges={"a": one}, **GENERATED), alone=True)
    with pytest.raises(RecipeError, match=r"policy\.scratch\.max_positions is 64"):
        check_recipe(without_policy(judges={"a": one}, policy={}, **GENERATED), alone=True)


def test_a_recipe_that_trains_no_judge_is_no_lesson() -> None:
    recipe = without_policy(judges={"a": {"kind": "rules"}})
    with pytest.raises(RecipeError) as refused:
        check_recipe(recipe, alone=True)
    assert str(refused.value) == (
        "judges: none has `train`, so there is nothing to train; add it to one"
    )
    check_recipe(recipe, idle=True)


def test_judges_that_start_from_the_policy_or_sample_it_say_so() -> None:
    recipe = without_policy(judges={"a": GOLD_JUDGE, "b": own(train=GOLD), "c": own()}, **GENERATED)
    starts = f"judges.a has no `path`, so it starts from the policy, {NONE} add `path`, or add"
    sampled = (
        ".train.preferences are of kind gold, so the policy is sampled for them, "
        f"{NONE} take kind files, or add `policy`"
    )
    assert refusal(recipe, "a", "b", "c") == [
        f"{starts} `policy`", f"judges.a{sampled}", f"judges.b{sampled}",
    ]  # fmt: skip
    assert refusal(recipe, "c") == [], "only those that are trained are looked at"
    known = without_policy(policy={}, judges=recipe.model_dump()["judges"], **GENERATED)
    assert refusal(known, "a", "b") == []


CRITICS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"kind": "policy"}, "critic.kind is 'policy', so the policy itself writes, "
     f"{NONE} take another kind, or add `policy`", ["rollout", "learner"]),
    ({"train": {"critiques": "some/critiques"}}, "critic has no `path`, so it starts from the "
     f"policy, {NONE} add `path`, or add `policy`", ["learner", "critic"]),
    ({"path": "a/b", "train": {}}, "critic.train.critiques names no file, so the policy is "
     f"sampled for exact ones, {NONE} name one, or add `policy`", ["rollout", "learner", "critic"]),
    ({"path": "a/b", "train": {"critiques": "some/critiques"}}, "", ["learner", "critic"]),
    ({"path": "a/b"}, "", ["critic"]),
    ({"kind": "endpoint", "endpoint": {"url": "http://localhost:1"}}, "", []),
]  # fmt: skip


@pytest.mark.parametrize(("critic", "message", "workers"), CRITICS, ids=str)
def test_a_critic_that_is_asked_needs_what_it_is_made_of(
    critic: dict[str, Any], message: str, workers: list[str]
) -> None:
    recipe = reader(critic)
    for asked in ({"critic": True}, {"judges": ["a"]}):
        assert refusal(recipe, *asked.pop("judges", ()), **asked) == [message] * bool(message)
    assert roles(recipe, critic=True) == workers
    # A judge that reads critiques is trained besides.
    more = [one for one in ("rollout", "learner", "critic") if one in {*workers, "learner"}]
    assert roles(recipe, "a") == more
    beside = without_policy(judges={"a": own(kind="critiqued"), "b": own()}, critic=critic)
    assert (refusal(beside, "b"), roles(beside, "b")) == ([], ["learner"])


def test_only_what_a_command_uses_has_to_fit_on_the_machine() -> None:
    large: dict[str, Any] = {
        "rollouts": {"workers": 4, "num_gpus": 2}, "judge_fleet": {"num_gpus": 1},
        "learner": {"num_cpus": 3, "num_gpus": 1},
    }  # fmt: skip
    recipe = without_policy(**large)
    wanted = crew(recipe, needs_alone(recipe, ["a"]))
    assert wanted.actors == (Actors("learner", 1, 3, 1),)
    assert (wanted.total_cpus, wanted.total_gpus) == (3, 1)
    sampled = recipe_with(**large)
    assert crew(sampled, needs_alone(sampled, ["a"])).actors == (
        Actors("rollout", 4, 0.5, 2), Actors("learner", 1, 3, 1),
    )  # fmt: skip


def test_voters_are_counted_where_they_vote() -> None:
    voting = {"voters": 2, "folds": 2, "parallel": 9}
    doubts = {"denoising": {"flip": True, "voting": voting}}
    known = {"denoising": {"flip": True, "voting": voting, "strengths": "votes.jsonl"}}
    trains = {"a": OWN, "b": OWN | doubts, "c": OWN | known}
    recipe = without_policy(judges={name: own(train=train) for name, train in trains.items()})

    def gangs(*judges: str, groups: int | None = None) -> int:
        wanted = crew(recipe, needs_alone(recipe, judges, groups=groups))
        return sum(one.count for one in wanted.actors)

    assert (gangs("a"), gangs("c"), gangs("a", "b", "c")) == (1, 1, 4)
    # The votes of `strength` are its own, and so are the groups it trains a judge on each of.
    assert (gangs("a", groups=0), gangs("b", groups=0), gangs("c", groups=0)) == (1, 4, 4)
    assert (gangs("b", groups=7), gangs("b", groups=20)) == (7, 9)


def test_commands_refuse_before_they_leave_anything_behind(tmp_path: Path) -> None:
    recipe = without_policy(judges={"a": GOLD_JUDGE}, critic={"kind": "policy"}, **GENERATED)
    folder = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"judges\.a has no `path`"):
        train_judges(recipe, folder)
    with pytest.raises(RecipeError, match=r"judges\.a has no `path`"):
        measure_strengths(recipe, folder, "a", groups=2, alone=False)
    with pytest.raises(RecipeError, match=r"critic\.kind is 'policy'"):
        write_critiques(recipe, folder, [], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_cluster_is_asked_for_the_workers_of_the_command_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()

    def on_cluster(recipe: Recipe, view: Any, wanted: Any) -> Any:
        asked.append(wanted)
        raise ClusterUnavailable("full")

    monkeypatch.setattr(judging, "on_cluster", on_cluster)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    judge = own(train={"preferences": {"kind": "files", "train": str(pairs)}})
    recipe = without_policy(judges={"a": judge}, learner={"num_cpus": 3})
    with pytest.raises(ClusterUnavailable):
        train_judges(recipe, tmp_path / "run")
    assert asked[0].actors == (Actors("learner", 1, 3, 0),)


def test_a_recipe_without_a_policy_is_written_and_read_without_one(tmp_path: Path) -> None:
    recipe, path = without_policy(), tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    again = load_recipe(path, environ={})
    assert (again, again.has_policy) == (recipe, False)
    assert "policy:" not in path.read_text()
    given = load_recipe(path, ["policy={}"], {})
    assert (given.policy, given.has_policy) == (Policy(), True)
    assert dump_recipe(given) != dump_recipe(again) == dump_recipe(recipe)
    assert load_recipe(path, ["policy.path=a/b"], {}).has_policy


def test_data_without_a_kind_are_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: small\njudges: {a: {kind: rules}}\n")
    assert load_recipe(path, ["data.dir=here"], {}).data == FileData(dir=Path("here"))
