"""Small versions of the pictures of a few documents, from the source shards they were made of.

Token shards hold no pixels. Where the source shard can still be read, and the folder of pictures that Parquet
and JSON files refer to, its documents are read again the way the job did, and each picture is reduced to a
thumbnail.
"""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.shard_task import ShardTask
from pipeline.sources.chat_source import ChatSource
from pipeline.sources.chats import ChatsConfig
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.obelics_parquet import ObelicsParquetSource
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.records import RawDocument, RawImage, RawVideo, SourceItems
from pipeline.sources.tar_source import TarSource
from pipeline.sources.videos import VideosConfig, read_videos
from pipeline.token_dataset import DatasetManifest
from pipeline.video_container import VideoError
from pipeline.video_frames import FrameSampling, sample_frames
from schemas.document import Document
from schemas.token_shard import TokenShardFooter
from tokenizer.color import reference_pixels
from tokenizer.image_file import PILLOW_PIXEL_LIMIT, ImageError, open_image

logger = logging.getLogger(__name__)
THUMBNAIL_SIZE = (208, 156)
Pictures = tuple[bytes | None, ...]


@dataclass(frozen=True)
class PictureFolders:
    """Where pictures are looked for."""

    sources: Path | None = None
    """Folder of the source shards, if they are not where they were."""
    images: Path | None = None
    """Folder of the pictures that Parquet and JSON files refer to."""


def find_pictures(
    footer: TokenShardFooter, manifest: DatasetManifest, documents: list[Document], folders: PictureFolders
) -> dict[str, Pictures]:
    """A JPEG for each image segment of the documents, by key; documents without any are left out."""
    place = _locate(footer.source, folders.sources)
    if place is None or not documents:
        return {}
    wanted = {document.key: document for document in documents}
    found: dict[str, Pictures] = {}
    try:
        for raw in _read(manifest, ShardTask("", place), folders.images):
            if isinstance(raw, RawDocument) and raw.key in wanted:
                pictures = _pictures(raw, manifest.settings)
                if len(pictures) == len(wanted[raw.key].images):
                    found[raw.key] = pictures
                wanted.pop(raw.key)
                if not wanted:
                    break
    except (OSError, ValueError) as error:
        logger.warning("source=%s pictures cannot be shown: %s", place, error)
    return found


def _locate(source: str, sources: Path | None) -> str | None:
    if "://" in source or Path(source).is_file():
        return source
    moved = sources / Path(source).name if sources else None
    return str(moved) if moved and moved.is_file() else None


def _read(manifest: DatasetManifest, task: ShardTask, images: Path | None) -> SourceItems:
    """Documents of a source shard as the job read them, with the settings that decided rows."""
    settings, bad_image = manifest.settings, {"on_bad_image": manifest.settings["on_bad_image"]}
    if manifest.kind == "chats":
        return ChatSource(config=ChatsConfig(**settings["chats"]), images=images)(task)
    if manifest.kind == "videos":
        return TarSource(documents=read_videos, config=VideosConfig(**settings["videos"]))(task)
    if manifest.kind == "pairs":
        return TarSource(documents=read_pairs, config=PairsConfig(**settings["pairs"]))(task)
    config = InterleavedConfig(**settings["interleaved"])
    if not task.source.lower().endswith(".parquet"):
        return TarSource(documents=partial(read_interleaved, **bad_image), config=config)(task)
    if images is None:
        raise ValueError("the folder of its pictures is not known: give --images")
    return ObelicsParquetSource(images=images, config=config, **bad_image)(task)


def _pictures(raw: RawDocument, settings: Any) -> Pictures:
    """Thumbnails of a document in order; pictures that do not decode have no codes either."""
    return tuple(picture for segment in raw.segments for picture in _of_segment(segment, settings))


def _of_segment(segment: object, settings: Any) -> Iterator[bytes]:
    if isinstance(segment, RawVideo):
        try:
            clip = sample_frames(segment.data, FrameSampling(**settings.get("frames", {})))
        except VideoError:
            return
        for frame in clip.frames:
            yield _thumbnail(Image.fromarray(frame))
    elif isinstance(segment, RawImage):
        try:
            with open_image(segment.data, PILLOW_PIXEL_LIMIT) as image:
                yield _thumbnail(Image.fromarray(reference_pixels(image, segment.data)))
        except ImageError:
            return


def _thumbnail(image: Image.Image) -> bytes:
    image.thumbnail(THUMBNAIL_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72)
    return buffer.getvalue()
