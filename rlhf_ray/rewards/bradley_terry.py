"""A scalar judge: a head on a language model, read at the last token of each text.

Bradley-Terry judges read prompt and response; critiqued ones (arXiv 2405.20850) the response with
its critique behind it, or alone where there is none.

Letters: P prompts · K responses per prompt · N texts.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from rlhf_ray.config.section import Precision
from rlhf_ray.data.batches import length_buckets, pad
from rlhf_ray.data.chat import Chat
from rlhf_ray.errors import JudgeFailed
from rlhf_ray.messages import Floats, Judgement, Preference, Prompt
from rlhf_ray.training.loading import lowered
from rlhf_ray.training.modules import ScalarScore
from rlhf_ray.training.reward_model import load_classifier

Join = Callable[[str, str], str]
"""(response, critique) -> what the judge reads."""


class Reader(Protocol):
    """A scalar model, wherever it runs."""

    size_bytes: int

    def scores(self, texts: Sequence[tuple[int, ...]]) -> Floats: ...
    def load(self, path: str) -> None: ...


class PlainScores:
    """The model in this process, fed in batches of similar length."""

    def __init__(
        self,
        path: str,
        pad_id: int,
        *,
        tokens_per_batch: int,
        precision: Precision = "fp32",
        trust_remote_code: bool = False,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pad_id, self.budget = pad_id, tokens_per_batch
        self.precision, self.trust_remote_code = precision, trust_remote_code
        self.load(path)

    def load(self, path: str) -> None:
        """Take the weights in `path` for the ones held so far."""
        model = load_classifier(
            path, self.pad_id, new_head=False, trust_remote_code=self.trust_remote_code
        )
        model = lowered(model, self.precision)
        self.module = ScalarScore(model).to(self.device).eval()
        self.size_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def scores(self, texts: Sequence[tuple[int, ...]]) -> Floats:
        """[N] raw scores, float64."""
        found = np.empty(len(texts), dtype=np.float64)
        for group in length_buckets([len(text) for text in texts], self.budget):
            ids, lengths = pad([texts[row] for row in group], self.pad_id)
            with torch.inference_mode():
                values = self.module(ids.to(self.device), lengths.to(self.device))
            found[group] = values.double().cpu().numpy()
        return found


class BradleyTerry:
    """Scores finished texts with its own tokenizer and chat template.

    Raises JudgeFailed when a text does not fit the model or a score is not finite.
    """

    def __init__(
        self, name: str, chat: Chat, reader: Reader, *, max_tokens: int | None, join: Join | None
    ) -> None:
        self.name, self.chat, self.reader, self.join = name, chat, reader, join
        self.max_tokens = chat.limit(max_tokens)
        self.size_bytes = reader.size_bytes

    def load(self, path: str) -> None:
        """Other weights of the same judge, as after a refresh."""
        self.reader.load(path)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        critiques: Sequence[Sequence[str]] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> Judgement:
        """[P, K] raw scores."""
        began = time.perf_counter()
        texts = [
            self._ids(prompt.text, response, critiques[row][place] if critiques else "")
            for row, prompt in enumerate(prompts)
            for place, response in enumerate(responses[row])
        ]
        self._check_lengths(texts, prompts, len(responses[0]))
        scores = self.reader.scores(texts)
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            row, place = divmod(bad, len(responses[0]))
            raise JudgeFailed(
                self.name, f"score {scores[bad]} for prompt '{prompts[row].id}', response {place}"
            )
        return Judgement(
            scores.reshape(len(prompts), -1),
            forwards=len(texts),
            tokens=sum(map(len, texts)),
            seconds=time.perf_counter() - began,
        )

    def each(
        self, prompts: Sequence[str], responses: Sequence[str], critiques: Sequence[str]
    ) -> Floats:
        """[N] score of one response per prompt; NaN where it is too long.

        Raises JudgeFailed where the model itself gives no finite score.
        """
        texts = [self._ids(*one) for one in zip(prompts, responses, critiques, strict=True)]
        fit = np.array([len(text) <= self.max_tokens for text in texts], dtype=np.bool_)
        scores: Floats = np.full(len(texts), np.nan)
        if fit.any():
            scores[fit] = self.reader.scores([texts[row] for row in np.flatnonzero(fit)])
        bad = np.flatnonzero(fit & ~np.isfinite(scores))
        if len(bad):
            prompt = prompts[bad[0]]
            raise JudgeFailed(self.name, f"score {scores[bad[0]]} for prompt {prompt!r:.60}")
        return scores

    def margins(self, pairs: Sequence[Preference]) -> Floats:
        """[N] score of the chosen minus score of the rejected response; NaN: one is too long."""
        prompts = [pair.prompt for pair in pairs]
        chosen = [(pair.chosen, pair.chosen_critique) for pair in pairs]
        rejected = [(pair.rejected, pair.rejected_critique) for pair in pairs]
        responses, critiques = zip(*chosen, *rejected, strict=True)
        scores = self.each(prompts * 2, responses, critiques)
        return scores[: len(pairs)] - scores[len(pairs) :]

    def _ids(self, prompt: str, response: str, critique: str) -> tuple[int, ...]:
        shown = self.join(response, critique) if self.join else response
        return self.chat.exchange_ids(prompt, shown)

    def _check_lengths(
        self, texts: Sequence[tuple[int, ...]], prompts: Sequence[Prompt], width: int
    ) -> None:
        longest = max(range(len(texts)), key=lambda row: len(texts[row]))
        if len(texts[longest]) > self.max_tokens:
            raise JudgeFailed(
                self.name,
                f"prompt '{prompts[longest // width].id}' with response {longest % width} has "
                f"{len(texts[longest])} tokens, it holds {self.max_tokens}; lower "
                "rollouts.max_tokens or choose a model with a longer context",
            )
