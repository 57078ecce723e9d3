"""What files look like that the program writes."""

import hashlib
import json
import os
import time

import pytest
import torch

from collectionlora.system import files, kept_hashes
from collectionlora.system.files import load_tensors, sha256_once, write_json, write_tensors


def test_a_list_of_numbers_stands_on_one_line(tmp_path):
    value = {
        "numbers": [1, -2.5, 1e-9, None, True],
        "rows": [[1, 2], [3]],
        "empty": [],
        "words": ["a [", "1", "]", "b\n[\n1\n]"],
        "mappings": [{"x": [0.5, 1]}],
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    lines = text.splitlines()
    assert lines[1:5] == [' "numbers": [1, -2.5, 1e-09, null, true],', ' "rows": [', "  [1, 2],", "  [3]"]
    assert '   "x": [0.5, 1]' in lines


class Starts:
    """The hashes of a file at several starts of the program, and how often its bytes were read."""

    def __init__(self, monkeypatch):
        self.reads, plain = 0, files.sha256

        def read(path):
            self.reads += 1
            return plain(path)

        monkeypatch.setattr(files, "sha256", read)

    def hash(self, path):
        files._sha256_of.cache_clear()
        return sha256_once(path)


@pytest.fixture
def starts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_hashes, "MIN_BYTES", 4)
    monkeypatch.setattr(kept_hashes, "MIN_AGE", 0)
    return Starts(monkeypatch)


TICK = 0.05  # seconds; a file system's clock has moved on by then


def edit_and_put_times_back(path):
    time.sleep(TICK)
    state = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_by_one_of_the_same_times(path):
    state, other = path.stat(), path.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


def lengthen(path):
    path.write_bytes(b"bytes and more")


@pytest.mark.parametrize("change", [edit_and_put_times_back, replace_by_one_of_the_same_times, lengthen])
def test_a_large_file_is_read_once_until_it_changes(tmp_path, starts, change):
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"bytes")
    assert [starts.hash(path) for _ in range(3)] == [hashlib.sha256(b"bytes").hexdigest()] * 3
    assert starts.reads == 1
    change(path)
    assert starts.hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert starts.reads == 2


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path, starts, monkeypatch):
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"bytes")
    monkeypatch.setattr(kept_hashes, "MIN_AGE", 60)
    assert starts.hash(path) == starts.hash(path)
    assert starts.reads == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, starts, monkeypatch):
    path, plain = tmp_path / "base.safetensors", files.sha256
    path.write_bytes(b"bytes")

    def read_while_it_changes(path):
        digest = plain(path)
        edit_and_put_times_back(path)
        return digest

    with monkeypatch.context() as changing:
        changing.setattr(files, "sha256", read_while_it_changes)
        starts.hash(path)
    assert starts.hash(path) == hashlib.sha256(b"other").hexdigest()


def test_what_was_kept_may_be_damaged_or_not_be_written(tmp_path, starts, monkeypatch):
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"bytes")
    right = starts.hash(path)
    [kept] = (tmp_path / "cache" / "collectionlora" / "hashes").iterdir()
    for damage in (b"{", b"[1]", b'{"state": 1}', b"\xff"):
        kept.write_bytes(damage)
        assert starts.hash(path) == right
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # no folder
    assert starts.hash(path) == right
    assert starts.reads == 6


def test_one_tensor_is_written_under_two_names(tmp_path):
    shared, rows = torch.arange(6.0).view(2, 3), torch.arange(4.0)
    tensors = {"q.a": shared, "k.a": shared, "q.b": rows[:2], "k.b": rows[2:]}
    write_tensors(tmp_path / "a.safetensors", tensors, {})
    found, _ = load_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
