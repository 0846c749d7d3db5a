"""GGUF, llama.cpp's file of weights, configuration and tokenizer: what ``readers/gguf`` is made of.

``header`` reads and checks the file, ``tensors`` its values, ``families`` makes a config.json and
Hugging Face's names of them, ``tokenizer`` a tokenizer.json.
"""
