"""The bridge to lm-evaluation-harness: the patched model answers, and nothing is cut."""

import sys

import pytest

from hf_longctx import patched, unpatch
from hf_longctx.measure import lm_eval as bridge


def test_without_the_package_the_pip_line_is_given(monkeypatch):
    bridge._bridge.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hf_longctx\[lm-eval\]"'):
        bridge.longctx_lm("demo")
    bridge._bridge.cache_clear()


@pytest.fixture
def instance():
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    return lambda kind, *arguments: Instance(kind, {}, arguments, 0)


def test_it_generates_what_the_patched_model_does(model, tokenizer, instance):
    text = "The baker carried the lamp. " * 5
    lm = bridge.longctx_lm(model, tokenizer=tokenizer, attention="window:8+global:1", rope="yarn:2", device="cpu")
    try:
        assert lm.max_length == 1024  # what the patched config claims
        asked = [instance("generate_until", text, {"until": [], "max_gen_toks": 6, "do_sample": False})]
        (said,) = lm.generate_until(asked, disable_tqdm=True)
    finally:
        unpatch(model)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with patched(model, attention="window:8+global:1", rope="yarn:2"):
        whole = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert said.strip()
    assert said.strip() == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_loglikelihoods_are_the_model_s(model, tokenizer, instance):
    lm = bridge.longctx_lm(model, tokenizer=tokenizer, device="cpu")
    ((found, _),) = lm.loglikelihood([instance("loglikelihood", "The baker", " carried it")], disable_tqdm=True)
    ids = tokenizer("The baker carried it", return_tensors="pt")["input_ids"]
    start = tokenizer("The baker", return_tensors="pt")["input_ids"].shape[1]
    each = model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert found == pytest.approx(float(each[start - 1 :].sum().detach()), abs=1e-3)


def test_what_is_too_long_is_refused_not_cut(model, tokenizer, instance):
    lm = bridge.longctx_lm(model, tokenizer=tokenizer, max_length=32, device="cpu")
    long = "The baker carried the lamp. " * 20
    with pytest.raises(ValueError, match="none is cut"):
        lm.generate_until([instance("generate_until", long, {"max_gen_toks": 4})], disable_tqdm=True)
    with pytest.raises(ValueError, match="none is cut"):
        lm.loglikelihood([instance("loglikelihood", long, " and")], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"), [({"max_length": 0}, "max_length=0"), ({"tokenizer": None}, "tokenizer=None")]
)
def test_mistakes_are_named(model, tokenizer, instance, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        bridge.longctx_lm(model, **({"tokenizer": tokenizer} | arguments))
