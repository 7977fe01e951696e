"""Every recipe of a judge or a pool, made small, on real engines: what it leaves, and that it
survives."""

import json
from pathlib import Path

import pytest
from commandline import Driver, metrics, rlhf_ray
from conftest import SMALL_LOOP, small_judge

from rlhf_ray.durable.manifest import verify_manifest
from rlhf_ray.rewards.card import read_card
from rlhf_ray.same_end import compare

CRITIC = ["critic.train.steps=20", "critic.train.prompts_per_family=8", "critic.train.samples=2"]
JUDGES: dict[str, tuple[str, list[str]]] = {
    "judge_bradley_terry": ("sorter", []),
    "judge_gram": ("gram", ["judges.gram.pretrain.steps=10"]),
    "judge_critiqued": ("reader", CRITIC),
    "judge_denoised": ("sorter", ["judges.sorter.train.denoising.voting.voters=2"]),
}
RUNS = {
    "refresh_meta": [
        *small_judge("sort_judge"), *small_judge("reverse_judge"), "refresh.steps=4",
        "refresh.prompts=16", "refresh.responses=3", "refresh.gate=1.0",
        "judges.sort_judge.serve=vllm",
        # And one that reads what the policy itself says of its responses.
        "critic.kind=policy", "critic.template=terse-1", "critic.max_tokens=12",
        "judges.reader.kind=critiqued", "judges.reader.train.preferences.kind=gold",
        "judges.reader.train.preferences.expert=sort",
        *small_judge("reader"),
    ],
    "pool_mixed": [
        *small_judge("scalar"), *small_judge("gram"), *small_judge("reader"),
        "judges.gram.pretrain.steps=10", *CRITIC,
        "judges.gram.serve=vllm",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recipe of a whole run, once."""
    found = {}
    for name, small in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        done = rlhf_ray(
            "run", "-c", f"configs/{name}.yaml", "--run-dir", str(folder), *SMALL_LOOP, *small
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = folder
    return found


@pytest.mark.parametrize("recipe", JUDGES)
def test_a_judge_recipe_leaves_a_folder_with_a_card(recipe: str, tmp_path: Path) -> None:
    name, more = JUDGES[recipe]
    small = [*SMALL_LOOP, *small_judge(name), *more]
    asked = ["judge", "train", "-c", f"configs/{recipe}.yaml", "--run-dir", str(tmp_path), *small]
    done = rlhf_ray(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "judges" / name
    verify_manifest(folder)
    card = read_card(folder)
    assert card is not None
    assert (card["name"], card["training"]["steps"]) == (name, 10)
    assert 0.0 <= card["held_out"]["accuracy"]["sort"] <= 1.0
    assert "| sort |" in (folder / "README.md").read_text()
    assert f"{name}: held-out pairs right" in done.stdout
    config = json.loads((folder / "config.json").read_text())
    kind = "LlamaForCausalLM" if recipe == "judge_gram" else "LlamaForSequenceClassification"
    assert config["architectures"] == [kind]
    if recipe == "judge_denoised":  # of all of them the one with the most to make again
        again = rlhf_ray(*asked)
        assert again.returncode == 0
        assert "step" not in again.stdout, "a judge that is there is not trained again"


def test_judges_are_refreshed_before_each_later_round(runs: dict[str, Path]) -> None:
    rows = [row for row in metrics(runs["refresh_meta"]) if row["kind"] == "refresh"]
    assert [(row["round"], row["judge"]) for row in rows] == [
        (1, "sort_judge"),
        (1, "reverse_judge"),
        (1, "reader"),
    ]
    for row in rows:
        assert row["promoted"], "the gate of this test lets everything through"
        assert row["measures"]["J_first"] > 0
        lineage = read_card(runs["refresh_meta"] / "refreshed" / f"{row['judge']}-r001")
        assert lineage is not None
        assert lineage["lineage"]["round"] == 1
        assert lineage["parent"].endswith(f"judges/{row['judge']}")
    assert "refresh" in (runs["refresh_meta"] / "report.html").read_text()


def test_a_mixed_pool_says_what_each_judge_cost(runs: dict[str, Path]) -> None:
    summary = json.loads((runs["pool_mixed"] / "summary.json").read_text())
    assert {"scalar", "gram", "reader", "short"} >= set(summary["forwards"])
    assert 0 < summary["cost_of_one_arm"] < 1
    waves = [row for row in metrics(runs["pool_mixed"]) if row["kind"] == "wave"]
    asked = {name for row in waves for name in row["forwards"]}
    assert asked == {"scalar", "gram", "reader", "short"}, "every arm is pulled once first"
    gram = [row["measures"]["gram"] for row in waves if "gram" in row["measures"]]
    assert all(0.0 <= one["swap_consistency"] <= 1.0 for one in gram)
    assert sum(sum(row["critiques"].get(k, 0) for k in ("ok", "empty")) for row in waves) > 0


def test_critiques_stand_beside_the_responses(runs: dict[str, Path]) -> None:
    from datasets import load_dataset

    folder = runs["pool_mixed"] / "samples"
    samples = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train")
    read = [row for row in samples if row["arm"] == "reader"]
    assert read
    assert any(row["critique"] for row in read)
    assert not any(row["critique"] for row in samples if row["arm"] == "scalar")


@pytest.mark.parametrize(
    ("recipe", "victim", "seen"),
    [
        # Judged by refreshed judges.
        ("refresh_meta", "JudgeActor.score", '"key":"r001-w000","kind":"scores"'),
        # Criticised, not yet judged.
        ("pool_mixed", "CriticActor.generate", '"key":"r000-w001","kind":"critiques"'),
    ],
)
def test_a_run_whose_worker_and_then_driver_are_killed_ends_where_an_unbroken_run_ends(
    recipe: str, victim: str, seen: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    asked = ["-c", f"configs/{recipe}.yaml", *SMALL_LOOP, *RUNS[recipe]]
    with Driver(tmp_path / "run", *asked) as run:
        run.strike(victim)
        run.until(seen)
    assert "worker 0: infra" in run.said(), "another took its place"
    resumed = rlhf_ray("run", "--run-dir", str(run.folder), *asked)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [one for one in compare(runs[recipe], run.folder) if not one.equal] == []
