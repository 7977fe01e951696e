"""From a recipe entry to a judge: the contract every reward model keeps.

score(prompts [P], responses [P][K], critiques [P][K], references [P]) -> Judgement
margins(pairs [N]) -> float64 [N], how far it prefers the chosen response

Values are finite, or NaN with a counted reason where a judge may fail without ending the run.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from rlhf_ray.config.judges import (
    BradleyTerryJudge,
    Critic,
    CritiquedJudge,
    GenerativeJudge,
    GoldJudge,
    Judge,
    RemoteJudge,
    RuleJudge,
)
from rlhf_ray.config.section import Precision
from rlhf_ray.critiques.template import template_of
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.verdicts import TEMPLATES as VERDICTS
from rlhf_ray.data.verdicts import Verdicts
from rlhf_ray.messages import Floats, Judgement, Preference, Prompt
from rlhf_ray.rewards.rules import Rules


class RewardModel(Protocol):
    """A judge as its actor sees it."""

    @property
    def size_bytes(self) -> int: ...
    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        critiques: Sequence[Sequence[str]] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> Judgement: ...
    def margins(self, pairs: Sequence[Preference]) -> Floats: ...


def build_judge(
    name: str,
    entry: Judge,
    path: str | None,
    *,
    tokens_per_batch: int,
    critic: Critic | None,
    num_gpus: float = 0.0,
    precision: Precision = "fp32",
) -> RewardModel:
    """`path`: where the weights lie, for the families that have weights. `num_gpus`: of the worker,
    for judges that run in an engine of their own."""
    match entry:
        case BradleyTerryJudge() | CritiquedJudge() | GenerativeJudge():
            assert path is not None, f"judge '{name}' was not trained or found"
            budget = entry.tokens_per_batch or tokens_per_batch
            if isinstance(entry, GenerativeJudge):
                return _generative(name, entry, path, budget, num_gpus, precision)
            return _scalar(name, entry, path, budget, critic, num_gpus, precision)
        case RuleJudge():
            return Rules(entry.rule, entry.pattern, entry.target_tokens)
        case RemoteJudge():
            return _remote(name, entry)
        case GoldJudge():
            return Rules("answer")


def _scalar(
    name: str,
    entry: BradleyTerryJudge | CritiquedJudge,
    path: str,
    budget: int,
    critic: Critic | None,
    num_gpus: float,
    precision: Precision,
) -> RewardModel:
    from rlhf_ray.rewards.bradley_terry import BradleyTerry, PlainScores

    chat = Chat.load(path, trust_remote_code=entry.trust_remote_code)
    if entry.serve == "vllm":
        from rlhf_ray.rewards.served import ServedScores

        limit = chat.limit(entry.max_tokens)
        reader: Any = ServedScores(
            path, limit, num_gpus=num_gpus, precision=precision,
            trust_remote_code=entry.trust_remote_code,
        )  # fmt: skip
    else:
        reader = PlainScores(
            path,
            chat.pad_id,
            tokens_per_batch=budget,
            precision=precision,
            trust_remote_code=entry.trust_remote_code,
        )
    join = None
    if isinstance(entry, CritiquedJudge):
        assert critic is not None, "checked with the recipe"
        template = template_of(critic.template, score=critic.score)
        join = partial(template.join, only=entry.critique_only)
    return BradleyTerry(name, chat, reader, max_tokens=entry.max_tokens, join=join)


def _generative(
    name: str,
    entry: GenerativeJudge,
    path: str,
    budget: int,
    num_gpus: float,
    precision: Precision,
) -> RewardModel:
    from rlhf_ray.rewards.generative import Generative, PlainVerdicts

    chat = Chat.load(path, trust_remote_code=entry.trust_remote_code)
    verdicts = Verdicts(chat, entry.template)
    if entry.serve == "vllm":
        from rlhf_ray.rewards.served import ServedVerdicts

        limit = chat.limit(entry.max_tokens)
        reader: Any = ServedVerdicts(
            path,
            verdicts.label_ids,
            limit,
            num_gpus=num_gpus,
            precision=precision,
            trust_remote_code=entry.trust_remote_code,
        )
    else:
        reader = PlainVerdicts(
            path,
            verdicts.label_ids,
            pad_id=chat.pad_id,
            tokens_per_batch=budget,
            precision=precision,
            trust_remote_code=entry.trust_remote_code,
        )
    return Generative(name, reader, verdicts, against=entry.against, max_tokens=entry.max_tokens)


def _remote(name: str, entry: RemoteJudge) -> RewardModel:
    from rlhf_ray.remote.judges import RemoteJudge as Remote

    options = entry.model_dump(exclude={"kind", "template"})
    if entry.protocol == "openai":
        options["render"] = VERDICTS["judge-1"].ask
    if entry.template is not None:
        from rlhf_ray.remote.exchanges import exchange_of

        options["exchange"] = exchange_of(name, entry.template)
    return Remote(name, **options)
