"""Picture formats: those that are read, and those that are only recognised, so that no picture is left out silently."""

from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # not all that Pillow reads: EPS starts a program
_READ = "png apng jpg jpeg jpe jfif mpo bmp gif webp tif tiff"
SUFFIXES = frozenset(f".{name}" for name in _READ.split())  # of FORMATS
# Suffixes of pictures that Pillow does not know, or not in every version: of phones, web and drawing; of cameras.
_OTHERS = "avif heic heics heif hif jxl jxr svg svgz djvu exr hdr kra psb xcf "
_OTHERS += "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "PDF"}  # other formats that Pillow has suffixes of
# What HEIC and AVIF files have in bytes 8 to 10, after "ftyp"; phones give some of them the suffix .jpg.
_BRANDS = {b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"msf": "HEIC", b"avi": "AVIF"}


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix, in a format that is read or in another."""
    return path.suffix.lower() in SUFFIXES or bool(_other_format(path))


def format_not_read(path: Path) -> str:
    """Name the format of a picture that is not in FORMATS, like "HEIC"; "" if it is not known to be a picture."""
    with path.open("rb") as file:
        head = file.read(12)
    brand = _BRANDS.get(head[8:11]) if head[4:8] == b"ftyp" else None
    return brand or _other_format(path)


def _other_format(path: Path) -> str:
    suffix = path.suffix.lower()
    known = suffix[1:] in _OTHERS.split() or Image.registered_extensions().get(suffix, "MPEG") not in _NO_PICTURES
    return suffix[1:].upper() if known and suffix not in SUFFIXES else ""
