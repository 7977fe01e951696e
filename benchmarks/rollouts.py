"""What does the rollout stage cost over bare vLLM, in tokens per second?

Ours is timed in the driver: chunks, tokenising, Ray and messages included. Bare vLLM is timed in
its own process around `LLM.generate` alone, all prompts in one call, with requests made beforehand.
The two run in turn, A B A B, on engines with equal arguments; medians are compared.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.cluster import cluster
from actors.rollout import Rollouts
from actors.worker import log_to
from rlhf_ray.config.schema import GoldData, Scratch, Timeouts
from rlhf_ray.config.schema import Rollouts as Settings
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import texts
from rlhf_ray.gold.families import demonstrations, draw_prompts
from rlhf_ray.keys import seed_of
from rlhf_ray.messages import Prompt
from rlhf_ray.training.scratch import make_policy

SEED = 0
TARGET = 0.9
LONGEST_PROMPT = 16
TIMEOUTS = Timeouts(engine_s=300, generate_s=600)
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """One pass over all prompts."""

    seconds: float
    responses: list[Ids]
    """Token ids, in the order of prompts and seeds."""

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.responses)) / self.seconds


class BareActor:
    """`vllm.LLM` with the arguments of our engine, called directly."""

    def __init__(self, path: str, settings: Settings, arguments: dict[str, Any]) -> None:
        log_to(None, "bare", settings.threads)
        from rlhf_ray.rollouts.engine import RolloutEngine

        self.settings, self.llm = settings, RolloutEngine(path, settings, **arguments).llm

    def generate(self, prompt_ids: Sequence[Ids], seeds: Sequence[int]) -> Timed:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = [
            SamplingParams(
                n=self.settings.responses,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                max_tokens=self.settings.max_tokens,
                seed=seed,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
        began = time.perf_counter()
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        return Timed(seconds, [tuple(one.token_ids) for all_ in outputs for one in all_.outputs])


class Ours:
    """The rollout stage as the driver calls it."""

    def __init__(self, path: str, chat: Chat, settings: Settings, arguments: dict[str, Any]):
        self.rollouts = Rollouts(path, chat, settings, TIMEOUTS, **arguments)

    def generate(self, purpose: str, prompts: Sequence[Prompt]) -> Timed:
        samples = self.rollouts.settings.responses
        began = time.perf_counter()
        rollouts = self.rollouts.generate(purpose, prompts, samples=samples)
        seconds = time.perf_counter() - began
        return Timed(seconds, [one.token_ids for rollout in rollouts for one in rollout.responses])


class Bare:
    """Bare vLLM, asked for the responses that ours is asked for."""

    def __init__(self, path: str, chat: Chat, settings: Settings, arguments: dict[str, Any]):
        remote: Any = ray.remote(num_cpus=settings.num_cpus)(BareActor)
        self.chat, self.actor = chat, remote.remote(path, settings, arguments)

    def generate(self, purpose: str, prompts: Sequence[Prompt]) -> Timed:
        ids = [self.chat.prompt_ids(prompt.text) for prompt in prompts]
        seeds = [seed_of(SEED, purpose, prompt.id) for prompt in prompts]
        ref = self.actor.generate.remote(ids, seeds)
        wait_s = TIMEOUTS.engine_s + TIMEOUTS.generate_s  # the first call also waits for the engine
        timed: Timed = ray.get(ref, timeout=wait_s)
        return timed


def measure(options: argparse.Namespace) -> tuple[list[Timed], list[Timed]]:
    """Passes of ours and of bare vLLM, in turn, after one untimed pass of each."""
    data = GoldData()
    per_family = -(-options.prompts // len(data.families))
    prompts = draw_prompts(
        data.families, per_family, seed=SEED, purpose="benchmark", evaluation=False
    )[: options.prompts]
    settings = Settings(
        responses=options.samples,
        max_tokens=options.tokens,
        chunk_prompts=options.chunk,
        threads=options.threads,
    )
    length = LONGEST_PROMPT + options.tokens
    arguments = {
        "max_model_len": length, "precision": "fp32", "backend": "host", "seed": SEED,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, cluster(2 * settings.num_cpus, 120):
        shown = texts(demonstrations(data, 64, seed=SEED))
        make_policy(Path(folder), Scratch(max_positions=length), shown, seed=SEED)
        chat = Chat.load(folder)
        ours, bare = (make(folder, chat, settings, arguments) for make in (Ours, Bare))
        passes = [
            (ours.generate(f"pass-{number}", prompts), bare.generate(f"pass-{number}", prompts))
            for number in range(options.repeats + 1)
        ]
    return [a for a, _ in passes[1:]], [b for _, b in passes[1:]]


def report(ours: Sequence[Timed], bare: Sequence[Timed]) -> None:
    speeds = [median(one.tokens_per_s for one in passes) for passes in (ours, bare)]
    equal = [
        same
        for a, b in zip(ours, bare, strict=True)
        for same in map(tuple.__eq__, a.responses, b.responses)
    ]
    print("| | tokens/s, median | lowest | highest |\n|---|---|---|---|")
    for name, passes, speed in zip(("ours", "bare vLLM"), (ours, bare), speeds, strict=True):
        found = [one.tokens_per_s for one in passes]
        print(f"| {name} | {speed:.0f} | {min(found):.0f} | {max(found):.0f} |")
    print(f"\nequal responses: {sum(equal) / len(equal):.1%} of {len(equal)}")
    print(f"ratio ours / bare: {speeds[0] / speeds[1]:.3f} (target >= {TARGET})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of a response")
    parser.add_argument("--chunk", type=int, default=Settings().chunk_prompts)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each engine")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each side")
    report(*measure(parser.parse_args()))


if __name__ == "__main__":
    main()
