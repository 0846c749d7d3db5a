"""Whether a graph is one that we can have written, asked before anything else opens it.

    check_graph(folder)        # graph.py: the whole question, for a graph of a model folder

``onnx_file`` reads the file, ``facts`` says what is known of a value, ``operators`` which nodes
there may be, and ``plain`` and ``microsoft`` what each makes of its inputs. Lean: the standard
library and nothing else, since the runtime asks without the onnx package.
"""
