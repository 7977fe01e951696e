"""Which prompts with several responses do the user's files hold?"""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.data.contests import Contest, load_contests
from rlhf_ray.errors import BadData

RANKED = {
    "id": "17", "prompt": "2 + 2?", "chosen": ["4"], "rejected": ["5", "3", "22"],
    "num_correct": 1, "num_incorrect": 3, "subset": "Math",
}  # fmt: skip
STYLED = {
    "id": 3, "prompt": "Why?", "chosen": ["a", "a a", "# a"], "rejected": ["b", "b b", "# b"],
    "domain": "chat",
}  # fmt: skip


def load(folder: Path, *rows: Any) -> list[Contest]:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text)
    return load_contests("samples.jsonl", folder)


def test_responses_are_texts_or_messages_of_the_assistant(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "two"}
    one = {"prompt": [{"role": "user", "content": "Why?"}], "responses": ["one", said, [said], ""]}
    assert load(tmp_path, one, {"id": 7, "source": "me", "prompt": "p", "responses": ["r"]}) == [
        Contest("samples:1", "Why?", "samples", ("one", "two", "two", "")),
        Contest("7", "p", "me", ("r",)),
    ]


def test_labelled_records_are_read_as_judges_are_measured_on_them(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", "rejected_critique": "bad"}
    best, styled, two = load(tmp_path, RANKED, STYLED, pair)
    assert (best.id, best.responses, best.right) == (
        "17", ("4", "5", "3", "22"), (True, False, False, False),
    )  # fmt: skip
    assert (styled.responses[3], styled.right) == ("b", (True,) * 3 + (False,) * 3)
    assert two.texts() == [("c", ""), ("r", "bad")]


def test_equal_responses_play_once_in_the_first_ones_place() -> None:
    assert Contest("1", "p", "s", ("b", "a", "b", "c", "a")).played() == [0, 1, 3]
    same = Contest("1", "p", "s", ("b", "b", "b"), critiques=("x", "y", "x"))
    assert same.played() == [0, 1], "a judge may tell them apart by their critiques"


def test_labelled_responses_play_in_a_drawn_order_so_that_ties_tell_nothing() -> None:
    texts, right = ("a", "b", "c", "d"), (True, False, False, False)
    orders = [Contest(str(n), "p", "s", texts, right).played() for n in range(400)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in orders)
    first = sum(one[0] == 0 for one in orders) / 400
    assert first == pytest.approx(0.25, abs=0.065)  # three standard errors
    assert orders[7] == Contest("7", "p", "s", texts, right).played()


BAD: list[tuple[Any, str]] = [
    ({"prompt": "p"}, "has no 'responses' to pick from; write prompt and responses"),
    ({"prompt": "p", "responses": []}, "'responses' must be a list of at least one response"),
    ({"prompt": "p", "responses": "r"}, "'responses' must be a list of at least one response"),
    ({"prompt": "p", "responses": ["r", 3]}, r"field 'responses\[1\]' is a number \(3\)"),
    ({"prompt": "p", "responses": ["r", "\ud800"]}, r"'responses\[1\]' holds half a character"),
    ({"responses": ["r"]}, "field 'prompt' is missing"),
    (
        {"prompt": "p", "responses": [{"role": "user", "content": "q"}]},
        r"'responses\[0\]' is a message of the role 'user', it must be the assistant's",
    ),
    (
        {"prompt": "p", "responses": [{"role": "assistant"}]},
        r"field 'responses\[0\].content' is missing",
    ),
    (
        {"prompt": "p", "responses": [[{"role": "user"}, {"role": "assistant"}]]},
        r"'responses\[0\]' is a conversation of 2 messages",
    ),
    ({"prompt": "p", "responses": ["r"], "id": "1"}, "id '1' is already taken at .*:1"),
    (RANKED | {"num_correct": 2}, "field 'num_correct' is 2, but there are 1"),
    ({"prompt": "p", "chosen": ["a"], "rejected": ["b"]}, "fits none of the formats"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(BadData, match=rf"samples.jsonl:2: .*{message}"):
        load(tmp_path, {"id": "1", "prompt": "p", "responses": ["r"]}, row)
