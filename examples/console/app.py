"""Writes on from a prompt, or answers it; freeze it with: pyinstaller examples/console/app.py"""

import argparse
import os
import sys

import pocketlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--model", default="demo", help="a model folder")
parser.add_argument("--chat", action="store_true", help="the prompt is a message to answer")
parser.add_argument("--max-tokens", type=int, default=64)
arguments = parser.parse_args()

try:
    model = pocketlm.load(arguments.model)
    messages = [{"role": "user", "content": arguments.prompt}]
    prompt = model.chat_prompt(messages) if arguments.chat else arguments.prompt
    for piece in model.stream(prompt, max_tokens=arguments.max_tokens, temperature=0):
        print(piece.text, end="", flush=True)
    print()
except pocketlm.PocketLMError as error:
    sys.exit(f"{parser.prog}: {error}")
except OSError as error:  # nobody reads, or the disk is full
    print(f"{parser.prog}: {error}", file=sys.stderr)
    os._exit(1)  # Python would try again to write what is left
except KeyboardInterrupt:
    sys.exit(130)
