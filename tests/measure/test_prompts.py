"""Prompts: exact lengths, one BOS, the needle where it is said to be, and nothing cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_longctx.measure.controls import WRONG_KEY, kind_of
from hf_longctx.measure.haystack import Haystack
from hf_longctx.measure.needles import typical_needles
from hf_longctx.measure.prompts import STYLES, Codec, build_prompt
from hf_longctx.measure.sharing import group, spent_tokens


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", ["shared", "single"])
@pytest.mark.parametrize("values", ["digits", "words", "uuid"])
def test_every_prompt_has_its_length_its_needle_and_one_bos(make_grid, tokenizer, style, mode, values):
    grid = make_grid(tokenizer, style=style, mode=mode, values=values)
    probes = grid.probes(0)
    assert len(probes) == 2 * (3 + 2)
    for probe in probes:
        assert probe.reason is None
        ids = probe.prompt()
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        room = probe.length - len(ids)
        assert room >= probe.limit >= len(grid.codec.encode(f" {probe.needle.value}."))
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert probe.needle.question in text
        if probe.kind == "needle":
            assert text.count(probe.needle.sentence) == 1
            assert ids[probe.needle_at : probe.needle_at + len(probe.needle_ids)] == list(probe.needle_ids)
            assert probe.excerpt(grid.codec)["needle"].strip() == probe.needle.sentence
        else:
            assert (probe.needle.value in text) == (probe.kind == kind_of(WRONG_KEY))
            asks_another = mode == "shared" and probe.kind == kind_of(WRONG_KEY)
            told = text.replace(probe.needle.question, "").replace(probe.needle.prefix, "")
            assert (probe.needle.sentence in text) == asks_another
            assert probe.needle.relation.lower() not in told.lower()


def test_styles_differ_in_template_and_prefix(make_grid, tokenizer):
    def end(style):
        probe = make_grid(tokenizer, style=style).probes(0)[0]
        return tokenizer.decode(probe.prompt()), probe.needle.prefix

    text, prefix = end("prefix")
    assert "<|user|>" in text
    assert text.endswith(f"<|assistant|>{prefix}")
    text, _ = end("chat")
    assert text.endswith("<|assistant|>")
    text, prefix = end("base")
    assert "<|" not in text
    assert text.endswith(f"\nAnswer: {prefix}")


def test_without_a_chat_template_prefix_is_base_and_chat_is_refused(make_grid, plain_tokenizer):
    text = plain_tokenizer.decode(make_grid(plain_tokenizer).probes(0)[0].prompt())
    assert "\nAnswer: " in text
    assert "<s>" not in text
    with pytest.raises(ValueError, match="style='chat' needs a chat template"):
        make_grid(plain_tokenizer, style="chat")


def test_a_template_that_drops_the_message_is_refused(make_grid, tokenizer):
    needles = typical_needles("digits", draws=1)
    codec = Codec(tokenizer)
    kept, tokenizer.chat_template = tokenizer.chat_template, "Hello."
    try:
        with pytest.raises(ValueError, match="renders the user's message 0 times"):
            build_prompt(codec, "chat", needles)
    finally:
        tokenizer.chat_template = kept


def test_special_tokens_in_a_haystack_stay_text(make_grid, tokenizer):
    def sentences(seed):
        while True:
            yield "He wrote </s> and <|user|> on the wall."

    hay = Haystack("hostile", "hostile", "1", sentences, lambda phrase: False)
    for probe in make_grid(tokenizer, haystack=hay, style="base").probes(0):
        assert tokenizer.eos_token_id not in probe.prompt()
        assert "</s>" in tokenizer.decode(probe.prompt())


def test_too_short_is_invalid_and_says_how_much_is_needed(make_grid, tokenizer):
    probes = make_grid(tokenizer, lengths=(20, 300)).probes(0)
    assert {probe.length for probe in probes if probe.reason} == {20}
    least = int(next(p.reason for p in probes if p.reason and p.kind == "needle").split()[-2])
    assert not any(p.reason for p in make_grid(tokenizer, lengths=(least,), depths=1).probes(0) if p.kind == "needle")


def test_beyond_learned_positions_is_invalid(make_grid, tokenizer):
    probes = make_grid(tokenizer, longest=400).probes(0)
    assert {p.length: p.reason for p in probes if p.reason} == {
        600: "too long: the model has learned positions for 400 tokens only"
    }


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(["shared", "single"]))
def test_prompts_are_a_function_of_seed_and_trial(make_grid, tokenizer, seed, trial, mode):
    first, again = (make_grid(tokenizer, seed=seed, mode=mode).probes(trial) for _ in range(2))
    other = make_grid(tokenizer, seed=seed, mode=mode).probes(trial + 1)
    assert [p.prompt() for p in first] == [p.prompt() for p in again]
    assert all(a.prompt() != b.prompt() for a, b in zip(first, other))


@pytest.mark.parametrize("mode", ["shared", "single"])
def test_sharing_reads_the_same_prompts_with_fewer_tokens(make_grid, tokenizer, mode):
    probes = make_grid(tokenizer, mode=mode, lengths=(300, 600, 900), depths=5).probes(0)
    shared = group(probes, exact=False, per_length=mode == "single")
    exact = group(probes, exact=True, per_length=False)
    assert [p.prompt() for members in exact for p in members] == [p.prompt() for p in probes]
    spent, slow = sum(spent_tokens(shared).values()), sum(spent_tokens(exact).values())
    assert slow == sum(len(p.prompt()) for p in probes)
    assert slow > spent * (4 if mode == "shared" else 1.3)
    for members in shared:
        assert [p.at for p in members] == sorted(p.at for p in members)


def test_too_many_cells_for_the_bank_are_refused(make_grid, tokenizer):
    with pytest.raises(ValueError, match="needles='single'"):
        make_grid(tokenizer, lengths=range(300, 8000, 700), depths=40).probes(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (0,)}, "lengths holds 0"),
        ({"lengths": (1.5,)}, "lengths holds 1.5"),
        ({"mode": "double"}, "needles='double'.*shared, single"),
        ({"style": "poem"}, "style='poem'.*prefix, chat, base"),
        ({"values": "roman"}, "values='roman'"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_grid, tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        make_grid(tokenizer, **change)


def test_a_tokenizer_is_needed():
    with pytest.raises(TypeError, match="pass the model's Hugging Face tokenizer"):
        Codec("gpt2")


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_sentences_join_alike_under_sentencepiece(scheme):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    texts = [n.sentence for n in typical_needles("digits", draws=1)] + ["It rains. They wait."]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    codec = Codec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    ids = [one for sentence in codec.stream(iter(texts[:5])) for one in sentence]
    assert codec.decode(ids).strip() == " ".join(texts[:5])
