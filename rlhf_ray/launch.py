"""Composition root: a recipe becomes a cluster, models, actors and a driver.

The only file of `rlhf_ray` that names `actors`.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import actors
import rlhf_ray
from actors.cluster import cluster, totals
from actors.delivery import Delivery
from actors.judge import Judges
from actors.learner import Learners
from actors.rollout import Rollouts
from rlhf_ray.bandit.build import build_selector
from rlhf_ray.bootstrap import Bootstrap, Task
from rlhf_ray.config.resources import check_against_cluster, plan, render
from rlhf_ray.config.schema import (
    BradleyTerryJudge,
    FileData,
    GoldData,
    GoldJudge,
    Recipe,
    RuleJudge,
)
from rlhf_ray.console import View
from rlhf_ray.data.batches import Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.task import FileTask
from rlhf_ray.data.tokens import fitting_pairs
from rlhf_ray.driver import Driver, steps
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.record import RunRecord
from rlhf_ray.durable.recorded import (
    RecordedEvaluator,
    RecordedJudges,
    RecordedPolicy,
    recorded_contexts,
    replay,
    resume_point,
)
from rlhf_ray.errors import BadData
from rlhf_ray.evaluation import HeldOut
from rlhf_ray.gold.task import GoldTask
from rlhf_ray.messages import Prompt, Step
from rlhf_ray.metrics import Clock, Row
from rlhf_ray.results import judge_row, leave_results, read_summary
from rlhf_ray.rollouts.context import Contexts
from rlhf_ray.training.builders import policy_trainer


def run(recipe: Recipe, run_dir: Path) -> None:
    """Run a recipe in its folder; the same call resumes it."""
    began, view = time.perf_counter(), View()
    task = build_task(recipe)
    folder = RunFolder(run_dir, recipe, data=task.digest())
    if (known := read_summary(folder.path)) is not None:
        view.say("this run is finished; another one needs another --run-dir")
        view.end(folder.path, known)
        return
    view.say(render(plan(recipe)))
    with on_cluster(recipe, view):
        models = Models(recipe, task, folder.path, view)
        models.start()
        rows = train(models, folder.path)
        models.learners.export(
            folder.path / "final",
            models.start_policy,
            trust_remote_code=recipe.policy.trust_remote_code,
        )
        view.end(folder.path, leave_results(recipe, folder.path, rows, time.perf_counter() - began))


def train_judges(recipe: Recipe, run_dir: Path) -> None:
    """Train the recipe's judges into `judges/<name>` and report their held-out accuracy."""
    view, task = View(), build_task(recipe)
    folder = RunFolder(run_dir, recipe, data=task.digest())
    with on_cluster(recipe, view):
        models = Models(recipe, task, folder.path, view)
        models.start()
        for row in models.judge_rows(known=()):
            view.row(row, None)
    view.say(f"judges    {folder.path / 'judges'}")


class Models:
    """The actors of a run, each started with the models it holds."""

    def __init__(self, recipe: Recipe, task: Task, folder: Path, view: View) -> None:
        self.recipe, self.task, self.folder, self.view = recipe, task, folder, view

    def start(self) -> None:
        """Learners, then the start policy, the engines that sample from it, and the judges."""
        recipe, view, logs = self.recipe, self.view, self.folder / "logs"
        if recipe.policy.path is not None:  # its tokenizer is at hand: look before anything starts
            self.task.fit(
                Chat.load(recipe.policy.path, trust_remote_code=recipe.policy.trust_remote_code)
            )
        with view.phase("learners ready"):
            self.learners = Learners(
                recipe.learner,
                recipe.timeouts,
                seed=recipe.seed,
                warm_waves=recipe.loop.warm_waves,
                logs=logs,
            )
        self.boot = Bootstrap(recipe, self.task, self.learners, self.folder, view.progress)
        trust = recipe.policy.trust_remote_code
        with view.phase("policy ready"):
            self.start_policy = self.boot.policy()
            self.chat = Chat.load(self.start_policy, trust_remote_code=trust)
            self.task.fit(self.chat)
            if isinstance(self.task, FileTask) and self.task.dropped:
                view.say(f"  {self.task.dropped} prompts are too long and left out")
        with view.phase("rollout engines ready"):
            self.rollouts = Rollouts(
                self.start_policy,
                self.chat,
                recipe.rollouts,
                recipe.timeouts,
                max_model_len=model_length(recipe),
                precision=recipe.learner.precision,
                backend=weight_backend(recipe),
                seed=recipe.seed,
                trust_remote_code=trust,
                logs=logs,
            )
        with view.phase("judges ready"):
            paths = {
                name: self.boot.judge(name, self.start_policy, self.rollouts.generate)
                for name in self._bradley_terry()
            }
            self.judges = Judges(
                recipe.judges, paths, recipe.judge_fleet, recipe.timeouts, logs=logs
            )

    def judge_rows(self, known: Sequence[str]) -> Iterator[Row]:
        """Held-out accuracy of each judge trained here, beside two baselines."""
        for name, entry in self._bradley_terry().items():
            if entry.train is None or name in known:
                continue
            train, held_out = self.boot.pairs(entry.train, self.rollouts.generate)
            chat = Chat.load(str(self.folder / "judges" / name))
            read = fitting_pairs(held_out, chat, entry.max_tokens)
            if read:
                row = judge_row(name, self.judges.accuracy, train, read, seed=self.recipe.seed)
                yield row | {"too_long": len(held_out) - len(read)}

    def train_policy(self) -> None:
        """The learners turn from bootstrap to the policy itself."""
        recipe, settings = self.recipe, self.recipe.learner
        updates = max(1, recipe.loop.rounds * recipe.loop.waves - recipe.loop.warm_waves)
        most = recipe.loop.prompts * recipe.pairs.per_prompt
        per_wave = settings.epochs * -(-most // (settings.minibatch_pairs or most))
        self.learners.begin(
            partial(
                policy_trainer,
                self.start_policy,
                recipe.learner,
                pad_id=self.chat.pad_id,
                total_steps=updates * per_wave,
                trust_remote_code=recipe.policy.trust_remote_code,
            )
        )

    def embed(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """[P, H] hidden states of the policy as it stands."""
        return self.learners.embed([self.chat.prompt_ids(prompt.text) for prompt in prompts])

    def delivery(self) -> Delivery:
        recipe = self.recipe
        probes = [
            self.chat.prompt_ids(prompt.text)
            for prompt in self.task.held_out(recipe.weights.probes)
        ]
        return Delivery(
            self.learners,
            self.rollouts.workers,
            recipe.weights,
            [Tokens(ids, len(ids) // 2) for ids in probes if len(ids) > 1],
            backend=weight_backend(recipe),
            tensor_parallel=recipe.rollouts.tensor_parallel,
            tolerance=recipe.weights.tolerance
            or (1e-4 if recipe.learner.precision == "fp32" else 0.1),
            timeout_s=recipe.timeouts.sync_s,
        )

    def _bradley_terry(self) -> dict[str, BradleyTerryJudge]:
        judges = self.recipe.judges.items()
        return {name: entry for name, entry in judges if isinstance(entry, BradleyTerryJudge)}


def train(models: Models, folder: Path) -> list[Row]:
    """The rounds, from wherever the run folder says they stand; all rows of metrics."""
    recipe, task, view = models.recipe, models.task, models.view
    journal = Journal(folder / "journal")
    checkpoints = Checkpoints(folder / "checkpoints", recipe.checkpoints.keep)
    clock, names = Clock(), tuple(recipe.judges)
    with view.phase("policy trainer ready"):
        models.train_policy()
        # Before the checkpoint is loaded: contexts are those of the start policy.
        contexts = recorded_contexts(folder / "contexts.npy", partial(make_contexts, models))
        done, version, path = resume_point(checkpoints, journal)
        if path is not None:
            models.learners.restore(path, version)
        selector = build_selector(recipe, names)
        replay(journal, selector.learn, names, done)
        delivery = models.delivery()
        delivery.deliver(version)
    if path is not None:
        view.say(f"resuming after wave {done} from {path}")
    record = RunRecord(
        folder,
        journal,
        checkpoints,
        save=models.learners.save,
        show=view.row,
        clock=clock,
        settings=recipe.checkpoints,
        loop=recipe.loop,
        done=done,
    )
    for row in models.judge_rows(known=record.judges()):
        record.add(row)
    generate = clock.timed(models.rollouts, "generate").generate
    held_out = task.held_out(recipe.evaluate.prompts)
    evaluator = HeldOut(models.rollouts, held_out, recipe.evaluate.samples)
    Driver(
        task=task,
        contexts=contexts,
        policy=RecordedPolicy(generate, recipe.rollouts.responses, journal, folder / "rollouts"),
        selector=clock.timed(selector, "choose"),
        judges=RecordedJudges(clock.timed(models.judges, "score").score, journal),
        learner=clock.timed(models.learners, "update"),
        delivery=clock.timed(delivery, "sync"),
        evaluator=RecordedEvaluator(evaluator.measure, journal),
        record=record,
        loop=recipe.loop,
        pairs=recipe.pairs,
    ).run(done)
    return record.rows


def make_contexts(models: Models, known: NDArray[np.float32] | None) -> Contexts:
    """Contexts of every prompt the run will ask; `known` vectors are not computed again."""
    loop, context = models.recipe.loop, models.recipe.context
    planned = [
        prompt
        for round in range(loop.rounds)
        for step in steps(loop, round)
        for prompt in models.task.wave(step, loop.prompts)
    ]
    if known is not None:
        return Contexts(list({prompt.id: None for prompt in planned}), known)
    return Contexts.of(planned, models.embed, width=context.width, sample=context.sample)


@contextmanager
def on_cluster(recipe: Recipe, view: View) -> Iterator[None]:
    """Join or start Ray, and refuse what it cannot hold before any model is loaded."""
    check_import()
    wanted = plan(recipe)
    with cluster(wanted.total_cpus, recipe.timeouts.cluster_s) as address:
        # Ray has just put its own handler here, which would lose the exit code and the advice.
        signal.signal(signal.SIGTERM, stop)
        view.say(f"Ray: {address}")
        check_against_cluster(wanted, *totals())
        yield


def stop(signum: int, frame: Any) -> None:
    """A polite end: the run folder is resumable at any moment, so there is nothing to save."""
    raise KeyboardInterrupt


def build_task(recipe: Recipe) -> Any:
    """The task with all its files read. Raises BadData or RecipeError for what cannot be used."""
    match recipe.data:
        case GoldData():
            task: Any = GoldTask(recipe.data, seed=recipe.seed)
        case FileData():
            task = FileTask(recipe.data, seed=recipe.seed)
            for entry in recipe.judges.values():
                if isinstance(entry, BradleyTerryJudge) and entry.train is not None:
                    task.preferences(entry.train.preferences, None)
    check_prompts(recipe, task)
    return task


def check_prompts(recipe: Recipe, task: Task) -> None:
    """What the loop will ask of the prompts, asked before any model is loaded."""
    wave = task.wave(Step(0, 0, 0), recipe.loop.prompts)
    HeldOut.answered(task.held_out(recipe.evaluate.prompts))
    for name, entry in recipe.judges.items():
        verifies = isinstance(entry, GoldJudge) or (
            isinstance(entry, RuleJudge) and entry.rule not in ("length", "format")
        )
        for prompt in wave if verifies else ():
            if prompt.answer is None:
                raise BadData(
                    f"judge '{name}' compares with answers, prompt '{prompt.id}' has none; add "
                    "`answer` and `answer_type` to it, or leave it out"
                )


def model_length(recipe: Recipe) -> int:
    """Tokens of the longest prompt with its longest response."""
    if isinstance(recipe.data, FileData):
        return recipe.data.max_prompt_tokens + recipe.rollouts.max_tokens
    wanted = GOLD_PROMPT_TOKENS + recipe.rollouts.max_tokens
    return wanted if recipe.policy.path else min(wanted, recipe.policy.scratch.max_positions)


GOLD_PROMPT_TOKENS = 56
"""No tokenizer makes more of a generated prompt of ten characters and its chat markup."""


def weight_backend(recipe: Recipe) -> str:
    return recipe.weights.backend or ("nccl" if recipe.rollouts.num_gpus else "host")


def check_import() -> None:
    """`actors` is a common name: say so when somebody else's package is found first."""
    ours = Path(rlhf_ray.__file__).parent.parent / "actors"
    found = Path(actors.__file__ or "").parent
    if ours != found:
        raise ImportError(
            f"'actors' was imported from {found}, not from {ours}; something else on sys.path has "
            "that name: run from another folder or use the `rlhf-ray` command"
        )
