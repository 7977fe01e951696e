"""Sequences to padded batches of similar length within a token budget, the same on every rank.

Letters: N sequences · B sequences of one batch · T tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.keys import generator

if TYPE_CHECKING:
    import torch


PASS = 1 / 32
"""What starting a forward pass costs, as a share of a full one. At 16,384 tokens it is that of 512,
about where kernels stop waiting for memory."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt with a response; only the response is trained on."""

    ids: tuple[int, ...]
    start: int
    """Index of the response's first token."""


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A labelled pair as token ids, prompt included in both."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    epsilon: float | None = None
    """Probability that the label is wrong; None: whatever the training assumes of all pairs."""
    margin: float = 0.0

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class VerdictTokens:
    """A labelled pair as two judging prompts, up to where the label is the next token."""

    chosen_first: tuple[int, ...]
    rejected_first: tuple[int, ...]
    epsilon: float | None = None
    margin: float = 0.0

    @property
    def longest(self) -> int:
        return max(len(self.chosen_first), len(self.rejected_first))


def length_buckets(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped so that count x longest <= budget; a longer one stands alone.

    Of all groupings by ascending length (ties by index) the one with the fewest padded tokens,
    where a group costs `PASS` of the budget on top: without it every length would be alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    sizes = np.array([lengths[index] for index in order], dtype=np.int64)
    cost, begins = np.zeros(len(order) + 1), [0]
    for end in range(1, len(order) + 1):
        longest = int(sizes[end - 1])
        first = max(0, end - max(1, budget // max(1, longest)))
        whole = cost[first:end] + longest * np.arange(end - first, 0, -1)
        best = int(whole.argmin())
        cost[end] = whole[best] + PASS * budget
        begins.append(first + best)
    groups, end = list[list[int]](), len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def rank_share(groups: list[list[int]], rank: int, world: int) -> list[list[int]]:
    """This rank's groups; empty ones pad the end, because ZeRO ranks must step together."""
    rounds = -(-len(groups) // world)
    padded = groups + [[]] * (rounds * world - len(groups))
    return padded[rank::world]


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Right-padded ids [B, T] and lengths [B], both int64."""
    import torch

    lengths = [len(sequence) for sequence in sequences]
    ids = torch.full((len(sequences), max(lengths)), pad_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids, torch.tensor(lengths, dtype=torch.int64)


def epoch_order(size: int, batch: int, step: int, *, seed: int, purpose: str) -> NDArray[np.int64]:
    """[batch] indices of training step `step`: consecutive slices of an endless keyed shuffle."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // size
    return np.concatenate(
        [
            generator(seed, purpose, int(epoch)).permutation(size)[
                positions[epochs == epoch] % size
            ]
            for epoch in np.unique(epochs)
        ]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Which pairs a batch is drawn from: a share of the expert's own, the rest of the others; and
    before these, in a refresh, a share of fresh ones."""

    expert: NDArray[np.int64]
    others: NDArray[np.int64]
    share: float
    fresh: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    fresh_share: float = 0.0

    def rows(self, step: int, batch: int, seed: int) -> NDArray[np.int64]:
        """[batch] pair indices of training step `step`."""
        return self._rows(step, batch, seed, times=1)

    def drawn(self, steps: int, batch: int, seed: int) -> NDArray[np.int64]:
        """Pair indices that take part in any of the first `steps` steps, ascending."""
        return np.unique(self._rows(0, batch, seed, times=steps))

    def _rows(self, step: int, batch: int, seed: int, times: int) -> NDArray[np.int64]:
        """Of one step of `times` batches."""
        new = round(batch * self.fresh_share) if len(self.fresh) else 0
        old = batch - new
        own = round(old * self.share) if len(self.others) else old
        parts = [
            pool[epoch_order(len(pool), most, step, seed=seed, purpose=f"judge-{name}")]
            for name, pool, size in (
                ("fresh", self.fresh, new),
                ("expert", self.expert, own),
                ("others", self.others, old - own),
            )
            if size
            # More than once through all of them adds none.
            for most in (min(times * size, max(size, len(pool))),)
        ]
        return np.concatenate(parts)
