"""A model whose optimizer keeps its weights as DeepSpeed does under ZeRO stage 1.

    python tests/flat_optimizer.py RANK FOLDER

is one of two ranks, each of which holds half of the flat tensor: they write their state, and try
to write it where only one of them can.
"""

import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_ray.errors import StorageFailed
from rlhf_ray.training.masters import Masters
from rlhf_ray.training.state import restore, save

TOLD = {"steps": 2, "workers": 2, "zero_stage": 1, "schedule": None}


class Model(nn.Module):
    """Two parameters, one of which holds a -0."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(2, 3, generator=rng))
        self.second = nn.Parameter(torch.randn(5, generator=rng))
        self.second.data[0] = -0.0


class BF16_Optimizer:
    """Named as DeepSpeed's. All parameters in one flat tensor of 12 elements, in another order and
    with padding behind them, of which each rank holds an equal share."""

    def __init__(self, model: Model, rank: int = 0, world: int = 1) -> None:
        whole = torch.zeros(12)
        whole[:11] = torch.cat([model.second.data.flatten(), model.first.data.flatten()])
        size = 12 // world
        self.flat = whole[rank * size : (rank + 1) * size].clone()
        self.optimizer = torch.optim.AdamW([self.flat], lr=0.1)
        self.bf16_groups = [[model.second, model.first]]
        self.fp32_groups_flat_partition = [self.flat]
        for one, begin in ((model.second, 0), (model.first, 5)):
            low = max(begin, rank * size)
            count = min(begin + one.numel(), (rank + 1) * size) - low
            here = SimpleNamespace(start=low - rank * size, numel=count)
            there = SimpleNamespace(start=low - begin, numel=count)
            one._hp_mapping = (  # type: ignore[attr-defined]
                SimpleNamespace(hp_fragment_address=here, lp_fragment_address=there)
                if count > 0
                else None
            )


def behind(model: Model, optimizer: Any = None) -> Masters:
    """Without an optimizer, one that steps the parameters themselves, as in ZeRO stage 0."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1)
    return Masters(SimpleNamespace(module=model, optimizer=optimizer, device=torch.device("cpu")))


def stepped(masters: Masters, steps: int = 2) -> Masters:
    """After steps along gradients that follow from a parameter's name."""
    base = getattr(masters.optimizer, "optimizer", masters.optimizer)
    for count in range(steps):
        for slot in masters.slots.values():
            slot.host.grad = torch.zeros_like(slot.host)
        for name, slot in masters.slots.items():
            rng = torch.Generator().manual_seed(len(name) + count)
            drawn = torch.randn(masters.shape(name), generator=rng)
            if name == "second":
                drawn[0] = 0.0  # keeps its -0
            slot.part(slot.host.grad).copy_(slot.cut(drawn))
        base.step()
    return masters


def ignore(name: str, weight: Tensor) -> None:
    """The module's own weights are not looked at."""


def two_ranks(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    model = Model()
    masters = stepped(behind(model, BF16_Optimizer(model, rank, 2)))
    save(masters, folder, TOLD)
    again = Model(seed=1)
    other = behind(again, BF16_Optimizer(again, rank, 2))
    restore(other, folder, ignore)
    for name in masters.slots:
        for one, two in zip(held(masters, name), held(other, name), strict=True):
            assert torch.equal(one.view(torch.int32), two.view(torch.int32)), name
    try:
        save(masters, folder if rank else folder / "nowhere", TOLD)
    except StorageFailed as error:
        print(f"rank {rank}: {error}")
    dist.barrier()


def held(masters: Masters, name: str) -> list[Tensor]:
    """This rank's part of the weights and the optimizer's state of a parameter."""
    slot, states = masters.slots[name], masters.states(name)
    return [slot.part(slot.host), *(slot.part(states[key]) for key in sorted(states))]


if __name__ == "__main__":
    two_ranks(int(sys.argv[1]), Path(sys.argv[2]))
