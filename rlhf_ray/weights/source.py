"""The learner's weights as vLLM's `WeightSource`: declared cheaply, streamed whole, in turn."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gathered = Callable[[list[nn.Parameter]], AbstractContextManager[object]]
"""Context in which parameters sharded by ZeRO-3 are whole; nothing to do below stage 3."""


@dataclass(frozen=True, slots=True)
class ParameterMeta:
    """Name, wire type and full shape of one parameter."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class ZeroSource:
    """Parameters of a Hugging Face model under their own names, in their own order.

    Iterating is a collective under ZeRO-3: every rank must do it, in step.
    """

    def __init__(self, model: nn.Module, gathered: Gathered) -> None:
        self.model, self.gathered = model, gathered

    def metadata(self) -> list[ParameterMeta]:
        """What iterating will yield; nothing is gathered."""
        return [
            ParameterMeta(name, one.dtype, tuple(getattr(one, "ds_shape", one.shape)))
            for name, one in self.model.named_parameters()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            with self.gathered([parameter]):
                yield name, parameter.detach()
