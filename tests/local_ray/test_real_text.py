"""The real-text recipe, shortened, on the published data where it is at hand."""

from pathlib import Path

import pytest
from commandline import metrics, rlhf_ray
from conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
SHORT = [
    "policy.scratch.hidden_size=64",
    "policy.scratch.layers=2",
    "policy.scratch.heads=2",
    "policy.scratch.intermediate_size=128",
    "policy.scratch.vocab_size=1024",
    "policy.supervised.steps=6",
    "policy.supervised.batch_size=8",
    "judges.human.train.steps=4",
    "judges.human.train.batch_size=4",
    "judges.solutions.train.steps=4",
    "judges.solutions.train.batch_size=4",
    "judges.human.max_tokens=512",
    "rollouts.max_tokens=24",
    "rollouts.responses=4",
    "loop.waves=1",
    "loop.prompts=24",
    "context.width=16",
    "context.sample=40",
    "evaluate.prompts=20",
    "policy.scratch.max_positions=512",
]


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder beside the checkout is missing")
def test_real_prompts_preferences_and_demonstrations_go_through_the_whole_loop(
    tmp_path: Path,
) -> None:
    done = rlhf_ray(
        "run", "-c", "configs/real_text_cpu.yaml", f"data.dir={DATA}", "--run-dir", str(tmp_path),
        *SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path)
    judges = {row["name"]: row for row in rows if row["kind"] == "judge"}
    for kind in ("accuracy", "longer_response", "ngram"):
        assert set(judges["human"][kind]) >= {"evouna", "fine_grained", "pandalm", "tulu_human"}
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["round"] for row in evaluations] == [0, 1, 2]
    assert set(evaluations[0]["sampled"]["by_source"]) >= {"gsm8k", "svamp", "mmlu"}
    assert {"human", "answers"} & {
        arm for row in rows if row["kind"] == "wave" for arm in row["arms"]
    }
