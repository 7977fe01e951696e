"""`judge strength` and `critique` on real engines, with tiny models."""

import json
from pathlib import Path

import pytest
from commandline import rlhf_ray

from rlhf_ray.config.schema import Scratch
from rlhf_ray.training.scratch import make_policy

POLICY = ["policy.supervised.steps=40", "policy.supervised.batch_size=32"]
STRENGTH = [
    *POLICY,
    "judges.sorter.train.preferences.prompts_per_family=20",
    "judges.sorter.train.preferences.samples=4",
    "judges.sorter.train.denoising.voting.voters=2",
]
CRITIC = [
    *POLICY,
    "critic.train.steps=40",
    "critic.train.batch_size=32",
    "critic.train.prompts_per_family=20",
    "critic.train.samples=2",
]


def said(*words: str) -> str:
    done = rlhf_ray(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_strengths_are_measured_once_and_read_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["judge", "strength", "-c", "configs/judge_denoised.yaml", "--run-dir", str(run)]
    out = said(*words, "--groups", "4", "--alone", *STRENGTH)
    for part in ("voter 2: step", "group 4: step", "accuracy alone %", "reliability"):
        assert part in out, part
    folder = run / "strength" / "sorter"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"strengths.jsonl", "diagnostics.json", "strength.html"}
    found = json.loads(first["diagnostics.json"])
    assert (found["voters"], found["known_from"], len(found["groups"])) == (2, "data", 4)
    assert sum(row["size"] for row in found["groups"]) == found["pairs"]
    assert all(0.0 <= row["accuracy_alone"] <= 1.0 for row in found["groups"])
    votes = [json.loads(line) for line in first["strengths.jsonl"].splitlines()]
    assert len(votes) == 1 + found["pairs"]
    assert str(folder / "strengths.jsonl") in first["strength.html"].decode()
    again = said(*words, "--groups", "4", *STRENGTH)
    assert "voter 1" not in again
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.slow
def test_a_file_of_pairs_is_criticised_by_the_critic_of_a_recipe(tmp_path: Path) -> None:
    rows = [
        {"prompt": "srt bacde=", "chosen": "abcde", "rejected": "edcba", "kept": 1},
        {"prompt": "rev abcde=", "chosen": "edcba", "rejected": "abcde"},
    ]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "new.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["critique", str(pairs), "-c", "configs/judge_critiqued.yaml", "--out", str(out)]
    printed = said(*words, "--run-dir", str(tmp_path / "run"), *CRITIC)
    assert "critiques " in printed
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in written] == [row["prompt"] for row in rows]
    assert written[0]["kept"] == 1
    assert all({"chosen_critique", "rejected_critique"} <= set(row) for row in written)
    assert any(row["chosen_critique"] for row in written)


def test_a_judge_with_a_model_and_pairs_of_its_own_is_trained_without_a_policy(
    tmp_path: Path,
) -> None:
    letters, run = "abcdefgh", tmp_path / "run"
    tiny = Scratch(hidden_size=32, layers=1, heads=1, intermediate_size=32, max_positions=32)
    make_policy(tmp_path / "own", tiny, [f"{letters}="], seed=0)
    for name, prompts in {"pairs": letters[:6], "held_out": letters[6:]}.items():
        rows = [{"prompt": f"{one}=", "chosen": one, "rejected": f"{one}a"} for one in prompts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    preferences = {
        "kind": "files",
        "train": str(tmp_path / "pairs.jsonl"),
        "held_out": str(tmp_path / "held_out.jsonl"),
    }
    train = {"preferences": preferences, "steps": 4, "batch_size": 4}
    judge = {"kind": "bradley_terry", "path": str(tmp_path / "own"), "train": train}
    # JSON is YAML, too.
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "own", "judges": {"short": judge}}))
    words = ["judge", "train", "-c", str(tmp_path / "recipe.yaml"), "--run-dir", str(run)]
    printed = said(*words)
    assert "judges trained" in printed
    assert "short: held-out pairs right" in printed
    assert (run / "judges" / "short" / "model.safetensors").is_file()
    assert "policy ready" not in printed
    assert not (run / "start").exists()
    logs = [path.name for path in (run / "logs").iterdir()]
    assert logs
    assert not [name for name in logs if not name.startswith("learner")]
