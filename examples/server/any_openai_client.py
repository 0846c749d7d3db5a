"""Any program that knows OpenAI's API: nothing in it is pocketlm's.

pocketlm serve
pip install openai && OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python any_openai_client.py
"""

import os
import sys

from openai import OpenAI

prompt = " ".join(sys.argv[1:]) or "It was a dark and stormy night"
# The client wants a key even of a server that asks for none.
client = OpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none"))
models = [model.id for model in client.models.list()]
print(f"{client.base_url} has {', '.join(models)}")

print(prompt, end="", flush=True)
for chunk in client.completions.create(model=models[0], prompt=prompt, max_tokens=60, stream=True):
    print("".join(choice.text for choice in chunk.choices), end="", flush=True)

found = client.completions.create(
    model=models[0], prompt=prompt, max_tokens=1, logprobs=5, temperature=0
)
print("\n\nThe likeliest first words:")
for text, logprob in found.choices[0].logprobs.top_logprobs[0].items():
    print(f"{logprob:8.3f}  {text!r}")
