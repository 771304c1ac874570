"""All benchmarks by one command: names, one that fails, and the table made of the parts."""

import json
import runpy

import pytest

from benchmarks import all as benchmarks
from mot_jax.cli import run_main

HEAD = {"machine": "cpu (2 cores), jax 1", "versions": {"jax": "1"}, "date": "2026-11-22"}
WRITES = """
import json, sys
row = {"name": "a | b", "metric": "time", "value": 1234.5, "unit": "ms", "against": "dense", "ratio": 1.5}
plain = {"name": "plain", "metric": "rate", "value": 0.12345, "unit": "1/s", "against": None, "ratio": None}
json.dump({**%r, "title": "t", "rows": [plain, row]}, open(sys.argv[sys.argv.index("--json") + 1], "w"))
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Two parts that write, with one between them that fails."""
    for name, text in {
        "decode": WRITES % HEAD,
        "memory": "raise ValueError('no table')",
        "save_time": WRITES % HEAD,
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(benchmarks, "HERE", tmp_path)
    return ["--out", str(tmp_path / "out"), "--only", "decode", "memory", "save_time"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "decod"], "--only: no benchmark 'decod'; did you mean 'decode'?"),
        (["--only", "decode", "qqq"], "--only: no benchmark 'qqq'; known: architectures"),
        (["--onyl", "decode"], "no flag '--onyl'; did you mean '--only'?"),
        (["--only"], "--only: expected at least one argument"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(arguments, told, capsys, tmp_path):
    assert (
        run_main(benchmarks.main, [*arguments, *(["--out", str(tmp_path / "out")] if len(arguments) > 1 else [])]) == 2
    )
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {told}") and err.count("\n") == 1 and not out
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_is_named_and_the_others_go_on(parts, capsys, tmp_path):
    assert run_main(benchmarks.main, parts) == 1
    out, err = capsys.readouterr()
    assert "done: decode" in out and "done: save_time" in out and "failed: memory: ValueError: no table" in err
    assert err.strip().splitlines()[-1] == "failed: memory"
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["part"], row["ratio"]) for row in rows] == [
        *(("decode", 1.5), ("save_time", 1.5), ("decode", None), ("save_time", None)),
    ]
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[0] == "cpu (2 cores); jax 1; 2026-11-22"
    assert lines[4] == "| 1.5 | dense | a \\| b | time | 1,234 | ms | decode |"
    assert lines[6] == "|  |  | plain | rate | 0.123 | 1/s | decode |"


def test_a_part_run_again_joins_what_is_there_but_not_what_another_machine_left(parts, capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    found = {
        "title": "t",
        "rows": [{**dict.fromkeys(("metric", "unit", "against", "ratio")), "name": "n", "value": 1.0}],
    }
    (out / "step_time.json").write_text(json.dumps({**HEAD, **found}))
    (out / "product_key.json").write_text(json.dumps({**HEAD, **found, "machine": "another"}))
    assert run_main(benchmarks.main, [*parts[:3], "decode"]) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"decode", "step_time"}


def test_a_run_past_midnight_keeps_what_it_made(parts, tmp_path):
    after = HEAD | {"date": "2026-11-23"}
    (tmp_path / "save_time.py").write_text(WRITES % after)
    run_main(benchmarks.main, parts)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"decode", "save_time"}


@pytest.mark.parametrize("name", benchmarks.PARTS)
def test_every_part_is_a_script_whose_imports_are_there(name, monkeypatch):
    monkeypatch.syspath_prepend(benchmarks.HERE)
    assert callable(runpy.run_path(f"{benchmarks.HERE / name}.py")["main"])
