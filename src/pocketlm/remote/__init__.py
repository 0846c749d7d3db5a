"""A model that runs on a server with OpenAI's API, ours or another, asked over HTTP."""
