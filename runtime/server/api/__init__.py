"""What clients send, what it asks for, and what they get."""
