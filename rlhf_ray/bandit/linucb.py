"""Which arm is best for this context, and which is worth another look?

Letters: P prompts · A arms · D context width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.bandit.selector import Asked, ask_one
from rlhf_ray.messages import Floats, Prompt


class LinUCB:
    """Disjoint LinUCB (Li et al. 2010, https://arxiv.org/abs/1003.0146, Alg. 1).

        score_a(c) = theta_a . c + alpha sqrt(c^T A_a^-1 c),   theta_a = A_a^-1 b_a

    Differences: A_a starts at `ridge` times the identity; all prompts of a wave are chosen on the
    same state, and paid for together; an arm never pulled comes first; ties are broken at random,
    and the propensity of a choice is one over the number of best arms; an arm whose judge was
    refreshed is discounted.
    """

    def __init__(self, num_arms: int, width: int, *, alpha: float, ridge: float) -> None:
        self.alpha, self.ridge = alpha, ridge
        self.gram: Floats = np.tile(np.eye(width) * ridge, (num_arms, 1, 1))  # [A, D, D]
        self.inverse: Floats = np.tile(np.eye(width) / ridge, (num_arms, 1, 1))  # [A, D, D]
        self.target: Floats = np.zeros((num_arms, width))  # [A, D]
        self.pulls: NDArray[np.int64] = np.zeros(num_arms, dtype=np.int64)  # [A]

    def choose(
        self, contexts: Floats, prompts: Sequence[Prompt], rng: np.random.Generator
    ) -> tuple[Asked, Floats]:
        bounds = self.bounds(contexts)
        best = bounds == bounds.max(axis=1, keepdims=True)
        lots = np.where(best, rng.random(best.shape), -1.0)
        return ask_one(lots.argmax(axis=1), len(self.pulls)), 1.0 / best.sum(axis=1)

    def bounds(self, contexts: Floats) -> Floats:
        """Upper confidence bounds [P, A]; +inf for an arm never pulled."""
        weights = np.einsum("aij,aj->ai", self.inverse, self.target)  # [A, D]
        variances = np.einsum("api,pi->pa", contexts @ self.inverse, contexts)  # [P, A]
        # Rounding can leave the variance of a well-known direction a hair below zero.
        bounds = contexts @ weights.T + self.alpha * np.sqrt(np.maximum(variances, 0.0))
        return np.where(self.pulls == 0, np.inf, bounds)

    def learn(self, contexts: Floats, asked: Asked, rewards: Floats) -> None:
        assert (asked.sum(axis=1) == 1).all(), "LinUCB is paid for one arm per prompt"
        arms = asked.argmax(axis=1)
        # Unpaid prompts count as pulls, or an arm that is never paid would come first for ever.
        np.add.at(self.pulls, arms, 1)
        paid = ~np.isnan(rewards)
        for arm in np.unique(arms[paid]).tolist():
            rows = paid & (arms == arm)
            own = contexts[rows]
            # Not by a matrix product, whose bits depend on how many cores there are.
            self.gram[arm] += np.einsum("pi,pj->ij", own, own)
            self.target[arm] += np.einsum("p,pi->i", rewards[rows], own)
            self._invert(arm)

    def discount(self, arm: int, keep: float) -> None:
        """A_a <- ridge I + keep (A_a - ridge I), b_a <- keep b_a; 0 forgets, 1 changes nothing.

        The estimate shrinks towards 0 and the bound widens, so the arm is looked at again. Ours:
        LASeR's judges do not change. Pulls stay, or a refreshed arm would come first by force.
        """
        assert 0.0 <= keep <= 1.0, keep
        if keep == 1.0:  # taking the ridge away and adding it again would leave other bits
            return
        floor = self.ridge * np.eye(self.target.shape[1])
        self.gram[arm] = floor + keep * (self.gram[arm] - floor)
        self.target[arm] *= keep
        self._invert(arm)

    def state(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """Copies of inverse [A, D, D], target [A, D] and pulls [A], for reading."""
        return {
            "inverse": self.inverse.copy(),
            "target": self.target.copy(),
            "pulls": self.pulls.copy(),
        }

    def _invert(self, arm: int) -> None:
        inverse = np.linalg.inv(self.gram[arm])
        self.inverse[arm] = (inverse + inverse.T) / 2
