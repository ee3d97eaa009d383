"""A packed-sequence LLaMA trainer on PyTorch's own parallelism. Needs no vision model."""
