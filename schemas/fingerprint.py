"""The fingerprint of a tokenizer: a hash over all that decides the codes.

Token shards with different fingerprints must not be mixed: the same code would mean different things.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from schemas.differences import differences
from schemas.vocabulary import CODEBOOK_SIZE


@dataclass(frozen=True)
class Fingerprint:
    """Named components (weights, architecture, preprocessing, precision, encoder version) and their hash.

    Components are plain JSON values; the hash is over their canonical JSON form.
    """

    components: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("a fingerprint needs at least one component")

    @property
    def hex(self) -> str:
        """First 128 bits of the SHA-256 over the canonical components, as 32 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    @property
    def codebook_hex(self) -> str:
        """Hash of the components that decide what a code *means*: everything but precision and pixels.

        Shards that differ only in precision or preprocessing still share a codebook and may be mixed.
        """
        meaning = {
            name: self.components[name] for name in ("weights", "architecture") if name in self.components
        }
        return Fingerprint(meaning or dict(self.components)).hex

    @property
    def num_codes(self) -> int:
        """Entries of the codebook; 8192 where the tokenizer does not say."""
        architecture = self.components.get("architecture")
        return (
            int(architecture.get("n_embed", CODEBOOK_SIZE))
            if isinstance(architecture, Mapping)
            else CODEBOOK_SIZE
        )

    def to_json(self) -> str:
        return json.dumps(self.components, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(json.loads(text))

    def differences(self, other: "Fingerprint") -> list[str]:
        """One line per component that differs, this one's value first; of nested ones no more than three."""
        return differences(self.components, other.components)
