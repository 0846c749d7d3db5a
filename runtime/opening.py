"""A graph of a model folder opened by ONNX Runtime, as a session of ours wants it."""

from __future__ import annotations

from pathlib import Path

from ..export.errors import ModelFolderError, ProviderError
from ..export.folder import ModelFolder
from ..export.frozen import to_install
from ..export.graph_check.once import checked_graph
from ..export.manifest import INT8_KV_PREFILL
from ..export.memory import is_exhaustion
from ..export.release import release
from ..export.utf8 import utf8
from .cancellation import Cancellation, Cancelled
from .engine import onnxruntime
from .int8_products import options_for
from .largest_first import largest_first
from .process import keep_in_forks
from .providers import CPU, Place, refused, start_obstacle
from .running import call_interruptibly, call_to_stop

# That a thread waits for work, or for another's, before it sleeps. Long enough for the gaps between
# two nodes, as fast as no limit; where another process takes a core, a waiting thread would use up
# its share of it and then be late with its work: see benchmarks/NOTES.md.
SPIN_MICROSECONDS = "15"
ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log
# The kernel of an add with a norm behind it takes 2 to 5 times as long as both (NOTES.md).
KEPT_APART = ("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
# Bytes of weights up to which a graph is open before Ctrl-C could end that: the caller's own thread
# opens it. What another one allocates, glibc keeps in part when it is freed (``returned_memory``).
# That is also why weights are not packed by all threads at once, a fifth sooner: the demo, opened
# by 8 threads and closed 50 times, would have left 42 MB, and so leaves 2.
QUICK_BYTES = 256 << 20
# Where a graph given as bytes has its weights.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def open_graph(
    folder: ModelFolder,
    name: str,
    threads: int,
    place: Place,
    graph: bytes | None = None,
    stopping: Cancellation | None = None,
) -> onnxruntime.InferenceSession:
    """The graph ``name`` of ``folder`` at ``place``; ``graph`` is opened instead, if given.

    Raises ModelFolderError where it is none that we can have written, or ONNX Runtime refuses it,
    ProviderError where ``place`` cannot be had, Cancelled where ``stopping`` ends it, and ONNX
    Runtime's error where memory runs out.
    """
    stopping = stopping or Cancellation()
    data = checked_graph(folder, name)  # also where other bytes are made of it
    source = graph or _source(folder, name, data)
    options = _options(folder, threads, place)
    if name == INT8_KV_PREFILL:
        # In the order of the file, or the float32 keys and values of all layers would live at once.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if isinstance(source, bytes):
        options.add_session_config_entry(WEIGHTS_FOLDER, _text_of(folder.path))
    places = list(place.providers)

    def open_it() -> onnxruntime.InferenceSession:
        return call_to_stop(
            lambda: onnxruntime.InferenceSession(
                source, options, providers=places, enable_fallback=0
            ),
            stopping.cancel,
        )

    quick = place is CPU and folder.weights_bytes <= QUICK_BYTES
    try:
        with stopping.loading(options):
            session = open_it() if quick else call_interruptibly(open_it, stopping.cancel)
    except Cancelled:
        raise
    except Exception as error:
        if stopping.cancelled:
            raise Cancelled("opening a graph was cancelled") from error
        if place is not CPU:
            raise ProviderError(
                f"provider is {place.name!r}: found {str(error).splitlines()[0]:.300}, expected a "
                "session; free memory on the device, or use the provider cpu"
            ) from error
        if is_exhaustion(error):
            raise
        raise ModelFolderError(
            f"{folder.graph_file(name)}: ONNX Runtime {onnxruntime.__version__} cannot open it "
            f"({str(error).splitlines()[0]:.300}); export the model again"
        ) from error
    if refused(session, place):
        raise start_obstacle().error()
    keep_in_forks(session)
    return session


def _source(folder: ModelFolder, name: str, data: bytes) -> bytes | str:
    """The graph: ``data``, the bytes that were checked, or where its file is."""
    # Links, as in a cache of downloads, are followed from the file alone: the weights lie where it
    # does in truth, by other names.
    if any((folder.path / file).is_symlink() for file in folder.data_bytes(name)):
        return _text_of(folder.graph_file(name))
    return largest_first(data)


def _text_of(path: Path) -> str:
    text = utf8(str(path))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelFolderError(
            f"{path}: found bytes that are not UTF-8 in the path, expected text, which ONNX "
            "Runtime can open; rename the folder"
        ) from error
    return text


def check_version(folder: ModelFolder) -> None:
    """Refuses a folder whose graph needs a newer ONNX Runtime than the one installed."""
    needed = folder.manifest.minimum_onnxruntime or "0"
    # Major and minor decide.
    if release(onnxruntime.__version__)[:2] < release(needed)[:2]:
        raise ModelFolderError(
            f"{folder.path}: found ONNX Runtime {onnxruntime.__version__}, expected {needed} or "
            "newer; " + to_install(f'pip install "onnxruntime>={needed}"', "update it")
        )


def _options(folder: ModelFolder, threads: int, place: Place) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes change every step
    # Errors are ours to tell, but why CUDA did not start is in the log alone. Warnings would be of
    # num_logits_to_keep, which has a default on purpose.
    options.log_severity_level = FATAL if place is CPU else ERROR
    # Workers may spin between the nodes of a run, but not between two runs: an idle model is idle.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    options.add_session_config_entry(*KEPT_APART)
    for option, value in options_for(folder.formats).items():
        options.add_session_config_entry(option, value)
    # Not session.set_denormal_as_zero: it would also flush the numbers of the caller's own thread.
    return options
