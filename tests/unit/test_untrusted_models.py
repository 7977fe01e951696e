"""Does a model folder that somebody else made run code here? Only where its recipe says so."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_judges import make_judges

from rlhf_ray.config.judges import BradleyTerryJudge, CritiquedJudge, GenerativeJudge
from rlhf_ray.config.schema import Policy
from rlhf_ray.data.chat import Chat
from rlhf_ray.errors import BadData
from rlhf_ray.remote.exchanges import exchange_of
from rlhf_ray.rewards.build import build_judge
from rlhf_ray.training.loading import load_causal_lm
from rlhf_ray.training.reward_model import load_classifier
from rlhf_ray.training.verdicts import load_label_logits

CODE = """\
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
class TheirConfig(LlamaConfig):
    model_type = "theirs"
class TheirWriter(LlamaForCausalLM):
    config_class = TheirConfig
class TheirScorer(LlamaForSequenceClassification):
    pass
"""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_judges(tmp_path_factory.mktemp("judges"))


def with_code(folder: Path, name: str) -> Path:
    """Give a model folder code of its own; returns the file that this code makes when it runs."""
    mark = folder / "it-ran"
    (folder / f"their_{name}.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    if "LlamaForCausalLM" in config["architectures"]:
        config["model_type"] = "theirs"
        config["auto_map"] = {
            "AutoConfig": f"their_{name}.TheirConfig",
            "AutoModelForCausalLM": f"their_{name}.TheirWriter",
        }
    else:  # a known kind of model, with code beside it
        scorer = f"their_{name}.TheirScorer"
        config["auto_map"] = {"AutoModelForSequenceClassification": scorer}
    (folder / "config.json").write_text(json.dumps(config))
    return mark


def judge(entry: Any, path: str) -> Any:
    """The judge, once it has loaded all that it loads."""
    return build_judge("a", entry, path, tokens_per_batch=64, critic=None)


WAYS: dict[str, tuple[str, Callable[..., Any]]] = {
    "policy": ("gram", load_causal_lm),
    "tokenizer": ("gram", Chat.load),
    "classifier": ("scalar", lambda path, **how: load_classifier(path, 0, new_head=False, **how)),
    "labels": ("gram", lambda path, **how: load_label_logits(path, (1, 2), **how)),
    "scalar judge": (
        "scalar",
        lambda path, **how: judge(BradleyTerryJudge(path=path, **how), path),
    ),
    "generative judge": (
        "gram",
        lambda path, **how: judge(GenerativeJudge(path=path, template="terse-1", **how), path),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_of_a_model_runs_only_where_it_is_trusted(
    way: str, judges: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, load = WAYS[way]
    folder = tmp_path / "theirs"
    copied(judges[name], folder)
    mark = with_code(folder, way.replace(" ", "_"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    if name == "scalar":
        load(str(folder))  # by a class of the library's own
    else:
        with pytest.raises((BadData, ValueError)):
            load(str(folder))
    assert not mark.exists()
    load(str(folder), trust_remote_code=True)
    assert mark.exists(), "this test sees code that runs"


def test_a_template_for_a_service_never_runs_code(judges: dict[str, str], tmp_path: Path) -> None:
    copied(judges["gram"], tmp_path / "theirs")
    mark = with_code(tmp_path / "theirs", "template")
    with pytest.raises(BadData):
        exchange_of("a", str(tmp_path / "theirs"))
    assert not mark.exists()


def test_nobody_is_trusted_unless_a_recipe_says_so() -> None:
    kinds = (Policy, BradleyTerryJudge, CritiquedJudge, GenerativeJudge)
    assert [kind.model_fields["trust_remote_code"].default for kind in kinds] == [False] * 4


def copied(source: str, target: Path) -> None:
    target.mkdir()
    for one in Path(source).iterdir():
        (target / one.name).write_bytes(one.read_bytes())


@pytest.mark.parametrize("also", [None, "other.safetensors"])
@pytest.mark.parametrize("way", ["policy", "classifier", "labels"])
def test_weights_that_are_pickles_are_not_read(
    way: str, also: str | None, judges: dict[str, str], tmp_path: Path
) -> None:
    name, load = WAYS[way]
    folder = tmp_path / "old"
    copied(judges[name], folder)
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "it-ran"
    torch.save({"lm_head.weight": Boom(mark)}, folder / "pytorch_model.bin")
    if also:
        (folder / also).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(BadData, match=r"has no model.safetensors.*docs/security.md") as refused:
        load(str(folder))
    assert str(folder) in str(refused.value)
    assert not mark.exists()


class Boom:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_old_weights_are_converted_as_the_page_says(judges: dict[str, str], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    copied(judges["scalar"], old)
    weights = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    torch.save(weights, old / "pytorch_model.bin")
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(code.replace("old/model", str(old)).replace("new/model", str(new)), {})
    found = load_classifier(str(new), 0, new_head=False).state_dict()
    assert Chat.load(str(new)).end_id == Chat.load(str(old)).end_id
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("lost", ["score.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_missing_are_never_made_up(
    lost: str, judges: dict[str, str], tmp_path: Path
) -> None:
    copied(judges["scalar"], tmp_path / "judge")
    weights = load_file(tmp_path / "judge" / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "judge" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadData, match=rf"lack 1 tensors of its model \({lost}\)"):
        load_classifier(str(tmp_path / "judge"), 0, new_head=False)


def test_a_language_model_lacks_its_new_head_alone(judges: dict[str, str], tmp_path: Path) -> None:
    copied(judges["gram"], tmp_path / "judge")
    assert not load_classifier(str(tmp_path / "judge"), 0, new_head=True).score.weight.any()
    weights = load_file(tmp_path / "judge" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "judge" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadData, match=r"\(model\.norm\.weight\), which would be made up"):
        load_classifier(str(tmp_path / "judge"), 0, new_head=True)
