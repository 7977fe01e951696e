import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.data.preferences import keyed_order, load_examples, load_preferences
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Example, Preference

USER = {"role": "user", "content": "Why?"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(folder: Path, *records: dict[str, Any]) -> Path:
    file = folder / "p.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records))
    return file


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": [USER], "chosen": [says("So.")], "rejected": [says("No.")]},
        {"chosen": [USER, says("So.")], "rejected": [USER, says("No.")]},
        {"prompt": "Why?", "chosen": [USER, says("So.")], "rejected": [USER, says("No.")]},
    ],
)
def test_a_pair_is_the_same_in_each_way_to_write_it(tmp_path: Path, record: dict[str, Any]) -> None:
    write(tmp_path, record)
    expected = [Preference("p:1", "Why?", "So.", "No.", "p")]
    assert load_preferences("p.jsonl", tmp_path) == expected


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "field 'prompt' is missing"),
        ({"prompt": "?", "chosen": "a"}, "field 'rejected' is missing"),
        ({"prompt": "?", "chosen": "a", "rejected": ""}, "field 'rejected' is empty"),
        ({"prompt": "?", "chosen": "a", "rejected": "a "}, "chosen and rejected are equal"),
        (
            {"prompt": "?", "chosen": [USER, says("a")], "rejected": "b"},
            "'chosen' begins with another text than 'prompt'",
        ),
        (
            {"chosen": [USER, says("a")], "rejected": [{**USER, "content": "Who?"}, says("b")]},
            "answer different prompts",
        ),
        (
            {"chosen": [USER, says("a"), USER, says("b")], "rejected": [USER, says("c")]},
            "must be one exchange (user, assistant), got user, assistant, user, assistant",
        ),
        ({"prompt": "?", "chosen": [], "rejected": "b"}, "got no message"),
        ({"prompt": "?", "chosen": 1, "rejected": "b"}, "field 'chosen' is a number (1)"),
        ({"id": "x", "prompt": "?", "chosen": "a", "rejected": "b"}, "id 'x' is already taken"),
    ],
)
def test_a_record_that_is_no_pair_is_named(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    file = write(tmp_path, {"id": "x", "prompt": "?", "chosen": "a", "rejected": "b"}, record)
    with pytest.raises(BadData) as caught:
        load_preferences("p.jsonl", tmp_path)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert said in str(caught.value)


def test_pairs_of_other_sources_are_left_out(tmp_path: Path) -> None:
    pair = {"prompt": "?", "chosen": "a", "rejected": "b"}
    write(tmp_path, {**pair, "source": "one"}, {**pair, "source": "two"})
    assert [pair.source for pair in load_preferences("p.jsonl", tmp_path, ["two"])] == ["two"]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "response": "So."},
        {"prompt": "Why?", "completion": "So."},
        {"prompt": [USER], "completion": [says("So.")]},
        {"messages": [USER, says("So.")]},
    ],
)
def test_a_demonstration_is_the_same_in_each_way_to_write_it(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    write(tmp_path, record)
    assert load_examples("p.jsonl", tmp_path) == [Example("Why?", "So.", "p")]


def test_a_demonstration_without_a_response_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "Why?"})
    with pytest.raises(BadData) as caught:
        load_examples("p.jsonl", tmp_path)
    assert f"{file}:1: field 'response' is missing; the record has prompt" in str(caught.value)


def test_each_epoch_has_its_own_order_of_the_same_items() -> None:
    first, second = (keyed_order(20, seed=1, purpose="judge", epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()
    assert first.tolist() == keyed_order(20, seed=1, purpose="judge", epoch=0).tolist()
