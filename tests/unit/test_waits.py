"""Does every wait have an end, every draw a key, and every file a safe reader?"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = [path for top in ("rlhf_ray", "actors") for path in sorted((ROOT / top).rglob("*.py"))]

Rule = Callable[[ast.Module, str], Iterator[ast.AST]]
"""(module, its file) -> the nodes that break the rule."""

SPAWNS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output")}
VERBS = ("get", "post", "put", "patch", "delete", "head", "options", "request")
HTTP = (
    {f"httpx.{name}" for name in (*VERBS, "stream", "Client", "AsyncClient")}
    # Neither a session of requests nor Ray's client can be given a timeout for all it asks.
    | {f"requests.{name}" for name in (*VERBS, "session", "Session")}
    | {"urllib.request.urlopen", "JobSubmissionClient"}
)
GROUPS = {
    "init_distributed", "init_process_group", "new_group", "new_subgroups",
    "new_subgroups_by_enumeration", "split_group", "TCPStore",
    "stateless_init_torch_distributed_process_group",
}  # fmt: skip
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with what is called as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def option(call: ast.Call, name: str) -> ast.expr | None:
    return next((one.value for one in call.keywords if one.arg == name), None)


def endless(value: ast.expr) -> bool:
    """Whether a timeout is None, or a part of it: `(connect, read)`."""
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    return any(isinstance(part, ast.Constant) and part.value is None for part in parts)


def ends(call: ast.Call, name: str = "timeout") -> bool:
    """Whether the call is given a timeout, and one that is not None."""
    value = option(call, name)
    return value is not None and not endless(value)


def libraries(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Full name of everything imported, with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def ray_without_timeout(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    yield from (c for name, c in calls(tree) if name in ("ray.get", "ray.wait") and not ends(c))
    # Under another name the calls above would not be seen.
    yield from (node for name, node in libraries(tree) if name in ("ray.get", "ray.wait"))


def process_without_timeout(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    for name, call in calls(tree):
        method = name.rpartition(".")[2]
        # `", ".join(parts)` and `os.path.join(a, b)` have arguments, a thread's `join()` has none.
        waits = name in SPAWNS or method == "communicate"
        waits |= method in ("wait", "join", "result") and not call.args and "." in name
        if waits and not ends(call):
            yield call


def http_without_timeout(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    for name, call in calls(tree):
        asks = name in HTTP or name.rpartition(".")[2] == "urlopen"
        # A request may also lift the timeout of its client.
        waits = (asks or option(call, "timeout") is not None) and not ends(call)
        if name == "httpx.Timeout":
            # `pool` waits for a free connection, which is always there without `max_connections`.
            parts = [*call.args, *(one.value for one in call.keywords if one.arg != "pool")]
            waits = any(endless(part) for part in parts)
        if waits:
            yield call
    yield from (node for name, node in libraries(tree) if name in HTTP | {"httpx.Timeout"})


def group_without_timeout(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    for name, call in calls(tree):
        stateless = name.endswith("StatelessProcessGroup.create")
        meets = stateless or name.rpartition(".")[2] in GROUPS
        if meets and not ends(call, "store_timeout" if stateless else "timeout"):
            yield call
    yield from (node for name, node in libraries(tree) if name.rpartition(".")[2] in GROUPS)


def sleep_without_deadline(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    for loop in ast.walk(tree):
        if isinstance(loop, ast.While | ast.For):
            names = {name for name, _ in calls(loop)}
            if "time.sleep" in names and not names & {"time.monotonic", "time.perf_counter"}:
                yield loop
    yield from (node for name, node in libraries(tree) if name == "time.sleep")


def unsafe_reader(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    yield from (node for name, node in libraries(tree) if name.split(".")[0] in UNSAFE)
    for name, call in calls(tree):
        pickles = option(call, "allow_pickle")
        allowed = pickles is not None and not (
            isinstance(pickles, ast.Constant) and pickles.value is False
        )
        if name in ("torch.load", "torch.save") or allowed:
            yield call


def swallowed_error(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            empty = all(
                isinstance(one, ast.Pass)
                or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
                for one in node.body
            )
            if node.type is None or empty:
                yield node
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            yield node


SCRATCH = "rlhf_ray/training/scratch.py"  # puts the global state back: models draw from it


def global_randomness(tree: ast.Module, file: str) -> Iterator[ast.AST]:
    yield from (node for name, node in libraries(tree) if name.split(".")[0] == "random")
    yield from (node for name, node in libraries(tree) if name.startswith("numpy.random"))
    makers = {"np.random.Generator"} | (
        {"np.random.Philox"} if file == "rlhf_ray/keys.py" else set()
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = ast.unparse(node)
        if name.startswith("np.random.") and name not in makers:
            yield node
        # A generator of its own may be seeded; the global state of torch may not.
        if name.endswith(("torch.manual_seed", "cuda.manual_seed")) and file != SCRATCH:
            yield node


RULES: dict[Rule, list[str]] = {
    ray_without_timeout: [
        "ray.get(ref)",
        "ray.wait(refs, num_returns=1)",
        "ray.get(ref, timeout=None)",
        "from ray import get",
    ],
    process_without_timeout: [
        "subprocess.run(['ls'])",
        "process.wait()",
        "thread.join()",
        "process.communicate(b'')",
        "future.result()",
    ],
    http_without_timeout: [
        "httpx.Client(trust_env=False)",
        "httpx.AsyncClient(timeout=None)",
        "httpx.get(url)",
        "httpx.post(url, json=body)",
        "httpx.request('GET', url)",
        "httpx.stream('GET', url)",
        "httpx.Timeout(None)",
        "httpx.Timeout(5.0, read=None)",
        "client.stream('POST', url, timeout=None)",
        "urllib.request.urlopen(url)",
        "request.urlopen(url)",
        "requests.get(url)",
        "requests.post(url, timeout=(3.0, None))",
        "requests.Session()",
        "JobSubmissionClient(address)",
        "from httpx import AsyncClient",
        "from urllib.request import urlopen",
    ],
    group_without_timeout: [
        "deepspeed.init_distributed(dist_backend='nccl')",
        "dist.init_process_group('gloo', timeout=None)",
        "torch.distributed.new_group([0, 1])",
        "dist.TCPStore(host, port)",
        "StatelessProcessGroup.create(host, port, rank, world)",
        "utils.StatelessProcessGroup.create(host, port, rank, world, timeout=30)",
        "from torch.distributed import new_group",
    ],
    sleep_without_deadline: [
        "while not ready():\n    time.sleep(1)",
        "from time import sleep",
    ],
    unsafe_reader: [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=setting)",
    ],
    swallowed_error: [
        "try:\n    f()\nexcept OSError:\n    pass",
        "try:\n    f()\nexcept:\n    g()",
        "try:\n    f()\nexcept OSError:\n    ...",
        "with contextlib.suppress(OSError):\n    f()",
    ],
    global_randomness: [
        "import random",
        "from numpy.random import rand",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "rng = np.random.default_rng(0)",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed(0)",
    ],
}  # fmt: skip

FINE = """
ray.get(ref, timeout=30.0)
", ".join(words)
os.path.join(folder, name)
thread.join(timeout=5.0)
subprocess.run(["ls"], timeout=30)
httpx.AsyncClient(timeout=httpx.Timeout(connect=1.0, read=limit_s, write=limit_s, pool=None))
urllib.request.urlopen(url, timeout=limit_s)
requests.get(url, timeout=(3.0, 30.0))
class Bounded(JobSubmissionClient): ...
dist.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
StatelessProcessGroup.create(host, port, rank, world, store_timeout=30)
np.load(path, allow_pickle=False)
while time.monotonic() < deadline:
    time.sleep(0.1)
try:
    f()
except OSError as error:
    raise BadData(str(error)) from error
def draw(rng: np.random.Generator): return rng.random()
"""

BAD = [(rule, source) for rule, sources in RULES.items() for source in sources]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_product_keeps_the_rule(rule: Rule) -> None:
    trees = [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in PRODUCT]
    assert not [
        f"{file}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for file, tree in trees
        for node in rule(tree, file)
    ]


@pytest.mark.parametrize(("rule", "source"), BAD)
def test_the_lint_sees_what_breaks_the_rule(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source), "rlhf_ray/some.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_lint_lets_bounded_waits_and_keyed_draws_pass(rule: Rule) -> None:
    assert not list(rule(ast.parse(FINE), "rlhf_ray/some.py"))
