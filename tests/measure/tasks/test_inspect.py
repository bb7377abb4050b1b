"""Under inspect-ai: our prompts, our scores, and patched models that answer as they do here."""

import asyncio
import importlib
import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from hf_longctx import patched
from hf_longctx.cli.tasks import tasks as tasks_command
from hf_longctx.measure.evaluate import prompt_seed
from hf_longctx.measure.probe import Reader, ask
from hf_longctx.measure.prompts import Codec
from hf_longctx.measure.tasks import find, names

MODULE = "hf_longctx.measure.inspect_ai"


def test_without_the_package_the_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hf_longctx\[inspect\]"'):
        importlib.import_module(MODULE)


@pytest.fixture(scope="module")
def ours():
    pytest.importorskip("inspect_ai", reason="needs the package inspect_ai: make harness installs and tries it")
    return importlib.import_module(MODULE)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    from inspect_ai import eval as evaluate

    def run(task, model):
        (log,) = evaluate(task, model=model, log_dir=str(tmp_path), display="none", log_level="error")
        assert log.status == "success", log.error
        return log

    return run


def test_every_task_is_there_with_the_generator_s_text(ours, folder, tokenizer, files):
    decode = Codec(tokenizer).decode
    for name in names():
        task = getattr(ours, name)(tokenizer=folder, length="1450", samples=2, seed=3, files=files.get(name))
        assert task.config.max_tokens == find(name).budget
        for trial, sample in enumerate(task.dataset):
            prompt = find(name)(tokenizer, 1450, prompt_seed(3, trial), style="base", files=files.get(name))
            assert sample.input == decode(prompt.ids)
            assert list(sample.target) == list(prompt.expected)


def test_the_prompt_of_our_command_is_the_same_byte_for_byte(ours, folder):
    command = typer.Typer()
    command.command()(tasks_command)
    for name in ("niah_multikey_1", "multihop", "passkey"):
        task = getattr(ours, name)(tokenizer=folder, length="1450", samples=2, seed=3)
        for trial, sample in enumerate(task.dataset):
            options = [name, "--length", "1450", "--seed", str(prompt_seed(3, trial)), "--style", "base", "--json"]
            printed = CliRunner().invoke(command, [*options, "--model", folder]).stdout
            assert (
                json.loads(printed)["tasks"][0]["example"]["text"].encode() == with_bos(folder, sample.input).encode()
            )


def with_bos(folder, text):
    """Our command shows the special tokens that the tokenizer adds by itself."""
    from hf_longctx.hf.loading import load_tokenizer

    return (load_tokenizer(folder).bos_token or "") + text


def test_scores_are_ours(ours, folder, run):
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    task = ours.variable_tracking(tokenizer=folder, length=900, samples=3)
    expected = [list(sample.target) for sample in task.dataset]
    said = [" ".join(expected[0]), expected[1][0].lower(), "none"]
    # Without its own usage the mock model counts tokens with a vocabulary that it downloads.
    outputs = [ModelOutput.from_content("mockllm", text).model_copy(update={"usage": ModelUsage()}) for text in said]
    log = run(task, get_model("mockllm/model", custom_outputs=outputs))
    assert [sample.scores["longctx_score"].value for sample in log.samples] == [1.0, 0.2, 0.0]
    assert log.results.scores[0].metrics["mean"].value == pytest.approx(0.4)


def test_a_patched_model_answers_as_it_does_here(ours, folder, model, tokenizer, run):
    from inspect_ai.model import get_model

    task = ours.passkey(tokenizer=folder, length=400, samples=1)
    patch = {"attention": "window:16+global:1", "rope": "yarn:2"}
    log = run(task, get_model(f"hf_longctx/{folder}", device="cpu", **patch))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": task.dataset[0].input}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with patched(model, **patch):
        reply = ask(
            Reader(model), ids, limit=16, decode=tokenizer.decode, stops=frozenset([1]), done=lambda said: False
        )
    (sample,) = log.samples
    assert sample.output.completion == Codec(tokenizer).decode(reply.ids)
    assert sample.output.usage.input_tokens == len(ids)
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("options", "config", "sentence"),
    [
        ({"max_length": 40}, {"max_tokens": 39}, "none is cut"),
        ({}, {"temperature": 0.7}, "answers are greedy"),
    ],
)
def test_what_it_cannot_do_it_refuses(ours, folder, options, config, sentence):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    api = ours.LongctxAPI(folder, device="cpu", **options)
    with pytest.raises(ValueError, match=sentence):
        asyncio.run(api.generate([ChatMessageUser(content="Hello there.")], [], "auto", GenerateConfig(**config)))


def test_a_stop_sequence_ends_the_answer(ours, folder, model, tokenizer):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    api = ours.LongctxAPI(folder, device="cpu")

    def said(**config):
        asked = [ChatMessageUser(content="The baker carried")]
        return asyncio.run(api.generate(asked, [], "auto", GenerateConfig(max_tokens=12, **config))).completion

    whole = said()
    assert len(whole) > 4
    assert said(stop_seqs=[whole[3:5]]) == whole.split(whole[3:5])[0]


@pytest.mark.parametrize(
    ("options", "sentence"), [({}, "-T tokenizer=demo"), ({"tokenizer": "demo", "samples": 0}, "samples=0")]
)
def test_mistakes_are_named(ours, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ours.passkey(**options)


@pytest.mark.parametrize("control", ["no-needle", "wrong-key"])
def test_controls_can_be_asked_for(ours, folder, control):
    (sample,) = ours.niah_single_2(tokenizer=folder, length=700, samples=1, control=control).dataset
    assert sample.metadata["control"] == control
    assert (sample.target[0] in sample.input) == (control == "wrong-key")
