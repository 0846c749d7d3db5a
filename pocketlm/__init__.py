"""pocketlm: GPT-2, Llama and their kin on an ordinary CPU."""
