"""Critiques of both responses of labelled pairs, written where the file has none."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rlhf_ray.messages import Critiques, Preference, Prompt

Write = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Critiques]
"""(prompts [P], responses [P][K]) -> critiques of all of them."""


def with_critiques(
    pairs: Sequence[Preference],
    write: Callable[..., Critiques],
    costs: Counter[str] | None = None,
) -> list[Preference]:
    """The pairs with both critiques; `write` is a `Write` that also takes those known already.

    What they came to, by outcome and in `tokens`, is added to `costs`.

    A critique that a pair brings is kept, and only the missing one is written, unless a control
    stands in the critiques' place: it does so for those of a file, too. Critic and label never
    meet: each response is criticised on its own, point by point.
    """
    prompts = [Prompt(pair.id, pair.prompt, pair.source) for pair in pairs]
    responses = [(pair.chosen, pair.rejected) for pair in pairs]
    known = [(pair.chosen_critique, pair.rejected_critique) for pair in pairs]
    # Pairs that bring nothing can be given to any `Write`.
    given = [known] if any(map(any, known)) else []
    written = write(prompts, responses, *given)
    if costs is not None:
        costs.update({**written.outcomes, "tokens": written.tokens})
    return [
        replace(pair, chosen_critique=chosen, rejected_critique=rejected)
        for pair, (chosen, rejected) in zip(pairs, written.texts, strict=True)
    ]
