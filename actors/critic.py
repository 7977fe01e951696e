"""The critic on vLLM: rollout workers, the critic's own or the policy's, that answer questions."""

from collections.abc import Sequence
from typing import Any

from actors.rollout import RolloutActor, Rollouts
from rlhf_ray.config.judges import Critic
from rlhf_ray.critiques.writer import TOO_LONG, Ask, Completion
from rlhf_ray.messages import Prompt


class CriticActor(RolloutActor):
    """An engine with the critic's own model, under a name of its own among Ray's actors."""


class EngineCritic:
    """Completes questions on engines that hold `room` tokens each."""

    def __init__(self, engines: Rollouts, settings: Critic, room: int) -> None:
        self.engines, self.settings, self.room = engines, settings, room

    def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        """One answer per question; sampling is keyed by the question, not by its neighbours.

        A question that leaves no room for its answer is `too_long`.
        """
        longest = self.room - self.settings.max_tokens
        sizes = [len(self.engines.chat.prompt_ids(ask.text)) for ask in asks]
        fit = [ask for ask, size in zip(asks, sizes, strict=True) if size <= longest]
        answers = dict(zip([ask.id for ask in fit], self._answers(fit), strict=True))
        return [answers.get(ask.id, Completion("", 0, TOO_LONG)) for ask in asks]

    def _answers(self, asks: Sequence[Ask]) -> list[Completion]:
        if not asks:
            return []
        options: dict[str, Any] = {"max_tokens": self.settings.max_tokens}
        if self.settings.temperature:
            options["temperature"] = self.settings.temperature
        rollouts = self.engines.generate(
            "critiques",
            [Prompt(ask.id, ask.text, "critique") for ask in asks],
            samples=1,
            greedy=not self.settings.temperature,
            **options,
        )
        answers = [rollout.responses[0] for rollout in rollouts]
        return [Completion(one.text, len(one.token_ids), "ok") for one in answers]
