"""Command lines of train.py and eval.py: flags -> a checked run; mistakes -> one line and exit code 2."""

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from etils import epath

from mot_jax.config import Run
from mot_jax.config.text import differences
from mot_jax.errors import ConfigError, UserError, nearest
from mot_jax.gin_config import find_config, load_run
from mot_jax.parallel.processes import Processes

DEFAULT_CONFIG = "digits_mot"
RESUME = ("never", "auto", "must")
FIXED = ("model", "optimizer", "train")  # what eval.py cannot change of a finished run

_TRAIN_EXAMPLES = """examples:
  python train.py                                             the default: configs/digits_mot.gin
  python train.py --gin_file digits_dense                     a shipped config, by name or path
  python train.py --gin.Train.steps=200 --gin.Model.dim=64    change single parameters
  python train.py --run_dir runs/a --resume=auto              go on where runs/a stopped, or start it
  python train.py --import my.module --gin.Data.source='@MySource()'
  python train.py --run_dir runs/a --coordinator host0:1234 --num_processes 2 --process_id 0    and one with 1
  python train.py --gin_file pods/mot_7b_v5p_512 --aot v5p:8x8x8    does it fit a pod, and at what speed at most"""

_EVAL_EXAMPLES = """examples:
  python eval.py --run_dir runs/a                             losses, and the tasks of Eval.tasks
  python eval.py --run_dir runs/a --step 500 --gin.Eval.prompts=50
  python eval.py compare runs/dense_* runs/mot_* --out runs/mot_or_dense    step matching; `compare --help` says more"""

_COMPARE_EXAMPLES = """Runs that differ in their seed alone are one arm; the first run's arm is the reference.

examples:
  python eval.py compare runs/dense runs/mot
  python eval.py compare runs/dense_0 runs/dense_1 runs/mot_0 runs/mot_1 --out runs/mot_or_dense"""


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """What train.py was asked for. `config_text` is the operative config, `name` the config's name for run_dir None.

    `aot`: the machine to compile for instead of training; `json`: where what that finds goes.
    """

    run: Run
    config_text: str
    name: str
    run_dir: str | None
    resume: Literal["never", "auto", "must"]
    aot: str | None = None
    json: str | None = None
    processes: Processes = dataclasses.field(default_factory=Processes)


@dataclasses.dataclass(frozen=True)
class EvalArguments:
    """What eval.py was asked for. `run` is the run directory's, with this command line's changes; step None: last."""

    run: Run
    run_dir: str
    step: int | None


@dataclasses.dataclass(frozen=True)
class CompareArguments:
    """What `eval.py compare` was asked for. `out`: a directory for JSON and figures, None for neither."""

    run_dirs: tuple[str, ...]
    out: str | None


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """Flags of train.py -> the run. Without --gin_file: a resumed directory's own config, else the default.

    Raises:
      UserError: a misspelt flag, or anything wrong with the config.
    """
    parser = Parser("train.py", "Trains a mixed-modal transformer.", f"{_main_fields()}\n\n{_TRAIN_EXAMPLES}")
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a config; later ones win")
    _add_common(parser)
    parser.add_argument("--run_dir", metavar="DIR", help="where everything is written (default: runs/<config>-<time>)")
    parser.add_argument(
        "--resume",
        metavar="never|auto|must",
        default="never",
        help="go on from a checkpoint in --run_dir: never (default; refuses a directory that holds a run), "
        "auto (if there is one), must",
    )
    parser.add_argument(
        "--aot",
        metavar="TOPOLOGY",
        help="instead of training: compile the step for v5e:16x16, v5p-512, h100, ... and say whether it fits "
        "and what it costs",
    )
    parser.add_argument("--json", metavar="FILE", help="with --aot: the same as JSON; - prints it")
    _add_processes(parser)
    arguments, bindings = parse_flags(parser, argv)
    if arguments.json is not None and arguments.aot is None:
        raise ConfigError("--json: expected --aot, whose findings it writes")
    if arguments.resume not in RESUME:
        wrong = f"{arguments.resume!r}{nearest(arguments.resume, RESUME)}"
        raise ConfigError(f"--resume: expected one of {', '.join(RESUME)}, got {wrong}")
    if arguments.resume == "must" and arguments.run_dir is None:
        raise ConfigError("--resume=must: expected --run_dir, the run to go on with")
    saved = epath.Path(arguments.run_dir or "") / "config.gin"
    if arguments.gin_file:
        files = arguments.gin_file
    elif arguments.resume != "never" and arguments.run_dir is not None and saved.is_file():
        files = [str(saved)]
    else:
        files = [DEFAULT_CONFIG]
    run, text = load_run(files, bindings)
    name = epath.Path(find_config(files[-1])).stem
    processes = Processes(
        arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.process_timeout
    )
    return TrainArguments(
        run, text, name, arguments.run_dir, arguments.resume, arguments.aot, arguments.json, processes
    )


def parse_eval(argv: Sequence[str]) -> EvalArguments:
    """Flags of eval.py -> a finished run, with changes to how it is evaluated.

    Raises:
      UserError: a misspelt flag, no run in the directory, or a change to something that training fixed.
    """
    parser = Parser("eval.py", "Evaluates a finished run on held-out data.", _EVAL_EXAMPLES)
    parser.add_argument("--run_dir", metavar="DIR", help="the run")
    parser.add_argument("--step", type=int, help="the checkpoint (default: the last)")
    _add_common(parser)
    arguments, bindings = parse_flags(parser, argv)
    if arguments.run_dir is None:
        raise ConfigError("--run_dir: expected the directory of a run, as in --run_dir runs/digits_mot")
    file = epath.Path(arguments.run_dir) / "config.gin"
    if not file.is_file():
        raise ConfigError(f"--run_dir: no run in {arguments.run_dir} (it has no config.gin)")
    saved, _ = load_run([str(file)])
    run, _ = load_run([str(file)], bindings)
    fixed = {part: getattr(run, part) for part in FIXED}
    if changed := differences(saved, dataclasses.replace(saved, **fixed)):
        raise ConfigError(f"{changed[0]}: eval.py leaves a run's {', '.join(FIXED)} as they were")
    return EvalArguments(run, arguments.run_dir, arguments.step)


def parse_compare(argv: Sequence[str]) -> CompareArguments:
    """What follows `eval.py compare`.

    Raises:
      UserError: a misspelt flag, or no run.
    """
    parser = Parser("eval.py compare", "At what share of one run's cost others reach its loss.", _COMPARE_EXAMPLES)
    parser.add_argument("run_dirs", nargs="*", metavar="RUN", help="run directories, the reference first")
    parser.add_argument("--out", metavar="DIR", help="where compare.json and a figure a modality go")
    add_import(parser, "a module with config classes that the runs need")
    arguments, _ = parse_flags(parser, argv)
    if not arguments.run_dirs:
        raise ConfigError("compare: expected run directories, as in python eval.py compare runs/dense runs/mot")
    return CompareArguments(tuple(arguments.run_dirs), arguments.out)


def run_main(function: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `function(argv)`; returns the exit code: 2 for a UserError (one line on stderr), 130 for Ctrl-C."""
    try:
        return function(list(sys.argv[1:] if argv is None else argv)) or 0
    except UserError as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage and leaving."""

    def __init__(self, program: str, description: str, epilog: str):
        super().__init__(
            prog=f"python {program}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        raise ConfigError(message.removeprefix("argument "))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gin.X.y", dest="shown", metavar="VALUE", help="set one parameter, as in --gin.Train.steps=200"
    )
    parser.add_argument(
        "--gin_bindings",
        action="append",
        nargs="+",
        default=[],
        metavar="'X.y = VALUE'",
        help="the same, spelt as in a file",
    )
    add_import(
        parser, "a module of yours with sources, codecs, tasks or config classes; found from the current directory too"
    )


def add_import(parser: argparse.ArgumentParser, what: str) -> None:
    """`--import MODULE`, as often as wanted: `parse_flags` imports them and returns their names as `modules`."""
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE", help=what)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """A run in several processes, one a host or a GPU."""
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens (default: the launcher's)")
    parser.add_argument("--num_processes", type=int, metavar="N", help="of this run; 1: alone, whatever the launcher")
    parser.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--process_timeout",
        type=int,
        default=Processes.timeout,
        metavar="SECONDS",
        help="without a sign of life, after which a process counts as dead and the others stop (default: %(default)s)",
    )


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses flags, imports the user's modules, and collects bindings in the order given."""
    known, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--gin."):
            known.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{argument}: expected a value, as in {argument}=1")
            value = rest.pop(0)
        known += ["--gin_bindings", f"{name} = {value}"]
    arguments, unknown = parser.parse_known_args(known)
    if unknown:
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        flag = unknown[0].partition("=")[0]
        what = "no flag" if flag.startswith("-") else "unexpected argument"
        raise ConfigError(f"{what} {flag!r}{nearest(flag, options)}")
    bindings = [binding for group in getattr(arguments, "gin_bindings", ()) for binding in group]
    for module in getattr(arguments, "modules", ()):
        _import(module)
    return arguments, bindings


def _import(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if module.endswith(".py") or "/" in module or "" in module.split("."):
        parts = module.removesuffix(".py").replace("/", ".").split(".")
        name = ".".join(filter(None, parts)) or "my.module"
        raise ConfigError(f"--import: expected a module's name, such as {name}, got {module!r}")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(f"--import: no module {module!r} here or among the installed packages") from error
        raise


def _main_fields() -> str:
    """The config classes and their defaults, for --help."""
    lines = ["parameters and their defaults (the default config changes some):"]
    for part in dataclasses.fields(Run):
        cls = part.default.__class__
        for field in dataclasses.fields(cls):
            value = field.default
            shown = f"@{type(value).__name__}()" if dataclasses.is_dataclass(value) else repr(value)
            lines.append(f"  {f'{cls.__name__}.{field.name}':32} {shown}")
    return "\n".join(lines)
