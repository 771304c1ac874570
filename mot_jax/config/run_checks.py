"""Which values of a run no data set could make sense of."""

from mot_jax.config.model_checks import check_model
from mot_jax.config.numbers import check_least
from mot_jax.config.rules import rules_with
from mot_jax.config.run import Run
from mot_jax.errors import ConfigError

AT_LEAST_ONE = (
    *("Data.sequence_length", "Data.global_batch_size", "Data.shards", "Data.packing_bins"),
    *("Train.accumulation", "Train.max_bad_steps", "Train.keep_checkpoints", "Eval.batches", "Eval.prompts"),
    *("Sample.max_tokens", "Sample.prompts"),
)


AT_LEAST_ZERO = (
    *("Data.reader_threads", "Data.prefetch", "Data.seed", "Optimizer.learning_rate", "Optimizer.warmup_steps"),
    *("Optimizer.final_fraction", "Optimizer.epsilon", "Optimizer.weight_decay", "Optimizer.clip_norm", "Train.steps"),
    *("Train.seed", "Train.z_loss", "Train.log_every", "Train.checkpoint_every", "Train.eval_every"),
    *("Train.sample_every", "Train.task_every", "Sample.temperature", "Sample.top_k", "Eval.seed"),
)


def check_run(run: Run) -> None:
    """Raises ConfigError for values that no data set could make sense of."""
    for least, names in ((1, AT_LEAST_ONE), (0, AT_LEAST_ZERO)):
        for name in names:
            part, field = name.split(".")
            check_least(name, getattr(getattr(run, part.lower()), field), least)
    for modality, weight in run.train.modality_weights.items():
        if not weight >= 0:
            raise ConfigError(f"Train.modality_weights[{modality!r}]: expected at least 0, got {weight}")
    if not 0 < run.sample.top_p <= 1:
        raise ConfigError(f"Sample.top_p: expected more than 0 and at most 1, got {run.sample.top_p}")
    for field in ("learning_rate", "weight_decay", "clip_norm"):
        check_least(f"ValuesOptimizer.{field}", getattr(run.optimizer.values, field), 0)
    for name, value in (("Optimizer.b1", run.optimizer.b1), ("Optimizer.b2", run.optimizer.b2)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name}: expected at least 0 and less than 1, got {value}")
    if run.train.only == "auxiliary_routers" and not run.model.auxiliary_routers:
        raise ConfigError('Train.only: "auxiliary_routers" needs Model.auxiliary_routers = True')
    if run.train.profile is not None and min(run.train.profile) < 1:
        raise ConfigError(f"Train.profile: expected (first step, how many), both at least 1, got {run.train.profile}")
    if run.train.keep_data and run.train.init_from is None:
        raise ConfigError("Train.keep_data: expected Train.init_from, the run whose documents to go on in")
    rows = run.data.global_batch_size
    for name, value in (("Data.shards", run.data.shards), ("Train.accumulation", run.train.accumulation)):
        if rows % value:
            raise ConfigError(f"{name}: {value} does not divide the {rows} rows of Data.global_batch_size")
    rules_with(run.parallel.rules)
    check_model(run.model)
