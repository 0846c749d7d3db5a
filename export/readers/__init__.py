"""One file per weight format; each offers ``matches(path)`` and ``read(path) -> Checkpoint``."""
