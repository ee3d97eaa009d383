"""Retrieval by a tokenizer: from its causal embeddings, from its codes, and by each query alone.

The joint space is stage 1's: its text branch and projections. From codes means the causal embeddings that the
reconstruction head gives back, so the loss against the embeddings is what quantisation costs.

Dimensions: I pictures, N queries, E joint width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.caption_tokenizer import CaptionTokenizer
from tokenizer.contrastive_stage import ContrastiveModel
from tokenizer.seed import SeedModel
from trainer.contrastive_run import pair_features
from trainer.evaluation.codes import encode_all
from trainer.evaluation.retrieval import retrieval, retrieval_by_query, rise_by_query
from trainer.stage_data import HeldOut

BATCH = 64


@torch.inference_mode()
def features_from_codes(model: SeedModel, stage1: ContrastiveModel, codes_IN: Tensor) -> Tensor:
    """(I, N) codes -> (I, N, E) normalised features of the reconstructed embeddings, on the CPU."""
    device = model.codebook.weight.device
    parts = []
    for codes_BN in codes_IN.split(BATCH):
        recon = model.causal_embeddings(codes_BN.to(device))
        parts.append(F.normalize(stage1.vision_proj(recon).float(), dim=-1).cpu())
    return torch.cat(parts)


def tokenizer_retrieval(
    model: SeedModel, stage1: ContrastiveModel, captions: CaptionTokenizer, pairs: HeldOut
) -> dict[str, Mapping[str, float]]:
    """Tables by name: from embeddings, from codes, and R@mean by query for both."""
    images_INE, texts_IE = pair_features(stage1, captions, pairs)
    from_codes_INE = features_from_codes(model, stage1, encode_all(model, pairs.images))
    by_query = retrieval_by_query(images_INE, texts_IE)
    by_query_codes = retrieval_by_query(from_codes_INE, texts_IE)
    return {
        "retrieval from causal embeddings (last query)": retrieval(images_INE[:, -1], texts_IE),
        "retrieval from codes (last query)": retrieval(from_codes_INE[:, -1], texts_IE),
        "R@mean by query, causal embeddings": {str(index): value for index, value in by_query.items()},
        "R@mean by query, from codes": {str(index): value for index, value in by_query_codes.items()},
        "R@mean against query index, causal embeddings": rise_by_query(images_INE, texts_IE),
        "R@mean against query index, from codes": rise_by_query(from_codes_INE, texts_IE),
    }
