"""Does writing pairs of responses before judging them make a better judge of what is new?

GRAM (arXiv 2506.14175), on generated pairs. Every language model has seen the same number of tokens
of the same responses; they differ in what stood side by side. Labels: two families, one policy.
New to the judges: responses of a stronger policy, and a third family without a label.

    python benchmarks/evidence/gram.py --seeds 5 --minutes 30
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

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
from world import demonstrations, pairs, prompts, respond

from rlhf_ray.bootstrap.judges import stage_one
from rlhf_ray.bootstrap.reading import Reading
from rlhf_ray.config.judges import (
    BradleyTerryJudge,
    FilePreferences,
    GenerativeJudge,
    JudgeTraining,
    VerdictTraining,
)
from rlhf_ray.config.schema import Scratch
from rlhf_ray.config.section import Families, Optimizer
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.data.verdicts import TEMPLATES, Verdicts
from rlhf_ray.keys import generator, seed_of
from rlhf_ray.losses.reward_model import smoothed_bt
from rlhf_ray.messages import Floats, Preference
from rlhf_ray.training.verdicts import load_label_logits, read_labels

LABELLED: tuple[Families, ...] = ("sort", "reverse")
NEW: Families = "rotate"
SIZE = Scratch(hidden_size=64, layers=2, heads=2, intermediate_size=256, max_positions=48)
TEMPLATE: Literal["terse-1"] = "terse-1"
POLICY_STEPS, CORPUS, STAGE_ONE_STEPS, STAGE_ONE_BATCH = 400, 20_000, 800, 64
LABELS, TEST, STEPS, BATCH = (100, 400, 1600), 600, 200, 32
SHOTS, SHOT_STEPS = (0, 16, 64, 256), 60
EPSILON, FLIPS, FLIPPED = 0.05, (0.0, 0.25), 100
ARMS = {
    "D": ("singles", False, 0.0),
    "D + smoothing": ("singles", False, EPSILON),
    "D, pairs": ("pairs", False, 0.0),
    "G": ("singles", True, EPSILON),
    "G, shuffled": ("shuffled", True, EPSILON),
    "GRAM": ("pairs", True, EPSILON),
    "GRAM, no smoothing": ("pairs", True, 0.0),
}
"""Arm: what its language model read, whether it is generative, its label smoothing."""
SMOOTHED = ("D", "D + smoothing", "GRAM, no smoothing", "GRAM")
EXAMS = ("known", "strong", "family")
"""Test pairs like the labelled ones; of the stronger policy; of the family without labels."""
COLUMNS = (*EXAMS, "new")
LONG_STEPS = 800
"""Generative judges have not fitted the most labels after `STEPS`; these have."""
LONGER = ("D", "D, pairs", "G", "G, shuffled", "GRAM")
ORDERED = ("G", "G, shuffled", "GRAM")
CONTRASTS = tuple(
    one.split(" > ")
    for one in ("G > D", "GRAM > G", "GRAM > D", "GRAM > G, shuffled", "GRAM > D, pairs")
)


class World:
    """The data of one seed and the language models that judges start from."""

    def __init__(self, gang: Gang, work: Path, seed: int) -> None:
        self.gang, self.work, self.seed = gang, work, seed
        known, new = LABELLED, (NEW,)
        labelled = prompts(known, max(LABELS), seed=seed, purpose="judge")
        few = prompts(new, max(SHOTS), seed=seed, purpose="shots")
        self.shots, _ = pairs(few, "start", seed=seed, purpose="shots")
        self.labelled = {
            share: pairs(labelled, "start", seed=seed, purpose="pairs", flips=share)[0]
            for share in FLIPS
        }
        unseen = partial(prompts, seed=seed, purpose="test", evaluation=True)
        self.exams = {
            name: pairs(unseen(families, TEST), policy, seed=seed, purpose=f"test-{name}")[0]
            for name, families, policy in zip(
                EXAMS, (known, known, new), ("start", "strong", "start"), strict=True
            )
        }

    def models(self) -> dict[str, str]:
        """The folder of the language model of each arrangement, made once."""
        families = (*LABELLED, NEW)
        items = prompts(families, CORPUS, seed=self.seed, purpose="lm")
        examples = demonstrations(items, "start", seed=self.seed)
        policy = language_model(
            self.gang, self.work / f"policy-{self.seed}",
            lambda chat: [(one,) for one in example_tokens(examples, chat, limit=48)],
            texts=[*texts(examples), "".join(sorted(TEMPLATES[TEMPLATE].alphabet))],
            scratch=SIZE, steps=POLICY_STEPS, seed=self.seed,
        )  # fmt: skip
        corpus = self._unlabelled(families)

        def model(arrangement: str) -> str:
            # One response is half of a pair: twice as many make the same number of tokens.
            twice = 2 if arrangement == "singles" else 1
            return language_model(
                self.gang, self.work / f"{arrangement}-{self.seed}",
                lambda chat: stage_one(corpus, Verdicts(chat, TEMPLATE), arrangement, self.seed,
                                       chat.limit(None)),
                start=policy, steps=STAGE_ONE_STEPS, batch_size=STAGE_ONE_BATCH * twice,
                seed=seed_of(self.seed, "stage-1"),
            )  # fmt: skip

        return {one: model(one) for one in ("singles", "shuffled", "pairs")}

    def _unlabelled(self, families: Sequence[Families]) -> list[Preference]:
        """Two responses to each prompt as they come, equal ones too; their order says nothing."""
        rng = generator(self.seed, "unlabelled")
        return [
            Preference(
                one.id, one.text, respond(one, "start", rng), respond(one, "start", rng), one.source
            )
            for one in prompts(families, CORPUS, seed=self.seed, purpose="unlabelled")
        ]


def taught(
    gang: Gang,
    arm: str,
    model: str,
    data: Sequence[Preference],
    exams: Mapping[str, Sequence[Preference]],
    *,
    steps: int,
    seed: int,
    folder: Path | None = None,
) -> dict[str, Floats]:
    """Train the judge of an arm; its margins [N] on each of `exams`. `folder` keeps the judge."""
    _, generative, epsilon = ARMS[arm]
    settings = {
        "preferences": FilePreferences(train="generated"), "steps": steps, "batch_size": BATCH,
        "label_smoothing": epsilon,
        "optimizer": Optimizer(lr=2e-3, schedule="linear", warmup_steps=10),
    }  # fmt: skip
    training = (VerdictTraining if generative else JudgeTraining).model_validate(settings)
    entry = GenerativeJudge(path=model, template=TEMPLATE) if generative else None
    return judge(
        gang, entry or BradleyTerryJudge(path=model), model, data, exams,
        training=training, seed=seed, folder=folder,
    )  # fmt: skip


def leads(path: str, items: Sequence[Preference]) -> Floats:
    """[2, N] how far the chosen response leads, standing first and standing second."""
    reading = Reading.of(GenerativeJudge(path=path, template=TEMPLATE), path, None)
    assert reading.label_ids is not None
    module = load_label_logits(path, reading.label_ids)
    asked = [reading.render(one) for one in items]
    orders = ([one.chosen_first for one in asked], [one.rejected_first for one in asked])
    first, second = (
        read_labels(module, order, pad_id=reading.chat.pad_id, tokens_per_batch=32_768)[0]
        for order in orders
    )
    return np.stack([np.log(first / (1 - first)), np.log((1 - second) / second)])


def measured(found: Mapping[str, Floats]) -> Row:
    """Accuracy on each exam, and how large the margins on the training pairs became."""
    size = np.abs(found["train"])
    rates = {name: accuracy(found[name]) for name in EXAMS}
    return rates | {
        "new": (rates["strong"] + rates["family"]) / 2,
        "margin": float(size.mean()),
        "margin_95": float(np.quantile(size, 0.95)),
    }


def verdicts(path: str, exams: Mapping[str, Sequence[Preference]]) -> Row:
    """What the two orders of a generative judge's test pairs say, one by one."""
    both = leads(path, [pair for name in EXAMS for pair in exams[name]])
    first, second = both
    delta = both.mean(axis=0)
    chances = 1 / (1 + np.exp(-both))
    entropy = -(1 - EPSILON) * np.log(chances) - EPSILON * np.log(1 - chances)
    return {
        "consistent": float(np.mean(np.sign(first) == np.sign(second))),
        "one_order": (accuracy(first) + accuracy(second)) / 2,
        "both_orders": accuracy(delta),
        "position": float(np.abs((first - second) / 2).mean()),
        "margin": float(np.abs(delta).mean()),
        "identity": float(np.abs(entropy - _smoothed(both)).max()),
    }


def _smoothed(delta: Floats) -> Floats:
    """The product's loss of these margins, in the shape they have."""
    import torch

    found: Floats = smoothed_bt(torch.from_numpy(delta.ravel()), EPSILON).numpy()
    return found.reshape(delta.shape)


def one_seed(cells: Cells, gang: Gang, work: Path, seed: int) -> None:
    """All cells of one seed."""
    world = World(gang, work, seed)
    models = world.models()
    _arms(cells, world, models)
    _longer(cells, world, models)
    _verdicts(cells, world)
    _adaptation(cells, world, models["pairs"])


def _judge_folder(work: Path, arm: str, seed: int) -> Path:
    return work / f"judge-{arm.replace(', ', '-')}-{seed}"


def _arms(cells: Cells, world: World, models: Mapping[str, str]) -> None:
    """Every arm on every number of labels, and the smoothed ones on turned labels as well."""
    asked = [(arm, labels, 0.0) for labels in LABELS for arm in ARMS]
    asked += [(arm, FLIPPED, share) for share in FLIPS[1:] for arm in SMOOTHED]
    for arm, labels, share in asked:
        keep = arm in ORDERED and labels == max(LABELS) and share == 0.0
        folder = _judge_folder(world.work, arm, world.seed) if keep else None
        data = world.labelled[share][:labels]
        compute = partial(_examined, world, models, arm, data, STEPS, folder)
        key = {"part": "arms", "arm": arm, "seed": world.seed, "labels": labels, "flips": share}
        cells.cell(compute, **key)


def _longer(cells: Cells, world: World, models: Mapping[str, str]) -> None:
    """The most labels again, with more steps."""
    for arm in LONGER:
        compute = partial(_examined, world, models, arm, world.labelled[0.0], LONG_STEPS)
        key = {"part": "longer", "arm": arm, "seed": world.seed}
        cells.cell(compute, labels=max(LABELS), flips=0.0, **key)


def _examined(
    world: World,
    models: Mapping[str, str],
    arm: str,
    data: Sequence[Preference],
    steps: int,
    folder: Path | None = None,
) -> Row:
    """A judge of one arm, trained and measured."""
    found = taught(
        world.gang, arm, models[ARMS[arm][0]], data, world.exams | {"train": data},
        steps=steps, seed=seed_of(world.seed, "judge"), folder=folder,
    )  # fmt: skip
    return measured(found)


def _verdicts(cells: Cells, world: World) -> None:
    for arm in ORDERED:
        folder = str(_judge_folder(world.work, arm, world.seed))
        compute = partial(verdicts, folder, world.exams)
        cells.cell(compute, part="orders", arm=arm, seed=world.seed)


def _adaptation(cells: Cells, world: World, pair_model: str) -> None:
    """The family without labels gets a few: taught on from the judge, and from its start."""
    exam = {"family": world.exams["family"]}
    starts = {"from the judge": str(_judge_folder(world.work, "GRAM", world.seed)),
              "from its language model": pair_model}  # fmt: skip
    for shots in SHOTS:
        for arm, model in starts.items():

            def compute(model=model, shots=shots) -> Row:  # type: ignore[no-untyped-def]
                if not shots:
                    return {"family": accuracy(leads(model, exam["family"]).mean(axis=0))}
                found = taught(
                    world.gang, "GRAM", model, world.shots[:shots], exam,
                    steps=SHOT_STEPS, seed=seed_of(world.seed, "shots"),
                )  # fmt: skip
                return {"family": accuracy(found["family"])}

            key = {"part": "adapt", "arm": arm, "seed": world.seed, "shots": shots}
            cells.cell(compute, **key)


def report(cells: Cells) -> str:
    """The tables of `docs/evidence/gram.md`."""
    parts = {name: [row for row in cells.rows if row["part"] == name]
             for name in ("arms", "longer", "orders", "adapt")}  # fmt: skip
    most, among = LABELS[-1:], [one for one in CONTRASTS if set(one) <= {*LONGER}]
    tables = (
        _accuracies(parts["arms"], LABELS, ARMS),
        _differences(parts["arms"], LABELS, CONTRASTS),
        f"The most labels, {LONG_STEPS} steps instead of {STEPS}:",
        _accuracies(parts["longer"], most, LONGER),
        _differences(parts["longer"], most, among),
        _margins(parts["arms"]),
        _adapted(parts["adapt"]),
        _orders(parts["orders"]),
    )
    return "\n\n".join(tables)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _values(rows: Sequence[Row], value: str, **key: object) -> list[float]:
    return [row[value] for row in rows if all(row[name] == want for name, want in key.items())]


def _accuracies(rows: Sequence[Row], counts: Sequence[int], arms: Iterable[str]) -> str:
    head = ["labels", "arm", "like the labelled, %", "stronger policy, %", "new family, %",
            "mean of both new, %", "mean margin on training pairs"]  # fmt: skip
    body = []
    for labels, arm in product(counts, arms):
        key = {"arm": arm, "labels": labels, "flips": 0.0}
        rates = [shown(_values(rows, exam, **key)) for exam in COLUMNS]
        margin = shown(_values(rows, "margin", **key), scale=1, digits=2)
        body.append([str(labels), arm, *rates, margin])
    return _table(head, body)


def _differences(
    rows: Sequence[Row], counts: Sequence[int], contrasts: Sequence[Sequence[str]]
) -> str:
    """Per seed, points of one arm over another."""
    head = ["labels", "arm over arm, points", "like the labelled", "stronger policy", "new family",
            "mean of both new"]  # fmt: skip
    body = [
        [str(labels), f"{better} over {worse}"]
        + [shown(paired(rows, better, worse, exam, labels=labels, flips=0.0)) for exam in COLUMNS]
        for labels in counts
        for better, worse in contrasts
    ]
    return _table(head, body)


def _margins(rows: Sequence[Row]) -> str:
    bound = np.log((1 - EPSILON) / EPSILON)
    head = ["labels", "turned round, %", "arm",
            f"mean margin on training pairs (smoothing: best {bound:.2f})", "95th percentile",
            "clean accuracy like the labelled, %", "mean of both new, %"]  # fmt: skip
    body = []
    for labels, share in [*((one, 0.0) for one in LABELS), *((FLIPPED, one) for one in FLIPS[1:])]:
        for arm in SMOOTHED:
            key = {"arm": arm, "labels": labels, "flips": share}
            sizes = [shown(_values(rows, name, **key), scale=1, digits=2)
                     for name in ("margin", "margin_95")]  # fmt: skip
            rates = [shown(_values(rows, name, **key)) for name in ("known", "new")]
            body.append([str(labels), f"{100 * share:.0f}", arm, *sizes, *rates])
    return _table(head, body)


def _adapted(rows: Sequence[Row]) -> str:
    arms = ("from the judge", "from its language model")
    head = ["labels of the new family", *(f"{arm}, %" for arm in arms), "difference, points"]
    body = [
        [str(shots)]
        + [shown(_values(rows, "family", arm=arm, shots=shots)) for arm in arms]
        + [shown(paired(rows, *arms, "family", shots=shots))]
        for shots in SHOTS
    ]
    return _table(head, body)


def _orders(rows: Sequence[Row]) -> str:
    head = ["judge", "same verdict in both orders, %", "accuracy in one order, %",
            "accuracy of both orders' mean, %", "mean pull of the position, logits",
            "mean margin, logits", "largest gap between the two forms of the loss"]  # fmt: skip
    body = []
    for arm in ORDERED:
        key = {"arm": arm}
        rates = [shown(_values(rows, name, **key))
                 for name in ("consistent", "one_order", "both_orders")]  # fmt: skip
        sizes = [shown(_values(rows, name, **key), scale=1, digits=2)
                 for name in ("position", "margin")]  # fmt: skip
        gaps = _values(rows, "identity", **key)
        body.append([arm, *rates, *sizes, f"{max(gaps):.0e}" if gaps else "–"])
    return _table(head, body)


def main() -> None:
    experiment(arguments(__doc__, "gram").parse_args(), one_seed, report)


if __name__ == "__main__":
    main()
