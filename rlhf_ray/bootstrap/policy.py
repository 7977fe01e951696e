"""The policy a run starts from: loaded, or made from scratch, and fine-tuned on demonstrations."""

import os
import shutil
from functools import partial
from pathlib import Path

from rlhf_ray.bootstrap.roles import Gang, Task
from rlhf_ray.bootstrap.store import Store
from rlhf_ray.bootstrap.workshop import train
from rlhf_ray.config.judges import GenerativeJudge
from rlhf_ray.config.schema import Recipe
from rlhf_ray.critiques.template import template_of
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.data.verdicts import TEMPLATES
from rlhf_ray.durable.manifest import verify_model
from rlhf_ray.gold.critics import ALPHABET
from rlhf_ray.keys import seed_of
from rlhf_ray.training.builders import scratch_policy, supervised_trainer


def start_policy(store: Store, task: Task, gang: Gang) -> str:
    """The folder (or hub name) the rounds start from."""
    recipe, settings = store.recipe, store.recipe.policy
    if settings.path is not None:
        verify_model(settings.path)
    if settings.path is not None and settings.supervised is None:
        return settings.path
    key = store.key(settings, recipe.data, task.fingerprint(None), alphabet(recipe))
    make = partial(_make, store, task, gang, key)
    return str(store.made("start", key, make, share=settings.path is None))


def alphabet(recipe: Recipe) -> str:
    """Characters that judges and critics write around a policy's texts: its tokenizer has them too,
    because theirs is made from it."""
    known: set[str] = set()
    for judge in recipe.judges.values():
        if isinstance(judge, GenerativeJudge) and judge.path is None:
            known |= TEMPLATES[judge.template].alphabet
    if (critic := recipe.critic) is not None:
        known |= template_of(critic.template, score=critic.score).alphabet
        known |= set(ALPHABET) if critic.train else set()
    return "".join(sorted(known))


def _make(store: Store, task: Task, gang: Gang, key: str, folder: Path) -> None:
    recipe, settings = store.recipe, store.recipe.policy
    stages = settings.supervised
    examples = task.demonstrations(stages.steps * stages.batch_size if stages else 10_000)
    start = settings.path
    if start is None:
        start = str(folder.with_name(f"{folder.name}-untrained"))
        shown = [*texts(examples), alphabet(recipe)]
        seed = seed_of(recipe.seed, "scratch")
        gang.call(partial(scratch_policy, Path(start), settings.scratch, shown, seed))
    if stages is None:
        os.rename(start, folder)
        return
    chat = Chat.load(start, trust_remote_code=settings.trust_remote_code)
    task.fit(chat)  # a prompt that is too long is refused before anything is trained
    fitted = example_tokens(examples, chat, limit=chat.max_tokens)
    build = partial(
        supervised_trainer,
        start,
        [(one,) for one in fitted],
        stages,
        recipe.learner,
        pad_id=chat.pad_id,
        seed=recipe.seed,
        trust_remote_code=settings.trust_remote_code,
    )
    train(
        gang, build, folder, what="policy", steps=stages.steps, tokenizer=start, key=key,
        store=store, save_steps=stages.save_steps,
        trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    if settings.path is None:
        shutil.rmtree(start)
