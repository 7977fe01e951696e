"""Models from Hugging Face folders, ready to be trained here."""

import os
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


def loaded(kind: Any, path: str, *, new_head: bool = False, **options: Any) -> Any:
    """A model in fp32 whose forward pass is a function: dropout would make losses noisy, and a
    resumed run different.

    Weights are read from safetensors alone, never from pickles. `new_head`: the folder holds
    everything but a head. Raises BadData when the folder or hub name cannot be loaded, or lacks
    weights.
    """
    # Without it a hub name may be answered with weights that a service converted just now.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"
    try:
        model, report = kind.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # whatever a damaged folder makes its library say
        if isinstance(error, OSError) and "model.safetensors" in str(error):
            raise BadData(
                f"'{path}' has no model.safetensors, and weights in another form may run code when "
                "read; convert it once, as docs/security.md says, and name the new folder"
            ) from error
        why = " ".join(str(error).split())[:600]  # some list every model their library knows
        raise BadData(f"no model can be loaded from '{path}': {why}") from error
    lacking = sorted(report["missing_keys"])
    if new_head:
        # BERT's pooler belongs to its head.
        inner = f"{model.base_model_prefix}."
        lacking = [one for one in lacking if one.startswith(inner) and ".pooler." not in one]
    if lacking:
        raise BadData(
            f"the weights of '{path}' lack {len(lacking)} tensors of its model ({lacking[0]}), "
            "which would be made up; copy the model again"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def lowered(model: Any, precision: Precision) -> Any:
    """A model that is only read.

    In bf16 a reward head stays fp32: a score of 4 would be known to 0.03 only, and ties follow.
    Raises BadData for a reward model whose head is not the one of decoders.
    """
    if precision == "fp32":
        return model
    head = getattr(model, "score", None)
    if head is None and model.config.num_labels == 1:
        raise BadData(
            f"the head of a {model.config.model_type} reward model cannot be kept in fp32, and in "
            "bf16 near scores would tie; set judge_fleet.precision: fp32"
        )
    cast(model, torch.bfloat16)
    if head is not None:
        cast(head, torch.float32)
    return model


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters in another precision. Buffers stay: in bf16 the angles of rotary positions would
    be wrong from some hundred tokens on."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
