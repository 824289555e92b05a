"""Write files as `torch.save` does, without PyTorch; `Global` and `Call` stand for the names and calls in a pickle."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np


class Storage:
    """A reference to numbers stored elsewhere in the file, as in PyTorch's pickles."""

    def __init__(self, kind, key, values):
        self.kind, self.key, self.values = kind, key, values


class Global:
    """An object that is pickled as a bare name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """An object that is pickled as the call of a named function."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class TorchPickler(pickle._Pickler):
    """A pickler that writes what `torch.save` writes, without PyTorch."""

    def __init__(self, *args, legacy=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj.values
        pid = ("storage", Global("torch", obj.kind), obj.key, "cpu", obj.values.size)
        return (*pid, None) if self.legacy else pid

    def save_global_name(self, obj):
        self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")

    def reducer_override(self, obj):
        return NotImplemented

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.save_global_name(obj)
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(key, values, kind="FloatStorage", shape=None, strides=None, offset=0):
    storage = Storage(kind, key, values.reshape(-1))
    shape = values.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def dumps(obj, **kwargs):
    buffer = io.BytesIO()
    pickler = TorchPickler(buffer, protocol=2, **kwargs)
    pickler.dump(obj)
    return buffer.getvalue(), pickler.storages


def save_zip(path, obj):
    data, storages = dumps(obj)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def save_legacy(path, obj):
    data, storages = dumps(obj, legacy=True)
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    raw = [struct.pack("<q", values.size) + values.tobytes() for values in storages.values()]
    path.write_bytes(b"".join([*parts, data, pickle.dumps(list(storages), 2), *raw]))


def tensors(tree, kind="FloatStorage"):
    """Replace each array of a tree by a tensor."""
    count = iter(range(10**6))

    def of(value):
        if isinstance(value, np.ndarray):
            kinds = {"f": kind, "i": "LongStorage", "b": "BoolStorage"}
            return tensor(str(next(count)), value, kinds[value.dtype.kind])
        if isinstance(value, dict):
            return {key: of(part) for key, part in value.items()}
        return type(value)(of(part) for part in value) if isinstance(value, (list, tuple)) else value

    return of(tree)
