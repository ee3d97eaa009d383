"""Small versions of the pictures of a few documents, from the source shards they were made of.

Token shards hold no pixels. Where the source shard can still be read, its documents are read again the way
the job did, and each picture is reduced to a thumbnail.
"""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.shard_task import ShardTask
from pipeline.sources.chat_source import ChatSource
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
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


def find_pictures(
    footer: TokenShardFooter, manifest: DatasetManifest, documents: list[Document], sources: Path | None
) -> dict[str, Pictures]:
    """A JPEG for each image segment of the documents, by key; documents without any are left out."""
    place = _locate(footer.source, sources)
    if place is None or not documents:
        return {}
    wanted = {document.key: document for document in documents}
    found: dict[str, Pictures] = {}
    try:
        for raw in _read(manifest.kind, ShardTask("", place)):
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


def _read(kind: str, task: ShardTask) -> SourceItems:
    """Documents of a source shard; metadata is not wanted, so defaults do."""
    if kind == "chats":
        return ChatSource()(task)
    if kind == "videos":
        return TarSource(documents=read_videos, config=VideosConfig())(task)
    if kind == "interleaved":
        if task.source.endswith(".parquet"):
            raise ValueError("its pictures lie elsewhere")
        return TarSource(documents=read_interleaved, config=InterleavedConfig())(task)
    return TarSource(documents=read_pairs, config=PairsConfig())(task)


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
