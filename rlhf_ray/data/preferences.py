"""Which labelled pairs and demonstrations do the user's files hold?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.data import records
from rlhf_ray.data.prompts import prompt_field
from rlhf_ray.data.records import Record
from rlhf_ray.errors import BadData
from rlhf_ray.keys import generator
from rlhf_ray.messages import Example, Preference


def load_preferences(
    name: str, folder: Path | None, sources: Sequence[str] = ()
) -> list[Preference]:
    """Preference pairs in the format TRL reads: `prompt`, `chosen`, `rejected`.

    Each is text or a conversation of one exchange; a conversation in `chosen` and `rejected` may
    begin with the user message, and `prompt` may then be left out. Optional: `id`, `source`.

    Raises BadData naming the place of the first record that cannot be used.
    """
    placed = (
        (where, _preference(record, where)) for where, record in records.read_records(name, folder)
    )
    return records.of_sources(records.distinct(placed), sources, name)


def load_examples(name: str, folder: Path | None, sources: Sequence[str] = ()) -> list[Example]:
    """Demonstrations: `prompt` with `response` or `completion`, or `messages` of one exchange.

    Raises BadData naming the place of the first record that cannot be used.
    """
    examples = [_example(record, where) for where, record in records.read_records(name, folder)]
    return records.of_sources(examples, sources, name)


def keyed_order(n: int, *, seed: int, purpose: str, epoch: int) -> NDArray[np.int64]:
    """[n] the order in which one epoch visits n items."""
    return generator(seed, purpose, epoch).permutation(n)


def _preference(record: Record, where: str) -> Preference:
    prompt, chosen = _exchange(record, "chosen", where)
    same_prompt, rejected = _exchange(record, "rejected", where)
    if prompt != same_prompt:
        raise BadData(f"{where}: chosen and rejected answer different prompts; pair one prompt's")
    if chosen.strip() == rejected.strip():
        raise BadData(f"{where}: chosen and rejected are equal; remove the pair, it says nothing")
    return Preference(
        id=records.label_field(record, "id", where) or records.default_id(where),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        source=_source(record, where),
    )


def _example(record: Record, where: str) -> Example:
    present = [key for key in ("response", "completion", "messages") if record.get(key) is not None]
    prompt, response = _exchange(record, present[0] if present else "response", where)
    return Example(prompt, response, _source(record, where))


def _exchange(record: Record, key: str, where: str) -> tuple[str, str]:
    """Prompt and response, wherever of `prompt` and `key` the prompt stands."""
    if not isinstance(record.get(key), list):
        return prompt_field(record, where), records.text_field(record, key, where)
    turns = records.messages_field(record, key, where)
    match [role for role, _ in turns]:
        case ["assistant"]:
            return prompt_field(record, where), turns[0][1]
        case ["user", "assistant"]:
            return _agreed(record, turns[0][1], key, where), turns[1][1]
        case roles:
            raise BadData(
                f"{where}: field '{key}' must be one exchange (user, assistant), got "
                f"{', '.join(roles) or 'no message'}; write earlier turns into the user message"
            )


def _agreed(record: Record, prompt: str, key: str, where: str) -> str:
    if record.get("prompt") is not None and prompt_field(record, where) != prompt:
        raise BadData(f"{where}: '{key}' begins with another text than 'prompt'; make them equal")
    return prompt


def _source(record: Record, where: str) -> str:
    return records.label_field(record, "source", where) or records.default_source(where)
