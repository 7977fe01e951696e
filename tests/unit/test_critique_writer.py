"""Is each response criticised once, as itself, and are failures counted and never remembered?"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.critiques.cache import CritiqueCache
from rlhf_ray.critiques.endpoint import MALFORMED, Client, EndpointCritic
from rlhf_ray.critiques.template import TEMPLATES
from rlhf_ray.critiques.writer import Ask, Asks, Completion, Control, CritiqueWriter
from rlhf_ray.messages import Prompt
from rlhf_ray.remote.client import Failed

TERSE = TEMPLATES["terse-1"]
PROMPTS = [Prompt(name, f"{name}=", "letters") for name in "xyz"]
RESPONSES = [["a", "b"], ["a", "a"], ["c", "d"]]
ALL = [True, True, True]


class Echo:
    """Says of `x=a?` that it is `x=a`, in as many tokens; some responses make it fail."""

    def __init__(self, **outcomes: str) -> None:
        self.outcomes, self.asked = outcomes, list[list[Ask]]()

    def __call__(self, asks: Sequence[Ask]) -> list[Completion]:
        self.asked.append(list(asks))
        return [self._one(ask.text.removesuffix("?")) for ask in asks]

    def _one(self, text: str) -> Completion:
        outcome = self.outcomes.get(text[-1], "ok")
        return Completion("  " if outcome == "blank" else f" {text}\n", len(text),
                          "ok" if outcome == "blank" else outcome)  # fmt: skip

    def texts(self) -> list[str]:
        return [ask.text for batch in self.asked for ask in batch]


def writer(
    complete: Echo,
    cache: CritiqueCache | None = None,
    *,
    control: Control = "none",
    seed: int = 0,
    **changed: Any,
) -> CritiqueWriter:
    settings = {"template": TERSE, "critic": "me", "max_tokens": 8} | changed
    return CritiqueWriter(
        complete, cache=cache or CritiqueCache(None), control=control, seed=seed, **settings
    )


def test_every_wanted_response_gets_its_critique_and_equal_ones_are_asked_once() -> None:
    critic = Echo()
    written = writer(critic).write(PROMPTS, RESPONSES, [True, True, False])
    assert written.texts == [["x=a", "x=b"], ["y=a", "y=a"], ["", ""]]
    assert critic.texts() == ["x=a?", "x=b?", "y=a?"]
    assert (written.outcomes, written.tokens) == ({"ok": 4}, 9)
    assert written.seconds >= 0.0


def test_equal_texts_of_two_prompts_are_one_exchange() -> None:
    critic = Echo()
    twins = [Prompt("1", "x=", "one"), Prompt("2", "x=", "other")]
    assert writer(critic).write(twins, [["a"], ["a"]], [True, True]).texts == [["x=a"], ["x=a"]]
    assert critic.texts() == ["x=a?"]


def test_what_is_known_is_not_asked_again_and_counts_as_if_it_were(tmp_path: Path) -> None:
    first = writer(Echo(), CritiqueCache(tmp_path)).write(PROMPTS[:1], RESPONSES[:1], [True])
    critic = Echo()
    both = writer(critic, CritiqueCache(tmp_path)).write(PROMPTS, RESPONSES, ALL)
    assert both.texts[0] == first.texts[0]
    assert critic.texts() == ["y=a?", "z=c?", "z=d?"]
    assert (both.tokens, both.outcomes) == (5 * 3, {"ok": 6})
    critic = Echo()
    again = writer(critic, CritiqueCache(tmp_path)).write(PROMPTS, RESPONSES, ALL)
    assert (again.texts, again.tokens, critic.asked) == (both.texts, 5 * 3, [])


def test_a_kill_after_some_critiques_were_kept_changes_nothing_that_is_recorded(
    tmp_path: Path,
) -> None:
    whole = writer(Echo()).write(PROMPTS, RESPONSES, ALL)
    # What a killed wave leaves behind: critiques that no journal knows of.
    writer(Echo(), CritiqueCache(tmp_path)).write(PROMPTS[:2], RESPONSES[:2], ALL[:2])
    resumed = writer(Echo(), CritiqueCache(tmp_path)).write(PROMPTS, RESPONSES, ALL)
    assert asdict(replace(resumed, seconds=0.0)) == asdict(replace(whole, seconds=0.0))


@pytest.mark.parametrize(
    "changed", [{"critic": "you"}, {"max_tokens": 9}, {"decoding": "hot"},
                {"template": TEMPLATES["review-1"]}],
)  # fmt: skip
def test_another_critic_or_another_way_to_ask_knows_nothing(changed: dict[str, Any]) -> None:
    cache, critic = CritiqueCache(None), Echo()
    writer(Echo(), cache).write(PROMPTS, RESPONSES, ALL)
    writer(critic, cache, **changed).write(PROMPTS, RESPONSES, ALL)
    assert len(critic.texts()) == 5


def test_failures_read_as_empty_are_counted_by_kind_and_asked_again() -> None:
    cache, critic = CritiqueCache(None), Echo(a="timeout", b="http_500", c="blank")
    written = writer(critic, cache).write(PROMPTS, RESPONSES, ALL)
    assert written.texts == [["", ""], ["", ""], ["", "z=d"]]
    assert written.outcomes == {"empty": 1, "http_500": 1, "ok": 1, "timeout": 3}
    assert written.tokens == 5 * 3
    healthy = Echo()
    again = writer(healthy, cache).write(PROMPTS, RESPONSES, ALL)
    # The empty one was an answer: it is remembered.
    assert healthy.texts() == ["x=a?", "x=b?", "y=a?"]
    assert again.texts == [["x=a", "x=b"], ["y=a", "y=a"], ["", "z=d"]]
    assert again.outcomes == {"empty": 1, "ok": 5}


def test_an_ask_is_named_by_its_content_whatever_its_batch() -> None:
    together, alone = Echo(), Echo()
    writer(together).write(PROMPTS, RESPONSES, ALL)
    writer(alone).write(PROMPTS[1:2], [["a"]], [True])
    ids = {ask.text: ask.id for ask in together.asked[0]}
    assert alone.asked[0] == [Ask(ids["y=a?"], "y=a?")]
    assert len(set(ids.values())) == 5


@given(st.randoms(use_true_random=False), st.sampled_from(["none", "shuffled", "constant"]))
def test_the_order_of_prompts_and_responses_does_not_matter(
    lots: random.Random, control: Control
) -> None:
    def read(rows: list[tuple[Prompt, list[str]]]) -> dict[tuple[str, str], str]:
        prompts, responses = [row[0] for row in rows], [row[1] for row in rows]
        texts = writer(Echo(b="timeout"), control=control).write(prompts, responses, ALL).texts
        return {
            (prompt.id, response): text
            for prompt, row, found in zip(prompts, responses, texts, strict=True)
            for response, text in zip(row, found, strict=True)
        }

    rows = list(zip(PROMPTS, RESPONSES, strict=True))
    mixed = [(prompt, lots.sample(row, len(row))) for prompt, row in lots.sample(rows, 3)]
    assert read(rows) == read(mixed)


@given(st.integers(0, 2**32), st.integers(2, 9))
def test_shuffled_gives_everybody_the_critique_of_somebody_else(seed: int, count: int) -> None:
    responses = ["abcdefghi"[i] for i in range(count)]
    shuffled = writer(Echo(), control="shuffled", seed=seed)
    (texts,) = shuffled.write(PROMPTS[:1], [responses], [True]).texts
    own = [f"x={response}" for response in responses]
    assert sorted(texts) == own
    assert all(text != mine for text, mine in zip(texts, own, strict=True))


def test_the_seed_decides_who_is_given_whose() -> None:
    def texts(seed: int) -> list[list[str]]:
        rows = writer(Echo(), control="shuffled", seed=seed)
        return rows.write(PROMPTS[:1], [list("abcdefgh")], [True]).texts

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_somebody_alone_has_nobody_to_swap_with() -> None:
    alone = writer(Echo(), control="shuffled").write(PROMPTS[:1], [["a", "a"]], [True])
    assert alone.texts == [["x=a", "x=a"]]


def test_shuffling_leaves_out_those_that_nobody_reads() -> None:
    written = writer(Echo(), control="shuffled").write(PROMPTS, RESPONSES, [True, False, False])
    assert written.texts == [["x=b", "x=a"], ["", ""], ["", ""]]


def test_constant_tells_everybody_the_same() -> None:
    written = writer(Echo(a="timeout"), control="constant").write(
        PROMPTS, RESPONSES, [True, True, False]
    )
    assert written.texts == [["!", "!"], ["!", "!"], ["", ""]]
    assert written.outcomes == {"ok": 1, "timeout": 3}


@pytest.mark.parametrize("control", ["shuffled", "constant"])
def test_the_cache_holds_the_real_critiques_under_every_control(control: Control) -> None:
    cache = CritiqueCache(None)
    writer(Echo(), cache, control=control).write(PROMPTS, RESPONSES, ALL)
    critic = Echo()
    written = writer(critic, cache).write(PROMPTS, RESPONSES, ALL)
    assert critic.asked == []
    assert written.texts == [["x=a", "x=b"], ["y=a", "y=a"], ["z=c", "z=d"]]


BROUGHT = [["A", ""], ["", "B"], ["", ""]]
"""Critiques that come from elsewhere; `y=a` stands twice, once with one."""


def test_what_a_response_brings_is_neither_asked_nor_remembered_and_costs_nothing() -> None:
    critic, cache = Echo(), CritiqueCache(None)
    written = writer(critic, cache).write(PROMPTS, RESPONSES, ALL, BROUGHT)
    assert written.texts == [["A", "x=b"], ["y=a", "B"], ["z=c", "z=d"]]
    assert critic.texts() == ["x=b?", "y=a?", "z=c?", "z=d?"]
    assert (written.outcomes, written.tokens) == ({"ok": 6}, 4 * 3)
    own = writer(Echo(), cache).write(PROMPTS, RESPONSES, ALL)
    assert own.texts == [["x=a", "x=b"], ["y=a", "y=a"], ["z=c", "z=d"]]


def test_a_control_stands_in_place_of_what_a_response_brings_too() -> None:
    constant = writer(Echo(), control="constant").write(PROMPTS, RESPONSES, ALL, BROUGHT)
    assert constant.texts == [["!", "!"]] * 3
    shuffled = writer(Echo(), control="shuffled").write(PROMPTS, RESPONSES, ALL, BROUGHT)
    plain = ["A", "x=b", "y=a", "B", "z=c", "z=d"]
    given = [text for row in shuffled.texts for text in row]
    assert sorted(given) == sorted(plain)
    assert all(text != own for text, own in zip(given, plain, strict=True))


def test_where_nothing_is_wanted_nobody_is_asked() -> None:
    critic = Echo()
    written = writer(critic).write(PROMPTS, RESPONSES, [False] * 3)
    assert (written.texts, written.outcomes, critic.asked) == ([["", ""]] * 3, {}, [])


def test_a_critic_that_answers_too_little_is_noticed() -> None:
    short = CritiqueWriter(
        lambda asks: [], template=TERSE, critic="me", cache=CritiqueCache(None), max_tokens=8,
        seed=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="zip"):
        short.write(PROMPTS, RESPONSES, ALL)


class Service:
    """An OpenAI-compatible service: answers with what `answers` holds under the message."""

    def __init__(self, answers: dict[str, Any], *, together: int = 1) -> None:
        self.answers, self.bodies = answers, dict[str, dict[str, Any]]()
        self.barrier = Barrier(together)

    def post(self, path: str, body: Any, *, within_s: float) -> Any:
        assert path == "/v1/chat/completions"
        (message,) = body["messages"]
        assert message["role"] == "user"
        self.bodies[message["content"]] = body
        self.barrier.wait(timeout=10)
        answer = self.answers[message["content"]]
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(text: Any, tokens: Any = 3) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": tokens}}


def endpoint(service: Client, *, seed: int = 0, concurrency: int = 1) -> EndpointCritic:
    return EndpointCritic(
        service, model="m", temperature=0.5, max_tokens=7, seed=seed, concurrency=concurrency,
        deadline_s=60,
    )  # fmt: skip


def test_an_endpoint_is_told_how_to_write_and_with_which_seed() -> None:
    service = Service({"p": says("good")})
    assert endpoint(service).complete(Asks([Ask("id", "p")])) == [Completion("good", 3, "ok")]
    body = service.bodies["p"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 7)
    seeds = {0 <= body["seed"] < 2**31: body["seed"]}
    for name, seed in (("id", 0), ("id", 1), ("other", 0)):
        endpoint(service, seed=seed).complete(Asks([Ask(name, "p")]))
        seeds[(name, seed)] = service.bodies["p"]["seed"]
    assert seeds[True] == seeds["id", 0]
    assert len({seeds["id", 0], seeds["id", 1], seeds["other", 0]}) == 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(None, 0), Completion("", 0, "ok")),
        ({"choices": [{"message": {"content": "x"}}]}, Completion("x", 0, "ok")),
        ({"choices": []}, MALFORMED),
        ({"error": "no"}, MALFORMED),
        ([1], MALFORMED),
        (math.nan, MALFORMED),
        (says(["x"]), MALFORMED),
        (says(math.nan), MALFORMED),
        (says("x", "many"), MALFORMED),
        (says("x", math.nan), MALFORMED),
        (Failed("timeout", "late"), Completion("", 0, "timeout", "late")),
    ],
)
def test_an_answer_without_text_says_why(answer: Any, expected: Completion) -> None:
    assert endpoint(Service({"p": answer})).complete(Asks([Ask("id", "p")])) == [expected]


def test_answers_keep_their_places_and_three_are_under_way_at_a_time() -> None:
    texts = [f"{number}" for number in range(6)]
    service = Service({text: says(text) for text in texts}, together=3)
    # The service answers nobody before three have asked.
    found = endpoint(service, concurrency=3).complete(Asks(Ask(text, text) for text in texts))
    assert [one.text for one in found] == texts


class Down:
    """A service that does not answer its requests of these numbers in time."""

    def __init__(self, *late: int) -> None:
        self.late, self.asked = late, list[str]()

    def post(self, path: str, body: Any, *, within_s: float) -> Any:
        self.asked.append(body["messages"][0]["content"])
        if len(self.asked) in self.late:
            raise Failed("timeout", "late")
        return says("good")


@pytest.mark.parametrize(("allowed", "asked"), [(0.0, 2), (1.0, 3), (1.9, 3), (2.0, 4)])
def test_once_too_many_failed_nobody_else_is_asked(allowed: float, asked: int) -> None:
    service = Down(2, 3, 4, 5, 6)
    asks = Asks((Ask(text, text) for text in "abcdef"), allowed)
    found = endpoint(service).complete(asks)
    assert len(service.asked) == asked
    expected = ["ok", *["timeout"] * (asked - 1), *["not_sent"] * (6 - asked)]
    assert [one.outcome for one in found] == expected


def test_without_a_limit_everybody_is_asked() -> None:
    service = Down(2, 3, 4, 5, 6)
    endpoint(service).complete(Asks(Ask(text, text) for text in "abcdef"))
    assert service.asked == list("abcdef")


def test_a_failure_that_is_allowed_among_all_responses_stops_nothing() -> None:
    cache, service = CritiqueCache(None), Down(1)
    writer(Echo(b="timeout", d="timeout"), cache).write(PROMPTS, RESPONSES, ALL)
    late = CritiqueWriter(
        endpoint(service).complete, template=TERSE, critic="me", cache=cache, max_tokens=8, seed=0
    )
    # Two of six are asked, and one of them fails: half of those, but a sixth of all.
    written = late.write(PROMPTS, RESPONSES, ALL, max_failed=1 / 6)
    assert service.asked == ["x=b?", "z=d?"]
    assert written.outcomes == {"ok": 5, "timeout": 1}
