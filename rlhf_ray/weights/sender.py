"""The trainer side of a weight delivery: through host memory, or with vLLM's own NCCL and IPC.

Every learner rank holds a sender and calls `send` in step; rank 0 talks, the others only gather.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf_ray.weights.source import ZeroSource


class Client(Protocol):
    """The rollout workers, as vLLM's trainer side calls them."""

    version: int
    """The policy version that is being delivered."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: dict[str, Any]) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """Whatever carries the weights."""

    def send_weights(self) -> None: ...
    def shutdown(self) -> None: ...


class HostSender:
    """Chunks of whole tensors as NumPy arrays, for engines without GPUs."""

    def __init__(self, client: Client, source: ZeroSource, rank: int, chunk_bytes: int) -> None:
        self.client, self.source, self.rank, self.chunk_bytes = client, source, rank, chunk_bytes
        if rank == 0:
            client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        if self.rank != 0:
            for _ in self.source:
                pass
            return
        self.client.start_weight_update()
        for chunk in chunks(self.source, self.chunk_bytes):
            self.client.update_weights(chunk)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """There is nothing to let go of."""


def open_sender(
    backend: str,
    client: Client,
    source: ZeroSource,
    *,
    rank: int,
    chunk_bytes: int,
    address: tuple[str, int],
    engine_ranks: int,
) -> Sender:
    """A sender that has met its workers. `nccl` and `ipc` are vLLM's; untested without GPUs."""
    if backend == "host":
        return HostSender(client, source, rank, chunk_bytes)
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    sender: Sender = WeightTransferTrainerFactory.trainer_init(
        _init_info(backend, rank, address, engine_ranks), client=client, source=source
    )
    return sender


def _init_info(backend: str, rank: int, address: tuple[str, int], engine_ranks: int) -> Any:
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    host, port = address
    return NCCLTrainerInitInfo(
        master_address=host, master_port=port, world_size=1 + engine_ranks, rank=rank
    )


def chunks(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Any]]:
    """Update payloads of at most `limit` bytes; a larger tensor travels alone."""
    tensors: dict[str, Any] = {}
    size, dtype = 0, "float32"
    for name, value in weights:
        host = value.cpu()
        dtype = str(host.dtype).removeprefix("torch.")
        # NumPy has no bfloat16: its bits travel as integers.
        array = (host.view(torch.uint16) if dtype == "bfloat16" else host).numpy().copy()
        if tensors and size + array.nbytes > limit:
            yield {"tensors": tensors, "dtype": dtype}
            tensors, size = {}, 0
        tensors[name] = array
        size += array.nbytes
    yield {"tensors": tensors, "dtype": dtype}
