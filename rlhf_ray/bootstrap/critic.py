"""The critic of a run: a language model that is loaded, or fine-tuned here on critiques."""

from functools import partial
from pathlib import Path

from rlhf_ray.bootstrap.roles import Gang, Sampler, Task
from rlhf_ray.bootstrap.store import Store
from rlhf_ray.bootstrap.workshop import train
from rlhf_ray.config.judges import Critic, CriticTraining
from rlhf_ray.config.schema import Recipe, Rollouts
from rlhf_ray.critiques.template import template_of
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens
from rlhf_ray.keys import seed_of
from rlhf_ray.training.builders import supervised_trainer


def critic_engine(recipe: Recipe) -> Rollouts:
    """How the engine of a critic with weights of its own is set up; it may be larger than the
    policy's, and lives on other devices."""
    critic, rollouts = recipe.critic, recipe.rollouts
    assert critic is not None
    return Rollouts(
        max_tokens=critic.max_tokens, num_cpus=critic.num_cpus, num_gpus=critic.num_gpus,
        tensor_parallel=critic.tensor_parallel, engine_args=critic.engine_args,
        threads=rollouts.threads, kv_cache_gib=rollouts.kv_cache_gib,
    )  # fmt: skip


def critic_model(store: Store, task: Task, gang: Gang, start: str, sample: Sampler) -> str:
    """The folder of the model that writes critiques, trained once."""
    critic = store.recipe.critic
    assert critic is not None
    assert critic.kind == "model"
    training = critic.train
    assert training is not None
    recipe = store.recipe
    texts = (task.fingerprint(None), task.files(None, critic))
    parts = (critic.path, critic.template, critic.score, training, *texts)
    key = store.key(recipe.policy, recipe.data, *parts)
    make = partial(_make, store, task, gang, critic, training, critic.path or start, sample, key)
    share = critic.path is None and recipe.policy.path is None and training.critiques is None
    return str(store.made("critic", key, make, share=share))


def _make(
    store: Store,
    task: Task,
    gang: Gang,
    critic: Critic,
    training: CriticTraining,
    start: str,
    sample: Sampler,
    key: str,
    folder: Path,
) -> None:
    template = template_of(critic.template, score=critic.score)
    chat = Chat.load(start)
    examples = task.critiques(training, sample, template)
    fitted = example_tokens(examples, chat, limit=chat.max_tokens)
    build = partial(
        supervised_trainer, start, [(one,) for one in fitted], training, store.recipe.learner,
        pad_id=chat.pad_id, seed=seed_of(store.recipe.seed, "critic"), purpose="critic",
    )  # fmt: skip
    train(
        gang, build, folder, what="critic", steps=training.steps, tokenizer=start, key=key,
        store=store, save_steps=training.save_steps,
    )  # fmt: skip
