"""A small Llama and its tokenizer from nothing but texts, so that nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_ray.config.schema import Scratch

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}Question: {{ message.content }}\nAnswer: "
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def make_policy(folder: Path, settings: Scratch, texts: Iterable[str], seed: int) -> None:
    """Write an untrained policy: config, weights drawn from `seed`, tokenizer fitted on `texts`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(settings, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(settings: Scratch, texts: Iterable[str]) -> Any:
    """One token per character, or byte-pair encoding with a plain question-answer template."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    fit = _characters if settings.tokenizer == "characters" else _byte_pairs
    tokenizer = fit(texts, settings.vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=settings.max_positions,
    )
    if settings.tokenizer == "bpe":
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _characters(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(set("".join(texts)))
    vocabulary = {token: i for i, token in enumerate([PAD, START, END, UNKNOWN, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_pairs(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, START, END, UNKNOWN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer
