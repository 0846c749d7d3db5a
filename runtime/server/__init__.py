"""An OpenAI-compatible server on loopback; needs the extra "serve".

A request passes ``connections`` (who is let in), ``endpoint`` (its body), one of the ``endpoints``,
``api`` (what it asks for) and ``models`` (where its texts join those of others); ``call`` answers.
"""
