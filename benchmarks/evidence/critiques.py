"""What is a critique worth to a judge, and what is left of it when the critic is wrong?

Improving reward models with synthetic critiques (arXiv 2405.20850), on generated pairs: judges of
one size with the same labels, steps and batches, who read no critique, gold critiques of four
qualities, controls, or what a learned critic wrote. Nothing is trained on the prompts of the test.

    python benchmarks/evidence/critiques.py --seeds 5 --minutes 20
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import groupby, product
from math import exp, inf, log
from pathlib import Path

import numpy as np
import torch
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

from rlhf_ray.config.judges import (
    BradleyTerryJudge,
    Critic,
    CritiquedJudge,
    CritiquedTraining,
    FilePreferences,
    JudgeTraining,
)
from rlhf_ray.config.schema import Scratch
from rlhf_ray.config.section import Families, Optimizer
from rlhf_ray.critiques.cache import CritiqueCache
from rlhf_ray.critiques.pairs import with_critiques
from rlhf_ray.critiques.template import TEMPLATES
from rlhf_ray.critiques.writer import Ask, Completion, Control, CritiqueWriter
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.gold.critics import (
    ALPHABET,
    ASPECTS,
    critique_demonstrations,
    critique_quality,
    gold_critique,
)
from rlhf_ray.keys import generator, seed_of
from rlhf_ray.messages import Preference, Prompt
from rlhf_ray.training.loading import load_causal_lm

FAMILIES: tuple[Families, ...] = ("sort", "rotate")
SIZE = Scratch(hidden_size=64, layers=2, heads=2, intermediate_size=256, max_positions=64)
TEST, CRITIC_PROMPTS = 1000, 8000
STEPS = {50: 60, 200: 100, 800: 120, 3200: 180, 6400: 220}
"""Labelled pairs -> steps, the same for every arm."""
COUNTS = (50, 200, 800, 3200)
"""Pairs with critiques; plain ones also come in a larger number, to compare with."""
SCARCE, ENDS = (50, 200, 800), (50, 800)
BATCH, LR = 32, 1e-3
CRITIC_STEPS, CRITIC_BATCH, CRITIC_LR = 900, 64, 1e-3
TEMPLATE = TEMPLATES["terse-1"]
LONGEST = 2 * len(ASPECTS) + 1
"""Tokens of a critique, with the end token."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What a judge reads, in training and, unless an exam says otherwise, at the test."""

    critic: str | None = None
    """A quality, `learned`, or None: plain Bradley-Terry."""
    control: Control = "none"
    only: bool = False
    dropout: float = 0.0
    taught: bool = False
    """Starts from the learned critic's weights."""
    mismatch: bool = False
    """Also sits the exams with bad critiques, and with none."""
    counts: tuple[int, ...] = COUNTS
    """Numbers of labelled pairs it is trained on."""


PLAIN = "no critique"
ARMS: Mapping[str, Arm] = {
    PLAIN: Arm(counts=tuple(STEPS)),
    "q = 0.95": Arm("0.95", mismatch=True),
    "q = 0.8": Arm("0.8"),
    "q = 0.6": Arm("0.6"),
    "q = 0.5": Arm("0.5"),
    "q = 0.95, shuffled": Arm("0.95", "shuffled", counts=SCARCE),
    "constant": Arm("0.95", "constant", counts=ENDS),
    "q = 0.95, critique only": Arm("0.95", only=True, counts=ENDS),
    "q = 0.95, dropout 0.25": Arm("0.95", dropout=0.25, mismatch=True, counts=SCARCE),
    "learned critic": Arm("learned"),
    "learned critic, critique only": Arm("learned", only=True, counts=ENDS),
    "no critique, from the critic's weights": Arm(taught=True, counts=ENDS),
}
QUALITIES = ("q = 0.95", "q = 0.8", "q = 0.6", "q = 0.5")
MATCHED = (*QUALITIES, "learned critic")
BAD = "0.5"


class Greedy:
    """A small language model on disk as a critic. Questions of one length share a batch."""

    def __init__(self, folder: str, batch: int = 512) -> None:
        self.chat, self.batch = Chat.load(folder), batch
        self.model = load_causal_lm(folder).eval()

    def __call__(self, asks: Sequence[Ask]) -> list[Completion]:
        ids = [self.chat.prompt_ids(ask.text) for ask in asks]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found: dict[int, Completion] = {}
        for _, same in groupby(order, key=lambda row: len(ids[row])):
            rows = list(same)
            for at in range(0, len(rows), self.batch):
                part = rows[at : at + self.batch]
                found.update(zip(part, self._answers([ids[row] for row in part]), strict=True))
        return [found[row] for row in range(len(ids))]

    def _answers(self, ids: Sequence[tuple[int, ...]]) -> Iterator[Completion]:
        batch = torch.tensor(ids)
        with torch.no_grad():
            out = self.model.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=False,
                max_new_tokens=LONGEST, pad_token_id=self.chat.pad_id,
                eos_token_id=self.chat.end_id,
            )[:, batch.shape[1] :]  # fmt: skip
        for row in out:
            text = self.chat.tokenizer.decode(row, skip_special_tokens=True)
            yield Completion(text, int((row != self.chat.pad_id).sum()), "ok")


class World:
    """One seed: its models, its pairs, and the same pairs with critiques."""

    def __init__(self, gang: Gang, work: Path, seed: int) -> None:
        self.gang, self.work, self.seed = gang, work, seed
        items = prompts(FAMILIES, max(STEPS), seed=seed, purpose="judge")
        unseen = prompts(FAMILIES, TEST, seed=seed, purpose="test", evaluation=True)
        self.items = {one.id: one for one in [*items, *unseen]}
        self.sets = {
            "train": pairs(items, "start", seed=seed, purpose="pairs")[0],
            "test": pairs(unseen, "start", seed=seed, purpose="test")[0],
        }
        self.critiqued = cache(self._critiqued)

    @cached_property
    def policy(self) -> str:
        """Where all judges and the critic start; it has read no critique."""
        shown_texts = demonstrations(
            prompts(FAMILIES, 20_000, seed=self.seed, purpose="lm"), "start", seed=self.seed
        )
        alphabet = "".join(sorted(TEMPLATE.alphabet | ALPHABET))
        return language_model(
            self.gang, self.work / f"lm-{self.seed}",
            lambda chat: [(one,) for one in example_tokens(shown_texts, chat, limit=64)],
            texts=[*texts(shown_texts), alphabet], scratch=SIZE, steps=300, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def critic(self) -> str:
        """The policy, taught to criticise responses to prompts of which no judge sees a pair."""
        drawn = prompts(FAMILIES, 2 * CRITIC_PROMPTS, seed=self.seed, purpose="critic")
        asked = [one for one in drawn if one.id not in self.items][:CRITIC_PROMPTS]
        rng = generator(self.seed, "critic-responses")
        responses = [[respond(one, "start", rng) for _ in range(4)] for one in asked]
        shown_texts = critique_demonstrations(
            asked, responses, quality=1.0, seed=self.seed, template=TEMPLATE
        )
        return language_model(
            self.gang, self.work / f"critic-{self.seed}",
            lambda chat: [(one,) for one in example_tokens(shown_texts, chat, limit=64)],
            start=self.policy, steps=CRITIC_STEPS, batch_size=CRITIC_BATCH, lr=CRITIC_LR,
            seed=seed_of(self.seed, "critic"),
        )  # fmt: skip

    def _complete(self, critic: str) -> Callable[[Sequence[Ask]], list[Completion]]:
        if critic == "learned":
            return Greedy(self.critic)
        by_text = {one.text: one for one in self.items.values()}

        def complete(asks: Sequence[Ask]) -> list[Completion]:
            found = []
            for ask in asks:
                prompt, equals, rest = ask.text.partition("=")
                response = rest.removesuffix(TEMPLATE.after)
                text = gold_critique(
                    by_text[prompt + equals], response, quality=float(critic), seed=self.seed
                )
                found.append(Completion(text, LONGEST, "ok"))
            return found

        return complete

    def _critiqued(self, name: str, critic: str, control: Control = "none") -> list[Preference]:
        """A set of pairs with the critiques of a critic, as the product's writer gives them."""
        learned = critic == "learned"
        kept = CritiqueCache(self.work / f"critiques-{self.seed}" if learned else None)
        writer = CritiqueWriter(
            self._complete(critic), template=TEMPLATE, critic=critic, cache=kept,
            max_tokens=LONGEST, control=control, seed=seed_of(self.seed, name),
        )  # fmt: skip
        found = with_critiques(
            self.sets[name][: max(COUNTS)],
            lambda asked, responses: writer.write(asked, responses, [True] * len(asked)),
        )
        kept.close()
        return found

    def train(self, arm: Arm, count: int) -> Row:
        """A judge of this arm from `count` labels; its accuracy on each of its exams."""
        path = self.critic if arm.taught else self.policy
        entry: BradleyTerryJudge | CritiquedJudge = BradleyTerryJudge(path=path)
        labelled, exams = self.sets["train"], {"test": self.sets["test"]}
        if arm.critic is not None:
            entry = CritiquedJudge(path=path, critique_only=arm.only)
            labelled = self.critiqued("train", arm.critic, arm.control)
            exams = {"test": self.critiqued("test", arm.critic, arm.control)}
        if arm.mismatch:
            exams |= {"bad": self.critiqued("test", BAD), "blank": self.sets["test"]}
        critic, seed = Critic(template="terse-1"), seed_of(self.seed, "judge")
        found = judge(self.gang, entry, path, labelled[:count], exams, critic=critic, seed=seed,
                      training=training(arm, STEPS[count]))  # fmt: skip
        return {name: accuracy(margins) for name, margins in found.items()}

    def verdicts(self, critic: str) -> Row:
        """How often a critic's statements are right, and how far counting its praise gets one."""
        read = self.critiqued("test", critic)
        asked = [self.items[pair.id] for pair in read]
        responses = [(pair.chosen, pair.rejected) for pair in read]
        written = [(pair.chosen_critique, pair.rejected_critique) for pair in read]
        spoken = [(self.items[pair.id].answer or "", *one) for pair in read
                  for one in ((pair.chosen, pair.chosen_critique),
                              (pair.rejected, pair.rejected_critique))]  # fmt: skip
        each = {
            aspect: float(np.mean([(f"{aspect}+" in text) == holds(right, response)
                                   and (f"{aspect}-" in text) != holds(right, response)
                                   for right, response, text in spoken]))
            for aspect, holds in ASPECTS.items()
        }  # fmt: skip
        praise = np.array([[text.count("+") for text in row] for row in written])
        return each | {
            "verdicts": critique_quality(asked, responses, written),
            "blind": blind(asked, responses),
            "counting": accuracy((praise[:, 0] - praise[:, 1]).astype(float)),
        }


def training(arm: Arm, steps: int) -> JudgeTraining:
    """The same for all arms of one number of labels, but for the dropout of critiques."""
    kind = JudgeTraining if arm.critic is None else CritiquedTraining
    found = kind(
        preferences=FilePreferences(train="generated"), steps=steps, batch_size=BATCH,
        optimizer=Optimizer(lr=LR, schedule="linear", warmup_steps=10),
    )  # fmt: skip
    return found.model_copy(update={"critique_dropout": arm.dropout} if arm.critic else {})


def blind(asked: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> float:
    """Share of right statements of the best critic that says the same of all responses."""
    same = ["".join(map("".join, zip(ASPECTS, signs, strict=True)))
            for signs in product("+-", repeat=len(ASPECTS))]  # fmt: skip
    return max(critique_quality(asked, responses, [[text] * 2] * len(asked)) for text in same)


def one_seed(cells: Cells, gang: Gang, work: Path, seed: int) -> None:
    """All cells of one seed."""
    world = World(gang, work, seed)
    for critic in dict.fromkeys(arm.critic for arm in ARMS.values() if arm.critic):
        compute = partial(world.verdicts, critic)
        cells.cell(compute, arm="critic", critic=critic, seed=seed)
    for count in STEPS:
        for name, arm in ARMS.items():
            if count not in arm.counts:
                continue
            compute = partial(world.train, arm, count)
            cells.cell(compute, arm=name, n=count, seed=seed)


def pairs_for(value: float, curve: Mapping[int, float]) -> float:
    """Plain pairs that reach an accuracy: straight lines over log n between the curve's points.

    The curve is made to never fall. 0 where its first point is above the value, inf where none is.
    """
    before: tuple[float, float] | None = None
    for count, reached in sorted(curve.items()):
        if reached >= value:
            if before is None:
                return float(count) if reached == value else 0.0
            share = (value - before[1]) / (reached - before[1])
            return exp(before[0] + share * (log(count) - before[0]))
        if before is None or reached > before[1]:
            before = log(count), reached
        else:
            before = log(count), before[1]
    return inf


def factor(value: float, curve: Mapping[int, float], count: int) -> str:
    """Plain pairs per pair with critiques, at equal accuracy."""
    found = pairs_for(value, curve)
    mark = {0.0: "< ", inf: "> "}.get(found, "")
    times = {0.0: min(curve), inf: max(curve)}.get(found, found) / count
    return f"{mark}{times:.0f}" if times >= 10 else f"{mark}{times:.2g}"


def column(rows: Sequence[Row], arm: str, count: int, value: str = "test") -> dict[int, float]:
    """Per seed, one value of an arm."""
    return {row["seed"]: row[value] for row in rows if row["arm"] == arm and row.get("n") == count}


def equivalence(rows: Sequence[Row], arm: str, count: int) -> str:
    """`12 [8.5 … > 16]`: on the curves of means, and the seeds of least and greatest gain."""
    curves = {n: column(rows, PLAIN, n) for n in STEPS}
    mine = column(rows, arm, count)
    seeds = sorted(seed for seed in mine if all(seed in found for found in curves.values()))
    if not seeds:
        return "–"
    means = {n: float(np.mean([found[seed] for seed in seeds])) for n, found in curves.items()}
    own = [{n: found[seed] for n, found in curves.items()} for seed in seeds]
    each = sorted(range(len(seeds)), key=lambda row: pairs_for(mine[seeds[row]], own[row]))
    ends = [factor(mine[seeds[row]], own[row], count) for row in (each[0], each[-1])]
    usual = factor(float(np.mean([mine[seed] for seed in seeds])), means, count)
    return f"{usual} [{ends[0]} … {ends[1]}]"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(cells: Cells) -> str:
    """The tables of `docs/evidence/critiques.md`."""
    rows = cells.rows
    critics = [row for row in rows if row["arm"] == "critic"]
    arms = [name for name, arm in ARMS.items() if not (arm.mismatch and arm.dropout)]
    counts = [f"{count} pairs" for count in STEPS]
    reached = table(
        ["judge reads", *counts],
        [[name, *(shown([*column(rows, name, n).values()]) for n in STEPS)] for name in arms],
    )
    gains = table(
        ["judge reads", *counts[: len(COUNTS)]],
        [[name, *(shown(paired(rows, name, PLAIN, "test", n=n)) for n in COUNTS)]
         for name in arms[1:]],
    )  # fmt: skip
    worth = table(
        ["judge reads", *counts[: len(COUNTS)]],
        [[name, *(equivalence(rows, name, n) for n in COUNTS)] for name in MATCHED],
    )
    mismatch = table(
        ["pairs", "trained", "tested with q = 0.95", "tested with q = 0.5", "tested without"],
        [[str(n), name, *(shown([*column(rows, name, n, exam).values()])
                          for exam in ("test", "bad", "blank"))]
         for n in SCARCE for name in ("q = 0.95", "q = 0.95, dropout 0.25")],
    )  # fmt: skip
    names = dict.fromkeys(row["critic"] for row in critics)
    written = table(
        ["critic", "its statements right", "on letters", "on the first", "on order",
         "same words for all", "counting its praise"],
        [[name, *(shown([row[value] for row in critics if row["critic"] == name])
                  for value in ("verdicts", *ASPECTS, "blind", "counting"))] for name in names],
    )  # fmt: skip
    titles = ("Critics on the test pairs, %", "Accuracy on held-out pairs, %",
              "Over no critique, points", "Plain pairs per pair with critiques",
              "Trained with one critic, tested with another, %")  # fmt: skip
    bodies = (written, reached, gains, worth, mismatch)
    return "\n\n".join(f"{title}\n\n{body}" for title, body in zip(titles, bodies, strict=True))


def main() -> None:
    experiment(arguments(__doc__, "critiques").parse_args(), one_seed, report)


if __name__ == "__main__":
    main()
