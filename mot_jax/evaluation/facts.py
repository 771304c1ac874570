"""The facts task: closed-book recall, by questions whose facts training stated in other words."""

import dataclasses
from collections.abc import Mapping, Sequence

from mot_jax.data.facts import questions
from mot_jax.data.facts.questions import Question
from mot_jax.documents import Span
from mot_jax.evaluation.completion import complete
from mot_jax.evaluation.tasks import Accuracy, Scores, TaskContext, register_task


@register_task("facts")
def facts(context: TaskContext) -> Scores:
    """Shares of exactly right answers, over all and by relation: the likeliest continuation of each question.

    `recall` is of at most `Eval.prompts` questions of facts that training stated. Two floors stand beside it: `usual`,
    of the same questions answered with their relation's most frequent answer; `untold`, of as many questions about
    cities that training never named, which is what a name gives away.
    """
    known = questions.load(context.dataset.directory)
    asked, untold = known.asked[: context.eval.prompts], known.untold[: context.eval.prompts]
    answers = answer(context, [*asked, *untold])  # at once: fewer shapes, so fewer compilations
    return {
        **score("recall", asked, answers[: len(asked)]),
        **score("usual", asked, [known.usual[question.relation] for question in asked]),
        **score("untold", untold, answers[len(asked) :]),
    }


def answer(context: TaskContext, asked: Sequence[Question]) -> list[str]:
    """The likeliest text after each question, until the document ends or is longer than any right answer."""
    run, codec = context.run, context.run.codecs["text"]
    longest = max(len(codes) for codes in codec.encode_many([f" {question.answer}" for question in asked]))
    continued = complete(
        run.config.model,
        run.params,
        run.vocabulary,
        [[Span("text", codes)] for codes in codec.encode_many([question.text for question in asked])],
        to="text",
        # One token more than any right answer, so that those that go on are seen to be wrong.
        sample=dataclasses.replace(context.sample, temperature=0.0, guidance=1.0, max_tokens=longest + 1),
        seed=context.eval.seed,
    )
    return [codec.decode(codes) for codes in continued]


def score(name: str, asked: Sequence[Question], answers: Sequence[str]) -> Mapping[str, Accuracy]:
    """`name`, and `name/<relation>` of every relation asked for. White space around an answer does not count."""
    right = [given.strip() == question.answer for question, given in zip(asked, answers, strict=True)]
    by_relation: dict[str, list[bool]] = {}
    for question, one in zip(asked, right, strict=True):
        by_relation.setdefault(question.relation, []).append(one)
    parts = {name: right, **{f"{name}/{relation}": by_relation[relation] for relation in sorted(by_relation)}}
    return {part: Accuracy(sum(of), len(of)) for part, of in parts.items()}
