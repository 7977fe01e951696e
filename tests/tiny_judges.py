"""Judges of a few thousand weights in folders, and what a plain forward pass says of them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rlhf_ray.config.judges import FilePreferences, VerdictTraining
from rlhf_ray.config.schema import Scratch
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.verdicts import TEMPLATES
from rlhf_ray.rewards.card import card_files, judge_card
from rlhf_ray.training.reward_model import load_classifier
from rlhf_ray.training.scratch import make_policy


def make_judges(folder: Path) -> dict[str, str]:
    """Random judges that tell texts apart: `scalar`, somebody else's classifier, and `gram`, a
    generative one of ours; with weights of zero `zeros` and `even`, which cannot."""
    settings = Scratch(hidden_size=32, layers=2, heads=1, intermediate_size=32, max_positions=64)
    letters = ["abcdefgh srtev=", *TEMPLATES["terse-1"].alphabet]
    for name in ("scalar", "zeros"):
        make_policy(folder / name, settings, letters, seed=0)
        chat = Chat.load(str(folder / name))
        model = load_classifier(str(folder / name), chat.pad_id, new_head=True)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.score.weight.normal_()
            if name == "zeros":
                model.score.weight.zero_()
        model.save_pretrained(folder / name)
    for name, scale in (("gram", 10), ("even", 0)):
        make_policy(folder / name, settings, letters, seed=3)
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.mul_(scale)
        model.save_pretrained(folder / name)
        write_card(folder / name, "generative")
    return {name: str(folder / name) for name in ("scalar", "zeros", "gram", "even")}


def write_card(folder: Path, kind: str, **reading: Any) -> None:
    card = judge_card(
        folder.name, kind, parent="nothing", pairs=4, left_out=0, template="terse-1",
        settings=VerdictTraining(preferences=FilePreferences(train="pairs.jsonl")),
        reading=reading,
    )  # fmt: skip
    for file, content in card_files(card).items():
        (folder / file).write_bytes(content)


@cache
def chat_of(folder: str) -> Chat:
    return Chat.load(folder)


@cache
def classifier_of(folder: str) -> Any:
    return load_classifier(folder, chat_of(folder).pad_id, new_head=False).eval()


@cache
def model_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def first_label(folder: str, prompt: str, first: str, second: str) -> float:
    """p(A) among A and B, from the full logits of one unpadded text."""
    chat = chat_of(folder)
    ids = chat.prompt_ids(TEMPLATES["terse-1"].ask(prompt, first, second))
    labels = chat.tokenizer.convert_tokens_to_ids(["A", "B"])
    every = model_of(folder)(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return float(every[labels].softmax(0)[0])


def chance(folder: str, prompt: str, one: str, other: str) -> float:
    """That `one` is the better response, in both orders."""
    shown_second = 1 - first_label(folder, prompt, other, one)
    return (first_label(folder, prompt, one, other) + shown_second) / 2


@torch.no_grad()
def plain_score(folder: str, prompt: str, response: str) -> float:
    """One unpadded text through the classifier."""
    ids = torch.tensor([chat_of(folder).exchange_ids(prompt, response)])
    return float(classifier_of(folder)(input_ids=ids).logits[0, 0])
