"""What made a folder of token shards: hold a tokenizer against it, and prepare further pictures alike."""

from pipeline.token_dataset import TokenDataset
from tokenizer.preprocess import PreprocessConfig
from tokenizer.seed import SeedTokenizer


def check_tokenizer(dataset: TokenDataset, tokenizer: SeedTokenizer, name: str) -> None:
    """Raise ValueError if the folder's codes are another tokenizer's; ``name`` is what the user called it."""
    made_by = dataset.manifest.fingerprint.components.get("weights")
    if made_by != tokenizer.weights_sha256:
        raise ValueError(
            f"{dataset.folder.url}: its codes were made with weights {str(made_by)[:12]}..., "
            f"the tokenizer {name} has {tokenizer.weights_sha256[:12]}...; give the one that made them "
            "(--tokenizer)"
        )


def preprocess_of(dataset: TokenDataset) -> PreprocessConfig:
    """Filter and colour rule that the folder's pictures were prepared with."""
    made = dataset.manifest.fingerprint.components["preprocessing"]
    return PreprocessConfig(filter=made["filter"], color=made["color"])
