"""The best of a prompt's responses, seen by a judge that scores or by one that compares.

    scores       a judge that scores reads each response once, and the highest score wins; with a
                 judge that compares all meet all, and a score is the mean probability of winning
    scan         one comparison after the other, see `best_of`
    tournament   the same number of them, level by level

Each comparison is asked in both orders; those of one level go through together, over all prompts.
Equal responses play once. A tie keeps the earlier response.

A comparison that is too long for the judge is not asked: what has won one before stays, or else the
shorter text. So nothing unread is picked over what was read.

Letters: n responses of one prompt · M comparisons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlhf_ray.data.contests import Contest
from rlhf_ray.messages import Floats
from rlhf_ray.rewards.assess import PIECE, Tell
from rlhf_ray.rewards.best_of import Game, linear_scan, play_all, tournament

if TYPE_CHECKING:
    from rlhf_ray.rewards.bradley_terry import BradleyTerry
    from rlhf_ray.rewards.generative import Ask, Generative

Strategy = Literal["scan", "tournament", "scores"]


@dataclass(frozen=True, slots=True)
class Pick:
    """What became of one contest."""

    index: int | None
    """Place of the best response; None: the judge could read none of them."""
    comparisons: int
    forwards: int
    """Texts that were read for it; a comparison is two."""
    too_long: list[int]
    """Places of responses that were left out."""
    scores: list[float | None] | None = None
    """[n], None for what is too long; None altogether where nothing gave scores."""


def by_scores(
    judge: "BradleyTerry", contests: Sequence[Contest], what: str, tell: Tell
) -> list[Pick]:
    asks = [(one.prompt, *one.texts()[place]) for one in contests for place in one.played()]
    values: list[float] = []
    for begin in range(0, len(asks), PIECE):
        values += judge.each(*zip(*asks[begin : begin + PIECE], strict=True)).tolist()
        tell(what, len(values), len(asks))
    found, picks = iter(values), []
    for one in contests:
        scores = {place: next(found) for place in one.played()}
        known = {place: value for place, value in scores.items() if not np.isnan(value)}
        # The first of equal ones: the earlier response.
        best = max(known, key=known.__getitem__, default=None)
        out = _everywhere(one, [place for place in scores if place not in known])
        picks.append(Pick(best, 0, len(known), out, _by_place(one, known)))
    return picks


def by_all_pairs(
    judge: "Generative", contests: Sequence[Contest], what: str, tell: Tell
) -> list[Pick]:
    met = [(one, *both) for one in contests for both in combinations(one.played(), 2)]
    asks = [(one.prompt, one.responses[i], one.responses[j]) for one, i, j in met]
    found, picks = iter(_compared(judge, asks, what, tell)), []
    for one in contests:
        played = one.played()
        chances: dict[int, list[float]] = {place: [] for place in played}
        for i, j in combinations(played, 2):
            if not np.isnan(chance := next(found)):
                chances[i].append(chance)
                chances[j].append(1.0 - chance)
        known = {place: float(np.mean(every)) for place, every in chances.items() if every}
        # A response alone has nobody to be compared with, and needs nobody.
        best = played[0] if len(played) == 1 else max(known, key=known.__getitem__, default=None)
        out = [place for place in played if place not in known] if len(played) > 1 else []
        read = sum(map(len, chances.values())) // 2
        picks.append(Pick(best, read, 2 * read, _everywhere(one, out), _by_place(one, known)))
    return picks


@dataclass(slots=True)
class _Table:
    """Who has won, and who was left out, while one contest is played."""

    one: Contest
    played: list[int]
    comparisons: int = 0
    winners: set[int] = field(default_factory=set)
    out: list[int] = field(default_factory=list)

    def ask(self, game: Game) -> "Ask":
        i, j = (self.one.responses[self.played[number]] for number in game)
        return self.one.prompt, i, j

    def settle(self, game: Game, chance: float) -> bool:
        """Does i beat j? `chance`: that it is the better one; NaN where that is too long to ask."""
        i, j = (self.played[number] for number in game)
        if np.isnan(chance):
            better = self._stays(i, j)
            self.out.append(j if better else i)
            return better
        better = chance > 0.5
        self.comparisons += 1
        self.winners.add(i if better else j)
        return better

    def _stays(self, i: int, j: int) -> bool:
        if (i in self.winners) != (j in self.winners):
            return i in self.winners
        return len(self.one.responses[i]) < len(self.one.responses[j])

    def pick(self, winner: int) -> Pick:
        best: int | None = self.played[winner]
        if len(self.played) > 1 and best not in self.winners:  # nobody was ever compared
            best, self.out = None, self.played
        out = _everywhere(self.one, self.out)
        return Pick(best, self.comparisons, 2 * self.comparisons, out)


def by_games(
    judge: "Generative", contests: Sequence[Contest], strategy: Strategy, name: str, tell: Tell
) -> list[Pick]:
    begin = linear_scan if strategy == "scan" else tournament
    tables = [_Table(one, one.played()) for one in contests]
    level = 0

    def beats(games: Sequence[tuple[int, Game]]) -> list[bool]:
        nonlocal level
        level += 1
        asks = [tables[number].ask(game) for number, game in games]
        chances = _compared(judge, asks, f"{name}, level {level}", tell)
        return [
            tables[number].settle(game, chance)
            for (number, game), chance in zip(games, chances, strict=True)
        ]

    winners = play_all([begin(len(table.played)) for table in tables], beats)
    return [table.pick(winner) for table, winner in zip(tables, winners, strict=True)]


def _compared(judge: "Generative", asks: Sequence["Ask"], what: str, tell: Tell) -> Floats:
    """[M] how likely the first of two responses is the better one; NaN where that is too long.

    In pieces, since the texts of a large level would not fit into memory.
    """
    chances: Floats = np.empty(len(asks))
    for begin in range(0, len(asks), PIECE):
        piece = asks[begin : begin + PIECE]
        chances[begin : begin + len(piece)] = judge.compare(*zip(*piece, strict=True)).score
        tell(what, begin + len(piece), len(asks))
    return chances


def _everywhere(one: Contest, places: Sequence[int]) -> list[int]:
    """These places, and those of equal responses."""
    texts = one.texts()
    meant = {texts[place] for place in places}
    return [place for place, text in enumerate(texts) if text in meant]


def _by_place(one: Contest, known: Mapping[int, float]) -> list[float | None]:
    """[n] scores, equal ones of equal responses."""
    texts = one.texts()
    scores = {texts[place]: value for place, value in known.items()}
    return [scores.get(text) for text in texts]
