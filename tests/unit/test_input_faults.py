"""Every fault that what a user brings may have: one line, one exit code, before Ray is there.

The command line runs as a person's would, up to where it would join or start Ray. What a run that
has begun refuses (other data, another recipe) stands in `test_run_folder`.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import toy_runs
import yaml
from recipes import model_folder

from rlhf_ray import cli
from rlhf_ray.messages import Prompt

REACHED = 99
"""Stands for: nothing was refused, and Ray would start now."""
GOOD = {"id": "p", "prompt": "ask", "answer": "a"}
PAIR = {"prompt": "ask", "chosen": "a", "rejected": "b"}
RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {
        "kind": "files", "dir": ".", "prompts": "prompts.jsonl",
        "prompts_held_out": "held.jsonl", "demonstrations": "shown.jsonl",
        "max_prompt_tokens": 20,
    },
    "policy": {"supervised": {"steps": 2}},
    "judges": {
        "a": {"kind": "rules", "rule": "length"},
        "b": {
            "kind": "bradley_terry",
            "train": {"preferences": {"kind": "files", "train": "pairs.jsonl"}},
        },
    },
    "loop": {"rounds": 1, "waves": 1, "prompts": 2, "warm_waves": 0},
    "evaluate": {"prompts": 1},
}  # fmt: skip


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


FILES = {
    "prompts.jsonl": lines(GOOD, GOOD | {"id": "q", "prompt": "ask more"}),
    "held.jsonl": lines({"prompt": "another", "answer": "a", "answer_type": "exact"}),
    "shown.jsonl": lines({"prompt": "show", "response": "a"}),
    "pairs.jsonl": lines(PAIR, PAIR | {"prompt": "ask else"}),
}
Outcome = tuple[int, str]
Command = Callable[..., Outcome]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a recipe in a folder with good files, up to where Ray would be started."""
    from rlhf_ray.launch import run

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RLHF_RAY__")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(run, "on_cluster", lambda *_: sys.exit(REACHED))
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))

    def call(*overrides: str) -> Outcome:
        words = ["run", "-c", "recipe.yaml", "--run-dir", "run", *overrides]
        monkeypatch.setattr(sys, "argv", ["rlhf-ray", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return left.value.code, capsys.readouterr().err

    return call


def refused(command: Command, code: int, said: str, *overrides: str) -> None:
    before = sorted(Path.cwd().rglob("*"))
    found, err = command(*overrides)
    assert (found, said in err) == (code, True), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert sorted(Path.cwd().rglob("*")) == before, "nothing was written"


def test_good_files_get_as_far_as_ray(command: Command) -> None:
    assert command() == (REACHED, "")


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "malformed": (b'{"prompt": "a"\n', ":2: malformed JSON"),
    "cut off": (b'{"prompt": "a', ":2: malformed JSON"),
    "not utf-8": (b'{"prompt": "\xff"}\n', ":2: invalid start byte, not UTF-8"),
    "utf-16": ('{"prompt": "a"}\n'.encode("utf-16-le"), ":2: NUL byte"),
    "nul": (b'{"prompt": "a\x00b"}\n', ":2: NUL byte"),
    "nul escaped as half a character": (
        b'{"prompt": "\\ud800"}\n',
        ":2: field 'prompt' holds half",
    ),
    "empty prompt": (lines({"prompt": ""}), ":2: field 'prompt' is empty"),
    "blank prompt": (lines({"prompt": " \t\u2003"}), ":2: field 'prompt' is empty"),
    "missing prompt": (lines({"promt": "a"}), ":2: field 'prompt' is missing"),
    "prompt a number": (
        lines({"prompt": 3}),
        ":2: field 'prompt' is a number (3), it must be text",
    ),
    "prompt null": (lines({"prompt": None}), ":2: field 'prompt' is missing"),
    "a list": (b"[1]\n", ":2: a list of 1 instead of an object"),
    "a field twice": (b'{"prompt": "a", "prompt": "b"}\n', ":2: malformed JSON: field 'prompt'"),
    "not a number": (b'{"prompt": "a", "answer": NaN}\n', ":2: malformed JSON: NaN is no JSON"),
    "id a truth value": (lines(GOOD | {"id": True}), ":2: field 'id' is a truth value"),
    "id taken": (lines(GOOD), ":2: id 'p' is already taken at"),
    "unknown type": (lines({"prompt": "a", "answer_type": "x"}), ":2: unknown answer_type 'x'"),
    "no answer": (
        lines({"prompt": "a", "answer_type": "exact"}),
        ":2: answer_type 'exact' without",
    ),
    "two turns": (
        lines({"prompt": [{"role": "user", "content": "a"}] * 2}),
        ":2: field 'prompt' must hold one user message",
    ),
    "nested without end": (b'{"prompt": ' + b"[" * 100_000 + b"\n", ":2: malformed JSON"),
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_bad_prompt_is_named_by_file_and_line(command: Command, fault: str) -> None:
    line, said = BAD_LINES[fault]
    Path("prompts.jsonl").write_bytes(lines(GOOD) + line)
    refused(command, 65, f"prompts.jsonl{said}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", ": holds no records"), (b"\n \n", ": holds no records"), (b"x\n", ":1: malformed JSON")],
)
def test_every_file_is_read_before_ray(
    command: Command, name: str, content: bytes, said: str
) -> None:
    Path(name).write_bytes(content)
    refused(command, 65, f"{name}{said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (lines(PAIR | {"rejected": "a"}), ":1: chosen and rejected are equal"),
        (lines({"prompt": "a", "chosen": "b"}), ":1: field 'rejected' "),
        (lines(PAIR | {"strength": 2}), ":1: "),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(command: Command, line: bytes, said: str) -> None:
    Path("pairs.jsonl").write_bytes(line)
    refused(command, 65, f"pairs.jsonl{said}")


ACCEPTED = {
    "no line break at the end": FILES["prompts.jsonl"].rstrip(b"\n"),
    "a byte order mark": b"\xef\xbb\xbf" + FILES["prompts.jsonl"],
    "blank lines and those of windows": FILES["prompts.jsonl"].replace(b"\n", b"\r\n\r\n"),
    "ids of any sort": lines(GOOD | {"id": "../../x"}, GOOD | {"id": "/etc/passwd"}),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_is_no_fault_is_none(command: Command, what: str) -> None:
    Path("prompts.jsonl").write_bytes(ACCEPTED[what])
    assert command() == (REACHED, "")


def test_an_id_never_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.driven(tmp_path / "plain")

    def wave(self: Any, step: Any, size: int) -> list[Prompt]:
        names = ["../../up", "/etc/x", "a/b", "..", "~", "\x1b[2J", "n" * 5000]
        sources = fakes.SOURCES
        return [
            Prompt(f"{names[i]}{step}", "ask", sources[i % 2], "a", "exact") for i in range(size)
        ]

    monkeypatch.setattr(fakes.TurnTaking, "wave", wave)
    toy_runs.driven(tmp_path / "odd")
    plain, odd = (
        sorted(one.relative_to(tmp_path / name).as_posix() for one in (tmp_path / name).rglob("*"))
        for name in ("plain", "odd")
    )
    assert plain == odd
    assert sorted(one.name for one in tmp_path.iterdir()) == ["odd", "plain"]


# The recipe: what is asked for cannot be.

KEYS = [
    (("loop.ruonds=1",), "unknown key 'loop.ruonds'; did you mean 'rounds'?"),
    (("loop.rounds=two",), 'loop.rounds should be a valid integer, got "two"'),
    (("loop.rounds=0",), "loop.rounds should be greater than or equal to 1"),
    (("learner.optimizer.lr=.nan",), "learner.optimizer.lr should be"),
    (("judges.a.rule=x",), "judges.a.rule should be"),
    (("judges.c={kind: gold, path: x}",), "unknown key 'judges.c.path'"),
    (("judges={../up: {kind: gold}}",), "'../up' names a folder"),
    (("judges={" + "n" * 65 + ": {kind: gold}}",), "names a folder"),
    (("rollouts.tensor_parallel=3",), "rollouts.num_gpus"),
    (("data.prompts=promts.jsonl",), "did you mean prompts.jsonl or"),
    (("data.prompts=prompts.jsonl.gz",), "prompts.jsonl.gz"),
    (("data.dir=nowhere",), "nowhere"),
]


@pytest.mark.parametrize(("overrides", "said"), KEYS, ids=[said for _, said in KEYS])
def test_what_cannot_be_asked_for_is_refused(
    command: Command, overrides: tuple[str, ...], said: str
) -> None:
    before = sorted(Path.cwd().rglob("*"))
    code, err = command(*overrides)
    assert (code, said in err) == (78, True), err
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_fault_of_the_recipe_has_its_line(command: Command) -> None:
    text = Path("recipe.yaml").read_text()
    place = text.splitlines().index("  rounds: 1") + 1
    Path("recipe.yaml").write_text(text.replace("  rounds: 1", "  rounds: many"))
    refused(command, 78, f"recipe.yaml:{place}: loop.rounds should be a valid integer")
    twice = text.replace("judges:\n", "judges:\n  a: {kind: gold}\n")
    Path("recipe.yaml").write_text(twice)
    refused(
        command, 78, f"recipe.yaml:{twice.splitlines().index('  a:') + 1}: 'judges.a' stands twice"
    )


def test_an_unknown_key_of_the_environment_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_RAY__LOOP__RUONDS", "1")
    refused(command, 78, "environment RLHF_RAY__LOOP__RUONDS: unknown key 'loop.ruonds'")


ONE: dict[str, Any] = {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
}
MODELS: list[tuple[str, dict[str, Any], str]] = [
    ("pytorch_model.bin", ONE, "may run code"),
    ("model.pt", ONE, "may run code"),
    ("model.ckpt", ONE, "may run code"),
    ("model.safetensors", {"architectures": ["LlamaForSequenceClassification"]}, "has 2 labels"),
    ("model.safetensors", {"architectures": ["LlamaForCausalLM"]}, "no score head"),
]


@pytest.mark.parametrize(("weights", "config", "said"), MODELS)
def test_a_model_that_cannot_be_a_judge_is_refused(
    command: Command, weights: str, config: dict[str, Any], said: str
) -> None:
    model_folder(Path("judge"), weights, **config)
    refused(command, 78, said, "judges={a: {kind: bradley_terry, path: ./judge}}")
