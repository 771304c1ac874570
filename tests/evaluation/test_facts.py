"""The facts task: exact match, and a model that has learned a few facts by heart."""

import dataclasses

import pytest
from etils import epath

import mot_jax
from mot_jax.codecs import BytePairText
from mot_jax.config import Eval, Sample
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.data.facts import questions
from mot_jax.data.facts.questions import Question, Questions
from mot_jax.documents import Span
from mot_jax.errors import DataError
from mot_jax.evaluation import facts
from mot_jax.evaluation.tasks import Accuracy, TaskContext
from mot_jax.gin_config import load_run
from mot_jax.training.loop import train
from mot_jax.training.writers import read_metrics

CAPITALS = {"Chad": "N'Djamena", "Peru": "Lima", "Mali": "Bamako", "Oman": "Muscat", "Laos": "Vientiane"}
MONEY = {"Chad": "Franc", "Peru": "Sol", "Mali": "Franc", "Oman": "Rial", "Laos": "Kip"}
ASKED = tuple(Question("capital", f"The capital of {name}?", city) for name, city in CAPITALS.items())
ASKED += tuple(Question("currency", f"Money in {name}?", money) for name, money in MONEY.items())
UNTOLD = (Question("capital", "The capital of Cuba?", "Havana"), Question("currency", "Money in Cuba?", "Peso"))
USUAL = {"capital": "Bamako", "currency": "Franc"}


def test_exact_match_counts_by_relation():
    answers = [" N'Djamena", "Lima", "bamako", " Muscat and more", "", " Franc\n", " Sol", " So", "Rial Rial", " Kip"]
    assert facts.score("recall", ASKED, answers) == {
        "recall": Accuracy(5, 10),
        "recall/capital": Accuracy(2, 5),
        "recall/currency": Accuracy(3, 5),
    }
    assert facts.score("recall", ASKED[:2], [" Lima", " N'Djamena"])["recall"].right == 0  # the other's answer is wrong


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(run directory, its data set) of a model that saw nothing but the answered questions, until it knew them."""
    place = epath.Path(tmp_path_factory.mktemp("facts"))
    texts = [f"{question.text} {question.answer}" for question in ASKED]
    codec = BytePairText.train(texts, 300)
    with DatasetWriter(place / "data", {"text": codec}) as writer:
        for split, count in (("train", 20), ("validation", 1)):
            for text in texts * count:
                writer.add(split, (Span("text", codec.encode(text)),))
        questions.save(writer.directory, Questions(ASKED, UNTOLD, USUAL))
    run, text = load_run(
        (),
        [
            f"Data.path = '{place / 'data'}'",
            *("Model.dim = 32", "Model.num_layers = 1", "Model.num_heads = 2", "Model.ffn_dim = 64"),
            *("Data.sequence_length = 32", "Data.global_batch_size = 8", "Optimizer.learning_rate = 1e-2"),
            *("Optimizer.warmup_steps = 10", "Train.steps = 50", "Train.eval_every = 0", "Train.sample_every = 0"),
            *("Train.task_every = 40", "Eval.tasks = ('facts',)"),
        ],
    )
    assert train(run, place / "run", "never", text) == 0
    return place / "run", open_dataset(place / "data")


@pytest.fixture(scope="module")
def context(learned):
    run_dir, dataset = learned
    return TaskContext(mot_jax.load(run_dir), dataset, Eval(), Sample(guidance=2.0), None)


def test_what_was_learned_by_heart_is_recalled(context):
    scores = facts.facts(context)
    assert scores["recall"] == Accuracy(10, 10)
    assert scores["recall/capital"] == scores["recall/currency"] == Accuracy(5, 5)
    assert scores["usual"] == Accuracy(3, 10)  # one of the capitals, two of the currencies
    assert scores["usual/currency"] == Accuracy(2, 5)
    assert scores["untold"] == Accuracy(0, 2)
    assert facts.facts(dataclasses.replace(context, eval=Eval(prompts=3)))["recall"] == Accuracy(3, 3)


def test_an_answer_that_goes_on_is_not_cut_to_the_right_one(context):
    """The model says Vientiane, of more tokens than any answer asked for here."""
    first = context.run.codecs["text"].encode(" Vientiane")[:1]
    cut = Question("capital", "The capital of Laos?", context.run.codecs["text"].decode(first).strip())
    given = facts.answer(context, [cut])
    assert given != [f" {cut.answer}"] and given[0].strip().startswith(cut.answer)
    assert facts.score("recall", [cut], given)["recall"].right == 0


def test_scores_stand_beside_flops_in_the_metrics(learned, context):
    lines = [line for line in read_metrics(learned[0] / "metrics.jsonl") if line["split"] == "tasks"]
    assert [line["step"] for line in lines] == [40, 50]
    assert lines[1]["training_flops"] == pytest.approx(1.25 * lines[0]["training_flops"])
    scores = facts.facts(context)
    assert {f"facts/{name}" for name in scores} == set(lines[1]) - {"step", "split", "training_flops"}
    assert {name: lines[1][f"facts/{name}"] for name in scores} == {name: one.value for name, one in scores.items()}


def test_other_data_are_refused_by_name(context, dataset):
    with pytest.raises(DataError, match="not found; the facts task needs a data set"):
        facts.facts(dataclasses.replace(context, dataset=dataset))
