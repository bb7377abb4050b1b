"""The bridge to lm-evaluation-harness: the patched model answers, and nothing is cut."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from hf_longctx import describe, patched, unpatch
from hf_longctx.hf import loading
from hf_longctx.measure import lm_eval as bridge
from hf_longctx.measure.prompts import Codec
from hf_longctx.measure.tasks import find


def test_without_the_package_the_pip_line_is_given(monkeypatch):
    register = bridge.register.__wrapped__
    monkeypatch.setattr(bridge, "register", register)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hf_longctx\[lm-eval\]"'):
        bridge.longctx_lm("demo")


@pytest.fixture
def harness(monkeypatch):
    """As much of lm-evaluation-harness as the bridge touches: a registry, a base class, a command line."""
    told = SimpleNamespace(models={}, arguments=None, ran=False)

    class HFLM:
        def __init__(self, **arguments):
            told.arguments = arguments
            self.max_length = arguments["max_length"]

        def tok_batch_encode(self, strings, padding_side):
            ids = arguments_of(self)["tokenizer"](strings, return_tensors="pt")
            return ids["input_ids"], ids["attention_mask"]

        @classmethod
        def create_from_arg_string(cls, text, more):
            return cls(**dict(pair.split("=") for pair in text.split(",")), **more)

    def arguments_of(lm):
        return told.arguments

    def register_model(name):
        return lambda made: told.models.setdefault(name, made)

    parts = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.__main__": {"cli_evaluate": lambda: setattr(told, "ran", True)},
    }
    for name, held in parts.items():
        module = ModuleType(name)
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(bridge, "register", bridge.register.__wrapped__)
    return told


def test_the_command_registers_the_name_and_hands_over(harness, model, tokenizer, monkeypatch):
    bridge.main()
    assert harness.ran
    assert list(harness.models) == ["hf_longctx"]
    monkeypatch.setattr(loading, "load_model", lambda name, dtype=None, device=None: (model, tokenizer))
    text = "pretrained=tiny,attention=window:8+global:1,rope=yarn:2"
    try:
        lm = harness.models["hf_longctx"].create_from_arg_string(text, {"batch_size": 1, "device": "cpu"})
        assert describe(model).rope == "yarn:2"
        assert harness.arguments == {"pretrained": model, "tokenizer": tokenizer, "max_length": 1024, "batch_size": 1}
    finally:
        unpatch(model)
    ids, _ = lm.tok_batch_encode(["The baker"], left_truncate_len=40)
    assert ids.shape[1] < 40
    with pytest.raises(ValueError, match="none is cut"):
        lm.tok_batch_encode(["The baker carried the lamp. " * 20], left_truncate_len=40)


@pytest.fixture
def instance():
    pytest.importorskip("lm_eval", reason="needs the package lm_eval: make harness installs and tries it")
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


def test_our_prompt_reaches_the_model_byte_for_byte(model, tokenizer, instance, monkeypatch):
    prompt = find("niah_multikey_1")(tokenizer, 400, 3, style="base")
    decode, seen = Codec(tokenizer).decode, []
    lm = bridge.longctx_lm(model, tokenizer=tokenizer, device="cpu")
    monkeypatch.setattr(lm.model, "forward", _spy(lm.model.forward, seen))
    asked = instance("generate_until", decode(prompt.ids), {"until": [], "max_gen_toks": 2, "do_sample": False})
    lm.generate_until([asked], disable_tqdm=True)
    assert decode(seen[0]) == decode(prompt.ids)


def _spy(forward, seen):
    def spied(*args, **kwargs):
        seen.append(kwargs["input_ids"][0].tolist())
        return forward(*args, **kwargs)

    return spied


@pytest.mark.slow
def test_the_harness_s_command_takes_the_name(model, tokenizer, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the package lm_eval: make harness installs and tries it")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "The baker carried", "answer": " the lamp"}) + "\n")
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: data.jsonl\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list:\n  - metric: perplexity\n    aggregation: perplexity\n    higher_is_better: false\n"
    )
    given = f"pretrained={tmp_path / 'model'},attention=window:4,rope=yarn:2"
    command = [sys.executable, "-m", "hf_longctx.measure.lm_eval", "--model", "hf_longctx", "--model_args", given]
    command += ["--tasks", "tiny", "--include_path", str(tmp_path), "--device", "cpu", "--output_path", "found"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "found").rglob("results_*.json")
    ids = tokenizer("The baker carried the lamp", return_tensors="pt")["input_ids"]
    start = tokenizer("The baker carried", return_tensors="pt")["input_ids"].shape[1]
    with patched(model, attention="window:4", rope="yarn:2"):
        each = model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    expected = float((-each[start - 1 :].sum()).exp().detach())
    assert json.loads(file.read_text())["results"]["tiny"]["perplexity,none"] == pytest.approx(expected, rel=1e-3)
