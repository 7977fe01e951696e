"""Does refreshing a reward model between rounds keep it right about the policy's new samples?

MetaRM (arXiv 2405.00438) against plain refreshes and none, in whole loops: each round refreshes
the judge on samples of the policy as it is, then trains the policy (DPO + NLL) on best against
worst of what the judge scores. The first judge can be beaten on purpose: few pairs, some labels
turned round. Gold only measures, and stands in for a verifier where new pairs are labelled.
Trainers, losses and readings are the product's; sampling is done here.

Differences from the product: no gate, so that a refresh that harms is seen; the judge is refreshed
before the first round too, as in the paper.

    python benchmarks/evidence/refresh.py --seeds 8 --minutes 25

Letters: P prompts · K responses per prompt.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lab import (
    Cells,
    Gang,
    Row,
    accuracy,
    arguments,
    evenly,
    experiment,
    language_model,
    paired,
    shown,
)
from sampling import LONGEST, UNREAD, agreement, rewards, sample
from world import demonstrations, pairs, prompts

from rlhf_ray.bootstrap.reading import Reading
from rlhf_ray.config.judges import BradleyTerryJudge, FilePreferences, JudgeTraining, Refresh
from rlhf_ray.config.schema import Learner, Scratch
from rlhf_ray.config.section import Families, Optimizer
from rlhf_ray.data.batches import Mixture, pad
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.keys import generator, seed_of
from rlhf_ray.losses.meta import meta_spread, spread
from rlhf_ray.messages import Floats, Preference, Prompt, Response, Rollout
from rlhf_ray.preferences.pairs import build_pairs
from rlhf_ray.training.builders import policy_trainer
from rlhf_ray.training.modules import ScalarScore
from rlhf_ray.training.reward_model import load_classifier

FAMILIES: tuple[Families, ...] = ("sort",)
ROUNDS, WAVES, WAVE, RESPONSES = 4, 3, 64, 8
META, META_RESPONSES = 128, 5
LABELLED, FLIPS, HELD_OUT, EXAM, EXAM_RESPONSES = 1200, 0.1, 600, 250, 5
SIZE = Scratch(hidden_size=64, layers=2, heads=2, intermediate_size=128, max_positions=64)
LEARNER = Learner(
    threads=1, zero_stage=0, tokens_per_batch=32768, beta=0.3, nll_weight=1.0, minibatch_pairs=64,
    optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.999)),
)  # fmt: skip
FIRST = JudgeTraining(
    preferences=FilePreferences(train="generated"), steps=250, batch_size=32,
    optimizer=Optimizer(lr=3e-3, schedule="linear", warmup_steps=10),
)  # fmt: skip
PLAIN = Refresh(
    kind="plain", steps=40, batch_size=32, meta_batch=16, fresh_share=0.0,
    optimizer=Optimizer(lr=3e-4, schedule="linear", warmup_steps=5),
)  # fmt: skip
NONE, OLD, NEW = "no refresh", "plain, old pairs", "plain, old and new pairs"
VISIBLE = {"kind": "meta", "inner": "normalised", "eta": 0.1}
ARMS: dict[str, Refresh | None] = {
    NONE: None,
    OLD: PLAIN,
    NEW: PLAIN.model_copy(update={"fresh_share": 0.5}),
    "MetaRM as printed": PLAIN.model_copy(update={"kind": "meta"}),
    "MetaRM, visible step": PLAIN.model_copy(update=VISIBLE),
    "MetaRM, step kept": PLAIN.model_copy(update=VISIBLE | {"apply": "retain"}),
    "MetaRM, second order": PLAIN.model_copy(update=VISIBLE | {"order": "second"}),
    "MetaRM, visible step, new pairs": PLAIN.model_copy(update=VISIBLE | {"fresh_share": 0.5}),
}


@dataclass(frozen=True)
class Start:
    """What all arms of a seed share."""

    seed: int
    policy: str
    judge: str
    labelled: list[Preference]
    held_out: list[Preference]
    exam: list[Prompt]
    left: Path
    """What arms leave for the arms after them."""

    @cached_property
    def chat(self) -> Chat:
        return Chat.load(self.policy)

    def rolls(self, purpose: str, round: int, count: int, responses: int) -> Floats:
        """[P, K, LONGEST] in [0, 1): what samples are drawn with."""
        rng = generator(self.seed, f"{purpose}-draws", round)
        return rng.random((count, responses, LONGEST))

    def samples(
        self, model: Any, purpose: str, round: int, count: int, responses: int
    ) -> list[Rollout]:
        """Samples of a policy on prompts drawn for this purpose."""
        asked = prompts(FAMILIES, count, seed=self.seed, purpose=f"{purpose}-{round}")
        return sample(model, self.chat, asked, self.rolls(purpose, round, count, responses))


class Judge:
    """A trained judge, ready to score."""

    def __init__(self, path: str) -> None:
        self.reading = Reading.of(BradleyTerryJudge(path=path), path, None)
        self.pad_id = self.reading.chat.pad_id
        self.module = ScalarScore(load_classifier(path, self.pad_id, new_head=False)).eval()

    def scores(self, rollouts: Sequence[Rollout]) -> Floats:
        """[P, K]"""
        found = self._read([ids for group in self.groups(rollouts) for ids in group])
        return found.reshape(len(rollouts), -1)

    def groups(self, rollouts: Sequence[Rollout]) -> list[list[tuple[int, ...]]]:
        """[P][K] token ids of each prompt with each of its responses."""
        read = self.reading.one
        return [[read(one.prompt.text, it.text) for it in one.responses] for one in rollouts]

    def margins(self, items: Sequence[Preference]) -> Floats:
        """[N] score of the chosen minus score of the rejected response."""
        tokens = [self.reading.render(one) for one in items]
        found = self._read([one.chosen for one in tokens] + [one.rejected for one in tokens])
        return found[: len(items)] - found[len(items) :]

    @torch.no_grad()
    def _read(self, sequences: Sequence[tuple[int, ...]]) -> Floats:
        found = self.module(*pad(sequences, self.pad_id))
        return found.double().numpy()  # type: ignore[no-any-return]


def verified(rollouts: Sequence[Rollout], round: int) -> list[Preference]:
    """A right against a wrong sample of each prompt that has both: what a verifier can label."""
    found = []
    for one in rollouts:
        texts, right = [it.text for it in one.responses if it.text], one.prompt.answer
        wrong = [text for text in texts if text != right]
        if right in texts and wrong:
            name = f"new-{round}-{one.prompt.id}"
            found.append(Preference(name, one.prompt.text, right, wrong[0], one.prompt.source))
    return found


def refreshed(
    gang: Gang, judge: Judge, settings: Refresh, seen: Sequence[Rollout], shared: Start,
    round: int, folder: Path,
) -> tuple[Judge, dict[str, float]]:  # fmt: skip
    """The judge trained on, as `rlhf_ray.refresh` does it, and what the training noted."""
    new = verified(seen, round) if settings.fresh_share else []
    names = {one.id for one in new}

    def draw(kept: Sequence[Preference]) -> Mixture:
        fresh, rows = np.array([one.id in names for one in kept]), np.arange(len(kept))
        return Mixture(rows[fresh], rows[~fresh], settings.fresh_share) if new else evenly(kept)

    training = FIRST.model_copy(
        update={key: getattr(settings, key) for key in ("steps", "batch_size", "optimizer")}
    )
    build, _ = judge.reading.build(
        [*shared.labelled, *new], training, LEARNER, draw=draw,
        seed=seed_of(shared.seed, "refresh", round),
        meta=(judge.groups(seen), settings) if settings.kind == "meta" else None,
    )  # fmt: skip
    gang.train(build)
    notes = gang.notes()
    gang.export(folder, shared.policy)
    gang.end()
    return Judge(str(folder)), notes


def one_loop(gang: Gang, shared: Start, arm: str) -> Row:
    """One arm: rounds of refreshing the judge and training the policy, measured in each."""
    gang.begin(
        partial(policy_trainer, shared.policy, LEARNER, pad_id=shared.chat.pad_id,
                total_steps=ROUNDS * WAVES)
    )  # fmt: skip
    trainer, settings, judge = gang.trainers[-1], ARMS[arm], Judge(shared.judge)
    row: Row = {}
    with TemporaryDirectory() as folder:
        for round in range(1, ROUNDS + 1):
            trainer.begin_round()
            found: dict[str, float] = {}
            if settings is not None:
                seen = shared.samples(trainer.model, "refresh", round, META, META_RESPONSES)
                target = Path(folder) / f"{round}"
                judge, found = refreshed(gang, judge, settings, seen, shared, round, target)
            rollouts, quality = examined(trainer.model, shared)
            found |= quality | judged(judge, rollouts, shared, round, arm)
            row |= {f"{name}_{round}": value for name, value in found.items()}
            for wave in range(WAVES):
                improve(trainer, judge, shared, round, wave)
        _, quality = examined(trainer.model, shared)
    gang.end()
    row |= {f"{name}_{ROUNDS + 1}": value for name, value in quality.items()}
    means = {name: float(np.mean([row[f"{name}_{at}"] for at in range(1, ROUNDS + 1)]))
             for name in ("own", "same", "held_out", "J", "spread")}  # fmt: skip
    return row | means


def examined(model: Any, shared: Start) -> tuple[list[Rollout], dict[str, float]]:
    """Samples of the policy on prompts nothing is trained on, and what gold says of it."""
    chat, exam = shared.chat, shared.exam
    rollouts = sample(model, chat, exam, shared.rolls("exam", 0, len(exam), EXAM_RESPONSES))
    sampled, greedy = rewards(rollouts), rewards(sample(model, chat, exam, None))
    return rollouts, {
        "gold": float(sampled.mean()),
        "right": float((sampled == 1.0).mean()),
        "greedy": float((greedy == 1.0).mean()),
    }


def judged(
    judge: Judge, rollouts: Sequence[Rollout], shared: Start, round: int, arm: str
) -> dict[str, float]:
    """What the judge is worth on its own policy's samples, on those all arms share, on old pairs.

    Shared are the samples of the loop without refreshes; its policies differ from this arm's from
    the second round on. `differs` is the largest difference from the scores of plain, old pairs in
    the first round, when all arms have the same policy, samples and batches.
    """
    scores = judge.scores(rollouts)
    same = _shared(rollouts, shared.left / f"said-{round}.json", write=arm == NONE)
    found = {
        "own": agreement(scores, rewards(rollouts)),
        "same": agreement(judge.scores(same), rewards(same)),
        "held_out": accuracy(judge.margins(shared.held_out)),
        "J": float(meta_spread(torch.from_numpy(scores))),
        "spread": float(spread(torch.from_numpy(scores))),
    }
    assert np.isfinite(list(found.values())).all(), found
    if round == 1 and arm == OLD:
        np.save(shared.left / "scores.npy", scores, allow_pickle=False)
    if round == 1 and arm != NONE:
        usual = np.load(shared.left / "scores.npy", allow_pickle=False)
        found["differs"] = float(np.abs(scores - usual).max())
    return found


def _shared(rollouts: Sequence[Rollout], path: Path, *, write: bool) -> list[Rollout]:
    """The samples all arms share; written by the one loop they are from."""
    if write:
        path.write_text(json.dumps([[it.text for it in one.responses] for one in rollouts]))
    said = json.loads(path.read_text())
    return [
        replace(one, responses=tuple(Response(text, (), UNREAD, True) for text in row))
        for one, row in zip(rollouts, said, strict=True)
    ]


def improve(trainer: Any, judge: Judge, shared: Start, round: int, wave: int) -> None:
    """One wave: samples, scores, pairs, one update of the policy."""
    rollouts = shared.samples(trainer.model, f"wave-{wave}", round, WAVE, RESPONSES)
    scores, arms = judge.scores(rollouts), ["judge"] * WAVE
    found, _ = build_pairs(rollouts, scores, arms, kind="best_worst", per_prompt=2)
    order = generator(shared.seed, f"wave-{wave}-order", round).permutation(len(found))
    trainer.update(found, order, train=True)


def prepared(gang: Gang, work: Path, seed: int) -> Start:
    """The start policy, the first judge and the data of a seed; models are made once."""
    asked = prompts(FAMILIES, 12_000, seed=seed, purpose="lm")
    # Half from a strong policy: a start that is right in four of ten has something to compare.
    examples = [
        *demonstrations(asked[:6_000], "start", seed=seed),
        *demonstrations(asked[6_000:], "strong", seed=seed),
    ]
    policy = language_model(
        gang, work / f"lm-{seed}",
        lambda chat: [(one,) for one in example_tokens(examples, chat, limit=64)],
        texts=texts(examples), scratch=SIZE, steps=200, seed=seed,
    )  # fmt: skip
    items = prompts(FAMILIES, LABELLED, seed=seed, purpose="judge")
    labelled, _ = pairs(items, "start", seed=seed, purpose="pairs", flips=FLIPS)
    unseen = prompts(FAMILIES, HELD_OUT + EXAM, seed=seed, purpose="test", evaluation=True)
    held_out, _ = pairs(unseen[:HELD_OUT], "start", seed=seed, purpose="test")
    judge = work / f"judge-{seed}"
    if not (judge / "config.json").is_file():
        reading = Reading.of(BradleyTerryJudge(path=policy), policy, None)
        build, _ = reading.build(labelled, FIRST, LEARNER, draw=evenly, seed=seed_of(seed, "judge"))
        gang.train(build)
        gang.export(judge, policy)
        gang.end()
    left = work / f"left-{seed}"
    left.mkdir(exist_ok=True)
    return Start(seed, policy, str(judge), labelled, held_out, unseen[HELD_OUT:], left)


def one_seed(cells: Cells, gang: Gang, work: Path, seed: int) -> None:
    """All loops of one seed; the one without refreshes comes first, others read its samples."""
    shared = prepared(gang, work, seed)
    for arm in ARMS:
        compute = partial(one_loop, gang, shared, arm)
        cells.cell(compute, arm=arm, seed=seed)


def report(cells: Cells) -> str:
    """The tables of `docs/evidence/refresh.md`."""
    ends, end = range(1, ROUNDS + 2), ROUNDS + 1

    def of(arm: str, *names: str, **how: Any) -> list[str]:
        mine = [row for row in cells.rows if row["arm"] == arm]
        return [shown([row[name] for row in mine if name in row], **how) for name in names]

    def over(arm: str, name: str, *others: str) -> list[str]:
        return [shown(paired(cells.rows, arm, other, name)) for other in others]

    def table(title: str, heads: str, line: Callable[[str], list[str]]) -> str:
        head = ["refresh", *heads.split("; ")]
        body = [head, ["---"] * len(head), *([arm, *line(arm)] for arm in ARMS)]
        return f"\n{title}\n\n" + "\n".join(f"| {' | '.join(one)} |" for one in body)

    return "\n".join([
        table(
            "Accuracy of the judges, %, mean over rounds; differences in points",
            "its policy's samples; over none; over old pairs; over old and new pairs; samples all "
            "share; over none; over old pairs; held-out old pairs",
            lambda arm: [*of(arm, "own"), *over(arm, "own", NONE, OLD, NEW), *of(arm, "same"),
                         *over(arm, "same", NONE, OLD), *of(arm, "held_out")],
        ),
        table(
            "J and mean difference of scores on the policy's samples, mean over rounds; largest "
            "difference of a score from those of plain, old pairs after the first refresh",
            "J; spread; accuracy there, %; largest difference",
            lambda arm: [*of(arm, "J", scale=1, digits=3), *of(arm, "spread", scale=1, digits=2),
                         *of(arm, "own"), *of(arm, "differs_1", scale=1, digits=5)],
        ),
        table(
            "Accuracy on the current policy's samples in each round, %", "1; 2; 3; 4",
            lambda arm: of(arm, *(f"own_{at}" for at in ends[:-1])),
        ),
        table(
            "Right responses of the policy before each round and after the last, %, and after the "
            "last: differences in points, and right responses when greedy, %",
            "1; 2; 3; 4; end; over none; over old pairs; greedy",
            lambda arm: [*of(arm, *(f"right_{at}" for at in ends)),
                         *over(arm, f"right_{end}", NONE, OLD), *of(arm, f"greedy_{end}")],
        ),
    ])  # fmt: skip


def main() -> None:
    experiment(arguments(__doc__, "refresh").parse_args(), one_seed, report)


if __name__ == "__main__":
    main()
