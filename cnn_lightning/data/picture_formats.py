"""Picture formats: those that are read, and those that are only recognised, so that no picture is left out silently."""

from pathlib import Path

from PIL import Image, features

from cnn_lightning.errors import UsageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # not all that Pillow reads: EPS starts a program
_READ = "png apng jpg jpeg jpe jfif mpo bmp gif webp tif tiff"
SUFFIXES = frozenset(f".{name}" for name in _READ.split())  # of FORMATS
# Suffixes of photos of phones, which Pillow reads in newer versions or with pillow-heif.
_PHONES = "avif heic heics heif hif"
# Suffixes of pictures that Pillow does not know, or not in every version: of web and drawing; of cameras.
_OTHERS = "jxl jxr svg svgz djvu exr hdr kra psb xcf "
_OTHERS += "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "PDF"}  # other formats that Pillow has suffixes of
# How the brands of HEIC and AVIF files begin, after "ftyp"; phones give some of them the suffix .jpg.
_BRANDS = {b"avi": "AVIF", b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"msf": "HEIC"}
INSTALL = "pip install 'cnn-lightning[photos]'"


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix, in a format that is read or in another."""
    return path.suffix.lower() in SUFFIXES or path.suffix.lower()[1:] in _PHONES.split() or bool(format_not_read(path))


def formats_for(path: Path) -> tuple[str, ...]:
    """Return the formats of Pillow that a file may have: FORMATS, or that of a phone's photo.

    Raises:
        UsageError: It is a HEIC or AVIF file, and what reads these is missing.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return FORMATS
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, min(head[3], 64), 4))]
    kinds = [_BRANDS[brand[:3]] for brand in brands if brand[:3] in _BRANDS]
    if not kinds:
        return FORMATS  # a video, for example
    # "mif1" holds anything, and the brands after it say what.
    if kinds[0] == "AVIF" or (head[8:11] in (b"mif", b"msf") and "AVIF" in kinds):
        if "avif" not in features.modules or not features.check("avif"):
            raise UsageError(f"has the format AVIF, which needs Pillow 11.3 or newer: {INSTALL}")
        return ("AVIF",)
    try:
        from pillow_heif import register_heif_opener  # imported here because few users have it
    except ImportError as error:
        raise UsageError(f"has the format HEIC, which needs pillow-heif: {INSTALL}") from error
    register_heif_opener()
    return ("HEIF",)


def format_not_read(path: Path) -> str:
    """Name the format of a picture that is never read by its suffix, like "NEF"; "" if it is not known to be one."""
    suffix = path.suffix.lower()
    known = suffix[1:] in _OTHERS.split() or Image.registered_extensions().get(suffix, "MPEG") not in _NO_PICTURES
    return suffix[1:].upper() if known and suffix not in SUFFIXES and suffix[1:] not in _PHONES.split() else ""
