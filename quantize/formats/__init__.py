"""One file per number format: byte layout, ``pack`` and ``unpack``, the nodes it becomes."""
