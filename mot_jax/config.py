"""Everything a run is, as frozen data. Nothing here imports jax; `gin_config` fills these from files.

Axis letters used throughout the project: B batch, S sequence, T flat tokens, D model, N heads, K key/value heads,
H head dimension, F feed-forward, G groups, M modalities, V vocabulary, A position axes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from mot_jax.config_experts import Depth, ExpertChoice, FeedForward, TokenChoice, check_depth, check_feed_forward
from mot_jax.config_memory import Memory, check_memory
from mot_jax.errors import ConfigError, nearest

Part = Literal["attention", "feed_forward", "norm"]


class FrozenMapping(dict):
    """A dict that can be a field of a hashable config; never changed after construction."""

    def __hash__(self):
        return hash(frozenset(self.items()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 frequency scaling: wavelengths beyond the original context are stretched by `factor`."""

    factor: float = 32.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One layer of the plan. A field left at None takes the model's setting."""

    untied: tuple[Part, ...] | None = None
    ffn_dim: int | None = None
    feed_forward: FeedForward | Mapping[str, FeedForward] | None = None
    norm_order: Literal["pre", "post"] | None = None
    depth: Depth | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer. `untied` names the parts whose weights each group owns: none is dense, all three is MoT.

    `feed_forward` divides it into experts: each group's own where it is untied, else one set for all tokens; by
    modality as in `{"text": @ExpertChoice()}`, where the others keep one SwiGLU.
    """

    modalities: tuple[str, ...] | None = None  # text first; None: the data's
    vocab_size: int | None = None  # None: the data's, rounded up to a multiple of 128
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: dim / num_heads
    ffn_dim: int | None = None  # None: 8/3 dim, rounded up to a multiple of 256
    feed_forward: FeedForward | Mapping[str, FeedForward] = FeedForward()
    memory: Memory | None = None  # in place of the feed-forward of the layers it names
    plan: tuple[tuple[int, tuple[Block, ...]], ...] | None = (
        None  # (repeat, blocks) runs; None: num_layers plain blocks
    )
    untied: tuple[Part, ...] = ()
    groups: Mapping[str, str] = FrozenMapping()  # modality -> the modality whose weights it shares
    owner: Literal["modality", "hash"] = "modality"  # hash: as many groups, by a hash of the token's id; a control
    selection_groups: int = 1  # blocks of rows of a microbatch inside which experts and depth select their tokens
    auxiliary_routers: bool = False  # what expert choice and depth need to generate; usually a second stage
    norm: Literal["rms", "layer"] = "rms"
    norm_order: Literal["pre", "post"] = "post"
    norm_epsilon: float = 1e-5
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_head: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; auto: bfloat16 on accelerators
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = False  # compiles one body for each run of equal blocks that follow one another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A preparation: turns something outside into a data set on disk. Subclass it to bring your own."""

    version: ClassVar[int] = 1  # raise it when prepare() makes something else of the same fields

    def fingerprint(self) -> dict[str, object]:
        """Everything that shapes the result, JSON-able; the cache is keyed by it."""
        return {
            "source": type(self).__name__,
            "module": type(self).__module__,  # two users may each have a class of one name
            "version": self.version,
            **dataclasses.asdict(self),
        }

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        """Writes the data set into `directory`; `report(what, fraction)` shows progress."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare()")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """Handwritten digits as image tokens, captions as text, spoken digits as speech units, and plain English."""

    image_size: int = 16  # pixels a side: 16, 24 (centre crop) or 28
    patch_size: int = 4
    image_codes: int = 256
    speech_codes: int = 200
    text_codes: int = 1024
    documents: int = 80_000
    seed: int = 0

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        from mot_jax.data.digits import prepare

        prepare(self, directory, report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts(Source):
    """Facts about cities and countries, each stated in several phrasings and asked for in another; text alone."""

    cities: int = 8_000  # the most populous of some 30,000 that have a name of their own; 2.4 facts each
    text_codes: int = 1024
    seed: int = 0

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        from mot_jax.data.facts import prepare

        prepare(self, directory, report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The documents and how they become batches. `path` is a prepared data set; without it `source` is prepared."""

    path: str | None = None
    source: Source = Digits()
    cache_dir: str | None = None  # None: $MOT_JAX_CACHE, or ~/.cache/mot_jax
    sequence_length: int = 256
    global_batch_size: int = 4  # rows per optimizer step
    shards: int = 1  # independent packed streams; fixed for the life of a run
    packing_bins: int = 16
    reader_threads: int = 0  # raise for remote storage
    prefetch: int = 2  # batches made ahead, in the background
    verify: bool = True  # compare every shard's digest with the manifest when opening
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValuesOptimizer:
    """AdamW of memory tables, on the others' schedule (arXiv 2412.09764, section 4).

    `touched` updates the rows that were read and leaves the others, their moments too, as they are.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: no clipping; the tables' own norm
    update: Literal["dense", "touched"] = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with warmup, a schedule and global-norm clipping."""

    learning_rate: float = 3e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.1  # of learning_rate, at the last step
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: no clipping
    values: ValuesOptimizer = ValuesOptimizer()  # of Model.memory's tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The loop. An interval of 0 turns its work off."""

    steps: int = 2000
    seed: int = 0
    accumulation: int = 1  # microbatches per optimizer step
    z_loss: float = 1e-5
    modality_weights: Mapping[str, float] = FrozenMapping()  # by the target's modality; 1 where absent
    max_bad_steps: int = 10  # non-finite steps in a row before the run stops
    init_from: str | None = None  # a run directory: parameters only, copied into groups and experts as it takes
    keep_data: bool = False  # go on in the documents where init_from's run stopped
    only: Literal["auxiliary_routers"] | None = None  # trains these and freezes the rest
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    eval_every: int = 500
    sample_every: int = 500
    task_every: int = 0  # the tasks of Eval.tasks; eval.py does them for a finished run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Mesh sizes; -1 takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Decoding, in sample pictures and as the default of `generate`."""

    temperature: float = 0.8
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    guidance: float = 1.0  # 1: none
    max_tokens: int = 64  # of a span whose length is not fixed
    prompts: int = 8  # a direction, in the sample picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out evaluation: losses always, tasks by name."""

    batches: int = 8  # during training; eval.py reads the whole split
    tasks: tuple[str, ...] = ()
    prompts: int = 200  # a task
    guidance: float = 2.0  # of the guided half of drawing tasks
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run, whole."""

    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    parallel: Parallel = Parallel()
    sample: Sample = Sample()
    eval: Eval = Eval()


def heads(model: Model) -> tuple[int, int, int]:
    """(query heads, key/value heads, head dimension)."""
    kv_heads = model.num_kv_heads or model.num_heads
    return model.num_heads, kv_heads, model.head_dim or model.dim // model.num_heads


def default_ffn_dim(dim: int) -> int:
    """SwiGLU width with the parameters of a 4D feed-forward: 8/3 D rounded up to a multiple of 256."""
    return -(-int(8 * dim / 3) // 256) * 256


def expand(model: Model) -> tuple[Block, ...]:
    """The plan as one fully specified block a layer."""
    plan = model.plan if model.plan is not None else ((model.num_layers, (Block(),)),)
    layers = [block for repeat, blocks in plan for _ in range(repeat) for block in blocks]

    def feed_forward(index: int, block: Block):
        given = model.feed_forward if block.feed_forward is None else block.feed_forward
        if model.memory is None or index not in model.memory.layers:
            return given
        if model.memory.modalities is None:
            return model.memory
        groups = group_names(model) if model.modalities else ()
        others = given if isinstance(given, Mapping) else dict.fromkeys(groups, given)
        return FrozenMapping({**others, **dict.fromkeys(model.memory.modalities, model.memory)})

    return tuple(
        Block(
            untied=model.untied if block.untied is None else block.untied,
            ffn_dim=block.ffn_dim or model.ffn_dim or default_ffn_dim(model.dim),
            feed_forward=feed_forward(index, block),
            norm_order=block.norm_order or model.norm_order,
            depth=block.depth,
        )
        for index, block in enumerate(layers)
    )


def group_of_modality(model: Model) -> tuple[int, ...]:
    """For each modality the index of the group that owns its tokens; groups are numbered in order of appearance."""
    owners = [model.groups.get(name, name) for name in model.modalities]
    names = list(dict.fromkeys(owners))
    return tuple(names.index(owner) for owner in owners)


def group_names(model: Model) -> tuple[str, ...]:
    """A name for each group: the modality that owns it, or its number where a hash does."""
    owners = dict.fromkeys(model.groups.get(name, name) for name in model.modalities)
    return tuple(owners) if model.owner == "modality" else tuple(f"hash_{i}" for i in range(len(owners)))


@dataclasses.dataclass(frozen=True)
class Pool:
    """The experts among which one group's tokens are divided: `kind.stored` of a layer's stack, from `first` on."""

    name: str
    kind: FeedForward
    first: int


def pools(model: Model, block: Block) -> tuple[Pool, ...]:
    """The pools of a block of `expand(model)`: one a group where the feed-forward is untied, else one for all."""
    given = block.feed_forward
    if "feed_forward" not in block.untied:
        kinds = {"all": given}
    elif isinstance(given, Mapping):
        kinds = {name: given.get(name, FeedForward()) for name in group_names(model)}
    else:
        kinds = dict.fromkeys(group_names(model), given)
    first, found = 0, []
    for name, kind in kinds.items():
        found.append(Pool(name, kind, first))
        first += kind.stored
    return tuple(found)


def has_experts(model: Model, block: Block) -> bool:
    """Whether any of a block's pools is more than one SwiGLU, and not all are memories."""
    kinds = {type(pool.kind) for pool in pools(model, block)}
    return bool(kinds - {FeedForward}) and kinds != {Memory}


def has_memory(block: Block) -> bool:
    """Whether some tokens of a block of `expand(model)` read a memory."""
    given = block.feed_forward
    return any(isinstance(kind, Memory) for kind in (given.values() if isinstance(given, Mapping) else (given,)))


def expert_dim(model: Model, block: Block) -> int:
    """The width of a block's experts; one for all, so that one grouped product serves them."""
    stored = (pool.kind for pool in pools(model, block) if pool.kind.stored)
    return next((kind.ffn_dim for kind in stored), None) or block.ffn_dim


def selects(model: Model) -> bool:
    """Whether routers compare the tokens of a block of rows, to choose among them or to balance experts over them."""

    def compares(kind: FeedForward) -> bool:
        if isinstance(kind, TokenChoice):
            return kind.capacity is not None or kind.balance_loss > 0 or kind.z_loss > 0
        return isinstance(kind, ExpertChoice)

    return any(
        (block.depth is not None and block.depth.selection == "batch")
        or any(compares(pool.kind) for pool in pools(model, block))
        for block in expand(model)
    )


def sees_future(model: Model) -> bool:
    """Whether training selects tokens by comparing them with later ones; then only auxiliary routers can generate."""
    return any(
        block.depth is not None or any(isinstance(pool.kind, ExpertChoice) for pool in pools(model, block))
        for block in expand(model)
    )


def resolve(model: Model, modalities: tuple[str, ...], vocab_size: int) -> Model:
    """Fills in what the data decides (modalities, vocabulary) and checks the whole.

    Raises:
      ConfigError: values that do not go together, named with what was expected.
    """
    if model.modalities is not None and model.modalities != modalities:
        raise ConfigError(f"Model.modalities: {model.modalities} differ from the data's {modalities}")
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise ConfigError(f"Model.vocab_size: {model.vocab_size} is less than the data's {vocab_size} token ids")
    if odd := [name for name in modalities if "/" in name]:
        raise ConfigError(f"modality {odd[0]!r}: expected a name without '/', which parts the names of metrics")
    resolved = dataclasses.replace(
        model, modalities=modalities, vocab_size=model.vocab_size or -(-vocab_size // 128) * 128
    )
    check_model(resolved)
    return resolved


def check_model(model: Model) -> None:
    """Raises ConfigError where a model's numbers cannot go together; names too, once its modalities are known."""
    sizes = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_dim", "vocab_size", "selection_groups")
    for field in sizes:
        _check_least(f"Model.{field}", getattr(model, field), 1)
    for repeat, blocks in model.plan or ():
        _check_least("Model.plan: a run's repeat", repeat, 1)
        for block in blocks:
            _check_least("Block.ffn_dim", block.ffn_dim, 1)
            if block.depth is not None:
                check_depth("Block.depth", block.depth)
    for name, value in (("rope_theta", model.rope_theta), ("norm_epsilon", model.norm_epsilon)):
        _check_positive(f"Model.{name}", value)
    if model.rope_scaling is not None:
        _check_rope_scaling(model.rope_scaling)
    if model.head_dim is None and model.dim % model.num_heads:
        raise ConfigError(f"Model.num_heads: {model.num_heads} heads do not divide Model.dim = {model.dim}")
    num_heads, kv_heads, head_dim = heads(model)
    if num_heads % kv_heads:
        raise ConfigError(f"Model.num_kv_heads: {kv_heads} do not divide Model.num_heads = {num_heads}")
    if head_dim % 2:
        raise ConfigError(f"Model.head_dim: {head_dim} is odd; rotary embedding needs pairs")
    if not expand(model):
        raise ConfigError("Model.plan: has no layers")
    _check_memory(model)
    for modality, owner in model.groups.items():
        for name in (modality, owner):
            if model.modalities is not None and name not in model.modalities:
                raise ConfigError(f"Model.groups: no modality {name!r}{nearest(name, model.modalities)}")
    for block in dict.fromkeys(expand(model)):
        _check_experts(model, block)


def _check_experts(model: Model, block: Block) -> None:
    given, name = block.feed_forward, "Model.feed_forward"
    for modality, kind in given.items() if isinstance(given, Mapping) else (("", given),):
        check_feed_forward(f"{name}[{modality!r}]" if modality else name, kind)
    if isinstance(given, Mapping) and "feed_forward" not in block.untied:
        raise ConfigError(f'{name}: experts by modality need "feed_forward" in untied, got untied = {block.untied}')
    if model.modalities is None:
        return
    if isinstance(given, Mapping):
        for modality in given:
            if modality not in (names := group_names(model)):
                owner = model.groups.get(modality)
                why = f"; it shares the weights of {owner!r}" if owner else nearest(modality, names)
                raise ConfigError(f"{name}: no group {modality!r} to own experts{why}")
    widths = {pool.name: pool.kind.ffn_dim or block.ffn_dim for pool in pools(model, block) if pool.kind.stored}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"{name}: expected one ffn_dim for all experts of a layer, got {widths}")


def _check_memory(model: Model) -> None:
    plan = [block.feed_forward for _, blocks in model.plan or () for block in blocks]
    for given in (model.feed_forward, *plan):
        if any(isinstance(kind, Memory) for kind in (given.values() if isinstance(given, Mapping) else (given,))):
            raise ConfigError("Model.feed_forward: got a Memory; expected it in Model.memory, with Memory.layers")
    if model.memory is None:
        return
    check_memory(model.memory, model.dim, len(expand(model)))
    if model.memory.modalities is not None:
        for layer in model.memory.layers:
            if "feed_forward" not in (untied := expand(model)[layer].untied):
                raise ConfigError(
                    'Memory.modalities: a memory of some modalities needs "feed_forward" in untied, '
                    f"got untied = {untied} in layer {layer}"
                )
    for name in model.memory.modalities or ():
        if model.modalities is not None and name not in (names := group_names(model)):
            raise ConfigError(f"Memory.modalities: no group {name!r}{nearest(name, names)}")


def _check_rope_scaling(scaling: RopeScaling) -> None:
    _check_positive("RopeScaling.factor", scaling.factor)
    _check_least("RopeScaling.original_length", scaling.original_length, 1)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    _check_positive("RopeScaling.low_frequency_factor", low)
    _check_positive("RopeScaling.high_frequency_factor", high)
    if low >= high:
        raise ConfigError(
            f"RopeScaling.low_frequency_factor: expected less than high_frequency_factor = {high}, got {low}"
        )


def _check_least(name: str, value: int | float | None, least: int) -> None:
    if value is not None and not (value >= least and math.isfinite(value)):
        raise ConfigError(f"{name}: expected a number that is at least {least}, got {value}")


def _check_positive(name: str, value: int | float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name}: expected a number that is more than 0, got {value}")


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
            _check_least(name, getattr(getattr(run, part.lower()), field), least)
    for modality, weight in run.train.modality_weights.items():
        if not weight >= 0:
            raise ConfigError(f"Train.modality_weights[{modality!r}]: expected at least 0, got {weight}")
    if not 0 < run.sample.top_p <= 1:
        raise ConfigError(f"Sample.top_p: expected more than 0 and at most 1, got {run.sample.top_p}")
    for field in ("learning_rate", "weight_decay", "clip_norm"):
        _check_least(f"ValuesOptimizer.{field}", getattr(run.optimizer.values, field), 0)
    for name, value in (("Optimizer.b1", run.optimizer.b1), ("Optimizer.b2", run.optimizer.b2)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name}: expected at least 0 and less than 1, got {value}")
    if run.train.only == "auxiliary_routers" and not run.model.auxiliary_routers:
        raise ConfigError('Train.only: "auxiliary_routers" needs Model.auxiliary_routers = True')
    if run.train.keep_data and run.train.init_from is None:
        raise ConfigError("Train.keep_data: expected Train.init_from, the run whose documents to go on in")
    rows = run.data.global_batch_size
    for name, value in (("Data.shards", run.data.shards), ("Train.accumulation", run.train.accumulation)):
        if rows % value:
            raise ConfigError(f"{name}: {value} does not divide the {rows} rows of Data.global_batch_size")
    check_model(run.model)
