"""docs/your-data.md does what it says: a fourth modality, defined outside the package, trains, generates, evaluates."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def blocks() -> list[str]:
    text = (REPOSITORY / "docs" / "your-data.md").read_text()
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M)


def test_the_page_runs(tmp_path):
    module, config, commands, session = blocks()
    (tmp_path / "melodies.py").write_text(module)
    (tmp_path / "melodies.gin").write_text(config)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)]),
        "MOT_JAX_CACHE": str(tmp_path / "cache"),
        "XLA_FLAGS": "",
    }

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train, evaluate = (line.split()[1:] for line in commands.strip().splitlines())
    shorter = ["--gin.Train.steps=150", "--gin.Train.sample_every=150", "--gin.Melodies.documents=1500"]
    run(sys.executable, str(REPOSITORY / train[0]), *train[1:], *shorter)
    run(sys.executable, str(REPOSITORY / evaluate[0]), *evaluate[1:])
    results = json.loads((tmp_path / "runs/melodies/eval.json").read_text())
    # Notes are seen in every pair with them, so their loss falls far below the log(49) = 3.9 of guessing.
    assert results["losses"]["notes"]["loss"] < 2.0
    assert set(results["losses"]) == {"all", "text", "image", "speech", "notes"}
    assert 0 <= results["tasks"]["melodies"]["text_to_notes"]["value"] <= 1
    pitches, words = run(sys.executable, "-c", session).strip().splitlines()
    assert all(48 <= pitch <= 96 for pitch in json.loads(pitches))
    assert words
    assert list((tmp_path / "runs/melodies/samples").glob("*.png"))
