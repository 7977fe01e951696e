"""One process in which judges are trained as the learners train them, and rows that stay known.

The trainers, objectives and readings are the product's; what is missing is Ray, because a cell of
an experiment is one training of seconds.
"""

import argparse
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from rlhf_ray.bootstrap.reading import Reading
from rlhf_ray.bootstrap.workshop import SLICE
from rlhf_ray.config.judges import Critic, JudgeTraining, Trained
from rlhf_ray.config.schema import Learner, Scratch
from rlhf_ray.config.section import Optimizer, Supervised
from rlhf_ray.data.batches import Mixture, Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.keys import seed_of
from rlhf_ray.messages import Floats, Preference
from rlhf_ray.preferences.accuracy import t_quantile
from rlhf_ray.training.builders import scratch_policy, supervised_trainer
from rlhf_ray.training.engine import join

Row = dict[str, Any]
SCRATCH = Scratch(hidden_size=96, layers=2, heads=3, intermediate_size=384, max_positions=96)
LEARNER = Learner(threads=2, zero_stage=0, tokens_per_batch=32768)


def arguments(about: str | None, name: str) -> argparse.ArgumentParser:
    """What every experiment can be asked."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=raw)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop after that many; call again to go on")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence") / name)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    return parser


def experiment(
    asked: argparse.Namespace,
    one_seed: "Callable[[Cells, Gang, Path, int], None]",
    report: "Callable[[Cells], str]",
) -> None:
    """Run the seeds that are asked for as far as the time goes; print what is known."""
    cells = Cells(asked.work / "cells.jsonl", asked.minutes and asked.minutes * 60)
    if not asked.report:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        start(asked.threads)
        gang = Gang()
        with suppress(TimeUp):
            for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
                one_seed(cells, gang, asked.work, seed)
    print(report(cells))


def start(threads: int) -> None:
    """Make this process a learner gang of one rank. Call it once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join(0, 1, "127.0.0.1", port, threads=threads, timeout_s=600)


class Gang:
    """A learner gang of this process: the same verbs as `actors.learners.Learners`."""

    def __init__(self) -> None:
        self.trainers: list[Any] = []

    def call(self, function: Callable[[], None]) -> None:
        function()

    def begin(self, build: Callable[[int, int], Any]) -> None:
        self.trainers.append(build(0, 1))

    def advance(self, steps: int) -> dict[str, float]:
        found: dict[str, float] = self.trainers[-1].advance(steps)
        return found

    def margins(self, items: Sequence[Any]) -> Floats:
        """[N] how far the judge being trained prefers the chosen response of each item."""
        found = self.trainers[-1].margins(items)
        return np.array([found[row] for row in range(len(items))])

    def notes(self) -> dict[str, float]:
        found: dict[str, float] = self.trainers[-1].notes()
        return found

    def save(self, folder: Path) -> None:
        self.trainers[-1].save(folder)

    def restore(self, folder: Path) -> None:
        self.trainers[-1].restore(folder)

    def export(self, folder: Path, tokenizer: str, *, trust_remote_code: bool = False) -> None:
        from rlhf_ray.training.export import export

        export(self.trainers[-1], folder, tokenizer, write=True)

    def end(self) -> None:
        self.trainers.pop().engine.close()

    def train(self, build: Callable[[int, int], Any]) -> None:
        """Begin a training and take all of its steps; `end` is the caller's."""
        self.begin(build)
        while self.advance(SLICE)["steps"] < self.trainers[-1].steps:
            pass


def language_model(
    gang: Gang,
    folder: Path,
    examples: Callable[[Chat], Sequence[Sequence[Tokens]]],
    *,
    texts: Sequence[str] = (),
    start: str | None = None,
    scratch: Scratch = SCRATCH,
    steps: int,
    batch_size: int = 128,
    lr: float = 3e-3,
    seed: int,
) -> str:
    """A language model trained on what `examples(chat)` gives: the folder, made once.

    From scratch with a tokenizer fitted on `texts`, or going on from the model `start`.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    if start is None:
        start = str(folder.with_name(f"{folder.name}-untrained"))
        scratch_policy(Path(start), scratch, texts, seed_of(seed, "scratch"))
    chat = Chat.load(start)
    optimizer = Optimizer(lr=lr, warmup_steps=min(30, steps // 10), schedule="linear")
    settings = Supervised(steps=steps, batch_size=batch_size, optimizer=optimizer)
    gang.train(
        partial(supervised_trainer, start, examples(chat), settings, LEARNER,
                pad_id=chat.pad_id, seed=seed)
    )  # fmt: skip
    gang.export(folder, start)
    gang.end()
    return str(folder)


def judge(
    gang: Gang,
    entry: Trained,
    start: str,
    pairs: Sequence[Preference],
    exams: Mapping[str, Sequence[Preference]],
    *,
    training: JudgeTraining | None = None,
    critic: Critic | None = None,
    seed: int,
    folder: Path | None = None,
) -> dict[str, Floats]:
    """Train a judge on `pairs`, all drawn alike; its margins [N] on each of `exams`.

    `folder` keeps the judge.
    """
    reading = Reading.of(entry, start, critic)
    settings = training or entry.train
    assert settings is not None
    build, _ = reading.build(pairs, settings, LEARNER, seed=seed, draw=evenly)
    gang.train(build)
    found = {name: gang.margins([reading.render(one) for one in exam])
             for name, exam in exams.items()}  # fmt: skip
    if folder is not None:
        gang.export(folder, start)
    gang.end()
    return found


def evenly(kept: Sequence[Preference]) -> Mixture:
    """Batches in which all pairs count alike."""
    rows = np.arange(len(kept))
    return Mixture(rows, rows[:0], 1.0)


def accuracy(margins: Floats) -> float:
    """Share of pairs whose chosen response is preferred; ties count half."""
    return float(np.mean((np.sign(margins) + 1) / 2))


class TimeUp(Exception):
    """The minutes that were asked for are over; the same call goes on from here."""


class Cells:
    """Results under their keys, one JSON line each; what is known is not computed again."""

    def __init__(self, path: Path, deadline_s: float | None = None) -> None:
        self.path, self.rows = path, list[Row]()
        self.until = time.monotonic() + deadline_s if deadline_s else None
        if path.is_file():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def known(self, **key: Any) -> Row | None:
        """The row of a key, None where it was not computed yet."""
        return next((r for r in self.rows if all(r.get(k) == v for k, v in key.items())), None)

    def cell(self, compute: Callable[[], Row], **key: Any) -> Row:
        """The row of a key, computed if it has to be. Raises TimeUp once the time is up."""
        if (row := self.known(**key)) is not None:
            return row
        if self.until is not None and time.monotonic() > self.until:
            raise TimeUp
        began = time.perf_counter()
        row = key | compute() | {"wall_s": round(time.perf_counter() - began, 2)}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = t_quantile(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def shown(values: Sequence[float], *, scale: float = 100.0, digits: int = 1) -> str:
    """`81.2 ± 0.7 (5)`: mean, half of the 95 % interval, number of seeds."""
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f} ({len(values)})"


def paired(rows: Sequence[Row], arm: str, baseline: str, value: str, **fixed: Any) -> list[float]:
    """Per seed, `value` of one arm minus that of another, over the seeds both have."""

    def by_seed(name: str) -> dict[int, float]:
        return {r["seed"]: r[value] for r in rows
                if r["arm"] == name and all(r.get(k) == v for k, v in fixed.items())}  # fmt: skip

    mine, theirs = by_seed(arm), by_seed(baseline)
    return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
