"""A source is prepared once and whole; a damaged cache is made anew, a damaged data set of yours is not."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mot_jax.config import Data, Source
from mot_jax.data.cache import cache_directory, ensure_dataset
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.documents import Span
from mot_jax.errors import DataError
from tests.data.toy_codecs import Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Source):
    """Documents 0..count-1; every preparation is noted in a file."""

    count: int = 3
    log: str = ""
    fails: bool = False

    def prepare(self, directory, report):
        with open(self.log, "a") as log:
            log.write("prepared\n")
        with DatasetWriter(directory, {"text": Text(50)}) as writer:
            for number in range(self.count):
                writer.add("train", (Span("text", np.array([number])),))
                report("counting", (number + 1) / self.count)
            (writer.directory / "labels").write_text("what a task judges by")
            if self.fails:
                raise DataError("the source is empty")


@pytest.fixture
def data(tmp_path):
    return Data(source=Counting(log=str(tmp_path / "log")), cache_dir=str(tmp_path / "cache"))


def preparations(data):
    return Path(data.source.log).read_text().count("prepared")


def visible(directory):
    return sorted(path.name for path in Path(directory).iterdir() if not path.name.endswith(".lock"))


def ensure(data, seen=None):
    return ensure_dataset(data, lambda what, fraction: None if seen is None else seen.append((what, fraction)))


def test_a_source_is_prepared_once_with_progress(data):
    seen = []
    directory = ensure(data, seen)
    assert len(open_dataset(directory).split("train")) == 3
    assert seen[-1] == ("counting", 1.0)
    assert ensure(data) == directory and preparations(data) == 1
    name = os.path.basename(directory)
    assert name.startswith("Counting-") and len(name) == len("Counting-") + 12
    assert visible(data.cache_dir) == [name]


def test_what_shapes_the_source_decides_its_place(data):
    other = dataclasses.replace(data, source=dataclasses.replace(data.source, count=4))
    assert ensure(other) != ensure(data)
    assert cache_directory(dataclasses.replace(data, seed=5, sequence_length=9)) == cache_directory(data)


def test_the_cache_is_found_by_config_then_environment_then_home(data, monkeypatch):
    monkeypatch.setenv("MOT_JAX_CACHE", "~/elsewhere")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_directory(data).parent) == data.cache_dir
    unset = dataclasses.replace(data, cache_dir=None)
    assert str(cache_directory(unset).parent) == "/home/someone/elsewhere"
    monkeypatch.delenv("MOT_JAX_CACHE")
    assert str(cache_directory(unset).parent) == "/home/someone/.cache/mot_jax"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/00000-of-00001.array_record", "00000-of-00001.array_record: damaged shard"),
        ("labels", "labels: damaged file"),
    ],
)
def test_a_damaged_cache_is_named_and_made_anew(data, caplog, name, message):
    directory = Path(ensure(data))
    file = directory / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    assert ensure(data) == str(directory)
    assert file.read_bytes() == whole and preparations(data) == 2
    assert message in caplog.text and "preparing it again" in caplog.text
    assert visible(data.cache_dir) == [directory.name]


def test_a_preparation_that_fails_leaves_nothing(data):
    failing = dataclasses.replace(data, source=dataclasses.replace(data.source, fails=True))
    for _ in range(2):
        with pytest.raises(DataError, match="the source is empty"):
            ensure(failing)
    assert visible(data.cache_dir) == []


def test_what_a_killed_preparation_left_is_cleared_away(data):
    directory = cache_directory(data)
    left_over = directory.parent / f".{directory.name}.preparing-0123" / "dataset"
    left_over.mkdir(parents=True)
    ensure(data)
    assert visible(data.cache_dir) == [directory.name]


def test_two_processes_prepare_once(tmp_path):
    script = """
        import dataclasses, sys, time, numpy as np
        from mot_jax.codecs.protocol import Codec
        from mot_jax.config import Data, Source
        from mot_jax.data.cache import ensure_dataset
        from mot_jax.data.dataset import DatasetWriter
        from mot_jax.documents import Span
        class Text(Codec, kind="slow"):
            size = 9
            encode = decode = load = None
            def save(self, directory): (directory / "x").touch()
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Slow(Source):
            def prepare(self, directory, report):
                with open(sys.argv[1] + "/log", "a") as log: log.write("prepared ")
                time.sleep(1.5)
                with DatasetWriter(directory, {"text": Text()}) as writer:
                    writer.add("train", (Span("text", np.arange(9)),))
        print(ensure_dataset(Data(source=Slow(), cache_dir=sys.argv[1] + "/cache"), lambda what, fraction: None))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed[0] == printed[1] and (tmp_path / "log").read_text() == "prepared "


def test_a_data_set_of_yours_is_used_as_it_is_and_never_replaced(data, tmp_path):
    yours = dataclasses.replace(data, path=ensure(data))
    assert ensure(yours) == yours.path
    (Path(yours.path) / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: is damaged"):
        ensure(yours)
    assert (Path(yours.path) / "manifest.json").read_text() == "{" and preparations(data) == 1
    with pytest.raises(DataError, match="nowhere: expected a prepared data set, but it does not exist"):
        ensure(dataclasses.replace(data, path=str(tmp_path / "nowhere")))


def test_a_cache_that_cannot_be_written_is_one_line(data, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="expected a cache that can be written to"):
        ensure(data)
