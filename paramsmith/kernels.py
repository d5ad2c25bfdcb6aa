"""Ahead-of-time compiled block programs: built once in a child process, kept on disk, run without the interpreter.

A program is plain torch on blocks. `torch._inductor` compiles it to one shared library; the library is called through
its C interface by ctypes, which lets go of the interpreter's lock, so workers run side by side, and neither the
compiler nor its memory is ever part of the process that merges. Outputs are buffers passed in.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from paramsmith.errors import Failed, printable

# What the compiler may hold back from fusing: nothing; a block program is one loop over its block.
INDUCTOR = {
    "cpp.threads": 1,
    "realize_reads_threshold": 100_000,
    "realize_opcount_threshold": 100_000,
    "realize_acc_reads_threshold": 100_000,
    "unroll_reductions_threshold": 64,
}
_REASON = re.compile(r"[\w.]*(Error|Exception)\b")
_DTYPES = ("uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")


class Program(Protocol):
    """What runs on a block: inputs first, output buffers last."""

    def __call__(self, *tensors: Tensor) -> object:
        """Fill the output buffers."""
        ...


def compiler_missing() -> str | None:
    """Why nothing can be compiled on this machine; None when it can."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "no C++ compiler on this machine"
    if platform.system() != "Linux":
        return f"compiled kernels are not tried on {platform.system()}"
    return None


def cache_folder() -> Path:
    """The user's own kernel folder, mode 0700; Failed when someone else could write into it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paramsmith" / "kernels"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    mine = root.stat().st_uid == os.getuid()
    if mine:
        root.chmod(0o700)
    if not mine or stat.S_IMODE(root.stat().st_mode) != 0o700:
        raise Failed(f"{root} is not yours alone", "compiled kernels are code: fix its owner, or set --compile never")
    return root


def kernel_path(spec: Mapping[str, object], sources: Sequence[Path]) -> Path:
    """Where the kernel of a program lies: named by what it computes, the code it is made from, torch and processor."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for source in sources:
        digest.update(source.read_bytes())
    about = (torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), json.dumps(INDUCTOR))
    digest.update(repr(about).encode())
    return cache_folder() / f"{digest.hexdigest()[:40]}.so"


def build(specs: Mapping[Path, Mapping[str, object]], builder: str, at_once: int) -> None:
    """Compile what is not there yet, by `at_once` processes `python -m builder` at a time; Failed with their words."""
    waiting = [(path, spec) for path, spec in specs.items() if not path.exists()]
    while waiting:
        batch, waiting = waiting[:at_once], waiting[at_once:]
        children = [(path, _child(builder, path, spec)) for path, spec in batch]
        for path, child in children:
            _, words = child.communicate()
            if child.returncode or not path.exists():
                said = [line for line in words.splitlines() if _REASON.match(line)] or ["no word"]
                raise Failed(f"a kernel could not be compiled: {printable(said[0])}", "--compile never does without")


def _child(builder: str, path: Path, spec: Mapping[str, object]) -> subprocess.Popen[str]:
    environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(path.parent / "inductor"))
    command = [sys.executable, "-m", builder, str(path), json.dumps(spec)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def compile_program(
    program: torch.nn.Module, inputs: Sequence[Tensor], dynamic: Sequence[Mapping[int, object] | None], path: Path
) -> None:
    """Compile a program for these inputs, the named dimensions free, into one library at `path`; put there whole."""
    import zipfile

    from torch._inductor import aoti_compile_and_package

    exported = torch.export.export(program.eval(), tuple(inputs), dynamic_shapes=(tuple(dynamic),))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        package = Path(folder, "kernel.pt2")
        aoti_compile_and_package(exported, package_path=str(package), inductor_configs=dict(INDUCTOR))
        with zipfile.ZipFile(package) as archive:
            library = next(name for name in archive.namelist() if name.endswith(".so"))
            whole = Path(folder, "kernel.so")
            whole.write_bytes(archive.read(library))
        whole.chmod(0o700)
        os.replace(whole, path)


class Kernel:
    """A compiled program: call it with CPU tensors, inputs first, output buffers last, from up to `workers` threads."""

    def __init__(self, path: Path, workers: int) -> None:
        self._torch = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError:
            raise Failed(f"the compiled kernel {path} cannot be loaded", "run again: it is built anew") from None
        self._container = ctypes.c_void_p()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        self._check(create(ctypes.byref(self._container), ctypes.c_size_t(workers), b"cpu", None), path)
        counted = ctypes.c_size_t()
        self._library.AOTInductorModelContainerGetNumOutputs(self._container, ctypes.byref(counted))
        self._outputs = counted.value
        self._library.AOTInductorModelContainerGetNumInputs(self._container, ctypes.byref(counted))
        self._inputs = counted.value
        self._path = path
        # both with their types declared: called for every block
        self._run = self._library.AOTInductorModelContainerRun
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = [pointer, pointer, size, pointer, size, pointer, pointer]
        self._wrap = self._torch.aoti_torch_create_tensor_from_blob
        long, short = ctypes.c_int64, ctypes.c_int32
        self._wrap.argtypes = [pointer, long, pointer, pointer, long, short, short, short, pointer]
        self._sides: dict[torch.Size, tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_int64]]] = {}
        self._free = self._torch.aoti_torch_delete_tensor_object
        self._free.argtypes = [pointer]
        self._codes = {getattr(torch, d): getattr(self._torch, f"aoti_torch_dtype_{d}")() for d in _DTYPES}

    def __call__(self, *tensors: Tensor) -> None:
        """Run on contiguous CPU tensors of the shapes and dtypes the program was compiled for."""
        if len(tensors) != self._inputs:
            raise Failed(f"the compiled kernel {self._path.name} is of another version", "remove the kernel cache")
        handles = (ctypes.c_void_p * len(tensors))()
        for i, tensor in enumerate(tensors):
            handles[i] = self._handle(tensor)  # handed over: the library frees it
        results = (ctypes.c_void_p * max(1, self._outputs))()
        status = self._run(self._container, handles, len(tensors), results, self._outputs, None, None)
        self._check(status, self._path)
        for i in range(self._outputs):  # a changed input comes back as an output too
            self._free(results[i])

    def _handle(self, tensor: Tensor) -> int | None:
        shape = tensor.shape
        sides = self._sides.get(shape)
        if sides is None:
            kind = ctypes.c_int64 * len(shape)
            sides = self._sides[shape] = (kind(*shape), kind(*tensor.stride()))
        handle = ctypes.c_void_p()
        code = self._codes[tensor.dtype]
        status = self._wrap(tensor.data_ptr(), len(shape), *sides, 0, code, 0, 0, ctypes.byref(handle))
        self._check(status, self._path)
        return handle.value

    @staticmethod
    def _check(status: int, path: Path) -> None:
        if status:
            raise Failed(f"the compiled kernel {path.name} failed with status {status}", "set --compile never")
