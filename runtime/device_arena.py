"""The KV cache in the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import ResourceError
from ..export.folder import DecoderShape
from .arena import FIRST_CAPACITY, Arena
from .engine import onnxruntime


class DeviceArena(Arena):
    """``Arena`` as OrtValues in a device's memory, of the type its attention kernel takes.

    Growing and copying take rows through the host. As the capacity doubles, all the copies of a
    row's life together are less than three times its final size: nothing beside the steps that fill
    it. Rows take turns: that a device computes several at once as it does each was never tried.
    """

    together = False

    def __init__(
        self,
        shape: DecoderShape,
        memory: str,
        dtype: type[np.floating[Any]],
        capacity: int = FIRST_CAPACITY,
    ) -> None:
        self._memory = memory
        super().__init__(shape, capacity, dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated there."""
        return sum(buffer.tensor_size_in_bytes() for buffer in self._buffers if buffer is not None)

    def values(self, row: int, length: int) -> list[NDArray[Any]]:
        """As the host's; copies."""
        return [buffer.numpy()[row, :, :length] for buffer in self._buffers]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of a row to another, and the rest through the host."""
        for buffer in self._buffers:
            rows = buffer.numpy()
            rows[target, :, :length] = rows[source, :, :length]
            buffer.update_inplace(rows)

    def fill_row(self, row: int, values: Sequence[NDArray[Any]], length: int) -> None:
        """Puts the first ``length`` tokens of ``values`` into a row, through the host."""
        for buffer, value in zip(self._buffers, values, strict=True):
            rows = buffer.numpy()
            rows[row, :, :length] = value[:, :length]
            buffer.update_inplace(rows)

    def _grown(self, buffer: Any, size: tuple[int, ...]) -> Any:
        # Zeros, since what a device's memory holds may be NaN, or another program's.
        rows = np.zeros(size, self.dtype)
        if buffer is not None:
            self._copy_held(buffer.numpy(), rows)
        try:
            return onnxruntime.OrtValue.ortvalue_from_numpy(rows, self._memory, 0)
        except Exception as error:
            raise ResourceError(
                f"provider is {self._memory!r}: found no memory for a KV cache of {size[2]} tokens "
                f"({str(error).splitlines()[0]:.300}), expected {rows.nbytes} bytes for each of "
                f"{len(self._names)} buffers; shorten the text, or use the provider cpu"
            ) from error

    def _bind_buffer(
        self,
        binding: onnxruntime.IOBinding,
        past: str,
        present: str,
        buffer: Any,
        first: int,
        count: int,
    ) -> None:
        if count == self.num_rows:
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
            return
        shape = [count, *buffer.shape()[1:]]
        place = buffer.data_ptr() + first * buffer.tensor_size_in_bytes() // self.num_rows
        binding.bind_input(past, self._memory, 0, self.dtype, shape, place)
        binding.bind_output(present, self._memory, 0, self.dtype, shape, place)
