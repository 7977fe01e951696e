"""Models a run starts from: a policy and judges, loaded, or made and trained here.

Finished models are cached under the hash of everything they depend on, so that a second run of the
same recipe starts at once. A crash in the middle leaves no half-written model.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray import __version__
from rlhf_ray.config.schema import BradleyTerryJudge, GoldPreferences, JudgeTraining, Recipe
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, pair_tokens, texts
from rlhf_ray.durable.fsio import atomic_write
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
    def fingerprint(self, preferences: Any) -> str: ...
    def fit(self, chat: Chat) -> None: ...


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
        key = self._key(self.recipe.policy, self.recipe.data, self.task.fingerprint(None))
        return str(self._made("start", key, self._make_policy, settings.path is None))

    def judge(self, name: str, policy: str, sample: Callable[..., list[Rollout]]) -> str:
        """The folder (or hub name) of a Bradley-Terry judge."""
        entry = self.recipe.judges[name]
        assert isinstance(entry, BradleyTerryJudge)
        if entry.train is None:
            assert entry.path is not None
            return entry.path
        data = self.task.fingerprint(entry.train.preferences)
        key = self._key(self.recipe.policy, self.recipe.data, entry, name, data)
        make = partial(self._make_judge, name, entry, entry.path or policy, sample)
        # What a folder or a hub name holds may change under the same name.
        fixed = entry.path is None and self.recipe.policy.path is None
        return str(self._made(f"judges/{name}", key, make, fixed))

    def pairs(
        self, training: JudgeTraining, sample: Callable[..., list[Rollout]]
    ) -> tuple[list[Preference], list[Preference]]:
        """Training and held-out pairs; the start policy is sampled once for all judges."""

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
        self.task.fit(chat)  # a prompt that is too long is refused before anything is trained
        fitted = example_tokens(examples, chat, limit=chat.max_tokens)
        self.gang.begin(
            partial(
                supervised_trainer,
                start,
                fitted,
                stages,
                recipe.learner,
                pad_id=chat.pad_id,
                seed=recipe.seed,
                trust_remote_code=settings.trust_remote_code,
            )
        )
        self._train("policy", stages.steps, folder, start)
        if settings.path is None:
            shutil.rmtree(start)

    def _make_judge(
        self,
        name: str,
        entry: BradleyTerryJudge,
        start: str,
        sample: Callable[..., list[Rollout]],
        folder: Path,
    ) -> None:
        assert entry.train is not None
        pairs, _ = self.pairs(entry.train, sample)
        chat = Chat.load(start, trust_remote_code=entry.trust_remote_code)
        self.gang.begin(
            partial(
                judge_trainer,
                start,
                *pair_tokens(pairs, chat, entry.max_tokens, expert(entry.train)),
                entry.train,
                self.recipe.learner,
                pad_id=chat.pad_id,
                seed=seed_of(self.recipe.seed, "judge", name),
                trust_remote_code=entry.trust_remote_code,
            )
        )
        self._train(name, entry.train.steps, folder, start)
        atomic_write(folder / "README.md", judge_card(name, entry.train, len(pairs)).encode())

    def _train(self, what: str, steps: int, folder: Path, tokenizer: str) -> None:
        done = 0
        while done < steps:
            found = self.gang.advance(SLICE)
            done = int(found["steps"])
            self.progress(what, done, steps, found["loss"])
        self.gang.export(folder, tokenizer)
        self.gang.end()

    def _made(self, name: str, key: str, make: Callable[[Path], None], share: bool) -> Path:
        """`folder/name`, made once: from this run, from the cache (with `share`), or now."""
        target, cached = self.folder / name, cache_folder() / key
        if target.is_dir() and verify_manifest(target).get("key") == key:
            return target
        staging = target.with_name(f".tmp-{target.name}")
        for old in (target, staging):
            shutil.rmtree(old, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if share and _valid(cached):
            shutil.copytree(cached, staging)
            self.progress(f"{name} (cached)", 1, 1, float("nan"))
        else:
            make(staging)
            write_manifest(staging, {"key": key})
            if share:
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
        parts += [
            learner.threads,
            learner.workers,
            learner.zero_stage,
            self.recipe.rollouts.threads,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def judge_card(name: str, training: JudgeTraining, pairs: int) -> str:
    """The card of a judge trained here; its held-out accuracy stands in the run's report."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-classification\n"
        "tags: [rlhf, reward-model, generated_from_trainer]\n---\n"
        f"# {name}\n\nA Bradley-Terry reward model with one label: the logit on the last token of "
        f"prompt and response is the score. Trained with rlhf_ray {__version__} on {pairs} pairs "
        f"({training.preferences.kind}), {training.steps} steps of {training.batch_size}.\n"
    )


def expert(training: JudgeTraining) -> tuple[str, float] | None:
    """The source a judge is good at and its share of each batch; None: all pairs alike."""
    preferences = training.preferences
    if isinstance(preferences, GoldPreferences):
        return preferences.expert, preferences.expert_share
    return None


@cache
def sources_hash() -> str:
    """Hash of this package: a model made by other code is another model."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


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
