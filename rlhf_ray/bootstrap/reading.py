"""How each family of judges reads a pair, and what trains it: one value for training, voting,
refreshing and evaluating."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlhf_ray.config.judges import (
    Critic,
    CritiquedJudge,
    CritiquedTraining,
    GenerativeJudge,
    GoldPreferences,
    JudgeTraining,
    Trained,
    VerdictTraining,
)
from rlhf_ray.config.schema import Learner
from rlhf_ray.critiques.template import template_of
from rlhf_ray.data.batches import Mixture
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import Render, critiqued, fitting, mixture, scalar, verdict
from rlhf_ray.data.verdicts import Verdicts
from rlhf_ray.messages import Preference
from rlhf_ray.training.builders import Meta, scalar_trainer, verdict_trainer

Build = Callable[[int, int], Any]
Draw = Callable[[Sequence[Preference]], Mixture]


@dataclass(frozen=True, slots=True)
class Reading:
    """One judge's view of pairs."""

    path: str
    """The model it starts from."""
    chat: Chat
    render: Render[Any]
    limit: int
    trust_remote_code: bool
    without: Render[Any] | None = None
    """The same pair without its critiques."""
    label_ids: tuple[int, int] | None = None
    template: str | None = None
    known: dict[Preference, Any] = field(default_factory=dict)
    """Tokens of pairs that were read before."""

    @classmethod
    def of(
        cls,
        entry: Trained,
        path: str,
        critic: Critic | None,
        known: dict[Preference, Any] | None = None,
    ) -> "Reading":
        """`known` may come from another reading with the same tokenizer: tokens are made once."""
        chat = Chat.load(path, trust_remote_code=entry.trust_remote_code)
        plain = cls(
            path,
            chat,
            scalar(chat),
            chat.limit(entry.max_tokens),
            entry.trust_remote_code,
            known={} if known is None else known,
        )
        match entry:
            case GenerativeJudge():
                verdicts = Verdicts(chat, entry.template)
                return replace(
                    plain,
                    render=verdict(verdicts),
                    limit=verdicts.limit(entry.max_tokens),
                    label_ids=verdicts.label_ids,
                    template=entry.template,
                )
            case CritiquedJudge():
                assert critic is not None, "checked with the recipe"
                template = template_of(critic.template, score=critic.score)
                join = partial(template.join, only=entry.critique_only)

                def alone(response: str, _: str) -> str:
                    """Without a critique a response reads as it does with one: escaped, too."""
                    return template.shown(response)

                return replace(
                    plain,
                    render=critiqued(chat, join),
                    without=None if entry.critique_only else critiqued(chat, alone),
                    template=template.version,
                )
        return plain

    def fit(self, pairs: Sequence[Preference]) -> tuple[list[Preference], list[Any]]:
        """Pairs this judge can read in full, with their tokens."""
        return fitting(pairs, self.tokens, self.limit)

    def tokens(self, pair: Preference) -> Any:
        """What this judge reads of a pair."""
        if pair not in self.known:
            self.known[pair] = self.render(pair)
        return self.known[pair]

    def readable(self, pairs: Sequence[Preference]) -> tuple[list[Preference], list[Any]]:
        """Those of the pairs that fit, and their tokens; there may be none."""
        rendered = [(pair, self.tokens(pair)) for pair in pairs]
        kept = [(pair, tokens) for pair, tokens in rendered if tokens.longest <= self.limit]
        return [pair for pair, _ in kept], [tokens for _, tokens in kept]

    def one(self, prompt: str, response: str, critique: str = "") -> tuple[int, ...]:
        """Tokens of a single response, for scalar judges."""
        pair = Preference("", prompt, response, response, "", critique, critique)
        ids: tuple[int, ...] = self.render(pair).chosen
        return ids

    def build(
        self,
        pairs: Sequence[Preference],
        settings: JudgeTraining,
        learner: Learner,
        *,
        seed: int,
        draw: Draw | None = None,
        meta: Meta | None = None,
    ) -> tuple[Build, int]:
        """What trains this judge on the pairs it can read, and how many these are.

        `draw` says how batches are drawn from them; None: with the share of what the judge is an
        expert in. `meta`: the meta-set and the settings of a MetaRM refresh.
        """
        kept, tokens = self.fit(pairs)
        drawn = draw(kept) if draw else mixture(kept, expert(settings))
        # A refresh reads few of them, and what is not read need not travel.
        steps = meta[1].steps if meta else settings.steps
        rows = drawn.drawn(steps, settings.batch_size, seed).tolist()
        read = {row: tokens[row] for row in rows}
        shared = {
            "pad_id": self.chat.pad_id,
            "seed": seed,
            "trust_remote_code": self.trust_remote_code,
        }
        if self.label_ids is not None:
            assert isinstance(settings, VerdictTraining)
            assert meta is None, "MetaRM needs a score per response"
            build = partial(verdict_trainer, self.path, read, drawn, settings, self.label_ids)
        else:
            build = partial(scalar_trainer, self.path, read, drawn, settings)
            shared |= {"meta": meta} | self.dropout({row: kept[row] for row in rows}, settings)
        return partial(build, learner, **shared), len(kept)

    def dropout(self, pairs: Mapping[int, Preference], settings: JudgeTraining) -> dict[str, Any]:
        """The pairs without critiques, and how often they are read so."""
        if self.without is None or not isinstance(settings, CritiquedTraining):
            return {}
        plain = {row: self.without(pair) for row, pair in pairs.items()}
        return {"without": plain, "dropout": settings.critique_dropout}


def manner(entry: Trained, critic: Critic | None) -> dict[str, Any]:
    """How a judge is to be asked, kept in its card: asked otherwise it is another judge."""
    return {
        "max_tokens": entry.max_tokens,
        "against": getattr(entry, "against", None),
        "critique_only": getattr(entry, "critique_only", None),
        "score": critic.score if critic is not None and entry.kind == "critiqued" else None,
    }


def expert(training: JudgeTraining) -> tuple[str, float] | None:
    """The source a judge is good at and its share of each batch; None: all pairs alike."""
    preferences = training.preferences
    if isinstance(preferences, GoldPreferences):
        return preferences.expert, preferences.expert_share
    return None


def with_steps(training: JudgeTraining, pairs: int) -> JudgeTraining:
    """The training with its number of steps settled."""
    if training.epochs is None:
        return training
    steps = max(1, -(-round(training.epochs * pairs) // training.batch_size))
    optimizer = training.optimizer
    warmup = min(optimizer.warmup_steps, steps // 10)  # of so few steps it would be most
    optimizer = optimizer.model_copy(update={"warmup_steps": warmup})
    return training.model_copy(update={"steps": steps, "optimizer": optimizer})
