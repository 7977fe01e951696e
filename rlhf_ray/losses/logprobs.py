"""How likely is each response under a model, token by token?

Letters: N tokens · B sequences · T positions · H hidden size · V vocabulary.
"""

import torch
from torch import Tensor


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token, without ever holding [N, V].

    Args:
        hidden: [N, H] last hidden states, each one position before its target.
        weight: [V, H] output matrix.
        targets: [N] token ids.

    Returns: [N] float32, differentiable in `hidden` and `weight`.
    """
    from deepspeed.sequence.linear_cross_entropy import vocab_parallel_linear_cross_entropy

    losses: Tensor = vocab_parallel_linear_cross_entropy(hidden, weight, targets, reduction="none")
    return -losses


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """[B] sum of `values` [B, T] where the boolean `mask` [B, T] holds."""
    assert values.shape == mask.shape, (values.shape, mask.shape)
    return values.masked_fill(~mask, 0.0).sum(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B] mean of `values` [B, T] where the boolean `mask` [B, T] holds, at least once per row."""
    counts = mask.sum(dim=1)
    assert counts.all(), "a row without any unmasked value has no mean"
    return masked_sum(values, mask) / counts


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) from the policy's own samples, as a mean over unmasked tokens.

        mean of exp(r) - 1 - r,   r = ref_logprobs - logprobs

    Unbiased and never negative: estimator k3 of http://joschu.net/blog/kl-approx.html.

    Args: three [B, T] tensors; `mask` is boolean and holds at least once.
    Returns: a scalar.
    """
    assert logprobs.shape == ref_logprobs.shape == mask.shape, (logprobs.shape, mask.shape)
    assert mask.any(), "no unmasked token"
    ratio = (ref_logprobs - logprobs)[mask]
    return (torch.expm1(ratio) - ratio).mean()
