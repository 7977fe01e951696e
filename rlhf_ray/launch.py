"""Composition root: a recipe becomes a cluster, models, actors and a driver.

The only file of `rlhf_ray` that names `actors`.
"""

import io
import json
import time
from collections.abc import Sequence
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
from rlhf_ray.config.resources import check_against_cluster, plan
from rlhf_ray.config.schema import BradleyTerryJudge, FileData, GoldData, Recipe
from rlhf_ray.console import View
from rlhf_ray.data.baselines import HashedNgrams, longer_response_accuracy
from rlhf_ray.data.batches import Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.task import FileTask
from rlhf_ray.driver import Driver, steps
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.fsio import atomic_write
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.record import RunRecord
from rlhf_ray.durable.recorded import RecordedEvaluator, RecordedJudges, RecordedPolicy, replay
from rlhf_ray.evaluation import HeldOut
from rlhf_ray.gold.task import GoldTask
from rlhf_ray.messages import Preference, Prompt
from rlhf_ray.metrics import Clock, summary
from rlhf_ray.report import write_report
from rlhf_ray.rollouts.context import Contexts
from rlhf_ray.training.builders import policy_trainer


class Run:
    """One run in one folder, from its parts to its report."""

    def __init__(self, recipe: Recipe, folder: RunFolder, view: View) -> None:
        self.recipe, self.folder, self.view = recipe, folder, view
        self.began = time.perf_counter()
        self.logs = folder.path / "logs"
        self.task = build_task(recipe)
        self.journal = Journal(folder.path / "journal")
        self.checkpoints = Checkpoints(folder.path / "checkpoints", recipe.checkpoints.keep)

    def go(self) -> None:
        """Make or load the models, start the engines, run the rounds, leave the results."""
        recipe, view = self.recipe, self.view
        with view.phase("learners ready"):
            warm = recipe.loop.warm_waves
            self.learners = Learners(
                recipe.learner, recipe.timeouts, seed=recipe.seed, warm_waves=warm, logs=self.logs
            )
        boot = Bootstrap(recipe, self.task, self.learners, self.folder.path, view.progress)
        with view.phase("policy ready"):
            self.start = boot.policy()
            self.chat = Chat.load(
                self.start, trust_remote_code=recipe.policy.trust_remote_code
            )
            if isinstance(self.task, FileTask):
                self.task.fit(lambda text: len(self.chat.prompt_ids(text)))
        with view.phase("rollout engines ready"):
            self.rollouts = self._rollouts()
        with view.phase("judges ready"):
            paths = {
                name: boot.judge(name, self.start, self.rollouts.generate)
                for name, entry in recipe.judges.items() if isinstance(entry, BradleyTerryJudge)
            }
            self.judges = Judges(
                recipe.judges, paths, recipe.judge_fleet, recipe.timeouts, logs=self.logs
            )
        with view.phase("policy trainer ready"):
            done = self._policy_trainer()
        record, driver = self._driver(done)
        self._judge_rows(boot, record)
        driver.run(done)
        self._finish(record)

    def _rollouts(self) -> Rollouts:
        recipe = self.recipe
        return Rollouts(
            self.start, self.chat, recipe.rollouts, recipe.timeouts,
            max_model_len=model_length(recipe), precision=recipe.learner.precision,
            backend=weight_backend(recipe), seed=recipe.seed, logs=self.logs,
            trust_remote_code=recipe.policy.trust_remote_code,
        )

    def _policy_trainer(self) -> int:
        """The learner at the newest checkpoint; waves that are done."""
        recipe, loop = self.recipe, self.recipe.loop
        updates = loop.rounds * loop.waves - loop.warm_waves
        self.learners.begin(
            partial(
                policy_trainer, self.start, recipe.learner, pad_id=self.chat.pad_id,
                total_steps=max(1, updates) * recipe.learner.epochs,
                trust_remote_code=recipe.policy.trust_remote_code,
            )
        )
        self.contexts = self._contexts()
        found = self.checkpoints.newest()
        if found is None:
            return 0
        path, extra = found
        self.learners.restore(path, extra["policy_version"])
        self.view.say(f"resuming after wave {extra['done']} from {path}")
        return int(extra["done"])

    def _contexts(self) -> Contexts:
        """Contexts of all prompts to come, under the start policy; kept for a resumed run."""
        loop, context = self.recipe.loop, self.recipe.context
        planned = [
            prompt for round in range(loop.rounds) for step in steps(loop, round)
            for prompt in self.task.wave(step, loop.prompts)
        ]
        path = self.folder.path / "contexts.npy"
        if path.is_file():
            ids = list({prompt.id: None for prompt in planned})
            return Contexts(ids, np.load(path, allow_pickle=False))

        def embed(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
            return self.learners.embed([self.chat.prompt_ids(p.text) for p in prompts])

        contexts = Contexts.of(planned, embed, width=context.width, sample=context.sample)
        buffer = io.BytesIO()
        np.save(buffer, contexts.vectors, allow_pickle=False)
        atomic_write(path, buffer.getvalue())
        return contexts

    def _driver(self, done: int) -> tuple[RunRecord, Driver]:
        recipe, clock, journal = self.recipe, Clock(), self.journal
        names = tuple(recipe.judges)
        selector = build_selector(recipe, names)
        replay(journal, selector.learn, names, done)
        delivery = Delivery(
            self.learners, self.rollouts, recipe.weights, self._probes(),
            tolerance=recipe.weights.tolerance or (
                1e-4 if recipe.learner.precision == "fp32" else 0.1
            ),
            timeout_s=recipe.timeouts.sync_s,
        )
        delivery.deliver(self.learners.version)
        record = RunRecord(
            self.folder.path, journal, self.checkpoints, save=self.learners.save,
            show=self.view.row, clock=clock, settings=recipe.checkpoints, loop=recipe.loop, done=done,
        )
        generate = clock.timed(self.rollouts, "generate").generate
        held_out = self.task.held_out(recipe.evaluate.prompts)
        policy = RecordedPolicy(
            generate, recipe.rollouts.responses, journal, self.folder.path / "rollouts"
        )
        measure = HeldOut(self.rollouts, held_out, recipe.evaluate.samples).measure
        return record, Driver(
            task=self.task, contexts=self.contexts, policy=policy,
            selector=clock.timed(selector, "choose"),
            judges=RecordedJudges(clock.timed(self.judges, "score").score, journal),
            learner=clock.timed(self.learners, "update"),
            delivery=clock.timed(delivery, "sync"),
            evaluator=RecordedEvaluator(measure, journal),
            record=record, loop=recipe.loop, pairs=recipe.pairs,
        )

    def _probes(self) -> list[Tokens]:
        """Sequences both sides are compared on after a delivery: prompts with their own tails."""
        prompts = self.task.held_out(self.recipe.weights.probes)
        ids = [self.chat.prompt_ids(prompt.text) for prompt in prompts]
        return [Tokens(one, max(1, len(one) // 2)) for one in ids]

    def _judge_rows(self, boot: Bootstrap, record: RunRecord) -> None:
        """Held-out accuracy of each judge trained here, beside two baselines; once per run."""
        known = {row["name"] for row in record.rows if row["kind"] == "judge"}
        for name, entry in self.recipe.judges.items():
            if not isinstance(entry, BradleyTerryJudge) or entry.train is None or name in known:
                continue
            train, held_out = boot.pairs(entry.train, self.rollouts.generate)
            if held_out:
                record.add(judge_row(name, self.judges, train, held_out, self.recipe.seed))

    def _finish(self, record: RunRecord) -> None:
        path = self.folder.path
        self.learners.export(path / "final", self.start)
        found = summary(record.rows, status="completed", wall_s=time.perf_counter() - self.began)
        atomic_write(path / "final" / "README.md", model_card(self.recipe, found).encode())
        atomic_write(path / "summary.json", json.dumps(found, indent=2).encode())
        write_report(path)
        self.view.end(path, found)


def run(recipe: Recipe, run_dir: Path) -> None:
    """Run a recipe in its folder; the same call resumes it."""
    check_import()
    view, wanted = View(), plan(recipe)
    folder = RunFolder(run_dir, recipe)
    one = Run(recipe, folder, view)
    with view.phase("Ray ready"):
        connection = cluster(wanted.total_cpus)
        view.say(f"  {connection.__enter__()}")
    try:
        check_against_cluster(wanted, *totals())
        one.go()
    finally:
        connection.__exit__(None, None, None)


def build_task(recipe: Recipe) -> Any:
    match recipe.data:
        case GoldData():
            return GoldTask(recipe.data, seed=recipe.seed)
        case FileData():
            return FileTask(recipe.data, seed=recipe.seed)


def model_length(recipe: Recipe) -> int:
    """Tokens of the longest prompt with its longest response."""
    if isinstance(recipe.data, FileData):
        return recipe.data.max_prompt_tokens + recipe.rollouts.max_tokens
    return recipe.policy.scratch.max_positions


def weight_backend(recipe: Recipe) -> str:
    return recipe.weights.backend or ("nccl" if recipe.rollouts.num_gpus else "host")


def judge_row(
    name: str, judges: Judges, train: Sequence[Preference], held_out: Sequence[Preference], seed: int
) -> dict[str, Any]:
    """A judge's held-out accuracy per source, beside length and a linear n-gram model."""
    baseline = HashedNgrams(seed=seed)
    baseline.fit(train)
    sources = [pair.source for pair in held_out]
    return {
        "kind": "judge",
        "name": name,
        "accuracy": judges.accuracy(name, held_out),
        "longer_response": longer_response_accuracy(held_out),
        "ngram": baseline.accuracy(held_out),
        "pairs": {source: sources.count(source) for source in sorted(set(sources))},
    }


def check_import() -> None:
    """`actors` is a common name: say so when somebody else's package is found first."""
    ours = Path(rlhf_ray.__file__).parent.parent / "actors"
    found = Path(actors.__file__ or "").parent
    if ours != found:
        raise ImportError(
            f"'actors' was imported from {found}, not from {ours}; something else on sys.path has "
            "that name: run from another folder or use the `rlhf-ray` command"
        )


def model_card(recipe: Recipe, found: dict[str, Any]) -> str:
    """What the folder is and how it came to be, for the hub and for people."""
    accuracy = found["gold_accuracy"]
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation",
        "tags: [rlhf, dpo, generated_from_trainer]", "---", f"# {recipe.name}", "",
        f"Trained with rlhf_ray {rlhf_ray.__version__}: {found['rounds']} round(s), "
        f"{found['waves']} waves, seed {recipe.seed}, judges {', '.join(recipe.judges)} chosen by "
        f"{recipe.bandit.kind}, loss {recipe.learner.loss} (beta {recipe.learner.beta}, "
        f"NLL weight {recipe.learner.nll_weight}).",
    ]
    if accuracy:
        lines += ["", "| held-out gold accuracy | before | after |", "|---|---|---|"]
        lines += [
            f"| {mode} | {accuracy[mode]['before']['overall']:.3f} "
            f"| {accuracy[mode]['after']['overall']:.3f} |"
            for mode in ("sampled", "greedy")
        ]
    return "\n".join([*lines, ""])
