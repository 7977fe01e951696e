"""What the next step of a training depends on, as whole tensors: loadable in any shape.

    learner.json   steps, ranks and ZeRO stage it was written with, steps of each parameter
    weight/NAME    the fp32 weights, also where the model computes in bf16
    exp_avg/NAME   and whatever else the optimizer keeps of a parameter, in its shape

Bits are those of the ranks that wrote them, so the same ranks and stage go on bit for bit, and
others as far as sums in another order allow. There is no loss scale, because fp16 is refused, and
no random state, because every draw has a key.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.schema import Learner
from rlhf_ray.errors import BadData
from rlhf_ray.training.tensor_files import Files, Shape, Whole, opened, read_index, write

if TYPE_CHECKING:
    from rlhf_ray.training.masters import Masters

STEM = "learner"
WEIGHT = "weight"


def save(masters: "Masters", folder: Path, told: dict[str, Any]) -> None:
    """Write all of it and what `told` says; a collective."""
    tensors: list[Whole] = []
    parameters: dict[str, Any] = {}
    for name, slot in masters.slots.items():
        states = masters.states(name)
        parameters[name] = {"steps": masters.steps(name), "states": sorted(states)}
        values = {WEIGHT: slot.host} | {key: states[key] for key in sorted(states)}
        for key, value in values.items():
            gather = partial(masters.whole, name, value)
            tensors.append(Whole(f"{key}/{name}", masters.shape(name), gather))
    write(folder, STEM, tensors, told | {"parameters": parameters})


def restore(masters: "Masters", folder: Path, show: Callable[[str, Any], None]) -> dict[str, Any]:
    """Undo `save`, on any ranks and stage; what was told. `show` puts a whole tensor into the
    module's own parameter. A collective.

    Raises BadData where the state is missing, damaged, or that of another model or optimizer.
    """
    import torch

    with opened(folder, STEM) as files, torch.no_grad():
        parameters = _parameters(files)
        files.check(_expected(masters, parameters))
        kept = {name for name, one in parameters.items() if one["states"]}
        masters.prepare({name: one["steps"] for name, one in parameters.items()}, kept)
        for name, slot in masters.slots.items():
            weight = files.tensor(f"{WEIGHT}/{name}")
            slot.part(slot.host).copy_(slot.cut(weight))
            _fill(masters, name, files, parameters[name]["states"])
            show(name, weight)
        return files.told


def shape_change(folder: Path, learner: Learner) -> str | None:
    """What to tell when a state was written on other ranks or another ZeRO stage; else None."""
    told = read_index(folder, STEM)
    before = (told["workers"], told["zero_stage"])
    if before == (learner.workers, learner.zero_stage):
        return None
    return (
        f"learner.workers is {learner.workers} and learner.zero_stage {learner.zero_stage} now, "
        f"{before[0]} and {before[1]} when this was written: losses agree up to rounding, the "
        "bytes of an unbroken run are not promised"
    )


def _fill(masters: "Masters", name: str, files: Files, states: list[str]) -> None:
    """The optimizer's state of one parameter."""
    slot, found = masters.slots[name], masters.states(name)
    if states and set(states) != found.keys():
        raise BadData(
            f"{files.index}: the optimizer kept {', '.join(states)} of '{name}', this one keeps "
            f"{', '.join(sorted(found))}; resume with the optimizer it was written for"
        )
    for key, value in found.items():
        if states:
            slot.part(value).copy_(slot.cut(files.tensor(f"{key}/{name}")))
        else:  # its host has state of other parameters
            slot.part(value).zero_()


def _parameters(files: Files) -> dict[str, Any]:
    """Steps and states of each parameter."""
    found = files.told.get("parameters")
    try:
        return {name: {"steps": int(one["steps"]), "states": list(one["states"])}
                for name, one in found.items()}  # type: ignore[union-attr]  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadData(f"{files.index} is damaged ({error!r}); restore it from a copy") from error


def _expected(masters: "Masters", parameters: dict[str, Any]) -> dict[str, Shape]:
    """Every tensor there must be, with its shape."""
    return {
        f"{key}/{name}": masters.shape(name)
        for name in masters.slots
        for key in [WEIGHT, *parameters.get(name, {"states": ()})["states"]]
    }
