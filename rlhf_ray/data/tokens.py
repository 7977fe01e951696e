"""Demonstrations and preference pairs as the tokens a model is trained on."""

from collections.abc import Sequence

import numpy as np

from rlhf_ray.data.batches import Mixture, PairTokens, Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Example, Preference


def texts(examples: Sequence[Example]) -> list[str]:
    """What a tokenizer is fitted on."""
    return [text for example in examples for text in (example.prompt, example.response)]


def example_tokens(examples: Sequence[Example], chat: Chat, *, limit: int) -> list[Tokens]:
    """Demonstrations as tokens, without those longer than the model.

    Raises BadData when more than half would be dropped: the model is too short for its data.
    """
    rendered = [(chat.prompt_ids(one.prompt), chat.response_ids(one.response)) for one in examples]
    kept = [
        Tokens(prompt + response, len(prompt))
        for prompt, response in rendered
        if len(prompt) + len(response) <= limit
    ]
    if 2 * len(kept) < len(examples):
        raise BadData(
            f"{len(examples) - len(kept)} of {len(examples)} demonstrations are longer than "
            f"{limit} tokens; raise policy.scratch.max_positions or bring shorter ones"
        )
    return kept


def fitting_pairs(
    pairs: Sequence[Preference], chat: Chat, max_tokens: int | None
) -> list[Preference]:
    """The pairs a judge can read in full."""
    limit = min(max_tokens or chat.max_tokens, chat.max_tokens)
    return [pair for pair in pairs if _tokens(pair, chat).longest <= limit]


def _tokens(pair: Preference, chat: Chat) -> PairTokens:
    prompt = chat.prompt_ids(pair.prompt)
    return PairTokens(
        prompt + chat.response_ids(pair.chosen), prompt + chat.response_ids(pair.rejected)
    )


def pair_tokens(
    pairs: Sequence[Preference],
    chat: Chat,
    max_tokens: int | None,
    expert: tuple[str, float] | None,
) -> tuple[list[PairTokens], Mixture]:
    """Pairs that fit the judge, and how batches are drawn: `expert` = (source, its share).

    Raises BadData when more than half do not fit.
    """
    limit = min(max_tokens or chat.max_tokens, chat.max_tokens)
    rendered = [(pair, _tokens(pair, chat)) for pair in pairs]
    fitting = [(pair, both) for pair, both in rendered if both.longest <= limit]
    kept, tokens = [pair for pair, _ in fitting], [both for _, both in fitting]
    if 2 * len(kept) < len(pairs) or not kept:
        raise BadData(
            f"{len(pairs) - len(kept)} of {len(pairs)} preference pairs are longer than {limit} "
            "tokens; raise the judge's max_tokens or bring shorter ones"
        )
    everything = np.arange(len(tokens))
    if expert is None:
        return tokens, Mixture(everything, everything[:0], 1.0)
    own = np.array([pair.source == expert[0] for pair in kept])
    if not own.any():
        raise BadData(f"no preference pair of source '{expert[0]}' fits {limit} tokens")
    return tokens, Mixture(everything[own], everything[~own], expert[1])
