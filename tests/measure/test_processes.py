"""Several processes share a run: no cell is asked twice, a killed process loses no row, any number goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hf_longctx.cli.needle import parse_lengths
from hf_longctx.measure import processes, store
from hf_longctx.measure.evaluate import run_tasks
from hf_longctx.measure.needle import run_needle
from hf_longctx.measure.processes import Place
from hf_longctx.measure.report import load
from hf_longctx.measure.rows import row_files, row_key
from hf_longctx.measure.store import RunStore

VARIANT, LENGTHS, TRIALS = "yarn2: rope=yarn:2", "200,400", 8


def make_row(trial=0, **more):
    return {"variant": "stock", "trial": trial, "length": 1024, "depth": 0.5, "kind": "needle", **more}


@pytest.fixture
def at(monkeypatch):
    """Be another process."""

    def place(index, count):
        monkeypatch.setattr(store, "here", lambda: Place(index, count))

    return place


def opened(out):
    return RunStore(out, {"seed": 0}, {"command": "c"})


def test_each_process_has_its_file_and_knows_the_rows_of_all(tmp_path, at):
    at(0, 2)
    first = opened(tmp_path)
    at(1, 2)
    second = opened(tmp_path)
    with pytest.raises(ValueError, match="being written by another process"):
        opened(tmp_path)
    first.add_variant("a", {"definition": {}})
    second.add_variant("b", {"definition": {}})
    first.add_variant("c", {"definition": {}})
    assert list(first.run["variants"]) == ["a", "b", "c"]
    with first.claim("stock", 0) as mine, second.claim("stock", 0) as theirs:
        assert (mine, theirs) == (True, False)
        first.add_row(make_row(0))
    assert second.rows == {}
    with second.claim("stock", 0) as mine:
        assert mine
        assert list(second.rows.values()) == [make_row(0)]  # nothing is left to ask
    second.add_row(make_row(1))
    first.wait()
    assert first.rows.keys() == second.rows.keys()  # what is asked after waiting is not asked twice
    assert [path.name for path in row_files(tmp_path)] == ["rows.1-of-2.jsonl", "rows.2-of-2.jsonl"]
    seen = first.write_summary(lambda: {"rows": len(first.rows)})
    assert seen == {"rows": 2} == json.loads((tmp_path / "summary.json").read_text())
    first.close()
    second.close()
    at(0, 1)
    alone = opened(tmp_path)
    assert sorted(row["trial"] for row in alone.rows.values()) == [0, 1]
    alone.add_row(make_row(2))
    assert len(row_files(tmp_path)) == 3


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path, at):
    at(0, 2)
    first = opened(tmp_path)
    line = (json.dumps(make_row(5)) + "\n").encode()
    with (tmp_path / "rows.2-of-2.jsonl").open("wb", buffering=0) as file:
        file.write(line[:30])
        first.refresh()
        assert first.rows == {}
        file.write(line[30:])
        first.refresh()
    assert list(first.rows.values()) == [make_row(5)]
    assert (tmp_path / "rows.2-of-2.jsonl").read_bytes() == line


def test_what_a_kill_tore_is_cut_off_where_nobody_writes_any_more(tmp_path, at):
    for index in (0, 1):
        at(index, 2)
        other = opened(tmp_path)
        other.add_row(make_row(index))
        if index == 0:
            other.close()
    for path in row_files(tmp_path):
        path.write_bytes(path.read_bytes() + b'{"torn": ')
    at(0, 1)
    opened(tmp_path)
    dead, living = (path.read_bytes() for path in row_files(tmp_path))
    assert (dead[-1:], living[-1:]) == (b"\n", b" ")
    other.close()


def test_what_others_hold_or_have_done_is_left_to_them(model, tokenizer, tmp_path, at):
    """Two processes as two calls, the first holding one cell: together they ask each prompt once."""
    options = {"tasks": ["passkey"], "lengths": [200, 300], "trials": 3, "controls": 0, "out": tmp_path}
    whole = run_tasks(model, tokenizer, **options | {"out": None})
    at(0, 2)
    settings = {"model": None}
    rows: dict[int, list] = {0: [], 1: []}
    run_tasks(model, tokenizer, **options | {"trials": 1}, on_row=rows[0].append)
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    holder = RunStore(tmp_path, settings, {})
    at(1, 2)
    with holder.claim("stock", 1):
        run_tasks(model, tokenizer, **options, on_row=rows[1].append)
    assert sorted({row["trial"] for row in rows[1]}) == [2]
    holder.close()
    at(0, 2)
    summary = run_tasks(model, tokenizer, **options, on_row=rows[0].append)
    keys = [row_key(row) for found in rows.values() for row in found]
    assert len(keys) == len(set(keys)) == 6
    assert summary["variants"]["stock"]["cells"] == whole["variants"]["stock"]["cells"]


def test_a_process_joins_only_when_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.launched()
    assert processes.here() == Place(0, 1)


def _start(folder, out, index, count, port):
    environment = {
        "RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    words = [
        sys.executable, "-m", "hf_longctx", "needle", str(folder), "--variant", VARIANT, "--lengths", LENGTHS,
        "--depths", "2", "--trials", str(TRIALS), "--out", str(out), "--device", "cpu",
    ]  # fmt: skip
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {key: str(value) for key, value in environment.items()} | {"PYTHONPATH": paths}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _told(row):
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.slow
@pytest.mark.parametrize("again", [1, 2])
def test_two_real_processes_one_killed_end_with_the_rows_of_one(model, tokenizer, tmp_path, again):
    out, folder = tmp_path / "run", tmp_path / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = _free_port()
    pair = [_start(folder, out, index, 2, port) for index in range(2)]
    deadline = time.monotonic() + 90
    # Killed in the middle: it has written rows, and the run is not done.
    while not (out / "rows.2-of-2.jsonl").is_file() or (out / "rows.2-of-2.jsonl").stat().st_size < 3000:
        assert time.monotonic() < deadline, [one.communicate(timeout=5) for one in pair if one.poll() is not None]
        assert pair[1].poll() is None, pair[1].communicate()
        time.sleep(0.01)
    pair[1].send_signal(signal.SIGKILL)
    _, told = pair[0].communicate(timeout=60)
    pair[1].communicate()
    assert pair[0].returncode == 2, told
    assert "another process of this run has ended before its time" in told

    torn = out / "rows.2-of-2.jsonl"
    torn.write_bytes(torn.read_bytes()[:-10])  # as a kill in the middle of a write leaves it
    lengths, seen = parse_lengths(LENGTHS), []
    options = {"variants": [VARIANT], "lengths": lengths, "depths": 2, "trials": TRIALS, "model_name": str(folder)}
    if again == 2:
        port = _free_port()
        pair = [_start(folder, out, index, 2, port) for index in range(2)]
        ended = [one.communicate(timeout=90) for one in pair]
        assert [one.returncode for one in pair] == [0, 0], ended
        assert "saved against one prefill a cell" in ended[0][0]
        assert ended[1][0] == ""  # one process prints
    run_needle(model, tokenizer, **options, out=out, on_row=seen.append)
    assert bool(seen) == (again == 1)  # one process goes on from two, and finds nothing left where two went on
    run_needle(model, tokenizer, **options, out=tmp_path / "alone")
    rows = [json.loads(line) for path in row_files(out) for line in path.read_bytes().splitlines()]
    assert len(rows) == len({row_key(row) for row in rows})
    summary, merged = load(out)
    alone, expected = load(tmp_path / "alone")
    assert {row_key(row): _told(row) for row in merged} == {row_key(row): _told(row) for row in expected}
    assert len(row_files(out)) == (3 if again == 1 else 2)
    for name in ("stock", "yarn2"):
        assert summary["variants"][name]["cells"] == alone["variants"][name]["cells"]
