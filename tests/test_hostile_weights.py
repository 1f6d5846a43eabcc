"""Hostile files of weights run no code, take no memory and no time, and are refused by name."""

import builtins
import collections
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import resnet18

from atesc.inside.archive import (
    MOST_INSTRUCTIONS,
    MOST_PICKLE,
    MOST_TENSORS,
    WeightsError,
    read_pt,
    write_pt,
)
from atesc.inside.errors import AtescError, ConfigError, InputError, MissingData
from atesc.inside.weights import MOST_JSON
from atesc.teachers.networks import SmallVGG, build_network
from atesc.teachers.saved import load_model, save_model

SECONDS, MEGABYTES = 2.0, 200
MOST = MOST_INSTRUCTIONS - 50
CONFIG = {"name": "8 M 8", "num_classes": 4, "batch_norm": True}
STATE = SmallVGG("8 M 8", 4).state_dict()
PICKLES, HEADERS, SETTINGS = {}, {}, {}  # name -> what makes the file, a piece of the sentence


def among(cases, name, text):
    def add(make):
        cases[name] = make, text
        return make

    return add


# ---- pickles, by hand: what pickle.dumps would not write


def whole(number):
    return b"\x8a" + bytes([len(pickle.encode_long(number))]) + pickle.encode_long(number)


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def listed(*parts):
    return b"(" + b"".join(parts) + b"t"


ORDERED = b"ccollections\nOrderedDict\n)R"


def tensor(numel, size, stride, offset=0, kind="FloatStorage", key="0"):
    storage = (
        listed(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), whole(numel))
        + b"Q"
    )
    parts = (
        storage,
        whole(offset),
        listed(*map(whole, size)),
        listed(*map(whole, stride)),
        b"\x89",
        ORDERED,
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + listed(*parts) + b"R"


def state_of(value):  # a state dict whose first weight is `value`
    return b"\x80\x02}" + text("features.0.weight") + value + b"s."


def archive(path, program, numbers=bytes(40), more=(), how=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", how) as made:
        for name, content in (
            ("data.pkl", program),
            ("byteorder", order),
            ("version", b"3\n"),
            ("data/0", numbers),
            *more,
        ):
            made.writestr(f"a/{name}", content)


def refused_pickle(name, text, program, **settings):
    among(PICKLES, name, text)(
        lambda path, canary: archive(
            path, program(canary) if callable(program) else program, **settings
        )
    )


def call(module, function, *given):
    return f"c{module}\n{function}\n".encode() + listed(*map(text, given)) + b"R"


CALLS = {
    "os": ("posix", "system", "touch {}"),
    "os as Python 2 names it": ("os", "system", "touch {}"),
    "eval": ("builtins", "eval", "open('{}', 'w')"),
    "eval as Python 2 names it": ("__builtin__", "eval", "open('{}', 'w')"),
    "exec": ("builtins", "exec", "open('{}', 'w')"),
    "subprocess": ("subprocess", "getoutput", "touch {}"),
    "runpy": ("runpy", "run_path", "{}"),
    "import": ("builtins", "__import__", "{}"),
    "torch.hub": ("torch.hub", "load", "{}"),
    "torch.load": ("torch.serialization", "load", "{}"),
    "torch.load, deep": ("torch", "serialization.load", "{}"),
    "numpy": ("numpy", "fromfile", "{}"),
    "a tensor without a storage": ("torch", "FloatTensor", "{}"),
    "sparse": ("torch._utils", "_rebuild_sparse_tensor", "{}"),
    "quantized": ("torch._utils", "_rebuild_qtensor", "{}"),
    "subclass": ("torch._tensor", "_rebuild_from_type_v2", "{}"),
    "meta": ("torch._utils", "_rebuild_meta_tensor_no_storage", "{}"),
    "encoding": ("_codecs", "encode", "{}"),
}
for name, (module, function, given) in CALLS.items():
    asks = "with other arguments" if name == "encoding" else f"it asks for '{module}.{function}'"
    refused_pickle(
        f"calls {name}",
        asks,
        lambda canary, m=module, f=function, g=given: state_of(call(m, f, g.format(canary))),
    )


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return builtins.open, (self.canary, "w")


class Stated(Payload):
    def __reduce__(self):
        return collections.OrderedDict, (), {"a": Payload(self.canary)}


@among(PICKLES, "a payload of torch.save", "it asks for 'io.open'")
def _(path, canary):
    torch.save({"state_dict": {"features.0.weight": Payload(canary)}}, path)


@among(PICKLES, "a payload in a file of the former save_model", "it asks for 'io.open'")
def _(path, canary):
    torch.save({"network": "SmallVGG", "config": CONFIG, "state": Payload(canary)}, path)


SYSTEM = b"\x80\x04" + text("posix") + text("system") + b"\x93"
refused_pickle(
    "STACK_GLOBAL",
    "the instruction STACK_GLOBAL",
    lambda canary: SYSTEM + listed(text(f"touch {canary}")) + b"R.",
)
refused_pickle(
    "protocol 4", "the instruction", lambda canary: pickle.dumps({"a": Payload(canary)}, 4)
)
refused_pickle(
    "protocol 0", "the instruction", lambda canary: pickle.dumps({"a": nn.Linear(1, 1)}, 0)
)
refused_pickle(
    "INST",
    "the instruction INST",
    lambda canary: b"(" + text(f"touch {canary}") + b"iposix\nsystem\n.",
)
refused_pickle("OBJ", "the instruction OBJ", b"(ccollections\nOrderedDict\no.")
refused_pickle("EXT1", "the instruction EXT1", b"\x80\x02\x82\x01.")
refused_pickle("PERSID", "the instruction PERSID", b"Pstorage\n.")
refused_pickle("NEWOBJ", "the instruction NEWOBJ", b"\x80\x02ccollections\nOrderedDict\n)\x81.")
refused_pickle(
    "BUILD", "it asks for 'io.open'", lambda canary: pickle.dumps({"a": Stated(canary)}, 2)
)
refused_pickle(
    "BUILD of a tensor",
    "the instruction BUILD",
    state_of(tensor(10, [10], [1]) + listed(b"}") + b"b"),
)
refused_pickle(
    "a second pickle in the first",
    "it asks for 'pickle.loads'",
    state_of(call("pickle", "loads", "cposix\nsystem\n.")),
)
refused_pickle("no more", "is not a file of weights", b"\x80\x02}")
refused_pickle("not even a pickle", "is not a file of weights", b"\xff\xff")
refused_pickle("an empty stack", "is not a file of weights", b"\x80\x02.")
refused_pickle("a list", "holds no state dict but a list", b"\x80\x02].")
refused_pickle(
    "a large pickle", f"at most {MOST_PICKLE} are read", b"\x80\x02" + b"N" * MOST_PICKLE + b"."
)
refused_pickle(
    "many instructions",
    "has more than 150000 instructions",
    b"\x80\x02" + b"N" * (MOST_PICKLE - 9) + b".",
)
refused_pickle(
    "deep tuples", "tuples that are nested more than 32 deep", b"\x80\x02N" + b"\x85" * MOST + b"."
)
refused_pickle(
    "deep tuples as a key",
    "tuples that are nested more than 32 deep",
    b"\x80\x02}N" + b"\x85" * MOST + b"Ns.",
)
refused_pickle(
    "deep lists",
    "its data are nested more than 32 deep",
    b"\x80\x02}" + text("a") + b"]" * (MOST // 2) + b"a" * (MOST // 2 - 1) + b"s.",
)
refused_pickle("a tuple as a key", "a key of a dictionary", b"\x80\x02}N\x85Ns.")
refused_pickle(
    "many values",
    "does not say of which network",
    b"\x80\x02}" + text("a") + b"](" + b"}" * MOST + b"es.",
)
refused_pickle(
    "many calls",
    "does not say of which network",
    b"\x80\x02}"
    + text("a")
    + b"](ccollections\nOrderedDict\nq\0"
    + b"h\0)R" * (MOST // 3)
    + b"es.",
)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\nq\0"
    + tensor(10, [10], [1])[len(b"ctorch._utils\n_rebuild_tensor_v2\n") : -1]
    + b"q\1R"
)
for name, count, sentence in (
    ("tensors", MOST_TENSORS - 1, "does not say of which network"),
    ("many tensors", MOST_TENSORS, "or 10000 tensors"),
    ("tens of thousands of tensors", MOST // 3, "or 10000 tensors"),
):
    refused_pickle(
        name, sentence, b"\x80\x02}" + text("a") + b"](" + TENSOR + b"h\0h\1R" * count + b"es."
    )
LAUGHS = (
    b"](]q\0"
    + b"".join(b"](h" + bytes([i, ord("h"), i]) + b"eq" + bytes([i + 1]) for i in range(25))
    + b"e"
)
refused_pickle(
    "lists of one list twice, 25 deep",
    "it has more than 200000 parts",
    b"\x80\x02}" + text("a") + LAUGHS + b"s.",
)
refused_pickle("a key in itself", "a key of a dictionary", b"\x80\x02}q\0h\0h\0s.")
TWINS = (
    b"N" + b"q\0h\0\x86" * 30
)  # a tuple that holds another twice, which holds another twice, ...
STORED = {"key": (b"ctorch\nFloatStorage\n", TWINS), "type": (TWINS, text("0"))}
for part, (kind, key) in STORED.items():
    refused_pickle(
        f"a storage whose {part} is a tuple of 2**30 tuples",
        "names a storage as torch.save does not",
        b"\x80\x02}"
        + text("a")
        + listed(text("storage"), kind, key, text("cpu"), whole(10))
        + b"Qs.",
    )
refused_pickle(
    "a function that is a tuple of 2**30 tuples", "calls a function", b"\x80\x02" + TWINS + b")R."
)
REPEATED = {
    "lists": LAUGHS,
    "tuples": TWINS,
    "texts": b"](" + text("x" * 10**6) + b"q\0" + b"h\0" * 100_000 + b"e",
}
for kind, value in REPEATED.items():  # settings are quoted in messages
    refused_pickle(
        f"settings of repeated {kind}",
        "it has more than 200000 parts or 16777216 letters",
        b"\x80\x02}("
        + text("network")
        + text("SmallVGG")
        + text("state")
        + b"}"
        + text("config")
        + b"}("
        + text("name")
        + value
        + text("num_classes")
        + whole(4)
        + b"uu.",
    )

refused_pickle(
    "10**12 numbers",
    "claims 4000000000000 bytes, 40 are there",
    state_of(tensor(10**12, [10**12], [1])),
)
refused_pickle(
    "more numbers than its entry has",
    "claims 80 bytes, 40 are there",
    state_of(tensor(20, [20], [1])),
)
refused_pickle(
    "fewer numbers than its entry has",
    "claims 20 bytes, 40 are there",
    state_of(tensor(5, [5], [1])),
)
refused_pickle(
    "a negative number of numbers",
    "claims -40 bytes, 40 are there",
    state_of(tensor(-10, [10], [1])),
)
refused_pickle(
    "an entry that is not there",
    "claims 40 bytes, 0 are there",
    state_of(tensor(10, [10], [1], key="7")),
)
refused_pickle(
    "an entry outside",
    "claims 40 bytes, 0 are there",
    state_of(tensor(10, [10], [1], key="../data.pkl")),
)
refused_pickle(
    "an unknown type",
    "it asks for 'torch.Float8Storage'",
    state_of(tensor(10, [10], [1], kind="Float8Storage")),
)
FUNCTION = tensor(10, [10], [1]).replace(b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n")
refused_pickle("a function as a type", "names a storage as torch.save does not", state_of(FUNCTION))
refused_pickle("a size beyond the storage", "storage", state_of(tensor(10, [10**9], [1])))
refused_pickle("a stride beyond the storage", "storage", state_of(tensor(10, [2], [10**9])))
refused_pickle(
    "an offset beyond the storage", "storage", state_of(tensor(10, [10], [1], offset=10**9))
)
refused_pickle(
    "a negative offset", "invalid storage offset", state_of(tensor(10, [2], [1], offset=-4))
)
refused_pickle("a negative size", "overflow", state_of(tensor(10, [-5], [1])))
refused_pickle("a negative stride", "overflow", state_of(tensor(10, [5], [-1])))
refused_pickle("sizes that overflow", "overflow", state_of(tensor(10, [2**40, 2**40], [0, 0])))
refused_pickle("other sizes than strides", "unequal size length", state_of(tensor(10, [2, 2], [1])))
refused_pickle("stride 0", "does not say of which network", state_of(tensor(10, [10**12], [0])))
refused_pickle(
    "big-endian", "its numbers are big-endian", state_of(tensor(10, [10], [1])), order=b"big"
)


# ---- archives


refused_pickle(
    "a deflated entry", "is compressed", state_of(tensor(10, [10], [1])), how=zipfile.ZIP_DEFLATED
)
refused_pickle("an entry with ..", "lies outside of it", b"\x80\x02}.", more=[("../../b", b"")])
refused_pickle("an entry from the root", "lies outside of it", b"\x80\x02}.", more=[("/b", b"")])
refused_pickle(
    "a name twice but for its case",
    "two of them have one name",
    b"\x80\x02}.",
    more=[("DATA.PKL", b"\x80\x02}.")],
)
refused_pickle(
    "constants", "is a TorchScript archive", b"\x80\x02}.", more=[("constants.pkl", b"")]
)
refused_pickle(
    "a large version",
    f"at most {MOST_PICKLE} are read",
    b"\x80\x02}.",
    more=[(".format_version", bytes(MOST_PICKLE + 1))],
)


@among(PICKLES, "data.pkl twice", "two of them have one name")
def _(path, canary):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, b"\x80\x02}.", more=[("data.pkl", pickle.dumps(Payload(canary), 2))])


@among(PICKLES, "300 MB of zeros, deflated", "is compressed")
def _(path, canary):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/data.pkl", state_of(tensor(75 * 2**20, [75 * 2**20], [1])))
        with made.open("a/data/0", "w") as entry:
            for _ in range(300):
                entry.write(bytes(2**20))


def claiming(path, name, size, compressed=None):  # change what the list of entries says of one
    content = bytearray(path.read_bytes())
    at = content.rindex(f"a/{name}".encode()) - 46
    assert content[at : at + 4] == b"PK\1\2"
    content[at + 20 : at + 28] = struct.pack(
        "<II", size if compressed is None else compressed, size
    )
    path.write_bytes(content)


@among(PICKLES, "4 GB by its header", "is not a file of weights that can be read")
def _(path, canary):
    archive(path, state_of(tensor(10, [10], [1])))
    claiming(path, "data/0", 2**32 - 2)


@among(PICKLES, "4 GB of pickle by its header", "the entry 'data.pkl' has 4294967294 bytes")
def _(path, canary):
    archive(path, b"\x80\x02}.")
    claiming(path, "data.pkl", 2**32 - 2)


@among(
    PICKLES,
    "10 GB of a list of entries, in a sparse file",
    "its table of contents exceed 2,097,152 bytes",
)
def _(path, canary):
    archive(path, b"\x80\x02}.")
    size = 10 * 2**30
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**8, 10**8, size, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, size, 1)
    with open(path, "r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(
            end
            + locator
            + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        )


@among(PICKLES, "a comment", "it does not end like a zip archive")
def _(path, canary):
    archive(path, b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as made:
        made.comment = b"PK\5\6"


@among(PICKLES, "something after the end", "it does not end like a zip archive")
def _(path, canary):
    archive(path, b"\x80\x02}.")
    path.write_bytes(path.read_bytes() + b"x")


@among(PICKLES, "half of a file", "it does not end like a zip archive")
def _(path, canary):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@among(PICKLES, "the end alone", "is not a file of weights")
def _(path, canary):
    path.write_bytes(b"PK\5\6" + bytes(18))


@among(PICKLES, "TorchScript", "is a TorchScript archive, which is a program")
def _(path, canary):
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    torch.jit.save(torch.jit.trace(Doubled(), torch.rand(2)), str(path))


@among(PICKLES, "torch before 1.6", "save it again with a current torch")
def _(path, canary):
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


@among(PICKLES, "torch before 1.6, a payload", "save it again with a current torch")
def _(path, canary):
    torch.save({"a": Payload(canary)}, path, _use_new_zipfile_serialization=False)


@among(PICKLES, "a bare pickle", "it does not end like a zip archive")
def _(path, canary):
    path.write_bytes(pickle.dumps(Payload(canary)))


@among(PICKLES, "a text", "it does not end like a zip archive")
def _(path, canary):
    path.write_text("hello")


@among(PICKLES, "empty", "it does not end like a zip archive")
def _(path, canary):
    path.touch()


@among(PICKLES, "a sparse tensor of torch.save", "it asks for")
def _(path, canary):
    torch.save({"a": torch.eye(3).to_sparse()}, path)


@among(PICKLES, "a quantized tensor of torch.save", "it asks for")
def _(path, canary):
    torch.save({"a": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}, path)


@among(PICKLES, "a whole network of torch.save", "it asks for")
def _(path, canary):
    torch.save(SmallVGG("8 M 8", 4), path)


@among(PICKLES, "two state dicts", "save the state dict that is meant alone")
def _(path, canary):
    torch.save({"model": STATE, "state_dict": STATE}, path)


@among(PICKLES, "weights alone", "does not say of which network its weights are: pass model=")
def _(path, canary):
    torch.save(STATE, path)


@among(PICKLES, "a tensor that is none", "'features.0.weight' is no tensor, it is of type float")
def _(path, canary):
    torch.save(
        {"network": "SmallVGG", "config": CONFIG, "state": {**STATE, "features.0.weight": 1.0}},
        path,
    )


# ---- safetensors


def stored(path, header, numbers=b"", length=None):
    table = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(table) if length is None else length) + table + numbers)


def entry(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def refused_header(name, text, header, numbers=b"", length=None):
    among(HEADERS, name, text)(lambda path, canary: stored(path, header, numbers, length))


PARSED = "is not a safetensors file: "
refused_header("header of 2**63", "header claims 9223372036854775808 bytes", {}, length=2**63)
refused_header("header of 2**64 - 1", "header claims", {}, length=2**64 - 1)
refused_header(
    "header beyond the file", "header claims 1000 bytes, at most 2 are accepted", {}, length=1000
)
refused_header(
    "header beyond the limit", "at most 1048576 are accepted", b"{" + b" " * 2**21 + b"}"
)
refused_header("deep JSON", PARSED, b'{"a":' + b"[" * 1_000_000)
refused_header("many names", "it lacks", {str(i): entry([0], 0, 0) for i in range(14_000)})
refused_header("a long name", "it holds 'xxx", {"x" * 900_000: entry([0], 0, 0)})
refused_header("not JSON", PARSED, b"hello")
refused_header("a list", PARSED + "an object is expected", b"[]")
refused_header("not UTF-8", PARSED, b'{"\xff": 1}')
refused_header("NaN as a number", PARSED + "nan is not a finite number", b'{"a": NaN}')
refused_header("overlap", PARSED, {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))
refused_header("the same place", PARSED, {"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8))
refused_header("beyond the end", PARSED, {"a": entry([4], 0, 16)}, bytes(8))
refused_header("end before start", PARSED, {"a": entry([2], 8, 0)}, bytes(8))
refused_header("a hole", PARSED, {"a": entry([2], 8, 16)}, bytes(16))
refused_header("more behind", PARSED, {"a": entry([2], 0, 8)}, bytes(16))
refused_header("shape and bytes", PARSED, {"a": entry([3], 0, 8)}, bytes(8))
refused_header("shape that overflows", PARSED, {"a": entry([2**33, 2**33], 0, 8)}, bytes(8))
refused_header("shape of 2**64", PARSED, {"a": entry([2**64], 0, 8)}, bytes(8))
refused_header("negative shape", PARSED, {"a": entry([-2], 0, 8)}, bytes(8))
refused_header("negative offset", PARSED, {"a": entry([2], -8, 0)}, bytes(8))
refused_header("shape of text", PARSED, {"a": entry("x", 0, 8)}, bytes(8))
refused_header("unknown type", PARSED, {"a": entry([2], 0, 8, "F99")}, bytes(8))
refused_header(
    "a name twice",
    PARSED + "the name 'a' appears twice",
    b'{"a":%s,"a":%s}' % ((json.dumps(entry([2], 0, 8)).encode(),) * 2),
    bytes(8),
)


@among(HEADERS, "many axes", "'features.0.weight' has shape 100000 axes")
def _(path, canary):
    header, at = {}, 0
    for name, value in STATE.items():
        numbers, kind = (
            (1, "F32")
            if name == "features.0.weight"
            else (value.numel(), "I64" if value.dtype == torch.int64 else "F32")
        )
        size = numbers * (8 if kind == "I64" else 4)
        header[name], at = (
            entry(
                [1] * 100_000 if numbers == 1 and kind == "F32" else list(value.shape),
                at,
                at + size,
                kind,
            ),
            at + size,
        )
    stored(path, header, bytes(at))


def changed(name, text, change):
    @among(HEADERS, name, text)
    def _(path, canary):
        state = {
            key: value.clone(memory_format=torch.contiguous_format) for key, value in STATE.items()
        }
        safetensors.torch.save_file(change(state), path)


WEIGHT = "classifier.weight"
changed(
    "NaN",
    "has NaN or infinite weights in 'classifier.weight'",
    lambda state: {**state, WEIGHT: state[WEIGHT] * float("nan")},
)
VARIANCE = "features.1.running_var"
changed(
    "inf",
    f"has NaN or infinite weights in '{VARIANCE}'",
    lambda state: {**state, VARIANCE: torch.full((8,), float("inf"))},
)
changed(
    "finite in 64 bits alone",
    "has NaN or infinite weights",
    lambda state: {**state, WEIGHT: state[WEIGHT].double() + 1e300},
)
for kind in (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
    changed(
        f"{kind}",
        f"'classifier.weight' is {kind}, the network's is torch.float32",
        lambda state, k=kind: {**state, WEIGHT: state[WEIGHT].to(k)},
    )
changed(
    "a missing tensor",
    "it lacks 'classifier.weight'",
    lambda state: {k: v for k, v in state.items() if k != WEIGHT},
)
changed(
    "one more tensor",
    "it holds 'extra', which the network does not have",
    lambda state: {**state, "extra": torch.zeros(1)},
)
changed(
    "a misspelt tensor",
    "Did you mean 'classifier.bias'?",
    lambda state: {k.replace("classifier.b", "clasifier.b"): v for k, v in state.items()},
)
changed(
    "another shape",
    "'classifier.weight' has shape [4, 33], the network's has [4, 32]",
    lambda state: {**state, WEIGHT: torch.zeros(4, 33)},
)
changed("no tensors", "it lacks", lambda state: {})


@among(HEADERS, "half of a file", PARSED)
def _(path, canary):
    safetensors.torch.save_file({"a": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:200])


@among(HEADERS, "a pickle", PARSED)
def _(path, canary):
    path.write_bytes(pickle.dumps(Payload(canary)))


@among(HEADERS, "an archive", PARSED)
def _(path, canary):
    torch.save({"a": Payload(canary)}, path)


@among(HEADERS, "empty", PARSED)
def _(path, canary):
    path.touch()


@among(HEADERS, "10 GB of zeros, in a sparse file", "it lacks")
def _(path, canary):
    size = 10 * 2**30
    stored(path, {"a": entry([size // 4], 0, size)})
    os.truncate(path, path.stat().st_size + size)


@among(HEADERS, "3 TB of zeros, in a sparse file", "")
def _(path, canary):
    size = 3 * 2**40
    stored(path, {"a": entry([size // 4], 0, size)})
    os.truncate(path, path.stat().st_size + size)


# ---- settings


def refused_settings(name, text, content):
    def make(path, canary):
        save_model(SmallVGG("8 M 8", 4), path)
        path.with_suffix(".json").write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )

    among(SETTINGS, name, text)(make)


def settings(**changes):
    return {"network": "SmallVGG", "config": {**CONFIG, **changes}}


UNKNOWN = "holds a SmallVGG of unknown settings: "
refused_settings("not JSON", "is not a configuration in JSON", b"hello")
refused_settings("a list", "is not a configuration in JSON: an object is expected", [])
refused_settings("deep", "is not a configuration in JSON", b"[" * (MOST_JSON - 1))
refused_settings("not UTF-8", "is not a configuration in JSON", b'{"\xff": 1}')
refused_settings(
    "a name twice",
    "the name 'network' appears twice",
    b'{"network": "SmallVGG", "network": "SmallVGG"}',
)
refused_settings("empty", "is not a configuration in JSON", b"")
refused_settings("nothing in it", "does not say of which network", {})
refused_settings(
    "settings of text",
    UNKNOWN + "settings of a network are named",
    {"network": "SmallVGG", "config": "x"},
)
refused_settings(
    "an expression as the network",
    "of unknown settings",
    {"network": "__import__('os').system('touch owned')", "config": {}},
)
refused_settings(
    "an expression as the name",
    UNKNOWN + "unknown network",
    settings(name="__import__('os').system('true')"),
)
refused_settings(
    "an expression as a plan",
    UNKNOWN + "plan must be widths",
    settings(name="__import__('os').system('touch owned')"),
)
refused_settings(
    "an expression as a number",
    UNKNOWN + "NetworkConfig.num_classes takes int",
    settings(num_classes="__import__('os')"),
)
refused_settings(
    "a path as the name", UNKNOWN + "unknown network", settings(name="../../etc/passwd")
)
refused_settings("an unknown network", UNKNOWN + "unknown network 'vgg12'", settings(name="vgg12"))
refused_settings(
    "an unknown setting",
    UNKNOWN + "unknown setting of a network 'trust_remote_code'",
    settings(trust_remote_code=True),
)
refused_settings("a seed", UNKNOWN + "unknown setting of a network 'seed'", settings(seed=2**70))
refused_settings(
    "a missing setting",
    UNKNOWN + "the setting num_classes is missing",
    {"network": "SmallVGG", "config": {"name": "8 M 8"}},
)
refused_settings(
    "a plan of a width of 10**9",
    UNKNOWN + "plan takes at most 64 steps",
    settings(name="8 M 1000000000"),
)
refused_settings(
    "a plan of 5000 digits", UNKNOWN + "plan takes at most 64 steps", settings(name="9" * 5000)
)
refused_settings(
    "a plan of 10**4 layers", UNKNOWN + "plan takes at most 64 steps", settings(name="8 " * 10_000)
)
refused_settings("a plan of width 0", UNKNOWN + "plan takes at most", settings(name="0 M 8"))
refused_settings("a plan of other digits", UNKNOWN + "unknown network", settings(name="\u00b2"))
refused_settings(
    "a plan with other digits", UNKNOWN + "plan must be widths", settings(name="8 \u0662")
)
refused_settings("a plan of pools", UNKNOWN + "plan must be widths", settings(name="M M"))
refused_settings("a long name", UNKNOWN + "unknown network 'xxx", settings(name="x" * 60_000))
refused_settings(
    "ten thousand settings",
    UNKNOWN + "unknown setting",
    settings(**{f"a{i}": 1 for i in range(4000)}),
)
for width in (1e308, -1, 0, 17):
    refused_settings(
        f"width {width}", UNKNOWN + "width must be 0.015625 to 16", settings(width=width)
    )
for width in (float("nan"), float("inf"), -float("inf")):
    refused_settings(f"width {width}", "is not a configuration in JSON", settings(width=width))
refused_settings(
    "width 1e999",
    "is not a configuration in JSON: inf is not a finite number",
    b'{"network": "SmallVGG", "config": {"name": "8 M 8", "num_classes": 4, "width": 1e999}}',
)
refused_settings("width of text", UNKNOWN + "NetworkConfig.width takes float", settings(width="x"))
refused_settings(
    "batch_norm of text", UNKNOWN + "NetworkConfig.batch_norm takes bool", settings(batch_norm="x")
)
for classes in (2**70, 10**9, 0, -1, 1):
    refused_settings(
        f"num_classes {classes}",
        UNKNOWN + "num_classes must be 2 to 65536",
        settings(num_classes=classes),
    )
for classes in (True, 4.0, None, [4]):
    refused_settings(
        f"num_classes {classes}",
        UNKNOWN + "NetworkConfig.num_classes takes int",
        settings(num_classes=classes),
    )
refused_settings(
    "a trillion weights", "does not fit: ", settings(name="8192 " * 64, num_classes=65_536)
)
refused_settings(
    "another network",
    "does not fit: ",
    {"network": "DeepVGG", "config": {"name": "vgg11", "num_classes": 4, "width": 0.125}},
)


@among(SETTINGS, "1 GB, in a sparse file", f"at most {MOST_JSON} are read")
def _(path, canary):
    save_model(SmallVGG("8 M 8", 4), path)
    os.truncate(path.with_suffix(".json"), 2**30)


@among(
    SETTINGS,
    "6 GB of weights that fit, in a sparse file",
    "weights, at most 268435456 are built from a file",
)
def _(path, canary):
    config = {"name": "8192 " * 4, "num_classes": 4, "batch_norm": False}
    with torch.device("meta"):
        state = build_network(**config).state_dict()
    header, at = {}, 0
    for name, value in state.items():
        header[name] = entry(list(value.shape), at, at + 4 * value.numel())
        at += 4 * value.numel()
    stored(path, header)
    os.truncate(path, path.stat().st_size + at)
    path.with_suffix(".json").write_text(json.dumps({"network": "SmallVGG", "config": config}))


@among(SETTINGS, "a folder", "is a folder, not a file")
def _(path, canary):
    save_model(SmallVGG("8 M 8", 4), path)
    path.with_suffix(".json").unlink()
    path.with_suffix(".json").mkdir()


# ---- what must come of each


def peak():
    """Most memory that this process has held since `forget_peak`, MB."""
    return (
        int(next(row for row in open("/proc/self/status") if row.startswith("VmHWM")).split()[1])
        / 1024
    )


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


MEASURED = os.access("/proc/self/clear_refs", os.W_OK)  # on Linux
TIMES = {}


@pytest.fixture(scope="module", autouse=True)
def slowest():
    yield
    for name, seconds in sorted(TIMES.items(), key=lambda pair: -pair[1])[:3]:
        print(f"\n{1000 * seconds:.0f} ms: {name}", end="")


@pytest.fixture
def refused(tmp_path, request):
    """Load a file that must be refused; returns the sentence."""
    canary = tmp_path / "canary"
    save_model(SmallVGG("8 M 8", 4), tmp_path / "warm.safetensors")
    load_model(tmp_path / "warm.safetensors")  # what is imported on the way is not the file's doing

    def check(path, make, load, harmless=False):
        if not path.exists():
            make(path, canary)
        if MEASURED:
            forget_peak()
            before = peak()
        start, worked, message = time.perf_counter(), time.process_time(), "loaded"
        try:
            load(path)
        except AtescError as error:
            message = str(error)
        waited, seconds = time.perf_counter() - start, time.process_time() - worked
        TIMES[f"{request.node.name}, {load.__name__}"] = seconds
        assert not canary.exists(), "it ran code"
        assert seconds < SECONDS and waited < 10 * SECONDS, (
            "of work, and on a machine that has other work as well"
        )
        if MEASURED:
            assert peak() - before < MEGABYTES
        assert harmless or message != "loaded"
        assert (
            message == "loaded"
            or path.stem in message
            and "\n" not in message
            and len(message) < 1000 + len(str(path))
        ), message
        return message

    return check


def into_a_model(path):
    model = SmallVGG("8 M 8", 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        return load_model(path, model)
    finally:
        assert all(
            torch.equal(value, before[name]) for name, value in model.state_dict().items()
        ), "a refused file has changed the network"


HARMLESS = {
    "a list",
    "two state dicts",
    "weights alone",
    "a tensor that is none",
    "many values",
    "many calls",
    "tensors",
}  # plain data


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, refused, tmp_path):
    make, text = PICKLES[name]
    path = tmp_path / "file.pt"
    message = refused(path, make, load_model)
    assert text in message, message
    if name != "weights alone":
        refused(path, make, into_a_model)
    refused(path, make, read_pt, harmless=name in HARMLESS)


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors(name, refused, tmp_path):
    make, text = HEADERS[name]
    path = tmp_path / "file.safetensors"
    message = refused(path, make, into_a_model)
    assert text in message, message
    path.with_suffix(".json").write_text(json.dumps({"network": "SmallVGG", "config": CONFIG}))
    message = refused(path, make, load_model)
    assert text in message, message


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, refused, tmp_path):
    make, text = SETTINGS[name]
    message = refused(tmp_path / "file.safetensors", make, load_model)
    assert text in message, message


@pytest.mark.parametrize("name", ["os", "eval", "exec", "subprocess"])
def test_the_same_pickle_does_run_code(name, tmp_path):
    module, function, given = CALLS[name]
    canary = tmp_path / "canary"
    pickle.loads(state_of(call(module, function, given.format(canary))))
    assert canary.exists()


@pytest.mark.skipif(not MEASURED, reason="needs Linux")
def test_the_yardstick_sees_memory_that_was_given_back():
    forget_peak()
    before = peak()
    bytearray(os.urandom(2**20) * (MEGABYTES + 50))
    assert peak() - before > MEGABYTES


# ---- paths


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_paths_that_are_no_files(ending, tmp_path):
    path = tmp_path / f"file{ending}"
    with pytest.raises(MissingData, match="there is no file .*file"):
        load_model(path)
    path.mkdir()
    with pytest.raises(WeightsError, match="is a folder, not a file"):
        load_model(path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(WeightsError, match="cannot be read: Too many levels of symbolic links"):
        load_model(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="is a device or a pipe, not a file"):
        load_model(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match="is a device or a pipe, not a file"):
        load_model(path)
    with pytest.raises(WeightsError, match="cannot be read: Not a directory"):
        load_model(Path(__file__) / f"file{ending}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = save_model(SmallVGG("8 M 8", 4), tmp_path / "file.safetensors")
    path.chmod(0)
    with pytest.raises(WeightsError, match="cannot be read: Permission denied"):
        load_model(path)


def test_endings(tmp_path):
    model = SmallVGG("8 M 8", 4)
    for name in ("file", "file.pt", "file.bin", "file.safetensors.old"):
        with pytest.raises(ConfigError, match="path must end in .safetensors, got"):
            save_model(model, tmp_path / name)
    for name in ("file", "file.bin", "file.pkl"):
        with pytest.raises(ConfigError, match="path must end in .safetensors, .pt or .pth, got"):
            load_model(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_settings_that_are_missing(tmp_path):
    model = SmallVGG("8 M 8", 4)
    path = save_model(model, tmp_path / "file.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(MissingData, match="file.json is not beside file.safetensors"):
        load_model(path)
    assert same(load_model(path, SmallVGG("8 M 8", 4, seed=1)), model)


# ---- what must still work


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


@pytest.mark.parametrize("name", ["8 M 8", "vgg11", "resnet18"])
def test_round_trip(name, tmp_path):
    network = build_network(name, 4, width=1 / 8, seed=3)
    network(torch.rand(8, 3, 16, 16))
    loaded = load_model(save_model(network, tmp_path / "file.safetensors"))
    assert (
        type(loaded) is type(network)
        and loaded.config == network.config
        and same(loaded, network)
        and not loaded.training
    )
    layouts = [
        [
            value.is_contiguous(memory_format=torch.channels_last)
            for value in n.parameters()
            if value.ndim == 4
        ]
        for n in (network, loaded)
    ]
    assert layouts[0] == layouts[1] and all(layouts[0])


def test_a_network_of_somebody_else(tmp_path):
    network = resnet18(num_classes=4)
    path = save_model(network, tmp_path / "file.safetensors")
    assert same(load_model(path, resnet18(num_classes=4)), network)
    assert (
        safetensors.torch.load_file(path).keys() == network.state_dict().keys()
    )  # others can read it


@pytest.mark.parametrize("ending", [".pt", ".pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state": s, "lr": 0.1},
    ],
)
def test_state_dicts_of_torch(wrap, ending, tmp_path):
    network = build_network("resnet18", 4, width=1 / 8)
    torch.save(wrap(network.state_dict()), tmp_path / f"file{ending}")
    assert same(
        load_model(tmp_path / f"file{ending}", build_network("resnet18", 4, width=1 / 8, seed=1)),
        network,
    )


def test_a_file_of_the_former_save_model(tmp_path):
    network = build_network("vgg11", 4, width=1 / 8)
    torch.save(
        {"network": "DeepVGG", "config": network.config, "state": network.state_dict()},
        tmp_path / "file.pt",
    )
    assert same(load_model(tmp_path / "file.pt"), network)
    other = nn.Linear(2, 3)
    torch.save(
        {"network": "Linear", "config": None, "state": other.state_dict()}, tmp_path / "file.pt"
    )
    assert same(load_model(tmp_path / "file.pt", nn.Linear(2, 3)), other)
    with pytest.raises(WeightsError, match=r"pass model=Linear\(...\)"):
        load_model(tmp_path / "file.pt")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point(kind, tmp_path):
    network = SmallVGG("8 M 8", 4)
    torch.save(
        {
            name: value.to(kind) if value.is_floating_point() else value
            for name, value in network.state_dict().items()
        },
        tmp_path / "file.pt",
    )
    loaded = load_model(tmp_path / "file.pt", SmallVGG("8 M 8", 4, seed=1))
    assert loaded.classifier.weight.dtype == torch.float32
    assert torch.equal(loaded.classifier.weight, network.classifier.weight.to(kind).float())


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_prefix_that_all_names_share(ending, tmp_path):
    network, path = SmallVGG("8 M 8", 4), tmp_path / f"file{ending}"
    wrapped = nn.DataParallel(network)
    save_model(wrapped, path) if ending == ".safetensors" else torch.save(
        wrapped.state_dict(), path
    )
    assert same(load_model(path, SmallVGG("8 M 8", 4, seed=1)), network)


def test_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    network = Tied()
    loaded = load_model(save_model(network, tmp_path / "file.safetensors"), Tied())
    assert same(loaded, network) and loaded.b.weight is loaded.a.weight
    torch.save(network.state_dict(), tmp_path / "file.pt")
    assert same(load_model(tmp_path / "file.pt", Tied()), network)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = save_model(nn.Linear(2, 3), tmp_path / "file.safetensors")
    content = path.read_bytes()
    with pytest.raises(
        InputError, match="'weight' cannot be saved: safetensors has no torch.complex128"
    ):
        save_model(nn.Linear(2, 3, dtype=torch.complex128), path)
    assert path.read_bytes() == content and path.with_suffix(".json").exists()


def test_a_checkpoint_is_copied_out_of_its_file(tmp_path):
    kinds = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float64 complex64".split()
    tree = {
        "dtypes": [torch.ones(3).to(getattr(torch, kind)) for kind in kinds],
        "rng": torch.get_rng_state(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "column": torch.rand(4, 4)[:, 1],
        "plain": {
            "step": 3,
            4: None,
            "list": [1.5, True, False, "é", b"ab", (1, 2, 3, 4), (), 2**40, -(2**70)],
        },
        "optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict(),
        "norm": nn.BatchNorm2d(3).state_dict(),
    }
    path = write_pt(tmp_path / "file.pt", tree)
    again = read_pt(path)
    size = path.stat().st_size
    path.write_bytes(b"\xff" * size)  # in place, as no reader of ours would
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tree["dtypes"], again["dtypes"])
    )
    assert all(
        torch.equal(tree[name], again[name]) for name in ("rng", "empty", "scalar", "column")
    )
    assert (
        again["plain"] == tree["plain"]
        and again["optimizer"] == tree["optimizer"]
        and type(again["norm"]) is collections.OrderedDict
    )


@pytest.mark.parametrize(
    "value",
    [
        {1.5: 1},
        {"a": {1, 2}},
        {"a": torch.eye(2).to_sparse()},
        {"a": Path("x")},
        {"a": nn.Linear(1, 1)},
    ],
)
def test_what_could_not_be_read_is_not_written(value, tmp_path):
    write_pt(tmp_path / "file.pt", {"step": 1})
    with pytest.raises(WeightsError, match="file.pt cannot be written: "):
        write_pt(tmp_path / "file.pt", value)
    assert read_pt(tmp_path / "file.pt") == {"step": 1}
