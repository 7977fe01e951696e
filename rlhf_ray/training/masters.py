"""Where does DeepSpeed keep the fp32 weights and the optimizer's state of each parameter?

    stage 0, fp32   the parameter itself is what the optimizer steps
    stage 0, bf16   one fp32 copy of each parameter
    stage 1, 2      one flat tensor per group and rank, in which parameters are cut anywhere
    stage 3         the same, but each parameter is cut into equal parts, the last one padded

DeepSpeed's `safe_get_full_*` and `safe_set_full_*` answer for stages 1 to 3 only, not before the
first step, without the step count; and in stages 1 and 2 they add zeros, which turns -0 into 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_ray.errors import BadData, RecipeError

STEP = "step"
FLAT = {
    "DeepSpeedZeroOptimizer": ("bit16_groups", "single_partition_of_fp32_groups"),
    "BF16_Optimizer": ("bf16_groups", "fp32_groups_flat_partition"),
}
"""Groups of parameters, and the flat tensor of each."""


def ranks() -> int:
    """Ranks of this gang."""
    return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True, slots=True)
class Slot:
    """This rank's part of one parameter."""

    host: Tensor
    """What the optimizer steps: the parameter, or a flat tensor with parts of many."""
    at: int
    """Where the part begins in `host`."""
    start: int
    """Where the part begins in the whole parameter, flattened."""
    count: int
    """Elements of the part; 0 where this rank has none."""

    def part(self, value: Tensor) -> Tensor:
        """[count] the part of `host`, or of a state of its shape; a view."""
        return value.detach().view(-1).narrow(0, self.at, self.count)

    def cut(self, whole: Tensor) -> Tensor:
        """[count] the same part of a whole parameter."""
        return whole.reshape(-1).narrow(0, self.start, self.count)


class Masters:
    """The fp32 weights and the optimizer behind one DeepSpeed engine."""

    def __init__(self, engine: Any) -> None:
        """Raises RecipeError for an optimizer whose state would not be found."""
        self.optimizer, self.device = engine.optimizer, engine.device
        self.parameters: dict[str, nn.Parameter] = {
            name: one for name, one in engine.module.named_parameters() if one.requires_grad
        }
        kind = type(self.optimizer).__name__
        self.stage3 = kind == "DeepSpeedZeroOptimizer_Stage3"
        self.sharded = (self.stage3 or kind in FLAT) and ranks() > 1
        odd = [name for name in ("zenflow", "swap_optimizer") if getattr(self.optimizer, name, 0)]
        known = self.stage3 or kind in FLAT or kind == "FP16_UnfusedOptimizer"
        if odd or not (known or isinstance(self.optimizer, torch.optim.Optimizer)):
            raise RecipeError(
                f"learner.deepspeed asks for {', '.join(odd) or kind}, whose state a checkpoint "
                "cannot hold; leave that out, or use another learner.zero_stage"
            )
        found = {id(parameter): slot for parameter, slot in self._located(kind)}
        self.slots = {name: found[id(one)] for name, one in self.parameters.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter."""
        one = self.parameters[name]
        return tuple(getattr(one, "ds_shape", one.shape))

    def states(self, name: str) -> dict[str, Tensor]:
        """What the optimizer keeps of this parameter's host, in its shape; none before a step.

        Raises BadData for state of other shapes, which cannot be cut by parameters.
        """
        host = self.slots[name].host
        found = {k: v for k, v in self._state(host).items() if k != STEP and v is not None}
        odd = [k for k, v in found.items() if not torch.is_tensor(v) or v.shape != host.shape]
        if odd:
            raise BadData(
                f"this optimizer keeps {', '.join(odd)}, which a checkpoint cannot hold; choose "
                "another in learner.deepspeed"
            )
        return found

    def steps(self, name: str) -> int:
        """Steps the optimizer has counted for this parameter."""
        state = self._state(self.slots[name].host)
        return int(state.get(STEP, self._bases()[0].param_groups[0].get(STEP, 0)))

    def whole(self, name: str, value: Tensor, owner: int) -> Tensor | None:
        """On rank `owner` the whole of `value`, on its CPU and in fp32; a collective."""
        slot, shape = self.slots[name], self.shape(name)
        part = slot.part(value).to(self.device, torch.float32).contiguous()
        if self.sharded:
            # As integers: a sum of floats with zeros would turn -0 into 0.
            bits = torch.zeros(prod(shape), dtype=torch.int32, device=self.device)
            slot.cut(bits).copy_(part.view(torch.int32))
            dist.reduce(bits, dst=owner)
            part = bits.view(torch.float32)
        mine = not dist.is_initialized() or dist.get_rank() == owner
        return part.reshape(shape).cpu() if mine else None

    def prepare(self, steps: dict[str, int], kept: set[str]) -> None:
        """Let the optimizer have state for the parameters of `kept`, and none for others.

        `steps` are those counted for them. What the states hold is for the caller to fill.
        Raises BadData where parameters in one flat tensor have counted differently.
        """
        hosts = {id(slot.host): slot.host for slot in self.slots.values()}
        counts: dict[int, set[int]] = {place: set() for place in hosts}
        for name in kept:
            counts[id(self.slots[name].host)].add(steps[name])
        if any(len(found) > 1 for found in counts.values()):
            raise BadData(
                "its parameters have taken different numbers of steps, which ZeRO stages 1 to 3 "
                "cannot hold; resume it with learner.zero_stage 0"
            )
        if kept:
            self._step_once(list(hosts.values()))
        for place, host in hosts.items():
            if not counts[place]:
                for base in self._bases():
                    base.state.pop(host, None)
            else:
                self._count(host, counts[place].pop())
        if hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            self.optimizer._hp_optimizer_states_linked = False  # these are other tensors now

    def _step_once(self, hosts: list[Tensor]) -> None:
        """A step without gradients, which makes any optimizer set up its own state."""
        grads = [host.grad for host in hosts]
        for host in hosts:
            host.grad = torch.zeros_like(host)
        if self.stage3:
            for group in range(len(self.optimizer.fp16_groups)):
                self.optimizer._optimizer_step(group)
        else:
            self._bases()[0].step()
        for host, grad in zip(hosts, grads, strict=True):
            host.grad = grad

    def _count(self, host: Tensor, steps: int) -> None:
        state = self._state(host)
        if torch.is_tensor(state.get(STEP)):
            state[STEP].fill_(steps)
        elif STEP in state:
            state[STEP] = steps
        for group in (group for base in self._bases() for group in base.param_groups):
            if STEP in group:
                group[STEP] = steps

    def _bases(self) -> list[Any]:
        """The optimizers inside DeepSpeed's; two where stage 3 offloads a share of them."""
        base = getattr(self.optimizer, "optimizer", self.optimizer)
        backup = getattr(self.optimizer, "backup_optimizer", None)
        return [base] if backup is None else [base, backup]

    def _state(self, host: Tensor) -> dict[str, Any]:
        found = [base.state[host] for base in self._bases() if host in base.state]
        return found[0] if found else {}

    def _located(self, kind: str) -> Iterator[tuple[nn.Parameter, Slot]]:
        if self.stage3:
            return self._cut_evenly()
        if kind in FLAT:
            return self._cut_anywhere(*(getattr(self.optimizer, name) for name in FLAT[kind]))
        return self._uncut()

    def _cut_evenly(self) -> Iterator[tuple[nn.Parameter, Slot]]:
        zero = self.optimizer
        for one in self.parameters.values():
            if zero._get_param_partition_world_size(one) != ranks():
                raise RecipeError(
                    "learner.deepspeed shards parameters over a part of the ranks, which a "
                    "checkpoint cannot hold; leave that out"
                )
            group, at, size = zero.grad_position[zero.get_param_id(one)]
            start = min(zero._get_param_partition_rank(one) * size, one.ds_numel)  # type: ignore[attr-defined]
            count = min(size, one.ds_numel - start)  # type: ignore[attr-defined]
            yield one, Slot(zero.fp32_partitioned_groups_flat[group], at, start, count)

    def _cut_anywhere(
        self, groups: list[list[nn.Parameter]], hosts: list[Tensor]
    ) -> Iterator[tuple[nn.Parameter, Slot]]:
        for group, host in zip(groups, hosts, strict=True):
            for one in group:
                found = one._hp_mapping  # type: ignore[attr-defined]
                if found is None:
                    yield one, Slot(host, 0, 0, 0)
                else:
                    here, there = found.hp_fragment_address, found.lp_fragment_address
                    yield one, Slot(host, here.start, there.start, here.numel)

    def _uncut(self) -> Iterator[tuple[nn.Parameter, Slot]]:
        if isinstance(self.optimizer, torch.optim.Optimizer):
            for one in self.parameters.values():
                yield one, Slot(one, 0, 0, one.numel())
            return
        groups = zip(self.optimizer.fp16_groups, self.optimizer.fp32_groups, strict=True)
        for parameters, copies in groups:
            for one, copy in zip(parameters, copies, strict=True):
                yield one, Slot(copy, 0, 0, copy.numel())
