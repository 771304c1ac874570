"""Configs: shorthand expands as documented, and numbers that cannot go together are refused."""

import dataclasses

import pytest

from mot_jax import config
from mot_jax.config import Block, Data, Eval, FrozenMapping, Model, Optimizer, RopeScaling, Run, Sample, Source, Train
from mot_jax.config.experts import FeedForward
from mot_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("dim", "width"), [(256, 768), (512, 1536), (1024, 2816), (1536, 4096), (2048, 5632), (4096, 11008)]
)
def test_default_ffn_dim_is_the_papers(dim, width):
    assert config.default_ffn_dim(dim) == width
    assert {block.ffn_dim for block in config.expand(Model(dim=dim))} == {width}


def test_heads_take_the_model_s_width_unless_told():
    assert config.heads(Model(dim=128, num_heads=4)) == (4, 4, 32)
    assert config.heads(Model(dim=1024, num_heads=16, num_kv_heads=8, head_dim=128)) == (16, 8, 128)


def test_plan_repeats_its_runs_and_fills_in_the_model_s_settings():
    model = Model(
        untied=("norm",),
        ffn_dim=344,
        num_layers=99,
        plan=((2, (Block(untied=()), Block(ffn_dim=512))), (1, (Block(norm_order="pre"),))),
    )
    plain = FeedForward()
    tied = Block(untied=(), ffn_dim=344, norm_order="post", feed_forward=plain)
    wide = Block(untied=("norm",), ffn_dim=512, norm_order="post", feed_forward=plain)
    pre = Block(untied=("norm",), ffn_dim=344, norm_order="pre", feed_forward=plain)
    assert config.expand(model) == (tied, wide, tied, wide, pre)


def test_without_a_plan_every_layer_is_alike():
    blocks = config.expand(Model(num_layers=3, untied=("attention",)))
    assert len(blocks) == 3
    assert {block.untied for block in blocks} == {("attention",)}


def test_groups_share_weights():
    modalities = ("text", "image", "speech")
    assert config.group_of_modality(Model(modalities=modalities)) == (0, 1, 2)
    shared = Model(modalities=modalities, groups=FrozenMapping(speech="text"))
    assert config.group_of_modality(shared) == (0, 1, 0)
    assert config.group_of_modality(Model(modalities=modalities, groups=FrozenMapping(image="speech"))) == (0, 1, 1)


def test_resolve_takes_modalities_and_vocabulary_from_the_data():
    model = config.resolve(Model(), ("text", "image"), 1300)
    assert (model.modalities, model.vocab_size) == (("text", "image"), 1408)  # a multiple of 128
    assert config.resolve(Model(vocab_size=1300), ("text",), 1300).vocab_size == 1300
    assert config.resolve(model, ("text", "image"), 1300) == model
    hash(model)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(modalities=("text",)), "Model.modalities: ('text',) differ from the data's ('text', 'image')"),
        (Model(vocab_size=100), "Model.vocab_size: 100 is less than the data's 1300 token ids"),
        (Model(groups=FrozenMapping(imge="text")), "Model.groups: no modality 'imge'; did you mean 'image'?"),
        (Model(groups=FrozenMapping(image="txt")), "Model.groups: no modality 'txt'; did you mean 'text'?"),
    ],
)
def test_resolve_refuses_what_does_not_fit_the_data(model, expected):
    with pytest.raises(ConfigError) as caught:
        config.resolve(model, ("text", "image"), 1300)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(model=Model(num_heads=5)), "Model.num_heads: 5 heads do not divide Model.dim = 128"),
        (Run(model=Model(num_kv_heads=3)), "Model.num_kv_heads: 3 do not divide Model.num_heads = 4"),
        (Run(model=Model(head_dim=33)), "Model.head_dim: 33 is odd; rotary embedding needs pairs"),
        (
            Run(model=Model(plan=((2, (Block(),)), (-1, (Block(),))))),
            "Model.plan: a run's repeat: expected a number that is at least 1, got -1",
        ),
        (Run(model=Model(plan=())), "Model.plan: has no layers"),
        (Run(model=Model(num_layers=0)), "Model.num_layers: expected a number that is at least 1, got 0"),
        (Run(model=Model(num_kv_heads=0)), "Model.num_kv_heads: expected a number that is at least 1, got 0"),
        (Run(model=Model(ffn_dim=-8)), "Model.ffn_dim: expected a number that is at least 1, got -8"),
        (
            Run(model=Model(plan=((1, (Block(), Block(ffn_dim=0))),))),
            "Block.ffn_dim: expected a number that is at least 1, got 0",
        ),
        (Run(model=Model(rope_theta=0.0)), "Model.rope_theta: expected a number that is more than 0, got 0.0"),
        (Run(model=Model(norm_epsilon=-1e-5)), "Model.norm_epsilon: expected a number that is more than 0, got -1e-05"),
        (
            Run(model=Model(rope_scaling=RopeScaling(factor=0.0))),
            "RopeScaling.factor: expected a number that is more than 0, got 0.0",
        ),
        (
            Run(model=Model(rope_scaling=RopeScaling(low_frequency_factor=4.0))),
            "RopeScaling.low_frequency_factor: expected less than high_frequency_factor = 4.0, got 4.0",
        ),
        (
            Run(train=Train(modality_weights=FrozenMapping(text=-1.0))),
            "Train.modality_weights['text']: expected at least 0, got -1.0",
        ),
        (
            Run(train=Train(modality_weights=FrozenMapping(image=float("nan")))),
            "Train.modality_weights['image']: expected at least 0, got nan",
        ),
        (Run(data=Data(sequence_length=0)), "Data.sequence_length: expected a number that is at least 1, got 0"),
        (Run(data=Data(shards=3)), "Data.shards: 3 does not divide the 4 rows of Data.global_batch_size"),
        (
            Run(train=Train(accumulation=8)),
            "Train.accumulation: 8 does not divide the 4 rows of Data.global_batch_size",
        ),
        (Run(train=Train(steps=-1)), "Train.steps: expected a number that is at least 0, got -1"),
        (Run(train=Train(seed=-1)), "Train.seed: expected a number that is at least 0, got -1"),
        (
            Run(optimizer=Optimizer(learning_rate=float("nan"))),
            "Optimizer.learning_rate: expected a number that is at least 0, got nan",
        ),
        (
            Run(optimizer=Optimizer(clip_norm=float("inf"))),
            "Optimizer.clip_norm: expected a number that is at least 0, got inf",
        ),
        (Run(optimizer=Optimizer(b2=1.0)), "Optimizer.b2: expected at least 0 and less than 1, got 1.0"),
        (Run(sample=Sample(top_p=0.0)), "Sample.top_p: expected more than 0 and at most 1, got 0.0"),
        (Run(eval=Eval(batches=0)), "Eval.batches: expected a number that is at least 1, got 0"),
    ],
)
def test_impossible_runs_are_refused(run, expected):
    with pytest.raises(ConfigError) as caught:
        config.check_run(run)
    assert str(caught.value) == expected


def test_the_default_run_is_possible():
    config.check_run(Run())


def test_scaled_rotary_frequencies_and_infinite_weights_are_possible():
    weights = FrozenMapping(text=float("inf"), image=0.0)
    config.check_run(Run(model=Model(rope_scaling=RopeScaling()), train=Train(modality_weights=weights)))


@pytest.mark.parametrize("field", ["num_heads", "num_kv_heads", "head_dim", "ffn_dim"])
def test_resolve_refuses_sizes_of_zero(field):
    with pytest.raises(ConfigError, match=f"Model.{field}: expected a number that is at least 1, got 0"):
        config.resolve(Model(**{field: 0}), ("text",), 1300)


def test_intervals_of_zero_are_allowed():
    config.check_run(Run(train=Train(steps=0, log_every=0, checkpoint_every=0, eval_every=0, sample_every=0)))


def test_a_source_s_fingerprint_follows_everything_that_shapes_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Source):
        size: int = 3

    before = Mine().fingerprint()
    assert before == {"source": "Mine", "module": __name__, "version": 1, "size": 3}
    assert Mine(size=4).fingerprint() != before
    Mine.version = 2
    assert Mine().fingerprint() == {**before, "version": 2}
    Mine.version, Mine.__module__ = 1, "somebody.else"
    assert Mine().fingerprint() == {**before, "module": "somebody.else"}
    with pytest.raises(NotImplementedError, match="Mine does not define prepare"):
        Mine().prepare("somewhere", print)
