"""Which of n responses is best, when a judge can only compare two of them?

Both ways take n - 1 comparisons. With a judge whose preferences are transitive both find the best;
with any other they end all the same, and the winner has beaten whatever it met. A tie keeps the
response that was there earlier. GRAM (arXiv 2506.14175, best-of-n).

A play asks for games and is told who won, so that those of many prompts can be asked at once. Games
are written (i, j), i > j: does response i beat response j?
"""

from collections.abc import Callable, Generator, Sequence

Game = tuple[int, int]
Play = Generator[list[Game], Sequence[bool], int]
"""Yields games, is sent for each whether i beat j, and returns the winner."""


def linear_scan(n: int) -> Play:
    """The winner keeps its place: n - 1 comparisons, each waiting for the one before."""
    assert n >= 1, n
    winner = 0
    for challenger in range(1, n):
        (better,) = yield [(challenger, winner)]
        if better:
            winner = challenger
    return winner


def tournament(n: int) -> Play:
    """Winners meet winners: n - 1 comparisons in ceil(log2 n) levels, each asked at once.

    Where the count is odd the last one meets nobody, and plays first on the next level, so that
    none goes through twice in a row.
    """
    assert n >= 1, n
    left = list(range(n))
    while len(left) > 1:
        paired = len(left) - len(left) % 2
        games = [
            (max(both), min(both)) for both in zip(left[:paired:2], left[1:paired:2], strict=True)
        ]
        won = yield games
        winners = [i if better else j for (i, j), better in zip(games, won, strict=True)]
        left = left[paired:] + winners
    return left[0]


def play_all(
    plays: Sequence[Play], beats: Callable[[Sequence[tuple[int, Game]]], Sequence[bool]]
) -> list[int]:
    """The winner of each play. Each call of `beats` is asked the next games of all that are not
    over: (number of the play, game)."""
    winners: dict[int, int] = {}
    open_games: dict[int, list[Game]] = {}

    def go_on(number: int, won: Sequence[bool] | None) -> None:
        try:
            # A generator begins with None, whatever it is sent later.
            open_games[number] = plays[number].send(won)  # type: ignore[arg-type]
        except StopIteration as over:
            open_games.pop(number, None)
            winners[number] = over.value

    for number in range(len(plays)):
        go_on(number, None)
    while open_games:
        asked = [(number, game) for number, games in open_games.items() for game in games]
        found = iter(beats(asked))
        for number, games in list(open_games.items()):
            go_on(number, [next(found) for _ in games])
    return [winners[number] for number in range(len(plays))]
