"""How strongly does a language model want to write each of two labels next?

Letters: N texts · B sequences of a batch · T tokens · H hidden size · V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_ray.config.section import Precision
from rlhf_ray.data.batches import length_buckets, pad
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Floats
from rlhf_ray.training.loading import load_causal_lm, lowered
from rlhf_ray.training.modules import check_plain_head, last_hidden


class LabelLogits(nn.Module):
    """Logits of two labels after a text, without ever holding [B, T, V].

    Raises BadData for models whose logits are more than their head's.
    """

    def __init__(self, model: Any, label_ids: tuple[int, int]) -> None:
        super().__init__()
        check_plain_head(model)
        self.model, self.label_ids = model, label_ids

    def external_parameters(self) -> list[nn.Parameter]:
        """The output matrix is read outside its own layer; ZeRO-3 must know to gather it."""
        return [self.model.get_output_embeddings().weight]

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 2] at the last token, and log-probability [B] of either label; float32."""
        hidden = last_hidden(self.model, ids, lengths)
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]  # [B, H]
        weight = self.model.get_output_embeddings().weight  # [V, H]
        every = (last @ weight.T).float()  # [B, V]
        labels = list(self.label_ids)
        mass = every[:, labels].logsumexp(dim=1) - every.logsumexp(dim=1)
        # In bf16 a logit of 16 is known to 0.06 only, so the two that decide are summed in fp32.
        logits = (last.float()[:, None] * weight[labels].float()).sum(dim=2)  # [B, 2]
        return logits, mass


def load_label_logits(
    path: str,
    label_ids: tuple[int, int],
    *,
    precision: Precision = "fp32",
    trust_remote_code: bool = False,
) -> LabelLogits:
    """For reading only, on the GPU where there is one.

    Raises BadData for a model with a reward head: its output matrix would be made up.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if any("SequenceClassification" in name for name in config.architectures or []):
        raise BadData(
            f"'{path}' is a sequence classifier, which cannot write a label; use it as a judge of "
            "kind bradley_terry, or name a language model"
        )
    model = lowered(load_causal_lm(path, trust_remote_code=trust_remote_code), precision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LabelLogits(model, label_ids).to(device).eval()


def read_labels(
    module: LabelLogits, texts: Sequence[tuple[int, ...]], *, pad_id: int, tokens_per_batch: int
) -> tuple[Floats, Floats]:
    """Probability of the first label among the two [N], and of either among all tokens [N]."""
    device = next(module.parameters()).device
    first, mass = np.empty(len(texts)), np.empty(len(texts))
    for group in length_buckets([len(text) for text in texts], tokens_per_batch):
        ids, lengths = pad([texts[row] for row in group], pad_id)
        with torch.inference_mode():
            logits, log_mass = module(ids.to(device), lengths.to(device))
        first[group] = logits.double().softmax(dim=1)[:, 0].cpu().numpy()
        mass[group] = log_mass.double().exp().cpu().numpy()
    return first, mass
