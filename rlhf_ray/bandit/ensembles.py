"""What do all judges together think of a response?

Letters: A arms · P prompts · K responses per prompt.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_ray.bandit.selector import Asked
from rlhf_ray.messages import Floats, Prompt


class AllArms:
    """Every judge for every prompt: A times the reading of a bandit, and nothing to learn."""

    def __init__(self, num_arms: int) -> None:
        self.num_arms = num_arms

    def choose(
        self, contexts: Floats, prompts: Sequence[Prompt], rng: np.random.Generator
    ) -> tuple[Asked, Floats]:
        return np.ones((len(prompts), self.num_arms), dtype=np.bool_), np.ones(len(prompts))

    def learn(self, contexts: Floats, asked: Asked, rewards: Floats) -> None:
        """Nothing."""


def score_ensemble(values: Floats) -> Floats:
    """Mean of the judges' scores [A, P, K], each standardised over its wave; [P, K].

    A judge that gives every response the same score says nothing and adds 0.
    Coste et al. 2023 (https://arxiv.org/abs/2310.02743, mean optimization) on standardised scores.
    """
    assert np.isfinite(values).all(), "an ensemble needs every judge's scores"
    constant = np.ptp(values, axis=(1, 2), keepdims=True) == 0.0  # [A, 1, 1]
    spread = np.where(constant, 1.0, values.std(axis=(1, 2), keepdims=True))
    standard = (values - values.mean(axis=(1, 2), keepdims=True)) / spread
    combined: Floats = np.where(constant, 0.0, standard).mean(axis=0)
    return combined


def agreement_ensemble(values: Floats) -> Floats:
    """Votes [P, K]: of the prompt's other responses, those below minus those above this one,
    counted by each judge and summed over the judges' scores [A, P, K].

    The rule is ours: LASeR (arXiv 2410.01735) names this baseline without spelling it out.
    """
    assert np.isfinite(values).all(), "an ensemble needs every judge's scores"
    mine, other = values[..., :, None], values[..., None, :]  # [A, P, K, 1], [A, P, 1, K]
    below = (other < mine).sum(axis=-1)  # [A, P, K]
    above = (other > mine).sum(axis=-1)
    votes: Floats = (below - above).sum(axis=0).astype(np.float64)
    return votes
