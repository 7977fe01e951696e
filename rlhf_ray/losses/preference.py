"""How far is the policy from preferring the chosen response, seen from its reference?

Every input is a [B] tensor of summed log-probabilities of a response given its prompt.
"""

from torch import Tensor

from rlhf_ray.losses.reward_model import smoothed_bt


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimization, per pair: Bradley-Terry on the policy's implicit rewards.

        -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h),
        h = (chosen - ref_chosen) - (rejected - ref_rejected)

    Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, Eq. 7, where eps = `label_smoothing` is
    0; a positive one is conservative DPO: the label is wrong with probability eps.

    Returns: [B], not reduced.
    """
    return smoothed_bt(beta * _lead(chosen, rejected, ref_chosen, ref_rejected), label_smoothing)


def ipo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """Identity preference optimization, per pair: a regression that ends at a finite margin.

        (h - 1 / (2 beta))^2,   h = (chosen - ref_chosen) - (rejected - ref_rejected)

    Azar et al. 2023, https://arxiv.org/abs/2310.12036, Eq. 17, whose tau is our `beta`.

    Returns: [B], not reduced.
    """
    lead = _lead(chosen, rejected, ref_chosen, ref_rejected)
    return (lead - 1.0 / (2.0 * beta)) ** 2


def _lead(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """[B] how much more than its reference the policy prefers the chosen response."""
    assert chosen.ndim == 1, chosen.shape
    for other in (rejected, ref_chosen, ref_rejected):
        assert other.shape == chosen.shape, (chosen.shape, other.shape)
    return (chosen - ref_chosen) - (rejected - ref_rejected)
