"""How well are preferences predicted without understanding: by length, by word statistics?"""

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.data.preferences import keyed_order
from rlhf_ray.messages import Floats, Preference

WORD = re.compile(r"\w+|[^\w\s]")
MIX = np.uint64(0x9E3779B97F4A7C15)
"""The odd number next to 2^64 / golden ratio: multiplying by it spreads hashes over high bits."""


def longer_response_accuracy(pairs: Sequence[Preference]) -> dict[str, float]:
    """Per source, how often the chosen response has more characters; a tie counts half."""
    return _accuracy(pairs, (len(pair.chosen) - len(pair.rejected) for pair in pairs))


class HashedNgrams:
    """Pairwise logistic regression on hashed word 1- and 2-grams.

        P(chosen over rejected) = sigmoid(w . d),   d = unit vector of (counts - counts)

    Plain SGD, one pair at a time in a keyed order, on `2 ** bits` weights, the rate falling
    linearly to zero.
    """

    def __init__(self, *, seed: int, bits: int = 16, epochs: int = 5, rate: float = 0.3) -> None:
        self.seed, self.bits, self.epochs, self.rate = seed, bits, epochs, rate
        self.weights: Floats = np.zeros(2**bits)

    def fit(self, pairs: Sequence[Preference]) -> None:
        differences = [self._difference(pair) for pair in pairs]
        steps = self.epochs * len(pairs)
        order = [
            keyed_order(len(pairs), seed=self.seed, purpose="ngrams", epoch=epoch)
            for epoch in range(self.epochs)
        ]
        for step, row in enumerate(np.concatenate(order)):
            places, values = differences[row]
            slope = 1.0 / (1.0 + np.exp(self.weights[places] @ values))
            self.weights[places] += self.rate * (1.0 - step / steps) * slope * values

    def accuracy(self, pairs: Sequence[Preference]) -> dict[str, float]:
        """Per source, how often the chosen response scores higher; a tie counts half."""
        return _accuracy(pairs, map(self._margin, pairs))

    def _margin(self, pair: Preference) -> float:
        places, values = self._difference(pair)
        return float(self.weights[places] @ values)

    def _difference(self, pair: Preference) -> tuple[NDArray[np.int64], Floats]:
        """Distinct places with non-zero values of the unit difference vector."""
        chosen, rejected = self._places(pair.chosen), self._places(pair.rejected)
        both = np.concatenate([chosen, rejected])
        places, column = np.unique(both, return_inverse=True)
        signs = np.repeat([1.0, -1.0], [len(chosen), len(rejected)])
        values: Floats = np.bincount(column, weights=signs, minlength=len(places)).astype(
            np.float64
        )
        length = float(np.linalg.norm(values))
        return places, values / length if length else values

    def _places(self, text: str) -> NDArray[np.int64]:
        words = [zlib.crc32(word.encode()) for word in WORD.findall(text.lower())]
        first = np.array(words, dtype=np.uint64)
        second = first[:-1] * MIX + first[1:]
        mixed: NDArray[np.uint64] = np.concatenate([first, second]) * MIX
        return (mixed >> np.uint64(64 - self.bits)).astype(np.int64)


def _accuracy(pairs: Sequence[Preference], margins: Iterable[float]) -> dict[str, float]:
    wins: dict[str, list[float]] = {}
    for pair, margin in zip(pairs, margins, strict=True):
        wins.setdefault(pair.source, []).append(0.5 + 0.5 * float(np.sign(margin)))
    return {source: float(np.mean(wins[source])) for source in sorted(wins)}
