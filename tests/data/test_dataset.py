"""What is written comes back, whatever is damaged is named, and nothing half-written looks whole."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from etils import epath

from mot_jax.data import dataset as dataset_module
from mot_jax.data.dataset import DatasetWriter, copy_artifacts, load_artifacts, open_dataset
from mot_jax.documents import Span, canonical
from mot_jax.errors import DataError


def text(*codes):
    return Span("text", np.array(codes, np.int32))


@pytest.mark.parametrize("limit", [1 << 20, 0], ids=["in memory", "as asked for"])
@pytest.mark.parametrize("files", [1, 3])
def test_documents_come_back_in_order(write, random_documents, monkeypatch, limit, files):
    monkeypatch.setattr(dataset_module, "MEMORY_LIMIT", limit)
    train, validation = random_documents(50), random_documents(2)
    dataset = write(files=files, train=train, validation=validation)
    for split, documents in (("train", train), ("validation", validation)):
        assert list(dataset.split(split)) == [canonical(document) for document in documents]
        assert all(span.codes.dtype == np.int32 for document in dataset.split(split) for span in document)
    assert dataset.split("train")[49] == canonical(train[49])


def test_the_manifest_counts_documents_and_codes(write):
    image = Span("image", np.zeros(6, np.int32))
    dataset = write(train=[(text(1, 2), image), (image, text(3))])
    assert dataset.manifest["splits"]["train"]["documents"] == 2
    assert dataset.manifest["splits"]["train"]["codes"] == {"text": 3, "image": 12, "speech": 0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ((), "train: document 1 is empty"),
        ((text(),), "train: document 1 is empty"),
        ((text(50),), "document 1: text: code 50 is outside its range 0..49"),
        ((text(-1),), "document 1: text: code -1 is outside its range 0..49"),
        ((Span("image", np.zeros(5, np.int32)),), "document 1: image: a span has 5 codes, expected 6"),
        (
            (Span("imag", np.zeros(6, np.int32)),),
            "document 1: imag: expected one of the modalities text, image, speech",
        ),
        ((Span("speech", np.zeros(3)),), "expected a row of integer codes, got float64[3]"),
        ((Span("speech", np.zeros((3, 1), np.int32)),), "expected a row of integer codes, got int32[3, 1]"),
    ],
)
def test_a_wrong_document_is_named_and_leaves_nothing(tmp_path, codecs, document, message):
    with pytest.raises(DataError) as caught, DatasetWriter(tmp_path / "data", codecs) as writer:
        writer.add("train", (text(1),))
        writer.add("train", document)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ids_that_a_text_codec_reserves_are_kept_and_refused_in_documents(tmp_path, codecs):
    codecs["text"].bos_id = 7
    with (
        pytest.raises(DataError, match="7 is padding, BOS or EOS"),
        DatasetWriter(tmp_path / "d", codecs) as writer,
    ):
        assert writer.vocabulary.bos == 7 and writer.vocabulary.pad == 50
        writer.add("train", (text(6, 7),))


def test_an_existing_data_set_is_not_overwritten(write, codecs):
    directory = write(train=[(text(1),)]).directory
    with pytest.raises(DataError, match="is not empty"):
        DatasetWriter(directory, codecs)


def test_files_put_beside_the_splits_become_part_of_the_data_set(tmp_path, codecs):
    with DatasetWriter(tmp_path / "data", codecs, provenance={"from": "here"}) as writer:
        writer.add("train", (text(1),))
        (writer.directory / "notes.txt").write_text("kept")
        (writer.directory / "train" / "more").mkdir()
        (writer.directory / "train" / "more" / "labels").write_bytes(b"")
    assert (tmp_path / "data" / "notes.txt").read_text() == "kept"
    listed = open_dataset(tmp_path / "data").manifest["other_files"]
    assert [(file["file"], file["bytes"]) for file in listed] == [("notes.txt", 4), ("train/more/labels", 0)]
    assert open_dataset(tmp_path / "data").manifest["provenance"] == {"from": "here"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path):
    script = """
        import os, signal, sys, numpy as np
        from mot_jax.data.dataset import DatasetWriter
        from mot_jax.documents import Span
        from mot_jax.codecs.protocol import Codec
        class Text(Codec, kind="killed"):
            size = 9
            encode = decode = load = None
            def save(self, directory):
                os.kill(os.getpid(), signal.SIGKILL)
        with DatasetWriter(sys.argv[1], {"text": Text()}) as writer:
            writer.add("train", (Span("text", np.arange(9)),))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "data"], check=False)
    assert done.returncode == -9
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "data")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 1)


def edit_manifest(key, value):
    def edit(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return edit


SHARD = "train/00001-of-00002.array_record"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (SHARD, flip, f"{SHARD}: damaged shard: its sha256 is not the manifest's"),
        (SHARD, truncate, f"{SHARD}: damaged shard: it has"),
        (SHARD, os.remove, f"{SHARD}: the shard is missing"),
        ("codecs/image/settings/sizes.txt", flip, "the image codec does not match the manifest"),
        ("codecs/image", shutil.rmtree, "codecs/image: the image codec is missing"),
        ("manifest.json", truncate, "manifest.json: is damaged"),
        ("manifest.json", os.remove, "has no manifest.json"),
        ("manifest.json", edit_manifest("format", 2), "format 2 is not the one this version reads (1)"),
        ("manifest.json", edit_manifest("vocabulary", {}), "manifest.json: is damaged"),
        ("manifest.json", edit_manifest("splits", {"train": {}}), "manifest.json: is damaged"),
        ("manifest.json", edit_manifest("other_files", [{"file": "x"}]), "manifest.json: is damaged"),
        ("manifest.json", edit_manifest("codecs", {}), "codecs [] are not the vocabulary's"),
    ],
)
def test_damage_is_named(write, random_documents, name, damage, message):
    directory = write(files=2, train=random_documents(20)).directory
    damage(directory / name)
    with pytest.raises(DataError) as caught:
        open_dataset(directory)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "labels.txt: damaged file: its sha256 is not the manifest's"),
        (truncate, "labels.txt: damaged file: it has 9 bytes, the manifest says 10"),
        (os.remove, "labels.txt: the file is missing"),
    ],
)
def test_damage_of_another_file_is_named(tmp_path, codecs, damage, message):
    with DatasetWriter(tmp_path / "data", codecs) as writer:
        writer.add("train", (text(1),))
        (writer.directory / "labels.txt").write_text("0123456789")
    damage(tmp_path / "data" / "labels.txt")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "data")


def test_without_verify_sizes_and_codecs_are_still_compared(write, random_documents):
    dataset = write(train=random_documents(20))
    shard = dataset.directory / dataset.manifest["splits"]["train"]["files"][0]["file"]
    flip(shard)
    open_dataset(dataset.directory, verify=False)
    truncate(shard)
    with pytest.raises(DataError, match="damaged shard"):
        open_dataset(dataset.directory, verify=False)


def test_a_shard_found_damaged_while_reading_is_named(write, random_documents):
    dataset = write(train=random_documents(20))
    shard = dataset.directory / dataset.manifest["splits"]["train"]["files"][0]["file"]
    truncate(shard)
    with pytest.raises(DataError, match=r"00000-of-00001.array_record: damaged shard"):
        dataset.split("train")[0]


def test_an_unknown_split_is_answered_with_the_nearest(write):
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        write(train=[(text(1),)]).split("trian")


def test_the_fingerprint_follows_the_content_alone(tmp_path, codecs, write):
    first = write(train=[(text(1),)])
    assert write(train=[(text(1),)]).fingerprint == first.fingerprint
    assert write(train=[(text(2),)]).fingerprint != first.fingerprint
    with DatasetWriter(tmp_path / "elsewhere", codecs, provenance={"from": "there"}) as writer:
        writer.add("train", (text(1),))
    assert open_dataset(tmp_path / "elsewhere").fingerprint == first.fingerprint


def test_codecs_come_back_with_a_run(tmp_path, write, random_documents):
    dataset = write(train=random_documents(3))
    run = tmp_path / "run" / "artifacts"
    for _ in range(2):  # a second copy replaces the first
        copy_artifacts(dataset.directory, run)
    shutil.rmtree(dataset.directory)
    artifacts = load_artifacts(run)
    assert artifacts.vocabulary == dataset.vocabulary
    assert {name: (type(c).__name__, c.size, c.span_length) for name, c in artifacts.codecs.items()} == {
        "text": ("Text", 50, None),
        "image": ("Image", 300, 6),
        "speech": ("Speech", 20, None),
    }
    flip(run / "codecs" / "speech" / "settings" / "sizes.txt")
    with pytest.raises(DataError, match="the speech codec does not match the manifest"):
        load_artifacts(run)


def test_a_codec_of_other_sizes_than_the_vocabulary_is_refused(write, random_documents):
    directory = write(train=random_documents(3)).directory
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["vocabulary"]["modalities"][1]["span_length"] = 5
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="it has 300 codes and span length 6, expected 300 and 5"):
        open_dataset(directory).load_codecs()


def test_a_whole_copy_of_the_artifacts_is_left_alone_and_a_damaged_one_made_again(tmp_path, write, random_documents):
    dataset = write(train=random_documents(3))
    run = tmp_path / "run"
    copy_artifacts(dataset.directory, run)
    codec = next(path for path in (run / "codecs").rglob("*") if path.is_file())
    before = codec.stat().st_ino
    copy_artifacts(dataset.directory, run)
    assert codec.stat().st_ino == before
    codec.write_bytes(b"damaged")
    copy_artifacts(dataset.directory, run)
    load_artifacts(run)
    assert not list(tmp_path.glob("run.*"))


def test_artifacts_of_the_same_data_elsewhere_are_never_away(tmp_path, write, random_documents, monkeypatch):
    """The manifest alone is replaced: killed after any one rename, the copy before or the new one can be loaded."""
    one, other = (write(train=random_documents(count)).directory for count in (3, 4))
    run = epath.Path(tmp_path / "run")
    copy_artifacts(one, run)
    monkeypatch.setattr(type(run), "rename", lambda *_: pytest.fail("a directory was moved"))
    copy_artifacts(other, run)
    assert load_artifacts(run).manifest == open_dataset(other).manifest


def test_a_copy_of_the_artifacts_that_fails_leaves_the_one_before(tmp_path, write, random_documents, monkeypatch):
    def full(*_, **__):
        raise OSError("full")

    one, other = (write(train=random_documents(3)).directory for _ in range(2))
    run = epath.Path(tmp_path / "run")
    copy_artifacts(one, run)
    with monkeypatch.context() as patch:
        patch.setattr(type(run), "copy", full)
        with pytest.raises(OSError, match="full"):
            copy_artifacts(other, run)
    assert load_artifacts(run).manifest == open_dataset(one).manifest
    copy_artifacts(other, run)
    assert load_artifacts(run).manifest == open_dataset(other).manifest
    assert not list(tmp_path.glob("run.*"))
