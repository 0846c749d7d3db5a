"""One file per weight format; each offers ``matches(path)`` and ``read(path, tokenizer)``.

``tokenizer`` is one that was given; without it the reader looks where its format has one.
"""
