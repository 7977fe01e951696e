"""`rlhf-ray judge best`: is the best response picked, at the cost that is promised?"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_judges import (
    chance,
    chat_of,
    first_label,
    make_judges,
    plain_score,
    write_card,
)

from rlhf_ray import cli
from rlhf_ray.data.contests import load_contests
from rlhf_ray.data.preferences import load_examples
from rlhf_ray.data.verdicts import TEMPLATES
from rlhf_ray.preferences.accuracy import wilson
from rlhf_ray.training.reward_model import load_classifier

Row = dict[str, Any]
SAMPLES: list[Row] = [
    {"prompt": "srt bac=", "responses": ["abc", "cab", "bca", "cba", "acb", "bac", "a"]},
    {"prompt": "rev ab=", "responses": ["ba", "ab", "", "abba"], "source": "reverse"},
    {"prompt": "srt hgf=", "responses": ["fgh"]},
    {"prompt": "srt cdd=", "responses": ["cdd", "d", "cdd", "dcd", "d"]},
    {"prompt": "srt ed=", "responses": ["de", "de"]},
    {"prompt": "rev gh=", "responses": ["gh" * 40, "hg", "h", "g", "gh" * 40]},
    {"prompt": "rev hh=", "responses": ["h" * 60, "hh" * 40]},
]
"""Of the last but one a response is longer than the judges can read, of the last both are."""
RANKED: list[Row] = [
    {
        "id": str(n), "prompt": f"srt {word}=", "chosen": [good], "rejected": bad,
        "num_correct": 1, "num_incorrect": len(bad), "subset": "Math", "source": "RewardBench 2",
    }
    for n, (word, good, bad) in enumerate(
        (word, "".join(sorted(word)), [word, word[1] + word[0] + word[2:], last])
        for word, last in zip(
            ("cba", "hfg", "dab", "egf", "bca", "fed", "hca", "gbe", "dca", "h" * 50 + "a"),
            ("cbaa", "hhfg", "daab", "eeg", "bcac", "fedd", "chca", "ggbe", "ddca", "h"),
            strict=True,
        )
    )
]  # fmt: skip
"""Of the last one most responses are too long."""


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in a folder with data: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RLHF_RAY__")]:
        monkeypatch.delenv(name)
    for name, rows in {"samples.jsonl": SAMPLES, "lists.jsonl": RANKED}.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-ray", "judge", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, printed.out, printed.err

    return call


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_judges(tmp_path_factory.mktemp("runs"))


def rows_of(text: str) -> list[Row]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_scalar_judge_picks_the_highest_of_its_plain_scores(
    command: Command, judges: dict[str, str]
) -> None:
    code, out, err = command("best", "samples.jsonl", "--judge", judges["scalar"])
    assert code == 0, err
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"samples:{n}" for n in range(1, 8)]
    assert [row["forwards"] for row in rows] == [7, 4, 1, 3, 1, 3, 0], "equal ones are read once"
    for row, sample in zip(rows[:5], SAMPLES[:5], strict=True):
        texts = sample["responses"]
        scores = [plain_score(judges["scalar"], sample["prompt"], text) for text in texts]
        np.testing.assert_allclose(row["scores"], scores, atol=1e-5)
        assert row["index"] == texts.index(texts[int(np.argmax(scores))]), "the first of equal ones"
        assert (row["response"], row["prompt"]) == (texts[row["index"]], sample["prompt"])
        assert (row["comparisons"], row["too_long"]) == (0, [])
    assert len({row["index"] for row in rows[:5]}) > 1, "always the same place tests nothing"
    assert (rows[1]["source"], rows[0]["source"]) == ("reverse", "samples")


@pytest.mark.parametrize(
    ("judge", "strategy"),
    [("zeros", "scores"), ("even", "scan"), ("even", "tournament"), ("even", "scores")],
)
def test_ties_keep_the_earlier_response(
    command: Command, judges: dict[str, str], judge: str, strategy: str
) -> None:
    words = ["--judge", judges[judge], "--strategy", strategy]
    code, out, err = command("best", "samples.jsonl", *words)
    assert code == 0, err
    assert [row["index"] for row in rows_of(out)] == [0, 0, 0, 0, 0, 1, None]


def test_what_is_too_long_is_never_picked_and_prompts_without_a_pick_are_named(
    command: Command, judges: dict[str, str], tmp_path: Path
) -> None:
    for judge, forwards in (("scalar", 19), ("gram", 2 * (6 + 3 + 0 + 2 + 0 + 2))):
        words = ["--judge", judges[judge], "--out", f"{judge}.jsonl", "--json", f"{judge}.json"]
        code, out, err = command("best", "samples.jsonl", *words)
        assert code == 0, err
        rows = rows_of((tmp_path / f"{judge}.jsonl").read_text())
        assert (rows[5]["too_long"], rows[6]["too_long"]) == ([0, 4], [0, 1])
        assert rows[5]["index"] in (1, 2, 3)
        assert (rows[6]["index"], rows[6]["response"]) == (None, None)
        assert "1 of 7 prompts have no response that it can read: samples:7" in out
        found = json.loads((tmp_path / f"{judge}.json").read_text())
        assert (found["unreadable"], found["too_long"]) == (["samples:7"], 4)
        counts = found["prompts"], found["responses"], found["different"], found["forwards"]
        assert counts == (7, 26, 22, forwards)
        assert sum(row["forwards"] for row in rows) == forwards
        assert 0.0 < found["seconds"] < 60.0
        assert found["right"] is None


BRACKETS: dict[int, Any] = {
    1: 0, 2: (0, 1), 3: ((0, 1), 2), 4: ((0, 1), (2, 3)), 7: (((0, 1), 6), ((2, 3), (4, 5))),
}  # fmt: skip
"""Who meets whom, by the number of different responses."""


def by_hand(judge: str, strategy: str, prompt: str, texts: Sequence[str]) -> int:
    """The winner among different texts, with one comparison after the other."""

    def won(one: int, other: int) -> int:
        early, late = sorted((one, other))
        return late if chance(judge, prompt, texts[late], texts[early]) > 0.5 else early

    def of(bracket: Any) -> int:
        return bracket if isinstance(bracket, int) else won(*map(of, bracket))

    return reduce(won, range(len(texts))) if strategy == "scan" else of(BRACKETS[len(texts)])


@pytest.mark.parametrize("strategy", ["scan", "tournament"])
def test_a_generative_judge_takes_n_minus_1_comparisons_in_both_orders(
    command: Command, judges: dict[str, str], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr("rlhf_ray.rewards.picks.PIECE", 2)  # a level goes through in several
    words = ["--judge", judges["gram"], "--strategy", strategy]
    code, out, err = command("best", "samples.jsonl", *words)
    assert code == 0, err
    rows = rows_of(out)
    assert [row["comparisons"] for row in rows] == [6, 3, 0, 2, 0, 2, 0]
    assert all(row["forwards"] == 2 * row["comparisons"] for row in rows)
    assert all("scores" not in row for row in rows)
    for row, sample in zip(rows[:5], SAMPLES[:5], strict=True):
        texts = list(dict.fromkeys(sample["responses"]))
        best = texts[by_hand(judges["gram"], strategy, sample["prompt"], texts)]
        assert row["index"] == sample["responses"].index(best)
    assert any(row["index"] for row in rows[:5]), "always the first tests nothing"


def test_one_order_alone_would_pick_another_response(judges: dict[str, str]) -> None:
    """Else the test above would not see whether both orders are asked."""
    prompt, texts = SAMPLES[0]["prompt"], SAMPLES[0]["responses"]
    pairs = list(combinations(texts, 2))
    one = [first_label(judges["gram"], prompt, *pair) > 0.5 for pair in pairs]
    both = [chance(judges["gram"], prompt, *pair) > 0.5 for pair in pairs]
    assert one != both
    assert len(set(both)) == 2


def test_the_comparisons_of_a_level_go_through_together(
    command: Command, judges: dict[str, str]
) -> None:
    words = ["best", "samples.jsonl", "--judge", judges["gram"]]
    _, _, err = command(*words)
    # Of 7, 4, 3, 4 and 2 different responses; one of 1 has no game.
    for level, games in (("1", 3 + 2 + 1 + 2 + 1), ("2", 2 + 1 + 1 + 1), ("3", 1)):
        assert f"gram, level {level}: {games} of {games}" in err
    assert "level 4" not in err
    _, _, err = command(*words, "--strategy", "scan")
    for level, games in enumerate((5, 4, 3, 1, 1, 1), start=1):
        assert f"gram, level {level}: {games} of {games}" in err
    assert "level 7" not in err


def test_all_meet_all_where_a_judge_that_compares_is_to_give_scores(
    command: Command, judges: dict[str, str]
) -> None:
    words = ["--judge", judges["gram"], "--strategy", "scores"]
    code, out, err = command("best", "samples.jsonl", *words)
    assert code == 0, err
    rows = rows_of(out)
    assert [row["comparisons"] for row in rows] == [21, 6, 0, 3, 0, 3, 0]
    assert [row["index"] for row in rows[2:5:2]] == [0, 0]
    assert (rows[2]["scores"], rows[6]["scores"], rows[6]["index"]) == ([None], [None] * 2, None)
    for row, sample in zip(rows[:4:3], SAMPLES[:4:3], strict=True):
        texts = list(dict.fromkeys(sample["responses"]))
        scores = {
            one: np.mean(
                [chance(judges["gram"], sample["prompt"], one, o) for o in texts if o != one]
            )
            for one in texts
        }
        expected = [scores[text] for text in sample["responses"]]
        np.testing.assert_allclose(row["scores"], expected, atol=1e-6)
        assert row["index"] == int(np.argmax(expected))
    assert (rows[5]["scores"][0], rows[5]["scores"][4], rows[5]["too_long"]) == (None, None, [0, 4])
    assert rows[5]["index"] in (1, 2, 3)


def test_the_one_that_won_stays_where_a_comparison_is_too_long(
    command: Command, judges: dict[str, str]
) -> None:
    """Of a long, a middling and a short text the two longer ones do not fit beside each other."""
    chat = chat_of(judges["gram"])
    long, middling, short = "a" * 38, "b" * 34, "c"

    def fits(*pair: str) -> bool:
        tokens = len(chat.prompt_ids(TEMPLATES["terse-1"].ask("ab=", *pair)))
        return tokens <= chat.limit(None) - 1

    assert [fits(long, middling), fits(long, short), fits(middling, short)] == [False, True, True]
    assert chance(judges["gram"], "ab=", long, short) > 0.5, "else the rule is not tested"

    def picked(*texts: str) -> Row:
        Path("three.jsonl").write_text(json.dumps({"prompt": "ab=", "responses": texts}))
        words = ["best", "three.jsonl", "--judge", judges["gram"], "--strategy", "scan"]
        return rows_of(command(*words)[1])[0]

    row = picked(long, short, middling)
    assert (row["response"], row["too_long"], row["comparisons"]) == (long, [2], 1)
    row = picked(long, middling, short)  # neither has won when they meet: the shorter one stays
    assert (row["too_long"], row["comparisons"]) == ([0], 1)
    assert row["response"] in (middling, short)


def test_the_share_of_right_picks_is_what_an_evaluation_says(
    command: Command, judges: dict[str, str], tmp_path: Path
) -> None:
    code, _, err = command("eval", "lists.jsonl", "--judge", judges["scalar"], "--json", "e.json")
    assert code == 0, err
    row = json.loads((tmp_path / "e.json").read_text())["judges"]["scalar"]["overall"]
    words = ["--judge", judges["scalar"], "--json", "b.json", "--out", "b.jsonl"]
    code, out, err = command("best", "lists.jsonl", "samples.jsonl", *words)
    assert code == 0, err
    found = json.loads((tmp_path / "b.json").read_text())
    rows = rows_of((tmp_path / "b.jsonl").read_text())
    # The last one has a readable response, so it has a pick; an evaluation leaves it out.
    picked = [rows[n]["right"] for n in range(10)]
    assert picked[:9].count(True) == round(row["accuracy"] * 9)
    assert 0 < picked[:9].count(True) < 9
    assert (rows[9]["response"], rows[9]["right"]) == ("h", False)
    overall = found["right"]["overall"]
    assert (overall["n"], overall["failed"], overall["chance"]) == (10, 0, 0.25)
    assert overall["accuracy"] == pytest.approx(sum(picked) / 10)
    assert (overall["low"], overall["high"]) == pytest.approx(wilson(sum(picked), 10))
    assert list(found["right"]["by_source"]) == ["RewardBench 2"]
    assert all("right" not in row for row in rows[10:])
    shown = f"{10 * sum(picked):.1f} │ {100 * overall['low']:.1f} to {100 * overall['high']:.1f}"
    assert shown in " ".join(out.split())


def test_a_judge_that_cannot_tell_is_not_right_by_the_order_of_the_file(
    command: Command, judges: dict[str, str], tmp_path: Path
) -> None:
    rows = [{**RANKED[0], "id": str(n)} for n in range(200)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("best", "many.jsonl", "--judge", judges["zeros"], "--json", "found.json")
    overall = json.loads((tmp_path / "found.json").read_text())["right"]["overall"]
    assert overall["accuracy"] == pytest.approx(0.25, abs=0.1)
    assert (overall["low"], overall["high"]) == (0.0, 1.0), "all of one prompt say little"


def test_critiques_are_read_where_the_judge_reads_them(
    command: Command, judges: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "critic"
    shutil.copytree(judges["scalar"], folder)
    write_card(folder, "critiqued", critique_only=True)
    pair = {"prompt": "ab=", "chosen": "aaaa", "rejected": "bbbb"}
    notes = {"chosen_critique": "ef", "rejected_critique": "gh"}
    Path("pairs.jsonl").write_text(json.dumps(pair | notes) + "\n" + json.dumps(pair))
    code, out, err = command("best", "pairs.jsonl", "--judge", str(folder))
    assert code == 0, err
    expected = [plain_score(judges["scalar"], "ab=", note) for note in ("ef", "gh")]
    np.testing.assert_allclose(rows_of(out)[0]["scores"], expected, atol=1e-5)
    assert "It reads critiques: 1 of 2 records have them" in err


def test_a_score_that_is_no_number_ends_it_with_the_name_of_the_prompt(
    command: Command, judges: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(judges["scalar"], tmp_path / "broken")
    model = load_classifier("broken", chat_of(judges["scalar"]).pad_id, new_head=False)
    with torch.no_grad():
        model.score.weight[:] = torch.nan
    model.save_pretrained("broken")
    code, out, err = command("best", "samples.jsonl", "--judge", "broken", "--out", "b.jsonl")
    assert code == 65
    assert "judge 'broken' failed: score nan for prompt" in err
    assert out == ""
    assert not Path("b.jsonl").exists()


def test_what_is_told_goes_aside_where_the_picks_go_to_the_terminal(
    command: Command, judges: dict[str, str]
) -> None:
    words = ["best", "samples.jsonl", "--judge", judges["gram"]]
    _, alone, err = command(*words, "--json", "found.json")
    assert len(rows_of(alone)) == 7
    assert "judge gram (generative), tournament" in err
    assert "found.json" in err
    _, told, _ = command(*words, "--out", "best.jsonl", "--json", "found.json")
    assert Path("best.jsonl").read_text() == alone
    assert "judge gram (generative), tournament" in told
    assert [line for line in told.splitlines() if line.endswith((".json", ".jsonl"))] == [
        "best.jsonl", "found.json",
    ]  # fmt: skip
    assert not list(Path().glob(".*"))


def test_picks_are_demonstrations_that_a_training_reads(
    command: Command, judges: dict[str, str]
) -> None:
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SAMPLES[2:5]))
    words = ["some.jsonl", "--judge", judges["gram"], "--out", "best.jsonl"]
    assert command("best", *words)[0] == 0
    rows = rows_of(Path("best.jsonl").read_text())
    examples = load_examples("best.jsonl", None)
    assert [(one.prompt, one.response) for one in examples] == [
        (row["prompt"], row["response"]) for row in rows
    ]
    assert len(load_contests("some.jsonl")) == len(examples)


BAD: list[tuple[list[str], int, str]] = [
    (["samples.jsonl"], 2, "--judge"),
    (["samples.jsonl", "--judge", "./none"], 65, "judge ./none is not a folder"),
    (["sample.jsonl", "--judge", "cls"], 65, "no file 'sample.jsonl'"),
    (["bad.jsonl", "--judge", "cls"], 65, "bad.jsonl:2: field 'responses' must be a list"),
    (["samples.jsonl", "bad.jsonl", "--judge", "cls"], 65, "bad.jsonl:2: "),
    (["samples.jsonl", "--judge", "cls", "--strategy", "best"], 2, "--strategy"),
    (["samples.jsonl", "--judge", "cls", "--strategy", "scan"], 65, "--strategy scan: judge cls"),
    (["samples.jsonl", "--judge", "cls", "--out", "no/o.jsonl"], 65, "--out no/o.jsonl: there is"),
    (["samples.jsonl", "--judge", "cls", "--out", "samples.jsonl"], 65, "is there already; move"),
    (["samples.jsonl", "--judge", "cls", "--json", "no/f.json"], 65, "--json no/f.json: there is"),
    (["samples.jsonl", "--judge", "cls", "--max-tokens", "0"], 2, "--max-tokens"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_what_cannot_be_is_refused_before_a_model_loads(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    Path("cls").mkdir()
    config = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    Path("cls/config.json").write_text(json.dumps(config))
    Path("bad.jsonl").write_text(json.dumps(SAMPLES[0]) + '\n{"prompt": "p", "responses": 3}\n')
    before = Path("samples.jsonl").read_bytes()
    found, out, err = command("best", *words)
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert out == ""
    assert Path("samples.jsonl").read_bytes() == before


def test_the_command_has_an_example(command: Command) -> None:
    assert "Example: rlhf-ray judge best" in command("best", "--help")[1]
