"""Is the engine of a critic set up as the recipe says, and not as the policy's?"""

from recipes import GOLD, recipe_with

from rlhf_ray.bootstrap.critic import critic_engine
from rlhf_ray.config.resources import plan


def test_a_large_critic_is_split_over_its_own_gpus_with_its_own_engine_settings() -> None:
    recipe = recipe_with(
        judges={"a": {"kind": "critiqued", "train": GOLD}},
        critic={
            "path": "owner/critic-70b", "num_gpus": 4, "tensor_parallel": 4, "max_tokens": 300,
            "num_cpus": 2, "engine_args": {"quantization": "fp8"},
        },
        rollouts={"engine_args": {"gpu_memory_utilization": 0.3}, "threads": 3, "kv_cache_gib": 2},
    )  # fmt: skip
    engine = critic_engine(recipe)
    assert (engine.tensor_parallel, engine.num_gpus, engine.num_cpus) == (4, 4, 2)
    assert engine.engine_args == {"quantization": "fp8"}
    assert (engine.max_tokens, engine.threads, engine.kv_cache_gib) == (300, 3, 2)
    assert [one.gpus for one in plan(recipe).actors if one.role == "critic"] == [4]


def test_a_critic_that_says_nothing_has_one_worker_without_a_gpu() -> None:
    recipe = recipe_with(
        judges={"a": {"kind": "critiqued", "train": GOLD}}, critic={"path": "owner/critic"}
    )
    engine = critic_engine(recipe)
    assert (engine.workers, engine.tensor_parallel, engine.num_gpus) == (1, 1, 0)
    assert engine.engine_args == {}
