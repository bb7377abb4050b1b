"""The run's folder: agrees with its settings, survives torn lines, and is never half written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_longctx.measure import store
from hf_longctx.measure.rows import row_key
from hf_longctx.measure.store import RunStore, write_json

SETTINGS = {"model": "m", "lengths": [1024], "seed": 0}


def make_row(trial=0, **more):
    return {"variant": "stock", "trial": trial, "length": 1024, "depth": 0.5, "kind": "needle", **more}


def opened(out, settings=SETTINGS):
    return RunStore(out, settings, {"command": "c"})


def test_rows_and_facts_come_back(tmp_path):
    run = opened(tmp_path / "a" / "run")
    run.add_variant("stock", {"definition": {}, "claimed": 8})
    for trial in range(3):
        run.add_row(make_row(trial, answer="née ☃\u2028\n"))
    run.close()
    again = opened(tmp_path / "a" / "run")
    assert again.rows == run.rows
    assert again.run == run.run
    assert sorted(path.name for path in (tmp_path / "a" / "run").iterdir()) == [".locks", "rows.jsonl", "run.json"]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_cut_anywhere_only_the_torn_row_is_lost(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("run")
    run = opened(out)
    rows = [make_row(trial, answer="x☃" * trial) for trial in range(4)]
    for row in rows:
        run.add_row(row)
    run.close()
    whole = (out / "rows.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (out / "rows.jsonl").write_bytes(whole[:cut])
    again = opened(out)
    kept = list(again.rows.values())
    assert kept == rows[: whole[:cut].count(b"\n")]
    for row in rows[len(kept) :]:
        again.add_row(row)
    again.close()
    assert (out / "rows.jsonl").read_bytes() == whole


def test_other_settings_are_refused_by_name(tmp_path):
    opened(tmp_path)
    with pytest.raises(
        ValueError, match=r"lengths was \[1024\] and is now \[2048\]; choose another --out or the same"
    ):
        opened(tmp_path, SETTINGS | {"lengths": [2048]})


def test_a_variant_keeps_its_definition_and_may_be_added(tmp_path):
    opened(tmp_path).add_variant("a", {"definition": {"rope": "yarn:2"}})
    again = opened(tmp_path)
    again.add_variant("b", {"definition": {"rope": "linear:2"}})
    with pytest.raises(ValueError, match=r"variant 'a' is .*yarn:4.* here and .*yarn:2.* in the run"):
        again.add_variant("a", {"definition": {"rope": "yarn:4"}})
    again.close()
    assert list(opened(tmp_path).run["variants"]) == ["a", "b"]


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "file")
    with pytest.raises(ValueError, match="holds file but no run.json: choose a new or empty folder"):
        opened(tmp_path)
    (tmp_path / "file").unlink()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds rows.jsonl but no run.json"):
        opened(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    opened(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 of .* is no row"):
        opened(tmp_path)
    write_json(tmp_path / "run.json", {"schema": 99, "settings": SETTINGS, "variants": {}})
    with pytest.raises(ValueError, match="schema 99"):
        opened(tmp_path)
    for damaged in ("{", "[]", '{"schema": 1}'):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"run\.json is damaged: choose another --out"):
            opened(tmp_path)


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(ValueError, match="being written by another process: wait"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_the_command_kept_is_the_one_that_gives_all_variants(tmp_path):
    run = opened(tmp_path)
    run.add_variant("a", {"definition": {}})
    run.note_command("first", ["a"])
    run.add_variant("b", {"definition": {}})
    run.note_command("second", ["b"])
    run.note_command("second", ["b"])
    assert run.run["command"] == "first\nsecond"
    run.note_command("both", ["b", "a"])
    run.close()
    assert opened(tmp_path).run["command"] == "both"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_without_a_folder_everything_is_in_memory():
    run = opened(None)
    run.add_variant("stock", {"definition": {}})
    run.add_row(make_row())
    run.close()
    assert list(run.rows) == [row_key(make_row())]
    assert run.run["schema"] == store.SCHEMA
