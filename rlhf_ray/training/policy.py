"""One policy update: preference pairs in, per-pair losses and a new policy version out.

Differences from LASeR (arXiv 2410.01735): the reference is the policy at the start of the round and
a true second model; the DPO term uses summed, the NLL term per-token log-probabilities.

Letters: B pairs of a batch · T tokens · N pairs of the update · H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf_ray.config.schema import Learner
from rlhf_ray.data.batches import Tokens, length_buckets, pad, rank_share
from rlhf_ray.losses.logprobs import k3_kl, masked_mean, masked_sum
from rlhf_ray.losses.preference import dpo_loss, ipo_loss
from rlhf_ray.messages import Pair
from rlhf_ray.training.engine import ZeroEngine, frozen, gathered, zero_source
from rlhf_ray.training.loading import load_causal_lm
from rlhf_ray.training.modules import ResponseLogprobs, last_hidden
from rlhf_ray.training.tensor_files import Whole, opened, write
from rlhf_ray.training.trainer import Rank
from rlhf_ray.weights.source import ZeroSource


@dataclass(frozen=True, slots=True)
class PairLoss:
    """What one pair contributed, before the step it was trained in."""

    loss: float
    preference: float
    nll: float
    kl: float
    """k3 estimate over the tokens of both responses."""
    reward_margin: float
    """beta * [(chosen - ref_chosen) - (rejected - ref_rejected)], the implicit reward."""


@dataclass(slots=True)
class _Batch:
    indices: list[int]
    ids: Tensor  # [2B, T] chosen responses first
    lengths: Tensor  # [2B]
    starts: Tensor  # [2B]
    reference: Tensor  # [2B, T-1]


class PolicyTrainer:
    """The policy, its frozen reference and their optimizer, on one learner rank."""

    def __init__(
        self,
        path: str,
        settings: Learner,
        rank: Rank,
        *,
        pad_id: int,
        total_steps: int,
        trust_remote_code: bool = False,
    ) -> None:
        load = partial(load_causal_lm, path, trust_remote_code=trust_remote_code)
        self.settings, self.rank, self.pad_id = settings, rank, pad_id
        self.zero_stage = settings.zero_stage
        self.engine = ZeroEngine(
            ResponseLogprobs(load()),
            settings.optimizer,
            zero_stage=settings.zero_stage,
            precision=settings.precision,
            total_steps=total_steps,
            overrides=settings.deepspeed,
        )
        self.reference = frozen(
            ResponseLogprobs(load()), zero_stage=settings.zero_stage, precision=settings.precision
        )

    @property
    def model(self) -> Any:
        return self.engine.module.model

    def begin_round(self) -> None:
        """The policy as it stands becomes the reference."""
        reference = getattr(self.reference, "module", self.reference)
        _copy(self.engine.module, reference, self.zero_stage)

    def update(
        self, pairs: Sequence[Pair], order: NDArray[np.int64], *, train: bool
    ) -> dict[int, PairLoss]:
        """Train on N pairs in the given order; losses of this rank's pairs by index.

        With `train` off, the losses are measured and nothing changes: a wave that only pays the
        bandit. Metrics of the optimizer stand in `last_step`.
        """
        self.last_step: dict[str, float] = {}
        losses: dict[int, PairLoss] = {}
        size = self.settings.minibatch_pairs or len(pairs)
        minibatches = [order[at : at + size] for at in range(0, len(order), size)]
        prepared = [self._batches(pairs, minibatch) for minibatch in minibatches]
        for _ in range(self.settings.epochs if train else 1):
            for minibatch, batches in zip(minibatches, prepared, strict=True):
                thunks = [partial(self._loss, batch, len(minibatch), losses) for batch in batches]
                if train:
                    self.last_step = self.engine.update(thunks)
                else:
                    self._measure(thunks)
        return losses

    def logprobs(self, sequences: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """[T] log-probabilities of each sequence's response tokens under the current policy."""
        ids, lengths = pad([s.ids for s in sequences], self.pad_id)
        starts = torch.tensor([s.start for s in sequences])
        self.engine.engine.eval()
        with torch.no_grad():
            values, mask = self.engine(ids, lengths, starts)
        rows = zip(values.float().cpu(), mask.cpu(), strict=True)
        return [row[kept].numpy() for row, kept in rows]

    def embed(
        self, prompts: Sequence[Sequence[int]], budget: int
    ) -> dict[int, NDArray[np.float32]]:
        """[H] last hidden state of each prompt's last token, for this rank's prompts by index."""
        groups = length_buckets([len(ids) for ids in prompts], budget)
        vectors: dict[int, NDArray[np.float32]] = {}
        self.engine.engine.eval()
        for group in rank_share(groups, self.rank.rank, self.rank.world):
            rows = group or groups[0][:1]  # an idle rank still takes part in ZeRO-3's gathering
            ids, lengths = (
                x.to(self.engine.engine.device)
                for x in pad([prompts[row] for row in rows], self.pad_id)
            )
            with torch.no_grad():
                hidden = last_hidden(self.model, ids, lengths)
            last = hidden[torch.arange(len(rows)), lengths - 1].float().cpu().numpy()
            vectors.update(zip(group, last, strict=False))
        return vectors

    def source(self) -> ZeroSource:
        """Whole weights under their Hugging Face names; iterating is a collective."""
        return zero_source(self.model, self.zero_stage)

    def save(self, folder: Path) -> None:
        """State that cannot be replayed: weights, optimizer, reference; a collective."""
        self.engine.save(folder)
        write(folder, "reference", [self._whole(*one) for one in self._reference()], {})

    def restore(self, folder: Path) -> None:
        """Undo `save`, written on any ranks and ZeRO stage. Raises BadData as the engine does."""
        self.engine.restore(folder)
        with opened(folder, "reference") as files:
            files.check({name: _shape(one) for name, one in self._reference()})
            for name, parameter in self._reference():
                with gathered([parameter], self.zero_stage, modifier=0):
                    parameter.data.copy_(files.tensor(name))

    def _reference(self) -> list[tuple[str, nn.Parameter]]:
        """The reference's parameters under their Hugging Face names."""
        module = getattr(self.reference, "module", self.reference)
        return list(module.model.named_parameters())

    def _whole(self, name: str, parameter: nn.Parameter) -> Whole:
        def gather(owner: int) -> Tensor | None:
            with gathered([parameter], self.zero_stage):
                return parameter.detach().cpu().clone() if self.rank.rank == owner else None

        return Whole(name, _shape(parameter), gather)

    def _batches(self, pairs: Sequence[Pair], chosen: NDArray[np.int64]) -> list[_Batch]:
        """This rank's batches of one minibatch, with reference log-probabilities."""
        kept = [pairs[i] for i in chosen]
        lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in kept]
        groups = length_buckets(lengths, max(1, self.settings.tokens_per_batch // 2))
        batches = []
        for group in rank_share(groups, self.rank.rank, self.rank.world):
            rows = group or groups[0][:1]
            texts = [kept[r].prompt_ids + kept[r].chosen_ids for r in rows]
            texts += [kept[r].prompt_ids + kept[r].rejected_ids for r in rows]
            ids, sizes = pad(texts, self.pad_id)
            starts = torch.tensor([len(kept[r].prompt_ids) for r in rows] * 2)
            place = self.engine.engine.device
            with torch.no_grad():
                reference, _ = self.reference(ids.to(place), sizes.to(place), starts.to(place))
            indices = [int(chosen[r]) for r in group]
            batches.append(_Batch(indices, ids, sizes, starts, reference))
        return batches

    def _loss(self, batch: _Batch, total: int, losses: dict[int, PairLoss]) -> Tensor:
        """This batch's part of the mean loss over `total` pairs; notes each pair's first loss."""
        values, mask = self.engine(batch.ids, batch.lengths, batch.starts)
        reference = batch.reference.to(values.dtype)
        chosen, rejected = masked_sum(values, mask).chunk(2)  # [B] each
        ref_chosen, ref_rejected = masked_sum(reference, mask).chunk(2)
        preference = self._preference(chosen, rejected, ref_chosen, ref_rejected)
        nll = -masked_mean(values, mask).chunk(2)[0]
        loss = preference + self.settings.nll_weight * nll
        margin = self.settings.beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        for row, index in enumerate(batch.indices):
            both = [row, row + len(chosen)]
            kl = k3_kl(values[both].detach(), reference[both], mask[both])
            found = torch.stack([loss[row], preference[row], nll[row], kl, margin[row]])
            losses.setdefault(index, PairLoss(*found.tolist()))
        if not batch.indices:
            return loss.sum() * 0.0
        # DeepSpeed averages gradients over ranks; the mean is over all pairs of the minibatch.
        return loss.sum() * (self.rank.world / total)

    def _preference(self, *logprobs: Tensor) -> Tensor:
        beta = self.settings.beta
        if self.settings.loss == "ipo":
            return ipo_loss(*logprobs, beta=beta)
        return dpo_loss(*logprobs, beta=beta, label_smoothing=self.settings.label_smoothing)

    def _measure(self, thunks: Sequence[Callable[[], Tensor]]) -> None:
        self.engine.engine.eval()
        with torch.no_grad():
            for thunk in thunks:
                thunk()


def _copy(source: nn.Module, target: nn.Module, zero_stage: int) -> None:
    """Weights of `source` into `target`, a parameter at a time; a collective."""
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    for new, old in pairs:
        with gathered([new, old], zero_stage, modifier=0):
            old.data.copy_(new.data)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, also where ZeRO-3 has scattered it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
