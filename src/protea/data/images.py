"""A folder of pictures; sub-folders are classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from protea.data.dataset import Loaded
from protea.errors import DataError
from protea.spaces import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 50_000_000  # a file that unpacks to more is a decompression bomb here
MAX_BYTES = 8 * 2**30  # of all pictures together


def image_files(folder: Path) -> list[Path]:
    """Pictures in a folder and below, by path; hidden files are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: p.relative_to(folder).as_posix())


def load_images(folder: Path, *, size: int | tuple[int, int] | None = None, space: Image | None = None) -> Loaded:
    """Read a folder of PNG, JPEG and WebP files.

    Args:
        folder: pictures, or one sub-folder of pictures for each class.
        size: side, or (height, width). Pictures are cut to that shape around their centre and resampled
            (Lanczos). Without it all must have one size.
        space: a known space to read them in.

    Raises:
        DataError: no pictures; sizes differ; files that cannot be read, by name.
    """
    files = image_files(folder)
    if not files:
        raise DataError(f"The folder {folder} has no pictures ({', '.join(SUFFIXES)}).", "Give a folder of images.")
    sizes, modes = _inspect(files, folder)
    if space is not None:
        shape, channels = (space.height, space.width), space.channels
    else:
        channels = 1 if modes <= {"1", "L", "I;16", "I"} else 3
        if size is not None:
            shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        elif len(sizes) == 1:
            width, height = next(iter(sizes))
            shape = (height, width)
        else:
            common = ", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes.most_common(3))
            (w, h), _ = sizes.most_common(1)[0]
            raise DataError(
                f"The {len(files)} pictures in {folder} have {len(sizes)} sizes: {common} ...",
                f"Resize them on opening: size={min(w, h)} or size=({h}, {w}).",
            )
    need = len(files) * channels * shape[0] * shape[1]
    if min(shape) < 1 or need > MAX_BYTES:
        raise DataError(
            f"{len(files)} pictures of {shape[0]}x{shape[1]} need {need / 2**30:.1f} GiB.", "Choose a smaller size."
        )
    pixels = _read(files, folder, shape, channels)
    classes, labels = _classes(files, folder)
    space = space or Image(channels, *shape, classes=classes)
    if space.classes and classes:
        unknown = sorted(set(classes) - set(space.classes))
        if unknown:
            raise DataError(f"The class {unknown[0]!r} of {folder} is unknown.", f"Known: {', '.join(space.classes)}.")
        labels = torch.tensor([space.classes.index(classes[i]) for i in labels.tolist()])  # type: ignore[union-attr]
    else:
        labels = None
    resized = (
        () if len(sizes) == 1 and next(iter(sizes)) == shape[::-1] else (f"resized to {shape[0]}x{shape[1]} (Lanczos)",)
    )
    if space.levels != 256:
        pixels = np.rint(pixels * ((space.levels - 1) / 255)).astype(np.uint8)
    return Loaded(folder.name, str(folder), space, space.encode(pixels), labels, notes=resized)


def _inspect(files: list[Path], folder: Path) -> tuple[Counter[tuple[int, int]], set[str]]:
    """Sizes and modes from the headers alone; refuses bombs before anything is unpacked."""
    from PIL import Image as Pillow

    sizes: Counter[tuple[int, int]] = Counter()
    modes, bad = set(), {}
    for file in files:
        try:
            with Pillow.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    bad[file] = f"{picture.width}x{picture.height} pixels, a decompression bomb"
                    continue
                turned = picture.getexif().get(0x0112, 1) >= 5  # stored on its side
                width, height = picture.size
                sizes[(height, width) if turned else (width, height)] += 1
                modes.add(picture.mode)
        except Exception as error:  # Pillow raises many kinds for damaged files
            bad[file] = _reason(error)
    _refuse(bad, folder)
    return sizes, modes


def _read(files: list[Path], folder: Path, shape: tuple[int, int], channels: int) -> np.ndarray:
    from PIL import Image as Pillow
    from PIL import ImageOps

    from protea.spaces.image import MODES

    out = np.empty((len(files), *shape, channels), dtype=np.uint8)
    bad = {}
    for i, file in enumerate(files):
        try:
            with Pillow.open(file, formats=("PNG", "JPEG", "WEBP")) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bits: the high byte
                    picture = Pillow.fromarray(
                        (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                    )
                picture = picture.convert(MODES[channels])
                if picture.size != shape[::-1]:
                    picture = ImageOps.fit(picture, (shape[1], shape[0]), Pillow.Resampling.LANCZOS)
                out[i] = np.asarray(picture).reshape(*shape, channels)
        except Exception as error:
            bad[file] = _reason(error)
    _refuse(bad, folder)
    return out


def _reason(error: Exception) -> str:
    return "not a picture" if "cannot identify" in str(error) else str(error) or type(error).__name__


def _refuse(bad: dict[Path, str], folder: Path) -> None:
    if bad:
        said = "; ".join(f"{file.relative_to(folder)} ({why})" for file, why in list(bad.items())[:5])
        raise DataError(f"{len(bad)} files in {folder} cannot be read: {said}.", "Repair or remove them.")


def _classes(files: list[Path], folder: Path) -> tuple[tuple[str, ...], torch.Tensor | None]:
    """The first sub-folder names the class; pictures beside sub-folders mean that there are none."""
    tops = [file.relative_to(folder).parts for file in files]
    if any(len(parts) == 1 for parts in tops):
        return (), None
    names = tuple(sorted({parts[0] for parts in tops}))
    if len(names) < 2:
        return (), None
    place = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([place[parts[0]] for parts in tops])
