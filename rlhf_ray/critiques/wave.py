"""The critic's part in a wave: who needs critiques, and what if they do not come."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from rlhf_ray.critiques.writer import LATE, NOT_SENT, OVERLONG, TOO_LONG, CritiqueWriter, Known
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Choices, Critiques, Prompt, Rollout, Step


class WaveCritic:
    """Critiques for the prompts whose judge reads them.

    Raises BadData when more than a share `max_failed` of the critiques failed; then a service is
    not asked for the others any more. An empty critique is an outcome of its own: the judge reads
    the response alone, and it is counted.
    """

    def __init__(
        self,
        writer: CritiqueWriter,
        readers: Collection[str],
        max_failed: float,
        *,
        named: Callable[[], str] | None = None,
    ) -> None:
        """`named`: the name of the weights that write now, where these change as they learn."""
        self.writer, self.readers, self.max_failed = writer, frozenset(readers), max_failed
        self.named = named

    def write(self, step: Step, choices: Choices, rollouts: Sequence[Rollout]) -> Critiques:
        """[P][K] critiques; empty for prompts whose judges do not read any."""
        reads = np.array([arm in self.readers for arm in choices.arms])
        wanted: list[bool] = (choices.asked & reads).any(axis=1).tolist()
        prompts = [rollout.prompt for rollout in rollouts]
        texts = [[one.text for one in rollout.responses] for rollout in rollouts]
        return self._written(prompts, texts, wanted)

    def write_all(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        known: Known | None = None,
    ) -> Critiques:
        """Critiques of everything, for labelled pairs; `known` [P][K] are those they came with."""
        return self._written(prompts, responses, [True] * len(prompts), known)

    def _written(self, *asked: Any) -> Critiques:
        if self.named is not None:
            self.writer.critic = self.named()
        return self.checked(self.writer.write(*asked, max_failed=self.max_failed))

    def checked(self, written: Critiques) -> Critiques:
        total = sum(written.outcomes.values())
        failed = {
            why: count for why, count in written.outcomes.items() if why not in ("ok", "empty")
        }
        if total and sum(failed.values()) > self.max_failed * total:
            unsent = failed.pop(NOT_SENT, 0)
            reasons = ", ".join(f"{count} {why}" for why, count in sorted(failed.items()))
            rest = f"; {unsent} more were not sent" if unsent else ""
            first = f"; first: {self.writer.detail}" if self.writer.detail else ""
            remedies = {
                LATE: "timeouts.generate_s",
                TOO_LONG: "critic.max_question_tokens",
                OVERLONG: "a service that heeds max_tokens, or critic.max_tokens",
            }
            more = "".join(f"; for {why}: {key}" for why, key in remedies.items() if why in failed)
            raise BadData(
                f"{sum(failed.values())} of {total} critiques failed ({reasons}{rest}); allowed is "
                f"a share of {self.max_failed:g}{first}. Look after the critic, or raise "
                f"critic.max_failed{more}"
            )
        return written


class NoCritic:
    """A pool without judges that read critiques."""

    def write(self, step: Step, choices: Choices, rollouts: Sequence[Rollout]) -> Critiques:
        """No critiques, which cost nothing."""
        return Critiques([[""] * len(one.responses) for one in rollouts], {}, 0, 0.0)
