"""A model folder of which something is opened later, when it may be another."""

from __future__ import annotations

from ..export.errors import ModelFolderError
from ..export.folder import ModelFolder
from ..export.verified import file_identity


class KeptFolder:
    """The files of the graph ``name``, as they are now.

    folder      where they lie, whatever becomes the working directory
    """

    def __init__(self, folder: ModelFolder, name: str) -> None:
        self.folder = folder.anchored()
        self._names = [folder.graph(name).file, *folder.data_bytes(name)]
        self._identities = self._look()

    def check(self) -> None:
        """Raises ModelFolderError if they are others.

        Nothing is read unless they were touched: a copy of the same bytes is as good.
        """
        found = self._look()
        if found is not None and found == self._identities:
            return
        try:
            self.folder.verify(remembered=False)
        except ModelFolderError as error:
            raise ModelFolderError(
                f"{self.folder.path}: the files were changed since the model was opened, expected "
                "the same for the weights for prompts, which are opened when they are asked for; "
                f"load it again ({error})"
            ) from error

    def _look(self) -> list[str] | None:
        try:
            return [
                file_identity(self.folder.path / name, self.folder.files[name].sha256)
                for name in self._names
            ]
        except OSError:
            return None
