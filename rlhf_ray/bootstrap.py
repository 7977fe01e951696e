"""Models a run starts from: a policy and judges, loaded, or made and trained here.

Finished models are cached under the hash of everything they depend on, so that a second run of the
same recipe starts at once. A crash in the middle leaves no half-written model.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlhf_ray import __version__
from rlhf_ray.config.schema import BradleyTerryJudge, GoldPreferences, JudgeTraining, Recipe
from rlhf_ray.data.batches import Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.task import texts
from rlhf_ray.durable.manifest import verify_manifest, write_manifest
from rlhf_ray.errors import BadData
from rlhf_ray.keys import seed_of
from rlhf_ray.messages import Example, Preference, Prompt, Rollout, Step
from rlhf_ray.training.builders import judge_trainer, scratch_policy, supervised_trainer

SLICE = 20
"""Training steps between two signs of life."""


class Task(Protocol):
    """Where texts come from; `GoldTask` or `FileTask`."""

    def wave(self, step: Step, size: int) -> list[Prompt]: ...
    def held_out(self, size: int) -> list[Prompt]: ...
    def demonstrations(self, count: int) -> list[Example]: ...
    def preferences(self, settings: Any, sample: Any) -> tuple[list[Preference], ...]: ...


class Gang(Protocol):
    """The learners, training one thing after another."""

    def call(self, function: Callable[[], None]) -> None: ...
    def begin(self, build: Callable[[int, int], Any]) -> None: ...
    def advance(self, steps: int) -> dict[str, float]: ...
    def export(self, folder: Path, tokenizer: str) -> None: ...
    def end(self) -> None: ...


Progress = Callable[[str, int, int, float], None]
"""(what, steps done, steps in all, loss)"""


class Bootstrap:
    """Makes the models of one run under its folder, or copies them from the cache."""

    def __init__(
        self, recipe: Recipe, task: Task, gang: Gang, folder: Path, progress: Progress
    ) -> None:
        self.recipe, self.task, self.gang = recipe, task, gang
        self.folder, self.progress = folder, progress
        self._samples: dict[str, list[Rollout]] = {}

    def policy(self) -> str:
        """The folder (or hub name) the rounds start from."""
        settings = self.recipe.policy
        if settings.path is not None and settings.supervised is None:
            return settings.path
        key = self._key(self.recipe.policy, self.recipe.data)
        return str(self._made("start", key, self._make_policy))

    def judge(self, name: str, policy: str, sample: Callable[..., list[Rollout]]) -> str:
        """The folder (or hub name) of a Bradley-Terry judge."""
        entry = self.recipe.judges[name]
        assert isinstance(entry, BradleyTerryJudge)
        if entry.train is None:
            assert entry.path is not None
            return entry.path
        key = self._key(self.recipe.policy, self.recipe.data, entry, name)
        make = partial(self._make_judge, name, entry, entry.path or policy, sample)
        return str(self._made(f"judges/{name}", key, make))

    def pairs(
        self, training: JudgeTraining, sample: Callable[..., list[Rollout]]
    ) -> tuple[list[Preference], list[Preference]]:
        """Training and held-out pairs; samples of the start policy are drawn once for all judges."""

        def once(purpose: str, prompts: Sequence[Prompt], samples: int) -> list[Rollout]:
            key = f"{purpose}-{len(prompts)}-{samples}"
            if key not in self._samples:
                self._samples[key] = sample(purpose, prompts, samples=samples)
            return self._samples[key]

        train, held_out = self.task.preferences(training.preferences, once)
        return train, held_out

    def _make_policy(self, folder: Path) -> None:
        recipe, settings = self.recipe, self.recipe.policy
        stages = settings.supervised
        count = stages.steps * stages.batch_size if stages else 10_000
        examples = self.task.demonstrations(count)
        start = settings.path
        if start is None:
            start = str(folder.with_name(f"{folder.name}-untrained"))
            seed = seed_of(recipe.seed, "scratch")
            self.gang.call(
                partial(scratch_policy, Path(start), settings.scratch, texts(examples), seed)
            )
        if stages is None:
            os.rename(start, folder)
            return
        chat = Chat.load(start, trust_remote_code=settings.trust_remote_code)
        fitted = fit_examples(examples, chat, limit=recipe.policy.scratch.max_positions)
        self.gang.begin(
            partial(
                supervised_trainer, start, fitted, stages, recipe.learner, pad_id=chat.pad_id,
                seed=recipe.seed, trust_remote_code=settings.trust_remote_code,
            )
        )
        self._train("policy", stages.steps, folder, start)
        shutil.rmtree(start) if settings.path is None else None

    def _make_judge(
        self, name: str, entry: BradleyTerryJudge, start: str,
        sample: Callable[..., list[Rollout]], folder: Path,
    ) -> None:
        assert entry.train is not None
        pairs, _ = self.pairs(entry.train, sample)
        chat = Chat.load(start, trust_remote_code=entry.trust_remote_code)
        self.gang.begin(
            partial(
                judge_trainer, start, *judge_data(pairs, chat, entry), entry.train,
                self.recipe.learner, pad_id=chat.pad_id,
                seed=seed_of(self.recipe.seed, "judge", name),
                trust_remote_code=entry.trust_remote_code,
            )
        )
        self._train(name, entry.train.steps, folder, start)

    def _train(self, what: str, steps: int, folder: Path, tokenizer: str) -> None:
        done = 0
        while done < steps:
            found = self.gang.advance(SLICE)
            done = int(found["steps"])
            self.progress(what, done, steps, found["loss"])
        self.gang.export(folder, tokenizer)
        self.gang.end()

    def _made(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """`folder/name`, made once: from this run, from the cache, or now."""
        target, cached = self.folder / name, cache_folder() / key
        if target.is_dir() and verify_manifest(target).get("key") == key:
            return target
        staging = target.with_name(f".tmp-{target.name}")
        for old in (target, staging):
            shutil.rmtree(old, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if _valid(cached):
            shutil.copytree(cached, staging)
            self.progress(f"{name} (cached)", 1, 1, float("nan"))
        else:
            make(staging)
            write_manifest(staging, {"key": key})
            _keep(staging, cached)
        os.rename(staging, target)
        return target

    def _key(self, *sections: Any) -> str:
        parts: list[Any] = [
            section.model_dump(mode="json") if hasattr(section, "model_dump") else section
            for section in sections
        ]
        learner = self.recipe.learner
        parts += [__version__, self.recipe.seed, learner.precision, learner.tokens_per_batch]
        parts += [learner.threads, learner.workers, learner.zero_stage, self.recipe.rollouts.threads]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def fit_examples(examples: Sequence[Example], chat: Chat, *, limit: int) -> list[Tokens]:
    """Demonstrations as tokens, without those longer than the model.

    Raises BadData when more than half would be dropped: the model is too short for its data.
    """
    rendered = [
        (chat.prompt_ids(one.prompt), chat.response_ids(one.response)) for one in examples
    ]
    kept = [
        Tokens(prompt + response, len(prompt))
        for prompt, response in rendered if len(prompt) + len(response) <= limit
    ]
    if 2 * len(kept) < len(examples):
        raise BadData(
            f"{len(examples) - len(kept)} of {len(examples)} demonstrations are longer than "
            f"{limit} tokens; raise policy.scratch.max_positions or bring shorter ones"
        )
    return kept


def judge_data(
    pairs: Sequence[Preference], chat: Chat, entry: BradleyTerryJudge
) -> tuple[list[Any], Any]:
    """Pairs as tokens, and the mixture batches are drawn from."""
    from rlhf_ray.training.reward_model import Mixture, PairTokens

    limit = entry.max_tokens or getattr(chat.tokenizer, "model_max_length", 1 << 30)
    kept, tokens = [], []
    for pair in pairs:
        prompt = chat.prompt_ids(pair.prompt)
        both = PairTokens(
            prompt + chat.response_ids(pair.chosen), prompt + chat.response_ids(pair.rejected)
        )
        if max(len(both.chosen), len(both.rejected)) <= limit:
            kept.append(pair)
            tokens.append(both)
    if not tokens:
        raise BadData(f"none of {len(pairs)} preference pairs fits {limit} tokens")
    everything = np.arange(len(tokens))
    preferences = entry.train.preferences if entry.train else None
    if isinstance(preferences, GoldPreferences):
        own = np.array([pair.source == preferences.expert for pair in kept])
        return tokens, Mixture(everything[own], everything[~own], preferences.expert_share)
    return tokens, Mixture(everything, everything[:0], 1.0)


def cache_folder() -> Path:
    """`RLHF_RAY_CACHE`, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RLHF_RAY_CACHE") or Path(home) / "rlhf_ray")


def _valid(folder: Path) -> bool:
    """A damaged cache entry is made again: it is a copy, nothing is lost with it."""
    if not folder.is_dir():
        return False
    try:
        verify_manifest(folder)
    except BadData:
        shutil.rmtree(folder)
        return False
    return True


def _keep(made: Path, cached: Path) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    staging = cached.with_name(f".{cached.name}-{os.getpid()}")
    shutil.copytree(made, staging)
    try:
        os.rename(staging, cached)
    except OSError:  # another run cached the same model first
        shutil.rmtree(staging)
