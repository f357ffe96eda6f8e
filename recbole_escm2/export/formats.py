"""The formats of an artefact: how each is written, and run."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as config

from recbole_escm2.errors import UsageError
from recbole_escm2.export.graph import Graph
from recbole_escm2.extras import require
from recbole_escm2.threads import threads_of

#: The artefact of each format.
FILES = {"onnx": "model.onnx", "torch": "model.pt2", "aoti": "model.pt2"}
#: Where an ONNX graph has tensors that don't fit into the 2 GB of a file of its kind.
DATA_FILE = "model.onnx.data"
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LARGE = 3 << 29  # bytes of tensors

Artefact = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]


def check_format(name: str) -> None:
    """Make sure that a format can be written here.

    Raises:
        UsageError: there is none of that name, or something that it takes isn't installed.
    """
    if name not in FILES:
        raise UsageError(f"--format={name}: there are {', '.join(FILES)}")
    if name == "onnx":
        require("serve", "--format=onnx", _ONNX)
    if name == "aoti" and not _compiler():
        raise UsageError(
            "--format=aoti needs a C++ compiler, which isn't installed: g++ (apt-get install g++), "
            "or name another one in the environment variable CXX"
        )


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


def traced(graph: Graph) -> ExportedProgram:
    """The graph's operations, of any number of rows and of values.

    Raises:
        UsageError: what a model computes depends on values in a way that no graph has.
    """
    sizes = {own.size: Dim.DYNAMIC for own in graph.inputs}
    dynamic = tuple({0: sizes[own.size]} for own in graph.inputs)
    with _quietly(), _sizes_are_free():
        try:
            program = torch.export.export(
                graph,
                graph.example(),
                dynamic_shapes=(dynamic,),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except Exception as error:  # of torch's many kinds
            raise _refused("be traced", error) from error
    return _cleaned(program)


def _sizes_are_free() -> Any:
    """A size of 0 or 1 isn't a case of its own in what is traced."""
    return config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _cleaned(program: ExportedProgram) -> ExportedProgram:
    """Without places of files, and without conditions on sizes: that a size isn't 1, for example,
    which torch writes down where a model has asked for it, though the operations are the same.
    """
    graph = program.graph
    for node in list(graph.nodes):
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def write(name: str, graph: Graph, folder: Path) -> list[str]:
    """Write the artefact of a format into a folder.

    Returns:
        The names of its files, the artefact first.

    Raises:
        UsageError: the model can't be exported so; the message says why.
    """
    program = traced(graph)
    path = folder / FILES[name]
    with _quietly():
        try:
            _WRITERS[name](program, graph, path)
        except (UsageError, OSError):
            raise
        except Exception as error:  # of three libraries' many kinds
            raise _refused(f"be written as {name}", error) from error
    return [path.name, *(own for own in (DATA_FILE,) if (folder / own).is_file())]


def _refused(what: str, error: Exception) -> UsageError:
    """In one line: what torch.onnx says first is a list of its steps, the reason stands last."""
    reasons = re.findall(r"(No ONNX function found for [^>]*>)", str(error))
    said = reasons[0] if reasons else str(error).strip().partition("\n")[0]
    return UsageError(f"the model can't {what} ({type(error).__name__}: {said})")


def _write_onnx(program: ExportedProgram, graph: Graph, path: Path) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _sizes_are_free():
        decomposed = _cleaned(program.run_decompositions(_decompositions()))
    written = torch.onnx.export(
        decomposed,
        dynamo=True,
        verbose=False,
        input_names=[own.name for own in graph.inputs],
        output_names=[f"p{task}" for task in graph.tasks],
        custom_translation_table={torch.ops.prims.view_of.default: _view_of},
    )
    assert written is not None
    size = sum(own.numel() * own.element_size() for own in program.state_dict.values())
    ClearMetadataAndDocStringPass()(written.model)
    written.save(path, external_data=size > _LARGE)


def _write_torch(program: ExportedProgram, graph: Graph, path: Path) -> None:
    whole = io.BytesIO()  # into a file on a full disk, torch ends the process
    torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())


def _write_aoti(program: ExportedProgram, graph: Graph, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


_WRITERS: Mapping[str, Callable[[ExportedProgram, Graph, Path], None]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
    "aoti": _write_aoti,
}


def opened(name: str, folder: Path, graph: Graph) -> Artefact:
    """An artefact, ready to run: from the arrays of its inputs to those of its outputs.

    What is not ONNX can run any code: only what this process has written is opened.

    Args:
        name: of the format.
        folder: of the export.
        graph: that it was made of.

    Raises:
        UsageError: it can't be run.
    """
    path = folder / FILES[name]
    if name == "onnx":
        return _opened_onnx(path, graph)
    with _quietly():
        if name == "torch":
            module: Any = torch.export.load(path).module()
        else:
            from torch._inductor import aoti_load_package

            module = aoti_load_package(str(path))

    @torch.inference_mode()
    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [own.numpy() for own in module(*map(torch.from_numpy, arrays))]

    return run


def _opened_onnx(path: Path, graph: Graph) -> Artefact:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads_of()
    names = [own.name for own in graph.inputs]
    outputs = [f"p{task}" for task in graph.tasks]
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's kinds have no parent but this
        raise UsageError(f"{path} can't be loaded: {error}") from error

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = session.run(outputs, dict(zip(names, arrays, strict=True)))
        except Exception as error:
            raise UsageError(f"{path} can't be run: {error}") from error
        return found

    return run


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what libraries say of their own work."""
    names = ("torch.onnx", "torch.export", "torch._inductor", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [own.level for own in loggers]
    for own in loggers:
        own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for own, level in zip(loggers, levels, strict=True):
            own.setLevel(level)


# --------------------------------------------------------------------------- for ONNX


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """What ONNX has no operation for that is fast, in terms of others."""
    aten = torch.ops.aten
    return {
        **torch.export.default_decompositions(),
        aten.embedding_bag.padding_idx: _embedding_bag,
        aten.embedding_bag.default: _embedding_bag,
        aten.repeat_interleave.self_Tensor: _repeat_interleave,
        aten.sort.stable: _sort,
    }


def _view_of(given: Any) -> Any:
    from onnxscript import opset18

    return opset18.Identity(given)


def _sort(
    given: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    # ONNX has TopK for both: by its definition equal values keep their order.
    sorted_: tuple[Tensor, Tensor] = torch.ops.aten.sort.default(given, dim, descending)
    return sorted_


def _row_of(ends: Tensor, values: int) -> Tensor:
    """In which bag each value is, int64 ``[values]``.

    Args:
        ends: where each bag ends, ``[bags]``.
        values: how many there are.
    """
    ended = torch.zeros(values + 1, dtype=torch.long).scatter_add(0, ends, torch.ones_like(ends))
    return ended.cumsum(0)[:-1]


def _repeat_interleave(
    given: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    assert dim is None  # as Bags has it
    assert output_size is not None
    return given[_row_of(repeats.cumsum(0), output_size)]


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum (mode 0) or mean (1) of the rows of each bag, as torch's kernel."""
    values = indices.shape[0]
    ends = torch.cat([offsets, offsets.new_full((1,), 1) * values])[1:]  # none of no bag
    row = _row_of(ends, values)
    rows = weight[indices]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    size = offsets.shape[0]
    places = row.unsqueeze(1).expand(-1, weight.shape[1])
    pooled = torch.zeros(size, weight.shape[1]).scatter_add(0, places, rows)
    if mode == 1:
        pooled = pooled / (ends - offsets).clamp(min=1).unsqueeze(1).to(pooled)
    return pooled, row, offsets, offsets
