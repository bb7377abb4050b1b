"""Suites: read strictly, checked before a model loads, resumed without asking twice, gated by exit code."""

import json
import sys
from pathlib import Path

import pytest

from hf_longctx.cli import eval as module
from hf_longctx.hf import loading
from hf_longctx.measure import cost as cost_module
from hf_longctx.measure import processes, report, suite
from hf_longctx.measure.cost_child import measure
from hf_longctx.measure.settings_file import read_yaml

pytestmark = pytest.mark.usefixtures("six_tokens")

SHIPPED = sorted((Path(__file__).parents[2] / "evals").glob("*.yaml"))
SMALL = """
name: small
haystack: prose
variant:
  - yarn2: rope=yarn:2
parts:
  recall: {kind: needle, lengths: [200, 300], depths: 2}
  effective: {task: passkey, lengths: "200", trials: 3}
  tasks: {task: [passkey, multihop], lengths: 380, trials: 1}
  cost: {lengths: 40, repeats: 1, steps: 2, no-standard: true, no-stock: true}
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "suite.yaml").write_text(text)
        return tmp_path / "suite.yaml"

    return write


@pytest.fixture
def saved(model, tokenizer, tmp_path, monkeypatch):
    """A tiny model in a folder, and each time it is loaded. Costs are measured in this process, not in others."""
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(cost_module, "_child", lambda task, timeout: measure(task))
    loads, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda name, **more: loads.append(name) or load(name, **more))
    return tmp_path / "tiny", loads


def test_a_suite_is_one_folder_of_ordinary_runs(run, written, saved, tmp_path, monkeypatch):
    tiny, loads = saved
    command = ("eval", written(SMALL), "--model", tiny, "--out", tmp_path / "run")
    code, out, err = run(*command)
    assert code == 0, err
    assert loads == [str(tiny)]  # once for three parts
    found = json.loads((tmp_path / "run" / "suite.json").read_text())
    assert {key: found[key] for key in ("schema", "name")} == {"schema": 1, "name": "small"}
    assert [(part["name"], part["kind"], part["folder"]) for part in found["parts"]] == [
        ("recall", "needle", "recall"),
        ("effective", "tasks", "effective"),
        ("tasks", "tasks", "tasks"),
        ("cost", "cost", "cost"),
    ]
    assert {part["model"] for part in found["parts"]} == {str(tiny)}
    assert found["command"].startswith("hf-longctx eval")
    assert {"versions", "hardware", "started"} <= set(found)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["parts"]) == {"recall", "effective", "tasks", "cost"}
    for name in ("recall", "effective", "tasks"):
        assert summary["parts"][name] == json.loads((tmp_path / "run" / name / "summary.json").read_text())
    assert [row["outcome"] for row in summary["parts"]["cost"]["rows"]] == ["ok"]
    assert summary["parts"]["recall"]["settings"]["lengths"] == [200, 300]
    assert list(summary["parts"]["effective"]["variants"]) == ["stock", "yarn2"]
    assert summary["parts"]["tasks"]["tasks"] == ["passkey", "multihop"]
    assert (tmp_path / "run" / "recall" / "report.html").is_file()

    monkeypatch.setattr(report, "attempt", lambda out: None)  # pages are drawn no better a second time
    files = [path for path in (tmp_path / "run").rglob("*.jsonl") if path.parent.name != "locks"]
    before = {path: path.read_bytes() for path in files}
    whole = run(*command)
    assert whole[0] == 0
    assert {path: path.read_bytes() for path in files} == before  # nothing was asked twice
    assert json.loads((tmp_path / "run" / "suite.json").read_text())["started"] == found["started"]

    lost = tmp_path / "run" / "recall" / "rows.jsonl"
    rows = lost.read_bytes().splitlines(keepends=True)
    lost.write_bytes(b"".join(rows[:5]) + rows[5][:20])  # as a kill leaves it
    assert run(*command)[0] == 0
    assert len(lost.read_bytes().splitlines()) == len(rows)

    code, _, err = run(*command, "--lengths", "200,400")
    assert code == 2
    assert "the part 'recall' was another: lengths was [200, 300] and is now '200,400'" in err


def test_the_gate_ends_with_1_and_a_sentence(run, written, saved, tmp_path):
    tiny, _ = saved
    text = SMALL.replace("  tasks: {task: [passkey, multihop], lengths: 380, trials: 1}\n", "").split("  cost:")[0]
    command = ("eval", written(text), "--model", tiny, "--out", tmp_path / "run")
    code, _, err = run(*command, "--fail-under", "yarn2:recall=0.5", "--fail-under", "effective=200")
    assert code == 1
    missed = [line for line in err.splitlines() if line.startswith("missed: ")]
    assert len(missed) == 3
    assert missed[0].startswith("missed: recall, yarn2: recall is 0.000 (0 of 4")
    assert "missed: effective, stock: effective length (absolute)" in missed[1]
    for wrong, sentence in (
        ("yarm2:recall=0.5", "Did you mean 'yarn2'"),
        ("recal=0.5", "did you mean 'recall'"),
        ("recall=2", "'2' is no share"),
    ):
        code, _, err = run(*command, "--fail-under", wrong)
        assert (code, sentence in err) == (2, True)
    assert run("report", tmp_path / "run" / "recall", "--fail-under", "recall=0.5")[0] == 1
    page = tmp_path / "run" / "recall" / "report.html"
    page.unlink()
    assert run("report", tmp_path / "run" / "recall", "--fail-under", "nobody:recall=0.5")[0] == 2
    assert not page.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("parts: {needle: {lenghts: 1k}}", "part 'needle': unknown key 'lenghts'. Did you mean 'lengths'?"),
        ("varient: 1\nparts: {needle: {}}", "unknown key 'varient'. Did you mean 'variant'?"),
        ("parts: {needle: {lengths: 1q}}", "part 'needle': --lengths '1q'"),
        ("parts: {needle: {trials: many}}", "part 'needle': Invalid value"),
        ("parts: {needle: {exact: 1}}", "exact is 1: it must be true or false"),
        ("parts: {needle: {out: here}}", "unknown key 'out'"),
        ("parts: {needle: {seed: null}}", "seed is None"),
        ("parts: {recall: {lengths: 1k}}", "'recall' has no kind that exists: give kind, one of needle, effective"),
        ("parts: {needle: 1k}", "give its options"),
        ("parts: {tasks: {task: pass}}", "unknown task 'pass'"),
        ("parts: {tasks: {budget: 3m}}", "unknown key 'budget'"),
        ("parts: {effective: {fixed: true}}", "unknown key 'fixed'"),
        ("parts: {effective: {task: qa_1}}", "reads a file of yours"),
        ("parts: {'a/b': {kind: cost}}", "cannot name a folder"),
        ("parts: {cost: {variant: 'a: rope=yarm:2'}}", "part 'cost', model tiny, variant 'a': unknown"),
        ("parts: {cost: {lengths: 1k}, cost: {lengths: 2k}}", "'cost' is given twice"),
        ("parts: {}", "parts is missing"),
        ("- parts", "must hold names with values"),
        ("parts: {", "is no YAML"),
        ("name: a/b\nparts: {needle: {}}", "name is 'a/b'"),
        ("model: 3\nparts: {needle: {}}", "model is 3"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_a_model_loads(
    run, written, model, monkeypatch, tmp_path, text, sentence
):
    monkeypatch.setattr(loading, "load_model", lambda *args, **more: pytest.fail("loaded"))
    monkeypatch.setattr(loading, "load_config", lambda name: model.config)
    code, _, err = run("eval", written(text), "--model", "tiny", "--out", tmp_path / "run")
    assert code == 2
    assert sentence in err.replace("unknown RoPE", "unknown")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_suite_can_be_read_and_its_parts_checked(path):
    kinds = module._kinds()
    found = suite.read_suite(path, {name: kind.keys() for name, kind in kinds.items()})
    assert found.name == path.stem
    for part in found.parts:
        model = found.models[0] if found.models else "anything"
        job = module._read(kinds[part.kind], model, part.options, path.name, Path("run"))
        assert job.loads == (part.kind != "cost")
        assert job.model == model


def test_options_given_count_more_than_the_config_file_and_that_more_than_defaults(run, written, saved, tmp_path):
    tiny, _ = saved
    path = written("lengths: [200, 300]\ndepths: 2\nno-stock: true\nvariant: {y: 'rope=yarn:2'}\n")
    code, out, err = run("needle", tiny, "--config", path, "--lengths", "250", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["settings"]["lengths"], summary["settings"]["depths"]) == ([250], [0.0, 1.0])
    assert list(summary["variants"]) == ["y"]
    assert run("effective", tiny, "--config", written("lenghts: 1k"))[0] == 2
    code, _, err = run("cost", tiny, "--config", written("lengths: 40\nlengths: 50"))
    assert (code, "line 2: 'lengths' is given twice" in err) == (2, True)
    assert run("needle", tiny, "--config", tmp_path / "nowhere.yaml")[0] == 2
    path = written("lengths: 40\nrepeats: 1\nno-standard: true\nsteps: 1")
    document = json.loads(run("cost", tiny, "--config", path, "--json")[1])
    assert [row["length"] for row in document["rows"]] == [40]


def test_models_have_folders_of_their_own_and_may_not_share_one():
    parts = (suite.Part("needle", "needle", {}),)
    with pytest.raises(ValueError, match="differ in nothing that a folder's name can show"):
        suite.Suite("s", ("a/b", "a-b"), parts).folders()
    two = suite.Suite("s", ("a/b", "demo"), parts)
    assert list(two.folders().values()) == ["a-b/needle", "demo/needle"]


def test_without_pyyaml_the_pip_line_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hf_longctx\[eval\]"'):
        read_yaml(tmp_path / "suite.yaml")


def test_several_processes_need_a_folder(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "join", lambda device: pytest.fail("joined"))
    code, _, err = run("needle", "demo", "--lengths", "200")
    assert (code, "give --out" in err) == (2, True)
