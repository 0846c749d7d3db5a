"""The same checkpoint through other runtimes, each in an environment of its own, beside ours.

__main__        the command: shapes in, a table out
adapters/       one file per peer: how it converts and generates
requirements/   one file per peer: every package of its environment, with its version
protocol        runs an adapter in the peer's environment, driven by JSON lines
ours            pocketlm as an adapter
reference       our fp32, which judges whether a peer runs the same model
environments    makes the environments
conversions     makes and keeps what a peer needs of a checkpoint
process         a running adapter, from our side
comparison      one checkpoint through all of them
measure         interleaved rounds over all of them
table           the rows
"""
