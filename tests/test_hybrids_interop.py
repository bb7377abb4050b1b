"""Models with Mamba-2 layers saved and loaded, and beside Trainer, PEFT, device_map and the measuring commands."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hf_longctx as lc
from families import build, padding, tokens
from hf_longctx.hf.cache_argument import cache_of
from hf_longctx.hf.mixers import EXACT, mixers, teachers
from hf_longctx.hf.tokens import Tokens
from hf_longctx.mamba import INITS
from hybrids import HYBRIDS, PLANS, hybrid


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_round_trip(family, plan, tmp_path):
    ids, mask = tokens(2, 30), padding("left", 2, 30)
    model = hybrid(family, plan)
    for parameter in model.parameters():  # as if trained: nothing of the original weights is left
        parameter.add_(0.01)
    model.save_pretrained(tmp_path)
    expected = model(ids, attention_mask=mask).logits
    again = lc.from_pretrained(str(tmp_path))
    assert type(again) is type(model)
    assert torch.equal(again(ids, attention_mask=mask).logits, expected)
    assert str(lc.describe(again)) == str(lc.describe(model))
    assert again.config.longctx == model.config.longctx
    assert not teachers(again)
    out = again.generate(ids, attention_mask=mask, max_new_tokens=3)
    assert torch.equal(out, model.generate(ids, attention_mask=mask, max_new_tokens=3))
    again.save_pretrained(tmp_path / "again")
    first, second = (json.loads((p / "config.json").read_text()) for p in (tmp_path, tmp_path / "again"))
    assert first == second


@torch.no_grad()
def test_a_loaded_hybrid_has_no_attention_to_go_back_to(tmp_path):
    ids = tokens(1, 30)
    model = hybrid("llama", "all")
    model.save_pretrained(tmp_path)
    again = lc.from_pretrained(tmp_path)
    before = again(ids).logits
    with pytest.raises(ValueError, match=r"attention weights that they replaced are gone.*mamba=False"):
        lc.unpatch(again)
    assert torch.equal(again(ids).logits, before)
    lc.unpatch(again, mamba=False)
    assert torch.equal(again(ids).logits, hybrid("llama", "mamba")(ids).logits)
    assert again.config.rope_parameters == build("llama").config.rope_parameters
    with pytest.raises(ValueError, match="are gone"):
        lc.unpatch(again)


def test_whether_it_is_healed_is_saved_and_said_once(tmp_path, caplog):
    from hf_longctx.hf import patching

    model = hybrid()
    model.save_pretrained(tmp_path / "raw")
    model.config.longctx["healed"] = True
    model.save_pretrained(tmp_path / "healed")
    patching._warn_once.cache_clear()
    caplog.clear()  # the model above may have been the first of its kind to say it in this process
    assert lc.describe(lc.from_pretrained(tmp_path / "healed")).healed is True
    assert "until it is healed" not in caplog.text
    assert lc.describe(lc.from_pretrained(tmp_path / "raw")).healed is False
    assert caplog.text.count("until it is healed") == 1


@pytest.mark.parametrize("init", INITS)
def test_sensitive_parameters_stay_float32(init, tmp_path):
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "stock")  # loaded, it has exact frequencies
    model = lc.from_pretrained(tmp_path / "stock", dtype=torch.bfloat16)
    lc.patch(model, mamba=f"1,init={init}").save_pretrained(tmp_path)
    again = lc.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for one in (model, again):
        kinds = {name: p.dtype for name, p in mixers(one)[1].named_parameters()}
        assert {kinds.pop(name) for name in EXACT if name in kinds} == {torch.float32}
        assert set(kinds.values()) == {torch.bfloat16}
    ids = tokens(2, 20)
    out = again.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(out, model.generate(ids, max_new_tokens=4, do_sample=False))


def test_plain_loading_leaves_the_plan_idle(tmp_path):
    hybrid("llama", "all").save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "not in force here" in str(lc.describe(plain))
    with pytest.raises(ValueError, match="hf_longctx.from_pretrained"):
        lc.unpatch(plain)
    named = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="longctx")
    with pytest.raises(ValueError, match=r"layer 1 was saved as a Mamba layer.*from_pretrained"):
        named(tokens(1, 9))


def test_weights_that_are_not_there_are_named(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    lc.patch(model, mamba="1")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"longctx": model.config.longctx}))
    with pytest.raises(ValueError, match=r"lacks weights of its Mamba layers \(model.layers.1.self_attn"):
        lc.from_pretrained(tmp_path)


def test_loading_info_and_device_map(tmp_path):
    model, ids = hybrid(), tokens(1, 20)
    model.save_pretrained(tmp_path)
    again, info = lc.from_pretrained(tmp_path, device_map={"": "cpu"}, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("plan", ["mamba", "all"])
@torch.no_grad()
def test_arguments_of_from_pretrained(plan, tmp_path):
    model, ids = hybrid("llama", plan), tokens(1, 20)
    model.save_pretrained(tmp_path / "some" / "where")
    expected, place = model(ids).logits, {"subfolder": "where"}
    for given in ({}, {"config": AutoConfig.from_pretrained(tmp_path / "some", **place)}, {"config": model.config}):
        before = None if not given else copy.deepcopy(given["config"].to_dict())
        again = lc.from_pretrained(tmp_path / "some", **place, **given)
        assert torch.equal(again(ids).logits, expected)
        assert again.config.longctx == model.config.longctx
        assert before is None or given["config"].to_dict() == before
    folder = tmp_path / "some" / "where"
    assert torch.equal(lc.from_pretrained(folder, config=str(folder), revision="main")(ids).logits, expected)
    for name in ("dtype", "torch_dtype"):
        low = lc.from_pretrained(folder, **{name: torch.bfloat16})
        assert (low.dtype, low.config.dtype) == (torch.bfloat16, torch.bfloat16)
        assert mixers(low)[1].A_log.dtype == torch.float32
    again = lc.from_pretrained(folder, attn_implementation="eager", use_cache=False, output_hidden_states=True)
    assert again.config._attn_implementation == ("eager" if plan == "mamba" else "longctx")
    out = again(ids)
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)
    assert len(out.hidden_states) == 4
    assert cache_of(out) is None
    if plan == "all":
        assert lc.unpatch(again, mamba=False).config._attn_implementation == "eager"


def test_a_config_without_the_layers_of_the_weights_is_refused(tmp_path):
    model = hybrid()
    model.save_pretrained(tmp_path)
    other = hybrid("llama", "first").config
    for given in ({"config": build("llama").config}, {"config": other}, {"longctx": None}):
        with pytest.raises(ValueError, match=r"saved with mamba='1': leave config and longctx out"):
            lc.from_pretrained(tmp_path, **given)
    with pytest.raises(TypeError, match="config is a dict"):
        lc.from_pretrained(tmp_path, config={"hidden_size": 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):  # as plain transformers says it
        lc.from_pretrained(tmp_path, nonsense=3)


@torch.no_grad()
def test_layers_on_several_devices(tmp_path):
    """accelerate moves what each layer is given: what mixers are told about tokens is moved too."""
    from accelerate.utils import send_to_device

    told = Tokens(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.long))
    moved = send_to_device({"longctx_tokens": told}, "meta")["longctx_tokens"]
    assert isinstance(moved, Tokens)
    assert {t.device.type for t in moved} == {"meta"}
    assert send_to_device(Tokens(), "meta") == Tokens()

    model, ids, mask = hybrid("llama", "all"), tokens(2, 20), padding("left", 2, 20)
    model.save_pretrained(tmp_path)
    near = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    places = {"model.layers.1": "disk", "model.layers.2": "disk"} | dict.fromkeys(near, "cpu")
    again = lc.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offloaded")
    assert all(p.is_meta for p in mixers(again)[1].parameters())
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(again.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), expected)


def test_patched_where_accelerate_has_hooks(tmp_path):
    build("llama").save_pretrained(tmp_path)
    from accelerate import dispatch_model

    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    ids = tokens(1, 20)
    stock = model(ids).logits
    assert torch.equal(lc.patch(model, mamba="1")(ids).logits, hybrid()(ids).logits)
    assert torch.equal(lc.unpatch(model)(ids).logits, stock)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("wanted", [None, True])
def test_a_training_loop_of_ones_own(plan, wanted):
    """In training mode, with the config's `use_cache` as it is by default."""
    model, ids = hybrid("llama", plan), tokens(2, 12)
    expected = model(ids, labels=ids).loss
    loss = model.train()(ids, labels=ids, use_cache=wanted).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_takes_a_step(tmp_path, checkpointing):
    from transformers import Trainer, TrainingArguments

    model = hybrid("llama", "all")
    layer = mixers(model)[1]
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in tokens(4, 40)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=True, gradient_checkpointing=checkpointing, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    result = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    for name, parameter in layer.named_parameters():
        assert (parameter - before[name]).abs().max() > 1e-4, name
    ids = tokens(1, 30)
    model.eval()
    assert (lc.unpatch(model)(ids).logits - build("llama")(ids).logits).abs().max() > 1e-3  # the rest was trained
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, build("llama").model.layers[1].self_attn.q_proj.weight)  # fmt: skip  # noqa: E501


@torch.no_grad()
def test_peft_reaches_the_mixers(tmp_path):
    """Projections are called as modules: adapters on one layer's q_proj alone change what it gives."""
    from peft import LoraConfig, PeftModel, get_peft_model

    ids = tokens(1, 30)
    expected = hybrid()(ids).logits
    for target in ("q_proj", "k_proj", "v_proj", "o_proj", "z_proj", "dt_proj"):
        adapter = LoraConfig(
            r=4, target_modules=[target], layers_to_transform=[1], task_type="CAUSAL_LM", init_lora_weights=False
        )
        model = get_peft_model(hybrid(), adapter).eval()
        logits = model(ids).logits
        assert (logits - expected).abs().max() > 1e-4, target
    model.generate(input_ids=ids, max_new_tokens=3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(hybrid(), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, logits)


@torch.no_grad()
def test_compiled():
    model, ids = hybrid("llama", "all", num_hidden_layers=2), tokens(1, 30)
    expected = model(ids).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="compiled"):
        lc.patch(compiled, mamba="1")


# ------------------------------------------------------------------ measuring


def test_the_probe_forks_states():
    from hf_longctx.measure.probe import clone_cache

    model, ids = hybrid("llama", "all"), tokens(1, 20)
    with torch.no_grad():
        cache = model(ids).past_key_values
        other = clone_cache(cache)
        first = model(ids[:, :1], past_key_values=cache).logits
        model(ids[:, 1:3], past_key_values=cache)
        assert torch.equal(model(ids[:, :1], past_key_values=other).logits, first)


def test_a_loaded_hybrid_is_measured_as_it_is(tmp_path):
    from hf_longctx.measure.subject import as_loaded, patched_as
    from hf_longctx.measure.variants import AS_LOADED, as_variants, parse_variant

    model, ids = hybrid(), tokens(1, 20)
    expected = model(ids).logits
    with as_loaded(model) as loaded:  # converted in memory: there is a stock model behind it
        assert loaded.mamba == "1"
        assert not lc.is_patched(model)
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(tmp_path)
    again = lc.from_pretrained(tmp_path)
    with as_loaded(again) as loaded:
        [only] = as_variants([], stock=False, loaded=loaded)
        assert only.name == AS_LOADED
        with patched_as(again, only) as same:
            assert torch.equal(same(ids).logits, expected)
        for given, stock in (([], True), (["a: rope=yarn:2"], False)):
            with pytest.raises(ValueError, match=r"no stock model behind it.*--no-stock"):
                as_variants(given, stock=stock, loaded=loaded)
    stock = build("llama")
    with patched_as(stock, parse_variant("half: mamba=1 rope=yarn:2")) as same:
        assert [layer.mixer for layer in lc.describe(same).layers] == ["attention", "mamba2", "attention"]
    assert not lc.is_patched(stock)


@pytest.mark.parametrize("trained", ["mixer", "adapter", "healed", "others", "cast"])
@torch.no_grad()
def test_measuring_keeps_what_mixers_have_learned(trained):
    """Whoever trained them: only mixers that conversion would make again are taken out and put back."""
    from hf_longctx.measure.subject import as_loaded

    model, ids = hybrid("llama", "all"), tokens(1, 20)
    if trained == "mixer":
        mixers(model)[1].dt_proj.weight[0, 0] += 1e-3
    elif trained == "adapter":
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False)
        get_peft_model(model, adapter)
    elif trained == "healed":
        model.config.longctx["healed"] = True
    elif trained == "others":
        model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    else:
        model.to(torch.bfloat16)
    expected, own = model(ids).logits, mixers(model)[1]
    with as_loaded(model) as loaded:
        again = trained == "others"
        assert bool(loaded.definition()) is again
        assert lc.is_patched(model) is not again
    assert torch.equal(model(ids).logits, expected)
    assert again or mixers(model)[1] is own


@pytest.mark.parametrize("family", HYBRIDS)
def test_costs_by_formula_are_those_of_the_layers(family):
    from hf_longctx.hf.architecture import architecture
    from hf_longctx.measure.cost_model import FLASH, Method, cost

    stock = build(family)
    a, converted = architecture(stock.config), Method("half", mamba="1")
    model = lc.patch(stock, mamba="1")
    found, before = cost(a, converted, 50, itemsize=4), cost(a, FLASH, 50, itemsize=4)
    assert found.cache_bytes == lc.describe(model).cache_bytes(50)
    assert found.weight_bytes == sum(p.numel() * 4 for p in model.parameters())
    # A hybrid's own config says the same as the method does of the original's.
    own = cost(architecture(model.config), FLASH, 50, itemsize=4)
    assert (own.cache_bytes, own.weight_bytes, own.flops) == (found.cache_bytes, found.weight_bytes, found.flops)
    assert before.weight_bytes < found.weight_bytes


def test_the_crossover_by_formula_is_the_described_one():
    from hf_longctx.hf.architecture import architecture
    from hf_longctx.measure.cost_model import FLASH, Method, cost
    from hf_longctx.measure.wall import crossover

    stock = build("llama")
    a, method = architecture(stock.config), Method("most", mamba="0,2")
    tokens_ = crossover(a, method, itemsize=4)
    assert {layer.crossover for layer in lc.describe(lc.patch(stock, mamba="0,2")).layers} == {tokens_, None}
    for n, fewer in ((tokens_ - 1, False), (tokens_, True)):
        both = (cost(a, m, n, itemsize=4).cache_bytes for m in (method, FLASH))
        assert (next(both) < next(both)) is fewer
    assert crossover(a, FLASH) is None
    assert crossover(architecture(build("mistral").config), Method("windows", mamba="0")) is None
