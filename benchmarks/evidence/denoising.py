"""Does voting find wrong labels, and which recipe makes a better judge of them?

Secrets of RLHF II (arXiv 2401.06080), on generated pairs whose labels are turned round by a known
share: 4000 pairs, ten voters, judges of the same size for every recipe. Test pairs are clean.

    python benchmarks/evidence/denoising.py --seeds 5 --minutes 30
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from lab import (
    Cells,
    Gang,
    Row,
    accuracy,
    arguments,
    experiment,
    judge,
    language_model,
    paired,
    shown,
)
from world import demonstrations, flip, pairs, prompts

from rlhf_ray.config.judges import (
    BradleyTerryJudge,
    Denoising,
    FilePreferences,
    JudgeTraining,
)
from rlhf_ray.config.schema import Scratch
from rlhf_ray.config.section import Optimizer
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.keys import seed_of
from rlhf_ray.preferences.strength import Strengths, denoised, detection_auc

FAMILIES = ("sort", "rotate")
TRAIN, TEST, VOTERS, STEPS, BATCH = 4000, 2000, 10, 180, 64
VOTER_BATCH = 32
SIZE = Scratch(hidden_size=96, layers=2, heads=3, intermediate_size=384, max_positions=64)
RECIPES: dict[str, Denoising | None] = {
    "baseline": None,
    "flip": Denoising(flip=True),
    "flip bottom 20 %": Denoising(flip=True, flip_share=0.2),
    "margin": Denoising(margin_scale=1.0, margin_clip=2.0),
    "flip + margin": Denoising(flip=True, margin_scale=1.0, margin_clip=2.0),
    "soft 0.1 + margin": Denoising(epsilon=0.1, margin_scale=1.0, margin_clip=2.0),
    "drop 20 %": Denoising(drop_share=0.2),
}


def training(steps: int, batch: int) -> JudgeTraining:
    optimizer = Optimizer(lr=1e-3, schedule="linear", warmup_steps=10)
    return JudgeTraining(
        preferences=FilePreferences(train="generated"), steps=steps, batch_size=batch,
        optimizer=optimizer,
    )  # fmt: skip


def one_seed(cells: Cells, gang: Gang, work: Path, seed: int, shares: Sequence[float]) -> None:
    """All cells of one seed."""
    shown_texts = demonstrations(
        prompts(FAMILIES, 20_000, seed=seed, purpose="lm"), "start", seed=seed
    )
    policy = language_model(
        gang, work / f"lm-{seed}",
        lambda chat: [(one,) for one in example_tokens(shown_texts, chat, limit=64)],
        texts=texts(shown_texts), scratch=SIZE, steps=500, seed=seed,
    )  # fmt: skip
    for share in shares:
        at_share(cells, gang, work, policy, seed, share)


def at_share(cells: Cells, gang: Gang, work: Path, policy: str, seed: int, share: float) -> None:
    """Voters and recipes where that share of the labels is turned round."""
    items = prompts(FAMILIES, TRAIN, seed=seed, purpose="judge")
    train, flipped = pairs(items, "start", seed=seed, purpose="pairs", flips=share)
    unseen = prompts(FAMILIES, TEST, seed=seed, purpose="test", evaluation=True)
    test, _ = pairs(unseen, "start", seed=seed, purpose="test")
    entry = BradleyTerryJudge(path=policy)
    usual = training(STEPS, BATCH)
    votes: list[np.ndarray] = []

    def vote() -> Row:
        one_epoch = training(-(-TRAIN // VOTER_BATCH), VOTER_BATCH)
        for voter in range(VOTERS):
            found = judge(gang, entry, policy, train, {"train": train}, training=one_epoch,
                          seed=seed_of(seed, "voter", voter))  # fmt: skip
            votes.append(found["train"])
        scores = np.array(votes)
        np.save(work / f"votes-{seed}-{share}.npy", scores, allow_pickle=False)
        mean = scores.mean(axis=0)
        return {"auc": detection_auc(-mean, flipped), "below_zero": float((mean < 0).mean())}

    cells.cell(vote, arm="voters", seed=seed, flips=share)
    scores = np.load(work / f"votes-{seed}-{share}.npy", allow_pickle=False)
    strengths = Strengths(tuple(pair.id for pair in train), scores)
    right = [flip(pair) if wrong else pair for pair, wrong in zip(train, flipped, strict=True)]
    arms = {name: denoised(train, strengths, recipe) if recipe else train
            for name, recipe in RECIPES.items()}  # fmt: skip
    for name, data in (arms | {"clean labels": right}).items():

        def compute(data=data) -> Row:  # type: ignore[no-untyped-def]
            found = judge(gang, entry, policy, data, {"test": test, "train": right},
                          training=usual, seed=seed_of(seed, "judge"))  # fmt: skip
            return {name: accuracy(margins) for name, margins in found.items()}

        cells.cell(compute, arm=name, seed=seed, flips=share)


def report(cells: Cells) -> str:
    """The table of `docs/evidence/denoising.md`."""
    lines = []
    for share in sorted({row["flips"] for row in cells.rows}):
        rows = [row for row in cells.rows if row["flips"] == share]
        auc = [row["auc"] for row in rows if row["arm"] == "voters"]
        lines += [
            f"\n{100 * share:.0f} % of the labels turned round; AUC of the votes for finding "
            f"these: {shown(auc, scale=1, digits=3)}\n",
            "| recipe | clean test accuracy, % | over the baseline, points | of the training "
            "labels mended, % |",
            "|---|---|---|---|",
        ]
        for arm in [*RECIPES, "clean labels"]:
            found = [[row[name] for row in rows if row["arm"] == arm] for name in ("test", "train")]
            gains = paired(rows, arm, "baseline", "test")
            lines.append(f"| {arm} | {shown(found[0])} | {shown(gains)} | {shown(found[1])} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "denoising")
    parser.add_argument("--flips", type=float, nargs="+", default=[0.25])
    asked = parser.parse_args()
    experiment(asked, partial(one_seed, shares=asked.flips), report)


if __name__ == "__main__":
    main()
