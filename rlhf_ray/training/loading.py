"""Models from Hugging Face folders, ready to be trained here."""

from typing import Any

import torch
from torch import nn

from rlhf_ray.config.section import Precision
from rlhf_ray.errors import BadData


def load_causal_lm(path: str, *, trust_remote_code: bool = False) -> Any:
    """A Hugging Face causal language model from a local folder or a hub name, in fp32."""
    from transformers import AutoModelForCausalLM

    return loaded(
        AutoModelForCausalLM, path, trust_remote_code=trust_remote_code, attn_implementation="sdpa"
    )


def loaded(kind: Any, path: str, **options: Any) -> Any:
    """A model in fp32 whose forward pass is a function: dropout would make losses noisy, and a
    resumed run different. Raises BadData when the folder or hub name cannot be loaded."""
    try:
        model = kind.from_pretrained(path, dtype=torch.float32, **options)
    except Exception as error:  # whatever a damaged folder makes its library say
        raise BadData(f"no model can be loaded from '{path}': {error}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def lowered(model: Any, precision: Precision) -> Any:
    """A model that is only read.

    In bf16 its scoring head stays fp32: a score of 4 would be known to 0.03 only, and ties follow.
    """
    if precision == "bf16":
        model = model.to(torch.bfloat16)
        if hasattr(model, "score"):
            model.score.float()
    return model
