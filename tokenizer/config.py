"""Every dimension and constant of a SEED tokenizer, in the form of the ``config.json`` beside its weights.

The released checkpoint carries no configuration: ``config_from_shapes`` reads it off the tensors. Head counts
leave no trace in a shape; they are known for the released widths and must be told for any other.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADS_OF_WIDTH = {1408: 16, 768: 12}
"""EVA ViT-g (head width 88) and BERT-base (head width 64): the released sizes."""
IMAGE_DOWN_WIDTHS = (256, 128, 32)
"""Hidden widths of ``image_down``, literals of the released code."""
GELU_NAME = "gelu (exact erf)"


@dataclass(frozen=True, kw_only=True)
class SeedTokenizerConfig:
    """Architecture of one tokenizer. Defaults are the released SEED-2 model."""

    img_size: int = 224
    patch_size: int = 14
    vit_width: int = 1408
    vit_depth: int = 39
    vit_heads: int = 16
    vit_mlp_hidden: int = 6144
    vit_ln_eps: float = 1e-6
    ln_vision_eps: float = 1e-5
    num_query_token: int = 32
    """Codes per image."""
    bert_hidden: int = 768
    bert_layers: int = 12
    bert_heads: int = 12
    bert_intermediate: int = 3072
    bert_max_position: int = 512
    bert_ln_eps: float = 1e-12
    cross_attention_freq: int = 2
    """Layers whose index is a multiple of this attend to the image."""
    codebook_embed_dim: int = 32
    n_embed: int = 8192
    """Size of the codebook; at most 65,536, since codes are stored as uint16."""
    decode_depth: int = 4
    block_heads: int = 12
    block_mlp_ratio: float = 4.0
    block_ln_eps: float = 1e-6
    image_features_dim: int = 1024
    use_qformer_image: bool = False
    """False: decoder ``image_down`` of the release. True: ``Reverse_Qformer`` of the training code."""
    reverse_layers: int = 4
    """Layers of the Reverse_Qformer: 4 in the training code (ignored without ``use_qformer_image``)."""
    causal: bool = True
    """Causal self-attention over the queries; False is the paper's bilateral variant."""
    beta: float = 0.25
    legacy: bool = True
    """Published weighting of the quantisation loss: ``beta`` on the codebook term, not the commitment."""
    description: str = ""
    """Free text for people; not part of the fingerprint."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"tokenizer config: {field.name} must be a positive integer, got {value!r}")
            if field.type is bool and type(value) is not bool:
                raise ValueError(f"tokenizer config: {field.name} must be true or false, got {value!r}")
            if field.type is float and (type(value) not in (int, float) or not value > 0):
                raise ValueError(f"tokenizer config: {field.name} must be a positive number, got {value!r}")
        self._check_divides("img_size", "patch_size")
        self._check_divides("vit_width", "vit_heads")
        self._check_divides("bert_hidden", "bert_heads")
        self._check_divides("bert_hidden", "block_heads")
        if self.n_embed > 65_536:
            raise ValueError(
                f"tokenizer config: n_embed {self.n_embed} does not fit uint16 codes (at most 65536)"
            )

    def _check_divides(self, whole: str, part: str) -> None:
        if getattr(self, whole) % getattr(self, part):
            raise ValueError(
                f"tokenizer config: {whole} {getattr(self, whole)} is not a multiple of {part} "
                f"{getattr(self, part)}"
            )

    @classmethod
    def _is_float(cls, name: str) -> bool:
        return isinstance(getattr(cls, name), float)

    @property
    def vit_num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.img_size // self.patch_size) ** 2 + 1

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Q-Former layers with cross-attention."""
        return tuple(range(0, self.bert_layers, self.cross_attention_freq))

    @property
    def reverse_cross_layers(self) -> tuple[int, ...]:
        """Layers of the Reverse_Qformer with cross-attention."""
        return tuple(range(0, self.reverse_layers, self.cross_attention_freq))

    @property
    def block_mlp_hidden(self) -> int:
        return int(self.bert_hidden * self.block_mlp_ratio)

    @property
    def distill_in(self) -> int:
        """Input width of ``distill_image_proj``."""
        return self.bert_hidden if self.use_qformer_image else self.num_query_token * IMAGE_DOWN_WIDTHS[-1]

    def _derived(self) -> dict[str, Any]:
        """Entries of ``config.json`` that follow from the fields; written, and checked when read."""
        return {
            "bert_hidden_act": GELU_NAME,
            "distill_in": self.distill_in,
            "dtype": "float32",
            "image_down_dims": [self.bert_hidden, *IMAGE_DOWN_WIDTHS],
            "vit_num_tokens": self.vit_num_tokens,
        }

    def to_dict(self) -> dict[str, Any]:
        """All entries of ``config.json``."""
        return dict(sorted((dataclasses.asdict(self) | self._derived()).items()))

    def architecture(self) -> dict[str, Any]:
        """The entries that decide results: part of the fingerprint."""
        silent = {"description", "beta", "legacy"}
        if not self.use_qformer_image:
            silent.add("reverse_layers")
        return {name: value for name, value in self.to_dict().items() if name not in silent}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], source: str = "config.json") -> "SeedTokenizerConfig":
        """Config from the entries of a ``config.json``; derived entries may be left out.

        Raises:
            ValueError: an entry is unknown, out of range, or contradicts what follows from the others.
        """
        rest = dict(entries)
        ratio = rest.pop("vit_mlp_ratio", None)
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            if ratio is not None and "vit_mlp_hidden" not in rest and "vit_width" in rest:
                rest["vit_mlp_hidden"] = int(rest["vit_width"] * ratio)
            values = {name: rest.pop(name) for name in names & rest.keys()}
            floats = {name: float(v) for name, v in values.items() if cls._is_float(name) and type(v) is int}
            config = cls(**values | floats)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}") from error
        derived = config._derived()
        for name in rest.keys() & derived.keys():
            if rest[name] != derived[name]:
                raise ValueError(
                    f"{source}: {name} is {rest[name]!r}, but the other entries give {derived[name]!r}; "
                    "correct it or leave it out"
                )
        if unknown := sorted(rest.keys() - derived.keys()):
            raise ValueError(
                f"{source}: unknown entries {unknown}; known are {sorted(names | derived.keys())}"
            )
        return config

    @classmethod
    def from_json(cls, path: Path) -> "SeedTokenizerConfig":
        """Config from a file.

        Raises:
            ValueError: not a JSON object, or entries that do not hold.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(entries).__name__}")
        if "model_type" in entries:
            kind = "language model" if "CausalLM" in str(entries.get("architectures")) else "model"
            raise ValueError(
                f"{path.parent}: is a {kind} ({entries['model_type']}), no image tokenizer; give a"
                " preset, or the folder of a tokenizer"
            )
        return cls.from_dict(entries, source=str(path))


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> SeedTokenizerConfig:
    """Configuration of a bare checkpoint, read off its tensor shapes.

    Args:
        shapes: official tensor name -> shape.
        source: where they come from, for error messages.

    Raises:
        ValueError: a tensor that is needed is missing, or a width has no known number of heads.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise ValueError(
                f"{source}: no tensor {name!r} among {len(shapes)}, so this is not a whole SEED tokenizer. "
                "A checkpoint of the published training code holds only what that stage trained: "
                "merge it with the earlier stage and the image encoder first"
            )
        return shapes[name]

    def heads(width: int, field: str) -> int:
        if width not in HEADS_OF_WIDTH:
            raise ValueError(
                f"{source}: no head count is known for width {width} ({field}); give a directory with "
                f"model.safetensors and a config.json that says it"
            )
        return HEADS_OF_WIDTH[width]

    vit_width, _, patch_size, _ = shape("visual_encoder.patch_embed.proj.weight")
    _, num_queries, bert_hidden = shape("query_tokens")
    n_embed, codebook_embed_dim = shape("quantize.embedding.weight")
    use_qformer_image = "reverse_tokens" in shapes
    bert = "Qformer.bert.encoder.layer."
    position_ids = shapes.get("Qformer.bert.embeddings.position_ids", (1, 512))
    return SeedTokenizerConfig(
        img_size=patch_size * math.isqrt(shape("visual_encoder.pos_embed")[1] - 1),
        patch_size=patch_size,
        vit_width=vit_width,
        vit_depth=_depth(shapes, "visual_encoder.blocks."),
        vit_heads=heads(vit_width, "vit_heads"),
        vit_mlp_hidden=shape("visual_encoder.blocks.0.mlp.fc1.weight")[0],
        num_query_token=num_queries,
        bert_hidden=bert_hidden,
        bert_layers=_depth(shapes, bert),
        bert_heads=heads(bert_hidden, "bert_heads"),
        bert_intermediate=shape(f"{bert}0.intermediate_query.dense.weight")[0],
        bert_max_position=position_ids[-1],
        codebook_embed_dim=codebook_embed_dim,
        n_embed=n_embed,
        decode_depth=_depth(shapes, "blocks_image."),
        block_mlp_ratio=shape("blocks_image.0.mlp.fc1.weight")[0] / bert_hidden,
        image_features_dim=shape("distill_image_proj.weight")[0],
        use_qformer_image=use_qformer_image,
        reverse_layers=_depth(shapes, f"Reverse_{bert}") if use_qformer_image else 4,
    )


def _depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Number of layers under a prefix: one more than the largest index."""
    indices = {int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)}
    return max(indices, default=0) + 1
