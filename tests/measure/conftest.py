"""A tiny tokenizer and a tiny model that fit each other, made on the spot."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_longctx.measure import needles, prose
from hf_longctx.measure.grid import build_grid
from hf_longctx.measure.haystack import open_haystack
from hf_longctx.measure.placement import depth_grid

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(*, bos=True, template=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    text = [*itertools.islice(prose.sentences("tokenizer"), 150)]
    text += [f"{n.sentence} {n.question}" for n in needles.typical_needles("digits", draws=1)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        chat_template=("<s>" if bos else "") + TEMPLATE if template else None,
    )


def make_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tokenizer(bos=False, template=False)


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def make_grid():
    """Build a grid over generated prose; whatever is not given has a small default."""

    def make(tokenizer, *, lengths=(300, 600), depths=3, values="digits", mode="shared", style="prefix", **more):
        hay = more.pop("haystack", open_haystack("prose"))
        settings = {"lengths": lengths, "depths": depth_grid(depths), "values": values, "mode": mode, "style": style}
        return build_grid(tokenizer, hay, **settings, seed=more.pop("seed", 0), **more)

    return make
