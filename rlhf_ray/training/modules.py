"""What a Hugging Face model is asked for in training: token log-probabilities or one score.

Letters: B sequences · T tokens · H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.errors import BadData
from rlhf_ray.losses.logprobs import token_logprobs

ODD_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which some models turn hidden states into logits other than by their head alone."""


class ResponseLogprobs(nn.Module):
    """Log-probabilities of the response tokens, without ever holding [tokens, vocabulary]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        check_plain_head(model)
        self.model = model

    def external_parameters(self) -> list[nn.Parameter]:
        """The output matrix is read outside its own layer; ZeRO-3 must know to gather it."""
        return [self.model.get_output_embeddings().weight]

    def forward(self, ids: Tensor, lengths: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T-1] of tokens 1..T-1 and the mask [B, T-1] of response tokens."""
        hidden = last_hidden(self.model, ids, lengths)
        place = torch.arange(1, ids.shape[1], device=ids.device)  # [T-1] position of the target
        mask = (place >= starts[:, None]) & (place < lengths[:, None])
        weight = self.model.get_output_embeddings().weight
        found = token_logprobs(hidden[:, :-1][mask], weight, ids[:, 1:][mask])
        values = torch.zeros(mask.shape, dtype=found.dtype, device=ids.device)
        return values.masked_scatter(mask, found), mask


class ScalarScore(nn.Module):
    """The score of a sequence: the head's value on its last token.

    The last token is found by length, not by the pad token: where padding and end share an id,
    models that search for the pad token read the score one token early.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def external_parameters(self) -> list[nn.Parameter]:
        return []

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B], float32."""
        if not hasattr(self.model, "score"):  # encoders have a head of their own on the first token
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
            return logits[:, 0].float()
        features = self.features(ids, lengths).to(next(self.model.score.parameters()).dtype)
        scores: Tensor = self.model.score(features)
        return scores[:, 0].float()

    def features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, H] the vector that enters the head: the last hidden state of the last token."""
        hidden = last_hidden(self.model, ids, lengths)
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1]


def last_hidden(model: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states [B, T, H] of the last layer."""
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def check_plain_head(model: Any) -> None:
    """Raises BadData when logits are more than hidden states times the output matrix."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    odd = [name for name in ODD_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    odd += ["lm_head.bias"] if getattr(head, "bias", None) is not None else []
    if odd:
        raise BadData(
            f"a {config.model_type} model changes its logits by {', '.join(odd)}, which the "
            "memory-saving log-probabilities leave out; choose a model without"
        )
