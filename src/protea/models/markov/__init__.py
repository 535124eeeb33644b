"""Hidden Markov models: a chain of hidden states, and a family of what each of them emits."""
