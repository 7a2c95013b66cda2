"""vLLM in virtual time: its start-up, memory, scheduling and step times."""
