"""Named model shapes. The vocabulary size is that of the text model; runs widen it by their own layout."""

from trainer.llama import LlamaConfig

PRESETS: dict[str, LlamaConfig] = {
    # Vicuna-7B v1.1 (LLaMA 1): SEED-LLaMA-8B
    "seed-llama-8b": LlamaConfig(norm_eps=1e-6, max_length=2048),
    # LLaMA-2-Chat-13B: SEED-LLaMA-14B
    "seed-llama-14b": LlamaConfig(width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_width=13_824),
    # 1.14 billion parameters with the added ids, the proportions of Llama-3.2-1B
    "1b": LlamaConfig(
        width=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_width=64, mlp_width=8192, rope_theta=5e5
    ),
    # one CPU: the demo and the tests
    "tiny": LlamaConfig(
        width=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_width=32,
        mlp_width=352,
        max_length=1024,
    ),
}
