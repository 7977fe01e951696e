"""A vLLM weight-transfer engine for hosts without GPUs: tensors arrive as NumPy arrays.

vLLM's own engines need CUDA. Importing this module registers the engine, which must happen in the
process that runs the model: `HostWorker` is named as vLLM's worker extension for that reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


@dataclass
class HostInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on: every call carries its own tensors."""


@dataclass
class HostUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One chunk of whole tensors."""

    tensors: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face name -> NumPy array, bfloat16 as its uint16 bits."""
    dtype: str = "float32"


class HostTransferEngine(WeightTransferEngine[HostInit, HostUpdate]):  # type: ignore[misc]
    """Loads chunks of host tensors into the running model."""

    init_info_cls = HostInit
    update_info_cls = HostUpdate

    def init_transfer_engine(self, init_info: HostInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The inherited method synchronises an accelerator, which a CPU build does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: HostUpdate) -> None:
        self.model.load_weights(
            (name, torch.from_numpy(array).view(getattr(torch, update_info.dtype)))
            for name, array in update_info.tensors.items()
        )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied output head receives no tensor of its own, so vLLM leaves its packed copy stale.
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        pass


class HostWorker:
    """Worker extension without methods: naming it makes vLLM import this module."""


if "host" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("host", HostTransferEngine)
