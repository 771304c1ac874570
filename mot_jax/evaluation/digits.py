"""The digits task: read drawn and spoken digits, draw and say them; what is drawn or said is read by judges."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, UInt8

from mot_jax.data.digits import evaluation_set
from mot_jax.data.digits.evaluation_set import EvaluationSet
from mot_jax.documents import Span
from mot_jax.evaluation.completion import complete
from mot_jax.evaluation.judges import Judge, fit_judge, image_features, unit_features
from mot_jax.evaluation.pictures import draw_panels
from mot_jax.evaluation.tasks import Accuracy, Scores, TaskContext, register_task

DIGITS = 10
JUDGE_STEPS = 2000  # seconds on two cores
GREEDY = 0.0  # reading asks for the likeliest answer
SHOWN = 10  # drawings of a digit in the picture

RIGHT, WRONG = (235, 235, 235), (214, 39, 40)  # frames


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
        for how, temperature, guidance in _ways(context):
            drawn = _ask(context, prompts, "image", temperature, guidance)
            pictures = codecs["image"].decode_many(np.stack(drawn))
            read = judges.image(image_features(pictures))
            scores[f"{source}_to_image/{how}"] = accuracy = _accuracy(read == asked)
            panels[f"{source} → image, {how.replace('_', ' ')}: {accuracy.value:.3f}"] = _panel(pictures, asked, read)
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
    return Judges(image, speech, _accuracy(seen), _accuracy(heard))


def balanced(labels: Int[np.ndarray, "N"], count: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """At most `count` rows in random order, every class as often as any other while there are enough."""
    order = rng.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)  # how many rows of the same class came before
    for digit in np.unique(labels):
        members = labels[order] == digit
        rank[members] = np.arange(members.sum())
    return order[np.argsort(rank, kind="stable")][:count]


def _accuracy(right: np.ndarray) -> Accuracy:
    return Accuracy(int(np.sum(right)), len(right))


def _ways(context: TaskContext) -> Sequence[tuple[str, float, float]]:
    """(name, temperature, guidance) of each way to draw."""
    cool, guidance = context.sample.temperature, context.eval.guidance
    ways = ((1.0, 1.0), (cool, 1.0), (cool, guidance))
    return [(f"temperature_{t:g}" + (f"_guidance_{g:g}" if g != 1 else ""), t, g) for t, g in dict.fromkeys(ways)]


def _ask(context: TaskContext, prompts: Sequence[Span], to: str, temperature: float, guidance: float = 1.0):
    run = context.run
    return complete(
        run.config.model,
        run.params,
        run.vocabulary,
        [[prompt] for prompt in prompts],
        to=to,
        sample=dataclasses.replace(context.sample, temperature=temperature, guidance=guidance),
        seed=context.eval.seed,
    )


def _reading(
    context: TaskContext, evaluation: EvaluationSet, prompts: Sequence[Span], digits: Int[np.ndarray, "N"]
) -> Accuracy:
    """Whether the first digit word of the likeliest text after each prompt is the right one."""
    texts = [context.run.codecs["text"].decode(codes) for codes in _ask(context, prompts, "text", GREEDY)]
    return _accuracy(np.array([evaluation.digit_in(text) == digit for text, digit in zip(texts, digits, strict=True)]))


def _speaking(context: TaskContext, evaluation: EvaluationSet, judge: Judge) -> Accuracy:
    """Whether the judge hears the digit that a text asked for, phrasings and digits in turn."""
    asked = np.arange(context.eval.prompts) % DIGITS
    phrasings = evaluation.speech_prompts
    texts = [
        phrasings[index // DIGITS % len(phrasings)].format(digit=evaluation.words[digit])
        for index, digit in enumerate(asked)
    ]
    codec = context.run.codecs["text"]
    said = _ask(context, [Span("text", codec.encode(text)) for text in texts], "speech", context.sample.temperature)
    return _accuracy(judge(unit_features(said, context.run.codecs["speech"].size)) == asked)


def _panel(
    images: UInt8[np.ndarray, "N h w *channels"], asked: Int[np.ndarray, "N"], read: Int[np.ndarray, "N"]
) -> UInt8[np.ndarray, "height width 3"]:
    """One row a digit asked for; a drawing that the judge read as another digit has a red frame."""
    h, w = images.shape[1:3]
    panel = np.full((DIGITS, SHOWN, h + 3, w + 3, 3), 255, np.uint8)
    for digit in range(DIGITS):
        for column, row in enumerate(np.flatnonzero(asked == digit)[:SHOWN]):
            panel[digit, column, :-1, :-1] = RIGHT if read[row] == digit else WRONG
            panel[digit, column, 1:-2, 1:-2] = images[row].reshape(h, w, -1)
    return panel.transpose(0, 2, 1, 3, 4).reshape(DIGITS * (h + 3), SHOWN * (w + 3), 3)
