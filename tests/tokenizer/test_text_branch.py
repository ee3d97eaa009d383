"""The text branch is BERT: against transformers' own, with the same weights."""

import torch
from transformers import BertConfig, BertModel

from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel, contrastive_layout
from tokenizer.from_scratch import init_from_scratch
from tokenizer.official_names import split

CONFIG = SeedTokenizerConfig(
    patch_size=56, vit_width=24, vit_depth=1, vit_heads=2, vit_mlp_hidden=24, bert_hidden=24, bert_layers=3,
    bert_heads=3, bert_intermediate=40, bert_max_position=20, block_heads=2,
)  # fmt: skip


def test_text_branch_is_transformers_bert() -> None:
    model = ContrastiveModel(CONFIG, ContrastiveConfig(vocab_size=50, embed_dim=8, dropout=0.0)).eval()
    init_from_scratch(model, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    bert = BertModel(
        BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
            max_position_embeddings=20, layer_norm_eps=CONFIG.bert_ln_eps,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    ours = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim}
    layout = {
        name: parts for name, parts in contrastive_layout(CONFIG).items() if not name.startswith("vit.")
    }
    official = split(ours, layout)
    state = {k.removeprefix("Qformer.bert."): v for k, v in official.items() if k.startswith("Qformer.bert.")}
    missing, _ = bert.load_state_dict(state, strict=False)
    assert missing == ["embeddings.token_type_embeddings.weight"]
    bert.embeddings.token_type_embeddings.weight.data.zero_()
    ids = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(12) < torch.tensor([12, 2, 7, 5])[:, None]
    with torch.no_grad():
        expected = bert(ids, attention_mask=mask.long()).last_hidden_state
        features = model.text_branch(model.qformer, ids, mask)
    torch.testing.assert_close(features[mask], expected[mask], atol=1e-5, rtol=1e-4)
