"""Does a token reach anything that is written, printed or raised? A canary is sent through."""

import base64
import io
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import misbehaving as bad
import pytest
import toy_runs
import yaml
from misbehaving import Service
from recipes import files, recipe_with
from rich.console import Console

from rlhf_ray.config.checks import check_recipe
from rlhf_ray.config.load import load_recipe
from rlhf_ray.config.resources import plan, render
from rlhf_ray.config.schema import Recipe
from rlhf_ray.config.secrets import secrets_in
from rlhf_ray.console import View
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.errors import JudgeFailed, RecipeError
from rlhf_ray.messages import Prompt
from rlhf_ray.report import write_report
from rlhf_ray.rewards.build import build_judge
from rlhf_ray.submit import submission

CANARY = "c4n4ry-0f-a-t0k3n"
LOGIN = base64.b64encode(f"someone:{CANARY}".encode()).decode()
WORKING = """\
name: small
data: {kind: gold}
policy: {supervised: {}}
judges:
  a: {kind: rules}
  far:
    kind: remote
    protocol: openrlhf
    url: URL
"""
SHAPES = {
    "hf_" + "a" * 34: "looks like a token",
    "sk-proj-" + "a1" * 16: "looks like a token",
    "ghp_" + "a" * 36: "looks like a token",
    "AKIA" + "A" * 16: "looks like a token",
    f"Bearer {CANARY}": "looks like a token",
    "-----BEGIN RSA PRIVATE KEY-----": "looks like a token",
    f"https://u:{CANARY}@host/v1": "is a URL with a login",
    f"https://{CANARY}@host/v1": "is a URL with a login",
    f"https://host/v1?api-version=1&api_key={CANARY}": "is a URL with a key in its query",
    f"https://host/?key={CANARY}": "is a URL with a key in its query",
}
HARMLESS = [
    "https://host/v1?api-version=2024-02-01",
    "https://host/a@b",
    "hf://datasets/owner/name@main/file",
    "owner/name",
    "SOME_TOKEN",
    "/etc/service/token",
    "task-specific",
]


@pytest.mark.parametrize("value", SHAPES)
def test_a_secret_in_a_recipe_is_refused_by_its_line_and_not_repeated(
    tmp_path: Path, value: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(WORKING.replace("URL", json.dumps(value)))
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, ["loop.rounds=none"], environ={})
    said = str(refused.value)
    assert said.startswith(f"{path}:9: 'judges.far.url' {SHAPES[value]}")
    assert value not in said
    assert CANARY not in said
    assert len(said.splitlines()) == 1
    assert refused.value.__cause__ is None


def test_a_secret_is_found_wherever_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(WORKING.replace("URL", "https://host"))
    url = f"https://u:{CANARY}@host"
    for overrides, environ, where in (
        ([f"judges.far.url={url}"], {}, "command line: 'judges.far.url'"),
        ([f"judges.far.url='{url}"], {}, "command line: judges.far.url=***: not YAML"),
        ([], {"RLHF_RAY__JUDGES__FAR__URL": url}, "environment RLHF_RAY__JUDGES__FAR__URL: "),
        (["rollouts.engine_args={hf_token: " + CANARY + "}"], {}, "is named like a secret"),
        (
            ["rollouts.engine_args={a: {b: [x, {api-key: " + CANARY + "}]}}"],
            {},
            "engine_args.a.b.1",
        ),
    ):
        with pytest.raises(RecipeError) as refused:
            load_recipe(path, overrides, environ=environ)
        assert where in str(refused.value)
        assert CANARY not in str(refused.value)


@pytest.mark.parametrize("value", HARMLESS)
def test_what_is_no_secret_is_none(value: str) -> None:
    keys = {"url": value, "token_env": value, "token_file": value, "tokenizer": value}
    assert list(secrets_in(keys)) == []


def test_no_recipe_of_ours_holds_one() -> None:
    configs = Path(__file__).parents[2] / "configs"
    recipes = sorted(configs.rglob("*.yaml"))
    assert recipes
    assert [one for one in recipes if list(secrets_in(yaml.safe_load(one.read_text())))] == []


def remote(url: str, **how: Any) -> Recipe:
    judge = {"kind": "remote", "protocol": "openrlhf", "url": url, "retries": 0, "total_s": 5}
    return recipe_with(judges={"a": {"kind": "rules"}, "far": judge | how})


def asked(recipe: Recipe) -> str:
    """All that a person could read of one answer and of one refusal that repeats the header."""
    judge: Any = build_judge("far", recipe.judges["far"], None, tokens_per_batch=1, critic=None)
    printed, view = io.StringIO(), []
    try:
        judge.score([Prompt("p", "a", "s")], [["b"]])
        with pytest.raises(JudgeFailed) as failed:
            judge.score([Prompt("p", "a", "s")], [["b"]])
        View(Console(file=printed)).say(str(failed.value))
        view = [repr(judge), repr(judge.client), repr(failed.value), str(failed.value)]
        view += traceback.format_exception(failed.value)
    finally:
        judge.close()
    return "".join([*view, printed.getvalue()])


@pytest.mark.parametrize("how", ["token_env", "token_file", "basic"])
def test_the_canary_is_sent_to_the_service_and_stands_nowhere_else(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = f"Basic {LOGIN}" if how == "basic" else CANARY
    monkeypatch.setenv("FAR_TOKEN", secret)
    (tmp_path / "token").write_text(secret)
    named = {"token_file": str(tmp_path / "token")} if how == "token_file" else {}
    echo = bad.says(f"no: {secret} {CANARY} Authorization: {secret}".encode(), 401)
    with Service(bad.answers(lambda body: {"rewards": [1.0]}), echo) as service:
        recipe = remote(service.url, **(named or {"token_env": "FAR_TOKEN"}))
        check_recipe(recipe)
        with caplog.at_level(logging.DEBUG):
            said = asked(recipe)
        header = service.seen[0].headers["authorization"]
    assert header == (secret if how == "basic" else f"Bearer {CANARY}")
    assert "***" in said, "the service did repeat it"
    monkeypatch.delenv("FAR_TOKEN")
    run = tmp_path / "run"
    written = leavings(run, recipe)
    job = submission("small", tmp_path / "r.yaml", str(run), tmp_path, (), {"FAR_TOKEN": secret})
    for text in (said, caplog.text, written, render(plan(recipe)), repr(job), repr(recipe)):
        assert CANARY not in text
        assert LOGIN not in text


def leavings(run: Path, recipe: Recipe) -> str:
    """Every byte and name a run of these settings leaves, its report included."""
    folder = RunFolder(run, recipe)
    toy_runs.driven(folder.path)
    write_report(run)
    paths = [one for one in sorted(run.rglob("*")) if one.is_file()]
    assert {"report.html", "config.resolved.yaml", "000001.jsonl"} <= {one.name for one in paths}
    return "".join(f"{one} {one.read_bytes().decode('latin-1')}" for one in paths)


def test_the_environment_of_a_driver_is_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, CANARY)
    recipe = recipe_with(**files(tmp_path))
    assert CANARY not in leavings(tmp_path / "run", recipe)
    job = submission("a", tmp_path / "r.yaml", "/run", tmp_path, (), {"HF_TOKEN": CANARY})
    assert CANARY not in repr(job)
