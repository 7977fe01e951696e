"""Judges' models on vLLM: scores from a pooling engine, verdicts from a generating one.

An engine runs inside the calling process and takes new weights in place. Several may live in one
process; vLLM's own shutdown of one would break the others, so it is replaced here.

Letters: N texts.
"""

import gc
import json
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.section import Precision
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Floats
from rlhf_ray.rollouts.engine import CPU_ENVIRONMENT, arguments, request

BYTES = {"fp32": 4, "bf16": 2}
FREE = frozenset(("_name_or_path", "transformers_version", "dtype", "torch_dtype"))
"""Keys of a model's config that may differ between two folders of one architecture."""
GPU_SHARE = 0.9
"""Of the GPU memory this process was given, as vLLM's `gpu_memory_utilization`."""


class Model:
    """What a model folder says of itself before anything is loaded.

    Raises BadData when it has no config, or no readable weights as safetensors.
    """

    def __init__(self, path: str) -> None:
        self.folder = local_folder(path)
        self.config = _config(self.folder)
        self.shapes = _shapes(self.folder)
        self.is_classifier = any(
            "SequenceClassification" in name for name in self.config.get("architectures") or []
        )

    @property
    def labels(self) -> int:
        """Hugging Face writes neither key for its own default of two."""
        return int(self.config.get("num_labels") or len(self.config.get("id2label") or (0, 1)))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def check_like(self, other: "Model") -> None:
        """Raises BadData unless its weights fit an engine that was started with `other`."""
        named = {
            "config.json": (self.config, other.config),
            "*.safetensors": (self.shapes, other.shapes),
        }
        for where, (new, old) in named.items():
            both = (new.keys() | old.keys()) - FREE
            keys = sorted(key for key in both if new.get(key) != old.get(key))
            if keys:
                told = f"{keys[0]} is {new.get(keys[0])}, not {old.get(keys[0])}"
                more = f" ({len(keys) - 1} more)" if len(keys) > 1 else ""
                raise BadData(
                    f"'{self.folder}' cannot replace the weights of '{other.folder}' in a running "
                    f"engine: in {where} {told}{more}; save both from one architecture, or load "
                    "the judge anew"
                )


class FolderWorker:
    """More calls for vLLM's worker, which takes this class as its extension."""

    reload_weights: Any
    model_runner: Any

    def load_folder(self, path: str) -> None:
        """Weights of a model folder, into the running model."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=path)
        # A tied output head receives no tensor of its own, so vLLM leaves its packed copy stale.
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def forget_layers(self) -> None:
        """After a load, vLLM's notes on each layer would keep the model alive for ever."""
        from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

        for layer in self.model_runner.get_model().modules():
            LAYERWISE_INFO.pop(layer, None)


class Served:
    """One vLLM engine with a model from a local folder or a hub name.

    With a share of a GPU it takes that share of its memory, with several GPUs it is spread over
    all of them. `kv_cache_gib` is for engines without. Raises BadData when vLLM cannot serve it.
    """

    def __init__(
        self,
        model: Model,
        max_tokens: int,
        *,
        num_gpus: float,
        precision: Precision,
        kv_cache_gib: float,
        trust_remote_code: bool,
        **options: Any,
    ) -> None:
        os.environ.update(CPU_ENVIRONMENT)
        from vllm import LLM

        self.model, self.version = model, 0
        self.size_bytes = model.parameters * BYTES[precision]
        given = arguments(
            str(model.folder),
            max_model_len=max_tokens,
            precision=precision,
            trust_remote_code=trust_remote_code,
            num_gpus=num_gpus,
            kv_cache_gib=kv_cache_gib,
        )
        if num_gpus > 0:
            given["tensor_parallel_size"] = max(1, int(num_gpus))
            given["gpu_memory_utilization"] = GPU_SHARE * min(1.0, num_gpus)
        given["worker_extension_cls"] = f"{__name__}.{FolderWorker.__name__}"
        try:
            self.llm: Any = LLM(**given | options)
        except Exception as error:  # whatever a model that vLLM does not know makes it say
            raise BadData(f"vLLM cannot serve '{model.folder}': {error}") from error
        # It would end the process groups that all engines of this process share.
        self.llm.llm_engine.engine_core._finalizer.detach()
        self._shut = weakref.finalize(self, _shut, self.llm)

    def load(self, path: str) -> None:
        """Weights from another folder of the same architecture, without a new engine.

        Raises BadData: before anything is touched when the folder does not fit; with the engine
        closed when reading fails half-way, since what it then holds is no model.
        """
        new = Model(path)
        new.check_like(self.model)
        try:
            self.llm.collective_rpc("load_folder", args=(str(new.folder),))
        except Exception as error:
            self.close()
            raise BadData(
                f"the weights of '{new.folder}' could not be read whole: {error}; the engine was "
                "closed, load the judge anew"
            ) from error
        self.llm.reset_prefix_cache()
        self.model, self.version = new, self.version + 1

    def close(self) -> None:
        """Give the memory of weights and cache back; happens by itself when nobody holds this.

        vLLM's process groups stay until the process ends.
        """
        self._shut()
        self.llm = None
        gc.collect()

    def _requests(self, texts: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
        assert self.llm is not None, f"the engine of '{self.model.folder}' was closed"
        return [request(ids, self.version) for ids in texts]


class ServedScores(Served):
    """Scalar scores of a sequence classifier with one label, as `PlainScores` gives them.

    Raises BadData for other models.
    """

    def __init__(
        self,
        path: str,
        max_tokens: int,
        *,
        num_gpus: float = 0.0,
        precision: Precision = "fp32",
        kv_cache_gib: float = 0.25,
        trust_remote_code: bool = False,
    ) -> None:
        model = Model(path)
        if not model.is_classifier:
            raise BadData(
                f"'{path}' is a language model without a reward head; give the judge `train`, or "
                "the path of a sequence classifier with one label"
            )
        if model.labels != 1:
            raise BadData(f"'{path}' has {model.labels} labels; a reward model has one")
        super().__init__(
            model, max_tokens, num_gpus=num_gpus, precision=precision,
            kv_cache_gib=kv_cache_gib, trust_remote_code=trust_remote_code, runner="pooling",
        )  # fmt: skip

    def scores(self, texts: Sequence[tuple[int, ...]]) -> Floats:
        """[N] raw scores, float64."""
        from vllm import PoolingParams

        if not texts:  # vLLM refuses an empty list
            return np.empty(0)
        requests, parameters = self._requests(texts), PoolingParams(use_activation=False)
        found = self.llm.classify(requests, pooling_params=parameters, use_tqdm=False)
        return np.array([output.outputs.probs[0] for output in found], dtype=np.float64)


class ServedVerdicts(Served):
    """Probabilities of two labels after a text, as `PlainVerdicts` gives them.

    Raises BadData for a model with a reward head: its output matrix would be made up.
    """

    def __init__(
        self,
        path: str,
        label_ids: tuple[int, int],
        max_tokens: int,
        *,
        num_gpus: float = 0.0,
        precision: Precision = "fp32",
        kv_cache_gib: float = 0.25,
        trust_remote_code: bool = False,
    ) -> None:
        model = Model(path)
        if model.is_classifier:
            raise BadData(
                f"'{path}' is a sequence classifier, which cannot write a label; use it as a judge "
                "of kind bradley_terry, or name a language model"
            )
        self.label_ids = label_ids
        super().__init__(
            model, max_tokens, num_gpus=num_gpus, precision=precision,
            kv_cache_gib=kv_cache_gib, trust_remote_code=trust_remote_code,
            # In bf16 a logit of 16 is known to 0.06 only.
            hf_overrides={"head_dtype": "float32"},
        )  # fmt: skip

    def label_logprobs(self, asks: Sequence[tuple[int, ...]]) -> tuple[Floats, Floats]:
        """Probability of the first label among the two [N], and of either among all tokens [N]."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(self.label_ids),
            detokenize=False,
        )
        requests = self._requests(asks)
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)
        known = [output.outputs[0].logprobs[0] for output in outputs]
        found = [[each[label].logprob for label in self.label_ids] for each in known]
        logprobs = np.array(found, dtype=np.float64).reshape(-1, 2)  # [N, 2]
        mass = np.logaddexp(logprobs[:, 0], logprobs[:, 1])
        return np.exp(logprobs[:, 0] - mass), np.exp(mass)


def local_folder(path: str) -> Path:
    """A local model folder as it is; a hub name downloaded, unless it was before."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    others = ["*.bin", "*.pt", "*.pth", "*.gguf", "original/*"]
    try:
        return Path(snapshot_download(path, ignore_patterns=others))
    except Exception as error:  # a mistyped name, no network, no access
        raise BadData(f"'{path}' is neither a folder nor a model of the hub: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{folder}/config.json cannot be read: {error}; copy it again") from error
    if not isinstance(config, dict):
        raise BadData(f"{folder}/config.json is not a JSON object; copy it again")
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the files' headers alone."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    found[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise BadData(f"{file} cannot be read: {error}; copy it again") from error
    if not found:
        raise BadData(f"'{folder}' has no *.safetensors; save the model with save_pretrained")
    return found


def _shut(llm: Any) -> None:
    """vLLM's own shutdown of an engine, less the process groups."""
    core = llm.llm_engine.engine_core.engine_core
    core.structured_output_manager.clear_backend()
    core.model_executor.collective_rpc("forget_layers")
    core.model_executor.shutdown()
    core.scheduler.shutdown()
    gc.unfreeze()  # vLLM froze its objects, which would never be collected
    gc.collect()
