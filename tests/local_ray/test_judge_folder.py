"""A judge's folder that a run left, opened by libraries that know nothing of us."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

TEXTS = ["srt bdaec=abcde", "srt bdaec=edcba", "rev abc=cba", "rot a=a"]


def on_vllm(folder: str, texts: list[str]) -> list[float]:
    """Scores by a pooling engine, started as its own documentation says."""
    from rlhf_ray.rollouts.engine import CPU_ENVIRONMENT

    os.environ.update(CPU_ENVIRONMENT)
    from vllm import LLM

    engine = LLM(
        model=folder, runner="pooling", dtype="float32", enforce_eager=True,
        enable_prefix_caching=False, kv_cache_memory_bytes=64 << 20,
    )  # fmt: skip
    return [one.outputs.probs[0] for one in engine.classify(texts, use_tqdm=False)]


def on_transformers(folder: str, texts: list[str]) -> list[float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    return [float(one.squeeze()) for one in found]


def test_vllm_and_transformers_give_a_judge_of_a_run_the_same_scores(
    tiny_run: Path, local_ray: None
) -> None:
    folder = str(tiny_run / "judges" / "sort_judge")
    remote: Any = ray.remote(num_cpus=1)(on_vllm)
    served = np.array(ray.get(remote.remote(folder, TEXTS), timeout=300))
    plain = np.array(on_transformers(folder, TEXTS))
    assert served == pytest.approx(plain, abs=1e-5)
    assert plain.std() > 0
