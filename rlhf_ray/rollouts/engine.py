"""vLLM behind four verbs: generate, measure, load, and say what it holds.

The engine runs inside the calling process, so a dead worker leaves nothing behind; with
`tensor_parallel` above 1 it has processes of its own, which Ray ends with the worker's group.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.config.schema import Rollouts
from rlhf_ray.data.batches import Tokens
from rlhf_ray.keys import seed_of
from rlhf_ray.messages import Prompt, Response, Rollout

CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine pins itself to the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def environment(settings: Rollouts) -> dict[str, str]:
    """Environment a process needs before it imports vllm."""
    gib = max(1, round(settings.kv_cache_gib))
    own = {"VLLM_CPU_KVCACHE_SPACE": str(gib)} if settings.num_gpus == 0 else {}
    return CPU_ENVIRONMENT | own


def arguments(
    path: str,
    *,
    max_model_len: int,
    precision: str,
    trust_remote_code: bool,
    num_gpus: float,
    kv_cache_gib: float,
) -> dict[str, Any]:
    """What every engine here is started with; without GPUs, what makes it deterministic."""
    found: dict[str, Any] = {
        "model": path,
        "dtype": "float32" if precision == "fp32" else "bfloat16",
        "max_model_len": max_model_len,
        "trust_remote_code": trust_remote_code,
        "load_format": "safetensors",  # pickles may run code when read
        "seed": 0,
        "disable_log_stats": True,
    }
    if num_gpus == 0:
        found |= {
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            "max_num_seqs": 256,
            # vLLM's CPU sampler cannot seed a request whose prompt is split over steps, and a
            # warm prefix cache shifts last bits: both would make results depend on chance.
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": max(4096, max_model_len),
            "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        }
    return found


def request(ids: Sequence[int], version: int) -> dict[str, Any]:
    """A prompt of tokens; its salt keeps a prefix of older weights from being found even if a
    cache reset were missed."""
    return {"prompt_token_ids": list(ids), "cache_salt": f"v{version}"}


class RolloutEngine:
    """One vLLM engine holding one version of the policy."""

    def __init__(
        self,
        path: str,
        settings: Rollouts,
        *,
        max_model_len: int,
        precision: str,
        backend: str,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        os.environ.update(environment(settings))
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        self.settings, self.seed, self.version = settings, seed, 0
        options = arguments(
            path,
            max_model_len=max_model_len,
            precision=precision,
            trust_remote_code=trust_remote_code,
            num_gpus=settings.num_gpus,
            kv_cache_gib=settings.kv_cache_gib,
        )
        options["tensor_parallel_size"] = settings.tensor_parallel
        options["weight_transfer_config"] = WeightTransferConfig(backend=backend)
        if backend == "host":
            options["worker_extension_cls"] = "rlhf_ray.weights.host.HostWorker"
        self.llm = LLM(**options | settings.engine_args)

    def try_out(self) -> None:
        """One token: an engine that cannot make it is not ready, whatever it says."""
        from vllm import SamplingParams

        plain = SamplingParams(temperature=0.0, max_tokens=1)
        (output,) = self.llm.generate([request([0], self.version)], plain, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 1, output

    def generate(
        self,
        purpose: str,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[tuple[int, ...]],
        *,
        samples: int,
        greedy: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        reference: bool = False,
    ) -> list[Rollout]:
        """`samples` responses per prompt; seeds follow from (run seed, purpose, prompt id).

        `max_tokens` and `temperature` default to the recipe's. With `reference` each rollout also
        carries the greedy response to its prompt.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = [
            SamplingParams(
                n=samples,
                temperature=0.0 if greedy else temperature or self.settings.temperature,
                top_p=1.0 if greedy else self.settings.top_p,
                max_tokens=max_tokens or self.settings.max_tokens,
                seed=seed_of(self.seed, purpose, prompt.id),
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for prompt in prompts
        ]
        requests = [request(ids, self.version) for ids in prompt_ids]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)
        references: list[str | None] = [None] * len(prompts)
        if reference:
            plain = SamplingParams(temperature=0.0, max_tokens=self.settings.max_tokens)
            greedily = self.llm.generate(requests, plain, use_tqdm=False)
            references = [output.outputs[0].text for output in greedily]
        rows = zip(prompts, prompt_ids, outputs, references, strict=True)
        return [
            Rollout(
                prompt,
                ids,
                tuple(_response(one) for one in output.outputs),
                self.version,
                known,
            )
            for prompt, ids, output, known in rows
        ]

    def logprobs(self, sequences: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """[T] log-probabilities of each sequence's response tokens under the loaded weights."""
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [request(sequence.ids, self.version) for sequence in sequences],
            SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
            use_tqdm=False,
        )
        return [
            np.array(
                [
                    output.prompt_logprobs[place][sequence.ids[place]].logprob
                    for place in range(sequence.start, len(sequence.ids))
                ],
                dtype=np.float32,
            )
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

    def finish_load(self, version: int) -> None:
        """The weights that have arrived are policy `version`; forget what older ones computed."""
        self.llm.finish_weight_update(weight_version=str(version))
        self.llm.reset_prefix_cache()
        self.version = version


def _response(output: Any) -> Response:
    logprobs = [
        entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)
    ]
    return Response(
        text=output.text,
        token_ids=tuple(output.token_ids),
        logprobs=np.array(logprobs, dtype=np.float32),
        finished=output.finish_reason == "stop",
    )
