"""Beside the rest of the ecosystem: pipeline, Trainer, PEFT, device_map, bfloat16, data parallel wrapping."""

from __future__ import annotations

import pytest
import torch

import hf_longctx as lc
from families import FAMILIES, VOCAB, build, tokens

PLAN = {"attention": "window:8+global:2", "rope": "yarn:2"}


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")


def test_pipeline(tokenizer):
    from transformers import pipeline

    model = lc.patch(build("llama"), **PLAN)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = " ".join(f"w{i}" for i in range(5, 30))
    [result] = generate(text, max_new_tokens=5, do_sample=False, return_tensors=True)
    ids = tokenizer(text, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert result["generated_token_ids"] == expected[0].tolist()


def rows(n: int, length: int = 40) -> list[dict]:
    ids = tokens(n, length)
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_takes_a_step(tmp_path, checkpointing):
    from transformers import Trainer, TrainingArguments

    model = lc.patch(build("llama"), **PLAN)
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=True, gradient_checkpointing=checkpointing, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    result = Trainer(model=model, args=arguments, train_dataset=rows(4)).train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert (model.model.layers[0].self_attn.q_proj.weight - before).abs().max() > 1e-4
    lc.unpatch(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_under_a_dense_mask(family):
    from families import dense

    ids, mask = tokens(2, 30), torch.ones(2, 30, dtype=torch.long)
    stock = build(family, attention="eager")
    with dense(stock, lc.patterns.parse("window:8+global:2"), mask):
        stock(ids, labels=ids).loss.backward()
    model = lc.patch(build(family), attention="window:8+global:2")
    model(ids, labels=ids).loss.backward()
    for (name, p), q in zip(stock.named_parameters(), model.parameters()):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_peft_goes_on_top_and_not_below(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    ids = tokens(1, 30)
    model = get_peft_model(lc.patch(build("llama"), **PLAN), adapter)
    model.eval()
    with torch.no_grad():
        logits = model(ids).logits
        assert (logits - lc.patch(build("llama"), **PLAN)(ids).logits).abs().max() > 1e-3
        assert lc.describe(model).rope == "yarn:2"
        model.generate(input_ids=ids, max_new_tokens=3)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(lc.patch(build("llama"), **PLAN), tmp_path).eval()
        torch.testing.assert_close(again(ids).logits, logits)
    with pytest.raises(ValueError, match=r"PEFT.*add the adapter afterwards"):
        lc.patch(get_peft_model(build("llama"), adapter), **PLAN)


def test_an_adapter_that_transformers_added_is_refused():
    from peft import LoraConfig

    inside = build("llama")
    try:
        inside.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    except ValueError as error:
        pytest.skip(f"transformers wants another PEFT: {error}")
    with pytest.raises(ValueError, match="add the adapter afterwards"):
        lc.patch(inside, **PLAN)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family):
    """Patched Full() in bfloat16 is no farther from float32 than stock in bfloat16, within a factor of two."""
    ids = tokens(2, 40)
    with torch.no_grad():
        exact = build(family)(ids).logits
        stock = build(family).to(torch.bfloat16)
        error = (stock(ids).logits.float() - exact).abs().max()
        model = lc.patch(build(family).to(torch.bfloat16), attention="full")
        logits = model(ids).logits
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - exact).abs().max() <= 2 * error + 1e-3
        lc.unpatch(model)
        model = lc.patch(model, **PLAN)
        assert torch.isfinite(
            model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, output_logits=True).logits[0]
        ).all()


def test_device_map(tmp_path):
    build("llama").save_pretrained(tmp_path)
    ids = tokens(1, 30)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype="float32")
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for module in model.modules():
        if "otary" in type(module).__name__:
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    hooks = {name: id(m._hf_hook) for name, m in model.named_modules() if hasattr(m, "_hf_hook")}
    assert hooks
    with torch.no_grad():
        stock = model(ids).logits
        lc.patch(model, **PLAN)
        torch.testing.assert_close(model(ids).logits, lc.patch(build("llama"), **PLAN)(ids).logits)
        assert hooks == {name: id(m._hf_hook) for name, m in model.named_modules() if hasattr(m, "_hf_hook")}
        assert torch.equal(lc.unpatch(model)(ids).logits, stock)


def test_moving_between_patch_and_unpatch():
    """A model moved to another device keeps its frequencies there when it is restored."""
    model = lc.patch(build("llama"), rope="yarn:2").to("meta")
    lc.unpatch(model)
    assert model.model.rotary_emb.inv_freq.device.type == "meta"


def test_data_parallel_wrapping():
    model, ids = lc.patch(build("llama"), **PLAN), tokens(2, 20)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(ids, labels=ids).loss.backward()
        assert model.lm_head.weight.grad is not None
        # The group must not go with the last wrapper: that would wait for a thread while holding the GIL it needs.
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
