"""Which responses still need a critique, who writes it, and what do judges get to read?

Improving reward models with synthetic critiques (arXiv 2405.20850): c = Critic(x, y) for each
response by itself. Letters: P prompts · K responses per prompt.

Departures: critiques are remembered; a failed one reads as empty and is counted. The controls of
`Control` are ours: they show whether it matters what a critique says.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.critiques.cache import CritiqueCache, Kept
from rlhf_ray.critiques.template import Template
from rlhf_ray.keys import generator
from rlhf_ray.messages import Critiques, Prompt

Control = Literal["none", "shuffled", "constant"]
Exchange = tuple[str, str, str]
"""The text of a prompt, of one response to it, and of the critique it came with, "" without one."""
Known = Sequence[Sequence[str]]
"""Critiques [P][K] that came with the responses; "" where there is none."""
NOT_SENT = "not_sent"
"""Outcome of a question that was not asked any more, because too many had failed."""
TOO_LONG = "too_long"
"""The question leaves an engine no room for its answer."""
LATE = "late"
"""Outcome of a question without an answer by the deadline of its piece, asked or not."""
OVERLONG = "overlong"
"""Outcome of an answer that is far longer than the critic was allowed to write."""
PIECE = 512
"""Questions a critic is given at a time. Each piece has a deadline of its own, and what was written
for it is remembered before the next one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a critic."""

    id: str
    """A hash of its content and of how it is answered: the key of its seed, whatever its batch."""
    text: str


class Asks(list[Ask]):
    """The questions of one call; whoever answers them may read them as any other sequence."""

    def __init__(self, asks: Iterable[Ask], allowed: float = math.inf) -> None:
        """`allowed`: when more than these fail the run ends, so the others need not be asked."""
        super().__init__(asks)
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Completion:
    """What a critic answered."""

    text: str
    tokens: int
    """Written by the critic, also where they are of no use."""
    outcome: str
    """`ok`, or in one word why it failed, such as `timeout`."""
    detail: str = ""
    """Of a failure: where and why, without any secret."""


Complete = Callable[[Asks], list[Completion]]


class CritiqueWriter:
    """Critiques of responses: from the cache where they are known, from the critic elsewhere.

    complete: answers asks, in their order.
    critic: names its weights; a critic that changes changes its name.
    max_tokens, decoding: how it writes; both only tell critiques apart that are remembered, the
        critic itself ends a critique at its limit.
    control: `shuffled` gives each response the critique of another, `constant` all of them the
        same text. The cache holds the real ones.
    seed: of the run; draws who gets whose critique under `shuffled`.

    `detail` is that of the first failure in the last call, where it has one.
    """

    def __init__(
        self,
        complete: Complete,
        *,
        template: Template,
        critic: str,
        cache: CritiqueCache,
        max_tokens: int,
        control: Control = "none",
        seed: int,
        decoding: str = "",
    ) -> None:
        self.complete, self.template, self.cache = complete, template, cache
        self.critic, self.control, self.seed = critic, control, seed
        self.decoding = f"{decoding}|max_tokens={max_tokens}"
        self.detail = ""

    def write(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        wanted: Sequence[bool],
        known: Known | None = None,
        *,
        max_failed: float = 1.0,
    ) -> Critiques:
        """Texts [P][K]; `wanted` [P] says whose judge reads them, the others stay empty.

        known: critiques [P][K] from elsewhere. They are not asked for, not remembered and cost
            nothing, but what stands under a control holds for them too.
        max_failed: beyond this share of failed responses the caller ends the run.

        Equal exchanges are asked once. Nothing depends on the order of prompts or responses, nor
        on what the cache knew. Under `shuffled` a call with one exchange has nobody to swap with
        and keeps its critique.
        """
        began = time.perf_counter()
        given = known if known is not None else [[""] * len(row) for row in responses]
        rows = [
            [(prompt.text, *one) if wants else None for one in zip(row, texts, strict=True)]
            for prompt, row, texts, wants in zip(prompts, responses, given, wanted, strict=True)
        ]
        flat = [exchange for row in rows for exchange in row if exchange is not None]
        keys = {exchange: self._key(exchange) for exchange in flat if not exchange[2]}
        written = self._written({key: one for one, key in keys.items()}, max_failed * len(flat))
        self.detail = next((one.detail for one in written.values() if one.detail), "")
        found = {
            one: written[keys[one]] if one in keys else _settled(Kept(one[2], 0)) for one in flat
        }
        read = self._controlled({exchange: one.text for exchange, one in found.items()})
        return Critiques(
            texts=[["" if one is None else read[one] for one in row] for row in rows],
            outcomes=dict(sorted(Counter(found[one].outcome for one in flat).items())),
            tokens=sum(one.tokens for one in written.values()),
            seconds=time.perf_counter() - began,
        )

    def _key(self, exchange: Exchange) -> str:
        prompt, response, _ = exchange
        return CritiqueCache.key(
            prompt,
            response,
            template=self.template.version,
            critic=self.critic,
            decoding=self.decoding,
        )

    def _written(self, wanted: Mapping[str, Exchange], allowed: float) -> dict[str, Completion]:
        """Those under these keys: remembered ones, and the others from the critic."""
        kept = {key: self.cache.get(key) for key in wanted}
        old = {key: _settled(one) for key, one in kept.items() if one is not None}
        return old | self._fresh({k: v for k, v in wanted.items() if k not in old}, allowed)

    def _fresh(self, unknown: Mapping[str, Exchange], allowed: float) -> dict[str, Completion]:
        """Ask for these and remember what came; failures are asked again next time."""
        asks = [Ask(key, self.template.ask(*texts)) for key, (*texts, _) in unknown.items()]
        found: dict[str, Completion] = {}
        for begin in range(0, len(asks), PIECE):
            failed = sum(one.outcome not in ("ok", "empty") for one in found.values())
            found |= self._answered(Asks(asks[begin : begin + PIECE], allowed - failed))
        return found

    def _answered(self, asks: Asks) -> dict[str, Completion]:
        unsent = [Completion("", 0, NOT_SENT)] * len(asks)
        answers = self.complete(asks) if asks.allowed >= 0 else unsent
        found = {ask.id: self._taken(one) for ask, one in zip(asks, answers, strict=True)}
        kept = {
            key: Kept(one.text, one.tokens)
            for key, one in found.items()
            if one.outcome in ("ok", "empty")
        }
        self.cache.put_all(kept)
        return found

    def _taken(self, answer: Completion) -> Completion:
        if answer.outcome != "ok":
            return Completion("", answer.tokens, answer.outcome, answer.detail)
        return _settled(Kept(self.template.clean(answer.text), answer.tokens))

    def _controlled(self, texts: dict[Exchange, str]) -> dict[Exchange, str]:
        if self.control == "constant":
            return dict.fromkeys(texts, self.template.constant)
        if self.control == "none":
            return texts
        # One cycle through all exchanges: nobody keeps his own, and their order does not matter.
        order = sorted(texts)
        cycle = generator(self.seed, "shuffled-critiques").permutation(len(order)).tolist()
        following = [*cycle[1:], *cycle[:1]]
        return {order[to]: texts[order[of]] for to, of in zip(cycle, following, strict=True)}


def _settled(one: Kept) -> Completion:
    return Completion(one.text, one.tokens, "ok" if one.text else "empty")
