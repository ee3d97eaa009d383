"""Configuration of a tokenization job, the same for every kind of input."""

from dataclasses import dataclass

from pipeline.finish_document import OnBadImage
from pipeline.worker_tools import NULL_TOKENIZER, EncoderConfig
from tokenizer.color import ColorRule
from tokenizer.preprocess import PreprocessConfig
from tokenizer.resize import Filter

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Settings of one run; every one is a flag, and a key of the file given with --config."""

    input: tuple[str, ...]
    """Source shards: files, globs, {00000..00099}, directories, @list files, URLs (s3://, gs://, https://)."""
    output: str
    """Folder for the token shards: a local path or a URL (s3://bucket/folder)."""

    tokenizer: str = "sample"
    """seed-2 (the released model), sample (a small one), a path or hub id; null only hashes pixels."""
    precision: str = "fp32"
    """fp32, bf16 or fp16, of the image encoder and the Q-Former."""
    compiled: bool = False
    """Compile the model with torch.compile: minutes at the start of each worker, part of the fingerprint."""
    filter: Filter = "bicubic"
    """How pictures are resized: bicubic as the release's processor, bilinear as its bulk script."""
    color: ColorRule = "reference"
    """reference: as the release; clean: alpha on white, 16 bit scaled, ICC to sRGB, EXIF rotation."""
    max_pixels: int = PreprocessConfig.max_pixels
    """Pictures with more pixels are quarantined."""
    min_side: int = PreprocessConfig.min_side
    """Pictures with a shorter side are quarantined."""
    max_aspect_ratio: float = PreprocessConfig.max_aspect_ratio
    """Pictures whose longer side is more than so many times the shorter are quarantined; 0: none."""
    on_bad_image: OnBadImage = "drop-document"
    """What one bad image costs: its document, or only itself."""

    batch_size: int = 32
    """Images the model sees at a time; it never changes the codes of an image."""
    num_actors: int | None = None
    """Workers; those without a place wait for nodes, which an autoscaler starts. Left out: one per GPU of the
    cluster, or per four CPUs where it has none. 0: without Ray."""
    gpus_per_actor: float | None = None
    """GPUs, or share of one, that a worker needs; left out: 1 where the cluster has GPUs already, else 0."""
    cpus_per_actor: float | None = None
    """CPUs that a worker claims; left out: 1 beside a GPU, else 4, or what the nodes that are there have."""
    decode_workers: int | None = None
    """Decoding processes of a worker; left out: as many as it has cores."""
    shards_in_flight: int = 2
    """Source shards that a worker has in hand at a time."""
    decode_timeout: float = 30.0
    """Seconds that decoding one image or clip may take; it is refused when two attempts took longer."""

    max_attempts: int = 3
    """Attempts after which a source shard is set aside."""
    stall_timeout: float = 600.0
    """Seconds without progress after which a worker is replaced."""
    limit: int | None = None
    """Take no more than so many source shards: the first of the input."""
    overwrite: bool = False
    """Do everything again, also the shards that are done."""
    retry_failed: bool = False
    """Also try the shards again that were set aside, not only those that are missing."""
    strict: bool = False
    """Exit non-zero when a source shard was damaged and only a part of it could be read."""
    dry_run: bool = False
    """Print what would be done; write and download nothing."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError("--input: give at least one file, glob, directory or URL of tar shards")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("batch_size", "shards_in_flight", "max_attempts"):
            self._check_at_least(name, 1)
        for name in ("num_actors", "gpus_per_actor", "decode_workers"):
            self._check_at_least(name, 0)
        self._check_at_least("limit", 1)
        for name in ("decode_timeout", "stall_timeout", "cpus_per_actor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if self.overwrite and self.retry_failed:
            raise ValueError(
                "--overwrite and --retry-failed exclude each other: one redoes all, one the failed"
            )
        _ = self.preprocess  # checks its values

    def _check_at_least(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")

    @property
    def preprocess(self) -> PreprocessConfig:
        """How pictures are prepared. Raises ValueError."""
        return PreprocessConfig(
            filter=self.filter,
            color=self.color,
            max_pixels=self.max_pixels,
            min_side=self.min_side,
            max_aspect_ratio=self.max_aspect_ratio,
        )

    def encoder(self, device: str) -> EncoderConfig:
        """The tokenizer on a device."""
        return EncoderConfig(
            tokenizer=self.tokenizer,
            precision="fp32" if self.tokenizer == NULL_TOKENIZER else self.precision,
            batch_size=self.batch_size,
            device=device,
            compiled=self.compiled and self.tokenizer != NULL_TOKENIZER,
            preprocess=self.preprocess,
        )
