"""Is the best response found, in as many comparisons as are promised?"""

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.rewards.best_of import Game, Play, linear_scan, play_all, tournament

ORDERS = st.integers(1, 40).flatmap(lambda n: st.permutations(range(n)))
Beats = Callable[[int, int], bool]


def by_scores(scores: Sequence[float]) -> Beats:
    return lambda i, j: scores[i] > scores[j]


def ended(play: Play, beats: Beats) -> tuple[int, list[list[Game]]]:
    """The winner of one play, and the games of each call."""
    calls: list[list[Game]] = []

    def asked(games: Sequence[tuple[int, Game]]) -> list[bool]:
        assert {number for number, _ in games} == {0}
        calls.append([game for _, game in games])
        return [beats(*game) for game in calls[-1]]

    (winner,) = play_all([play], asked)
    return winner, calls


@given(ORDERS)
def test_both_find_the_best_of_transitive_preferences(order: list[int]) -> None:
    best = order.index(max(order))
    assert ended(linear_scan(len(order)), by_scores(order))[0] == best
    assert ended(tournament(len(order)), by_scores(order))[0] == best


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_both_find_one_of_the_best_where_some_tie(scores: list[int]) -> None:
    for play in (linear_scan(len(scores)), tournament(len(scores))):
        assert scores[ended(play, by_scores(scores))[0]] == max(scores)


@given(st.integers(1, 12), st.data())
def test_both_end_with_any_preferences_after_n_minus_1_games(n: int, data: st.DataObject) -> None:
    pairs = [(i, j) for j, i in combinations(range(n), 2)]
    wins = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    table = dict(zip(pairs, wins, strict=True))
    for play in (tournament(n), linear_scan(n)):
        winner, calls = ended(play, lambda i, j: table[i, j])
        played = [game for call in calls for game in call]
        assert len(played) == n - 1
        met = [game for game in played if winner in game]
        assert met or n == 1
        assert all(table[i, j] == (i == winner) for i, j in met)


def test_a_circle_is_decided_by_who_meets_whom() -> None:
    circle = {(1, 0): True, (2, 1): True, (2, 0): False}  # 1 beats 0, 2 beats 1, 0 beats 2
    assert ended(linear_scan(3), lambda i, j: circle[i, j]) == (2, [[(1, 0)], [(2, 1)]])
    assert ended(tournament(3), lambda i, j: circle[i, j]) == (2, [[(1, 0)], [(2, 1)]])


def test_an_odd_one_out_plays_first_on_the_next_level() -> None:
    winner, levels = ended(tournament(7), by_scores([5, 4, 3, 2, 1, 0, 6]))
    assert winner == 6
    assert levels == [[(1, 0), (3, 2), (5, 4)], [(6, 0), (4, 2)], [(6, 2)]]


@pytest.mark.parametrize(("n", "levels"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)])
def test_a_tournament_asks_once_per_level(n: int, levels: int) -> None:
    winner, asked = ended(tournament(n), by_scores(range(n)))
    assert winner == n - 1
    assert len(asked) == levels


def test_a_tie_keeps_the_earlier_response() -> None:
    assert ended(linear_scan(4), by_scores([1, 1, 1, 1]))[0] == 0
    assert ended(tournament(4), by_scores([1, 1, 1, 1]))[0] == 0


def test_the_games_of_many_plays_are_asked_together() -> None:
    scores = [[0, 1, 2, 3], [5], [7, 6], [0, 2, 1]]
    calls: list[list[tuple[int, Game]]] = []

    def beats(games: Sequence[tuple[int, Game]]) -> list[bool]:
        calls.append(list(games))
        return [scores[number][i] > scores[number][j] for number, (i, j) in games]

    assert play_all([tournament(len(one)) for one in scores], beats) == [3, 0, 0, 1]
    assert calls == [
        [(0, (1, 0)), (0, (3, 2)), (2, (1, 0)), (3, (1, 0))],
        [(0, (3, 1)), (3, (2, 1))],
    ]
    assert play_all([linear_scan(len(one)) for one in scores], beats) == [3, 0, 0, 1]
    assert [len(call) for call in calls[2:]] == [3, 2, 1]
    assert play_all([], beats) == []
