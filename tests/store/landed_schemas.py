"""What each landed migration left behind, as digests: its program's schema, without white space."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


LANDED: Final[dict[str, dict[int, str]]] = {
    "sqlite": {
        1: "5c27ff241876a1f5",
        2: "e56b6acdd474b877",
        3: "00c3d179131a498d",
        4: "20db53224d88aaf5",
        5: "1127395f9ad8810e",
        6: "9308a8a317e60b19",
        7: "837da3615a50cee9",
        8: "1b28e292703ca3bb",
        9: "e6b3c4f997ecbb4f",
        10: "ee9b9f57d0c110da",
        11: "1469787f47832794",
        12: "a1471706983f4d34",
        13: "e02c9637d78656c7",
        14: "4e71d04ec5347405",
        15: "d02cfbe851c07c49",
        17: "19cc24c27747ee93",
        18: "decc6ad453c0c45e",
        19: "c1e8b90cdab65743",
        21: "fe90c4745447c3bd",
        22: "37cf70bf18c80949",
        23: "46d768748f6355be",
        24: "1b3a9bc0a7196e12",
        25: "3767bc8eaa5638af",
        26: "e5e4a244bd73b6df",
        27: "bafbe8d29c940b53",
        28: "50ce9bcaea9f9300",
        29: "934af75fef24301d",
        30: "a89a125278fdcca6",
        31: "99749974d9c2ac4d",
        32: "783b8f96d5e94ba5",
    },
    "postgres": {
        1: "07c6a0bf5eb3b401",
        2: "185512a0aaeaea46",
        3: "3267812e1ae6a6ef",
        4: "36378dbd67b18e86",
        5: "214f827244174cdf",
        6: "1e71d6900f984ee4",
        7: "aa226dc33a2c9316",
        8: "c6b097fa2d9b4a38",
        9: "7e796b40f47b129e",
        10: "26fe2ceb953ea905",
        12: "9f497d5cb0f13770",
        15: "5dfe6bac89133bf1",
        16: "7e42a70caac3e7ae",
        17: "f70dd1d17d814acc",
        18: "0217e2605ac37625",
        19: "5059804a032b616a",
        20: "fb57a00bd08206d7",
        21: "ec42d1d0fec31aef",
        22: "cb08caa20ddb99f9",
        23: "900ca5f1aa32341b",
        24: "ffd408962a951653",
        25: "64348b280474e421",
        26: "dcf554ff4d262bcc",
        27: "205f35080daf45b9",
        28: "ca7c224fcdcd2b4f",
    },
}
