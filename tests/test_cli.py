"""Flags of train.py and eval.py, answered in one line and exit code 2 where they are wrong."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from mot_jax.cli import parse_eval, parse_train, run_main
from mot_jax.errors import ConfigError, UserError
from mot_jax.gin_config import load_run

ROOT = pathlib.Path(__file__).parent.parent


def refusal(parse, *argv):
    with pytest.raises(UserError) as caught:
        parse(list(argv))
    return str(caught.value)


def test_no_argument_is_the_default_run():
    arguments = parse_train([])
    assert (arguments.run, arguments.config_text) == load_run(["digits_mot"])
    assert (arguments.name, arguments.run_dir, arguments.resume) == ("digits_mot", None, "never")
    assert arguments.run.model.untied == ("attention", "feed_forward", "norm")


@pytest.mark.parametrize(
    "flags",
    [
        ["--gin.Train.steps=7", "--gin.Train.seed=8", "--gin.Optimizer.schedule=linear"],
        ["--gin.Train.steps", "7", "--gin.Train.seed", "8", "--gin.Optimizer.schedule", "linear"],
        ["--gin_bindings", "Train.steps = 7", "Train.seed=8", "--gin_bindings", "Optimizer.schedule = 'linear'"],
        ["--gin_bindings=Train.steps = 7\nTrain.seed = 8", "--gin.Optimizer.schedule='linear'"],
        [
            "--gin.Train.steps=1",
            "--gin_bindings",
            "Train.steps = 7",
            "--gin.Train.seed=8",
            "--gin.Optimizer.schedule=linear",
        ],
    ],
)
def test_every_spelling_of_a_binding(flags):
    run = parse_train(flags).run
    assert (run.train.steps, run.train.seed, run.optimizer.schedule) == (7, 8, "linear")


def test_files_and_names(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'digits_dense.gin'\nTrain.steps = 3\n")
    assert parse_train(["--gin_file", "digits_dense"]).name == "digits_dense"
    assert parse_train(["--gin_file=configs/digits_dense.gin"]).run.model.untied == ()
    several = parse_train(["--gin_file", "digits_mot", "--gin_file", str(tmp_path / "mine.gin"), "--run_dir", "x"])
    assert (several.name, several.run.train.steps, several.run_dir) == ("mine", 3, "x")


def test_a_resumed_directory_brings_its_config(tmp_path):
    first = parse_train(["--gin_file", "digits_dense", "--gin.Train.steps=7", "--run_dir", str(tmp_path)])
    (tmp_path / "config.gin").write_text(first.config_text)
    for resume in ("auto", "must"):
        again = parse_train(["--run_dir", str(tmp_path), f"--resume={resume}"])
        assert (again.run, again.config_text) == (first.run, first.config_text)
    longer = parse_train(["--run_dir", str(tmp_path), "--resume=auto", "--gin.Train.steps=9"]).run
    assert longer == dataclasses.replace(first.run, train=dataclasses.replace(first.run.train, steps=9))
    other = parse_train(["--run_dir", str(tmp_path), "--resume=auto", "--gin_file", "digits_mot"]).run
    assert other.model.untied != ()
    assert parse_train(["--run_dir", str(tmp_path / "new"), "--resume=auto"]).run == parse_train([]).run


def test_own_module_from_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "their_corpora.py").write_text(
        "import dataclasses\nfrom mot_jax import Source\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Theirs(Source):\n    size: int = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    flags = ["--gin.Data.source=@Theirs()", "--gin.Theirs.size=5"]
    assert "no config class 'Theirs'" in refusal(parse_train, *flags)
    source = parse_train(["--import", "their_corpora", *flags]).run.data.source
    assert (type(source).__name__, source.size) == ("Theirs", 5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--gin_fle", "x"], "no flag '--gin_fle'; did you mean '--gin_file'?"),
        (["--resum=auto"], "no flag '--resum'; did you mean '--resume'?"),
        (["--rundir=x"], "no flag '--rundir'; did you mean '--run_dir'?"),
        (["--run_dir"], "--run_dir: expected one argument"),
        (["--resume=atuo"], "--resume: expected one of never, auto, must, got 'atuo'; did you mean 'auto'?"),
        (["--resume=must"], "--resume=must: expected --run_dir, the run to go on with"),
        (["digits_dense"], "unexpected argument 'digits_dense'"),
        (["--gin.Train.steps"], "--gin.Train.steps: expected a value, as in --gin.Train.steps=1"),
        (["--gin.Train.steps", "--run_dir", "x"], "--gin.Train.steps: expected a value, as in --gin.Train.steps=1"),
        (["--gin.Train.step=3"], "Train has no field 'step'; did you mean 'steps'?"),
        (["--gin.Train.steps=many"], "Train.steps: expected int, got 'many'"),
        (["--gin.Model.num_heads=5"], "Model.num_heads: 5 heads do not divide Model.dim = 128"),
        (["--gin_file=digits_dence"], "no gin file 'digits_dence'; did you mean 'digits_dense'?"),
        (["--import", "no_such_module"], "--import: no module 'no_such_module' here or among the installed packages"),
        (["--import", "./my/codec.py"], "--import: expected a module's name, such as my.codec, got './my/codec.py'"),
        (["--import", ".codec"], "--import: expected a module's name, such as codec, got '.codec'"),
        (["--import", ""], "--import: expected a module's name, such as my.module, got ''"),
        (["--gin_file", "."], ".: expected a gin file, but it is a directory"),
        (["--gin_file=configs/presets"], "configs/presets: expected a gin file, but it is a directory"),
    ],
)
def test_mistakes_of_train(flags, expected):
    assert refusal(parse_train, *flags).startswith(expected)


def test_a_broken_module_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_corpora.py").write_text("import a_package_it_needs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="a_package_it_needs"):
        parse_train(["--import", "broken_corpora"])


def test_eval_reads_the_run_s_config(tmp_path):
    run, text = load_run(["digits_dense"], ["Train.steps = 7"])
    (tmp_path / "config.gin").write_text(text)
    arguments = parse_eval(["--run_dir", str(tmp_path)])
    assert (arguments.run, arguments.run_dir, arguments.step) == (run, str(tmp_path), None)
    changed = parse_eval(["--run_dir", str(tmp_path), "--step=500", "--gin.Eval.prompts=3", "--gin.Sample.top_k=5"])
    assert (changed.step, changed.run.eval.prompts, changed.run.sample.top_k) == (500, 3, 5)
    assert changed.run.model == run.model


def test_mistakes_of_eval(tmp_path):
    assert refusal(parse_eval).startswith("--run_dir: expected the directory of a run")
    assert refusal(parse_eval, "--run_dir", str(tmp_path)) == f"--run_dir: no run in {tmp_path} (it has no config.gin)"
    (tmp_path / "config.gin").write_text(load_run()[1])
    given = ["--run_dir", str(tmp_path)]
    assert refusal(parse_eval, *given, "--gin.Eval.prompts=3", "--gin.Model.dim=64") == (
        "Model.dim: 128 became 64: eval.py leaves a run's model, optimizer, train as they were"
    )
    assert refusal(parse_eval, *given, "--step=last").startswith("--step: invalid int value: 'last'")
    assert refusal(parse_eval, *given, "--stop=3") == "no flag '--stop'; did you mean '--step'?"
    assert refusal(parse_eval, *given, "--resume=auto").startswith("no flag '--resume'")


def test_run_main_turns_errors_into_exit_codes(capsys):
    def refuse(argv):
        raise ConfigError("Model.dim:\nis wrong")

    def interrupt(argv):
        raise KeyboardInterrupt

    def crash(argv):
        raise ZeroDivisionError

    assert run_main(lambda argv: None, ["a"]) == 0
    assert run_main(lambda argv: len(argv), ["a", "b", "c"]) == 3
    capsys.readouterr()
    assert run_main(refuse, []) == 2
    assert capsys.readouterr() == ("", "error: Model.dim: is wrong\n")
    assert run_main(interrupt, []) == 130
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        run_main(crash, [])


def test_help_names_flags_and_parameters(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_train(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for expected in ("--gin_file", "--resume", "--import", "Train.steps ", "Data.global_batch_size ", "@Digits()"):
        assert expected in shown


def test_the_commands_answer_without_loading_jax(tmp_path):
    """Mistakes and --help are answered by the real scripts before anything heavy is imported."""
    (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}

    def command(*argv):
        return subprocess.run(
            [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )

    wrong = command("train.py", "--gin.Train.step=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: Train has no field 'step'; did you mean 'steps'?\n"
    assert command("train.py", "--help").returncode == 0
    for run_dir in (tmp_path / "jax.py", tmp_path / "jax.py" / "below"):
        taken = command("train.py", "--run_dir", str(run_dir))
        expected = f"error: --run_dir: expected a directory, but {tmp_path / 'jax.py'} is something else\n"
        assert (taken.returncode, taken.stderr) == (2, expected)
    missing = command("eval.py", "--run_dir", str(tmp_path))
    assert (missing.returncode, missing.stderr) == (
        2,
        f"error: --run_dir: no run in {tmp_path} (it has no config.gin)\n",
    )
