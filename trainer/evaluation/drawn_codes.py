"""Pictures that a language model draws as codes, judged without drawing pixels.

The reconstruction head gives the causal embeddings of drawn codes back; stage 1's joint space says how near
they are to the caption (i2t) and to the real picture's codes (i2i), and whether the caption is found by them.
Cosines of two tokenizers come from two joint spaces: compare what they gain over shuffled pairs, or the
retrieval.

Dimensions: I captions, N codes per picture, E joint width.
"""

from torch import Tensor

from tokenizer.contrastive_stage import ContrastiveModel
from tokenizer.seed import SeedModel
from trainer.evaluation.pictures import paired_similarity
from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.tokenizer_retrieval import features_from_codes


def drawn_figures(
    tokenizer: SeedModel, stage1: ContrastiveModel, drawn_IN: Tensor, real_IN: Tensor, texts_IE: Tensor
) -> dict[str, float]:
    """How well drawn codes fit their captions and the real pictures' codes.

    Args:
        tokenizer: whose codes they are.
        stage1: its stage 1.
        drawn_IN: (I, N) int64. A row with a code that the tokenizer lacks counts as the zero feature.
        real_IN: (I, N) int64, of the captions' own pictures.
        texts_IE: normalised caption features of ``stage1``.

    Returns:
        percent for ``R@mean``; 100 x cosine for ``i2i`` and ``i2t``, own and of shuffled pairs.
    """
    is_known_I = (drawn_IN < tokenizer.config.n_embed).all(dim=1)
    drawn_IE = features_from_codes(tokenizer, stage1, drawn_IN.clamp(max=tokenizer.config.n_embed - 1))[:, -1]
    drawn_IE = drawn_IE * is_known_I[:, None]
    real_IE = features_from_codes(tokenizer, stage1, real_IN)[:, -1]
    figures = {
        "unknown codes %": 100 * (1 - is_known_I.double().mean().item()),
        "R@mean": retrieval(drawn_IE, texts_IE)["R@mean"],
    }
    for name, other_IE in (("i2i", real_IE), ("i2t", texts_IE)):
        figures[name] = paired_similarity(drawn_IE, other_IE)
        figures[f"{name} of shuffled pairs"] = paired_similarity(drawn_IE, other_IE.roll(1, 0))
    return figures
