"""The paper's evaluations: retrieval, codes, captions, answers, pictures."""
