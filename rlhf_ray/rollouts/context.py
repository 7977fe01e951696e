"""Prompts to the vectors a bandit chooses on: frozen, whitened, of length one.

Difference from LASeR (arXiv 2410.01735): the hidden state is taken under the *start* policy and
computed once, because a linear bandit cannot follow contexts that drift with the policy; and it
is whitened, because raw hidden states share most of their direction.

Letters: N prompts · H hidden size · D context width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.errors import RecipeError
from rlhf_ray.messages import Floats, Prompt

FLOOR = 1e-6
"""Smallest share of the leading variance an axis is scaled by; below it is rounding noise."""
TINY = 1e-30
"""Keeps prompts that all look alike at the zero vector instead of NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class Whitener:
    """Centring and principal axes scaled to unit variance."""

    centre: Floats  # [H]
    axes: Floats  # [H, D]

    @classmethod
    def fit(cls, hidden: NDArray[np.float32], width: int) -> "Whitener":
        """From [N, H] hidden states; the axes' signs are fixed so that equal inputs agree."""
        values = hidden.astype(np.float64)
        centre = values.mean(axis=0)
        variances, vectors = np.linalg.eigh(np.cov(values - centre, rowvar=False))
        top = np.argsort(variances)[::-1][:width]
        kept, axes = variances[top], vectors[:, top]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        return cls(centre, axes / np.sqrt(np.maximum(kept, max(kept[0] * FLOOR, TINY))))

    def __call__(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, H] -> [N, D] of length one."""
        white = (hidden.astype(np.float64) - self.centre) @ self.axes
        length = np.linalg.norm(white, axis=1, keepdims=True)
        unit: NDArray[np.float32] = (white / np.maximum(length, 1e-12)).astype(np.float32)
        return unit


class Contexts:
    """The context of every prompt a run will ask, by prompt id."""

    def __init__(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self.rows = {id_: row for row, id_ in enumerate(ids)}
        self.vectors = vectors

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        embed: Callable[[Sequence[Prompt]], NDArray[np.float32]],
        *,
        width: int,
        sample: int,
    ) -> "Contexts":
        """Embed each distinct prompt once; the axes are fitted on the first `sample` of them."""
        distinct = list({prompt.id: prompt for prompt in prompts}.values())
        hidden = embed(distinct)  # [N, H]
        if hidden.shape[1] < width:
            raise RecipeError(
                f"context.width is {width}, the policy's hidden states have {hidden.shape[1]} "
                "numbers; lower it"
            )
        vectors = Whitener.fit(hidden[:sample], width)(hidden)
        return cls([prompt.id for prompt in distinct], vectors)

    def __call__(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """[P, D]"""
        found: NDArray[np.float32] = self.vectors[[self.rows[prompt.id] for prompt in prompts]]
        return found
