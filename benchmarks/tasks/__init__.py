"""Multiple-choice and last-word tasks over JSONL."""
