"""From a recipe entry to a judge: the contract every reward model keeps.

score(prompts [P], responses [P][K]) -> float64 [P, K], finite, or an error
"""

from collections.abc import Sequence
from typing import Protocol

from rlhf_ray.config.schema import BradleyTerryJudge, GoldJudge, Judge, RuleJudge
from rlhf_ray.messages import Floats, Prompt
from rlhf_ray.rewards.rules import Rules


class RewardModel(Protocol):
    """A judge as its actor sees it."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> Floats: ...


def build_judge(name: str, entry: Judge, path: str | None, *, tokens_per_batch: int) -> RewardModel:
    """`path`: where the weights lie, for the families that have weights."""
    match entry:
        case BradleyTerryJudge():
            from rlhf_ray.rewards.bradley_terry import BradleyTerry

            assert path is not None, f"judge '{name}' was not trained or found"
            return BradleyTerry(
                name,
                path,
                max_tokens=entry.max_tokens,
                tokens_per_batch=tokens_per_batch,
                trust_remote_code=entry.trust_remote_code,
            )
        case RuleJudge():
            return Rules(entry.rule, entry.pattern, entry.target_tokens)
        case GoldJudge():
            return Rules("answer")
