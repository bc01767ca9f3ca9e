"""Images that rows name: found, opened and decoded before anything is trained on them."""

import os
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from recipe.core.hashing import below, digest
from recipe.intake import columns
from recipe.intake.records import InvalidRecord

NAMES = (
    *("image", "images", "imagepath", "imagefile", "picture", "pic", "photo", "img", "file", "filename", "path"),
    *("图", "图片", "图像", "照片", "图片路径", "图像路径", "图片文件", "图片名", "文件名"),
)
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SMALLEST = 8  # pixels of a side: less is a spacer or a cut file
NARROWEST = 100  # times one side of the other: squared for CLIP, nothing is left of the shorter one


class Images:
    """The images of one intake. `folder`: below which they lie, None for each file's own; `root`: to which `check`
    gives their paths.
    """

    def __init__(self, folder: Optional[Path], root: Path) -> None:
        self.folder, self.root = folder, root
        self.seen: Dict[Path, Union[str, InvalidRecord]] = {}  # path → sha256, or what is wrong with it

    def check(self, name: str, beside: Path) -> Tuple[str, str]:
        """(path below `root`, sha256) of the image that a row of the file `beside` names. Raises InvalidRecord."""
        place = (self.folder or beside.parent) / name
        if not place.is_file() and "\\" in name:  # typed on Windows
            place = (self.folder or beside.parent) / name.replace("\\", "/")
        if place not in self.seen:
            try:
                self.seen[place] = _checked(place)
            except InvalidRecord as wrong:
                self.seen[place] = wrong
        found = self.seen[place]
        if isinstance(found, InvalidRecord):
            raise found
        return os.path.relpath(str(place), str(self.root)), found


def _checked(place: Path) -> str:
    """The sha256 of an image that can be decoded. Raises InvalidRecord."""
    from PIL import Image

    if not place.is_file():
        raise InvalidRecord(f"there is no such file in {place.parent}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(str(place)) as image:
                image.verify()  # checksums; the file must be opened anew behind it
            with Image.open(str(place)) as image:
                image.load()
                width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRecord(
            f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller: CLIP sees 336 × 336 of it"
        )
    except Exception as error:  # decoders raise anything
        said = str(error).strip().replace(str(place), place.name) or type(error).__name__
        raise InvalidRecord(f"it cannot be read as an image ({said.splitlines()[0][:100]})")
    if min(width, height) < SMALLEST or max(width, height) > NARROWEST * min(width, height):
        raise InvalidRecord(f"it has {width} × {height} pixels: nothing of it is left to see when it is made a square")
    return digest(place)


def column(header: Sequence[Any], chosen: str) -> int:
    """The index of the column that names images: `chosen`, else one of the usual names. Raises AmbiguousColumn."""
    wanted = (columns.normalize(chosen),) if chosen else NAMES
    at = [index for index, name in enumerate(header) if columns.normalize(name) in wanted]
    if len(at) == 1:
        return at[0]
    shown = ", ".join(str(name).strip() for name in header if columns.normalize(name))
    if at:
        both = " and ".join(str(header[index]).strip() for index in at)
        raise columns.AmbiguousColumn(
            f"{both} could both name the images. Say which: data.columns.image={header[at[0]]}"
        )
    raise columns.AmbiguousColumn(
        f"no column {chosen or 'of images'}. Found: {shown}. Call it image, or say what it is called: "
        f"data.columns.image=…"
    )


def list_images(folder: Path) -> List[List[Any]]:
    """Names, sizes and times of all images below a folder: equal lists mean untouched images."""
    found = [path for path in below(folder) if path.suffix.lower() in KINDS]
    return [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in found]
