"""The digits task: read drawn and spoken digits, draw and say them; what is drawn or said is read by judges."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from mot_jax.data.digits import evaluation_set
from mot_jax.data.digits.evaluation_set import EvaluationSet
from mot_jax.documents import Span
from mot_jax.evaluation.drawing import GREEDY, accuracy, ask, balanced, panel, ways_to_draw
from mot_jax.evaluation.judges import Judge, fit_judge, image_features, unit_features
from mot_jax.evaluation.pictures import draw_panels
from mot_jax.evaluation.tasks import Accuracy, Scores, TaskContext, register_task

DIGITS = 10
JUDGE_STEPS = 2000  # seconds on two cores


@dataclasses.dataclass(frozen=True, eq=False)
class Judges:
    """Judges of images and of utterances, and how well each reads real held-out ones."""

    image: Judge
    speech: Judge
    image_accuracy: Accuracy
    speech_accuracy: Accuracy


@register_task("digits")
def digits(context: TaskContext) -> Scores:
    """Accuracies of five directions over at most `Eval.prompts` held-out prompts each.

    Drawing is measured at temperature 1, at `Sample.temperature`, and at that with `Eval.guidance`. A judge never saw
    a held-out image or voice; its accuracy on real ones stands beside, guided drawings being prototypical may beat it.
    """
    evaluation = evaluation_set.load(str(context.dataset.directory))
    judges = fit_judges(str(context.dataset.directory), context.dataset.fingerprint)
    rng = np.random.default_rng(context.eval.seed)
    codecs = context.run.codecs
    image_rows = balanced(evaluation.heldout_image_labels, context.eval.prompts, rng)
    speech_rows = balanced(evaluation.heldout_speech_labels, context.eval.prompts, rng)
    images = [Span("image", evaluation.heldout_image_codes[row]) for row in image_rows]
    utterances = [Span("speech", evaluation.heldout_speech[row]) for row in speech_rows]
    captions = [Span("text", codecs["text"].encode(evaluation.heldout_captions[row])) for row in image_rows]
    drawn_digit, said_digit = evaluation.heldout_image_labels[image_rows], evaluation.heldout_speech_labels[speech_rows]

    scores: dict[str, float | Accuracy] = {
        "image_to_text": _reading(context, evaluation, images, drawn_digit),
        "speech_to_text": _reading(context, evaluation, utterances, said_digit),
    }
    panels = {}
    for source, prompts, asked in (("text", captions, drawn_digit), ("speech", utterances, said_digit)):
        for how, temperature, guidance in ways_to_draw(context):
            drawn = ask(context, prompts, "image", temperature, guidance)
            pictures = codecs["image"].decode_many(np.stack(drawn))
            read = judges.image(image_features(pictures))
            scores[f"{source}_to_image/{how}"] = right = accuracy(read == asked)
            panels[f"{source} → image, {how.replace('_', ' ')}: {right.value:.3f}"] = panel(
                pictures, asked, read, DIGITS
            )
    scores["image_judge_on_real_images"] = judges.image_accuracy
    scores["text_to_speech"] = _speaking(context, evaluation, judges.speech)
    scores["speech_judge_on_real_speech"] = judges.speech_accuracy
    if context.directory is not None:
        draw_panels(panels, context.directory / "eval_digits.png", columns=3, labels=evaluation.words)
    return scores


@functools.lru_cache(maxsize=1)
def fit_judges(directory: str, fingerprint: str) -> Judges:
    """Judges fitted on a digits data set's training examples, kept while the process lives.

    Args:
      fingerprint: the data set's; another one fits anew.
    """
    from mot_jax.data.dataset import open_dataset

    evaluation = evaluation_set.load(directory)
    codecs = open_dataset(directory, verify=False).load_codecs()

    def features(codes: Int32[np.ndarray, "N C"]) -> np.ndarray:
        return image_features(codecs["image"].decode_many(codes))

    size = codecs["speech"].size
    image = fit_judge(
        features(evaluation.training_image_codes),
        evaluation.training_image_labels,
        classes=DIGITS,
        steps=JUDGE_STEPS,
    )
    speech = fit_judge(
        unit_features(evaluation.training_speech, size),
        evaluation.training_speech_labels,
        classes=DIGITS,
        steps=JUDGE_STEPS,
    )
    seen = image(features(evaluation.heldout_image_codes)) == evaluation.heldout_image_labels
    heard = speech(unit_features(evaluation.heldout_speech, size)) == evaluation.heldout_speech_labels
    return Judges(image, speech, accuracy(seen), accuracy(heard))


def _reading(
    context: TaskContext, evaluation: EvaluationSet, prompts: Sequence[Span], digits: Int[np.ndarray, "N"]
) -> Accuracy:
    """Whether the first digit word of the likeliest text after each prompt is the right one."""
    texts = [context.run.codecs["text"].decode(codes) for codes in ask(context, prompts, "text", GREEDY)]
    return accuracy(np.array([evaluation.digit_in(text) == digit for text, digit in zip(texts, digits, strict=True)]))


def _speaking(context: TaskContext, evaluation: EvaluationSet, judge: Judge) -> Accuracy:
    """Whether the judge hears the digit that a text asked for, phrasings and digits in turn."""
    asked = np.arange(context.eval.prompts) % DIGITS
    phrasings = evaluation.speech_prompts
    texts = [
        phrasings[index // DIGITS % len(phrasings)].format(digit=evaluation.words[digit])
        for index, digit in enumerate(asked)
    ]
    codec = context.run.codecs["text"]
    said = ask(context, [Span("text", codec.encode(text)) for text in texts], "speech", context.sample.temperature)
    return accuracy(judge(unit_features(said, context.run.codecs["speech"].size)) == asked)
