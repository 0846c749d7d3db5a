"""An OpenAI-compatible server on loopback; needs the extra "serve"."""
