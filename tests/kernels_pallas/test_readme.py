"""The README's examples run and print what they say."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[2] / "kernels_pallas" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.search(r"kernels_pallas\.(\w+)", example)[1])
def test_an_example_prints_what_it_says(capsys, example):
    said = [line.partition(":")[0] for line in re.findall(r"^print\(.*\)  # (.*)$", example, flags=re.MULTILINE)]
    exec(example, {})
    assert capsys.readouterr().out.splitlines() == said
    assert said


def test_every_kernel_has_an_example():
    assert len(EXAMPLES) == 3
