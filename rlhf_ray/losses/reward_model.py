"""How far is a reward model from preferring the chosen response?"""

import torch.nn.functional as F
from torch import Tensor


def smoothed_bt(delta: Tensor, epsilon: float = 0.0, margin: float | Tensor = 0.0) -> Tensor:
    """Bradley-Terry loss with label smoothing and a margin, per pair.

        -(1 - epsilon) log sigmoid(d) - epsilon log sigmoid(-d),   d = delta - margin

    Equal to -log sigmoid(d) + epsilon d, hence least at d = log((1 - epsilon) / epsilon): without
    smoothing the scores grow apart forever.

    The convention is binary: the label is wrong with probability `epsilon`. Cross-entropy
    smoothing over K = 2 classes spreads its mass over both, so its 0.1 is our 0.05.

    GRAM (arXiv 2506.14175, stage 2); Secrets of RLHF II (arXiv 2401.06080, soft labels and margin).

    Args:
        delta: [B] score of the chosen minus score of the rejected response.
        epsilon: in [0, 0.5).
        margin: one for all, or [B]; the difference of scores that is asked for.

    Returns: [B], not reduced.
    """
    assert 0.0 <= epsilon < 0.5, epsilon
    assert isinstance(margin, float | int) or margin.shape == delta.shape, "one margin per pair"
    lead = delta - margin
    return -(1.0 - epsilon) * F.logsigmoid(lead) - epsilon * F.logsigmoid(-lead)
