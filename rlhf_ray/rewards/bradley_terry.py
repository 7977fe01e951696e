"""A Bradley-Terry judge: a scalar head on a language model, read at the last token.

Letters: P prompts · K responses per prompt.
"""

from collections.abc import Sequence

import numpy as np
import torch

from rlhf_ray.data.batches import length_buckets, pad
from rlhf_ray.data.chat import Chat
from rlhf_ray.errors import JudgeFailed
from rlhf_ray.messages import Floats, Prompt
from rlhf_ray.training.modules import ScalarScore
from rlhf_ray.training.reward_model import load_classifier


class BradleyTerry:
    """Scores finished texts with its own tokenizer and chat template.

    Raises JudgeFailed when a text does not fit the model or a score is not finite.
    """

    def __init__(
        self,
        name: str,
        path: str,
        *,
        max_tokens: int | None,
        tokens_per_batch: int,
        trust_remote_code: bool = False,
    ) -> None:
        self.name, self.budget = name, tokens_per_batch
        self.chat = Chat.load(path, trust_remote_code=trust_remote_code)
        model = load_classifier(
            path, self.chat.pad_id, new_head=False, trust_remote_code=trust_remote_code
        )
        self.max_tokens = min(max_tokens or self.chat.max_tokens, self.chat.max_tokens)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.score_module = ScalarScore(model).to(self.device).eval()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> Floats:
        """[P, K] raw scores, float64."""
        texts = [
            self.chat.prompt_ids(prompt.text) + self.chat.response_ids(response)
            for prompt, row in zip(prompts, responses, strict=True)
            for response in row
        ]
        longest = max(map(len, texts))
        if longest > self.max_tokens:
            raise JudgeFailed(
                self.name,
                f"a prompt with response has {longest} tokens, it holds {self.max_tokens}; lower "
                f"rollouts.max_tokens or choose a model with a longer context",
            )
        scores = np.empty(len(texts), dtype=np.float64)
        for group in length_buckets([len(text) for text in texts], self.budget):
            ids, lengths = pad([texts[row] for row in group], self.chat.pad_id)
            with torch.inference_mode():
                values = self.score_module(ids.to(self.device), lengths.to(self.device))
            scores[group] = values.double().cpu().numpy()
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            width = len(responses[0])
            raise JudgeFailed(
                self.name,
                f"score {scores[bad]} for prompt '{prompts[bad // width].id}', "
                f"response {bad % width}",
            )
        return scores.reshape(len(prompts), -1)
