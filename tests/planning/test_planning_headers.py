"""Hostile checkpoints: every one ends in an error of its own within a second, and nothing is read beyond the header."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import CheckpointError
from surgery.planning.checkpoint import inventory_of_checkpoint
from surgery.planning.headers import check_index, read_checkpoint_headers, read_config, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def tensor(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def write(path: Path, header: Any, data: int = 24, *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data))
    return path


def refused(path: Path) -> str:
    start = time.thread_time()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_headers(path)
    assert time.thread_time() - start < 1
    assert str(path) in caught.value.where
    return caught.value.what


GOOD = {"a": tensor(), "__metadata__": {"format": "pt"}}

# (header, bytes of data, what the message says)
BAD_HEADERS: dict[str, tuple[Any, int, str]] = {
    "overlap": ({"a": tensor(), "b": tensor(offsets=(12, 36))}, 36, "tensors overlap or leave a hole"),
    "same-range": ({"a": tensor(), "b": tensor()}, 24, "tensors overlap or leave a hole"),
    "hole": ({"a": tensor(), "b": tensor(offsets=(28, 52))}, 52, "tensors overlap or leave a hole"),
    "hole-at-the-start": ({"a": tensor(offsets=(4, 28))}, 28, "tensors overlap or leave a hole"),
    "trailing": (GOOD, 30, "bytes where its header accounts for"),
    "missing-data": (GOOD, 20, "data_offsets do not agree with the shape or with the file's size"),
    "wrong-size": ({"a": tensor(shape=(2, 2))}, 24, "data_offsets do not agree"),
    "wrong-dtype-size": ({"a": tensor("F16")}, 24, "data_offsets do not agree"),
    "unknown-dtype": ({"a": tensor("F31")}, 24, "unknown dtype 'F31'"),
    "dtype-is-a-list": ({"a": tensor(["F32"])}, 24, "unknown dtype"),
    "dtype-is-an-object": ({"a": tensor({})}, 24, "unknown dtype"),
    "dtype-is-null": ({"a": tensor(None)}, 24, "unknown dtype"),
    "negative-shape": ({"a": tensor(shape=(-2, -3))}, 24, "must be lists of counts"),
    "negative-offset": ({"a": tensor(offsets=(-24, 0))}, 24, "must be lists of counts"),
    "backwards": ({"a": tensor(offsets=(24, 0))}, 24, "data_offsets do not agree"),
    "float-shape": ({"a": tensor(shape=(2.0, 3))}, 24, "must be lists of counts"),
    "bool-shape": ({"a": tensor(shape=(True, 6))}, 24, "must be lists of counts"),
    "text-shape": ({"a": tensor(shape="23")}, 24, "must be lists of counts"),
    "null-shape": ({"a": tensor(shape=None)}, 24, "must be lists of counts"),
    "huge-shape": ({"a": tensor(shape=(2**61, 2**61))}, 24, "data_offsets do not agree"),
    "overflowing-shape": ({"a": tensor(shape=(2**63, 1))}, 24, "must be lists of counts"),
    "many-dimensions": ({"a": tensor(shape=[1] * 17, offsets=(0, 4))}, 4, "must be lists of counts"),
    "three-offsets": ({"a": tensor(offsets=(0, 12, 24))}, 24, "must be lists of counts"),
    "missing-key": ({"a": {"dtype": "F32", "shape": [6]}}, 24, "must hold dtype, shape and data_offsets"),
    "extra-key": ({"a": tensor(strides=[1])}, 24, "must hold dtype, shape and data_offsets"),
    "entry-is-a-list": ({"a": [1]}, 24, "must hold dtype, shape and data_offsets"),
    "empty-name": ({"": tensor()}, 24, "empty, too long or unprintable"),
    "zero-byte-in-name": ({"a\0b": tensor()}, 24, "empty, too long or unprintable"),
    "long-name": ({"a" * 513: tensor()}, 24, "empty, too long or unprintable"),
    "duplicate-key": (
        b'{"a": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}, "a": {"dtype":"I32","shape":[6],"data_offsets":[0,24]}}',
        24,
        "a key stands twice",
    ),
    "duplicate-inner-key": (
        b'{"a": {"dtype":"F32","dtype":"I32","shape":[6],"data_offsets":[0,24]}}', 24, "a key stands twice",
    ),
    "no-object": ([1, 2], 0, "is no object"),
    "no-json": (b"{nonsense}", 0, "cannot be read"),
    "no-text": (b"\xff\xfe\xfd\xfc", 0, "cannot be read"),
    "deep": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, 0, "cannot be read"),
    "long-number": (b'{"a": {"dtype":"F32","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,24]}}', 24, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD_HEADERS))
def test_a_bad_header_is_an_error_of_its_own(name: str, tmp_path: Path) -> None:
    header, data, message = BAD_HEADERS[name]
    assert message in refused(write(tmp_path / SINGLE, header, data))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 7, struct.pack("<Q", 100) + b"{}", b"\x80\x02}q\x00." * 3])
def test_a_truncated_or_foreign_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(content)
    assert refused(path) == "the file is truncated or is no safetensors file"


def test_a_header_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / SINGLE, b"{}", 0, length=2**35)
    with path.open("r+b") as file:
        file.truncate(2**35 + 8)  # a hole: it takes no disk
    assert refused(path).startswith(f"the header has {2**35} bytes; at most")


def test_a_length_of_two_to_the_64(tmp_path: Path) -> None:
    assert "truncated" in refused(write(tmp_path / SINGLE, GOOD, length=2**64 - 1))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        (tmp_path / SINGLE).mkdir()
        with pytest.raises(CheckpointError, match="no regular file"):
            read_header(tmp_path / SINGLE)
    else:
        with pytest.raises(CheckpointError, match="cannot read the file: No such file"):
            read_header(tmp_path / SINGLE)


def test_empty_tensors_and_scalars_are_fine(tmp_path: Path) -> None:
    header = {
        "a": tensor(shape=(0, 3), offsets=(0, 0)),
        "b": tensor(shape=[], offsets=(0, 4)),
        "c": tensor("BOOL", [0], (4, 4)),
    }
    found = read_header(write(tmp_path / SINGLE, header, 4))
    assert {name: (item.shape, item.end - item.start) for name, item in found.items()} == {
        "a": ((0, 3), 0),
        "b": ((), 4),
        "c": ((0,), 0),
    }


# Folders ------------------------------------------------------------------------------------------------------------


def shards(folder: Path, weight_map: Any, *files: str, raw: bytes | None = None) -> Path:
    for file in files:
        write(folder / file, {f"in.{file[:1]}": tensor()})
    content = json.dumps({"metadata": {}, "weight_map": weight_map}).encode() if raw is None else raw
    (folder / INDEX).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "file",
    [
        "../other/a.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "a.bin",
        "",
        "a\0.safetensors",
        "a.safetensors\n",
    ],
)
def test_an_index_names_plain_files_only(file: str, tmp_path: Path) -> None:
    assert "is no plain safetensors file name" in refused(shards(tmp_path, {"x": file}))


@pytest.mark.parametrize("value", [3, None, [], {"a": 1}, True])
def test_an_index_with_values_that_are_no_names(value: Any, tmp_path: Path) -> None:
    assert "is no plain safetensors file name" in refused(shards(tmp_path, {"x": value}))


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"in.a": "a.safetensors", "x": "b.safetensors"}, "a.safetensors")
    assert refused(folder) == "the index names b.safetensors, which is missing"


def test_a_tensor_that_no_shard_holds(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"in.a": "a.safetensors", "x": "a.safetensors", "y": "a.safetensors"}, "a.safetensors")
    assert refused(folder) == "the index names 'x' (and 1 more) that no shard holds"


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"in.a": "b.safetensors", "in.b": "b.safetensors"}, "a.safetensors", "b.safetensors")
    assert "that no shard holds" in refused(folder)
    folder = shards(tmp_path, {"in.a": "a.safetensors", "in.c": "b.safetensors"})
    assert refused(folder) == "tensor 'in.b' of b.safetensors is not where the index says"


@pytest.mark.parametrize("raw", [b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": null}', b'{"weight_map": "x"}'])
def test_an_index_without_a_map(raw: bytes, tmp_path: Path) -> None:
    assert refused(shards(tmp_path, None, raw=raw)) in (
        "the index has no weight_map",
        "the JSON of this file is no object",
    )


def test_an_index_that_is_too_large(tmp_path: Path) -> None:
    folder = shards(tmp_path, {})
    with (folder / INDEX).open("r+b") as file:
        file.truncate(2**30)
    assert refused(folder) == "the index is too large"


def test_a_duplicate_key_in_an_index(tmp_path: Path) -> None:
    raw = b'{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'
    assert "a key stands twice" in refused(shards(tmp_path, None, raw=raw))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    assert refused(tmp_path) == f"only pickled weights here ({name}); they can run code and are not read"


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == "no model.safetensors and no index here"


@pytest.mark.parametrize("raw", [b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b'{"a":' * 9999])
def test_a_damaged_config(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_config_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match="too large"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([f"h.{index}.weight" for index in range(250_001)], "it holds 250,001 tensors; at most 250,000 are read"),
        (["a." * 64 + "weight"], "a tensor's name has more than 64 parts"),
        ([f"a.{index}" for index in range(1001)], "the module 'a' has 1,001 tensors; at most 1,000 are read"),
    ],
    ids=["tensors", "parts", "beside"],
)
def test_what_no_model_is(names: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.planning.checkpoint.read_checkpoint_headers", lambda _: dict.fromkeys(names))
    with pytest.raises(CheckpointError) as caught:
        inventory_of_checkpoint(tmp_path, None, {})
    assert caught.value.what == what


def test_an_index_is_checked_where_it_is(tmp_path: Path) -> None:
    check_index(tmp_path)
    check_index(Path("a" * 5000))
    with pytest.raises(CheckpointError, match=r"names b\.safetensors, which is missing"):
        check_index(shards(tmp_path, {"x": "b.safetensors"}))
