"""Windows of metrics, the files they go to, and the counts behind utilisation."""

import json
import math
import struct

import pytest
from etils import epath

from mot_jax.config import Model, resolve
from mot_jax.nn import count
from mot_jax.training import flops
from mot_jax.training.curves import draw_losses, smooth
from mot_jax.training.metrics import Clock, Window, json_ready
from mot_jax.training.writers import MetricsFile, TensorBoard, read_metrics


def values(loss: float, count: float, skipped: int = 0) -> dict:
    one = 1.0
    return {
        "loss": (loss * count, count),
        "loss/image": (0.0, 0.0),
        "grad_norm": (loss, one),
        "skipped": (float(skipped), one),
        "bad_steps": (float(skipped), one),
        "modality_tokens/text": (count, one),
    }


def test_means_are_over_tokens_not_over_steps():
    window = Window()
    window.add(values(1.0, 30))
    window.add(values(5.0, 10))
    means = window.means()
    assert means["loss"] == pytest.approx(2.0)
    assert means["grad_norm"] == pytest.approx(3.0)
    assert means["modality_tokens/text"] == pytest.approx(20.0)
    assert means["loss/image"] is None
    assert "bad_steps" not in means


def test_a_skipped_step_does_not_poison_the_window():
    window = Window()
    window.add(values(1.0, 30))
    window.add(values(math.nan, 10, skipped=1))
    assert window.means()["loss"] == pytest.approx(1.0)
    assert window.means()["grad_norm"] == pytest.approx(1.0)
    assert window.means()["skipped"] == pytest.approx(0.5)


def test_a_window_saved_as_json_goes_on_exactly():
    whole, parts = Window(), Window()
    for step in range(7):
        if step == 3:
            parts = Window(json.loads(json.dumps(parts.sums)))
        for window in (whole, parts):
            window.add(values(0.1 * step + 1 / 3, 7 + step))
    assert parts.means() == whole.means()


def test_the_clock_counts_only_while_it_runs():
    clock = Clock()
    clock.wait(1.0)
    clock.step(100.0)
    line = clock.line(1.0, None)
    assert line.pop("save_seconds") == 0 and set(line.values()) == {None}
    clock.start()
    clock.step(100.0)
    clock.stop()
    clock.step(100.0)
    line = clock.line(2.0, 1e3)
    assert clock.steps == 1
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 2.0 / 1e3)
    assert line["data_wait_fraction"] == 0


def test_going_back_drops_later_lines_and_one_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as metrics:
        for step in (2, 4, 6):
            metrics.write({"step": step, "split": "train", "loss": math.nan})
    path.write_text(path.read_text() + '{"step": 3, "spl')
    with MetricsFile(path, 4) as metrics:
        metrics.write({"step": 5, "split": "train", "loss": 1.5})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(2, None), (4, None), (5, 1.5)]
    assert json_ready({"a": math.inf, "b": 1}) == {"a": None, "b": 1}


def test_smoothing_keeps_a_constant_and_follows_a_change():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([0.0] + [1.0] * 200)[-1] == pytest.approx(1.0, abs=1e-6)


def test_curves_are_drawn_where_there_are_losses(tmp_path):
    draw_losses([{"step": 1, "split": "train", "loss": 2.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    lines = [{"step": s, "split": "train", "loss/text": 2.0 / s, "loss/image": None} for s in (1, 2, 3)]
    draw_losses([*lines, {"step": 3, "split": "validation", "loss/text": 1.0}], tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"


def test_untying_stores_more_and_activates_the_same():
    plain = Model(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48)
    counts = {}
    for untied in ((), ("attention", "feed_forward", "norm")):
        model = resolve(Model(**{**vars(plain), "untied": untied}), ("text", "image", "speech"), 200)
        counts[untied] = count.stored(model), count.activated(model)
        assert flops.forward_flops_per_token(model, 64) == 2 * (
            2 * (32 * (32 + 2 * 16) + 32 * 32 + 64 * 32 + 3 * 32 * 48) + 32 * 256
        )
    layer = 32 * 64 + 32 * 32 + 3 * 32 * 48 + 2 * 32 + 2 * 8
    assert counts[()] == (2 * 256 * 32 + 2 * layer + 32,) * 2
    (stored, activated) = counts["attention", "feed_forward", "norm"]
    assert activated == counts[()][0]
    assert stored == activated + 2 * (2 * layer + 32)


@pytest.mark.parametrize("step", [0, 8])
def test_tensorboard_forgets_the_curves_after_the_step_that_a_run_starts_from(tmp_path, step):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with TensorBoard(epath.Path(tmp_path), step, print) as board:
        board.write({"split": "train", "step": step + 1, "loss": 1.0})
    (file,) = (tmp_path / "train").iterdir()
    content, events = file.read_bytes(), []
    while content:  # a record: length, its checksum (4 bytes), the event, its checksum (4 bytes)
        (length,) = struct.unpack("<Q", content[:8])
        events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    started = [event.step for event in events if event.session_log.status == event_pb2.SessionLog.START]
    assert started == [step + 1]
    assert events[-1].step == step + 1 and events[-1].summary.value[0].tag == "loss"
