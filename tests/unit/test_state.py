"""Learner state without pickles: what lies in the files, and what is refused when they are read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flat_optimizer import TOLD, BF16_Optimizer, Model, behind, ignore, stepped
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_ray.config.schema import Learner
from rlhf_ray.durable.claims import MAY_CHANGE
from rlhf_ray.errors import BadData, RecipeError, StorageFailed
from rlhf_ray.training import tensor_files
from rlhf_ray.training.masters import Masters
from rlhf_ray.training.state import restore, save, shape_change
from rlhf_ray.training.tensor_files import Whole, opened, write

ROOT = Path(__file__).parents[2]
FILE = "learner-00000.safetensors"


def taken(masters: Masters) -> dict[str, Tensor]:
    """Bits of everything, by name."""
    found = {}
    for name, slot in masters.slots.items():
        for key, value in ({"weight": slot.host} | masters.states(name)).items():
            found[f"{key}/{name}"] = slot.part(value).clone().view(torch.int32)
    return found


def equal(one: Masters, other: Masters) -> bool:
    first, second = taken(one), taken(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Masters, Path]:
    masters = stepped(behind(Model()))
    save(masters, tmp_path, TOLD)
    return masters, tmp_path


def edit(folder: Path, change: Any) -> None:
    """Change the tensors of the one file, and what the index says it holds."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    index = json.loads((folder / "learner.json").read_text())
    index["files"] = {FILE: sorted(tensors)}
    (folder / "learner.json").write_text(json.dumps(index))


def test_bits_steps_and_the_next_step_survive(saved: tuple[Masters, Path]) -> None:
    before, folder = saved
    after = behind(Model(seed=1))
    assert restore(after, folder, ignore)["steps"] == 2
    assert after.steps("first") == 2
    assert equal(before, after)
    assert after.slots["second"].host[0].signbit(), "-0 is not 0"
    assert equal(stepped(before, 1), stepped(after, 1))


def test_a_flat_optimizer_goes_on_where_a_plain_one_was(saved: tuple[Masters, Path]) -> None:
    before, folder = saved
    model = Model(seed=1)
    after = behind(model, BF16_Optimizer(model))
    restore(after, folder, ignore)
    assert equal(before, after)
    assert equal(stepped(before, 3), stepped(after, 3))
    assert after.slots["first"].host[11] == 0, "padding is nobody's"
    back = behind(Model(seed=2))
    (folder / "back").mkdir()
    save(after, folder / "back", TOLD)
    restore(back, folder / "back", ignore)
    assert equal(before, back)


def test_what_is_written_does_not_depend_on_where_it_was_kept(saved: tuple[Masters, Path]) -> None:
    _, folder = saved
    model = Model(seed=1)
    after = behind(model, BF16_Optimizer(model))
    restore(after, folder, ignore)
    (folder / "again").mkdir()
    save(after, folder / "again", TOLD)
    for name in (FILE, "learner.json"):
        assert (folder / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_two_ranks_write_what_one_would_and_fail_together(
    saved: tuple[Masters, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("two")
    ranks = [
        subprocess.Popen(
            [sys.executable, "tests/flat_optimizer.py", str(rank), str(folder)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": "."},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for rank, process in enumerate(ranks):
        said, erred = process.communicate(timeout=120)
        assert process.returncode == 0, erred
        assert said.startswith(f"rank {rank}: ")
        assert "cannot write" in said
        assert "nowhere" in said
    for name in (FILE, "learner.json"):
        assert (folder / name).read_bytes() == (saved[1] / name).read_bytes()
    after = behind(Model(seed=1))
    restore(after, folder, ignore)
    assert equal(saved[0], after)


def test_nothing_but_json_and_safetensors_is_written(saved: tuple[Masters, Path]) -> None:
    assert sorted(one.name for one in saved[1].iterdir()) == [FILE, "learner.json"]
    found = load_file(saved[1] / FILE)
    assert found["weight/first"].shape == (2, 3)
    assert {name.partition("/")[0] for name in found} == {"weight", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("flat", [False, True])
def test_a_state_from_before_the_first_step_takes_the_optimizer_back_to_it(
    flat: bool, tmp_path: Path
) -> None:
    fresh = behind(Model())
    save(fresh, tmp_path, TOLD)
    model = Model(seed=1)
    used = stepped(behind(model, BF16_Optimizer(model) if flat else None))
    restore(used, tmp_path, ignore)
    assert used.states("first") == {}
    assert equal(stepped(fresh), stepped(used))


def test_parameters_that_were_never_stepped_have_no_state_or_zeros(tmp_path: Path) -> None:
    """As where a stage 0 optimizer met no gradient of theirs."""
    before = behind(Model())
    before.slots["first"].host.grad = torch.ones(2, 3)
    before.optimizer.step()
    assert (before.steps("first"), before.steps("second")) == (1, 0)
    save(before, tmp_path, TOLD)
    model = Model(seed=1)
    plain, flat = behind(Model(seed=1)), behind(model, BF16_Optimizer(model))
    for after in (plain, flat):
        restore(after, tmp_path, ignore)
        assert after.steps("first") == 1
        assert equal(before, after) or after is flat
    assert plain.states("second") == {}
    states = {key: flat.slots["second"].part(one) for key, one in flat.states("second").items()}
    assert [value.any().item() for value in states.values()] == [False, False]


def test_different_step_counts_do_not_fit_into_one_flat_tensor(saved: tuple[Masters, Path]) -> None:
    _, folder = saved
    index = json.loads((folder / "learner.json").read_text())
    index["parameters"]["first"]["steps"] = 7
    (folder / "learner.json").write_text(json.dumps(index))
    apart = behind(Model())
    restore(apart, folder, ignore)
    assert (apart.steps("first"), apart.steps("second")) == (7, 2)
    model = Model()
    with pytest.raises(BadData, match=r"different numbers of steps.*zero_stage 0"):
        restore(behind(model, BF16_Optimizer(model)), folder, ignore)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all: all.pop("exp_avg/first"), r"learner\.json has no tensor 'exp_avg/first'"),
        (lambda all: all.update({"weight/third": torch.ones(1)}), rf"{FILE} holds .*weight/third"),
        (lambda all: all.update({"weight/first": torch.ones(6)}),
         rf"{FILE}: tensor 'weight/first' has shape \(6,\), \(2, 3\) in the model"),
    ],
)  # fmt: skip
def test_missing_unknown_and_misshaped_tensors_are_named(
    change: Any, says: str, saved: tuple[Masters, Path]
) -> None:
    edit(saved[1], change)
    model = Model(seed=1)
    after = behind(model)
    before = taken(after)
    with pytest.raises(BadData, match=says):
        restore(after, saved[1], ignore)
    assert all(torch.equal(before[name], value) for name, value in taken(after).items())


def test_damage_is_named(saved: tuple[Masters, Path]) -> None:
    _, folder = saved
    index = (folder / "learner.json").read_text()
    for text, says in (
        (index[:-9], "damaged"), ("[]", "damaged"), ('{"format": 1}', "damaged"),
        (index.replace('"format": 1', '"format": 2'), "format 2, this version .* reads 1"),
        (index.replace('"states"', '"stats"', 1), "damaged"),
        (index.replace("weight/first", "weight/other"), f"{FILE} and learner.json differ"),
    ):  # fmt: skip
        (folder / "learner.json").write_text(text)
        with pytest.raises(BadData, match=says):
            restore(behind(Model()), folder, ignore)
    (folder / "learner.json").write_text(index)
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9])
    with pytest.raises(BadData, match=f"{FILE} cannot be read"):
        restore(behind(Model()), folder, ignore)
    (folder / FILE).unlink()
    with pytest.raises(BadData, match=f"{FILE} cannot be read"):
        restore(behind(Model()), folder, ignore)


def test_pickles_of_an_earlier_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"learner\.json is missing"):
        restore(behind(Model()), tmp_path, ignore)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(BadData, match=r"earlier version .* start over with another --run-dir"):
        restore(behind(Model()), tmp_path, ignore)


def test_another_optimizer_is_refused(saved: tuple[Masters, Path]) -> None:
    model = Model()
    other = behind(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(BadData, match=r"kept exp_avg, exp_avg_sq of 'first', .* momentum_buffer"):
        restore(other, saved[1], ignore)


def test_an_optimizer_nobody_can_look_into_is_refused_before_training() -> None:
    class Nowhere:
        pass

    class DeepSpeedZeroOptimizer_Stage3:
        swap_optimizer = True

    for optimizer, name in ((Nowhere(), "Nowhere"), (DeepSpeedZeroOptimizer_Stage3(), "swap_opt")):
        with pytest.raises(RecipeError, match=rf"{name}.* whose state a checkpoint cannot hold"):
            behind(Model(), optimizer)
    model = Model()
    odd = stepped(behind(model, torch.optim.Adafactor(model.parameters())))
    with pytest.raises(BadData, match=r"keeps row_var, col_var"):
        odd.states("first")


def test_no_more_than_one_file_is_in_memory(tmp_path: Path) -> None:
    held: list[str] = []

    def gather(name: str, size: int) -> Any:
        def now(owner: int) -> Tensor:
            assert owner == 0
            there = len(list(tmp_path.glob("*.safetensors")))
            held.append(f"{name} after {there}")
            return torch.full((size,), 1.0)

        return now

    sizes = {"a": 2, "b": 2, "huge": 9, "c": 1}
    tensors = [Whole(name, (size,), gather(name, size)) for name, size in sizes.items()]
    write(tmp_path, "x", tensors, {}, file_bytes=16)
    assert held == ["a after 0", "b after 0", "huge after 1", "c after 2"]
    with opened(tmp_path, "x") as files:
        files.check({name: (size,) for name, size in sizes.items()})
        assert files.tensor("huge").sum() == 9


def test_what_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"learner-00000\.safetensors"):
        save(behind(Model()), tmp_path / "nowhere", TOLD)


def test_files_are_written_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real = tensor_files.atomic_write

    def noted(path: Path, data: bytes) -> None:
        names.append(path.name)
        real(path, data)

    monkeypatch.setattr(tensor_files, "atomic_write", noted)
    save(behind(Model()), tmp_path, TOLD)
    assert names == [FILE, "learner.json"], "the index is there only when the tensors are"


def test_another_shape_is_told_and_the_same_is_not(saved: tuple[Masters, Path]) -> None:
    folder = saved[1]
    assert shape_change(folder, Learner(workers=2, zero_stage=1)) is None
    told = shape_change(folder, Learner(workers=1, zero_stage=3))
    assert told is not None
    assert "workers is 1 and learner.zero_stage 3 now, 2 and 1 when" in told
    assert "bytes of an unbroken run are not promised" in told


def test_a_run_folder_lets_only_the_shape_of_the_learner_change() -> None:
    changes = [f"learner.{key}" for key in Learner.model_fields]
    free = {key for key in changes if key.startswith(MAY_CHANGE)}
    assert free == {"learner.workers", "learner.zero_stage"}
