"""Speed, memory and start of models, in processes of their own."""
