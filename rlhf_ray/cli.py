"""The `rlhf-ray` command: what can a person ask for?

Commands import what they need when they are called, so that `--help` is there at once.
"""

import json
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import rlhf_ray
from rlhf_ray.arguments import HELP, OVERRIDES, Config, RunDir, checked
from rlhf_ray.errors import BadData, ClusterUnavailable, RecipeError, RlhfRayError
from rlhf_ray.judge_cli import judge_app
from rlhf_ray.submit_cli import submit

STOPPED = 75
"""Exit code of a run that was stopped and can be continued (EX_TEMPFAIL)."""


class _Commands(TyperGroup):
    """Turns Ctrl-C into an exit code of ours before typer makes it its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = shlex.join(["rlhf-ray", *sys.argv[1:]])
            Console(stderr=True).print(
                Text(f"stopped; the same command goes on where it was: {again}"), soft_wrap=True
            )
            raise typer.Exit(STOPPED) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, context_settings=HELP,
    rich_markup_mode=None,
)  # fmt: skip
app.add_typer(judge_app, name="judge")

Run = Annotated[Path, typer.Argument(help="A run folder.")]


def main() -> None:
    """Run the command line; exit codes are those of `errors`, 75 for Ctrl-C, 70 for our bugs."""
    try:
        app(prog_name="rlhf-ray")
    except RlhfRayError as error:
        # An error from a worker also carries its traceback; its cause is what a person needs.
        said = str(getattr(error, "cause", error))
        Console(stderr=True).print(Text("error: ", "bold red") + Text(said), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        print("this is a bug in rlhf_ray; please report it with the lines above", file=sys.stderr)
        sys.exit(RlhfRayError.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        print(rlhf_ray.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    """Iterative RLHF with a pool of reward models, on Ray, vLLM and DeepSpeed."""


@app.command(context_settings=OVERRIDES)
def run(context: typer.Context, config: Config, run_dir: RunDir = None) -> None:
    """Train, or go on where the run folder stopped.

    Example: rlhf-ray run -c recipe.yaml loop.rounds=2 --seed 3
    """
    _train(config, run_dir, context.args)


app.command(context_settings=OVERRIDES)(submit)


@app.command(context_settings=OVERRIDES)
def demo(context: typer.Context, run_dir: RunDir = None) -> None:
    """Train tiny models on this machine, from nothing, in some minutes.

    Example: rlhf-ray demo --seed 1
    """
    config = Path(rlhf_ray.__file__).parent.parent / "configs" / "demo.yaml"
    if not config.is_file():
        raise RecipeError(
            f"{config} is not there: the demo needs a checkout of the repository; clone it and "
            "call `make demo`, or bring a recipe: rlhf-ray run -c recipe.yaml"
        )
    _train(config, run_dir or Path("runs/demo"), context.args)


@app.command(context_settings=OVERRIDES)
def check(context: typer.Context, config: Config, run_dir: RunDir = None) -> None:
    """Check a recipe and print what it asks for; nothing is loaded or written.

    Example: rlhf-ray check -c recipe.yaml rollouts.workers=4
    """
    from rlhf_ray.config.resources import plan, render

    recipe, _ = checked(config, run_dir, context.args)
    print(render(plan(recipe)))


@app.command(context_settings=OVERRIDES)
def critique(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="Preference pairs: a file, or a hub data set.")],
    config: Config,
    out: Annotated[Path, typer.Option("--out", help="The new file of pairs (.jsonl).")],
    run_dir: RunDir = None,
) -> None:
    """Write critiques of both responses of each pair beside them, with the recipe's critic.

    Example: rlhf-ray critique pairs.jsonl -c recipe.yaml --out critiqued.jsonl
    """
    recipe, folder = checked(config, run_dir, context.args, idle=True)
    if recipe.critic is None:
        raise RecipeError(
            f"{config} has no `critic`, so nobody can write critiques; add one, for example "
            "critic: {kind: model, path: a/model}"
        )
    _check_new(out)
    from rlhf_ray.data.critiques import load_pair_records

    pairs = load_pair_records(file, None)
    from rlhf_ray.launch.judging import write_critiques

    write_critiques(recipe, folder, pairs, out)


@app.command()
def doctor(
    engines: Annotated[bool, typer.Option(help="Also import vLLM and DeepSpeed.")] = True,
) -> None:
    """Look at this machine; each bad line says what to do. Exit code 69 if there is one.

    Example: rlhf-ray doctor --no-engines
    """
    from rlhf_ray.doctor import diagnose, render

    findings = diagnose(engines=engines)
    Console().print(render(findings))
    if any(one.ok is False for one in findings):
        raise typer.Exit(ClusterUnavailable.exit_code)


@app.command()
def report(run: Run) -> None:
    """Make report.html of a run, finished or not, and print its path.

    Example: rlhf-ray report runs/demo
    """
    from rlhf_ray.report import write_report

    print(write_report(run))


@app.command()
def verify(run: Run) -> None:
    """Read all of a run that has a hash, and say what is not as it was written. Changes nothing.

    Exit code 65 where something is damaged. Not for a run that is going on.

    Example: rlhf-ray verify runs/demo
    """
    from rlhf_ray.verify import verify as look

    damaged = False
    for one in look(run):
        print(f"{'ok ' if one.ok else 'BAD'} {one.name}: {one.says}")
        damaged = damaged or not one.ok
    if damaged:
        raise typer.Exit(BadData.exit_code)


@app.command()
def status(run: Run) -> None:
    """Say what a run did last, whether it is finished, and how to go on.

    Example: rlhf-ray status runs/demo
    """
    resolved = run / "config.resolved.yaml"
    if not resolved.is_file():
        raise BadData(f"{run} is no run folder: {resolved.name} is not in it; give another one")
    print("\n".join(f"{what:<9}{value}" for what, value in _standing(run).items()))


def _standing(run: Path) -> dict[str, str]:
    """Where a run stands, in words, from its files alone."""
    rows = _json_lines(run / "metrics.jsonl")
    waves = [row for row in rows if row.get("kind") == "wave"]
    attempts = len(list((run / "journal").glob("*.jsonl")))
    summary = run / "summary.json"
    finished = _json(summary.read_text("utf-8"), summary) if summary.is_file() else {}
    standing = {
        "status": str(finished.get("status", "unfinished")),
        "done": f"{len({row['index'] for row in waves})} waves in {attempts} attempt(s)",
    }
    if waves:
        standing["last"] = f"wave {waves[-1]['step']}, {waves[-1]['pairs']} pairs"
    for row in [row for row in rows if row.get("kind") == "evaluation"][-1:]:
        accuracy = row["sampled"]["overall"]
        standing["gold"] = f"{accuracy:.3f} sampled accuracy after round {row['round']}"
    if finished:
        standing["result"] = str(run / "final")
    else:
        command = ["rlhf-ray", "run", "-c", f"{run}/config.resolved.yaml", "--run-dir", str(run)]
        standing["go on"] = shlex.join(command)
    return standing


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line without an end is still being written."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text.split("\n")[:-1]
    return [_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _json(text: str, where: Path | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadData(f"{where}: malformed JSON ({error}); restore it from a copy") from error
    if not isinstance(value, dict):
        raise BadData(f"{where}: holds no JSON object; restore it from a copy")
    return value


def _train(config: Path, run_dir: Path | None, overrides: Sequence[str]) -> None:
    recipe, folder = checked(config, run_dir, overrides)
    # Ray, torch and the engines load only for a recipe that can be.
    from rlhf_ray.launch.run import run

    run(recipe, folder)


def _check_new(out: Path) -> None:
    """Raises BadData where no new data file can be: an old one may have cost hours."""
    if out.exists():
        raise BadData(f"--out {out} is there already; move it away, or name another file")
    if out.suffix != ".jsonl":
        raise BadData(f"--out {out} is to hold JSON lines; let its name end in .jsonl")
    if not out.absolute().parent.is_dir():
        raise BadData(f"--out {out}: there is no folder {out.parent}; make it first")
