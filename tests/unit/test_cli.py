"""The command line, as a person or a script meets it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rlhf_ray
from rlhf_ray import cli
from rlhf_ray.errors import BadData, ClusterUnavailable, RlhfRayError, StorageFailed

RECIPE = """\
name: small
data: {kind: gold}
policy: {supervised: {}}
judges:
  a: {kind: bradley_terry, train: {preferences: {kind: gold, expert: sort}}}
  b: {kind: rules}
"""
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Calls the command line in a folder with a recipe: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RLHF_RAY__")]:
        monkeypatch.delenv(name)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-ray", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return code, printed.out, printed.err

    return call


def fresh(*words: str) -> str:
    """What a new interpreter prints."""
    root = str(Path(rlhf_ray.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    return done.stdout


def loaded_after(*words: str) -> set[str]:
    """Names of the modules that a command leaves loaded."""
    program = (
        f"import sys\nfrom rlhf_ray.cli import main\nsys.argv = {['rlhf-ray', *words]}\n"
        "try:\n    main()\nexcept SystemExit:\n    print('\\n', *sys.modules)"
    )
    return set(fresh("-c", program).split())


def test_help_is_there_in_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        fresh("-m", "rlhf_ray", "--help")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


def test_help_imports_neither_engines_nor_torch() -> None:
    loaded = loaded_after("--help")
    assert "rlhf_ray.cli" in loaded
    assert not loaded & {"torch", "ray", "vllm", "deepspeed", "transformers", "numpy", "pydantic"}


def test_checking_a_recipe_imports_neither_engines_nor_torch(command: Command) -> None:
    loaded = loaded_after("check", "-c", "recipe.yaml")
    assert "rlhf_ray.config.resources" in loaded
    assert not loaded & {"torch", "ray", "vllm", "deepspeed", "transformers", "datasets"}


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["run", "-h"], ["judge", "train", "--help"]])
def test_help_is_help_everywhere(command: Command, words: list[str]) -> None:
    code, out, _ = command(*words)
    assert code == 0
    assert "Usage: rlhf-ray" in out


@pytest.mark.parametrize(
    "name", ["run", "check", "demo", "doctor", "report", "status", "judge train"]
)
def test_each_command_has_an_example(command: Command, name: str) -> None:
    assert f"Example: rlhf-ray {name}" in command(*name.split(), "--help")[1]


def test_the_version_is_said(command: Command) -> None:
    assert command("--version") == (0, f"{rlhf_ray.__version__}\n", "")


def test_check_prints_the_plan_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    code, out, err = command("check", "-c", "recipe.yaml", "--loop.rounds", "2", "loop.waves=3")
    assert (code, err) == (0, "")
    assert "the run      6 waves" in out
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.yaml"]


def test_overrides_may_stand_anywhere(command: Command) -> None:
    words = ["seed=1", "--loop.rounds", "2", "--config", "recipe.yaml", "--loop.waves=3"]
    code, out, _ = command("check", *words)
    assert code == 0
    assert "the run      6 waves" in out


BAD: list[tuple[list[str], str]] = [
    (["-c", "recipe.yml"], "recipe.yml: there is no such recipe; in . there is recipe.yaml"),
    (["-c", "recipe.yaml", "bandit.alhpa=1"], "unknown key 'bandit.alhpa'; did you mean"),
    (["-c", "recipe.yaml", "--loop.rounds", "0"], "loop.rounds should be greater than or equal"),
    (["-c", "recipe.yaml", "--loop.rounds"], "'--loop.rounds' has no value"),
    (["-c", "recipe.yaml", "bandit={kind: fixed, arm: c}"], "bandit.arm is 'c', which is no judge"),
    (["-c", "recipe.yaml", "policy.path=./no/model"], "policy.path is ./no/model, which is not a"),
    (["-c", "recipe.yaml", "rollouts.tensor_parallel=2"], "needs as many rollouts.num_gpus, not 0"),
    (["-c", "recipe.yaml", "--run-dir", "/proc/run"], "run folder /proc/run: /proc cannot be"),
    (["-c", "recipe.yaml", "--run-dir", "recipe.yaml"], "choose another with --run-dir"),
]


@pytest.mark.parametrize("name", ["run", "check", "judge train"])
@pytest.mark.parametrize(("words", "message"), BAD)
def test_a_recipe_that_cannot_be_ends_with_78_and_one_cause(
    command: Command, tmp_path: Path, name: str, words: list[str], message: str
) -> None:
    code, out, err = command(*name.split(), *words)
    assert (code, out) == (78, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_environment_is_read(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_RAY__LOOP__RUONDS", "2")
    code, _, err = command("check", "-c", "recipe.yaml")
    assert code == 78
    assert "environment RLHF_RAY__LOOP__RUONDS: unknown key 'loop.ruonds'" in err


@pytest.mark.parametrize("words", [["run"], ["rnu"], ["status"], ["report"]])
def test_a_command_that_is_incomplete_ends_with_2(command: Command, words: list[str]) -> None:
    assert command(*words)[0] == 2


@pytest.mark.parametrize("name", ["status", "report"])
def test_a_folder_without_a_run_is_bad_data(command: Command, name: str) -> None:
    code, _, err = command(name, ".")
    assert code == 65
    assert ". is no run folder" in err


class FromWorker(BadData):
    """As an error looks when it has crossed an actor: it carries its cause and a traceback."""

    cause = BadData("the cause")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadData("a.jsonl:3: x"), 65, "error: a.jsonl:3: x\n"),
        (ClusterUnavailable("no GPU [late]"), 69, "error: no GPU [late]\n"),
        (StorageFailed("full"), 74, "error: full\n"),
        (RlhfRayError("other"), 70, "error: other\n"),
        (FromWorker("Traceback ..."), 65, "error: the cause\n"),
        (KeyboardInterrupt(), 75, "goes on where it was: rlhf-ray doctor --no-engines\n"),
    ],
)
def test_errors_become_exit_codes(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(**options: bool) -> None:
        raise error

    monkeypatch.setattr("rlhf_ray.doctor.diagnose", fail)
    found, out, err = command("doctor", "--no-engines")
    assert (found, out) == (code, "")
    assert err.endswith(said)
    assert "Traceback (" not in err


def test_a_bug_of_ours_shows_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_ray.doctor.diagnose", lambda engines: {}["missing"])
    code, _, err = command("doctor")
    assert code == 70
    assert "Traceback (most recent call last)" in err
    assert "KeyError: 'missing'" in err
    assert "please report it" in err


def test_a_demo_outside_a_checkout_says_where_to_get_one(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rlhf_ray, "__file__", str(tmp_path / "rlhf_ray" / "__init__.py"))
    code, _, err = command("demo")
    assert code == 78
    assert "configs/demo.yaml is not there: the demo needs a checkout" in err


def run_folder(folder: Path) -> None:
    for name in ("journal", "attempts"):
        (folder / name).mkdir(parents=True)
    (folder / "journal" / "000001.jsonl").touch()
    owner = {"host": "h", "pid": 1, "born": ""}
    for number, waits in enumerate((False, True, False), start=1):  # the last one took over
        told = json.dumps(owner | {"waits": waits})
        (folder / "attempts" / f"{number:06d}.json").write_text(told)
    (folder / "config.resolved.yaml").write_text(RECIPE)
    rows = [
        {"kind": "evaluation", "round": 0, "sampled": {"overall": 0.5}},
        {"kind": "wave", "index": 0, "step": "r000-w000", "pairs": 7},
        {"kind": "wave", "index": 1, "step": "r000-w001", "pairs": 9},
        {"kind": "wave", "index": 1, "step": "r000-w001", "pairs": 9},
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "wa']))


def test_status_of_an_unfinished_run_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "a b")
    code, out, _ = command("status", "runs/a b")
    assert code == 0
    assert out.splitlines() == [
        "status   unfinished",
        "done     2 waves in 2 attempt(s)",
        "last     wave r000-w001, 9 pairs",
        "gold     0.500 sampled accuracy after round 0",
        "go on    rlhf-ray run -c 'runs/a b/config.resolved.yaml' --run-dir 'runs/a b'",
    ]


def test_status_of_a_finished_run_says_where_the_result_is(
    command: Command, tmp_path: Path
) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"status": "completed"}')
    _, out, _ = command("status", "run")
    assert out.startswith("status   completed\n")
    assert out.endswith("result   run/final\n")


def test_status_names_the_line_that_is_damaged(command: Command, tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "wave"\n')
    code, _, err = command("status", "run")
    assert code == 65
    assert "run/metrics.jsonl:1: malformed JSON" in err


def test_status_counts_segments_where_an_earlier_version_counted_no_attempts(
    command: Command, tmp_path: Path
) -> None:
    run_folder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "attempts")
    assert "in 1 attempt(s)" in command("status", "run")[1]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("metrics.jsonl", b"{}\n\xff\n", "run/metrics.jsonl:2: malformed JSON"),
        ("metrics.jsonl", b"[1]\n", "run/metrics.jsonl:1: holds no JSON object"),
        ("metrics.jsonl", b'{"kind": "wave"}\n', "run/metrics.jsonl:1: no row of metrics"),
        ("metrics.jsonl", b'{"kind": "evaluation", "sampled": 1}\n', "no row of metrics"),
        ("summary.json", b"\xff", "run/summary.json: malformed JSON"),
        ("summary.json", b"[]", "run/summary.json: holds no JSON object"),
    ],
)
def test_status_names_what_it_cannot_read(
    command: Command, tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(data)
    code, _, err = command("status", "run")
    assert (code, said in err) == (65, True), err


def test_a_stranger_among_the_attempts_is_no_attempt(command: Command, tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    for name in ("\u00b2", "\u00b2.json", "000009", "\u0661\u0661\u0661\u0661\u0661\u0661.json"):
        (tmp_path / "run" / "attempts" / name).touch()
    assert "in 2 attempt(s)" in command("status", "run")[1]
