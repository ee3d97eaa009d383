"""The SEED image tokenizer: preprocessing, model, checkpoints, de-tokenizer. Imports ``schemas`` only."""
