"""The whole program on real engines: what a run leaves, and that SIGKILL costs nothing."""

import json
import shutil
from pathlib import Path

import pytest
from commandline import killed_when, rlhf_ray
from conftest import TINY

from rlhf_ray.durable.manifest import verify_manifest
from rlhf_ray.same_end import compare


def test_a_run_says_what_it_does_and_where_everything_lies(tiny_run: Path) -> None:
    said = (tiny_run / "stdout.txt").read_text()
    for part in (
        "learners ready", "policy ready", "rollout engines ready", "judges ready",
        "gold before training", "r000-w000  gold", "tok/s", "sync", "gold after round 2",
        "report.html", "final",
    ):  # fmt: skip
        assert part in said, part
    assert (tiny_run / "logs" / "rollout-0.log").stat().st_size > 0


def test_the_summary_holds_what_a_script_asks_for(tiny_run: Path) -> None:
    found = json.loads((tiny_run / "summary.json").read_text())
    assert (found["status"], found["rounds"], found["waves"]) == ("completed", 2, 4)
    for mode in ("sampled", "greedy"):
        for when in ("before", "after"):
            assert set(found["gold_accuracy"][mode][when]["by_source"]) == {
                "sort", "reverse", "rotate", "swap",
            }  # fmt: skip
    for shares in found["arm_share"].values():
        assert sum(shares.values()) == pytest.approx(1.0)
    stages = {"refresh", "choose", "generate", "critique", "score", "update", "sync"}
    assert set(found["stage_s"]) == stages
    # Only the chosen judges were run: 4 waves x 16 prompts x 4 responses, each judged once.
    assert sum(found["forwards"].values()) == 4 * 16 * 4


def test_samples_and_pairs_open_with_datasets(tiny_run: Path) -> None:
    from datasets import load_dataset

    folder = str(tiny_run / "samples")
    samples = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train")
    assert len(samples) == 4 * 16 * 4
    assert {"prompt", "response", "score", "arm", "policy_version", "gold"} <= set(samples[0])
    pairs = load_dataset("parquet", data_files=f"{tiny_run}/pairs/*.parquet", split="train")
    assert {"prompt", "chosen", "rejected"} <= set(pairs[0])
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


def test_the_final_policy_opens_with_transformers_and_vllm(tiny_run: Path, local_ray: None) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from actors.rollout import Rollouts
    from rlhf_ray.config.schema import Rollouts as Settings
    from rlhf_ray.config.schema import Timeouts
    from rlhf_ray.data.chat import Chat
    from rlhf_ray.gold.families import make_prompt

    final = str(tiny_run / "final")
    assert AutoModelForCausalLM.from_pretrained(final).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(final).decode([1, 4]) != ""
    assert "rlhf_ray" in (tiny_run / "final" / "README.md").read_text()
    engine = Rollouts(
        final, Chat.load(final), Settings(threads=1), Timeouts(engine_s=300), max_model_len=32,
        precision="fp32", backend="host", seed=0,
    )  # fmt: skip
    assert engine.generate("test", [make_prompt("sort", "badce")], samples=2)[0].responses[0].text


def test_judges_open_as_classifiers_with_one_label(tiny_run: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny_run / "judges" / "sort_judge"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    verify_manifest(folder)


def test_the_report_is_one_file_that_loads_nothing(tiny_run: Path) -> None:
    page = (tiny_run / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_finished_run_is_not_run_again(tiny_run: Path) -> None:
    before = (tiny_run / "summary.json").read_bytes()
    again = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(tiny_run), *TINY)
    assert (again.returncode, "finished" in again.stdout) == (0, True)
    assert (tiny_run / "summary.json").read_bytes() == before


def test_another_recipe_in_the_same_folder_is_refused(tiny_run: Path) -> None:
    other = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(tiny_run), *TINY, "seed=9")
    assert other.returncode == 78
    assert "seed: 1 there, 9 now" in other.stderr


def test_status_and_report_read_a_run_folder(tiny_run: Path) -> None:
    assert "completed" in rlhf_ray("status", str(tiny_run)).stdout
    made = rlhf_ray("report", str(tiny_run)).stdout.strip()
    assert Path(made) == tiny_run / "report.html"


def test_a_driver_killed_again_and_again_ends_where_an_unbroken_run_ends(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder, asked = tmp_path / "run", ["-c", "configs/demo.yaml", *TINY]
    for seen in (
        '"key":"r000-w000","kind":"rollouts"',  # sampled, not yet judged
        '"key":"r000-w001","kind":"learn"',  # trained and paid, no checkpoint yet
        '"key":"r001-w000","kind":"checkpoint"',  # between two waves
    ):
        killed_when(seen, folder, *asked)
    resumed = rlhf_ray("run", "--run-dir", str(folder), *asked)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [one for one in compare(tiny_run, folder) if not one.equal] == []


def test_a_finished_run_without_its_policy_does_not_say_that_all_is_well(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "final")
    found = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY)
    assert found.returncode == 65
    assert "is finished, but its final/ is gone" in found.stderr


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").unlink()
    found = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY)
    assert found.returncode == 65
    assert "restore it from a copy" in found.stderr
