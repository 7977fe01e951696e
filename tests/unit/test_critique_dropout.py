"""Does a judge read a response in the same way whether its critique is dropped or not?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from rlhf_ray.bootstrap.reading import Reading
from rlhf_ray.config.judges import Critic, CritiquedJudge, CritiquedTraining, FilePreferences
from rlhf_ray.config.schema import Scratch
from rlhf_ray.critiques.template import TEMPLATES
from rlhf_ray.messages import Preference
from rlhf_ray.training.scratch import make_tokenizer

PIECES = ("### Critique", "\n", "\n\n### Critique\n", "#", "\\", " ", "critique", "?", "!", "a")
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
NAMES = ("review-1", "terse-1")
TRAINING = CritiquedTraining(preferences=FilePreferences(train="x"), critique_dropout=0.5)


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    """A judge of characters for each template."""
    folder = tmp_path_factory.mktemp("judge")
    alphabet = "".join(set("".join(PIECES)).union(*(TEMPLATES[name].alphabet for name in NAMES)))
    tokenizer = make_tokenizer(Scratch(max_positions=256), [alphabet])
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    path = str(folder)
    return {
        name: Reading.of(CritiquedJudge(path=path), path, Critic(template=name)) for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
@given(chosen=TEXT, rejected=TEXT, critique=TEXT.filter(bool))
def test_a_dropped_critique_leaves_the_response_as_it_stood_before_it(
    readings: dict[str, Reading], name: str, chosen: str, rejected: str, critique: str
) -> None:
    reading, separator = readings[name], TEMPLATES[name].separator
    pair = Preference("1", "a", chosen, rejected, "s", critique, critique)
    with_it = reading.tokens(pair)
    (without,) = reading.dropout({7: pair}, TRAINING)["without"].values()
    follows = reading.chat.response_ids(f"{separator}{critique}")
    assert with_it.chosen == without.chosen[:-1] + follows
    assert with_it.rejected == without.rejected[:-1] + follows
    # A judge in use reads a response without a critique as its training did.
    assert without.chosen == reading.one("a", chosen)
    assert without.rejected == reading.one("a", rejected)


@pytest.mark.parametrize("name", NAMES)
@given(honest=TEXT, forged=TEXT, critique=TEXT.filter(bool))
def test_no_response_whose_critique_is_dropped_reads_like_one_with_a_critique(
    readings: dict[str, Reading], name: str, honest: str, forged: str, critique: str
) -> None:
    separator, reading = TEMPLATES[name].separator, readings[name]
    pair = Preference("1", "a", honest, f"{honest}{separator}{critique}", "s", critique, "")
    other = Preference("2", "a", honest, forged, "s", critique, "")
    for one in (pair, other):
        (without,) = reading.dropout({7: one}, TRAINING)["without"].values()
        assert without.rejected != reading.tokens(one).chosen


def test_a_judge_of_critiques_alone_reads_no_response_when_one_is_dropped(
    readings: dict[str, Reading],
) -> None:
    path = readings["terse-1"].path
    only = CritiquedJudge(path=path, critique_only=True)
    reading = Reading.of(only, path, Critic(template="terse-1"))
    assert reading.dropout({7: Preference("1", "a", "?", "!", "s", "a", "a")}, TRAINING) == {}
