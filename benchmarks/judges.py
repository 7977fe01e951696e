"""Are judges trained, asked and voted with faster than in the usual way?

training  pairs/s of our Bradley-Terry trainer against TRL's RewardTrainer: one model, a head that
          starts at zero, the same pairs in the same order, fp32, AdamW (TRL keeps its fused one).
          Each run is a process of its own, in turn A B A B; a step lasts from the end of the one
          before to its own end, so batching counts too.
scoring   responses/s of PlainScores against transformers on padded batches in order of arrival.
voting    seconds until all voters have judged all pairs, on one gang and on two, through Ray.

Losses, scores and votes are compared: sides that do other work are no measure. What is gained over
TRL and transformers is mostly padding, so lengths matter: texts are drawn with long tails
(`pairs.py`), or come from --pairs FILE in TRL's format.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from learner import OPTIMIZER, SPREAD, Timed, now
from pairs import preferences, start_model, tokens_of
from rivals import plain_loop, train_with_trl

from rlhf_ray.config.judges import BradleyTerryJudge, FilePreferences, JudgeTraining, Voting
from rlhf_ray.config.schema import Learner, Timeouts
from rlhf_ray.data.batches import Mixture, PairTokens, length_buckets
from rlhf_ray.data.chat import Chat
from rlhf_ray.messages import Floats, Preference

SEED = 0
TRAINING, SCORING = 1.5, 2.0
"""Targets: ours against the other side."""
SAME_SCORES = 1e-4
STEPS = OPTIMIZER.model_copy(update={"lr": 1e-3})
"""Moves the loss within a few steps: two losses that stay at log 2 would say nothing."""
CPUS = 4
TIMEOUTS = Timeouts(engine_s=300, update_s=600)
Ids = tuple[int, ...]


def judged(options: argparse.Namespace, count: int) -> list[Preference]:
    return preferences(options.pairs, count, per_prompt=options.responses // 2, seed=SEED)


def settings(options: argparse.Namespace, steps: int) -> JudgeTraining:
    """Plain Bradley-Terry, as TRL trains it."""
    return JudgeTraining(
        preferences=FilePreferences(train=str(options.pairs or "drawn")), steps=steps,
        batch_size=options.batch, score_penalty=0.0, optimizer=STEPS,
    )  # fmt: skip


def learner(options: argparse.Namespace, threads: int) -> Learner:
    return Learner(threads=threads, tokens_per_batch=options.tokens, zero_stage=options.zero_stage)


def padding(groups: Sequence[Sequence[int]]) -> float:
    """Share of padding where each group of lengths is padded to its longest."""
    return 1 - sum(map(sum, groups)) / sum(len(one) * max(one) for one in groups)


# training


def ours(options: argparse.Namespace, tokens: list[PairTokens], pad_id: int) -> Timed:
    from rlhf_ray.training.builders import scalar_trainer
    from rlhf_ray.training.engine import join

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join(0, 1, "127.0.0.1", port, threads=options.threads, timeout_s=60)
    total = options.warm + options.steps
    trainer = scalar_trainer(
        str(options.folder), dict(enumerate(tokens)), everything(tokens), settings(options, total),
        learner(options, options.threads), 0, 1, pad_id=pad_id, seed=SEED,
    )  # fmt: skip
    ends, losses = [], []
    for _ in range(total):
        losses.append(trainer.step())
        ends.append(now())
    return Timed(durations(ends, options), fmean(losses))


def trl(options: argparse.Namespace, tokens: list[PairTokens], pad_id: int) -> Timed:
    ends, loss = train_with_trl(
        options.folder, batches(options, tokens), STEPS,
        pad_id=pad_id, micro=options.micro, threads=options.threads, seed=SEED,
    )  # fmt: skip
    return Timed(durations(ends, options), loss)


def everything(tokens: Sequence[PairTokens]) -> Mixture:
    rows = np.arange(len(tokens))
    return Mixture(rows, rows[:0], 1.0)


def batches(options: argparse.Namespace, tokens: Sequence[PairTokens]) -> list[list[PairTokens]]:
    """The pairs of each step, as our trainer draws them."""
    drawn_from = everything(tokens)
    return [
        [tokens[row] for row in drawn_from.rows(step, options.batch, SEED)]
        for step in range(options.warm + options.steps)
    ]


def durations(ends: Sequence[float], options: argparse.Namespace) -> list[float]:
    """Seconds of each step after the warm-up."""
    return [end - begin for begin, end in pairwise(ends)][options.warm - 1 :]


SIDES = {"ours": ours, "trl": trl}


def apart(side: str, folder: Path, options: argparse.Namespace) -> Timed:
    """One side in a process of its own. Ends the program when that fails or is late."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    log = folder / f"{side}.log"
    with log.open("w") as out:
        try:
            done = subprocess.run(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT,
                timeout=options.deadline, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            sys.exit(f"{side} took more than {options.deadline:.0f} s; raise --deadline")
    if done.returncode:
        sys.exit(f"{log.read_text()[-2000:]}\n{side} ended with code {done.returncode}, see above")
    return Timed(**json.loads((folder / f"{side}.json").read_text()))


def wanted(options: argparse.Namespace) -> int:
    """Pairs to draw so that no step sees one again, although some will not fit."""
    return int(1.25 * options.batch * (options.warm + options.steps))


def training(options: argparse.Namespace) -> None:
    if missing := [name for name in ("trl", "accelerate") if find_spec(name) is None]:
        sys.exit(
            f"{', '.join(missing)}, for the other side, is not installed: pip install "
            "'rlhf-ray[bench]'; or, beside this environment, pip install --no-deps --target DIR "
            "trl==1.16.0 accelerate, and PYTHONPATH=DIR"
        )
    found: dict[str, list[Timed]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        pairs = judged(options, wanted(options))
        tokens = tokens_of(pairs, start_model(Path(name), pairs, SEED))
        for _ in range(options.repeats):
            for side in SIDES:
                found[side].append(apart(side, Path(name), options))
    losses = {side: runs[0].loss for side, runs in found.items()}
    timed = batches(options, tokens)[options.warm :]
    show_padding(options, timed)
    speeds = {
        side: [options.batch * options.steps / sum(run.seconds) for run in runs]
        for side, runs in found.items()
    }
    print(f"trl {version('trl')}, {options.steps} steps of {options.batch} pairs in each run\n"
          f"mean loss: ours {losses['ours']:.5f}, TRL {losses['trl']:.5f}; both begin at 0.69315\n"
    )  # fmt: skip
    if not abs(losses["ours"] - losses["trl"]) <= SPREAD:
        sys.exit(f"mean losses differ by more than {SPREAD}, so the steps do not compare")
    show("pairs/s", "ours / TRL", speeds, TRAINING)


def show_padding(options: argparse.Namespace, timed: Sequence[Sequence[PairTokens]]) -> None:
    mine, theirs = list[list[int]](), list[list[int]]()
    for batch in timed:
        lengths = [(len(pair.chosen), len(pair.rejected)) for pair in batch]
        groups = length_buckets([max(both) for both in lengths], options.tokens // 2)
        mine += [[one for row in group for one in lengths[row]] for group in groups]
        theirs += [
            [one for both in lengths[begin : begin + options.micro] for one in both]
            for begin in range(0, len(lengths), options.micro)
        ]
    told(mine, theirs, "TRL")


def told(mine: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], rival: str) -> None:
    """What the lengths are and how much of each side's batches is padding."""
    sizes = [size for group in theirs for size in group]
    print(f"texts of {fmean(sizes):.0f} tokens, the longest of {max(sizes)}; padding: ours "
          f"{padding(mine):.0%}, {rival} {padding(theirs):.0%}")  # fmt: skip


def show(what: str, title: str, speeds: dict[str, list[float]], target: float) -> None:
    """A row per side and the ratio of first and second, repetition by repetition."""
    print(f"| | {what}, median | lowest | highest |\n|---|---|---|---|")
    for side, values in speeds.items():
        print(f"| {side} | {median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    first, second = speeds.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    print(f"\nratio {title}: {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f} "
          f"(target >= {target})\n")  # fmt: skip


# scoring


def scoring(options: argparse.Namespace) -> None:
    import torch

    from rlhf_ray.rewards.bradley_terry import PlainScores

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        pairs = judged(options, options.prompts * options.responses // 2)
        chat = start_model(Path(name), pairs, SEED)
        texts = exchanges(pairs, chat)
        judge = str(scalar_model(Path(name), chat.pad_id))
        reader = PlainScores(judge, chat.pad_id, tokens_per_batch=options.tokens)
        loop = plain_loop(judge, chat.pad_id, options.rival_batch)
    sides: dict[str, Callable[[list[Ids]], Floats]]
    sides = {"ours": reader.scores, "transformers": loop}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    scores: dict[str, Floats] = {}
    for repeat in range(options.repeats + 1):
        # The first pass warms up: kernels, allocator, threads.
        asked = texts if repeat else texts[: 2 * options.rival_batch]
        for side, ask in sides.items():
            began = now()
            scores[side] = ask(asked)
            speeds[side] += [len(asked) / (now() - began)] if repeat else []
    lengths, size = [len(text) for text in texts], options.rival_batch
    groups = [[lengths[row] for row in g] for g in length_buckets(lengths, options.tokens)]
    theirs = [lengths[begin : begin + size] for begin in range(0, len(lengths), size)]
    far = float(np.abs(scores["ours"] - scores["transformers"]).max())
    print(f"{len(texts)} responses to {len({pair.prompt for pair in pairs})} prompts")
    told(groups, theirs, "transformers")
    print(f"scores differ by at most {far:.1g}\n")
    if not far <= SAME_SCORES:
        sys.exit(f"scores differ by more than {SAME_SCORES}, so the passes do not compare")
    show("responses/s", "ours / transformers", speeds, SCORING)


def exchanges(pairs: Sequence[Preference], chat: Chat) -> list[Ids]:
    """All responses with their prompts, one prompt after the other, without those too long."""
    asked: dict[str, dict[str, None]] = {}
    for pair in pairs:
        asked.setdefault(pair.prompt, {}).update({pair.chosen: None, pair.rejected: None})
    found = [chat.exchange_ids(prompt, one) for prompt, all_ in asked.items() for one in all_]
    return [ids for ids in found if len(ids) <= chat.max_tokens]


def scalar_model(folder: Path, pad_id: int) -> Path:
    """A judge whose head is drawn: a head of zeros would score everything alike."""
    import torch

    from rlhf_ray.training.reward_model import load_classifier

    model = load_classifier(str(folder), pad_id, new_head=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder / "judge")
    return folder / "judge"


# voting


def voting(options: argparse.Namespace) -> None:
    from actors.cluster import cluster

    speeds: dict[int, list[float]] = {1: [], 2: []}
    votes: list[Floats] = []
    with tempfile.TemporaryDirectory() as name, cluster(CPUS, 120):
        pairs = judged(options, options.vote_pairs)
        start_model(Path(name), pairs, SEED)
        with started(max(speeds), options) as gangs:
            vote(options, name, pairs[: options.batch], gangs, voters=len(gangs))
            for _ in range(options.repeats):
                for parallel, seconds in speeds.items():
                    began = time.perf_counter()
                    found = vote(options, name, pairs, gangs[:parallel], options.voters)
                    seconds.append(time.perf_counter() - began)
                    votes.append(found)
    if not all(np.array_equal(votes[0], one) for one in votes[1:]):
        sys.exit("voters judge otherwise on another number of gangs; they must not")
    cores = len(os.sched_getaffinity(0))
    print(f"{options.voters} voters on {votes[0].shape[1]} pairs, the same votes every time\n")
    print("| gangs of one thread | s, median | lowest | highest |\n|---|---|---|---|")
    for parallel, seconds in speeds.items():
        print(f"| {parallel} | {median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f} |")
    ratios = [one / two for one, two in zip(*speeds.values(), strict=True)]
    print(f"\nspeed-up: {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f} (of at "
          f"most {min(max(speeds), cores)}: {max(speeds)} gangs on {cores} cores)")  # fmt: skip


@contextmanager
def started(count: int, options: argparse.Namespace) -> Iterator[list[Any]]:
    """Gangs of one rank with one thread each, ended with the context."""
    from actors.learners import Learners

    began = time.perf_counter()
    gangs = [Learners(learner(options, 1), TIMEOUTS, seed=SEED) for _ in range(count)]
    print(f"{count} gangs started in {time.perf_counter() - began:.1f} s, which is not counted")
    try:
        yield gangs
    finally:
        for gang in gangs:
            gang.stop()


def vote(
    options: argparse.Namespace,
    path: str,
    pairs: Sequence[Preference],
    gangs: list[Any],
    voters: int,
) -> Floats:
    """[M, N] what M voters say on N pairs, trained on all of the gangs."""
    from rlhf_ray.bootstrap.reading import Reading
    from rlhf_ray.bootstrap.strengths import Voters

    training = settings(options, steps=1)
    reading = Reading.of(BradleyTerryJudge(path=path, train=training), path, None)
    found = Voters(
        reading, training, Voting(voters=voters, parallel=len(gangs)), learner(options, 1),
        lambda count: nullcontext(gangs[:count]), lambda *_: None, seed=SEED,
    )  # fmt: skip
    return found.vote(pairs)[1].scores


PARTS = {"training": training, "scoring": scoring, "voting": voting}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--part", choices=PARTS, help="one part alone")
    add("--pairs", type=Path, metavar="FILE", help="pairs in TRL's format; else they are drawn")
    add("--repeats", type=int, default=3, help="runs of each side")
    add("--threads", type=int, default=2, help="of each side; voters have one each")
    add("--batch", type=int, default=16, help="pairs of a step")
    add(
        "--tokens",
        type=int,
        default=Learner().tokens_per_batch,
        help="tokens_per_batch of ours: trainer and PlainScores",
    )
    add("--zero-stage", type=int, choices=(0, 1), default=Learner().zero_stage)
    add("--steps", type=int, default=8, help="training: timed steps of each run")
    add("--warm", type=int, default=2, help="training: steps before, at least 1")
    add("--micro", type=int, help="training: pairs in a forward pass of TRL's; else a whole step")
    add("--deadline", type=float, default=600, help="training: seconds for one process")
    add("--prompts", type=int, default=64, help="scoring: how many")
    add("--responses", type=int, default=8, help="scoring: of each prompt; even")
    add("--rival-batch", type=int, default=32, help="scoring: texts in a batch of transformers'")
    add("--voters", type=int, default=4, help="voting: how many")
    add("--vote-pairs", type=int, default=48, help="voting: pairs they are trained on and judge")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    options.micro = options.micro or options.batch
    if options.warm < 1 or options.batch % options.micro or options.responses % 2:
        parser.error("--warm must be at least 1, --batch a multiple of --micro, --responses even")
    if options.side:
        chat = Chat.load(str(options.folder))
        tokens = tokens_of(judged(options, wanted(options)), chat)
        timed = SIDES[options.side](options, tokens, chat.pad_id)
        (options.folder / f"{options.side}.json").write_text(json.dumps(asdict(timed)))
        return
    for name in [options.part] if options.part else PARTS:
        PARTS[name](options)


if __name__ == "__main__":
    main()
