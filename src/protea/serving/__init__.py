"""Decoding: the engine of many requests, its paged memory, and ways to choose the next token beyond one draw."""
