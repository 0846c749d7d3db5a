"""Runs before the program of a frozen application: no telemetry, and the process of templates.

ONNX Runtime asks for the variable when it is first imported, which a program may do before it
imports pocketlm. The process in which chat templates run is the application's own executable: what
is started as such serves templates, and never comes to the program and its windows.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if sys.argv[1:2] == ["--pocketlm-template-worker"]:
    import json

    from pocketlm.runtime.template_worker import serve

    serve(*json.loads(sys.argv[2]))
    sys.exit()
