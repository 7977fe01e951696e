"""The generated families as a task: prompts, demonstrations and preferences, all from keys."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from rlhf_ray.config.judges import (
    Critic,
    CriticTraining,
    GoldPreferences,
    Judge,
    PairGeneration,
    Trained,
)
from rlhf_ray.config.schema import GoldData
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.corpus import all_hashes, file_hashes, load_corpus
from rlhf_ray.gold.critics import Asking, critique_demonstrations
from rlhf_ray.gold.families import demonstrations, draw_prompts, near_miss
from rlhf_ray.gold.pool import labelled_pairs
from rlhf_ray.keys import generator
from rlhf_ray.messages import Example, Preference, Prompt, Rollout, Step

Sample = Callable[[str, Sequence[Prompt], int], list[Rollout]]
"""(purpose, prompts, responses per prompt) -> rollouts of the start policy."""
HELD_OUT_PER_FAMILY = 50


class GoldTask:
    """Four families of string tasks; every prompt carries its exact answer.

    `judges` and `critic` are the recipe's: they may name files all the same.
    """

    def __init__(
        self,
        data: GoldData,
        *,
        seed: int,
        judges: Mapping[str, Judge] = MappingProxyType({}),
        critic: Critic | None = None,
    ) -> None:
        self.data, self.seed, self.judges, self.critic = data, seed, judges, critic

    def wave(self, step: Step, size: int) -> list[Prompt]:
        """Equal numbers of every family, never from the held-out part."""
        return self._draw(size, f"wave-{step.index}", evaluation=False)

    def fresh(self, round: int, size: int) -> list[Prompt]:
        """Prompts the policy answers for a refresh, drawn by a key of their own."""
        return self._draw(size, f"refresh-{round}", evaluation=False)

    def held_out(self, size: int) -> list[Prompt]:
        return self._draw(size, "evaluation", evaluation=True)

    def demonstrations(self, count: int) -> list[Example]:
        return demonstrations(self.data, count, seed=self.seed)

    def preferences(
        self, settings: GoldPreferences, sample: Sample
    ) -> tuple[list[Preference], list[Preference]]:
        """Labelled training pairs of one judge, and held-out pairs labelled by gold everywhere."""
        families = len(self.data.families)
        train = self._draw(settings.prompts_per_family * families, "judges", evaluation=False)
        check = self._draw(HELD_OUT_PER_FAMILY * families, "judges", evaluation=True)
        seen = sample("judge-training", train, settings.samples)
        unseen = sample("judge-check", check, settings.samples)
        pairs = labelled_pairs(seen, settings, seed=self.seed, purpose="judge-labels")
        return pairs, self._true(unseen, settings, "judge-check-labels")

    def verified(
        self, settings: GoldPreferences, rollouts: Sequence[Rollout], *, truth: bool
    ) -> list[Preference]:
        """Pairs over fresh samples, labelled as the judge's own were, or (`truth`) by gold."""
        settings = settings.model_copy(update={"hard_pairs": 0})
        purpose = f"verified-{rollouts[0].policy_version}" if rollouts else "verified"
        if truth:
            return self._true(rollouts, settings, purpose)
        found = labelled_pairs(rollouts, settings, seed=self.seed, purpose=purpose)
        return [replace(pair, id=f"{purpose}-{pair.id}") for pair in found]

    def _true(
        self, rollouts: Sequence[Rollout], settings: GoldPreferences, purpose: str
    ) -> list[Preference]:
        """Pairs labelled by gold in every family."""
        return [
            pair
            for family in self.data.families
            for pair in labelled_pairs(
                [rollout for rollout in rollouts if rollout.prompt.source == family],
                settings.model_copy(update={"expert": family, "flips": 0.0}),
                seed=self.seed,
                purpose=purpose,
            )
        ]

    def corpus(self, settings: PairGeneration, pairs: Sequence[Preference]) -> list[Preference]:
        """Unlabelled pairs for GRAM's stage 1: a file's, else the labelled ones."""
        return load_corpus(settings.corpus, None) if settings.corpus else list(pairs)

    def critiques(
        self, settings: CriticTraining, sample: Sample, template: Asking
    ) -> list[Example]:
        """Exact critiques of the start policy's samples and of near misses, to teach a critic."""
        count = settings.prompts_per_family * len(self.data.families)
        prompts = self._draw(count, "critic", evaluation=False)
        rng = generator(self.seed, "critic-misses")
        responses = [
            [one.text for one in rollout.responses]
            + [near_miss(rollout.prompt.answer or "", rng, changes=1), rollout.prompt.answer or ""]
            for rollout in sample("critic", prompts, settings.samples)
        ]
        return critique_demonstrations(
            prompts, responses, quality=settings.quality, seed=self.seed, template=template
        )

    def fingerprint(self, preferences: GoldPreferences | None) -> str:
        """What the recipe does not say of the data: nothing, it is all generated."""
        return ""

    def files(self, judge: Trained | None, critic: Critic | None) -> list[str]:
        """Hashes of the other files a judge and its critic are made from: contents may change."""
        return file_hashes(judge, critic, None)

    def fit(self, chat: Chat) -> None:
        """Nothing to leave out: generated prompts are short."""

    def digest(self) -> str:
        """Hash of the files that judges and critic name beside generated data; often of none."""
        found = all_hashes(self.judges, self.critic, None)
        return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""

    def _draw(self, size: int, purpose: str, *, evaluation: bool) -> list[Prompt]:
        families = self.data.families
        per_family = -(-size // len(families))
        drawn = draw_prompts(
            families, per_family, seed=self.seed, purpose=purpose, evaluation=evaluation
        )
        return drawn[:size]
