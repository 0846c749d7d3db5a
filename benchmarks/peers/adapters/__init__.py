"""One file per peer: how it converts a checkpoint and how it generates; run by ``protocol``.

A file runs in its peer's environment, where pocketlm is not installed, and is imported in ours for
what it declares: so it imports third parties only inside functions, and nothing of pocketlm. It has

    NAME          what the peer is called
    PACKAGE       the distribution whose version is shown
    PRECISIONS    the peer's own name of a precision -> the one of ours that it is compared with
    CALIBRATED    likewise, of those that only real weights gain by; may be left out
    SAME          names of precisions that only run otherwise -> whose conversion they run; may be
                  left out
    BESIDE        other files of ours that it loads, by their paths; may be left out
    convert(checkpoint, out, precision, ours) -> note
                  fills the folder ``out``; ``ours`` is our own model folder in that precision. The
                  note says what a reader of the table has to know, "" for nothing
    Model(folder, precision, threads)
                  opens what ``convert`` wrote
    Model.generate(ids, count) -> tokens
                  the ``count`` greedy tokens after ``ids``, from an empty cache, past end tokens
    Model.settings
                  what it runs with, in a line, for who reads the table; may be left out
    Model.generate_many(prompts, count) -> tokens of each
                  likewise of several prompts at once; left out by one that has no batches
    Model.own_bench(prompt, generation) -> {"seconds": s}
                  what the peer's own benchmark takes for so many tokens; left out without one
    Model.logits(ids) -> (S, V) float32
                  after each of the ids, from an empty cache; left out by one that cannot give them
    Model.bytes_per_token() -> int
                  of weights that a token reads; left out by one that cannot tell
"""
