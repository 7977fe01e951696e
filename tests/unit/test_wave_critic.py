"""Who gets critiques in a wave, and when failing ones end the run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rlhf_ray.critiques.cache import CritiqueCache
from rlhf_ray.critiques.endpoint import EndpointCritic
from rlhf_ray.critiques.pairs import with_critiques
from rlhf_ray.critiques.template import template_of
from rlhf_ray.critiques.wave import NoCritic, WaveCritic
from rlhf_ray.critiques.writer import (
    TOO_LONG,
    Ask,
    Complete,
    Completion,
    Control,
    CritiqueWriter,
)
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Choices, Preference, Prompt, Response, Rollout, Step
from rlhf_ray.remote.client import Failed

STEP = Step(0, 0, 0)


def rollout(name: str, version: int = 0) -> Rollout:
    texts = (f"{name}-x", f"{name}-y")
    responses = tuple(Response(t, (1,), np.zeros(1, np.float32), True) for t in texts)
    return Rollout(Prompt(name, f"ask {name}", "s"), (1,), responses, version)


def choices(*asked: Sequence[bool]) -> Choices:
    table = np.array(asked)
    return Choices(np.zeros((len(table), 1), np.float32), table, ("plain", "reader"),
                   np.ones(len(table)))  # fmt: skip


class Critic:
    """Says how long the question is; fails for questions with an `x`."""

    def __init__(self, fails: bool = False, why: str = "timeout") -> None:
        self.fails, self.why, self.asked = fails, why, 0

    def complete(self, asks: Sequence[Ask]) -> list[Completion]:
        self.asked += len(asks)
        return [
            Completion("", 0, self.why)
            if self.fails and "-x" in ask.text
            else Completion(f"{len(ask.text)} letters", 2, "ok")
            for ask in asks
        ]


def wave(
    critic: Critic | EndpointCritic,
    max_failed: float = 0.0,
    *,
    named: Callable[[], str] | None = None,
    control: Control = "none",
) -> WaveCritic:
    complete: Complete = critic.complete
    writer = CritiqueWriter(complete, template=template_of("terse-1"), critic="c", control=control,
                            cache=CritiqueCache(None), max_tokens=8, seed=0)  # fmt: skip
    return WaveCritic(writer, ["reader"], max_failed, named=named)


def test_only_prompts_whose_judge_reads_critiques_get_them() -> None:
    found = wave(Critic()).write(
        STEP, choices([True, False], [False, True]), [rollout("a"), rollout("b")]
    )
    assert found.texts[0] == ["", ""]
    assert all("letters" in text for text in found.texts[1])
    assert (dict(found.outcomes), found.tokens) == ({"ok": 2}, 4)


def test_failed_critiques_beyond_the_limit_end_the_run() -> None:
    table = choices([False, True])
    with pytest.raises(BadData, match=r"1 of 2 critiques failed \(1 timeout\)"):
        wave(Critic(fails=True), 0.4).write(STEP, table, [rollout("a")])
    found = wave(Critic(fails=True), 0.5).write(STEP, table, [rollout("a")])
    assert found.texts[0][0] == ""
    assert dict(found.outcomes) == {"ok": 1, "timeout": 1}


def test_questions_that_are_too_long_name_the_setting_that_makes_room() -> None:
    failing = wave(Critic(fails=True, why=TOO_LONG))
    with pytest.raises(BadData, match=r"for too_long: critic\.max_question_tokens$"):
        failing.write(STEP, choices([False, True]), [rollout("a")])


def test_a_policy_that_criticises_itself_is_asked_again_when_it_has_learnt() -> None:
    critic = Critic()
    versions = iter(("v0", "v0", "v1", "v1"))
    own = wave(critic, named=lambda: next(versions))
    for asked in (2, 2, 4):
        own.write(STEP, choices([False, True]), [rollout("a")])
        assert critic.asked == asked
    own.write_all([rollout("a").prompt], [["a-x", "a-y"]])
    assert critic.asked == 4, "pairs are criticised by the same version"


def test_without_readers_nothing_is_written() -> None:
    found = NoCritic().write(STEP, choices([True, False]), [rollout("a")])
    assert (found.texts, dict(found.outcomes), found.tokens) == ([["", ""]], {}, 0)


def test_pairs_get_both_critiques_and_keep_what_they_have() -> None:
    critic = Critic()
    bare = Preference("p", "ask", "yes", "no", "s")
    known = Preference("q", "ask", "yes", "no", "s", "good", "bad")
    done = with_critiques([bare, known], wave(critic).write_all)
    assert done[1] == known
    assert "letters" in done[0].chosen_critique
    assert "letters" in done[0].rejected_critique
    assert critic.asked == 2


def test_a_pair_with_one_critique_keeps_it_and_only_the_other_is_written() -> None:
    critic = Critic()
    half = Preference("p", "ask", "yes", "no", "s", chosen_critique="good")
    (done,) = with_critiques([half], wave(critic).write_all)
    assert done.chosen_critique == "good"
    assert "letters" in done.rejected_critique
    assert critic.asked == 1


def test_a_control_holds_for_critiques_of_a_file_too() -> None:
    pairs = [
        Preference("p", "ask", "yes", "no", "s"),
        Preference("q", "ask", "yes", "no", "s", "good", "bad"),
    ]
    done = with_critiques(pairs, wave(Critic(), control="constant").write_all)
    assert [(one.chosen_critique, one.rejected_critique) for one in done] == [("!", "!")] * 2
    done = with_critiques(pairs[1:], wave(Critic(), control="shuffled").write_all)
    assert [(one.chosen_critique, one.rejected_critique) for one in done] == [("bad", "good")]


def test_one_exchange_in_two_pairs_keeps_the_critique_of_each() -> None:
    pairs = [
        Preference("p", "ask", "yes", "no", "s", "good", "bad"),
        Preference("q", "ask", "yes", "no", "s", "fine", "poor"),
    ]
    assert with_critiques(pairs, wave(Critic()).write_all) == pairs


def test_a_service_that_is_down_is_not_waited_for_again_and_again() -> None:
    class Down:
        asked = 0

        def post(self, path: str, body: Any, *, within_s: float) -> Any:
            self.asked += 1
            raise Failed("refused", "nobody is there")

    down = Down()
    critic = EndpointCritic(down, model="m", temperature=0.0, max_tokens=8, seed=0, concurrency=2,
                            deadline_s=60)  # fmt: skip
    prompts = [Prompt(f"{n}", f"ask {n}", "s") for n in range(50)]
    why = r"([56]) of 100 critiques failed \(\1 refused; 9[45] more were not sent\); allowed is"
    why += r" a share of 0\.04; first: nobody is there\. Look after"
    with pytest.raises(BadData, match=why):
        wave(critic, 0.04).write_all(prompts, [["x", "y"]] * 50)
    assert down.asked in (5, 6)
