"""Gin files and bindings become a checked Run; mistakes are named where they are, in one line."""

import dataclasses
from collections.abc import Mapping

import gin
import pytest

from mot_jax.config import Block, Data, Digits, FrozenMapping, Model, RopeScaling, Run, Source, ValuesOptimizer
from mot_jax.config.experts import FeedForward
from mot_jax.config.text import differences, run_text
from mot_jax.errors import ConfigError
from mot_jax.gin_config import configs_directory, find_config, load_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    names: tuple[str, ...] = ("a",)
    weights: Mapping[str, float] = FrozenMapping()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(Source):
    """A user's own source, with a config of its own in it."""

    path: str = "here"
    level: Level = Level(names=("default",))
    levels: tuple[Level, ...] = ()
    ratio: float = 1


def message(*bindings, files=()):
    """The one line a mistake is answered with."""
    with pytest.raises(ConfigError) as caught:
        load_run(files, bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_dataclasses_own():
    assert load_run()[0] == Run()


def test_values_reach_their_fields_with_their_types():
    run, _ = load_run(
        bindings=[
            "Train.steps = 7\nTrain.seed = 8",
            "Optimizer.learning_rate = 1",
            "Optimizer.schedule=linear",
            "Data.path=/data/a-b.c",
            "Model.untied = ['attention', 'norm']",
            "Model.groups = {'speech': 'text'}",
            "Train.modality_weights = {'speech': 2}",
            "Model.rope_scaling = @RopeScaling()",
            "RopeScaling.factor = 8",
        ]
    )
    assert (run.train.steps, run.train.seed) == (7, 8)
    assert (run.optimizer.learning_rate, type(run.optimizer.learning_rate)) == (1.0, float)
    assert run.optimizer.schedule == "linear"
    assert run.data.path == "/data/a-b.c"
    assert run.model.untied == ("attention", "norm")
    assert run.model.groups == FrozenMapping(speech="text")
    assert type(run.train.modality_weights["speech"]) is float
    assert run.model.rope_scaling == RopeScaling(factor=8.0)
    hash(run.model)  # compiled functions are cached by it


@pytest.mark.parametrize("value", ["2024", "None", "True", "a=b", "gs://bucket/x#y", "'2024'"])
def test_a_string_needs_no_quotes_on_the_command_line(value):
    path = load_run(bindings=[f"Data.path={value}"])[0].data.path
    assert path == (None if value == "None" else value.strip("'"))


def test_later_settings_win(tmp_path):
    (tmp_path / "a.gin").write_text("Train.steps = 1\nTrain.seed = 1\nModel:\n  dim = 64\n  num_heads = 2\n")
    (tmp_path / "b.gin").write_text("Train.steps = 2\nTrain.seed = 2\n")
    run, _ = load_run([str(tmp_path / "a.gin"), str(tmp_path / "b.gin")], ["Train.seed = 3"])
    assert (run.train.steps, run.train.seed, run.model.dim, run.model.num_heads) == (2, 3, 64, 2)


def test_plan_with_scopes():
    run, _ = load_run(
        bindings=[
            "Model.plan = ((2, (@wide/Block(), @Block())), (1, (@wide/Block(),)))",
            "Block.norm_order = 'pre'",
            "wide/Block.ffn_dim = 1024",
        ]
    )
    wide, plain = Block(ffn_dim=1024, norm_order="pre"), Block(norm_order="pre")
    assert run.model.plan == ((2, (wide, plain)), (1, (wide,)))


def test_macros():
    run, _ = load_run(bindings=["SIZE = 64\nDATA/SEED = %SIZE\nModel.dim = %SIZE\nData.seed = %DATA/SEED"])
    assert (run.model.dim, run.data.seed) == (64, 64)


def test_own_source_with_configs_inside():
    run, text = load_run(
        bindings=[
            "Data.source = @Corpus()",
            "Corpus.levels = (@Level(), @two/Level())",
            "Level.weights = {'x': 1}",
            "two/Level.names = ('b',)",
        ]
    )
    weights = FrozenMapping(x=1.0)
    assert run.data.source == Corpus(
        level=Level(names=("default",), weights=weights),  # a field's default is a base, not the class's default
        levels=(Level(weights=weights), Level(names=("b",), weights=weights)),
    )
    assert load_run(bindings=[text]) == (run, text)


@pytest.mark.parametrize(
    "bindings",
    [
        [],
        ["Data.source = @Corpus()", "Corpus.path = 'it\\'s\\n\"here\"'"],
        ["Model.plan = ((2, (@a/Block(), @Block())), (1, (@a/Block(),)))", "a/Block.untied = ()"],
        ["Model.rope_scaling = @RopeScaling()", "Train.modality_weights = {'text': 0.5, 'image': 1e-3}"],
        ["Data.source = @Corpus()", "Corpus.ratio = -1e400"],
    ],
)
def test_operative_config_is_the_same_run(bindings, tmp_path):
    run, text = load_run(bindings=bindings)
    (tmp_path / "config.gin").write_text(text)
    assert load_run([str(tmp_path / "config.gin")]) == (run, text)
    assert load_run(bindings=text.splitlines()) == (run, text)


def test_operative_config_holds_every_parameter():
    run, text = load_run(bindings=["Train.steps = 5"])
    for part in dataclasses.fields(Run):
        value = getattr(run, part.name)
        for field in dataclasses.fields(value):
            assert f"\n{type(value).__name__}.{field.name} = " in text
    assert "\nDigits.image_size = 16\n" in text


def test_equal_runs_have_equal_text():
    one = run_text(Run(model=Model(groups=FrozenMapping(a="b", c="d"))))
    assert one == run_text(Run(model=Model(groups=FrozenMapping(c="d", a="b"))))


def test_differences_name_parameters():
    old = Run()
    new = dataclasses.replace(old, model=Model(dim=64), data=Data(source=Digits(image_size=28)))
    assert differences(old, new) == ["Model.dim: 128 became 64", "Digits.image_size: 16 became 28"]
    assert differences(old, Run()) == []


def test_gin_itself_reads_the_operative_config_alike():
    """Our builder means what gin means: scopes, inheritance, references."""
    run, text = load_run(
        bindings=["Model.plan = ((2, (@a/Block(), @Block())),)", "a/Block.ffn_dim = 3", "Block.untied = ('norm',)"]
    )
    nested = [type(getattr(run, field.name)) for field in dataclasses.fields(Run)]
    with gin.config.interactive_mode():
        for cls in (Run, Block, Digits, FeedForward, ValuesOptimizer, *nested):
            gin.external_configurable(cls, module="differential")
        try:
            gin.parse_config(text)
            assert gin.get_configurable("Run")() == run
            gin.clear_config()
            gin.parse_config("Run.model = @s/Model()\nModel.plan = ((1, (@Block(), @t/Block())),)\ns/Block.ffn_dim = 7")
            theirs = gin.get_configurable("Run")()
        finally:
            gin.clear_config()
    ours, _ = load_run(
        bindings=["Run.model = @s/Model()", "Model.plan = ((1, (@Block(), @t/Block())),)", "s/Block.ffn_dim = 7"]
    )
    assert ours == theirs


def test_gin_is_left_as_it_was():
    load_run(["digits_dense"])
    assert gin.config_str() == ""
    with pytest.raises(ValueError, match="No configurable matching"):
        gin.bind_parameter("mot_jax.config.run.Train.steps", 1)


def test_a_class_defined_again_replaces_the_first():
    def cell(default):
        @dataclasses.dataclass(frozen=True)
        class Again(Source):
            value: int = default

        return Again

    old = cell(1)
    new = cell(2)
    run, _ = load_run(bindings=["Data.source = @Again()"])
    assert type(run.data.source) is new is not old
    assert run.data.source.value == 2


def test_includes_beside_the_file_come_first(tmp_path, monkeypatch):
    for place, steps in (("here", 1), ("cwd", 2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "base.gin").write_text(f"Train.steps = {steps}\n")
    (tmp_path / "cwd" / "only.gin").write_text("Train.seed = 2\n")
    (tmp_path / "here" / "main.gin").write_text("include 'digits_dense.gin'\ninclude 'base.gin'\ninclude 'only.gin'\n")
    monkeypatch.chdir(tmp_path / "cwd")
    run, _ = load_run([str(tmp_path / "here" / "main.gin")])
    assert (run.train.steps, run.train.seed, run.eval.tasks) == (1, 2, ("digits",))


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(configs_directory() / "digits_dense.gin")
    for name in ("digits_dense", "digits_dense.gin", "configs/digits_dense.gin", "configs/digits_dense"):
        assert find_config(name) == shipped
    assert find_config("qwen3_0.6b").endswith("configs/presets/qwen3_0.6b.gin")


def test_dense_and_mot_differ_in_untied_and_learning_rate_alone():
    pairs = [("digits_dense", "digits_mot"), ("digits_dense_24px", "digits_mot_24px")]
    for dense, mot in [*pairs, ("digits_dense_28px", "digits_mot_28px")]:
        assert differences(load_run([dense])[0], load_run([mot])[0]) == [
            "Model.untied: () became ('attention', 'feed_forward', 'norm')",
            "Optimizer.learning_rate: 0.006 became 0.003",
        ]


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("Train.step = 3", "Train has no field 'step'; did you mean 'steps'?"),
        (
            "Trian.steps = 3",
            "no config class 'Trian'; did you mean 'Train'? (one of your own needs --import its.module)",
        ),
        ("Train.steps = 'abc'", "Train.steps: expected int, got 'abc'"),
        ("Train.steps=abc", "Train.steps: expected int, got 'abc'"),
        ("Train.steps = 1.5", "Train.steps: expected int, got 1.5"),
        ("Train.steps = True", "Train.steps: expected int, got True"),
        ("Optimizer.learning_rate = False", "Optimizer.learning_rate: expected float, got False"),
        ("Data.verify = 1", "Data.verify: expected bool, got 1"),
        ("Data.path = 3 # no string", "Data.path: expected str, got 3"),
        ("Data.path = ('a',)", "Data.path: expected str, got ('a',)"),
        (
            "Optimizer.schedule = linaer",
            "Optimizer.schedule: expected one of 'cosine', 'linear', 'constant', got 'linaer'; did you mean 'linear'?",
        ),
        ("Model.untied = 'norm'", "Model.untied: expected a tuple such as ('attention',), got 'norm'"),
        (
            "Model.untied = ('feed_fwd',)",
            "Model.untied[0]: expected one of 'attention', 'feed_forward', 'norm', got 'feed_fwd'; "
            "did you mean 'feed_forward'?",
        ),
        ("Model.groups = {'a': 1}", "Model.groups['a']: expected str, got 1"),
        ("Model.groups = ('a',)", "Model.groups: expected a dict of str to str, got ('a',)"),
        ("Model.plan = ((1, @Block()),)", "Model.plan[0][1]: expected a tuple such as (@Block(),), got @Block()"),
        ("Model.plan = ((1, ()), (2,))", "Model.plan[1]: expected 2 items, got 1 in (2,)"),
        ("Model.rope_scaling = 8", "Model.rope_scaling: expected @RopeScaling(), got 8"),
        ("Data.source = @Model()", "Data.source: expected"),
        ("Data.source = @Digit()", "Data.source: no config class 'Digit'; did you mean 'Digits'?"),
        ("Data.source = @Digits", "Data.source: write @Digits() with parentheses"),
        ("Data.source = @Data()", "@Data() refers to itself"),
        ("X = %X\nTrain.steps = %X", "Train.steps: %X refers to itself"),
        ("Train.steps = %NUMBER", "Train.steps: no macro %NUMBER"),
        ("X = 3", "X is set but never used; a value refers to it as %X"),
        ("RopeScaling.factor = 3.0", "RopeScaling.factor is set but never used; no value, such as Model.rope_scaling,"),
        ("a/Train.steps = 3", "a/Train.steps is set but never used; no value, such as Run.train, refers to @a/Train()"),
        ("import os", "a config imports nothing; use the flag --import os"),
        ("from os import path", "a config imports nothing"),
        ("include 'nowhere.gin'", "no gin file 'nowhere.gin'"),
        ("Model.dim = (3", "Model.dim = (3"),
        ("Model.dim =", "Model.dim ="),
        ("Model.dim", "Model.dim"),
        ("Data.path = 'half", "Data.path = 'half"),
        ("Data.global_batch_size = 0", "Data.global_batch_size: expected a number that is at least 1, got 0"),
        ("Data.shards = 3", "Data.shards: 3 does not divide the 4 rows of Data.global_batch_size"),
    ],
)
def test_mistakes(binding, expected):
    assert message(binding).startswith(expected) or message(binding).endswith(expected)


def test_mistakes_in_files_say_where(tmp_path):
    base, main = tmp_path / "base.gin", tmp_path / "main.gin"
    main.write_text("# first\ninclude 'base.gin'\n")
    for line, expected in [
        ("Train.step = 3", "Train has no field 'step'; did you mean 'steps'?"),
        ("Trian.steps = 3", "no config class 'Trian'; did you mean 'Train'?"),
        ("Train.steps = 'x'", "Train.steps: expected int, got 'x'"),
        ("Optimizer.schedule = linear", "cannot read the value (a string needs quotes): Optimizer.schedule = linear"),
        ("Train.steps = 1 +", "Expected newline: Train.steps = 1 +"),
        ("include 'nope.gin'", "no gin file 'nope.gin'"),
        ("import my.module", "a config imports nothing; use the flag --import my.module"),
        ("UNUSED = 3", "UNUSED is set but never used"),
        ("Train.seed = %NONE", "Train.seed: no macro %NONE"),
        ("Corpus.path = 'x'", "Corpus.path is set but never used; no value, such as Data.source, refers to @Corpus()"),
    ]:
        base.write_text(f"Train.steps = 1\n\n{line}\n")
        assert message(files=[str(main)]).startswith(f"{base}:3: {expected}")
    base.write_text("Model.untied = (\n")
    assert message(files=[str(main)]).startswith(f"{base}:")


def test_include_cycle(tmp_path):
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    assert "includes itself" in message(files=[str(tmp_path / "a.gin")])


def test_a_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "latin.gin").write_bytes("Train.steps = 3\n# après\n".encode("latin-1"))
    expected = f"{tmp_path / 'latin.gin'}:2: expected UTF-8 text, got the byte 0xe8"
    assert message(files=[str(tmp_path / "latin.gin")]) == expected


def test_missing_and_misspelt_files(tmp_path):
    assert message(files=["digits_dnse"]) == "no gin file 'digits_dnse'; did you mean 'digits_dense'?"
    (tmp_path / "config.txt").write_text("")
    assert message(files=[str(tmp_path / "config.txt")]).endswith("expected a file that ends in .gin")


def test_two_classes_of_one_name_need_more_of_it():
    other = dataclasses.make_dataclass("Corpus", [], bases=(Source,), frozen=True, kw_only=True)
    other.__module__ = "elsewhere.corpora"
    assert "elsewhere.corpora.Corpus" in message("Data.source = @Corpus()")
    run, text = load_run(bindings=["Data.source = @corpora.Corpus()"])
    assert type(run.data.source) is other
    assert load_run(bindings=[text]) == (run, text)


def test_own_class_errors_are_one_line():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Strict(Source):
        path: str
        size: int = 1

        def __post_init__(self):
            if self.size < 1:
                raise ValueError("size must be positive")

    assert message("Data.source = @Strict()") == "Strict.path: has no default and is not set"
    bindings = ["Data.source = @Strict()", "Strict.path = 'x'", "Strict.size = 0"]
    assert message(*bindings) == "Strict: size must be positive"


def test_a_value_no_file_can_hold_is_refused_at_once():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd(Source):
        value: object = len

    assert message("Data.source = @Odd()").startswith(
        "Odd.value: <built-in function len> cannot be written to a config"
    )
