"""The engine behind HTTP, in the protocol of OpenAI's completions and chat completions."""
