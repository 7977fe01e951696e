"""What a recipe asks for, and what about it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from rlhf_ray.config.load import load_recipe
from rlhf_ray.config.resources import (
    check_against_cluster,
    check_recipe,
    check_run_dir,
    plan,
    render,
)
from rlhf_ray.config.schema import Recipe
from rlhf_ray.errors import RecipeError

GOLD_JUDGE = {"kind": "bradley_terry", "train": {"preferences": {"kind": "gold", "expert": "sort"}}}


def recipe_with(**sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "small",
        "data": {"kind": "gold"},
        "policy": {"supervised": {"steps": 5}},
        "judges": {"a": GOLD_JUDGE, "b": {"kind": "rules"}},
    }
    return Recipe.model_validate(base | sections)


def problems(**sections: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe_with(**sections))
    return str(caught.value).splitlines()


def model_folder(folder: Path, weights: str = "model.safetensors", **config: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / weights).write_bytes(bytes(4000))
    return str(folder)


def judge_at(path: str) -> dict[str, Any]:
    return {"judges": {"a": {"kind": "bradley_terry", "path": path}}}


def test_the_plan_counts_what_one_can_count_by_hand() -> None:
    found = plan(
        recipe_with(
            loop={"rounds": 2, "waves": 3, "prompts": 10, "warm_waves": 1},
            rollouts={"workers": 2, "responses": 4, "chunk_prompts": 4, "num_cpus": 1.5},
            pairs={"per_prompt": 2},
            learner={"minibatch_pairs": 8, "epochs": 2, "tokens_per_batch": 100},
        )
    )
    assert (found.waves, found.samples, found.chunks) == (6, 6 * 10 * 4, 3)
    assert found.pairs == 10 * 2
    assert found.optimizer_steps == (6 - 1) * 3 * 2
    assert found.forward_batches == 8  # 2 * 20 sequences of 11 + 8 tokens are 760 tokens
    assert found.total_cpus == 2 * 1.5 + 0.5 + 1
    assert found.total_gpus == 0


def test_a_checkpoint_holds_policy_reference_and_optimizer() -> None:
    scratch = {"hidden_size": 32, "heads": 1, "layers": 1, "intermediate_size": 64}
    found = plan(recipe_with(policy={"scratch": scratch}, context={"width": 4}))
    parameters = 64 * 32 + (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert found.checkpoint_bytes == parameters * 16


def test_the_size_of_a_local_policy_is_read_off_its_weights(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "policy", torch_dtype="float32")
    assert plan(recipe_with(policy={"path": path})).checkpoint_bytes == 1000 * 16


def test_the_size_of_a_policy_on_the_hub_is_not_known() -> None:
    found = plan(recipe_with(policy={"path": "some/model"}))
    assert found.checkpoint_bytes is None
    assert "fetched from the hub: some/model" in render(found)
    assert "size not known yet" in render(found)


def test_the_plan_says_what_is_made_and_what_judges() -> None:
    text = render(plan(recipe_with()))
    for part in (
        "1 x learner  1 CPU, 0 GPU each",
        "64 prompts x 8 responses = 512 samples",
        "made from scratch, about 0.3 M parameters, then 5 supervised steps",
        "a: from the start policy, trained 560 steps",
        "b: rule 'answer'",
        "linucb over 2 judges",
    ):
        assert part in text


def test_judge_workers_are_no_more_than_judges() -> None:
    assert plan(recipe_with(judge_fleet={"workers": 9})).actors[1].count == 2


def test_a_recipe_that_can_be_is_not_refused() -> None:
    check_recipe(recipe_with())
    check_recipe(recipe_with(policy={"path": "owner/model"}, **judge_at("owner/judge")))


CANNOT: list[tuple[dict[str, Any], str]] = [
    (
        {"bandit": {"kind": "fixed", "arm": "c"}},
        "bandit.arm is 'c', which is no judge; there is a, b",
    ),
    (
        {"bandit": {"kind": "oracle", "arm_by_source": {"sort": "a"}}},
        "bandit.arm_by_source names no judge for reverse, rotate, swap; add them",
    ),
    (
        {
            "data": {"kind": "gold", "families": ["sort"]},
            "bandit": {"kind": "oracle", "arm_by_source": {"sort": "x"}},
        },
        "bandit.arm_by_source.sort is 'x', which is no judge",
    ),
    ({"judges": {"ensemble": {"kind": "gold"}}}, "'ensemble' means all judges"),
    ({"judges": {"../a": {"kind": "gold"}}}, "'../a' names a folder; name it with letters"),
    (
        {"pairs": {"per_prompt": 3}, "rollouts": {"responses": 5}},
        "pairs.per_prompt is 3, rollouts.responses allow at most 2",
    ),
    (
        {"pairs": {"kind": "top", "per_prompt": 11}, "rollouts": {"responses": 5}},
        "pairs.per_prompt is 11, rollouts.responses allow at most 10",
    ),
    (
        {"loop": {"rounds": 2, "waves": 2, "warm_waves": 4}},
        "loop.warm_waves 4 leaves none of 4 waves to train",
    ),
    ({"signal": {"low": 0.8, "high": 0.8}}, "signal.low 0.8 must be below signal.high 0.8"),
    ({"context": {"sample": 32}}, "context.sample must exceed context.width 32, got 32"),
    (
        {"context": {"width": 97}},
        "context.width 97 exceeds the hidden size 96 of policy.scratch; lower it",
    ),
    (
        {"rollouts": {"max_tokens": 60}},
        "policy.scratch has 64 positions, needed are 11 per prompt and rollouts.max_tokens 60",
    ),
    (
        {"rollouts": {"tensor_parallel": 2, "num_gpus": 1}, "learner": {"num_gpus": 1}},
        "rollouts.tensor_parallel 2 needs as many rollouts.num_gpus, not 1",
    ),
    (
        {"weights": {"backend": "nccl"}},
        "weights.backend 'nccl' goes between GPUs, but rollouts.num_gpus is 0",
    ),
    ({"rollouts": {"num_gpus": 1}}, "weights.backend 'nccl' goes between GPUs, but"),
    (
        {"data": {"kind": "gold", "families": ["swap"]}},
        "judges.a.train.preferences.expert 'sort' is not in data.families",
    ),
    ({"judges": {"f": {"kind": "rules", "rule": "format"}}}, "'format' and `pattern` go together"),
    ({"judges": {"f": {"kind": "rules", "pattern": "a"}}}, "'format' and `pattern` go together"),
    (
        {"judges": {"f": {"kind": "rules", "rule": "format", "pattern": "("}}},
        "judges.f.pattern '(' is no regular expression: missing )",
    ),
    ({"data": {"kind": "gold", "families": []}}, "data.families must name at least one family"),
    ({"policy": {"path": "./nowhere/at/all"}}, "policy.path is ./nowhere/at/all, which is not a"),
    ({"policy": {"path": "~/model"}}, "policy.path is ~/model, and '~' is not expanded; write /"),
    ({"learner": {"deepspeed": "nowhere.json"}}, "learner.deepspeed nowhere.json cannot be read"),
    (
        {"learner": {"deepspeed": {"train_batch_size": 8}}},
        "learner.deepspeed.train_batch_size follows from learner.tokens_per_batch; remove it",
    ),
    (
        {"learner": {"deepspeed": {"zero_optimization": {"stage": 3}}}},
        "learner.deepspeed.zero_optimization.stage is 3, learner.zero_stage makes it 1",
    ),
    (
        {"learner": {"deepspeed": {"bf16": {"enabled": True}}}},
        "learner.deepspeed.bf16.enabled is True, learner.precision fp32 makes it False",
    ),
    (
        {"learner": {"deepspeed": {"fp16": {"enabled": True}}}},
        "learner.deepspeed.fp16.enabled is True, learner.precision fp32 makes it False",
    ),
]


@pytest.mark.parametrize(("sections", "message"), CANNOT)
def test_what_cannot_be_is_refused_with_its_key(sections: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in problems(**sections))


def test_deepspeed_settings_that_agree_are_taken() -> None:
    user = {
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 2, "overlap_comm": True},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
    }
    check_recipe(recipe_with(learner={"deepspeed": user, "zero_stage": 2}))


def test_all_problems_are_listed_at_once() -> None:
    found = problems(
        bandit={"kind": "fixed", "arm": "c"},
        context={"sample": 3},
        weights={"backend": "ipc"},
        learner={"deepspeed": {"train_batch_size": 8}},
    )
    assert len(found) == 4


def files(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    names = {"prompts": "prompts.jsonl", "prompts_held_out": "prompts.jsonl"}
    data = {"kind": "files", "dir": str(folder), "max_prompt_tokens": 20} | names | more
    return {"data": data, "policy": {}, "judges": {"b": {"kind": "rules"}}}


def test_a_missing_data_file_names_the_nearest_one(tmp_path: Path) -> None:
    (found,) = problems(**files(tmp_path, prompts="promts.jsonl"))
    assert found == (
        f"data.prompts is 'promts.jsonl', but {tmp_path}/promts.jsonl is not there; "
        "did you mean prompts.jsonl?"
    )


def test_hub_names_globs_and_folders_are_data_too(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    names = {"prompts": "*.jsonl", "prompts_held_out": "owner/set:test", "demonstrations": "parts"}
    check_recipe(recipe_with(**files(tmp_path, **names)))


def test_a_pattern_without_a_file_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    found = problems(**files(tmp_path, prompts="*.parquet", prompts_held_out="a/b/c.jsonl"))
    assert f"no file matches {tmp_path}/*.parquet" in found[0]
    assert f"the folder {tmp_path}/a/b does not exist either" in found[1]


def test_preference_files_of_a_judge_are_looked_up_in_the_data_folder(tmp_path: Path) -> None:
    sections = files(tmp_path)
    preferences = {"kind": "files", "train": "prompts.jsonl", "held_out": "dev.jsonl"}
    judge = {"kind": "bradley_terry", "train": {"preferences": preferences}}
    (found,) = problems(**(sections | {"judges": {"a": judge}}))
    assert found.startswith("judges.a.train.preferences.held_out is 'dev.jsonl', but")


def test_gold_preferences_and_fine_tuning_need_their_texts(tmp_path: Path) -> None:
    sections = files(tmp_path) | {"policy": {"supervised": {}}, "judges": {"a": GOLD_JUDGE}}
    assert problems(**sections) == [
        "judges.a.train.preferences.expert 'sort' needs data.kind gold; change one of them",
        "policy.supervised needs data.demonstrations; add them or drop policy.supervised",
    ]


def test_a_model_folder_without_a_config_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").touch()
    (found,) = problems(policy={"path": str(tmp_path)})
    assert found == f"policy.path {tmp_path} has no config.json; there is weights.txt"


def test_weights_that_may_run_code_are_refused(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "old", "pytorch_model.bin", architectures=["LlamaForCausalLM"])
    (found,) = problems(policy={"path": path})
    assert "no *.safetensors, only pytorch_model.bin, which may run code when read" in found
    assert "convert it with save_pretrained" in found


def test_a_policy_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "m", architectures=["LlamaForSequenceClassification"])
    (found,) = problems(policy={"path": path})
    assert "LlamaForSequenceClassification, not a causal language model" in found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "bad", "1": "good"}}, "has 2 labels"),
        ({"num_labels": 3}, "has 3 labels"),
        ({}, "has 2 labels"),
        ({"architectures": ["LlamaForCausalLM"]}, "which has no score head; add `train`"),
    ],
)
def test_a_judge_without_exactly_one_label_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    kind = {"architectures": ["LlamaForSequenceClassification"]}
    path = model_folder(tmp_path / "judge", **(kind | config))
    (found,) = problems(**judge_at(path))
    assert found.startswith("judges.a.path")
    assert message in found


def test_a_judge_with_one_label_is_taken(tmp_path: Path) -> None:
    kind = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    check_recipe(recipe_with(**judge_at(model_folder(tmp_path / "judge", **kind))))


def test_a_local_policy_is_measured_by_its_config(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "max_position_embeddings": 16}
    path = model_folder(tmp_path / "m", architectures=["GPT2LMHeadModel"], **sizes)
    found = problems(policy={"path": path})
    assert len(found) == 2
    assert f"exceeds the hidden size 8 of {path}" in found[0]
    assert f"{path} has 16 positions" in found[1]


def test_a_cluster_that_is_too_small_is_refused_with_both_numbers() -> None:
    wanted = plan(recipe_with(learner={"workers": 2, "num_gpus": 1}))
    check_against_cluster(wanted, total_cpus=3, total_gpus=2)
    with pytest.raises(RecipeError) as caught:
        check_against_cluster(wanted, total_cpus=2, total_gpus=0)
    said = str(caught.value)
    assert "3 CPUs are wanted, the cluster has 2; 2 GPUs are wanted, the cluster has 0" in said
    assert "2 learner x (1, 1)" in said


def test_a_run_folder_that_can_be_written_stays_unmade(tmp_path: Path) -> None:
    check_run_dir(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_below_a_file_or_a_closed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RecipeError, match=r"cannot be written .*; choose another with"):
            check_run_dir(path)


def test_workers_without_work_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"learner\.workers <= 128 \(pairs\), got 1 and 500"):
        load_recipe(ROOT / "configs" / "demo.yaml", ["learner.workers=500"])
