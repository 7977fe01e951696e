"""Do judges in bf16 take half the memory, and still tell near scores apart?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_judges import chat_of, make_judges
from transformers import BertConfig, BertForSequenceClassification

from rlhf_ray.config.judges import BradleyTerryJudge, GenerativeJudge
from rlhf_ray.config.section import Precision
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Preference
from rlhf_ray.rewards.bradley_terry import PlainScores
from rlhf_ray.rewards.build import build_judge
from rlhf_ray.training.loading import lowered

TEXTS = ["ab=ba", "ab=ab", "rev cde=edc", "srt hgf=fgh"]
PAIRS = [Preference(str(n), "ab=", text, text[::-1], "s") for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_judges(tmp_path_factory.mktemp("judges"))


def reader(folder: str, precision: Precision) -> PlainScores:
    return PlainScores(folder, chat_of(folder).pad_id, tokens_per_batch=64, precision=precision)


def test_scores_in_bf16_are_near_those_in_fp32_and_finer_than_bf16(judges: dict[str, str]) -> None:
    texts = [tuple(chat_of(judges["scalar"]).tokenizer.encode(text)) for text in TEXTS]
    fine, coarse = (reader(judges["scalar"], one) for one in ("fp32", "bf16"))
    wanted, found = fine.scores(texts), coarse.scores(texts)
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    assert not np.array_equal(found, wanted)
    rounded = torch.from_numpy(found).to(torch.bfloat16).double().numpy()
    assert not np.array_equal(found, rounded)
    assert 0.5 * fine.size_bytes < coarse.size_bytes < 0.51 * fine.size_bytes


@pytest.mark.parametrize("kind", ["scalar", "gram"])
def test_the_precision_of_the_fleet_reaches_the_judge(judges: dict[str, str], kind: str) -> None:
    folder = judges[kind]
    own = {"path": folder, "template": "terse-1"} if kind == "gram" else {"path": folder}
    entry = (GenerativeJudge if kind == "gram" else BradleyTerryJudge).model_validate(own)
    fine, coarse = (
        build_judge("a", entry, folder, tokens_per_batch=64, critic=None, precision=one)
        for one in ("fp32", "bf16")
    )
    assert coarse.size_bytes < 0.51 * fine.size_bytes
    wanted, found = fine.margins(PAIRS), coarse.margins(PAIRS)
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=0.2 * np.abs(wanted).max())


def test_positions_are_as_exact_in_bf16(judges: dict[str, str]) -> None:
    fine, coarse = (reader(judges["scalar"], one).module for one in ("fp32", "bf16"))
    kept = dict(coarse.named_buffers())
    assert kept, "a model without buffers tests nothing"
    for name, buffer in fine.named_buffers():
        assert torch.equal(buffer, kept[name]), name
    assert {one.dtype for one in coarse.model.base_model.parameters()} == {torch.bfloat16}


def test_a_head_that_cannot_stay_fp32_is_refused_in_bf16(tmp_path: Path) -> None:
    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                   vocab_size=8, num_labels=1)
    )  # fmt: skip
    assert lowered(model, "fp32") is model
    with pytest.raises(BadData, match=r"bert reward model .* set judge_fleet\.precision: fp32"):
        lowered(model, "bf16")


def test_a_refreshed_judge_keeps_its_precision(judges: dict[str, str], tmp_path: Path) -> None:
    coarse = reader(judges["scalar"], "bf16")
    before = coarse.size_bytes
    coarse.load(judges["zeros"])
    assert coarse.size_bytes == before
