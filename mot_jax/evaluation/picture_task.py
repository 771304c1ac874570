"""The pictures task: tell the group of a picture, draw from captions; drawings are judged by group and by colour."""

import functools

import numpy as np
from jaxtyping import Float32, Int32

from mot_jax.codecs import ImagePatches
from mot_jax.data.pictures import colours, evaluation_set
from mot_jax.data.pictures.captions import group_in
from mot_jax.data.pictures.names import GROUPS
from mot_jax.documents import Span
from mot_jax.evaluation.drawing import GREEDY, accuracy, ask, balanced, panel, ways_to_draw
from mot_jax.evaluation.judges import Judge, fit_judge
from mot_jax.evaluation.pictures import draw_panels
from mot_jax.evaluation.tasks import Accuracy, Scores, TaskContext, register_task

JUDGE_STEPS = 2000  # seconds on two cores


@register_task("pictures")
def pictures(context: TaskContext) -> Scores:
    """Accuracies of both directions over at most `Eval.prompts` held-out pictures, groups as equally as there are any.

    Reading: whether the likeliest caption says the picture's group. Drawing, from captions that say group and colours,
    three ways (see `ways_to_draw`): whether a judge reads that group, and whether the main colour is the first of them.
    The judge never saw these pictures. Beside stand its accuracy on all real held-out ones, and how often the main
    colour of a real one survives the codec; drawings are prototypical and may beat both.
    """
    directory = str(context.dataset.directory)
    evaluation = evaluation_set.load(directory)
    judge, judge_on_real = fit_group_judge(directory, context.dataset.fingerprint)
    codecs = context.run.codecs
    rows = balanced(evaluation.heldout_groups, context.eval.prompts, np.random.default_rng(context.eval.seed))
    group, colour = evaluation.heldout_groups[rows], evaluation.heldout_colours[rows]
    captions = [Span("text", codecs["text"].encode(evaluation.heldout_captions[row])) for row in rows]
    shown = [Span("image", evaluation.heldout_codes[row]) for row in rows]

    said = [group_in(codecs["text"].decode(codes)) for codes in ask(context, shown, "text", GREEDY)]
    scores: dict[str, float | Accuracy] = {"image_to_text/group": accuracy(np.array(said) == group)}
    panels = {}
    for how, temperature, guidance in ways_to_draw(context):
        codes = np.stack(ask(context, captions, "image", temperature, guidance))
        drawn = codecs["image"].decode_many(codes)
        read = judge(patch_colours(codecs["image"], codes))
        scores[f"text_to_image/{how}/group"] = right = accuracy(read == group)
        scores[f"text_to_image/{how}/colour"] = accuracy(colours.main_colour(drawn) == colour)
        panels[f"text → image, {how.replace('_', ' ')}: {right.value:.3f}"] = panel(drawn, group, read, len(GROUPS))
    real = codecs["image"].decode_many(evaluation.heldout_codes)
    scores["group_judge_on_real_pictures"] = judge_on_real
    scores["colour_of_real_pictures"] = accuracy(colours.main_colour(real) == evaluation.heldout_colours)
    if context.directory is not None:
        draw_panels(panels, context.directory / "eval_pictures.png", columns=3, labels=GROUPS)
    return scores


@functools.lru_cache(maxsize=1)
def fit_group_judge(directory: str, fingerprint: str) -> tuple[Judge, Accuracy]:
    """A judge of groups, fitted on a data set's training pictures and kept while the process lives; its real score.

    Args:
      fingerprint: the data set's; another one fits anew.
    """
    from mot_jax.data.dataset import open_dataset

    evaluation = evaluation_set.load(directory)
    codec = open_dataset(directory, verify=False).load_codecs()["image"]
    count, versions, length = evaluation.training_codes.shape
    judge = fit_judge(
        patch_colours(codec, evaluation.training_codes.reshape(count * versions, length)),
        np.repeat(evaluation.training_groups, versions),
        classes=len(GROUPS),
        steps=JUDGE_STEPS,
    )
    read = judge(patch_colours(codec, evaluation.heldout_codes))
    return judge, accuracy(read == evaluation.heldout_groups)


def patch_colours(codec: ImagePatches, codes: Int32[np.ndarray, "N C"]) -> Float32[np.ndarray, "N F"]:
    """The mean colour of every patch, 0..1: what a judge needs of a picture of many pixels and few examples."""
    means = codec.codebook.reshape(codec.size, -1, codec.channels).mean(1, dtype=np.float32) / 255
    return means[codes].reshape(len(codes), -1)
