"""Which judges live together."""

from collections import Counter
from collections.abc import Mapping


def homes(replicas: Mapping[str, int], workers: int) -> dict[tuple[str, ...], int]:
    """The sets of judges that live on one worker, and how many workers hold each of them.

    Judges are dealt to the workers in turn, so that replicas of one are on different workers. There
    are at least as many workers as a judge has replicas, and none without a judge.
    """
    count = min(max(workers, *replicas.values()), sum(replicas.values()))
    held: list[list[str]] = [[] for _ in range(count)]
    at = 0
    for name, own in replicas.items():
        for place in range(at, at + own):
            held[place % count].append(name)
        at += own
    return dict(Counter(map(tuple, held)))
