"""One file per number format: byte layout, ``pack`` and its inverse ``unpack``, and the node it feeds."""
