"""Are the losses and gradients of a step finite, on every rank? Asked before the weights move.

DeepSpeed does not look in fp32, and in bf16 it leaves out such a step without a word.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_ray.errors import BadData

MOST = 1e12
"""The squares of larger gradients may overflow in their norm."""


class Soundness:
    """Watches the losses and the gradients of one module, of this rank, over the batches of a step.

    Made before the module is sharded. `check` is a collective: all ranks raise, or none does, so
    that none is left waiting for the others.
    """

    def __init__(self, module: nn.Module) -> None:
        self._loss = 0.0
        self._peak: Tensor | None = None  # stays on its device: nothing waits for it before `check`
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._look)  # type: ignore[no-untyped-call]

    def note(self, loss: Tensor) -> None:
        """The loss of one batch; the first that is not finite is kept."""
        if math.isfinite(self._loss):
            self._loss = loss.item()

    def check(self, step: int) -> None:
        """Raises BadData where anything of optimizer step `step` was not finite on any rank."""
        loss, peak = self._loss, 0.0 if self._peak is None else self._peak.item()
        device = torch.device("cpu") if self._peak is None else self._peak.device
        self._loss, self._peak = 0.0, None
        # Two truth values: a maximum over ranks may lose a NaN.
        bad = torch.tensor([not math.isfinite(loss), not peak < MOST], device=device).float()
        if dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        loss_bad, gradient_bad = bad.tolist()
        if not (loss_bad or gradient_bad):
            return
        what = "loss" if loss_bad else "largest gradient"
        value = loss if loss_bad else peak
        sound = math.isfinite(value) if loss_bad else value < MOST
        told = "not finite on another learner rank" if sound else f"{value:g}"
        raise BadData(
            f"{what} is {told} at optimizer step {step}; the weights are unchanged since the last "
            "step. Lower the learning rate or look at the data"
        )

    def _look(self, gradient: Tensor) -> None:
        if gradient.numel():
            peak = gradient.detach().abs().amax().float()
            # Both `amax` and `maximum` hand a NaN on.
            self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)
