"""`hf-longctx eval` by two processes: the rows of one, each once, also when one of them is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from hf_longctx.cli import main
from hf_longctx.measure import cost as cost_module
from hf_longctx.measure import processes
from hf_longctx.measure.cost_child import measure
from hf_longctx.measure.rows import row_files
from hf_longctx.measure.store import RunStore

SUITE = """
name: small
haystack: prose
no-stock: true
variant:
  - yarn2: rope=yarn:2
parts:
  recall: {kind: needle, lengths: [200, 300], depths: 2, trials: 3}
  tasks: {task: passkey, lengths: 300, trials: 3}
  cost: {lengths: 40, repeats: 1, steps: 2, no-standard: true}
"""
PARTS = {"recall": "rows", "tasks": "rows", "cost": "cost"}


@pytest.fixture
def words(model, tokenizer, tmp_path):
    """Command line of a suite on a tiny model, without the run's folder."""
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "suite.yaml").write_text(SUITE)
    return ["eval", str(tmp_path / "suite.yaml"), "--model", str(tmp_path / "tiny"), "--device", "cpu"]


def found(out):
    """Every row of every part, times aside; a row that is there twice fails."""
    rows = {}
    for part, name in PARTS.items():
        for path in row_files(out / part, name):
            for line in path.read_bytes().splitlines():
                row = json.loads(line)
                key = (part, row["variant"], row["trial"], row["length"], row["depth"], row["kind"])
                assert key not in rows
                rows[key] = {name: row.get(name) for name in ("outcome", "answer", "expected", "tokens")}
    return rows


def scores(out):
    parts = json.loads((out / "summary.json").read_text())["parts"]
    return {name: parts[name]["variants"]["yarn2"]["cells"] for name in ("recall", "tasks")}


def _process(index, barrier, first_rows, dies, words):
    """One of two processes, as a launcher starts them: the second may die of SIGKILL in the middle of a row."""
    torch.set_num_threads(1)  # threads do not survive a fork
    processes._state = SimpleNamespace(process_index=index, num_processes=2, wait_for_everyone=barrier.wait)
    add_row, written = RunStore.add_row, []
    # What a killed run has left of `recall` may be one cell, which only one of them can take.
    shared = "recall" if dies else "tasks"

    def add(store, row):
        if store.out.name == shared:
            if not written:
                first_rows.wait(60)  # both get work, however the machine is loaded
            written.append(row)
        add_row(store, row)
        if dies and index == 1 and len(written) == 3:
            with (store.out / store._rows_name).open("ab") as file:
                file.write(json.dumps(row)[:50].encode())
            os.kill(os.getpid(), signal.SIGKILL)

    RunStore.add_row = add
    sys.argv = ["hf-longctx", *words]
    main()


def run_two(words, *, dies=False):
    """Exit codes of both."""
    context = multiprocessing.get_context("fork")
    barrier, first_rows = context.Barrier(2), context.Barrier(2)
    pair = [context.Process(target=_process, args=(i, barrier, first_rows, dies, words)) for i in range(2)]
    for one in pair:
        one.start()
    pair[1].join(90)
    if dies:
        barrier.abort()  # as gloo notices that a peer is gone
    pair[0].join(90)
    return [one.exitcode for one in pair]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_share_a_suite_and_one_is_killed(words, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cost_module, "_child", lambda task, timeout: measure(task))
    both = [*words, "--out", str(tmp_path / "both")]
    assert run_two(both, dies=True) == [2, -signal.SIGKILL]
    assert "another process of this run has ended before its time" in capfd.readouterr().err
    assert (tmp_path / "both" / "recall" / "rows.2-of-2.jsonl").read_bytes()[-1:] != b"\n"
    assert not (tmp_path / "both" / "tasks").exists()

    assert run_two(both) == [0, 0]
    said = capfd.readouterr()
    assert "2 processes share this run" in said.err
    assert said.out.count("run: ") == 1  # one process prints
    assert all(len(row_files(tmp_path / "both" / part)) == 2 for part in ("recall", "tasks"))
    assert len(row_files(tmp_path / "both" / "cost", "cost")) == 1

    monkeypatch.setattr(sys, "argv", ["hf-longctx", *words, "--out", str(tmp_path / "alone")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert found(tmp_path / "both") == found(tmp_path / "alone")
    assert scores(tmp_path / "both") == scores(tmp_path / "alone")
    assert (tmp_path / "both" / "report.html").is_file()


@pytest.mark.slow
def test_torchrun_shares_a_suite_and_one_process_is_killed(words, tmp_path, run):
    """The command that the documentation gives, with real processes and gloo."""
    import psutil

    out = tmp_path / "both"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command = [*torchrun, "-m", "hf_longctx", *words, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in row_files(out / "recall")):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = {one.environ().get("RANK"): one for one in psutil.Process(started.pid).children()}
    ranks["1"].kill()
    started.communicate(timeout=120)
    assert started.returncode != 0

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 processes share this run" in done.stderr
    assert run(*words, "--out", tmp_path / "alone")[0] == 0
    assert found(out) == found(tmp_path / "alone")
    assert scores(out) == scores(tmp_path / "alone")
