"""The GPT whose KV cache is streamed: gpt.py reads from top to bottom and names no device."""
