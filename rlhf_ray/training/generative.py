"""GRAM's stage 2: say by one token which of two responses is better.

GRAM (arXiv 2506.14175): -(1 - eps) log pi(l | s) - eps log pi(other | s), the softmax over the two
label tokens alone, which is smoothed_bt on the difference of their logits. The order of the two
responses is drawn anew each time a pair is seen.

Letters: B pairs of a batch.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlhf_ray.config.judges import VerdictTraining
from rlhf_ray.data.batches import Mixture, VerdictTokens, pad
from rlhf_ray.keys import generator
from rlhf_ray.training.engine import ZeroEngine
from rlhf_ray.training.reward_model import pair_loss


class VerdictPairs:
    """Pairs as judging prompts, in both orders."""

    sequences = 1

    def __init__(
        self,
        pairs: Mapping[int, VerdictTokens],
        mixture: Mixture,
        settings: VerdictTraining,
        *,
        seed: int,
        pad_id: int,
    ) -> None:
        self.pairs, self.mixture, self.settings = pairs, mixture, settings
        self.seed, self.pad_id = seed, pad_id

    def batch(self, step: int) -> list[tuple[VerdictTokens, bool]]:
        """Pairs, and whether the chosen response stands first."""
        rows = self.mixture.rows(step, self.settings.batch_size, self.seed)
        coins = generator(self.seed, "order", step).random(len(rows)) < 0.5
        return [(self.pairs[row], bool(coin)) for row, coin in zip(rows, coins, strict=True)]

    def length(self, item: tuple[VerdictTokens, bool] | VerdictTokens) -> int:
        return (item[0] if isinstance(item, tuple) else item).longest

    def weight(self, batch: Sequence[tuple[VerdictTokens, bool]]) -> float:
        """Pairs of the batch."""
        return float(len(batch))

    def loss(
        self, engine: ZeroEngine, items: Sequence[tuple[VerdictTokens, bool]]
    ) -> tuple[Tensor, Tensor]:
        lead = self._lead(engine, [pair.chosen_first if one else pair.rejected_first
                                   for pair, one in items])  # fmt: skip
        signs = lead.new_tensor([1.0 if one else -1.0 for _, one in items])
        fit = pair_loss(signs * lead, [pair for pair, _ in items], self.settings).sum()
        return fit, fit

    def delta(self, engine: ZeroEngine, items: Sequence[VerdictTokens]) -> Tensor:
        """[B] logit lead of the chosen response, averaged over both orders."""
        first = self._lead(engine, [pair.chosen_first for pair in items])
        second = self._lead(engine, [pair.rejected_first for pair in items])
        return (first - second) / 2

    def _lead(self, engine: ZeroEngine, asks: Sequence[tuple[int, ...]]) -> Tensor:
        """[B] logit of the label of the first response minus that of the second."""
        logits, _ = engine(*pad(asks, self.pad_id))
        lead: Tensor = logits[:, 0] - logits[:, 1]
        return lead
