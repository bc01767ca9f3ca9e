"""Images that rows name: found and decoded before training; their conversations in LLaVA's form."""

import os
import warnings
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

from recipe.core.errors import InputWrong
from recipe.core.hashing import below, digest
from recipe.core.run import Run
from recipe.core.translation import _, listed, sentences
from recipe.intake import columns, files
from recipe.intake.records import InvalidRecord, Record, Turn

IMAGE_TOKEN = "<image>"  # marks the image's position in a text, as LLaVA does
COLUMN_NAMES = (
    *("image", "images", "imagepath", "imagefile", "picture", "pic", "photo", "img", "file", "filename", "path"),
    *("图", "图片", "图像", "照片", "图片路径", "图像路径", "图片文件", "图片名", "文件名"),
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MIN_SIDE = 8  # pixels; less is a spacer or a truncated file
MAX_ASPECT_RATIO = 100  # CLIP squares the image: of a narrower one nothing is left


def image_folder(run: Run) -> Path:
    """The folder to which the images' paths in dataset.jsonl are relative: data.images, else the first file's own.

    Raises InputWrong if there is no such folder.
    """
    given = run.settings.data.images
    folder = run.root / given if given else files.data_files(run)[0][0].parent
    if not folder.is_dir():
        raise InputWrong(_("data.images: there is no folder {folder}.", folder=given))
    return folder


def list_images(run: Run) -> List[List[List[Any]]]:
    """Names, sizes and times of all images that the recipe's files may name, by folder: data.images, or beside each
    file. Equal lists mean unchanged images.
    """
    if run.settings.data.images:
        folders = [image_folder(run)]
    else:
        paths = [*files.data_files(run), *files.data_files(run, "eval_files")]
        folders = sorted({path.parent for path, _name in paths})
    listed = []
    for folder in folders:
        found = [path for path in below(folder) if path.suffix.lower() in SUFFIXES]
        listed.append(
            [[files.readable(str(p.relative_to(folder))), p.stat().st_size, p.stat().st_mtime_ns] for p in found]
        )
    return listed


class Images:
    """Checks images once each, and makes LLaVA's conversations about them."""

    def __init__(self, run: Run) -> None:
        self.root = image_folder(run)
        self.folder = self.root if run.settings.data.images else None
        self.checked: Dict[Path, Union[str, InvalidRecord]] = {}  # path → sha256, or what is wrong with it

    def check(self, name: str, file: Path) -> Tuple[str, str]:
        """(path relative to the image folder, sha256) of the image that a row of `file` names. Raises InvalidRecord."""
        folder = self.folder or file.parent
        path = folder / name
        if not path.is_file() and "\\" in name:  # typed on Windows
            path = folder / name.replace("\\", "/")
        if path not in self.checked:
            try:
                self.checked[path] = _decode(path)
            except InvalidRecord as error:
                self.checked[path] = error
        found = self.checked[path]
        if isinstance(found, InvalidRecord):
            raise InvalidRecord(_("{place}: {problem}", place=name, problem=found))
        return os.path.relpath(str(path), str(self.root)), found

    def conversation(self, turns: Sequence[Turn], file: Path, system: str) -> Tuple[List[Dict[str, str]], str, str]:
        """(conversation by XTuner's own map, image path, sha256). `system` is used if the turns have none.

        Raises InvalidRecord.
        """
        from xtuner.dataset.map_fns import llava_map_fn

        named = sorted({turn.image for turn in turns if turn.image})
        if len(named) != 1:
            raise InvalidRecord(
                _("several images: {names}. Keep one per conversation", names=listed(named[:3]))
                if named
                else _("blank")
            )
        path, sha256 = self.check(named[0], file)
        messages = []
        for turn in turns:
            question = turn.question.replace(IMAGE_TOKEN, "").strip()  # LLaVA's own files have it, before or after
            messages += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
        messages[0]["value"] = f"{IMAGE_TOKEN}\n{messages[0]['value']}"
        made = llava_map_fn({"conversations": messages})["conversation"]
        system = turns[0].system or system
        if system:
            made[0] = {"system": system, **made[0]}
        return made, path, sha256


def _decode(path: Path) -> str:
    """The sha256 of an image that can be decoded. Raises InvalidRecord."""
    from PIL import Image

    if not path.is_file():
        raise InvalidRecord(_("there is no such file in {folder}", folder=path.parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(str(path)) as image:
                image.verify()  # checksums; the file must be opened again afterwards
            with Image.open(str(path)) as image:
                image.load()
                width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRecord(
            _("it has more than {n:,} pixels. Scale it down: CLIP sees 336 × 336", n=Image.MAX_IMAGE_PIXELS)
        )
    except Exception as error:  # decoders raise anything
        message = str(error).strip().replace(str(path), path.name) or type(error).__name__
        raise InvalidRecord(_("it cannot be read as an image ({error})", error=message.splitlines()[0][:100]))
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InvalidRecord(
            _(
                "it has {width} × {height} pixels: too little is left to see once it is made square",
                width=width, height=height,
            )
        )  # fmt: skip
    return digest(path)


def find_column(header: Sequence[Any], chosen: str, is_record: bool = False) -> int:
    """The index of the column that names images: `chosen`, else one of the usual names. Raises AmbiguousColumn.

    `is_record`: the header is the keys of a JSON record.
    """
    names = (columns.normalize(chosen),) if chosen else COLUMN_NAMES
    at = [index for index, name in enumerate(header) if columns.normalize(name) in names]
    if len(at) == 1:
        return at[0]
    if at:
        raise columns.AmbiguousColumn(
            _(
                "{columns} could both name the images. Say which: data.columns.image={column}",
                columns=_(" and ").join(columns.label(header[index]) for index in at), column=header[at[0]],
            )
        )  # fmt: skip
    if is_record:
        what = _("no key {key}.", key=chosen) if chosen else _("no key of images.")
    else:
        what = _("no column {column}.", column=chosen) if chosen else _("no column of images.")
    remedy = _(
        "Found: {columns}. Call it image, or say what it is called: data.columns.image=…",
        columns=listed(columns.label(name) for name in header if columns.normalize(name)),
    )
    raise columns.AmbiguousColumn(sentences(what, remedy))


def split_record(record: Any, chosen: str) -> Tuple[str, Any]:
    """A record's image, and the record without it. Raises InvalidRecord."""
    if not isinstance(record, dict):
        return "", record
    try:
        key = list(record)[find_column(list(record), chosen, is_record=True)]
    except columns.AmbiguousColumn as error:
        raise InvalidRecord(str(error))
    if not isinstance(record[key], str) or not record[key].strip():
        raise InvalidRecord(_("{key}: expected the path of an image, found {found!r}", key=key, found=record[key]))
    rest: Record = {name: value for name, value in record.items() if name != key}
    return record[key].strip(), rest
