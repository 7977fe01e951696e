"""Rollouts, samples and pairs as Parquet: read back by a resumed run, by `datasets` and by TRL."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.durable.fsio import atomic_write
from rlhf_ray.messages import Floats, Pair, Prompt, Response, Rollout, WaveReport


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    atomic_write(path, buffer.getvalue())


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Everything a resumed wave needs instead of sampling again."""
    rows = [
        {
            "prompt": asdict(rollout.prompt),
            "prompt_ids": list(rollout.prompt_ids),
            "policy_version": rollout.policy_version,
            "responses": [
                {
                    "text": one.text,
                    "token_ids": list(one.token_ids),
                    "logprobs": one.logprobs.tolist(),
                    "finished": one.finished,
                }
                for one in rollout.responses
            ],
        }
        for rollout in rollouts
    ]
    write_rows(path, rows)


def read_rollouts(path: Path) -> list[Rollout]:
    """Undo `write_rollouts`, bit for bit."""
    import pyarrow.parquet as pq

    return [
        Rollout(
            Prompt(**{**row["prompt"], "choices": tuple(row["prompt"]["choices"] or ())}),
            tuple(row["prompt_ids"]),
            tuple(
                Response(
                    one["text"],
                    tuple(one["token_ids"]),
                    np.array(one["logprobs"], dtype=np.float32),
                    one["finished"],
                )
                for one in row["responses"]
            ),
            row["policy_version"],
        )
        for row in pq.read_table(path).to_pylist()
    ]


def sample_rows(report: WaveReport, gold: Floats) -> list[dict[str, Any]]:
    """One row per response, for people and for `datasets.load_dataset`."""
    step, names = report.step, report.choices.names()
    return [
        {
            "step": str(step),
            "round": step.round,
            "wave": step.wave,
            "prompt_id": rollout.prompt.id,
            "source": rollout.prompt.source,
            "prompt": rollout.prompt.text,
            "answer": rollout.prompt.answer,
            "sample": number,
            "response": one.text,
            "arm": names[row],
            "score": float(report.combined[row, number]),
            "gold": None if np.isnan(gold[row, number]) else float(gold[row, number]),
            "policy_version": rollout.policy_version,
            "finished": one.finished,
            "tokens": len(one.token_ids),
            "logprob": float(one.logprobs.sum()),
        }
        for row, rollout in enumerate(report.rollouts)
        for number, one in enumerate(rollout.responses)
    ]


def pair_rows(step: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Preference format of TRL, with the judge and the margin beside it."""
    return [
        {
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "margin": pair.margin,
            "judge": pair.arm,
            "step": step,
        }
        for pair in pairs
    ]
