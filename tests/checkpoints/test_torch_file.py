"""The reader of torch files: what it reads, and that a hostile or damaged file only ever gets a UserError."""

import copyreg
import os
import pickle
import re
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch_format as tf
from numpy.lib.stride_tricks import as_strided

from redimnet_jax.checkpoints import torch_file
from redimnet_jax.checkpoints.torch_file import read
from redimnet_jax.errors import UserError

both_savers = pytest.mark.parametrize("save", [tf.save_zip, tf.save_legacy])
both_writers = pytest.mark.parametrize("write", [tf.write_zip, tf.write_legacy])
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


def checkpoint() -> dict[str, Any]:
    state = OrderedDict([("conv.weight", BASE.copy()), ("bn.num_batches_tracked", np.array(7))])
    state._metadata = OrderedDict({"": {"version": 1}})
    return {"state_dict": state, "model_config": {"F": 72, "C": 16, "out": None, "lr": 0.5, "on": True}}


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value.encode()).to_bytes(4, "little") + value.encode()


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return type(one) is type(two) and list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    return type(one) is type(two) and one == two


@both_savers
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_checkpoint(tmp_path, save, protocol):
    assert same(read(save(tmp_path / "a.pt", checkpoint(), protocol)), checkpoint())


@both_savers
@pytest.mark.parametrize("dtype", [*tf.STORAGES])
def test_dtypes(tmp_path, save, dtype):
    array = np.array([0, 1, 0, 1, 1]).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert same(read(save(tmp_path / "a.pt", array)), array)


@both_savers
def test_shapes_and_views(tmp_path, save):
    value = {
        "base": BASE,
        "transposed": BASE.T,
        "row": BASE[1],
        "column": BASE[:, 2],
        "steps": BASE[::2, 1::3],
        "expanded": as_strided(BASE, (5, 6), (0, 4)),
        "scalar": np.array(3.5),
        "empty": np.empty((3, 0, 2), np.float32),
        "parameter": tf.parameter(BASE[0]),
    }
    result = read(save(tmp_path / "a.pt", value))
    assert same(result, value | {"parameter": BASE[0]})
    assert {name: result[name].strides for name in value if name not in ("parameter", "empty")} == {
        name: value[name].strides for name in value if name not in ("parameter", "empty")
    }
    assert result["base"].flags.c_contiguous and result["transposed"].flags.f_contiguous
    assert np.shares_memory(result["base"], result["transposed"])


@both_savers
def test_plain_values(tmp_path, save):
    value = [1, -2, 2**40, 2**70, 1.5, "текст", None, True, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, [], ()]
    value += [np.float64(0.25), np.float32(0.5), np.int64(-3), np.bool_(True), {(1, "a"): 2, 3: 4}]
    assert same(read(save(tmp_path / "a.pt", value)), value)


@both_savers
def test_torch_dtype_and_size(tmp_path, save):
    value = [tf.Global("torch", "float16"), tf.Call(tf.Global("torch", "Size"), ((2, 3),))]
    assert read(save(tmp_path / "a.pt", value)) == [np.dtype("float16"), (2, 3)]


def test_unsigned_dtypes_of_rebuild_tensor_v3(tmp_path):
    root = np.array([1, 65535], np.uint16)
    storage = tf.Storage(root.view(np.uint8))
    arguments = (storage, 0, (2,), (1,), False, OrderedDict(), tf.Global("torch", "uint16"))
    value = tf.Call(tf.Global("torch._utils", "_rebuild_tensor_v3"), arguments)
    assert same(read(tf.save_zip(tmp_path / "a.pt", value)), root)


@pytest.mark.parametrize(("offset", "length", "fits"), [(2, 3, True), (21, 3, True), (22, 3, False), (-1, 3, False)])
def test_legacy_view_of_a_storage(tmp_path, offset, length, fits):
    storage = tf.Storage(BASE.reshape(-1).copy())
    storage.view = ("view", offset, length)
    path = tf.save_legacy(tmp_path / "a.pt", tf.tensor(storage, 1, (2,), (1,)))
    if fits:
        assert same(read(path), BASE.reshape(-1)[offset + 1 : offset + 3])
    else:
        with pytest.raises(UserError, match="a view beyond its end"):
            read(path)


@pytest.mark.parametrize("top", ["archive", "b2-vox2-ft_lm", "a folder"])
def test_any_top_folder_and_extras(tmp_path, top):
    tf.save_zip(tmp_path / "a.pt", BASE)
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("archive", top), old.read(name))
        new.writestr(f"{top}/.data/serialization_id", b"0")
    assert same(read(tmp_path / "b.pt"), BASE)


def test_jax_takes_the_arrays(tmp_path):
    import jax.numpy as jnp

    program, storages = tf.pickled(BASE)
    for pad in range(4):  # an entry may start anywhere in the file
        path = tf.write_zip(tmp_path / "a.pt", program, storages, extra={"x": b"x" * pad})
        np.testing.assert_array_equal(jnp.asarray(read(path)) + 1, BASE + 1)


# What is no checkpoint.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is some text\n", "is not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is not a checkpoint"),
        (b"\n <!DOCTYPE html><html>Not Found</html>", "is a web page"),
        (b'\x08\0\0\0\0\0\0\0{"a": 1}', "is a safetensors file"),
        (pickle.dumps({"a": 1}), "is a plain pickle"),
        (pickle.dumps(os.system), "is a plain pickle"),
        (b"PK\x03\x04 this is no zip", "is damaged or cut short"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in str(error.value) and "\n" not in str(error.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is not a file"):
        read(tmp_path)


def test_other_zip_and_torchscript(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(UserError, match="is a zip file but not a checkpoint"):
        read(tmp_path / "a.docx")
    script = tf.write_zip(
        tmp_path / "a.pt", *tf.pickled(BASE), extra={"code/__torch__.py": b"", "constants.pkl": b""}
    )
    with pytest.raises(UserError, match="is a TorchScript archive"):
        read(script)


def test_big_endian(tmp_path):
    with pytest.raises(UserError, match="big-endian"):
        read(tf.write_zip(tmp_path / "a.pt", *tf.pickled(BASE), extra={"byteorder": b"big"}))
    with pytest.raises(UserError, match="big-endian"):
        read(tf.write_legacy(tmp_path / "a.pt", *tf.pickled(BASE, legacy=True), little_endian=False))


# What is damaged.


@both_savers
def test_truncated_anywhere(tmp_path, save):
    whole = save(tmp_path / "a.pt", checkpoint()).read_bytes()
    assert same(read(tmp_path / "a.pt"), checkpoint())
    for length in range(len(whole)):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        with pytest.raises(UserError):
            read(tmp_path / "a.pt")


@pytest.mark.slow
@both_savers
def test_any_wrong_byte(tmp_path, save):
    whole = save(tmp_path / "a.pt", checkpoint()).read_bytes()
    refused = 0
    for at in range(len(whole)):
        (tmp_path / "a.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            result = read(tmp_path / "a.pt")
        except UserError:
            refused += 1
        else:
            assert save is tf.save_legacy or same(result, checkpoint())  # the zip format has checksums
    assert refused > len(whole) // 4


def test_compressed_entry(tmp_path):
    path = tf.write_zip(tmp_path / "a.pt", *tf.pickled(BASE), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed or encrypted"):
        read(path)


@both_savers
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((25,), (1,), 0),
        ((24,), (1,), 1),
        ((4, 6), (7, 1), 0),
        ((2,), (24,), 0),
        ((1,), (1,), 24),
        ((0,), (1,), 25),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((1,), (1,), -1),
        ((2**62,), (2**62,), 0),
        ((2**62, 0), (1, 1), 0),
        ((2**62,), (0,), 0),
        ((2,), (2**64,), 0),
        ((2**2000,) * 9, (1,) * 9, 0),
        ((1,), (1,), 2**64),
        ((4, 6), (6,), 0),
        ((1,) * 65, (1,) * 65, 0),
        ((2.0,), (1,), 0),
        ((True,), (1,), 0),
        ([4, 6], (6, 1), 0),
        ("ab", (1, 1), 0),
        (None, None, None),
    ],
)
def test_tensor_beyond_its_storage(tmp_path, save, size, stride, offset):
    value = OrderedDict({"layer.weight": tf.tensor(tf.Storage(BASE.reshape(-1).copy()), offset, size, stride)})
    with pytest.raises(UserError, match="near 'layer.weight': (a tensor|.*too big|.*too large)") as error:
        read(save(tmp_path / "a.pt", value))
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@both_savers
@pytest.mark.parametrize("count", [23, 25, 0, -1, 2**60, 2**63, 2**70, 24.0, None])
def test_storage_of_another_length(tmp_path, save, count):
    storage = tf.Storage(BASE.reshape(-1).copy())
    storage.count = count
    with pytest.raises(UserError, match="damaged"):
        read(save(tmp_path / "a.pt", tf.tensor(storage, 0, (0,), (1,))))


@both_savers
def test_storage_that_is_not_there(tmp_path, save):
    storage = tf.Storage(BASE)
    storage.key = "9"
    with pytest.raises(UserError, match="damaged"):
        read(save(tmp_path / "a.pt", tf.tensor(storage, 0, (1,), (1,))))


def test_legacy_storage_without_data(tmp_path):
    program, _ = tf.pickled(BASE, legacy=True)  # read on, it would show whatever the memory held before
    with pytest.raises(UserError, match="list of storages does not match"):
        read(tf.write_legacy(tmp_path / "a.pt", program))


def test_legacy_storage_larger_than_the_file(tmp_path):
    storage = tf.Storage(BASE)
    for storage.count in (10_000, 2**60):
        with pytest.raises(UserError, match="is larger than the file"):
            read(tf.save_legacy(tmp_path / "a.pt", tf.tensor(storage, 0, (1,), (1,))))


def test_legacy_storage_of_two_sizes(tmp_path):
    one, two = tf.Storage(BASE), tf.Storage(BASE)
    two.count = 1000
    with pytest.raises(UserError, match="has two sizes"):
        read(tf.save_legacy(tmp_path / "a.pt", [tf.tensor(part, 0, (1,), (1,)) for part in (one, two)]))


@both_savers
def test_negated_view(tmp_path, save):
    value = tf.tensor(tf.Storage(BASE.reshape(-1).copy()), 0, (1,), (1,))
    value.arguments += ({"neg": True},)
    with pytest.raises(UserError, match="negated"):
        read(save(tmp_path / "a.pt", value))


def test_legacy_storage_count_in_the_data(tmp_path):
    whole = tf.save_legacy(tmp_path / "a.pt", BASE).read_bytes()
    at = len(whole) - BASE.nbytes - 8
    for count in (0, 23, 25, 2**60, 2**63):
        (tmp_path / "a.pt").write_bytes(whole[:at] + count.to_bytes(8, "little") + whole[at + 8 :])
        with pytest.raises(UserError, match="not as long as it should be"):
            read(tmp_path / "a.pt")


# What is hostile: every program below is put where the pickle of a checkpoint belongs.


class Evil:
    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@both_savers
@pytest.mark.parametrize("protocol", [2, 4])  # GLOBAL and STACK_GLOBAL
@pytest.mark.parametrize("where", ["alone", "state dict", "list", "hooks"])
def test_nothing_is_run(tmp_path, save, protocol, where):
    evil = Evil(os.system, f"touch {tmp_path / 'ran'}")
    value: Any = {
        "alone": evil,
        "state dict": {"state_dict": OrderedDict(a=BASE, b=evil)},
        "list": [[evil]],
        "hooks": tf.Call(tf.Global("torch._utils", "_rebuild_parameter"), (BASE, True, evil)),
    }[where]
    with pytest.raises(UserError, match="system'"):
        read(save(tmp_path / "a.pt", value, protocol))
    assert not (tmp_path / "ran").exists()


@both_savers
@pytest.mark.parametrize(
    "value",
    [
        Evil(eval, "1"),
        Evil(exec, "1"),
        Evil(getattr, "a", "upper"),
        Evil(Evil, "a"),
        Evil(bytes, "a", "latin1"),
        Evil(set, [1]),
        Path("a"),
        np.array([1, None]).dtype,
        np.str_("a"),
        np.datetime64("2024-01-01"),
        np.dtype(">f4"),
        b"more bytes than any number has",
    ],
    ids=lambda value: repr(getattr(value, "call", value))[:30],
)
def test_other_globals_are_refused(tmp_path, save, value):
    with pytest.raises(UserError, match="asks for"):
        read(save(tmp_path / "a.pt", {"state_dict": value}))


NAMED = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICT = b"ccollections\nOrderedDict\n"
PROGRAMS = {
    "INST": (b"(" + text("true") + b"ios\nsystem\n.", "instruction"),
    "OBJ": (b"(cos\nsystem\n" + text("true") + b"o.", "os.system"),
    "OBJ of an allowed class": (b"(" + DICT + b"o.", "instruction"),
    "NEWOBJ": (DICT + b")\x81.", "instruction"),
    "NEWOBJ_EX": (DICT + b")}\x92.", "instruction"),
    "EXT1": (b"\x82\xf0.", "instruction"),
    "EXT2": (b"\x83\xf0\0.", "instruction"),
    "EXT4": (b"\x84\xf0\0\0\0.", "instruction"),
    "PERSID": (b"P1\n.", "instruction"),
    "UNICODE of protocol 0": (b"Va\n.", "instruction"),
    "BYTEARRAY8": (b"\x96\xff\xff\xff\xff\xff\0\0\0.", "instruction"),
    "dotted name": (b"ccollections\nOrderedDict.fromkeys\n" + b"]\x85R.", "OrderedDict.fromkeys"),
    "getattr chain": (
        b"cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R.",
        "builtins.getattr",
    ),
    "storage class called": (b"ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
    "number called": (b"K\1)R.", "no function"),
    "called with a number": (DICT + b"K\1R.", "no function"),
    "dict from a list": (DICT + b"]\x85R.", "0 positional arguments"),
    "bare storage class": (b"ctorch\nFloatStorage\n.", "belongs to no tensor"),
    "bare function": (NAMED + b".", "belongs to no tensor"),
    "BUILD on a function": (NAMED + b"}" + text("name") + text("os.system") + b"sb.", "new state"),
    "BUILD on a function's slots": (NAMED + b"N}" + text("__defaults__") + b")s\x86b.", "new state"),
    "BUILD on an allowed class": (DICT + b"N}" + text("update") + b"Ns\x86b.", "new state"),
    "BUILD on a list": (b"]}b.", "new state"),
    "BUILD on a tensor's dtype": (b"ctorch\nfloat32\n(K\3X\1\0\0\0>NNNtb.", "little-endian"),
    "SETITEM on a function": (NAMED + text("a") + b"Ns.", "item assignment"),
    "APPEND on a function": (NAMED + b"Na.", "'append'"),
    "deep tuple as a key": (b"})" + b"\x85" * 300_000 + b"Ns.", "neither text nor number"),
    "list as a key": (b"}]Ns.", "neither text nor number"),
    "odd number of items": (b"}(Nu.", "shorter"),
    "deep lists": (b"]" * 2000 + b"a" * 1999 + b".", "nested deeper"),
    "deep tuple": (b")" + b"\x85" * 300_000 + b".", "nested deeper"),
    "deep tuple as a size": (b"ctorch\nSize\n)" + b"\x85" * 9000 + b"R.", "other than sizes"),
    "deep by sharing": (b"]" + b"q\0]h\0a" * 70 + b".", "nested deeper"),
    "list in itself": (b"]q\0h\0a.", "nested deeper"),
    "stack underflow": (b".", "empty list"),
    "memo underflow": (b"h\5.", "Memo value not found"),
    "persistent number": (b"K\1Q.", "other than a storage"),
    "persistent module": (b"(" + text("module") + b"NNNtQ.", "other than a storage"),
    "persistent storage of no class": (b"(" + text("storage") + b"NX\1\0\0\x000NK\1tQ.", "no known type"),
    "storage with the class of a function": (
        b"(" + text("storage") + DICT + b"X\1\0\0\x000NK\1tQ.",
        "no known type",
    ),
    "tensor without storage": (NAMED + b"(NK\0))Nctorch\nSize\n)tR.", "lacks its storage"),
    "text longer than the file": (b"X\xff\xff\xff\xff.", "EOFError|decode"),
    "bytes longer than the file": (b"B\xff\xff\xff\xff.", "EOFError"),
    "frame longer than the file": (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "empty list|too large"),
    "not utf-8": (b"X\1\0\0\0\xff.", "decode"),
    "protocol 9": (b"\x80\x09N.", "protocol"),
    "endless name": (b"c" + b"a" * 1000, "aaaa|decode"),
    "name with a terminal code": (b"cos\x1b[2J\nsystem\n.", "x1b"),
    "encode with another codec": (
        b"c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R.",
        "bytes other than",
    ),
    "dtype of a deep tuple": (b"cnumpy\ndtype\n)" + b"\x85" * 300_000 + b"\x89\x88\x87R.", "numpy type"),
    "scalar too short": (
        b"cnumpy.core.multiarray\nscalar\nctorch\nfloat64\nC\1a\x86R.",
        "lacks its type or bytes",
    ),
}


@pytest.mark.slow
@both_writers
@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs(tmp_path, write, name):
    program, reason = PROGRAMS[name]
    copyreg.add_extension("os", "system", 0xF0)
    try:
        with pytest.raises(UserError) as error:
            read(write(tmp_path / "a.pt", pickle.PROTO + b"\2" + program))
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert re.search(reason, str(error.value).replace(str(tmp_path), ""))  # the folder has the test's name
    assert str(error.value).isprintable() and len(str(error.value)) < 500 + len(str(tmp_path))
    assert same(read(tf.save_zip(tmp_path / "a.pt", checkpoint())), checkpoint())  # nothing was poisoned


def test_state_of_a_dict_is_left_out(tmp_path):
    value = tf.Call(tf.Global("collections", "OrderedDict"), (), state={"items": None, "_metadata": {}})
    assert vars(read(tf.save_zip(tmp_path / "a.pt", value))) == {}


def test_memo_cannot_fill_the_memory(tmp_path):
    assert read(tf.write_zip(tmp_path / "a.pt", b"\x80\2Nr\xff\xff\xff\xff.")) is None


def test_nesting_up_to_the_limit(tmp_path):
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert read(tf.save_zip(tmp_path / "a.pt", value)) == value
    with pytest.raises(UserError, match="nested deeper than 64"):
        read(tf.save_zip(tmp_path / "a.pt", [value]))


# What would take long or much memory.


SIZE = b"ctorch\nSize\nq\1"
COLLIDING = b"".join(b"\x8a\x20" + (k * ((1 << 61) - 1)).to_bytes(32, "little") + b"N" for k in range(1, 30_000))
PAIRS = b"".join(b"M" + (k % 2**16).to_bytes(2, "little") + b"K\1\x86N" for k in range(2000))
BOMBS = {
    "brackets": (b"]" * 1_000_000 + b".", "more than 600,000 instructions"),
    "doubled lists": (b"]" + b"q\0]h\0ah\0a" * 40 + b".", "more than 1,000,000 values"),
    "doubled dicts": (b"}" + b"q\0}K\1h\0sK\2h\0s" * 40 + b".", "more than 1,000,000 values"),
    "text shared": (b"](" + text("a" * 1_000_000) + b"q\0" + b"h\0" * 1000 + b"e.", "more than 1,000,000 values"),
    "size shared": (b"(" + b"K\1" * 100_000 + b"tq\0" + SIZE + b"h\1h\0\x85R" * 50_000 + b".", "other than sizes"),
    "arguments shared": (b"(" + b"K\1" * 100_000 + b"tq\0" + SIZE + b"h\1h\0R" * 50_000 + b".", "arguments"),
    "keys that collide": (b"}(" + COLLIDING + b"u.", "neither text nor number"),
    "keys that are tuples": (b"}(" + PAIRS + b"u.", "keys that are tuples"),
}


@pytest.mark.slow
@both_writers
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much(tmp_path, write, name):
    program, reason = BOMBS[name]
    start = time.process_time()
    with pytest.raises(UserError, match=reason):
        read(write(tmp_path / "a.pt", b"\x80\2" + program))
    assert time.process_time() - start < 3


@both_savers
@pytest.mark.parametrize("instructions", [b"K\1Ns", b"(K\1Nu"])
def test_items_are_set_in_dicts_alone(tmp_path, save, instructions):
    base = np.zeros(1, np.float32)
    program, storages = tf.pickled(as_strided(base, (1000,), (0,)), legacy=save is tf.save_legacy)
    write = tf.write_legacy if save is tf.save_legacy else tf.write_zip
    with pytest.raises(UserError, match="item assignment is to something other than a dict"):
        read(write(tmp_path / "a.pt", program.removesuffix(b".") + instructions + b".", storages))


@both_savers
def test_a_tensor_that_repeats_its_storage_without_end(tmp_path, save):
    storage = tf.Storage(np.zeros(1, np.float32))
    with pytest.raises(UserError, match="too large for the file that holds it"):
        read(save(tmp_path / "a.pt", tf.tensor(storage, 0, (2**42,), (0,))))
    # Many that are small enough each are not all together.
    many = [tf.tensor(storage, 0, (2**20,), (0,)) for _ in range(20)]
    with pytest.raises(UserError, match="too large for the file that holds it"):
        read(save(tmp_path / "a.pt", many))
    assert len(read(save(tmp_path / "a.pt", many[:3]))) == 3


@pytest.mark.parametrize("part", [1, 2])
def test_nothing_of_the_old_format_is_compared_before_its_type_is_known(tmp_path, part):
    program, _ = tf.pickled(tf.tensor(tf.Storage(np.zeros(1, np.float32)), 0, (2**20,), (0,)), legacy=True)
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    head[part] = program
    (tmp_path / "a.pt").write_bytes(b"".join(head) + bytes(100))
    with pytest.raises(UserError, match="unknown version"):
        read(tmp_path / "a.pt")


def test_zip_entries_that_repeat(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", b"\x80\2N.")
    with pytest.raises(UserError, match="two entries 'archive/data.pkl'"):
        read(tmp_path / "c.pt")


def test_a_directory_of_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "_MAX_ENTRIES", 3)
    with pytest.raises(UserError, match="more than 3 entries"):
        read(tf.save_zip(tmp_path / "a.pt", [BASE.copy() for _ in range(4)]))


@pytest.mark.slow
def test_a_training_state_of_thousands_of_tensors_is_read(tmp_path):
    state = {f"layer{i}.weight": np.zeros(1, np.float32) for i in range(2000)}
    optimizer = {i: {"step": np.array(i), "exp_avg": np.zeros(1, np.float32)} for i in range(2000)}
    found = read(tf.save_zip(tmp_path / "a.pt", {"state_dict": state, "optimizer": {"state": optimizer}}))
    assert len(found["state_dict"]) == 2000 and int(found["optimizer"]["state"][1999]["step"]) == 1999
